//! Hearsay's protocol: the state machines and messages of nodes, without I/O.
//!
//! - [`Core`] is one node's protocol state machine; `io` has its inputs and outputs, [`Config`] its options.
//! - `membership` has the replicated state, the failure detector and the overlay of connections.
//! - `sync` is anti-entropy: two neighbours compare hashes, and so find entries that gossip did not deliver.
//! - `record` has the signed entries that a node states about itself; `id` has keys and signatures.
//! - [`ProviderTable`] is a node's view of members and services, which users query.
//! - [`wire`] has the messages between nodes and their bytes.
//! - [`journal`] is a second state machine beside the core: topics that replicas keep in full.
//! - [`RequestSignature`] proves to a node that another member made an HTTP request.
//! - `sim` simulates whole clusters; `fuzzing` states the properties of decoders, for fuzz targets and tests.
//!
//! The crate uses no sockets, files, clocks or random sources: callers pass time and seeds as arguments. So a
//! simulator runs thousands of nodes in one thread, and the same seed reproduces a failure.

mod config;
mod core;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod id;
mod io;
pub mod journal;
mod membership;
mod providers;
mod record;
mod rfc3339;
mod signed_request;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod sync;
mod time;
mod version_set;
pub mod wire;

pub use config::Config;
pub use core::{Core, Startup, UserEventCounters};
pub use id::{Identity, Incarnation, NodeId, NotANodeId, Version};
pub use io::{
    Command, Counters, Event, Fatal, FireId, FireRefusal, GossipId, Input, Judgement, Output, Pong, Profile,
};
pub use membership::evidence::{Claim, Evidence, Strength};
pub use membership::overlay::Overlay;
pub use providers::{
    ADDRESSES_META, AddressLimit, Change, Explanation, Index, Member, MemberState, Provider, ProviderTable,
    ServiceChange, Subnet, dns_label, host_of_multiaddr, ip_of_host,
};
pub use record::{
    ADDRESSES_MAX, CHECK_OUTPUT_BYTES_MAX, CheckSummary, ENTRY_BYTES_MAX, Entry, EntryError, Fact, Header,
    Health, ID_CHARS_MAX, Instance, Invalid, Key, META_PAIRS_MAX, NAME_CHARS_MAX, NamedPort, Origin,
    Overflow, Presence, TAGS_MAX, WEIGHT_DEFAULT, WebOrigin, check_instance_size, check_service_name,
};
pub use rfc3339::{RFC3339_LAST_MS, rfc3339_ms};
pub use signed_request::{
    BodyHash, COVERED_HEADERS, Life, NotASignature, REPLAY_WINDOW, ReplayWindow, RequestHead,
    RequestSignature, SIGNATURE_HEADER,
};
pub use sync::{RequestId, RootPrefix};
pub use time::Time;
pub use version_set::{VERSION_RANGES_MAX, VersionSet};
