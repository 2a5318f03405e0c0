//! Interfaces of other systems, by which their clients can query a node: Consul's HTTP API, DNS, and the HTTP
//! service discovery of Prometheus.

pub(crate) mod consul;
pub(crate) mod dns;
mod entity_tag;
pub(crate) mod prometheus;
