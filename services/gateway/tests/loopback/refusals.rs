//! Tests that the gateway refuses request smuggling, malformed heads and bodies, slow clients, and
//! connections and requests over the limits.

use std::time::{Duration, Instant};

use hearsay_gateway::Limits;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::sleep,
};

use crate::{
    harness::{Harness, Reply, read_until, within},
    instance::{Running, echo, raw_response, silent},
};

async fn with_echo(limits: Limits) -> (Harness, Running) {
    let harness = Harness::with(limits).await;
    let instance = echo("a").await;
    harness.offer("web", "w", instance.address, &["urlprefix-/"]).await;
    (harness, instance)
}

#[tokio::test]
async fn nothing_that_could_be_smuggled_reaches_an_instance() {
    let (harness, instance) = with_echo(Limits::default()).await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: gw\r\n\r\n";
    let cases = [
        ("CL.TE", "content-length: 6\r\ntransfer-encoding: chunked", "0\r\n\r\n"),
        ("TE.CL", "transfer-encoding: chunked\r\ncontent-length: 6", "0\r\n\r\n"),
        ("two lengths", "content-length: 5\r\ncontent-length: 6", "hello!"),
        ("a list of lengths", "content-length: 5, 6", "hello!"),
        ("a signed length", "content-length: +5", "hello"),
        ("a length in hex", "content-length: 0x5", "hello"),
        ("a negative length", "content-length: -1", ""),
        ("an empty length", "content-length:", ""),
        ("an overflowing length", "content-length: 99999999999999999999999", ""),
        ("two encodings", "transfer-encoding: chunked\r\ntransfer-encoding: chunked", "0\r\n\r\n"),
        ("identity behind", "transfer-encoding: chunked, identity", "0\r\n\r\n"),
        ("gzip before", "transfer-encoding: gzip, chunked", "0\r\n\r\n"),
        ("a misspelt encoding", "transfer-encoding: xchunked", "0\r\n\r\n"),
        ("a vertical tab", "transfer-encoding: \x0bchunked", "0\r\n\r\n"),
        ("a space before the colon", "transfer-encoding : chunked", "0\r\n\r\n"),
        ("a folded line", "x: y\r\n transfer-encoding: chunked", "0\r\n\r\n"),
        ("a bare CR", "x: y\rtransfer-encoding: chunked", "0\r\n\r\n"),
        ("a NUL", "x: y\0z", ""),
        ("two hosts", "host: other", ""),
    ];
    for (name, headers, body) in cases {
        let reply = harness
            .send(&format!("POST /web HTTP/1.1\r\nhost: gw\r\n{headers}\r\n\r\n{body}{smuggled}"))
            .await;
        assert_eq!(reply.status, 400, "{name}: {reply:?}");
        assert_eq!(
            reply.body.matches("HTTP/1.1").count(),
            0,
            "{name}: one response, then the end: {reply:?}"
        );
    }
    let old = harness
        .send(&format!("POST /web HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"))
        .await;
    assert_eq!(old.status, 400, "{old:?}");
    assert_eq!(instance.connections(), 0);
    // The gateway refuses both lengths in either order, two encodings, and another encoding before chunked.
    // hyper refuses the rest; a second host has its own reason.
    assert_eq!((harness.refused("framing"), harness.refused("host")), (4, 1));
    // hyper's refusals are counted at the end of the connection, after the client has seen it.
    harness.until("all are counted", |_| harness.refused("malformed") == 15).await;
}

#[tokio::test]
async fn both_lengths_are_detected_on_a_reused_connection() {
    let (harness, _instance) = with_echo(Limits::default()).await;
    let mut stream = harness.open("POST /a HTTP/1.1\r\nhost: gw\r\ncontent-length: 45\r\n\r\ncontent-length: 1\ntransfer-encoding: chunked\n\n\n").await;
    assert!(read_until(&mut stream, "}").await.starts_with("HTTP/1.1 200"), "lines of a body do not count");
    sleep(Duration::from_millis(20)).await;
    _ = stream.try_read(&mut [0; 65536]);
    stream
        .write_all(b"POST /b HTTP/1.1\r\nhost: gw\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")
        .await
        .unwrap();
    assert!(
        read_until(&mut stream, "}").await.starts_with("HTTP/1.1 200"),
        "nor do they for the next request"
    );
    sleep(Duration::from_millis(20)).await;
    _ = stream.try_read(&mut [0; 65536]);
    stream
        .write_all(b"POST /c HTTP/1.1\r\nhost: gw\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n")
        .await
        .unwrap();
    assert!(Reply::read(stream).await.problem(400).contains("contradict"));
}

