//! `/v1/kv`: keys and values, by way of the nearest node of the role `kv`.
//!
//! This node asks a replica at its path `/kv` and translates the answer. A blocking query is a series of
//! short ones, so that it survives the replica. Without a replica a read is 404 and a write is 500.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use hearsay_services::{
    Host, Problem,
    http::{Call, CallError, HEARSAY_ACK, HEARSAY_TOKEN, IDEMPOTENCY_KEY, Parameters, Reply, problem_detail},
    plugins::{KV_INDEX, KV_ROLE, KV_VALUE_BYTES_MAX},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};

use super::{
    answer::{KNOWN_LEADER, json, with_index},
    key_writes::KeyWrites,
    query::Query,
};
use crate::{
    escape::percent_encoded,
    http::{api::blocking_query::Wait, state::AppState},
};

/// The paths of the store.
pub(crate) const PREFIX: &str = "/v1/kv";
/// Longest wait of one query at a replica. Below the time that the client gives an instance to answer.
const SLICE: Duration = Duration::from_secs(5);
/// Pause after a blocking query that no replica could answer.
const PAUSE: Duration = Duration::from_secs(1);
/// Why there is no value.
const NO_REPLICA: &str = "no node keeps the key/value store: start one with --role kv";
const NO_VALUE: &str = "no value has this key";
/// Why locks are refused.
const LOCKS: &str =
    "locks need sessions and consensus, which Hearsay does not have; use a system with consensus for locks";

/// The host, which the router adds to requests below [`PREFIX`].
type HostExtension = Extension<Arc<dyn Host>>;

/// The parameters of a request.
#[derive(Debug, Default)]
struct KvQuery {
    query: Query,
    is_recursive: bool,
    wants_keys: bool,
    separator: String,
    is_raw: bool,
    /// Whether the answer names the latest writes of the key. Consul has no such parameter.
    wants_writes: bool,
    /// Parameters that the replica reads: `cas` and `flags`.
    passed_on: Vec<(&'static str, u64)>,
}

impl KvQuery {
    fn read(uri: &Uri) -> Result<Self, Problem> {
        let mut query = Self { query: Query::read(uri)?, ..Self::default() };
        for (name, value) in Parameters::pairs(uri.query()) {
            let number =
                || value.parse::<u64>().map_err(|_| Parameters::refuse(&name, &value, "a whole number"));
            match name.as_ref() {
                "recurse" => query.is_recursive = Parameters::flag(&name, &value)?,
                "keys" => query.wants_keys = Parameters::flag(&name, &value)?,
                "raw" => query.is_raw = Parameters::flag(&name, &value)?,
                "writes" => query.wants_writes = Parameters::flag(&name, &value)?,
                "separator" => query.separator = value.into_owned(),
                "cas" => query.passed_on.push(("cas", number()?)),
                "flags" => query.passed_on.push(("flags", number()?)),
                "acquire" | "release" => return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, LOCKS)),
                _ => (),
            }
        }
        Ok(query)
    }

    /// Returns the path and query of a read at a replica.
    fn target(&self, key: &str) -> Result<String, Problem> {
        if self.wants_writes && (self.wants_keys || self.is_recursive || self.is_raw) {
            return Err(Problem::parameter(
                "writes",
                "is for one key and for JSON; ask without keys, recurse and raw",
            ));
        }
        match (self.wants_keys, self.is_recursive, self.is_raw) {
            (true, ..) => Ok(format!(
                "/kv?keys=true&prefix={}&separator={}",
                percent_encoded(key),
                percent_encoded(&self.separator)
            )),
            (_, true, _) => Ok(format!("/kv?prefix={}", percent_encoded(key))),
            _ if key.is_empty() => Err(missing_key()),
            // A replica of an earlier version refuses the parameter, so only a query that needs it has it.
            _ if self.wants_writes => Ok(format!("/kv/{}?writes=true", percent_encoded(key))),
            (.., is_raw) => Ok(format!("/kv/{}?raw={is_raw}", percent_encoded(key))),
        }
    }
}

fn missing_key() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "Missing key name")
}

/// A key and its value, as a replica answers them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredPair {
    key: String,
    flags: u64,
    value: String,
    create_index: u64,
    modify_index: u64,
    writes: Option<KeyWrites>,
}

