//! `/livez`, `/readyz`, `/metrics`: what orchestrators and Prometheus ask.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use hearsay_services::Problem;
use serde_json::{Value, json};

use super::site::{Readiness, Site};
use crate::metrics;

/// Lives: whoever can answer does.
pub(super) async fn livez() -> Json<Value> {
    Json(json!({ "status": "alive" }))
}

/// Ready, also without peers: a node that is alone still answers for itself. Warnings do not make a node unready, because it serves as well as
/// with none; they are listed, so that a person finds them.
pub(super) async fn readyz(State(site): State<Arc<Site>>) -> Response {
    let readiness = *site.readiness.borrow();
    let detail = match readiness {
        Readiness::Ready => {
            let mut ready = json!({ "status": "ready" });
            let warnings = site.warnings.list();
            if !warnings.is_empty() {
                ready["warnings"] = warnings.into();
            }
            return Json(ready).into_response();
        }
        Readiness::Starting => "the node is starting",
        Readiness::Leaving => "the node is leaving the cluster; ask another one",
    };
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response()
}

/// All metrics.
pub(super) async fn metrics(State(site): State<Arc<Site>>) -> Response {
    match site.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written").into_response()
        }
    }
}
