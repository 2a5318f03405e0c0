//! Gateway: a reverse proxy that takes its routes from the provider table, on a listener of its own.
//!
//! Routes need no configuration. Each service of the table has the route `/{service}/…`, and instances
//! announce further prefixes by tags. An instance that has left the table gets no requests.
//!
//! | folder | contents |
//! | --- | --- |
//! | `server` | threads, client connections and their limits |
//! | `routing` | the routing table, route tags and their permission, load balancing |
//! | `upstream` | endpoints: addresses, connections, latency, ejection |
//! | `forward` | forwarding of a request: admission, headers, attempts and retries, bodies, tunnels |
//! | `respond` | the responses that the gateway makes itself |
//! | `observe` | counters, `GET /gateway`, the access log, trace context |
//! | `limits` | all limits, with the source of each value |
//!
//! A program gets the client's `Host`, so its own check of that name stays meaningful (DNS rebinding,
//! `Origin`). A role gets the authority of its node in `Host`, and the admitted name in `Forwarded`. Such
//! requests have `X-Forwarded-For`. By it the role's node recognises a remote client, even if the gateway is
//! local.
//!
//! Not included: TLS on either side, CONNECT, a cache.

#[cfg(test)]
mod fixture;
mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod limits;
mod observe;
mod plugin;
mod refusal;
mod respond;
mod routing;
mod server;
mod shared;
mod upstream;

pub use limits::Limits;
pub use plugin::Gateway;
pub use routing::{options::GatewayOptions, ownership::RouteRule};
