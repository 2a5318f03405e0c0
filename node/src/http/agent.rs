//! What is asked of the node itself, as of Consul's agent: `PUT /v1/agent/leave` and `PUT /v1/agent/maintenance`.

use std::sync::Arc;

use axum::{
    extract::{RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use hearsay_services::{Problem, parameters::Parameters};
use tokio::sync::mpsc::error::TrySendError;

use super::site::Site;
use crate::control::Control;

/// Of a reason, so much is logged.
const REASON_CHARS_MAX: usize = 256;

/// Asks the driver to leave, and answers at once; whoever wants to know when it is done watches the node go.
pub(super) async fn leave(State(site): State<Arc<Site>>) -> Response {
    ask(&site, Control::Leave)
}

/// Takes the node's own instances out of service (critical), or back in (passing), without stopping anything: `?enable=true|false`, and
/// a `reason` for the log.
///
/// # Errors
/// 400 where `enable` is missing or neither of the two.
pub(super) async fn maintenance(
    State(site): State<Arc<Site>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(query.as_deref(), &["enable", "reason"])?;
    let Some(enable) = parameters.parse::<bool>("enable", "true or false")? else {
        return Err(Problem::parameter("enable", "is missing; say true or false"));
    };
    let reason: String =
        parameters.one("reason")?.unwrap_or_default().chars().take(REASON_CHARS_MAX).collect();
    tracing::info!(enable, reason = reason.escape_debug().to_string(), "maintenance");
    site.registry.set_node_maintenance(enable.then_some(reason)).await?;
    Ok(StatusCode::OK.into_response())
}

fn ask(site: &Site, control: Control) -> Response {
    match send(site, control) {
        Ok(()) => StatusCode::OK.into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// Hands a request to the driver.
///
/// # Errors
/// 503: it takes none at the moment, or no more.
pub(super) fn send(site: &Site, control: Control) -> Result<(), Problem> {
    let problem = match site.control.try_send(control) {
        Ok(()) => return Ok(()),
        Err(TrySendError::Full(_)) => "the node has too many requests of this kind before it; try again",
        Err(TrySendError::Closed(_)) => "the node is already stopping",
    };
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, problem))
}
