//! `visits`: a counter whose sum over all nodes is exact. Announces itself; counting comes with the journal, because a count
//! that is lost with its node is not exact.

use std::sync::Arc;

use axum::{Router, routing::get};
use http::Method;
use serde_json::{Value, json};

use crate::{
    Host, Service,
    plan::{self, Plan},
};

const PLAN: Plan = Plan {
    role: "visits",
    will: "count visits on every node and answer with their exact sum",
    refused: &["POST /visits", "GET /visits/hit"],
};

/// The plug-in.
#[derive(Debug)]
pub struct Visits;

impl Service for Visits {
    fn name(&self) -> &str {
        PLAN.role
    }

    fn prefixes(&self) -> &[&str] {
        &["/visits"]
    }

    fn router(&self, _host: Arc<dyn Host>) -> Router {
        let counter = get(|| async { PLAN.describe() });
        Router::new()
            .route("/visits", plan::refuse(counter, &[Method::POST], PLAN.role))
            .route("/visits/hit", get(|| async { plan::not_yet(PLAN.role) }))
    }

    fn openapi(&self) -> Value {
        json!({
            "/visits": { "get": PLAN.openapi_get(), "post": PLAN.openapi_refused("Count one visit") },
            "/visits/hit": { "get": PLAN.openapi_refused("Count one visit") },
        })
    }
}