#[tokio::test]
async fn malformed_chunks_end_the_request() {
    let (harness, _instance) = with_echo(Limits::default()).await;
    for body in [
        "zz\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\n",
        "5 5\r\nhello\r\n0\r\n\r\n",
    ] {
        let reply = harness
            .send(&format!("POST /x HTTP/1.1\r\nhost: gw\r\ntransfer-encoding: chunked\r\n\r\n{body}GET /y HTTP/1.1\r\nhost: gw\r\n\r\n"))
            .await;
        assert!(matches!(reply.status, 400 | 0), "{body:?}: {reply:?}");
        assert!(!reply.body.contains("HTTP/1.1"), "{body:?}: {reply:?}");
    }
    assert_eq!(harness.metric("gateway_ejections", None), 0, "the fault is the client's");
}

#[tokio::test]
async fn requests_that_no_reverse_proxy_forwards_are_refused() {
    let (harness, _instance) = with_echo(Limits::default()).await;
    let status = async |bytes: &str| harness.send(bytes).await.status;
    assert_eq!(status("CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n").await, 405);
    assert_eq!(status("TRACE / HTTP/1.1\r\nhost: gw\r\nconnection: close\r\n\r\n").await, 405);
    assert_eq!(status("GET / HTTP/1.1\r\nconnection: close\r\n\r\n").await, 400);
    assert_eq!(status("GET / HTTP/1.1\r\nhost: a/b\r\nconnection: close\r\n\r\n").await, 400);
    assert_eq!(status("GET /a/../../etc HTTP/1.1\r\nhost: gw\r\nconnection: close\r\n\r\n").await, 400);
    assert_eq!(status("GET /a/%2e%2E/etc HTTP/1.1\r\nhost: gw\r\nconnection: close\r\n\r\n").await, 400);
    assert_eq!(status("OPTIONS * HTTP/1.1\r\nhost: gw\r\nconnection: close\r\n\r\n").await, 400);
    assert_eq!(status("\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03\r\n\r\n").await, 400);
    let long = "x".repeat(40_000);
    assert_eq!(status(&format!("GET / HTTP/1.1\r\nhost: gw\r\nx: {long}\r\n\r\n")).await, 431);
    let lines: String = (0..101).map(|i| format!("x-{i}: y\r\n")).collect();
    assert_eq!(status(&format!("GET / HTTP/1.1\r\nhost: gw\r\n{lines}\r\n")).await, 431);
    assert_eq!((harness.refused("method"), harness.refused("host"), harness.refused("path")), (2, 2, 3));
}

