//! What Hearsay's nodes say to each other, and what they conclude from it.
//!
//! A map of the crate, from the outside in:
//! - [`Core`] composes everything; [`io`] is what goes in and comes out.
//! - [`record`] is what a node states about itself, [`state`] what all have stated, [`sync`] how two nodes even out the difference.
//! - [`watch`] is what a node sees of others, [`liveness`] what all conclude from everybody's sightings, [`health`] how patient to be.
//! - [`overlay`] says who watches whom and so who is connected to whom, [`links`] dials and prunes accordingly.
//! - [`providers`] is the table that users query.
//! - [`wire`] is the messages and their bytes.
//! - [`signed_request`] is how one node proves to another that an HTTP request is its own.
//! - [`journal`] is what replicas write down together and never lose: a machine of its own, beside [`Core`]. No node runs it yet.
//!
//! No sockets, files, clocks or randomness: time and seeds are arguments. So a cluster of thousands runs in a loop (`sim`), and what
//! went wrong once goes wrong again with the same seed.

pub mod config;
mod core;
pub mod health;
pub mod id;
pub mod io;
pub mod journal;
mod limit;
pub mod links;
pub mod liveness;
pub mod overlay;
pub mod providers;
pub mod record;
pub mod rfc3339;
pub mod seen;
pub mod signed_request;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod state;
pub mod sync;
pub mod time;
pub mod watch;
pub mod wire;

pub use core::{Core, Restored};
pub use id::{Identity, Incarnation, NodeId, NotANodeId, Version};
pub use time::Time;
