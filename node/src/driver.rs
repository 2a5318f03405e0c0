//! The driver: connects the protocol core to the swarm, timers and the rest of the node.
//!
//! The driver passes events to the core as inputs, carries out the core's outputs, and decides nothing
//! itself. It has its own thread and runtime, so that neither a flood of HTTP requests nor a slow disk delays
//! this node's answers to pings.

mod check_reports;
mod connections;
mod dial;
mod dials;
mod event_loop;
mod exchange;
mod gossip;
mod housekeeping;
mod multicast;
mod operator;
mod outcome;
mod outputs;
mod outsiders;
mod peer_clocks;
mod replicas;
mod replication;
mod state;
mod surroundings;
mod sync;

pub use state::{Driver, DriverParts};
