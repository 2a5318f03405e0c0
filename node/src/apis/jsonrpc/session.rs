//! [`Session`]: carries out the calls of one message or connection for a client, one after the other.
//!
//! A batch is bounded in its number of requests, in the bytes of its results and in time. The results are
//! charged to the memory budget of responses until the response is written.

use std::{sync::Arc, time::Duration};

use axum::http::StatusCode;
use bytes::Bytes;
use hearsay_services::Problem;
use serde_json::{
    Value,
    value::{RawValue, to_raw_value},
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    error::RpcError,
    message::{BATCH_MAX, Batch, Message, Refused, Request, Version, response},
    method::Method,
};
use crate::http::{
    reentry::{InnerClient, InnerRequest},
    state::AppState,
};

/// Bytes of the results of one message: the tables of some 20,000 instances.
const RESULT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Time after which no further request of a batch is carried out. A request to a role takes 15 s at most.
const BATCH_TIME_MAX: Duration = Duration::from_secs(30);

/// A client and the node that carries out its calls.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) state: Arc<AppState>,
    pub(super) client: InnerClient,
}

/// The response to a message, and the memory that is charged for it.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// `None`: the message had only notifications.
    pub(super) text: Option<String>,
    _permits: Vec<OwnedSemaphorePermit>,
}

/// What is left of the bounds of a message.
struct Budget {
    bytes: usize,
    ends: Instant,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Budget {
    fn new() -> Self {
        Self { bytes: RESULT_BYTES_MAX, ends: Instant::now() + BATCH_TIME_MAX, permits: Vec::new() }
    }
}

impl Session {
    /// Answers a message of `POST /rpc`: a request or a batch in version 2.0.
    pub(super) async fn answer(&self, message: &[u8]) -> Answer {
        let refuse = |error: RpcError| {
            self.state.metrics.jsonrpc.answered("none", error.code);
            let text = response(Version::Two, &Value::Null, Err(&error));
            Answer { text: Some(text), _permits: Vec::new() }
        };
        let Batch { requests, count } = match Message::read(message) {
            Ok(Message::Batch(batch)) => batch,
            Ok(Message::One(request)) => return self.answer_one(request, None).await,
            Err(error) => return refuse(RpcError::parse(format!("the message is not JSON: {error}"))),
        };
        if count == 0 {
            return refuse(RpcError::invalid_request("the batch is empty; give at least one request"));
        }
        if count > BATCH_MAX {
            self.state.metrics.jsonrpc.refused("batch_requests");
            let detail = format!("at most {BATCH_MAX} requests in a batch, this has {count}");
            return refuse(RpcError::invalid_request(detail));
        }
        let mut budget = Budget::new();
        let mut responses = Vec::new();
        for request in requests {
            // Its syntax was checked with the batch; only a number may still be out of range.
            match serde_json::from_str(request.get()) {
                Ok(request) => responses.extend(self.respond(request, None, &mut budget).await),
                Err(error) => {
                    let error = RpcError::invalid_request(format!("a request cannot be read: {error}"));
                    responses.extend(refuse(error).text);
                }
            }
        }
        let text = (!responses.is_empty()).then(|| format!("[{}]", responses.join(",")));
        Answer { text, _permits: budget.permits }
    }

    /// Answers one request. `default`: the version of a request that names none.
    pub(super) async fn answer_one(&self, request: Value, default: Option<Version>) -> Answer {
        let mut budget = Budget::new();
        let text = self.respond(request, default, &mut budget).await;
        Answer { text, _permits: budget.permits }
    }

    async fn respond(&self, request: Value, default: Option<Version>, budget: &mut Budget) -> Option<String> {
        let metrics = &self.state.metrics.jsonrpc;
        let request = match Request::read(request, default) {
            Ok(request) => request,
            Err(refused) => {
                let Refused { version, id, error } = *refused;
                metrics.answered("none", error.code);
                return Some(response(version, &id, Err(&error)));
            }
        };
        let Request { version, id, method, params } = request;
        let known = Method::find(&method);
        let outcome = match known {
            Some(method) => match method.request(params) {
                Ok(inner) => self.call(inner, budget).await,
                Err(problem) => Err(RpcError::of_problem(&problem)),
            },
            None => Err(RpcError::unknown_method(&method, &Method::names())),
        };
        metrics.answered(
            known.map_or("unknown", |method| method.name),
            outcome.as_ref().err().map_or(0, |error| error.code),
        );
        id.map(|id| response(version, &id, outcome.as_deref()))
    }

    async fn call(&self, inner: InnerRequest, budget: &mut Budget) -> Result<Box<RawValue>, RpcError> {
        let refuse = |reason, status, detail: &str| {
            self.state.metrics.jsonrpc.refused(reason);
            RpcError::of_problem(&Problem::new(status, detail))
        };
        if budget.ends <= Instant::now() {
            let detail = "the batch takes too long, so this request was not carried out; send it again";
            return Err(refuse("batch_time", StatusCode::SERVICE_UNAVAILABLE, detail));
        }
        let reply = self.client.ask(inner, budget.bytes).await.map_err(|problem| {
            self.state.metrics.jsonrpc.refused("result_bytes");
            RpcError::of_problem(&problem)
        })?;
        if !reply.status.is_success() {
            return Err(RpcError::of_reply(&reply));
        }
        budget.bytes -= reply.body.len();
        let Some(permit) = self.state.response_budget.acquire(reply.body.len()) else {
            let detail = "this node has no memory left for large results that clients read slowly; try again in a second";
            return Err(refuse("result_memory", StatusCode::SERVICE_UNAVAILABLE, detail));
        };
        budget.permits.push(permit);
        result_of(&reply.body)
    }
}

/// Returns the body of a response as a result on one line. A response without a body has an empty object as
/// its result: Go's client takes null for a missing result.
fn result_of(body: &Bytes) -> Result<Box<RawValue>, RpcError> {
    let body: &[u8] = if body.is_empty() { b"{}" } else { body };
    let result = match body.contains(&b'\n') {
        false => serde_json::from_slice::<Box<RawValue>>(body),
        true => serde_json::from_slice::<Value>(body).and_then(|value| to_raw_value(&value)),
    };
    result.map_err(|error| {
        let detail = format!("the result is not JSON: {error}");
        RpcError::of_problem(&Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_on_one_line_and_never_empty() {
        for (body, expected) in
            [("", Some("{}")), ("{\"a\": 1}", Some("{\"a\": 1}")), ("[1,\n2]", Some("[1,2]")), ("x", None)]
        {
            let result = result_of(&Bytes::from_static(body.as_bytes()));
            assert_eq!(result.as_ref().ok().map(|result| result.get()), expected, "{body}");
            assert!(result.is_ok() || result.is_err_and(|error| error.code == -32603));
        }
    }
}
