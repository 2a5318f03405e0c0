//! What is passed on: headers, bodies both ways as they come, upgrades.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hearsay_services::gateway::limits::Limits;
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
    instance::{echo, full, http1, raw, says},
    world::{World, read_until, within},
};

#[tokio::test]
async fn an_instance_learns_who_asked_and_nothing_of_the_connection() {
    let world = World::start().await;
    let instance = echo("a").await;
    world.offer("web", "w", instance.address, &[]).await;
    let reply = world
        .request(
            "GET /web/x",
            "x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\nkeep-alive: 1\r\ntraceparent: bad\r\nx-a: b\r\n",
        )
        .await;
    let told = reply.json();
    let headers = &told["headers"];
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
async fn what_concerns_the_instances_connection_stays_off_the_client() {
    let world = World::start().await;
    let instance = says(
        "HTTP/1.1 200 OK\r\nconnection: x-secret, close\r\nx-secret: 1\r\nkeep-alive: 5\r\nx-a: b\r\ncontent-length: 2\r\n\r\nhi",
    )
    .await;
    world.offer("web", "w", instance.address, &[]).await;
    let reply = world.get("/web").await;
    assert!(reply.status == 200 && reply.body == "hi" && reply.head.contains("x-a: b"), "{reply:?}");
    assert!(!reply.head.contains("x-secret") && !reply.head.contains("keep-alive"), "{reply:?}");
}

#[tokio::test]
async fn bodies_arrive_whole_whichever_way_their_length_is_told() {
    let world = World::start().await;
    let instance = echo("a").await;
    world.offer("web", "w", instance.address, &[]).await;
    let post = "POST /web HTTP/1.1\r\nhost: gw\r\nconnection: close\r\n";
    for request in [
        format!("{post}content-length: 5\r\n\r\nhello"),
        format!("{post}transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;ext\r\nllo\r\n0\r\n\r\n"),
        format!("{post}expect: 100-continue\r\ncontent-length: 5\r\n\r\nhello"),
        format!("{post}content-length: 5\r\n\r\nhello").replace("POST", "GET"),
    ] {
        let stream = world.open(&request).await;
        let mut reply = crate::world::Reply::read(stream).await;
        if reply.status == 100 {
            let (head, body) = reply.body.split_once("\r\n\r\n").unwrap();
            reply = crate::world::Reply { status: 200, head: head.to_owned(), body: body.to_owned() };
        }
        assert_eq!(reply.json()["body"], "hello", "{request}");
    }
}

#[tokio::test]
async fn an_answer_without_a_length_ends_where_the_instance_ends_it() {
    let world = World::start().await;
    let instance = says("HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
    world.offer("web", "w", instance.address, &[]).await;
    let reply = world.get("/web").await;
    assert!(
        reply.head.contains("transfer-encoding: chunked") && reply.body.contains("until the end"),
        "{reply:?}"
    );
}

#[tokio::test]
async fn an_answer_cut_short_is_not_passed_off_as_whole() {
    let world = World::start().await;
    let instance = says("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
    world.offer("web", "w", instance.address, &[]).await;
    let reply = world.get("/web").await;
    assert!(reply.body.contains("hello") && !reply.body.contains("0\r\n\r\n"), "{reply:?}");
}

/// Each piece must have come through before the next one is sent: nothing is gathered on the way.
#[tokio::test]
async fn bodies_stream_both_ways_at_once() {
    let world = World::start().await;
    let instance = http1(|request| async move {
        let mut response = Response::new(request.into_body().boxed());
        response.headers_mut().insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
        response
    })
    .await;
    world.offer("web", "w", instance.address, &[]).await;
    let mut stream =
        world.open("POST /web HTTP/1.1\r\nhost: gw\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n").await;
    read_until(&mut stream, "one\r\n").await;
    for piece in ["two", "six"] {
        stream.write_all(format!("3\r\n{piece}\r\n").as_bytes()).await.unwrap();
        read_until(&mut stream, &format!("{piece}\r\n")).await;
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    read_until(&mut stream, "0\r\n\r\n").await;
}

#[tokio::test]
async fn an_instance_that_waits_between_events_is_heard_at_once() {
    let world = World::start().await;
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
    world.offer("web", "w", instance.address, &[]).await;
    let mut stream = world.open("GET /web HTTP/1.1\r\nhost: gw\r\n\r\n").await;
    read_until(&mut stream, "data: 1\n\n").await;
    go_on.notify_one();
    read_until(&mut stream, "data: 2\n\n").await;
}

/// A body of what is sent.
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
async fn connections_are_kept_on_both_sides() {
    let world = World::start().await;
    let instance = echo("a").await;
    world.offer("web", "w", instance.address, &[]).await;
    let mut stream = world.open("").await;
    for i in 0..50 {
        stream.write_all(format!("GET /web/{i} HTTP/1.1\r\nhost: gw\r\n\r\n").as_bytes()).await.unwrap();
        let reply = read_until(&mut stream, "\"version\":\"HTTP/1.1\"}").await;
        assert!(reply.contains(&format!("\"/{i}\"")), "{reply}");
    }
    assert_eq!(instance.connections(), 1);
}

/// However long an answer takes, its connection begins to wait when it has ended, and those that wait already are none the older.
#[tokio::test]
async fn a_slow_answer_costs_no_kept_connection() {
    let keep = Duration::from_secs(1);
    let world = World::with(Limits { keep, ..Limits::default() }).await;
    let instance = http1(move |request| async move {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
        let is_slow = request.uri().path() == "/slow";
        tokio::spawn(async move {
            if is_slow {
                // Not to wait for anything: an answer slower than connections are kept is what this is about.
                tokio::time::sleep(keep * 3 / 2).await;
            }
            _ = sender.send("whole".into()).await;
        });
        let mut response = Response::new(Received(receiver).boxed());
        response.headers_mut().insert(header::CONTENT_LENGTH, 5.into());
        response
    })
    .await;
    world.offer("web", "w", instance.address, &[]).await;
    let mut stream = world.open("").await;
    for path in ["slow", "quick", "slow", "quick"] {
        stream.write_all(format!("GET /web/{path} HTTP/1.1\r\nhost: gw\r\n\r\n").as_bytes()).await.unwrap();
        read_until(&mut stream, "whole").await;
    }
    assert_eq!(instance.connections(), 1);
}

#[tokio::test]
async fn what_is_upgraded_is_a_tunnel() {
    let world = World::start().await;
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
    world.offer("web", "w", instance.address, &[]).await;
    let mut stream = world
        .open("GET /web HTTP/1.1\r\nhost: gw\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n\r\n")
        .await;
    let head = read_until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.contains("upgrade: websocket"), "{head}");
    for word in ["hello", "again"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        read_until(&mut stream, &word.to_uppercase()).await;
    }
    assert_eq!(world.metric("gateway_tunnels", None), 1);
    assert_eq!(world.metric("gateway_in_flight", None), 1, "a tunnel is in flight while it lasts");
    drop(stream);
    world.until("the tunnel has ended", |state| state["totals"]["inFlight"] == 0).await;
}

#[tokio::test]
async fn an_upgrade_to_http2_is_not_passed_on_and_an_unasked_one_is_refused() {
    let world = World::start().await;
    let (instance, switcher) =
        (echo("a").await, says("HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await);
    world.offer("web", "w", instance.address, &[]).await;
    world.offer("odd", "o", switcher.address, &[]).await;
    let told = world
        .request("GET /web", "connection: upgrade\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n")
        .await
        .json();
    for name in ["upgrade", "http2-settings", "connection"] {
        assert_eq!(told["headers"][name], Value::Null, "{name}");
    }
    world.get("/odd").await.problem(502);
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_request_along() {
    let world = World::start().await;
    let (ended, told) = tokio::sync::mpsc::channel::<()>(1);
    let instance = raw(move |mut stream| {
        let ended = ended.clone();
        async move {
            while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {}
            ended.send(()).await.unwrap();
        }
    })
    .await;
    let mut told = told;
    world.offer("web", "w", instance.address, &[]).await;
    let stream = world.open("GET /web HTTP/1.1\r\nhost: gw\r\n\r\n").await;
    world
        .until("it is in flight", |state| {
            state["totals"]["inFlight"] == 1 && state["instances"][0]["inFlight"] == 1
        })
        .await;
    drop(stream);
    within(told.recv()).await.unwrap();
    world.until("it is not any more", |state| state["totals"]["inFlight"] == 0).await;
}
