//! Hearsay's node: the swarm, storage, HTTP and command line around `hearsay-protocol`'s core.

pub mod admission;
pub mod banner;
pub mod cli;
pub mod config;
pub mod control;
pub mod driver;
pub mod escape;
pub mod events;
mod exemptions;
mod go_duration;
mod hangup;
pub mod http;
pub mod interfaces;
pub mod journal;
mod key_check;
pub mod logging;
mod memory;
pub mod metrics;
pub mod ports;
pub mod presentation;
pub mod registry;
mod reload;
mod run;
pub mod seek;
pub mod signing;
pub mod socket;
pub mod storage;
pub mod swarm;
mod systemd;
pub mod view;
pub mod warnings;

pub use hearsay_services::timestamp;
pub use run::run;
