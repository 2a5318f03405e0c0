//! Registry: programs on this machine, or on machines without a node, that register with this node.
//!
//! The node stores each registration, runs its health checks and states an
//! [`Instance`](hearsay_protocol::Instance) for it, which every node of the cluster lists.
//!
//! | file | content |
//! | --- | --- |
//! | `handle` | the calls that HTTP, files and metrics make |
//! | `context`, `error` | the parts of the node that the registry uses; errors of a change |
//! | `input`, `address` | parsing of registrations and checks from JSON, in three dialects |
//! | `consul_input` | Consul's form of registrations and checks, mapped to the native one |
//! | `registration`, `record` | a validated registration; the same with owner, age and check states |
//! | `scope` | which registrations a caller without proof may make and change |
//! | `change` | a change |
//! | `registrar` | the only task that applies changes |
//! | `state` | registrations in memory |
//! | `store` | registrations on disk, by group commit |
//! | `instance` | conversion of a registration to the instance that the cluster lists |
//! | `files` | registrations in files of a directory |
//! | `subscribers` | notifies programs when the services that they require change |
//! | `checks` | health checks and their runs |
//! | `fuzzing` | properties of `input` and `files`, for a fuzz target |
//!
//! **A change takes effect before it is acknowledged**: before its client gets the answer, a registration has
//! been synced to disk and entered in this node's provider table. A refused change has no effect.

mod address;
pub(crate) mod catalog_input;
mod change;
pub(crate) mod checks;
pub(crate) mod consul_input;
mod context;
mod error;
pub(crate) mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod handle;
pub(crate) mod input;
mod instance;
pub(crate) mod record;
mod registrar;
pub(crate) mod registration;
mod scope;
mod state;
mod store;
mod subscribers;

pub use change::{AddedCheck, Registered, Selector};
pub use context::RegistryContext;
pub use error::RegistryError;
pub use handle::Registry;
pub(crate) use instance::MAINTENANCE_KIND;
pub use instance::{MAINTENANCE_CHECK, NODE_MAINTENANCE_CHECK};
pub use scope::Scope;
pub use state::{CheckReportReader, Ending};
pub use store::RegistryStoreError;
