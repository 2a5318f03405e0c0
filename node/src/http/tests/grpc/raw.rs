//! Tests with a client of bare HTTP/2, which decides itself what it reads and when it ends its side.

use bytes::Bytes;
use h2::{
    RecvStream, SendStream,
    client::{Builder, ResponseFuture, SendRequest as RawSender},
};

use super::*;

const SHORT: Duration = Duration::from_millis(50);
/// Bytes of the responses that a test has open at a time.
const BUDGET: usize = 1 << 20;

/// A connection whose streams begin with a window of the client's choice.
pub(super) struct RawClient {
    sender: RawSender<Bytes>,
    address: SocketAddr,
}

/// A call, which is reset on drop.
pub(super) struct RawCall {
    response: Option<ResponseFuture>,
    requests: SendStream<Bytes>,
}

impl RawClient {
    pub(super) async fn open(grpc: &Grpc, window: u32) -> Self {
        let stream = TcpStream::connect(grpc.address).await.unwrap();
        let handshake = Builder::new().initial_window_size(window).handshake(stream);
        let (sender, connection) = within(handshake).await.unwrap();
        tokio::spawn(connection);
        Self { sender, address: grpc.address }
    }

    /// Sends the head of a call.
    pub(super) async fn call(&self, path: &str) -> RawCall {
        let request = axum::http::Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let mut sender = within(self.sender.clone().ready()).await.unwrap();
        let (response, requests) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        RawCall { response: Some(response), requests }
    }

    /// Sends a call with one message.
    async fn ask(&self, path: &str, message: &impl prost::Message) -> RawCall {
        let mut call = self.call(path).await;
        call.send(message);
        call.end();
        call
    }
}

impl RawCall {
    pub(super) fn send(&mut self, message: &impl prost::Message) {
        let bytes = message.encode_to_vec();
        let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        self.requests.send_data([&[0][..], &length, &bytes].concat().into(), false).unwrap();
    }

    pub(super) fn reset(&mut self) {
        self.requests.send_reset(h2::Reason::CANCEL);
    }

    fn end(&mut self) {
        self.requests.send_data(Bytes::new(), true).unwrap();
    }

    /// Waits for the head of the response, and returns its status, if it ends there, and its body.
    async fn head(&mut self) -> (Option<Code>, RecvStream) {
        let response = within(self.response.take().unwrap()).await.unwrap();
        (code(response.headers()), response.into_body())
    }

    /// Reads the response to its end, and returns its status and its length.
    async fn read(&mut self) -> (Option<Code>, usize) {
        let (mut status, mut body) = self.head().await;
        let mut length = 0;
        while let Some(data) = within(body.data()).await {
            let data = match data {
                // The server has answered before the end of the request (RFC 9113, section 8.1).
                Err(error) if error.reason() == Some(h2::Reason::NO_ERROR) => break,
                data => data.unwrap(),
            };
            length += data.len();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        if let Ok(Some(trailers)) = within(body.trailers()).await {
            status = code(&trailers);
        }
        (status, length)
    }
}

fn code(headers: &axum::http::HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|value| Code::from_bytes(value.as_bytes()))
}

fn limited(change: impl FnOnce(&mut Limits)) -> Setup {
    let mut limits = Limits::default();
    change(&mut limits);
    Setup { limits, response_bytes: BUDGET, ..Setup::default() }
}

/// A node with an answer to List that is charged to the response budget.
async fn with_large_list(setup: Setup) -> Grpc {
    let grpc = Grpc::with(setup).await;
    let many = (0..300).map(|n| {
        let (node, id, web) = instance(1, &format!("m{n}"), "web");
        offered((node, id, Instance { port: 1000 + n, ..web }))
    });
    grpc.server.apply(many);
    grpc
}

