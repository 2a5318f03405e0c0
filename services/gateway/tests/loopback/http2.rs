//! Tests of HTTP/2 without TLS (h2c): gRPC, translation to and from HTTP/1, rapid resets by a client, and
//! responses that a client does not read.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use hearsay_gateway::Limits;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Empty, Full, combinators::BoxBody};
use hyper::{
    body::{Body, Frame},
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    harness::{Harness, TIMEOUT, within},
    instance::{describe, echo, h2c},
};

type Sent = BoxBody<Bytes, Infallible>;

async fn client(harness: &Harness) -> SendRequest<Sent> {
    let stream = TcpStream::connect(harness.address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A body with trailers.
struct WithTrailers(Option<Bytes>, Option<HeaderMap>);

impl Body for WithTrailers {
    type Data = Bytes;
    type Error = hyper::Error;
    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = self.0.take().map(Frame::data).or_else(|| self.1.take().map(Frame::trailers));
        std::task::Poll::Ready(frame.map(Ok))
    }
}

#[tokio::test]
async fn grpc_is_forwarded_with_its_trailers() {
    let harness = Harness::start().await;
    let instance = h2c(|request| async move {
        assert_eq!(request.version(), http::Version::HTTP_2);
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.uri().path(), "/pkg.Greeter/Hello");
        assert_eq!(request.uri().authority().unwrap(), "gw:1");
        let got = request.into_body().collect().await.unwrap().to_bytes();
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
        let mut response = Response::new(WithTrailers(Some(got), Some(trailers)).boxed());
        response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        response
    })
    .await;
    harness.offer("greeter", "g", instance.address, &["urlprefix-/pkg.Greeter"]).await;
    let mut client = client(&harness).await;
    for _ in 0..3 {
        let request = Request::post("http://gw:1/pkg.Greeter/Hello")
            .header("content-type", "application/grpc+proto")
            .header("te", "trailers")
            .body(Full::new(Bytes::from_static(b"\0\0\0\0\x02hi")).boxed())
            .unwrap();
        let response = within(client.send_request(request)).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (200, &"application/grpc".parse().unwrap())
        );
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), Bytes::from_static(b"\0\0\0\0\x02hi"));
    }
    assert_eq!(instance.connections(), 1, "one connection is shared");
}

#[tokio::test]
async fn http2_requests_reach_http1_instances_and_the_reverse() {
    let harness = Harness::start().await;
    let (http1, http2) = (echo("one").await, h2c(|request| describe("two", request)).await);
    harness.offer("one", "o", http1.address, &[]).await;
    harness.offer("two", "t", http2.address, &["h2c"]).await;
    let mut client = client(&harness).await;
    let request = Request::post("http://gw:1/one/x")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Full::new(Bytes::from_static(b"hello")).boxed());
    let response = within(client.send_request(request.unwrap())).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let described: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&described["version"], &described["body"], &described["target"]),
        (&"HTTP/1.1".into(), &"hello".into(), &"/x".into())
    );
    assert_eq!(
        (&described["headers"]["cookie"], &described["headers"]["host"]),
        (&"a=1; b=2".into(), &"gw:1".into())
    );
    let described = harness.get("/two/y").await.json();
    assert_eq!((&described["version"], &described["target"]), (&"HTTP/2.0".into(), &"http://gw:1/y".into()));
}

#[tokio::test]
async fn many_requests_share_a_connection_and_an_error_is_a_problem_there_too() {
    let harness = Harness::start().await;
    let instance = echo("a").await;
    harness.offer("web", "w", instance.address, &[]).await;
    let client = client(&harness).await;
    let mut all = tokio::task::JoinSet::new();
    for i in 0..100 {
        let mut client = client.clone();
        all.spawn(async move {
            let request = Request::get(format!("http://gw/web/{i}")).body(Empty::new().boxed()).unwrap();
            client.send_request(request).await.unwrap().status().as_u16()
        });
    }
    assert!(within(all.join_all()).await.iter().all(|status| *status == 200));
    let request = Request::get("http://gw/nothing").body(Empty::new().boxed()).unwrap();
    let response = within(client.clone().send_request(request)).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (404, &"application/problem+json".parse().unwrap())
    );
}

