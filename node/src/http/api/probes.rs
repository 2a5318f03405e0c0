//! `GET /livez`, `/readyz` and `/metrics`: health probes of orchestrators, and metrics for Prometheus.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use hearsay_services::Problem;
use serde_json::{Value, json};

use crate::{
    http::state::{AppState, Readiness},
    metrics,
};

/// Liveness: a process that can answer is alive.
pub(crate) async fn livez() -> Json<Value> {
    Json(json!({ "status": "alive" }))
}

/// Readiness. A node without other nodes is ready. Warnings do not make a node unready; they are listed for
/// operators.
pub(crate) async fn readyz(State(state): State<Arc<AppState>>) -> Response {
    let readiness = *state.readiness.borrow();
    let detail = match readiness {
        Readiness::Searching | Readiness::Ready => {
            let mut ready = json!({ "status": "ready" });
            let warnings = state.warnings.list();
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

/// All metrics, in the text format of OpenMetrics.
pub(crate) async fn metrics(State(state): State<Arc<AppState>>) -> Response {
    match state.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written").into_response()
        }
    }
}
