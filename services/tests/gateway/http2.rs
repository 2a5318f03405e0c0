//! HTTP/2 without TLS, and gRPC.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use hearsay_services::gateway::limits::Limits;
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
    instance::{echo, h2c, told},
    world::{PATIENCE, World, within},
};

type Sent = BoxBody<Bytes, Infallible>;

async fn client(world: &World) -> SendRequest<Sent> {
    let stream = TcpStream::connect(world.address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A body and trailers behind it.
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
async fn grpc_passes_with_its_trailers() {
    let world = World::start().await;
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
    world.offer("greeter", "g", instance.address, &["urlprefix-/pkg.Greeter"]).await;
    let mut client = client(&world).await;
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
async fn a_request_by_http2_reaches_an_instance_of_http1_and_the_other_way_round() {
    let world = World::start().await;
    let (one, two) = (echo("one").await, h2c(|request| told("two", request)).await);
    world.offer("one", "o", one.address, &[]).await;
    world.offer("two", "t", two.address, &["h2c"]).await;
    let mut client = client(&world).await;
    let request = Request::post("http://gw:1/one/x")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Full::new(Bytes::from_static(b"hello")).boxed());
    let response = within(client.send_request(request.unwrap())).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let told: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&told["version"], &told["body"], &told["target"]),
        (&"HTTP/1.1".into(), &"hello".into(), &"/x".into())
    );
    assert_eq!((&told["headers"]["cookie"], &told["headers"]["host"]), (&"a=1; b=2".into(), &"gw:1".into()));
    let told = world.get("/two/y").await.json();
    assert_eq!((&told["version"], &told["target"]), (&"HTTP/2.0".into(), &"http://gw:1/y".into()));
}

#[tokio::test]
async fn many_requests_share_a_connection_and_an_error_is_a_problem_there_too() {
    let world = World::start().await;
    let instance = echo("a").await;
    world.offer("web", "w", instance.address, &[]).await;
    let client = client(&world).await;
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

/// One frame, by RFC 9113, section 4.1.
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
    let world = World::start().await;
    let instance = crate::instance::mute().await;
    world.offer("web", "w", instance.address, &[]).await;
    let mut stream = world.open("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let mut bytes = frame(4, 0, 0, &[]);
    // GET http://gw/web, in HPACK: three of the static table, and a literal :authority.
    let head = [0x82, 0x86, 0x04, 0x04, b'/', b'w', b'e', b'b', 0x41, 0x02, b'g', b'w'];
    for i in 0..2000 {
        bytes.extend(frame(1, 0x5, 2 * i + 1, &head));
        bytes.extend(frame(3, 0, 2 * i + 1, &[0, 0, 0, 8]));
    }
    // It may be cut while we still send.
    _ = stream.write_all(&bytes).await;
    let mut rest = Vec::new();
    _ = within(stream.read_to_end(&mut rest)).await;
    world
        .until("nothing is left of it", |state| {
            state["totals"]["inFlight"] == 0 && state["totals"]["connections"] == 0
        })
        .await;
    assert!(world.metric("gateway_requests", None) < 1000, "{}", world.metric("gateway_requests", None));
    assert_eq!(world.refused("http2"), 1);
}

/// Reads frames until one of this kind of this stream has come, and returns its payload.
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
async fn an_answer_that_the_client_does_not_take_is_reset_and_its_connection_goes_on() {
    let limits = Limits { write_stall: Duration::from_millis(300), ..Limits::default() };
    let world = World::with(limits).await;
    let (instance, mute) = (echo("a").await, crate::instance::mute().await);
    world.offer("web", "w", instance.address, &[]).await;
    world.offer("mut", "m", mute.address, &[]).await;
    let mut stream = world.open("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    // SETTINGS_INITIAL_WINDOW_SIZE 0: no byte of a body may be sent.
    let mut bytes = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    let get = |path: &[u8; 4]| [&[0x82, 0x86, 0x04, 0x04], &path[..], &[0x01, 0x02, b'g', b'w']].concat();
    bytes.extend(frame(1, 0x5, 1, &get(b"/web")));
    // An instance that does not answer is not the client's fault.
    bytes.extend(frame(1, 0x5, 3, &get(b"/mut")));
    stream.write_all(&bytes).await.unwrap();
    read_frame(&mut stream, 1, 1).await;
    let begun = std::time::Instant::now();
    let reset = read_frame(&mut stream, 3, 1).await;
    assert_eq!(reset, [0, 0, 0, 8], "CANCEL");
    assert!(begun.elapsed() < PATIENCE);
    world.until("only the other request is in flight", |state| state["totals"]["inFlight"] == 1).await;
    assert_eq!(world.refused("write_time"), 1);
    // One whose window the client opens is taken.
    let opened = [frame(1, 0x5, 5, &get(b"/web")), frame(8, 0, 5, &[0, 0, 0xff, 0xff])].concat();
    stream.write_all(&opened).await.unwrap();
    let body = read_frame(&mut stream, 0, 5).await;
    assert!(String::from_utf8_lossy(&body).contains("\"target\""));
    assert_eq!(world.refused("write_time"), 1);
}

#[tokio::test]
async fn an_answer_that_is_taken_but_for_its_end_is_reset() {
    let limits = Limits { write_stall: Duration::from_millis(300), ..Limits::default() };
    let world = World::with(limits).await;
    let instance = echo("a").await;
    world.offer("web", "w", instance.address, &[]).await;
    let mut stream = world.open("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    // SETTINGS_INITIAL_WINDOW_SIZE 1.
    let mut bytes = frame(4, 0, 0, &[0, 4, 0, 0, 0, 1]);
    let get = [0x82, 0x86, 0x04, 0x04, b'/', b'w', b'e', b'b', 0x01, 0x02, b'g', b'w'];
    bytes.extend(frame(1, 0x5, 1, &get));
    stream.write_all(&bytes).await.unwrap();
    assert_eq!(read_frame(&mut stream, 0, 1).await.len(), 1);
    assert_eq!(read_frame(&mut stream, 3, 1).await, [0, 0, 0, 8], "CANCEL");
    world.until("it is not in flight", |state| state["totals"]["inFlight"] == 0).await;
    assert_eq!(world.refused("write_time"), 1);
}
