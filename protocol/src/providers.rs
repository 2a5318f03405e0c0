//! Provider table: a node's local picture of members and of the instances that they offer, which users
//! query.
//!
//! The core decides; the table only applies the core's [`Change`]s and never calls back. So a node can keep
//! the table behind a lock that readers hold for microseconds. Instances are shared (`Arc`): a reader clones
//! pointers under the lock and formats them after releasing it.
//!
//! - An instance is listed while its node is `alive` or `suspect`. If many nodes fall silent at once, the
//!   table guard keeps the last passing instances of a service listed for a while.
//! - The index grows by one with every change that a query can see. Each node has its own index. It starts at
//!   the node's incarnation in microseconds, so that it never decreases at a restart. That is far below 2^53,
//!   the largest integer that JSON carries exactly.
//! - Services and members are found by DNS label, and members by IP address, without a scan.
//! - The last 4,096 changes are kept, so that a watcher resumes after a short absence; after a longer absence
//!   it gets a snapshot. The number of explanations for `/why` is bounded, too.

mod addresses;
mod change;
mod duplicates;
mod explanations;
mod guard;
mod guard_state;
mod member;
mod names;
mod provider;
mod queries;
mod table;
#[cfg(test)]
mod tests;

pub use addresses::{ADDRESSES_META, AddressLimit, Subnet, host_of_multiaddr};
pub use change::{Change, Index, ServiceChange};
pub use explanations::Explanation;
pub use member::{Member, MemberState};
pub use names::{dns_label, ip_of_host};
pub use provider::Provider;
pub use table::ProviderTable;
