//! What Hearsay's nodes say to each other, and what they conclude from it.

pub mod id;
pub mod providers;
pub mod record;
pub mod time;
pub mod wire;

pub use id::{Identity, Incarnation, NodeId, NotANodeId, Version};
pub use time::Time;
