//! Hearsay's node: the swarm, storage, HTTP and command line around `hearsay-protocol`'s core.

pub mod admission;
pub mod config;
pub mod control;
pub mod escape;
pub mod http;
pub mod metrics;
pub mod storage;
pub mod timestamp;
pub mod view;
