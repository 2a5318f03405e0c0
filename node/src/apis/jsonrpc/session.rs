//! [`Session`]: carries out the calls of one message or connection for a client, one after the other.
//!
//! A batch is bounded in its number of requests, in the bytes of its results and in time. Large results are
//! charged to the memory budget of responses until the response is written. A bound refuses a write only
//! before it is carried out.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::{Method as Verb, StatusCode};
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
    receipts::Receipts,
};
use crate::http::{
    reentry::{InnerClient, InnerRequest},
    server::response_budget::SMALL_BYTES,
    state::AppState,
};

/// Bytes of the results of one message: the tables of some 20,000 instances.
const RESULT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of the answer to a write, such as a student with some thousand grades. So much must be left of
/// [`RESULT_BYTES_MAX`] before the write is carried out.
const WRITE_ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Time after which no further request of a batch is carried out. A request to a role takes 15 s at most.
const BATCH_TIME_MAX: Duration = Duration::from_secs(30);

/// A client and the node that carries out its calls.
#[derive(Debug)]
pub(super) struct Session {
    state: Arc<AppState>,
    client: InnerClient,
    /// Those of earlier calls. Calls follow each other, so no lock waits.
    receipts: Mutex<Receipts>,
}

/// The response to a message, and the memory that is charged for it.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// `None`: the message had only notifications.
    pub(super) text: Option<String>,
    pub(super) permits: Vec<OwnedSemaphorePermit>,
}

/// What is left of the bounds of a message.
struct Budget {
    bytes: usize,
    /// Bytes of results for which no memory is charged.
    uncharged: usize,
    ends: Instant,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Budget {
    fn new() -> Self {
        let ends = Instant::now() + BATCH_TIME_MAX;
        Self { bytes: RESULT_BYTES_MAX, uncharged: 0, ends, permits: Vec::new() }
    }
}

impl Session {
    /// A session whose calls see the writes of `receipts`.
    pub(super) fn new(state: Arc<AppState>, client: InnerClient, receipts: Receipts) -> Self {
        Self { state, client, receipts: Mutex::new(receipts) }
    }

    /// Returns the receipts of the calls so far.
    pub(super) fn receipts(&self) -> MutexGuard<'_, Receipts> {
        self.receipts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a message of `POST /rpc`: a request or a batch in version 2.0.
    pub(super) async fn answer(&self, message: &[u8]) -> Answer {
        let refuse = |error: RpcError| {
            self.state.metrics.jsonrpc.answered("none", error.code);
            let text = response(Version::Two, RawValue::NULL, Err(&error));
            Answer { text: Some(text), permits: Vec::new() }
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
            responses.extend(self.respond(request, None, &mut budget).await);
        }
        let text = (!responses.is_empty()).then(|| format!("[{}]", responses.join(",")));
        Answer { text, permits: budget.permits }
    }

    /// Answers one request. `default`: the version of a request that names none.
    pub(super) async fn answer_one(&self, request: &RawValue, default: Option<Version>) -> Answer {
        let mut budget = Budget::new();
        let text = self.respond(request, default, &mut budget).await;
        Answer { text, permits: budget.permits }
    }

    async fn respond(
        &self,
        request: &RawValue,
        default: Option<Version>,
        budget: &mut Budget,
    ) -> Option<String> {
        let metrics = &self.state.metrics.jsonrpc;
        let request = match Request::read(request, default) {
            Ok(request) => request,
            Err(refused) => {
                let Refused { version, id, error } = *refused;
                metrics.answered("none", error.code);
                return Some(response(version, id, Err(&error)));
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
        id.map(|id| response(version, id, outcome.as_deref()))
    }

    async fn call(&self, mut inner: InnerRequest, budget: &mut Budget) -> Result<Box<RawValue>, RpcError> {
        let refuse = |reason, status, detail: &str| {
            self.state.metrics.jsonrpc.refused(reason);
            RpcError::of_problem(&Problem::new(status, detail))
        };
        if budget.ends <= Instant::now() {
            let detail = "the batch takes too long, so this request was not carried out; send it again";
            return Err(refuse("batch_time", StatusCode::SERVICE_UNAVAILABLE, detail));
        }
        let is_write = inner.method != Verb::GET;
        let bytes_max = if is_write { WRITE_ANSWER_BYTES_MAX } else { budget.bytes };
        if budget.bytes < bytes_max {
            let detail = "the results of this message leave no room for the answer to a write, so this request was not carried out; send it in a message of its own";
            return Err(refuse("result_bytes", StatusCode::INSUFFICIENT_STORAGE, detail));
        }
        let has_receipts = Receipts::cover(&inner.target);
        if has_receipts {
            inner.headers.extend(self.receipts().token());
        }
        let reply = self.client.ask(inner, bytes_max).await.map_err(|problem| {
            let is_bound = problem.status() == StatusCode::INSUFFICIENT_STORAGE;
            self.state.metrics.jsonrpc.refused(if is_bound { "result_bytes" } else { "result_broken" });
            RpcError::of_problem(&problem)
        })?;
        if has_receipts {
            self.receipts().record(reply.status, &reply.headers);
        }
        if !reply.status.is_success() {
            return Err(RpcError::of_reply(&reply));
        }
        budget.bytes -= reply.body.len();
        if !self.charge(reply.body.len(), budget) && !is_write {
            let detail = "this node has no memory left for large results that clients read slowly; try again in a second";
            budget.uncharged -= reply.body.len();
            return Err(refuse("result_memory", StatusCode::SERVICE_UNAVAILABLE, detail));
        }
        result_of(&reply.body).map_err(|error| {
            let done = if is_write { "the write was carried out; its answer is lost: " } else { "" };
            let detail = format!("{done}the result is not JSON: {error}");
            RpcError::of_problem(&Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail))
        })
    }

    /// Charges the results of a message once they are large together. Whether the memory suffices.
    fn charge(&self, bytes: usize, budget: &mut Budget) -> bool {
        budget.uncharged += bytes;
        if budget.uncharged as u64 <= SMALL_BYTES {
            return true;
        }
        let Some(permit) = self.state.response_budget.acquire(budget.uncharged) else { return false };
        budget.uncharged = 0;
        budget.permits.push(permit);
        true
    }
}

/// Returns the body of a response as a result on one line. A response without a body has an empty object as
/// its result: Go's client takes null for a missing result.
fn result_of(body: &Bytes) -> serde_json::Result<Box<RawValue>> {
    let body: &[u8] = if body.is_empty() { b"{}" } else { body };
    match body.contains(&b'\n') {
        false => serde_json::from_slice::<Box<RawValue>>(body),
        true => serde_json::from_slice::<Value>(body).and_then(|value| to_raw_value(&value)),
    }
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
        }
    }
}