#[tokio::test]
async fn a_client_that_never_reads_stays_registered_and_reports() {
    let grpc = Grpc::with(limited(|limits| limits.write_stall = SHORT)).await;
    let client = RawClient::open(&grpc, 0).await;
    let mut register = client.call("/hearsay.v1.Discovery/Register").await;
    register.send(&first(registration("job"), ""));
    until("it is registered", || grpc.held() == ["job-1"]).await;
    let unread = || grpc.server.metrics.http.refused_count("unread");
    let _members = client.ask("/hearsay.v1.Discovery/Members", &pb::MembersRequest {}).await;
    until("the time for other responses has passed", || unread() == 1).await;
    let status = || grpc.server.registry.get("job-1").map(|view| view.checks[0].status);
    for (reported, expected) in
        [(pb::HealthStatus::Passing, Health::Passing), (pb::HealthStatus::Warning, Health::Warning)]
    {
        for _ in 0..50 {
            register.send(&by_report(report("none", pb::HealthStatus::Passing)));
        }
        register.send(&by_report(report("job-ttl", reported)));
        until("the report is recorded", || status() == Some(expected)).await;
    }
    assert!(grpc.server.metrics.grpc.refusals_dropped.get() > 50);
    assert_eq!(unread(), 1);
    register.end();
    until("the registration is gone", || grpc.held().is_empty()).await;
    drop(register);
    let mut again = client.call("/hearsay.v1.Discovery/Register").await;
    again.send(&first(registration("job"), ""));
    until("it is registered", || grpc.held() == ["job-1"]).await;
    drop(again);
    until("the registration is gone", || grpc.held().is_empty()).await;
    until("the permits are returned", || grpc.server.metrics.http.waiting.get() == 0).await;
}

#[tokio::test]
async fn an_unread_response_ends_and_its_memory_is_freed() {
    let list = |client: RawClient| async move {
        let request = pb::ListRequest { service: "web".into(), ..Default::default() };
        client.ask("/hearsay.v1.Discovery/List", &request).await
    };
    let grpc = with_large_list(limited(|_| ())).await;
    let is_free = |grpc: &Grpc| grpc.server.state.response_budget.acquire(BUDGET).is_some();
    let held = list(RawClient::open(&grpc, 1000).await).await;
    until("the response is charged", || !is_free(&grpc)).await;
    drop(held);
    until("the memory is free after a reset", || is_free(&grpc)).await;
    let (status, length) = list(RawClient::open(&grpc, 1 << 20).await).await.read().await;
    assert_eq!(status, Some(Code::Ok));
    assert!(length > 40_000, "{length}");
    let all_but_one = u32::try_from(length - 1).unwrap();
    for window in [0, 1, 16 * 1024, all_but_one] {
        let grpc = with_large_list(limited(|limits| limits.write_stall = SHORT)).await;
        let client = RawClient::open(&grpc, window).await;
        let other = RawClient { sender: client.sender.clone(), address: client.address };
        let mut call = list(client).await;
        let (_, mut body) = call.head().await;
        until("it is counted", || grpc.server.metrics.http.refused_count("unread") == 1).await;
        until("the memory is free", || is_free(&grpc)).await;
        let reset = loop {
            match within(body.data()).await {
                Some(Ok(_)) => (),
                ended => break ended.unwrap().unwrap_err(),
            }
        };
        assert_eq!(reset.reason(), Some(h2::Reason::CANCEL), "{window}: {reset}");
        let refused = other.ask("/hearsay.v1.Discovery/Nothing", &pb::MembersRequest {}).await.read().await;
        assert_eq!(refused, (Some(Code::Unimplemented), 0), "the connection stays");
    }
}

