//! What a client is told where HTTP's library answers, or nobody.
//!
//! A head that is malformed or too large never becomes a request: hyper answers it with a status and no words, and one that takes too long
//! with nothing at all. Clients were promised a problem+json, so the words are put in here, where the bytes go out. Both listeners use it: that of
//! the node's HTTP, and the gateway's.

use http::StatusCode;
use serde_json::json;

use crate::problem::CONTENT_TYPE;

/// No bare answer of hyper's is longer: a status line and three headers.
const BARE_BYTES_MAX: usize = 512;

/// A whole answer, after which the connection is closed.
pub fn answer(status: StatusCode, detail: &str) -> Vec<u8> {
    let title = status.canonical_reason().unwrap_or("Error");
    let body = json!({ "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail });
    let body = format!("{body}\n");
    let retry = if status == StatusCode::SERVICE_UNAVAILABLE { "retry-after: 1\r\n" } else { "" };
    let length = body.len();
    format!(
        "HTTP/1.1 {} {title}\r\ncontent-type: {CONTENT_TYPE}\r\n{retry}connection: close\r\ncontent-length: {length}\r\n\r\n{body}",
        status.as_u16()
    )
    .into_bytes()
}

/// The words for an answer that hyper wrote by itself; `None` for any other. Whoever asks knows that nothing behind it answered an error without
/// a body.
pub fn words_for(written: &[u8]) -> Option<Vec<u8>> {
    // Seen by every write, so the glance comes first.
    if written.len() > BARE_BYTES_MAX || written.get(..3) != Some(b"HTT") {
        return None;
    }
    let head = std::str::from_utf8(written).ok()?;
    let status = head.strip_prefix("HTTP/1.1 ").or_else(|| head.strip_prefix("HTTP/1.0 "))?.get(..3)?;
    if !head.ends_with("\r\n\r\n") || !head.contains("\r\ncontent-length: 0\r\n") {
        return None;
    }
    let (status, detail) = match status {
        "400" => (StatusCode::BAD_REQUEST, "this is no HTTP request"),
        "414" => (StatusCode::URI_TOO_LONG, "the path and query are too long"),
        "431" => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "the head of the request is over the limit of bytes or of lines",
        ),
        _ => return None,
    };
    Some(answer(status, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_announces_its_own_length() {
        let text = String::from_utf8(answer(StatusCode::SERVICE_UNAVAILABLE, "too many")).unwrap();
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
        assert!(words_for(bare).is_some());
        for other in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\ndate: x\r\n\r\n",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\n\r\nhello",
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK",
            "content-length: 0\r\n\r\n",
            "HTTP/1.1 ü",
            "",
        ] {
            assert_eq!(words_for(other.as_bytes()), None, "{other}");
        }
    }
}
