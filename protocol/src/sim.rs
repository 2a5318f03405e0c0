//! Simulator: a whole cluster in one loop, with virtual time and a seed.
//!
//! Protocol bugs hide in orders of events that are rare in a test on a real network. Here the order follows
//! from a seed, and the same seed gives the same trace. The simulator replaces the driver. It provides
//! connections that open, close and break, gossip (each message once per node), requests and responses,
//! pings, and refused or unanswered dials. The network delays messages. It reorders messages between
//! different pairs of nodes, but not within a connection. Packet loss acts as over TCP: retransmissions delay
//! a message, or the connection stalls. Partitions cut one or both directions, and hosts crash, freeze and
//! restart. *Not* simulated: the bytes of TCP, and the disk, which the core does not use.

mod cluster;
mod link;
mod network;

pub use cluster::{FalseAlarm, Sim, SimNode};
pub use link::{NodeIndex, Weather};