#[tokio::test]
async fn a_connection_without_calls_ends() {
    let grpc = Grpc::with(limited(|limits| limits.idle = SHORT)).await;
    until("the client's connection has ended", || grpc.server.metrics.http.ended_count("idle") == 1).await;
    for preface in [&b""[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"] {
        let ended = grpc.server.metrics.http.ended_count("idle");
        let mut stream = TcpStream::connect(grpc.address).await.unwrap();
        stream.write_all(preface).await.unwrap();
        within(stream.read_to_end(&mut Vec::new())).await.unwrap();
        assert_eq!(grpc.server.metrics.http.ended_count("idle"), ended + 1);
    }
}

/// All methods.
const METHODS: [&str; 12] = [
    "/hearsay.v1.Discovery/List",
    "/hearsay.v1.Discovery/Get",
    "/hearsay.v1.Discovery/Watch",
    "/hearsay.v1.Discovery/Register",
    "/hearsay.v1.Discovery/ReportCheck",
    "/hearsay.v1.Discovery/Members",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
];

#[tokio::test]
async fn a_call_without_a_message_ends() {
    let grpc = Grpc::with(limited(|limits| limits.body = SHORT)).await;
    let client = RawClient::open(&grpc, 65_535).await;
    for method in METHODS {
        let (status, _) = client.call(method).await.read().await;
        assert_eq!(status, Some(Code::DeadlineExceeded), "{method}");
    }
    let refused = grpc.server.metrics.http.refused_count("body_time");
    assert_eq!(usize::try_from(refused).unwrap(), METHODS.len());
    // A request that does not end, where one message is taken.
    let mut call = client.call("/hearsay.v1.Discovery/Members").await;
    call.send(&pb::MembersRequest {});
    assert_eq!(call.read().await.0, Some(Code::DeadlineExceeded));
    until("the permits are returned", || grpc.server.metrics.http.waiting.get() == 0).await;
}

#[tokio::test]
async fn open_streams_do_not_delay_the_stop_of_the_node() {
    let grpc = Grpc::with(limited(|limits| limits.drain = Duration::from_secs(3600))).await;
    let client = RawClient::open(&grpc, 65_535).await;
    let mut calls = Vec::new();
    for method in METHODS {
        let mut call = client.call(method).await;
        if method.ends_with("/Watch") {
            call.send(&pb::MembersRequest {});
            call.end();
        } else if method.ends_with("/Register") {
            call.send(&first(registration("job"), ""));
        } else if method.ends_with("Info") {
            use tonic_reflection::pb::v1::{
                ServerReflectionRequest, server_reflection_request::MessageRequest,
            };
            let message_request = Some(MessageRequest::ListServices(String::new()));
            call.send(&ServerReflectionRequest { message_request, ..Default::default() });
        } else if method.ends_with("Resources") {
            call.send(&pb::MembersRequest {});
        } else {
            continue;
        }
        calls.push((method, call));
    }
    until("all are open", || usize::try_from(grpc.server.metrics.http.waiting.get()) == Ok(calls.len()))
        .await;
    until("the registration is listed", || !grpc.held().is_empty()).await;
    grpc.server.readiness.send(Readiness::Leaving).unwrap();
    grpc.server.stop.send(true).unwrap();
    within(grpc.serving).await.unwrap();
    assert_eq!(grpc.server.metrics.http.ended_count("drain"), 0);
    for (method, mut call) in calls {
        let (status, _) = call.read().await;
        let expected = if method.contains("Health") { Code::Ok } else { Code::Unavailable };
        assert_eq!(status, Some(expected), "{method}");
    }
}

#[tokio::test]
async fn a_request_that_is_not_of_grpc_is_refused_by_http() {
    let grpc = Grpc::start().await;
    let client = RawClient::open(&grpc, 65_535).await;
    for (method, content_type, expected) in [
        ("POST", "application/grpc", 200),
        ("POST", "application/grpc+proto", 200),
        ("POST", "application/grpc;x=y", 200),
        ("POST", "application/grpc+json", 415),
        ("POST", "application/grpc-web", 415),
        ("POST", "application/json", 415),
        ("POST", "", 415),
        ("GET", "application/grpc", 405),
        ("CONNECT", "application/grpc", 405),
    ] {
        let path = if method == "CONNECT" { "" } else { "/hearsay.v1.Discovery/Members" };
        let request = axum::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", grpc.address))
            .header("content-type", content_type)
            .body(())
            .unwrap();
        let mut sender = within(client.sender.clone().ready()).await.unwrap();
        let (response, mut body) = sender.send_request(request, false).unwrap();
        // The server may have reset the stream already.
        _ = body.send_data(Bytes::from_static(b"\0\0\0\0\0"), true);
        let response = within(response).await.unwrap();
        assert_eq!(response.status(), expected, "{method} {content_type:?}");
    }
    assert_eq!(grpc.server.metrics.http.refused_count("not_grpc"), 6);
}

#[tokio::test]
async fn a_connection_over_the_limit_closes_without_a_text_of_http_1() {
    let grpc = Grpc::with(limited(|limits| limits.connections = 1)).await;
    let mut stream = TcpStream::connect(grpc.address).await.unwrap();
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.unwrap();
    assert_eq!((answer, grpc.server.metrics.http.refused_count("connections")), (Vec::new(), 1));
}
