//! gRPC of a node (`--grpc`): its services, and the check of each call's caller.
//!
//! | file | content |
//! | --- | --- |
//! | `guard` | the class of each method, and the proof that it needs |

pub(crate) mod guard;

use std::sync::Arc;

use axum::{Router, middleware};
use tonic::service::Routes;

use crate::{apis::xds::Ads, http::AppState};

/// Builds the router of all gRPC services. Every call passes the guard first.
pub(crate) fn router(state: Arc<AppState>) -> Router {
    let routes = Routes::new(Ads::new(Arc::clone(&state)).into_service());
    routes.into_axum_router().layer(middleware::from_fn_with_state(state, guard::pass))
}
