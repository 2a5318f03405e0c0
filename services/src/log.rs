//! `log`: the central log. Announces itself; records come with the journal.

use std::sync::Arc;

use axum::{
    Router,
    routing::{MethodRouter, get},
};
use http::Method;
use serde_json::{Value, json};

use crate::{
    Host, Service,
    plan::{self, Plan},
};

const PLAN: Plan = Plan {
    role: "log",
    will: "keep the records of all services in one stable order, replicated and searchable",
    refused: &["POST /log", "POST /records"],
};

/// The plug-in.
#[derive(Debug)]
pub struct Log;

impl Service for Log {
    fn name(&self) -> &str {
        PLAN.role
    }

    fn prefixes(&self) -> &[&str] {
        &["/log", "/records"]
    }

    fn router(&self, _host: Arc<dyn Host>) -> Router {
        let described = || -> MethodRouter { get(|| async { PLAN.describe() }) };
        Router::new()
            .route("/log", plan::refuse(described(), &[Method::POST], PLAN.role))
            .route("/records", plan::refuse(described(), &[Method::POST], PLAN.role))
    }

    /// A line of text is the simplest record there is.
    fn takes_form_bodies(&self) -> bool {
        true
    }

    fn openapi(&self) -> Value {
        let path = json!({ "get": PLAN.openapi_get(), "post": PLAN.openapi_refused("Add records") });
        json!({ "/log": path, "/records": path })
    }
}
