//! Interfaces of other systems, by which their clients can query a node: Consul's HTTP API, DNS, gRPC, xDS,
//! JSON-RPC, the Model Context Protocol of agents, and the HTTP service discovery of Prometheus.

pub(crate) mod consul;
pub(crate) mod dns;
mod entity_tag;
pub(crate) mod grpc;
pub(crate) mod jsonrpc;
pub(crate) mod mcp;
pub(crate) mod prometheus;
pub(crate) mod xds;
