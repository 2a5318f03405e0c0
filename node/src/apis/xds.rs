//! xDS server of a node: tells Envoy and gRPC clients which services there are, and where, from the provider
//! table.
//!
//! The protocol is that of Envoy's "xDS REST and gRPC protocol": aggregated discovery (ADS) over gRPC, as
//! state of the world and as deltas, and discovery by REST. Every service is a cluster, an assignment of
//! endpoints, a listener and a route configuration of its name. `docs/xds.md` describes them.
//!
//! | file | content |
//! | --- | --- |
//! | `kind` | the four types of resources |
//! | `catalog`, `endpoint` | services and endpoints with the versions at which they changed |
//! | `request` | the requests of clients |
//! | `assignment`, `cluster`, `listener`, `routes` | the messages of each type |
//! | `resources`, `encoding` | resources by kind and name, encoded; their versions |
//! | `rest_json`, `rest` | the same as JSON; discovery by REST |
//! | `subscription`, `kind_state` | what a client has subscribed to |
//! | `state_of_the_world`, `delta` | what it gets next |
//! | `catalog_cache` | the one catalog of a node, while clients use it |
//! | `ads`, `stream`, `budget` | the gRPC service, its streams, and the bounds on what they hold |
//! | `metrics` | counters |

mod ads;
mod assignment;
mod budget;
mod catalog;
pub(crate) mod catalog_cache;
mod cluster;
mod delta;
mod encoding;
mod endpoint;
mod kind;
mod kind_state;
mod listener;
pub(crate) mod metrics;
pub(crate) mod request;
mod resources;
mod rest;
mod rest_json;
mod routes;
mod state_of_the_world;
mod stream;
mod subscription;

pub(crate) use ads::Ads;
pub(crate) use rest::rest_routes;

#[cfg(test)]
mod tests;
