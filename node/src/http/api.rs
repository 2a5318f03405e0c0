//! Handlers of the node's own HTTP API: lists, registrations, event streams, health probes and metrics, and
//! what they share (`blocking_query`, `instance`). Consul's reads are in `apis/consul`.

pub(crate) mod agent;
pub(crate) mod blocking_query;
pub(crate) mod dependencies;
pub(crate) mod instance;
pub(crate) mod members;
pub(crate) mod network;
pub(crate) mod openapi;
pub(crate) mod probes;
pub(crate) mod registrations;
pub(crate) mod services;
pub(crate) mod watch;
pub(crate) mod why;