/// A key and its value, as Consul answers them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConsulPair {
    lock_index: u64,
    key: String,
    flags: u64,
    value: Option<String>,
    create_index: u64,
    modify_index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    writes: Option<KeyWrites>,
}

impl ConsulPair {
    fn new(pair: StoredPair, state: &AppState) -> Self {
        let StoredPair { key, flags, value, create_index, modify_index, writes } = pair;
        let value = Some(value).filter(|value| !value.is_empty());
        let writes = writes.map(|writes| writes.named(state));
        Self { lock_index: 0, key, flags, value, create_index, modify_index, writes }
    }
}

/// A problem of a replica without a value for a key.
#[derive(Debug, Deserialize)]
struct AbsentKey {
    writes: Option<KeyWrites>,
}

/// A read of this node at the replicas.
#[derive(Clone, Copy)]
struct ReplicaRead<'a> {
    state: &'a AppState,
    host: &'a dyn Host,
    query: &'a KvQuery,
}

/// Outcome of a read at the replicas.
enum Outcome {
    /// The answer for the client.
    Answered(Response),
    /// The wait ended without a change.
    Unchanged,
    /// There is no replica.
    NoReplica,
    /// No replica could answer.
    Failed(Problem),
}

/// `GET /v1/kv/{key}`.
///
/// # Errors
/// 404 without a value. 429: too many requests wait. 500: no replica can answer.
pub(super) async fn read(
    State(state): State<Arc<AppState>>,
    Extension(host): HostExtension,
    Path(key): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    read_key(&state, host.as_ref(), &key, (&headers, &uri)).await
}

/// `GET /v1/kv?recurse` or `?keys`.
///
/// # Errors
/// As [`read`].
pub(super) async fn read_all(
    State(state): State<Arc<AppState>>,
    Extension(host): HostExtension,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    read_key(&state, host.as_ref(), "", (&headers, &uri)).await
}

async fn read_key(
    state: &AppState,
    host: &dyn Host,
    key: &str,
    (headers, uri): (&HeaderMap, &Uri),
) -> Result<Response, Problem> {
    let query = KvQuery::read(uri)?;
    let target = query.target(key)?;
    let token = headers.get(HEARSAY_TOKEN).and_then(|token| token.to_str().ok());
    state.started().await;
    let call = |target: String| match token {
        Some(token) => Call::get(target).header(HEARSAY_TOKEN, token),
        None => Call::get(target),
    };
    let read = ReplicaRead { state, host, query: &query };
    let Some(seen) = query.query.index else {
        return finish(read.ask(&call(target)).await, 1);
    };
    let _permit = state.stream_limit.admit_key_query(&state.metrics)?;
    let ends = Instant::now() + Wait::new(None, query.query.wait).at_most();
    let leaving = state.leaving();
    tokio::pin!(leaving);
    loop {
        let left = ends.saturating_duration_since(Instant::now()).min(SLICE);
        let waiting = call(format!("{target}&index={}&wait={}ms", seen.0, left.as_millis()));
        let outcome = tokio::select! {
            outcome = read.ask(&waiting) => outcome,
            () = &mut leaving => return finish(read.ask(&call(target)).await, seen.0),
        };
        let is_over = ends <= Instant::now() + Duration::from_millis(1);
        match outcome {
            Outcome::Answered(response) => return Ok(response),
            Outcome::Unchanged if is_over => {
                return finish(read.ask(&call(target)).await, seen.0);
            }
            Outcome::Unchanged => (),
            // The replicas may refuse blocking queries only.
            Outcome::Failed(_) if is_over => return finish(read.ask(&call(target)).await, seen.0),
            outcome if is_over => return finish(outcome, seen.0),
            outcome => {
                if timeout(PAUSE.min(left), &mut leaving).await.is_ok() {
                    return finish(outcome, seen.0);
                }
            }
        }
    }
}