#[tokio::test]
async fn malformed_requests_get_problems_and_responses_of_instances_stay_unchanged() {
    let harness = Harness::with(Limits::default()).await;
    let bare = raw_response("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    harness.offer("web", "w", bare.address, &["urlprefix-/"]).await;
    let malformed = "\x16\x03\x01\x02\r\n\r\n";
    assert_eq!(harness.send(malformed).await.problem(400), "this is not an HTTP request");
    let long = format!("GET / HTTP/1.1\r\nhost: gw\r\nx: {}\r\n\r\n", "x".repeat(40_000));
    assert!(harness.send(&long).await.problem(431).contains("over the limit"));
    let forwarded = harness.get("/").await;
    assert_eq!((forwarded.status, forwarded.body.as_str()), (400, ""));
    // On one connection: a response of the instance, then a malformed request.
    let mut stream = harness.open("GET / HTTP/1.1\r\nhost: gw\r\n\r\n").await;
    let first = read_until(&mut stream, "\r\n\r\n").await;
    assert!(first.starts_with("HTTP/1.1 400") && first.contains("content-length: 0"), "{first}");
    stream.write_all(malformed.as_bytes()).await.unwrap();
    assert_eq!(Reply::read(stream).await.problem(400), "this is not an HTTP request");
}

#[tokio::test]
async fn a_client_that_sends_its_head_too_slowly_is_disconnected() {
    let limits = Limits { head: Duration::from_millis(300), ..Limits::default() };
    let (harness, instance) = with_echo(limits).await;
    let mut all = tokio::task::JoinSet::new();
    // The last one begins like HTTP/2 and does not continue.
    for beginning in ["", "G", "GET / HTTP/1.1\r\nhost: gw\r\n", "PRI * HTTP"] {
        let mut stream = harness.open(beginning).await;
        all.spawn(async move {
            let start = Instant::now();
            // One byte at a time, until the connection is closed.
            while start.elapsed() < crate::harness::TIMEOUT {
                let mut part = [0; 512];
                match tokio::time::timeout(Duration::from_millis(50), stream.read(&mut part)).await {
                    Ok(Ok(0) | Err(_)) => break,
                    Ok(Ok(_)) => continue,
                    Err(_) if beginning.is_empty() || beginning.starts_with('P') => (),
                    Err(_) => _ = stream.write_all(b"x").await,
                }
            }
            start.elapsed()
        });
    }
    for took in all.join_all().await {
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    harness.until("all are gone", |state| state["totals"]["connections"] == 0).await;
    assert!(harness.refused("head_time") >= 3, "{}", harness.refused("head_time"));
    assert_eq!(instance.connections(), 0);
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_408() {
    let limits = Limits { stall: Duration::from_millis(300), ..Limits::default() };
    let (harness, _instance) = with_echo(limits).await;
    let stream = harness.open("POST /x HTTP/1.1\r\nhost: gw\r\ncontent-length: 10\r\n\r\nhal").await;
    Reply::read(stream).await.problem(408);
    assert_eq!((harness.refused("body_time"), harness.metric("gateway_ejections", None)), (1, 0));
}

#[tokio::test]
async fn connections_over_the_limit_get_503() {
    let (harness, _instance) = with_echo(Limits { connections: 2, ..Limits::default() }).await;
    let connections = [harness.open("").await, harness.open("").await];
    harness.until("both are taken", |state| state["totals"]["connections"] == 2).await;
    let third = harness.get("/x").await;
    assert!(third.problem(503).contains("connections"));
    drop(connections);
    harness.until("both are gone", |state| state["totals"]["connections"] == 0).await;
    assert_eq!(harness.get("/x").await.status, 200);
    assert_eq!(harness.refused("connections"), 1);
}

#[tokio::test]
async fn requests_in_flight_over_the_limit_get_503() {
    let harness = Harness::with(Limits { in_flight: 1, ..Limits::default() }).await;
    let (silent, instance) = (silent().await, echo("a").await);
    harness.offer("silent", "s", silent.address, &[]).await;
    harness.offer("web", "w", instance.address, &[]).await;
    let connection = harness.open("GET /silent HTTP/1.1\r\nhost: gw\r\n\r\n").await;
    harness.until("it is in flight", |state| state["totals"]["inFlight"] == 1).await;
    assert!(harness.get("/web").await.problem(503).contains("in flight"));
    drop(connection);
    harness.until("it is not", |state| state["totals"]["inFlight"] == 0).await;
    assert_eq!(harness.get("/web").await.status, 200);
}

#[tokio::test]
async fn a_client_that_reads_nothing_does_not_grow_the_gateway() {
    let harness = Harness::start().await;
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&sent);
    let flood = crate::instance::raw(move |mut stream| {
        let sent = std::sync::Arc::clone(&counted);
        async move {
            _ = stream.read(&mut [0; 4096]).await;
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            while stream.write_all(&[b'x'; 65536]).await.is_ok() {
                sent.fetch_add(65536, std::sync::atomic::Ordering::Relaxed);
            }
        }
    })
    .await;
    harness.offer("web", "w", flood.address, &[]).await;
    let stream = harness.open("GET /web HTTP/1.1\r\nhost: gw\r\n\r\n").await;
    let sent = || sent.load(std::sync::atomic::Ordering::Relaxed);
    // Waits until nothing moves, when the buffers of the system are full.
    within(async {
        let mut before = u64::MAX;
        while before != sent() {
            before = sent();
            sleep(Duration::from_millis(500)).await;
        }
    })
    .await;
    assert!(sent() < 64 * 1024 * 1024, "{} bytes were taken", sent());
    drop(stream);
}
