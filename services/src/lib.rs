//! Crate of the built-in plug-ins, of the traits [`Service`] and [`Host`] between a plug-in and its node, and
//! of the tools both share: HTTP, journal, network limits, log shipping and timestamps.
//!
//! A plug-in implements [`Service`]: a role, path prefixes, a router, a background task and an announcement.
//! A node implements [`Host`] and passes it to its plug-ins. This crate does not depend on the node's crate.
//! So every plug-in also runs on the in-memory host of the module `testing`, and plug-ins of other crates
//! have the same rights.
//!
//! To add a plug-in, implement `Service` and add it to the node's list (`node/src/builtin.rs`).

mod host;
pub mod http;
pub mod journal;
mod log_limit;
mod log_shipper;
pub mod network;
pub mod plugins;
mod service;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod timestamp;

pub use host::{Host, ResponseFuture};
pub use http::{client::Client, prefixes::PrefixClash, problem::Problem};
pub use log_limit::LogLimit;
pub use log_shipper::{LogEvent, LogOutbox, LogQueue, SHIPPER_THREAD, ShipperCounters, log_queue};
pub use service::{Metric, MetricKind, Service, Task};
pub use timestamp::{now_ms, parse_rfc3339_ms, rfc3339, rfc3339_ms, unix_ms};