/// Returns the answer for the client, with an index if there is no replica.
fn finish(outcome: Outcome, index: u64) -> Result<Response, Problem> {
    match outcome {
        Outcome::Answered(response) => Ok(response),
        Outcome::NoReplica => {
            let mut response = absent(index, NO_REPLICA);
            // By this a client tells that the store is missing, and not only the key.
            response.headers_mut().insert(KNOWN_LEADER, HeaderValue::from_static("false"));
            Ok(response)
        }
        Outcome::Unchanged => Ok(with_index(index, StatusCode::NOT_MODIFIED)),
        Outcome::Failed(problem) => Err(problem),
    }
}

impl ReplicaRead<'_> {
    /// Reads from the nearest replica.
    async fn ask(self, call: &Call) -> Outcome {
        let reply = match self.host.client().call(self.host, KV_ROLE, call).await {
            Ok(reply) => reply,
            Err(CallError::NoInstance { .. }) => return Outcome::NoReplica,
            Err(error) => return Outcome::Failed(failed(&error)),
        };
        let index = reply.headers.get(KV_INDEX).and_then(|index| index.to_str().ok()?.parse().ok());
        let index = index.unwrap_or(1);
        match reply.status {
            StatusCode::NOT_MODIFIED => Outcome::Unchanged,
            StatusCode::OK => match self.translate(&reply, index) {
                Ok(response) => Outcome::Answered(response),
                Err(error) => {
                    let detail = format!("the node {:?} has another version: {error}", reply.provider.node);
                    Outcome::Failed(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail))
                }
            },
            StatusCode::NOT_FOUND => Outcome::Answered(self.absent(&reply, index)),
            _ => Outcome::Answered(problem_of(&reply).into_response()),
        }
    }

    /// Answers that a replica has no value for the key. A deleted key has writes.
    fn absent(self, reply: &Reply, index: u64) -> Response {
        let writes = reply.json::<AbsentKey>().ok().and_then(|absent| absent.writes);
        match writes.filter(|_| self.query.wants_writes) {
            None => absent(index, NO_VALUE),
            Some(writes) => {
                let body = serde_json::json!({ "detail": NO_VALUE, "Writes": writes.named(self.state) });
                with_index(index, (StatusCode::NOT_FOUND, Json(body)))
            }
        }
    }

    /// Translates the answer of a replica to Consul's.
    fn translate(self, reply: &Reply, index: u64) -> serde_json::Result<Response> {
        let query = self.query;
        if query.wants_keys {
            let keys: Vec<String> = reply.json()?;
            return Ok(match keys.is_empty() {
                true => absent(index, NO_VALUE),
                false => with_index(index, json(&query.query, &keys)),
            });
        }
        if !query.is_recursive && query.is_raw {
            // A client that shows the value must not take it for a page.
            let content_type = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
            return Ok(with_index(index, (content_type, reply.body.clone())));
        }
        let pairs: Vec<StoredPair> = if query.is_recursive { reply.json()? } else { vec![reply.json()?] };
        if pairs.is_empty() {
            return Ok(absent(index, NO_VALUE));
        }
        let pairs: Vec<ConsulPair> =
            pairs.into_iter().map(|pair| ConsulPair::new(pair, self.state)).collect();
        Ok(with_index(index, json(&query.query, &pairs)))
    }
}

/// Answers that there is no value, as JSON: Consul's clients expect this type of each answer to a query.
fn absent(index: u64, detail: &str) -> Response {
    with_index(index, (StatusCode::NOT_FOUND, Json(serde_json::json!({ "detail": detail }))))
}

/// Returns the error of a replica.
fn problem_of(reply: &Reply) -> Problem {
    let detail = problem_detail(&reply.body).unwrap_or_else(|| reply.status.to_string());
    Problem::new(reply.status, detail)
}

fn failed(error: &CallError) -> Problem {
    let detail = match error {
        CallError::NoInstance { .. } => NO_REPLICA.to_owned(),
        CallError::AllFailed { indeterminate: true, .. } => {
            format!("the write may or may not take effect: {error}")
        }
        _ => error.to_string(),
    };
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
}

