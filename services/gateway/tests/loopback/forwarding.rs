//! Tests of forwarding: hop-by-hop headers are removed, bodies arrive whole and stream in both directions,
//! connections are reused, and upgrades open tunnels.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hearsay_gateway::Limits;
use http::{Response, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Notify,
};

use crate::{
    harness::{Harness, read_until, within},
    instance::{echo, full, http1, raw, raw_response},
};

#[tokio::test]
async fn an_instance_gets_the_client_address_and_no_hop_by_hop_headers() {
    let harness = Harness::start().await;
    let instance = echo("a").await;
    harness.offer("web", "w", instance.address, &[]).await;
    let reply = harness
        .request(
            "GET /web/x",
            "x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\nkeep-alive: 1\r\ntraceparent: bad\r\nx-a: b\r\n",
        )
        .await;
    let described = reply.json();
    let headers = &described["headers"];
    assert_eq!(headers["x-forwarded-for"], "1.2.3.4, 127.0.0.1");
    assert_eq!(headers["x-forwarded-proto"], "http");
    assert_eq!(headers["x-forwarded-host"], "gw:1");
    assert_eq!(headers["x-forwarded-prefix"], "/web");
    assert_eq!(headers["host"], "gw:1");
    assert_eq!(headers["x-a"], "b");
    assert!(headers["via"].as_str().unwrap().starts_with("1.1 hearsay-"));
    assert_eq!(headers["traceparent"].as_str().unwrap().len(), 55);
    assert_eq!((&headers["connection"], &headers["keep-alive"]), (&Value::Null, &Value::Null));
}

#[tokio::test]
async fn a_client_gets_no_hop_by_hop_headers() {
    let harness = Harness::start().await;
    let instance = raw_response(
        "HTTP/1.1 200 OK\r\nconnection: x-secret, close\r\nx-secret: 1\r\nkeep-alive: 5\r\nx-a: b\r\ncontent-length: 2\r\n\r\nhi",
    )
    .await;
    harness.offer("web", "w", instance.address, &[]).await;
    let reply = harness.get("/web").await;
    assert!(reply.status == 200 && reply.body == "hi" && reply.head.contains("x-a: b"), "{reply:?}");
    assert!(!reply.head.contains("x-secret") && !reply.head.contains("keep-alive"), "{reply:?}");
}

#[tokio::test]
async fn bodies_arrive_whole_with_each_kind_of_length() {
    let harness = Harness::start().await;
    let instance = echo("a").await;
    harness.offer("web", "w", instance.address, &[]).await;
    let post = "POST /web HTTP/1.1\r\nhost: gw\r\nconnection: close\r\n";
    for request in [
        format!("{post}content-length: 5\r\n\r\nhello"),
        format!("{post}transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;ext\r\nllo\r\n0\r\n\r\n"),
        format!("{post}expect: 100-continue\r\ncontent-length: 5\r\n\r\nhello"),
        format!("{post}content-length: 5\r\n\r\nhello").replace("POST", "GET"),
    ] {
        let stream = harness.open(&request).await;
        let mut reply = crate::harness::Reply::read(stream).await;
        if reply.status == 100 {
            let (head, body) = reply.body.split_once("\r\n\r\n").unwrap();
            reply = crate::harness::Reply { status: 200, head: head.to_owned(), body: body.to_owned() };
        }
        assert_eq!(reply.json()["body"], "hello", "{request}");
    }
}

