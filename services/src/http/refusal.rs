//! Problem documents for errors below the router: requests that hyper refuses, and refused connections.
//!
//! hyper answers a malformed or oversized head with a status without a body. It does not answer a head that
//! takes too long. The listeners of the node and of the gateway replace these answers by problem documents in
//! the byte stream.

use http::StatusCode;
use serde_json::json;

use crate::http::problem::PROBLEM_CONTENT_TYPE;

/// Bytes of the longest bare response of hyper: a status line and three headers.
const BARE_BYTES_MAX: usize = 512;

/// Returns the bytes of an error response that closes the connection.
pub fn bare_response(status: StatusCode, detail: &str) -> Vec<u8> {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail });
    let body = format!("{body}\n");
    let retry = if status == StatusCode::SERVICE_UNAVAILABLE { "retry-after: 1\r\n" } else { "" };
    let length = body.len();
    format!(
        "HTTP/1.1 {} {title}\r\ncontent-type: {PROBLEM_CONTENT_TYPE}\r\n{retry}connection: close\r\ncontent-length: {length}\r\n\r\n{body}",
        status.as_u16()
    )
    .into_bytes()
}

/// Returns the replacement for a bare error response of hyper; `None` for any other output. The caller
/// ensures that the bytes are not the response of a handler.
pub fn bare_status_detail(written: &[u8]) -> Option<Vec<u8>> {
    // Every write passes here, so the cheap comparison comes first.
    if written.len() > BARE_BYTES_MAX || written.get(..3) != Some(b"HTT") {
        return None;
    }
    let head = std::str::from_utf8(written).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ").or_else(|| head.strip_prefix("HTTP/1.0 "))?.get(..3)?;
    if !head.ends_with("\r\n\r\n") || !head.to_ascii_lowercase().contains("\r\ncontent-length: 0\r\n") {
        return None;
    }
    let (status, detail) = match status {
        "400" => (StatusCode::BAD_REQUEST, "this is not an HTTP request"),
        "414" => (StatusCode::URI_TOO_LONG, "the path and query are too long"),
        "431" => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "the head of the request is over the limit of bytes or of lines",
        ),
        _ => return None,
    };
    Some(bare_response(status, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_announces_its_own_length() {
        let text = String::from_utf8(bare_response(StatusCode::SERVICE_UNAVAILABLE, "too many")).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "the body has {} bytes",
            body.len()
        );
        assert!(head.contains("retry-after: 1"));
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["status"], 503);
    }

    #[test]
    fn only_bare_errors_get_words() {
        let bare =
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert!(bare_status_detail(bare).is_some());
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ndate: x\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK",
            "content-length: 0\r\n\r\n",
            "HTTP/1.1 ü",
            "",
        ] {
            assert_eq!(bare_status_detail(other.as_bytes()), None, "{other}");
        }
    }
}
