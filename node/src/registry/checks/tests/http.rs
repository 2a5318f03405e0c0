//! Tests of the `http` check: statuses, bodies, redirects, headers and limits.

use super::*;

fn http(check: HttpCheck) -> CheckKind {
    CheckKind::Http(check)
}

async fn outcome(answer: &str, change: impl FnOnce(&mut HttpCheck)) -> Outcome {
    let server = Server::answering(answer).await;
    let mut check = server.http();
    change(&mut check);
    run_once(http(check), PATIENCE).await
}

#[tokio::test]
async fn the_status_decides() {
    for (status, health) in [
        ("200 OK", Health::Passing),
        ("204 No Content", Health::Passing),
        ("429 Too Many Requests", Health::Warning),
        ("404 Not Found", Health::Critical),
        ("500 Internal Server Error", Health::Critical),
        ("304 Not Modified", Health::Critical),
    ] {
        let outcome = outcome(&format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"), |_| ()).await;
        assert_eq!((outcome.health, outcome.output.as_str()), (health, format!("HTTP {status}").as_str()));
    }
}

#[tokio::test]
async fn expected_statuses_replace_2xx() {
    let expect = |check: &mut HttpCheck| check.expect_status = vec![(300, 399), (401, 401)];
    for (status, health) in [("401 Unauthorized", Health::Passing), ("302 Found", Health::Passing)] {
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(outcome(&answer, expect).await.health, health, "{status}");
    }
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(outcome(answer, expect).await.health, Health::Critical);
}

#[tokio::test]
async fn the_body_must_match_the_pattern() {
    let expect = |check: &mut HttpCheck| check.expect_body = Some(r#""status":\s*"(up|ok)""#.into());
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"status\":\"up\"}";
    assert_eq!(outcome(answer, expect).await, Outcome::passing("HTTP 200 OK: {\"status\":\"up\"}"));
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndown";
    let outcome = outcome(answer, expect).await;
    assert_eq!(outcome.health, Health::Critical);
    assert!(outcome.output.contains("does not match"), "{}", outcome.output);
}

#[tokio::test]
async fn the_request_is_as_registered_with_via() {
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let check = HttpCheck {
        method: "post".into(),
        headers: [("X-Probe".to_owned(), vec!["a".to_owned(), "b".to_owned()])].into(),
        body: "ping".into(),
        ..server.http()
    };
    assert_eq!(run_once(http(check), PATIENCE).await.health, Health::Passing);
    let request = server.requests().remove(0);
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert_eq!((head.lines().next().unwrap(), body), ("POST /health?x=1 HTTP/1.1", "ping"));
    let host = format!("host: {}", server.address);
    for line in [
        "via: 1.1 hearsay",
        "user-agent: Hearsay-Health-Check",
        "x-probe: a",
        "x-probe: b",
        "connection: close",
        &host,
    ] {
        assert!(head.lines().any(|l| l == line), "{line} is missing in {head}");
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let second = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let location = format!("http://{}/", second.address);
    let answer = format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
    let outcome = outcome(&answer, |_| ()).await;
    assert_eq!(outcome.health, Health::Critical);
    assert!(outcome.output.contains("is not followed") && outcome.output.contains(&location));
    assert!(second.requests().is_empty());
}

#[tokio::test]
async fn an_endless_body_is_read_to_4_kib() {
    let server = Server::start(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'a'; 1024]).await.is_ok() {}
    })
    .await;
    let outcome = run_once(http(server.http()), PATIENCE).await;
    assert_eq!(outcome.health, Health::Passing);
    assert_eq!(outcome.output.len(), OUTPUT_BYTES_MAX);
}

#[tokio::test]
async fn time_is_bounded_at_each_step() {
    for part in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nslow"] {
        let server = Server::start(move |mut stream| async move {
            let _ = stream.write_all(part.as_bytes()).await;
            // Reads until the check closes the connection.
            while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
        })
        .await;
        let outcome = run_once(http(server.http()), Duration::from_millis(200)).await;
        assert_eq!(outcome, Outcome::critical("no answer within 200ms"), "{part:?}");
    }
}

#[tokio::test]
async fn a_head_without_end_and_an_answer_that_is_no_http_are_failures() {
    let server = Server::start(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        while stream.write_all(&[b'a'; 1024]).await.is_ok() {}
    })
    .await;
    assert_eq!(run_once(http(server.http()), PATIENCE).await.health, Health::Critical);
    let outcome = outcome("SSH-2.0-OpenSSH_9.6\r\n", |_| ()).await;
    assert!(outcome.output.starts_with("no answer from 127.0.0.1"), "{}", outcome.output);
}

#[tokio::test]
async fn nothing_listens() {
    let address = closed_port();
    let check = HttpCheck { url: format!("http://{address}"), ..HttpCheck::default() };
    let outcome = run_once(http(check), PATIENCE).await;
    assert_eq!(outcome.health, Health::Critical);
    assert!(outcome.output.starts_with(&format!("cannot connect to {address}")), "{}", outcome.output);
}

#[tokio::test]
async fn localhost_is_tried_in_both_families() {
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let url = format!("http://localhost:{}/", server.address.port());
    let check = HttpCheck { url, ..HttpCheck::default() };
    assert_eq!(run_once(http(check), PATIENCE).await.health, Health::Passing);
}

#[test]
fn an_invalid_request_is_refused_with_its_field() {
    let check = |change: &dyn Fn(&mut HttpCheck)| {
        let mut check = HttpCheck { url: "http://127.0.0.1:80/".into(), ..HttpCheck::default() };
        change(&mut check);
        spec(http(check)).validate().map_err(|invalid| invalid.field)
    };
    assert_eq!(check(&|_| ()), Ok(()));
    for url in
        ["", "/health", "127.0.0.1:80", "ftp://a/", "http://", "http://u:p@a/", "http://a:0/", "http://a:/"]
    {
        assert_eq!(check(&|c| c.url = url.into()), Err("http"), "{url}");
    }
    for method in ["G T", "CONNECT", "connect"] {
        assert_eq!(check(&|c| c.method = method.into()), Err("method"), "{method}");
    }
    for (name, value) in
        [("a b", "c"), ("a", "b\r\nc: d"), ("Content-Length", "5"), ("transfer-encoding", "x")]
    {
        let headers = [(name.to_owned(), vec![value.to_owned()])];
        assert_eq!(check(&|c| c.headers = headers.clone().into()), Err("header"), "{name}");
    }
    for pattern in ["(", r"\w{1000}{1000}"] {
        assert_eq!(check(&|c| c.expect_body = Some(pattern.into())), Err("expect_body"), "{pattern}");
    }
}
