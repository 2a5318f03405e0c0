//! Builds HTTP responses as Consul sends them: a JSON body, and headers such as `X-Consul-Index`.

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use hearsay_services::Problem;
use serde::Serialize;

use super::query::Query;

/// The index of a blocking query.
pub(super) const INDEX: HeaderName = HeaderName::from_static("x-consul-index");
/// The hash of a query that blocks by hash.
pub(super) const CONTENT_HASH: HeaderName = HeaderName::from_static("x-consul-contenthash");
/// Whether the data that a query reads has a keeper.
pub(super) const KNOWN_LEADER: HeaderName = HeaderName::from_static("x-consul-knownleader");
/// Headers of every query that can block. Go's client reads none of them if the second is missing.
const OF_QUERIES: [(HeaderName, HeaderValue); 4] = [
    (KNOWN_LEADER, HeaderValue::from_static("true")),
    (HeaderName::from_static("x-consul-lastcontact"), HeaderValue::from_static("0")),
    (HeaderName::from_static("x-consul-query-backend"), HeaderValue::from_static("blocking-query")),
    (HeaderName::from_static("x-consul-default-acl-policy"), HeaderValue::from_static("allow")),
];

/// Answers JSON.
pub(super) fn json(query: &Query, body: &impl Serialize) -> Response {
    let text = match query.is_pretty {
        true => serde_json::to_vec_pretty(body),
        false => serde_json::to_vec(body),
    };
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Answers a query that can block, with the index to wait with. Clients take 0 for an error.
pub(super) fn indexed(query: &Query, index: u64, body: &impl Serialize) -> Response {
    with_index(index, json(query, body))
}

/// Adds the headers of a query that can block to its answer.
pub(super) fn with_index(index: u64, answer: impl IntoResponse) -> Response {
    let mut response = answer.into_response();
    let headers = response.headers_mut();
    headers.insert(INDEX, HeaderValue::from(index.max(1)));
    headers.extend(OF_QUERIES);
    response
}

/// Answers a query that blocks by hash.
pub(super) fn hashed(query: &Query, hash: &str, body: &impl Serialize) -> Response {
    let mut response = json(query, body);
    if let Ok(hash) = HeaderValue::from_str(hash) {
        response.headers_mut().insert(CONTENT_HASH, hash);
    }
    response.headers_mut().extend(OF_QUERIES);
    response
}