/// `PUT /v1/kv/{key}?flags=&cas=`. Answers `true`, or `false` for a stale index.
///
/// # Errors
/// 413: the value is too large. 500: no replica can answer. 501: locks, and indexes that are not stale.
pub(super) async fn write(
    State(state): State<Arc<AppState>>,
    Extension(host): HostExtension,
    Path(key): Path<String>,
    head: Parts,
    body: Bytes,
) -> Result<Response, Problem> {
    let query = KvQuery::read(&head.uri)?;
    if body.len() > KV_VALUE_BYTES_MAX {
        let detail = format!("value: at most {KV_VALUE_BYTES_MAX} bytes, this one has {}", body.len());
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    let parameters = query.passed_on.iter().map(|(name, value)| format!("{name}={value}"));
    let target = format!("/kv/{}?{}", percent_encoded(&key), parameters.collect::<Vec<_>>().join("&"));
    let call = Call::new(Method::PUT, target).body("application/octet-stream", body);
    state.started().await;
    send(host.as_ref(), &query, &head.headers, call).await
}

/// `DELETE /v1/kv/{key}?recurse&cas=`.
///
/// # Errors
/// As [`write`].
pub(super) async fn delete(
    State(state): State<Arc<AppState>>,
    Extension(host): HostExtension,
    Path(key): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = KvQuery::read(&uri)?;
    let cas = query.passed_on.iter().find(|(name, _)| *name == "cas");
    let target = match (query.is_recursive, cas) {
        (true, _) => format!("/kv?prefix={}", percent_encoded(&key)),
        (false, Some((_, cas))) => format!("/kv/{}?cas={cas}", percent_encoded(&key)),
        (false, None) => format!("/kv/{}", percent_encoded(&key)),
    };
    state.started().await;
    send(host.as_ref(), &query, &headers, Call::new(Method::DELETE, target)).await
}

/// `DELETE /v1/kv?recurse`: deletes all keys.
///
/// # Errors
/// 400 without `recurse`. See also [`write`].
pub(super) async fn delete_all(
    State(state): State<Arc<AppState>>,
    Extension(host): HostExtension,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = KvQuery::read(&uri)?;
    if !query.is_recursive {
        return Err(missing_key());
    }
    state.started().await;
    send(host.as_ref(), &query, &headers, Call::new(Method::DELETE, "/kv?prefix=")).await
}

/// Sends a write to the nearest replica.
async fn send(
    host: &dyn Host,
    query: &KvQuery,
    headers: &HeaderMap,
    call: Call,
) -> Result<Response, Problem> {
    let mut call = call;
    for name in [IDEMPOTENCY_KEY, HEARSAY_TOKEN] {
        if let Some(value) = headers.get(&name).and_then(|value| value.to_str().ok()) {
            call = call.header(name, value);
        }
    }
    let reply = host.client().call(host, KV_ROLE, &call).await.map_err(|error| failed(&error))?;
    if reply.status != StatusCode::PRECONDITION_FAILED && !reply.status.is_success() {
        return Err(problem_of(&reply));
    }
    let mut response = json(&query.query, &reply.status.is_success());
    for name in [HEARSAY_ACK, HEARSAY_TOKEN] {
        if let Some(value) = reply.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(query: &str, key: &str) -> Result<String, u16> {
        let query = KvQuery::read(&format!("/v1/kv/x?{query}").parse().unwrap());
        query.and_then(|query| query.target(key)).map_err(|problem| problem.status().as_u16())
    }

    #[test]
    fn a_read_is_translated_to_the_replicas_path() {
        for (query, key, expected) in [
            ("", "a/b c/", Ok("/kv/a%2Fb%20c%2F?raw=false")),
            ("writes", "a", Ok("/kv/a?writes=true")),
            ("writes&recurse", "a", Err(400)),
            ("writes&raw", "a", Err(400)),
            ("raw", "a", Ok("/kv/a?raw=true")),
            ("recurse", "", Ok("/kv?prefix=")),
            ("recurse=1&raw", "a/", Ok("/kv?prefix=a%2F")),
            ("keys&separator=/", "ü", Ok("/kv?keys=true&prefix=%C3%BC&separator=%2F")),
            ("recurse=false", "", Err(400)),
            ("acquire=x", "a", Err(501)),
            ("cas=x", "a", Err(400)),
            ("dc=other", "a", Err(500)),
        ] {
            assert_eq!(target(query, key), expected.map(str::to_owned), "{query} {key}");
        }
    }
}
