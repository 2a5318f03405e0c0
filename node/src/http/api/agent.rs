//! `PUT /v1/agent/leave` and `PUT /v1/agent/maintenance` (Consul's paths), and [`send`], which passes an
//! operator's request to the node's main loop.

use std::sync::Arc;

use axum::{
    extract::{RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use hearsay_services::{Problem, http::Parameters};
use tokio::sync::mpsc::error::TrySendError;

use crate::{
    http::{api::registrations::readable_reason, state::AppState},
    operator_request::OperatorRequest,
};

/// The reason of a maintenance without one. As Consul.
const REASON_DEFAULT: &str =
    "Maintenance mode is enabled for this node, but no reason was provided. This is a default message.";

/// Requests the node to leave. The response comes at once; the process ends when the node has left.
pub(crate) async fn leave(State(state): State<Arc<AppState>>) -> Response {
    match send(&state, OperatorRequest::Leave) {
        Ok(()) => StatusCode::OK.into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// Sets the node's own instances to critical, or back to passing, without stopping anything:
/// `?enable=true|false`, and a `reason` for people. Other parameters are ignored, as in Consul.
///
/// # Errors
/// 400 if `enable` is missing or malformed.
pub(crate) async fn maintenance(
    State(state): State<Arc<AppState>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let (mut enable, mut reason) = (None, String::new());
    for (name, value) in Parameters::pairs(query.as_deref()) {
        match name.as_ref() {
            "enable" => enable = Some(Parameters::flag(&name, &value)?),
            "reason" => reason = readable_reason(&value),
            _ => (),
        }
    }
    let Some(enable) = enable else {
        return Err(Problem::parameter("enable", "is missing; give true or false"));
    };
    if enable && reason.is_empty() {
        REASON_DEFAULT.clone_into(&mut reason);
    }
    tracing::info!(enable, reason = reason.escape_debug().to_string(), "maintenance");
    state.registry.set_node_maintenance(enable.then_some(reason)).await?;
    Ok(StatusCode::OK.into_response())
}

/// Sends a request to the node's main loop.
///
/// # Errors
/// 503: the channel is full, or the node is stopping.
pub(crate) fn send(state: &AppState, request: OperatorRequest) -> Result<(), Problem> {
    let problem = match state.operator_requests.try_send(request) {
        Ok(()) => return Ok(()),
        Err(TrySendError::Full(_)) => "the node has too many operator requests waiting; try again",
        Err(TrySendError::Closed(_)) => "the node is already stopping",
    };
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, problem))
}
