//! Records: the signed, versioned facts that a node states about itself.
//!
//! Only the owner of a key states facts about its node. Any node can relay these facts, because each carries
//! the owner's signature. An [`Entry`] has one key, so a node with 5,000 instances changes one of them in one
//! small message. Keys and values travel as opaque bytes with a small kind number, and the layer above
//! decodes them. So this version stores, compares and relays entries of kinds that only a newer version
//! knows.

mod bounds;
mod entry;
mod header;
mod instance;
mod key;
pub(crate) mod parts;
mod web_origin;

pub(crate) use bounds::check_name;
pub use bounds::{
    ADDRESSES_MAX, ID_CHARS_MAX, Invalid, META_PAIRS_MAX, NAME_CHARS_MAX, TAGS_MAX, check_service_name,
};
pub(crate) use entry::signed_bytes;
pub use entry::{ENTRY_BYTES_MAX, Entry, EntryError, Fact};
pub use header::{Header, Presence};
pub use instance::{
    CHECK_OUTPUT_BYTES_MAX, CheckSummary, Health, Instance, NamedPort, Origin, Overflow, WEIGHT_DEFAULT,
};
pub use key::Key;
pub(crate) use key::name_of_part;
#[cfg(any(test, fuzzing))]
pub(crate) use parts::INSTANCE_BYTES_MAX;
pub use parts::check_instance_size;
pub use web_origin::WebOrigin;