/// Returns a frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    let harness = Harness::start().await;
    let instance = crate::instance::silent().await;
    harness.offer("web", "w", instance.address, &[]).await;
    let mut stream = harness.open("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let mut bytes = frame(4, 0, 0, &[]);
    // GET http://gw/web in HPACK: three entries of the static table, and a literal :authority.
    let head = [0x82, 0x86, 0x04, 0x04, b'/', b'w', b'e', b'b', 0x41, 0x02, b'g', b'w'];
    for i in 0..2000 {
        bytes.extend(frame(1, 0x5, 2 * i + 1, &head));
        bytes.extend(frame(3, 0, 2 * i + 1, &[0, 0, 0, 8]));
    }
    // The gateway may close the connection while the client still sends.
    _ = stream.write_all(&bytes).await;
    let mut rest = Vec::new();
    _ = within(stream.read_to_end(&mut rest)).await;
    harness
        .until("nothing is left of it", |state| {
            state["totals"]["inFlight"] == 0 && state["totals"]["connections"] == 0
        })
        .await;
    assert!(harness.metric("gateway_requests", None) < 1000, "{}", harness.metric("gateway_requests", None));
    assert_eq!(harness.refused("http2"), 1);
}

/// Reads frames until one of this kind and stream, and returns its payload.
async fn read_frame(stream: &mut TcpStream, kind: u8, of: u32) -> Vec<u8> {
    loop {
        let mut head = [0; 9];
        within(stream.read_exact(&mut head)).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        within(stream.read_exact(&mut payload)).await.unwrap();
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if (head[3], id) == (kind, of) {
            return payload;
        }
    }
}

#[tokio::test]
async fn a_response_that_the_client_does_not_read_is_reset_and_its_connection_continues() {
    let limits = Limits { write_stall: Duration::from_millis(300), ..Limits::default() };
    let harness = Harness::with(limits).await;
    let (instance, mute) = (echo("a").await, crate::instance::silent().await);
    harness.offer("web", "w", instance.address, &[]).await;
    harness.offer("mut", "m", mute.address, &[]).await;
    let mut stream = harness.open("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    // SETTINGS_INITIAL_WINDOW_SIZE 0: no byte of a body may be sent.
    let mut bytes = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let get = |path: &[u8; 4]| [&[0x82, 0x86, 0x04, 0x04], &path[..], &[0x01, 0x02, b'g', b'w']].concat();
    bytes.extend(frame(1, 0x5, 1, &get(b"/web")));
    // A stream that waits for its instance is not reset.
    bytes.extend(frame(1, 0x5, 3, &get(b"/mut")));
    stream.write_all(&bytes).await.unwrap();
    read_frame(&mut stream, 1, 1).await;
    let begun = std::time::Instant::now();
    let reset = read_frame(&mut stream, 3, 1).await;
    assert_eq!(reset, [0, 0, 0, 8], "CANCEL");
    assert!(begun.elapsed() < TIMEOUT);
    harness.until("only the other request is in flight", |state| state["totals"]["inFlight"] == 1).await;
    assert_eq!(harness.refused("write_time"), 1);
    // A stream whose window the client opens completes.
    let opened = [frame(1, 0x5, 5, &get(b"/web")), frame(8, 0, 5, &[0, 0, 0xff, 0xff])].concat();
    stream.write_all(&opened).await.unwrap();
    let body = read_frame(&mut stream, 0, 5).await;
    assert!(String::from_utf8_lossy(&body).contains("\"target\""));
    assert_eq!(harness.refused("write_time"), 1);
}

#[tokio::test]
async fn a_response_that_is_read_except_for_its_end_is_reset() {
    let limits = Limits { write_stall: Duration::from_millis(300), ..Limits::default() };
    let harness = Harness::with(limits).await;
    let instance = echo("a").await;
    harness.offer("web", "w", instance.address, &[]).await;
    let mut stream = harness.open("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    // SETTINGS_INITIAL_WINDOW_SIZE 1.
    let mut bytes = frame(4, 0, 0, &[0, 4, 0, 0, 0, 1]);
    let get = [0x82, 0x86, 0x04, 0x04, b'/', b'w', b'e', b'b', 0x01, 0x02, b'g', b'w'];
    bytes.extend(frame(1, 0x5, 1, &get));
    stream.write_all(&bytes).await.unwrap();
    assert_eq!(read_frame(&mut stream, 0, 1).await.len(), 1);
    assert_eq!(read_frame(&mut stream, 3, 1).await, [0, 0, 0, 8], "CANCEL");
    harness.until("it is not in flight", |state| state["totals"]["inFlight"] == 0).await;
    assert_eq!(harness.refused("write_time"), 1);
}
