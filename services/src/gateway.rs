//! `gateway`: the reverse proxy that learns its routes from the provider table. Announces itself; its own listener, where it will
//! proxy, is not there yet, so nothing is proxied.

use std::sync::Arc;

use axum::{Router, routing::get};
use serde_json::{Value, json};

use crate::{Host, Service, plan::Plan};

const PLAN: Plan = Plan {
    role: "gateway",
    will: "pass requests on to whichever instances are alive, on a listener of its own",
    refused: &[],
};

/// The plug-in.
#[derive(Debug)]
pub struct Gateway;

impl Service for Gateway {
    fn name(&self) -> &str {
        PLAN.role
    }

    fn prefixes(&self) -> &[&str] {
        &["/gateway"]
    }

    fn router(&self, _host: Arc<dyn Host>) -> Router {
        Router::new().route("/gateway", get(|| async { PLAN.describe() }))
    }

    fn openapi(&self) -> Value {
        json!({ "/gateway": { "get": PLAN.openapi_get() } })
    }
}