#[tokio::test]
async fn a_response_without_a_length_ends_with_the_connection() {
    let harness = Harness::start().await;
    let instance = raw_response("HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    harness.offer("web", "w", instance.address, &[]).await;
    let reply = harness.get("/web").await;
    assert!(
        reply.head.contains("transfer-encoding: chunked") && reply.body.contains("until the end"),
        "{reply:?}"
    );
}

#[tokio::test]
async fn a_truncated_response_does_not_look_complete() {
    let harness = Harness::start().await;
    let instance = raw_response("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    harness.offer("web", "w", instance.address, &[]).await;
    let reply = harness.get("/web").await;
    assert!(reply.body.contains("hello") && !reply.body.contains("0\r\n\r\n"), "{reply:?}");
}

/// Each piece must arrive before the next one is sent: the gateway does not buffer.
#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let harness = Harness::start().await;
    let instance = http1(|request| async move {
        let mut response = Response::new(request.into_body().boxed());
        response.headers_mut().insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
        response
    })
    .await;
    harness.offer("web", "w", instance.address, &[]).await;
    let mut stream = harness
        .open("POST /web HTTP/1.1\r\nhost: gw\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        .await;
    read_until(&mut stream, "one\r\n").await;
    for piece in ["two", "six"] {
        stream.write_all(format!("3\r\n{piece}\r\n").as_bytes()).await.unwrap();
        read_until(&mut stream, &format!("{piece}\r\n")).await;
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    read_until(&mut stream, "0\r\n\r\n").await;
}

#[tokio::test]
async fn events_of_a_stream_are_forwarded_at_once() {
    let harness = Harness::start().await;
    let go_on = Arc::new(Notify::new());
    let waits = Arc::clone(&go_on);
    let instance = http1(move |_| {
        let waits = Arc::clone(&waits);
        async move {
            let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
            tokio::spawn(async move {
                for event in ["data: 1\n\n", "data: 2\n\n"] {
                    sender.send(event.into()).await.unwrap();
                    waits.notified().await;
                }
            });
            Response::new(Received(receiver).boxed())
        }
    })
    .await;
    harness.offer("web", "w", instance.address, &[]).await;
    let mut stream = harness.open("GET /web HTTP/1.1\r\nhost: gw\r\n\r\n").await;
    read_until(&mut stream, "data: 1\n\n").await;
    go_on.notify_one();
    read_until(&mut stream, "data: 2\n\n").await;
}

/// A body whose pieces arrive on a channel.
struct Received(tokio::sync::mpsc::Receiver<Bytes>);

impl Body for Received {
    type Data = Bytes;
    type Error = hyper::Error;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

#[tokio::test]
async fn connections_are_reused_on_both_sides() {
    let harness = Harness::start().await;
    let instance = echo("a").await;
    harness.offer("web", "w", instance.address, &[]).await;
    let mut stream = harness.open("").await;
    for i in 0..50 {
        stream.write_all(format!("GET /web/{i} HTTP/1.1\r\nhost: gw\r\n\r\n").as_bytes()).await.unwrap();
        let reply = read_until(&mut stream, "\"version\":\"HTTP/1.1\"}").await;
        assert!(reply.contains(&format!("\"/{i}\"")), "{reply}");
    }
    assert_eq!(instance.connections(), 1);
}

/// A connection is idle from the end of its response, however long that took.
#[tokio::test]
async fn a_slow_response_costs_no_idle_connection() {
    let idle = Duration::from_secs(1);
    let harness = Harness::with(Limits { idle, ..Limits::default() }).await;
    let instance = http1(move |request| async move {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
        let is_slow = request.uri().path() == "/slow";
        tokio::spawn(async move {
            if is_slow {
                // Not a wait for a fact: the response has to be slower than the idle timeout.
                tokio::time::sleep(idle * 3 / 2).await;
            }
            _ = sender.send("whole".into()).await;
        });
        let mut response = Response::new(Received(receiver).boxed());
        response.headers_mut().insert(header::CONTENT_LENGTH, 5.into());
        response
    })
    .await;
    harness.offer("web", "w", instance.address, &[]).await;
    let mut stream = harness.open("").await;
    for path in ["slow", "quick", "slow", "quick"] {
        stream.write_all(format!("GET /web/{path} HTTP/1.1\r\nhost: gw\r\n\r\n").as_bytes()).await.unwrap();
        read_until(&mut stream, "whole").await;
    }
    assert_eq!(instance.connections(), 1);
}

#[tokio::test]
async fn an_upgrade_opens_a_tunnel() {
    let harness = Harness::start().await;
    let instance = http1(|mut request| async move {
        assert_eq!(request.headers()[header::CONNECTION], "upgrade");
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut part = [0; 64];
            while let Ok(n @ 1..) = io.read(&mut part).await {
                io.write_all(&part[..n].to_ascii_uppercase()).await.unwrap();
            }
        });
        let mut response = Response::new(full(""));
        *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(header::CONNECTION, "upgrade".parse().unwrap());
        response.headers_mut().insert(header::UPGRADE, "websocket".parse().unwrap());
        response
    })
    .await;
    harness.offer("web", "w", instance.address, &[]).await;
    let mut stream = harness
        .open("GET /web HTTP/1.1\r\nhost: gw\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n")
        .await;
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    for word in ["hello", "again"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        read_until(&mut stream, &word.to_uppercase()).await;
    }
    assert_eq!(harness.metric("gateway_tunnels", None), 1);
    assert_eq!(harness.metric("gateway_in_flight", None), 1, "a tunnel counts as in flight");
    drop(stream);
    harness.until("the tunnel has ended", |state| state["totals"]["inFlight"] == 0).await;
}

#[tokio::test]
async fn an_upgrade_to_http2_is_not_forwarded_and_an_unrequested_one_is_refused() {
    let harness = Harness::start().await;
    let (instance, switcher) =
        (echo("a").await, raw_response("HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await);
    harness.offer("web", "w", instance.address, &[]).await;
    harness.offer("odd", "o", switcher.address, &[]).await;
    let described = harness
        .request("GET /web", "connection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n")
        .await
        .json();
    for name in ["upgrade", "http2-settings", "connection"] {
        assert_eq!(described["headers"][name], Value::Null, "{name}");
    }
    harness.get("/odd").await.problem(502);
}

#[tokio::test]
async fn a_request_ends_with_its_client() {
    let harness = Harness::start().await;
    let (ended, mut closed) = tokio::sync::mpsc::channel::<()>(1);
    let instance = raw(move |mut stream| {
        let ended = ended.clone();
        async move {
            while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {}
            ended.send(()).await.unwrap();
        }
    })
    .await;
    harness.offer("web", "w", instance.address, &[]).await;
    let stream = harness.open("GET /web HTTP/1.1\r\nhost: gw\r\n\r\n").await;
    harness
        .until("it is in flight", |state| {
            state["totals"]["inFlight"] == 1 && state["instances"][0]["inFlight"] == 1
        })
        .await;
    drop(stream);
    within(closed.recv()).await.unwrap();
    harness.until("it is not any more", |state| state["totals"]["inFlight"] == 0).await;
}
