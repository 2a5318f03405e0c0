//! `POST /rpc`: JSON-RPC 2.0 over HTTP.

use std::sync::Arc;

use axum::{
    body::to_bytes,
    extract::{Request, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use hearsay_services::{
    Problem,
    http::{IDEMPOTENCY_KEY, Parameters},
};

use super::{receipts::Receipts, session::Session};
use crate::http::{reentry::InnerClient, server::response_budget, state::AppState};

/// Carries out a request or a batch. The status is 200 with a response and 204 without one, also for errors
/// of JSON-RPC.
///
/// # Errors
/// 400 for a query or a key in the head: a parameter belongs into the message.
pub(crate) async fn answer(
    State(state): State<Arc<AppState>>,
    request: Request,
) -> Result<Response, Problem> {
    Parameters::read(request.uri().query(), &[])?;
    if request.headers().contains_key(&IDEMPOTENCY_KEY) {
        let detail = "Idempotency-Key: a message may have several writes; give the key as the parameter idempotencyKey of the call";
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail).with("header", "Idempotency-Key"));
    }
    let (head, body) = request.into_parts();
    // The body was read and bounded before.
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let Some(client) = InnerClient::of(&head) else {
        // Unreachable: the route table lists this path as one with inner requests.
        return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the node cannot enter its router"));
    };
    let session = Session::new(state, client, Receipts::of_message(&head.headers));
    let answer = session.answer(&body).await;
    let receipts = session.receipts().headers();
    Ok(match answer.text {
        Some(text) => {
            let charged = response_budget::charged(text, answer.permits);
            (receipts, [(header::CONTENT_TYPE, "application/json")], charged).into_response()
        }
        None => (StatusCode::NO_CONTENT, receipts).into_response(),
    })
}
