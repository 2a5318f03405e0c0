//! Hearsay's node: the swarm, storage, HTTP and command line around `hearsay-protocol`'s core.
//!
//! Programs call [`main`] with their plug-ins. The other re-exports serve tests, fuzz targets and
//! measurements.

#![allow(unreachable_pub, reason = "`pub` in a private module means: for the whole crate")]

mod admission;
mod apis;
mod banner;
mod builtin;
mod cli;
mod config;
mod discovery;
mod driver;
mod driver_command;
mod escape;
mod event_log;
mod exemptions;
mod go_duration;
mod hangup;
mod http;
mod journal;
mod key_check;
mod logging;
mod metrics;
mod operator_request;
mod presentation;
mod registry;
mod reload;
mod run;
mod sessions;
mod signing;
mod socket;
mod storage;
mod swarm;
mod system;
mod user_events;
mod view;
mod warnings;

#[cfg(any(test, fuzzing))]
pub use apis::consul::fuzzing::consul as fuzz_consul;
#[cfg(any(test, fuzzing))]
pub use apis::dns::fuzzing::dns as fuzz_dns;
#[cfg(any(test, fuzzing))]
pub use apis::jsonrpc::fuzzing::jsonrpc as fuzz_jsonrpc;
pub use builtin::builtin;
pub use cli::main;
pub use driver::{Driver, DriverParts};
pub use driver_command::{DriverCommand, Neighbourhood};
#[cfg(any(test, fuzzing))]
pub use http::fuzzing::request as fuzz_request;
pub use journal::{Store, TopicStore, WrapStore};
pub use metrics::Metrics;
pub use presentation::{Offer, Presentation};
#[cfg(any(test, fuzzing))]
pub use registry::fuzzing::registration as fuzz_registration;
pub use run::{Overrides, run, run_with};
pub use storage::{DataDir, Storage};
pub use swarm::{Behaviour, BehaviourEvent, SwarmConfig, build as build_swarm};
pub use user_events::UserEvents;
pub use view::{Clock, View};
