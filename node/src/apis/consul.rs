//! Consul's HTTP interface at `/v1`: existing clients of Consul's agent run against any node.
//!
//! Shapes, headers, statuses and parameters are those of Consul's public API documentation. `docs/consul.md`
//! lists the differences and their reasons.
//!
//! | file | content |
//! | --- | --- |
//! | `query` | parameters of requests |
//! | `filter`, `fields` | filter expressions, and the fields of each path |
//! | `lookup`, `node` | blocking queries and copies of the table |
//! | `shapes`, `answer` | JSON and headers of answers |
//! | `catalog`, `health`, `status` | reads of the cluster |
//! | `agent`, `local` | reads of this node |
//! | `agent_writes` | registrations, checks and members |
//! | `monitor` | the log of this node |
//! | `kv` | keys and values, by way of a node of the role `kv` |
//! | `event` | user events |
//! | `refused` | 501 and why |
//! | `fuzzing` | properties of `filter` and of registrations, for a fuzz target |

mod agent;
mod agent_writes;
mod answer;
mod catalog;
mod catalog_writes;
mod event;
mod fields;
mod filter;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod health;
mod key_writes;
mod kv;
mod local;
mod lookup;
mod monitor;
mod node;
mod query;
mod refused;
mod routes;
mod shapes;
mod status;

pub(crate) use kv::PREFIX as KV_PREFIX;
pub(crate) use routes::consul_routes;
