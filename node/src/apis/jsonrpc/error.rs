//! [`RpcError`]: an error object with its code, and the rule by which an HTTP status becomes a code.

use axum::http::{StatusCode, header};
use hearsay_services::Problem;
use serde_json::Value;

use crate::http::reentry::InnerReply;

/// The message is not JSON.
const PARSE_ERROR: i32 = -32700;
/// The message is no request.
const INVALID_REQUEST: i32 = -32600;
/// The method is unknown.
const METHOD_NOT_FOUND: i32 = -32601;
/// A parameter is missing, unknown or malformed.
const INVALID_PARAMS: i32 = -32602;
/// The node failed.
const INTERNAL_ERROR: i32 = -32603;
/// First of the codes that the specification leaves to servers, down to -32099.
const SERVER_ERROR: i32 = -32000;

/// Characters of an error without problem details that are passed on.
const TEXT_CHARS_MAX: usize = 300;

/// An error object (JSON-RPC 2.0, section 5.1).
#[derive(Clone, PartialEq, Debug)]
pub(super) struct RpcError {
    pub(super) code: i32,
    pub(super) message: String,
    /// Problem details (RFC 9457).
    pub(super) data: Value,
}

impl RpcError {
    fn new(code: i32, problem: &Problem) -> Self {
        let data = serde_json::from_str(&problem.to_json()).unwrap_or_default();
        Self { code, message: problem.detail().to_owned(), data }
    }

    /// The message is not JSON.
    pub(super) fn parse(detail: impl Into<String>) -> Self {
        Self::new(PARSE_ERROR, &Problem::new(StatusCode::BAD_REQUEST, detail))
    }

    /// The message is JSON, but no request.
    pub(super) fn invalid_request(detail: impl Into<String>) -> Self {
        Self::new(INVALID_REQUEST, &Problem::new(StatusCode::BAD_REQUEST, detail))
    }

    /// The method is unknown. `known` are the others.
    pub(super) fn unknown_method(method: &str, known: &str) -> Self {
        let method: String = method.chars().take(64).collect();
        let detail = format!("method: there is no method {method:?}; the methods are {known}");
        Self::new(METHOD_NOT_FOUND, &Problem::not_found(detail))
    }

    /// The code follows from the status; a parameter that is refused here and one that a path refuses have
    /// the same code.
    pub(super) fn of_problem(problem: &Problem) -> Self {
        Self::new(code_of(problem.status()), problem)
    }

    /// Reads the error response of a path. `Retry-After` becomes the member `retryAfter` of the problem.
    pub(super) fn of_reply(reply: &InnerReply) -> Self {
        let InnerReply { status, headers, body } = reply;
        let mut error = Self::of_body(*status, body);
        let seconds =
            headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if let (Some(seconds), Value::Object(problem)) = (seconds, &mut error.data) {
            problem.insert("retryAfter".to_owned(), seconds.into());
        }
        error
    }

    fn of_body(status: StatusCode, body: &[u8]) -> Self {
        if let Ok(data @ Value::Object(_)) = serde_json::from_slice::<Value>(body)
            && let Some(detail) = data["detail"].as_str()
        {
            return Self { code: code_of(status), message: detail.to_owned(), data };
        }
        let text: String = String::from_utf8_lossy(body).trim().chars().take(TEXT_CHARS_MAX).collect();
        let detail = if text.is_empty() { format!("the node answered {status}") } else { text };
        Self::of_problem(&Problem::new(status, detail))
    }
}

/// Returns the code of a status: -32602 for requests that are malformed, -32603 for failures, and otherwise
/// -32000 minus the last two digits, less 50 more from 500 on (404: -32004, 503: -32053).
fn code_of(status: StatusCode) -> i32 {
    match status.as_u16() {
        400 | 415 | 422 => INVALID_PARAMS,
        500 => INTERNAL_ERROR,
        client @ 401..450 => SERVER_ERROR - i32::from(client - 400),
        server @ 501..550 => SERVER_ERROR - i32::from(server - 450),
        _ => SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderValue};

    use super::*;

    #[test]
    fn a_status_has_a_code_within_the_range_of_servers() {
        for (status, code) in [
            (400, -32602),
            (415, -32602),
            (422, -32602),
            (401, -32001),
            (403, -32003),
            (404, -32004),
            (409, -32009),
            (413, -32013),
            (429, -32029),
            (500, -32603),
            (501, -32051),
            (502, -32052),
            (503, -32053),
            (504, -32054),
            (507, -32057),
            (451, -32000),
            (599, -32000),
            (303, -32000),
        ] {
            assert_eq!(code_of(StatusCode::from_u16(status).unwrap()), code, "{status}");
        }
        for status in 401..600 {
            let code = code_of(StatusCode::from_u16(status).unwrap());
            assert!((-32099..=-32000).contains(&code) || code <= -32602, "{status}: {code}");
        }
    }

    #[test]
    fn an_error_has_the_problem_details_of_its_path_or_some_of_its_own() {
        let body = Problem::not_found("no such thing").with("field", "id").to_json();
        let headers = HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static("7"))]);
        let reply = InnerReply { status: StatusCode::NOT_FOUND, headers, body: body.into() };
        let error = RpcError::of_reply(&reply);
        assert_eq!((error.code, error.message.as_str()), (-32004, "no such thing"));
        assert_eq!((&error.data["status"], &error.data["field"]), (&404.into(), &"id".into()));
        assert_eq!(error.data["retryAfter"], 7);
        for (body, message) in [
            ("gone\n", "gone"),
            ("", "the node answered 404 Not Found"),
            (r#"{"error":1}"#, r#"{"error":1}"#),
            ("[1]", "[1]"),
        ] {
            let error = RpcError::of_body(StatusCode::NOT_FOUND, body.as_bytes());
            assert_eq!((error.code, error.message.as_str()), (-32004, message));
            assert_eq!(error.data["detail"], message);
        }
        let unknown = RpcError::unknown_method("a.b", "why");
        assert_eq!((unknown.code, &unknown.data["status"]), (-32601, &404.into()));
        assert_eq!(RpcError::parse("x").code, -32700);
        assert_eq!(RpcError::invalid_request("x").code, -32600);
    }
}
