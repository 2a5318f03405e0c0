//! Hearsay's node: the swarm, storage, HTTP and command line around `hearsay-protocol`'s core.

pub mod admission;
pub mod config;
pub mod escape;
pub mod storage;
pub mod view;
