//! Hearsay's node: the swarm, storage, HTTP and command line around `hearsay-protocol`'s core.

pub mod admission;
pub mod banner;
pub mod cli;
pub mod config;
pub mod escape;
pub mod logging;
pub mod storage;
pub mod view;
