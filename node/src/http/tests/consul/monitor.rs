//! Tests of `/v1/agent/monitor`: a stranger does not read the log, and unknown levels are refused. What the
//! lines are is tested with the log itself.

use super::*;
use crate::{http::Access, storage::Secret};

/// Marks a request as forwarded by a proxy, so that its address is no proof.
const ELSEWHERE: &str = "x-forwarded-for: 10.0.0.8";

/// Returns the status line of a request whose answer does not end.
async fn status(server: &Server, query: &str, headers: &[&str]) -> String {
    let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!("GET /v1/agent/monitor{query} HTTP/1.1\r\nhost: 127.0.0.1\r\n{headers}\r\n");
    let mut stream = server.open(request).await;
    let mut head = vec![0; 12];
    within(stream.read_exact(&mut head)).await.unwrap();
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn only_an_administrator_follows_the_log() {
    let token = Some(Secret::new("s3cret".to_owned()));
    let server =
        Server::with(Setup { access: Access { token, ..Access::default() }, ..Setup::default() }).await;
    for (headers, expected) in [
        (&[][..], "HTTP/1.1 200"),
        (&[ELSEWHERE], "HTTP/1.1 401"),
        (&[ELSEWHERE, "x-consul-token: wrong"], "HTTP/1.1 401"),
        (&[ELSEWHERE, "x-consul-token: s3cret"], "HTTP/1.1 200"),
        (&[ELSEWHERE, "authorization: Bearer s3cret"], "HTTP/1.1 200"),
    ] {
        assert_eq!(status(&server, "?loglevel=INFO&logjson=false", headers).await, expected, "{headers:?}");
    }
}

#[tokio::test]
async fn an_unknown_level_is_refused() {
    let server = Server::start().await;
    for (query, expected) in [
        ("", "HTTP/1.1 200"),
        ("?loglevel=", "HTTP/1.1 200"),
        ("?loglevel=trace&logjson", "HTTP/1.1 200"),
        ("?loglevel=WARN&logjson=true", "HTTP/1.1 200"),
        ("?loglevel=loud", "HTTP/1.1 400"),
        ("?logjson=maybe", "HTTP/1.1 400"),
    ] {
        assert_eq!(status(&server, query, &[]).await, expected, "{query}");
    }
}
