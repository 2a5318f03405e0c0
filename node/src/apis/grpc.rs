//! gRPC of a node (`--grpc`): its services, and the check of each call's caller.
//!
//! | file | content |
//! | --- | --- |
//! | `guard` | the class of each method, and the proof that it needs |
//! | `calls`, `metrics` | deadlines and counters of calls |
//! | `request_body` | the bounds of messages until they have arrived |
//! | `discovery`, `register` | `hearsay.v1.Discovery`; its stream of a held registration |
//! | `registration_json` | a registration as the JSON that the registry parses |
//! | `messages` | the generated messages, and conversions to them |
//! | `health` | `grpc.health.v1` for the node and for services of the table |
//! | `reflection` | the descriptors of all services |

mod calls;
mod discovery;
pub(crate) mod guard;
mod health;
mod messages;
pub(crate) mod metrics;
mod reflection;
mod register;
mod registration_json;
mod request_body;

use std::sync::Arc;

use axum::{Router, middleware};
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use crate::{apis::xds::Ads, http::state::AppState};
pub(crate) use messages::pb;

use discovery::DiscoveryService;
use health::HealthService;

/// Size of a message to `hearsay.v1.Discovery`: that of a body to `POST /services`.
const DISCOVERY_BYTES_MAX: usize = 1024 * 1024;
/// Size of a message to `grpc.health.v1.Health`, which is the name of a service. A watch keeps it.
const HEALTH_BYTES_MAX: usize = 4 * 1024;

/// Builds the router of all gRPC services. Every call is counted, and passes the guard first.
pub(crate) fn router(state: Arc<AppState>) -> Router {
    let discovery = pb::discovery_server::DiscoveryServer::new(DiscoveryService::new(Arc::clone(&state)));
    let health = HealthServer::new(HealthService::new(Arc::clone(&state)));
    let routes = Routes::new(Ads::new(Arc::clone(&state)).into_service())
        .add_service(discovery.max_decoding_message_size(DISCOVERY_BYTES_MAX))
        .add_service(health.max_decoding_message_size(HEALTH_BYTES_MAX));
    let routes = reflection::add(routes);
    routes
        .into_axum_router()
        .layer(middleware::from_fn_with_state(Arc::clone(&state), guard::pass))
        .layer(middleware::from_fn_with_state(state, calls::track))
}
