//! `PUT /v1/agent/leave`: the node says goodbye, as Consul's agent does.

use std::sync::Arc;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use hearsay_services::Problem;
use tokio::sync::mpsc::error::TrySendError;

use super::Site;
use crate::control::Control;

/// Asks the driver to leave, and answers at once; whoever wants to know when it is done watches the node go.
pub(super) async fn leave(State(site): State<Arc<Site>>) -> Response {
    let problem = match site.control.try_send(Control::Leave) {
        Ok(()) => return StatusCode::OK.into_response(),
        Err(TrySendError::Full(_)) => "the node has too many requests of this kind before it; try again",
        Err(TrySendError::Closed(_)) => "the node is already stopping",
    };
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, problem).into_response()
}
