//! Tests of gRPC over a loopback socket, with the generated clients over hyper's HTTP/2.

mod access;
mod raw;
mod register;
mod xds;

use std::task::{Context, Poll};

use futures::future::BoxFuture;
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::{Code, Request, Status, body::Body as TonicBody};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::*;
use crate::apis::grpc::pb::{
    self, discovery_client::DiscoveryClient, register_request::Message, register_response::Event,
    watch_response::Event as WatchEvent,
};

/// A connection of a client.
#[derive(Clone)]
struct Channel(SendRequest<TonicBody>);

impl tower::Service<axum::http::Request<TonicBody>> for Channel {
    type Response = axum::http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, hyper::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: axum::http::Request<TonicBody>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// The gRPC server of a node, and a client of it.
struct Grpc {
    server: Server,
    address: SocketAddr,
    client: DiscoveryClient<Channel>,
    health: HealthClient<Channel>,
    /// The socket of the client's connection.
    socket: std::net::TcpStream,
    /// Ends when the server has stopped.
    serving: tokio::task::JoinHandle<()>,
}

/// Opens a connection, and returns its socket, too.
async fn connect(address: SocketAddr) -> (Channel, std::net::TcpStream) {
    let socket = std::net::TcpStream::connect(address).unwrap();
    socket.set_nonblocking(true).unwrap();
    let stream = TokioIo::new(TcpStream::from_std(socket.try_clone().unwrap()).unwrap());
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream);
    let (sender, connection) = within(handshake).await.unwrap();
    tokio::spawn(connection);
    (Channel(sender), socket)
}

impl Grpc {
    async fn with(setup: Setup) -> Self {
        let limits = setup.limits.clone();
        let server = Server::with(setup).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::clone(&server.metrics);
        let stop = server.stop.subscribe();
        let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listeners = Listeners::from(http).with_grpc(Some((listener, server.grpc.clone())));
        let serving = tokio::spawn(serve(listeners, server.router.clone(), limits, metrics, stop));
        let (channel, socket) = connect(address).await;
        let origin: axum::http::Uri = format!("http://{address}").parse().unwrap();
        let client = DiscoveryClient::with_origin(channel.clone(), origin.clone());
        let health = HealthClient::with_origin(channel, origin);
        server.apply([joined(member(1)), offered(instance(1, "a", "web"))]);
        Self { server, address, client, health, socket, serving }
    }

    async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    /// Opens a Register stream, and returns its sender and its responses.
    async fn register(
        &mut self,
        first: pb::RegisterRequest,
    ) -> (futures::channel::mpsc::Sender<pb::RegisterRequest>, tonic::Streaming<pb::RegisterResponse>) {
        let (mut sender, requests) = futures::channel::mpsc::channel(8);
        sender.try_send(first).unwrap();
        let responses = within(self.client.register(requests)).await.unwrap().into_inner();
        (sender, responses)
    }

    fn held(&self) -> Vec<String> {
        self.server.registry.list().into_iter().map(|view| view.row.registration.id.clone()).collect()
    }

    fn calls(&self, method: &str, code: &str) -> u64 {
        let text = self.server.metrics.render().unwrap();
        let line = format!("hearsay_grpc_calls_total{{method=\"{method}\",code=\"{code}\"}} ");
        text.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
    }
}

fn registration(name: &str) -> pb::Registration {
    let ttl = pb::CheckDefinition {
        id: format!("{name}-ttl"),
        kind: Some(pb::check_definition::Kind::Ttl("1h".into())),
        ..Default::default()
    };
    pb::Registration {
        name: name.into(),
        id: format!("{name}-1"),
        port: 8080,
        checks: vec![ttl],
        ..Default::default()
    }
}

fn first(registration: pb::Registration, grace: &str) -> pb::RegisterRequest {
    pb::RegisterRequest { message: Some(Message::Registration(registration)), grace: grace.into() }
}

fn report(check_id: &str, status: pb::HealthStatus) -> pb::ReportCheckRequest {
    pb::ReportCheckRequest { check_id: check_id.into(), status: status.into(), output: "fine".into() }
}

fn by_report(report: pb::ReportCheckRequest) -> pb::RegisterRequest {
    pb::RegisterRequest { message: Some(Message::Report(report)), grace: String::new() }
}

async fn event(responses: &mut tonic::Streaming<pb::RegisterResponse>) -> Result<Option<Event>, Status> {
    Ok(within(responses.message()).await?.map(|response| response.event.unwrap()))
}

fn ids(instances: &[pb::Instance]) -> Vec<&str> {
    instances.iter().map(|instance| instance.id.as_str()).collect()
}

#[tokio::test]
async fn lists_and_filters_as_http_does() {
    let mut grpc = Grpc::start().await;
    let (node, id, mut critical) = instance(1, "c", "web");
    (critical.health, critical.zone, critical.address) =
        (Health::Critical, Some("z".into()), "10.0.0.7".into());
    grpc.server.apply([offered((node, id, critical)), offered(instance(1, "d", "db"))]);
    let list = async |grpc: &mut Grpc, request: pb::ListRequest| {
        within(grpc.client.list(request)).await.map(|response| response.into_inner())
    };
    let all = list(&mut grpc, pb::ListRequest::default()).await.unwrap();
    assert_eq!(ids(&all.instances), ["d", "a", "c"]);
    assert_eq!((all.cluster.as_str(), all.node.as_str()), ("test", "n1"));
    let by_http = grpc.server.get("/services").await.json();
    assert_eq!(by_http["index"], all.index);
    let a = &all.instances[1];
    let json = &by_http["services"]["web"][0];
    assert_eq!(
        (json["url"].as_str(), json["nodeId"].as_str()),
        (Some(a.url.as_str()), Some(a.node_id.as_str()))
    );
    assert_eq!((a.health(), a.weight, a.port, a.meta["k"].as_str()), (pb::HealthStatus::Passing, 1, 80, "v"));
    assert_eq!(a.since.map(|since| (since.seconds, since.nanos)), Some((1, 500_000_000)));
    let web = pb::ListRequest { service: "web".into(), ..Default::default() };
    for (request, expected) in [
        (web.clone(), &["a", "c"][..]),
        (pb::ListRequest { health: pb::HealthStatus::Critical.into(), ..web.clone() }, &["c"]),
        (pb::ListRequest { zone: "z".into(), ..web.clone() }, &["c"]),
        (pb::ListRequest { tags: vec!["a".into(), "n2".into()], ..web.clone() }, &[]),
        (pb::ListRequest { service: "none".into(), ..web.clone() }, &[]),
    ] {
        assert_eq!(ids(&list(&mut grpc, request.clone()).await.unwrap().instances), expected, "{request:?}");
    }
    for health in [pb::HealthStatus::Unverified.into(), 77] {
        let refused = list(&mut grpc, pb::ListRequest { health, ..web.clone() }).await.unwrap_err();
        assert!(refused.code() == Code::InvalidArgument && refused.message().contains("health"), "{refused}");
    }
    assert_eq!(grpc.calls("/hearsay.v1.Discovery/List", "OK"), 6);
    assert_eq!(grpc.calls("/hearsay.v1.Discovery/List", "INVALID_ARGUMENT"), 2);
}

#[tokio::test]
async fn members_and_instances_are_those_of_http() {
    let mut grpc = Grpc::start().await;
    let beside = Member { grpc: Some("10.0.0.2:7700".into()), state: MemberState::Suspect, ..member(2) };
    grpc.server.apply([joined(beside)]);
    let members = within(grpc.client.members(pb::MembersRequest {})).await.unwrap().into_inner();
    let json = grpc.server.get("/members").await.json();
    assert_eq!(json["rootHash"], members.root_hash.as_str());
    let second = members.members.iter().find(|member| member.name == "n2").unwrap();
    assert_eq!((second.grpc.as_deref(), second.state()), (Some("10.0.0.2:7700"), pb::MemberState::Suspect));
    let listed = json["members"].as_array().unwrap().iter().find(|member| member["name"] == "n2").unwrap();
    assert_eq!(listed["grpc"], "10.0.0.2:7700");
    let get = |id: &str| pb::GetRequest { service: "web".into(), id: id.into() };
    let found = within(grpc.client.get(get("a"))).await.unwrap().into_inner();
    assert_eq!((found.instance.unwrap().id.as_str(), found.checks.len()), ("a", 0));
    let missing = within(grpc.client.get(get("b"))).await.unwrap_err();
    assert!(missing.code() == Code::NotFound && missing.message().contains("\"b\""), "{missing}");
}

#[tokio::test]
async fn a_watch_begins_with_all_and_resumes_where_it_ended() {
    let mut grpc = Grpc::start().await;
    let request = |index| pb::WatchRequest { service: "web".into(), index };
    let mut watch = within(grpc.client.watch(request(None))).await.unwrap().into_inner();
    let snapshot = within(watch.message()).await.unwrap().unwrap();
    let Some(WatchEvent::Snapshot(all)) = &snapshot.event else { panic!("{snapshot:?}") };
    assert!(ids(&all.instances) == ["a"] && !all.more);
    let (node, id, second) = instance(1, "b", "web");
    let second = Instance { address: "10.0.0.8".into(), ..second };
    grpc.server.apply([offered(instance(1, "d", "db")), offered((node, id.clone(), second.clone()))]);
    let added = within(watch.message()).await.unwrap().unwrap();
    assert!(
        matches!(&added.event, Some(WatchEvent::Added(added)) if added.instance.as_ref().unwrap().id == "b")
    );
    assert!(added.index > snapshot.index);
    let changed = Instance { health: Health::Warning, ..second };
    grpc.server.apply([offered((node, id, changed)), withdrawn(1, "a")]);
    drop(watch);
    let mut watch = within(grpc.client.watch(request(Some(added.index)))).await.unwrap().into_inner();
    let changed = within(watch.message()).await.unwrap().unwrap();
    assert!(matches!(&changed.event, Some(WatchEvent::Changed(_))), "{changed:?}");
    let removed = within(watch.message()).await.unwrap().unwrap();
    assert!(matches!(&removed.event, Some(WatchEvent::Removed(_))), "{removed:?}");
    // An index that this node never had.
    let mut foreign = within(grpc.client.watch(request(Some(1)))).await.unwrap().into_inner();
    let snapshot = within(foreign.message()).await.unwrap().unwrap();
    assert!(matches!(snapshot.event, Some(WatchEvent::Snapshot(_))));
    grpc.server.readiness.send(Readiness::Leaving).unwrap();
    for watch in [&mut watch, &mut foreign] {
        assert_eq!(within(watch.message()).await.unwrap_err().code(), Code::Unavailable);
    }
    until("the permits are returned", || grpc.server.metrics.http.waiting.get() == 0).await;
    let long = pb::WatchRequest { service: "x".repeat(1000), index: None };
    let refused = within(grpc.client.watch(long)).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("service"), "{refused}");
}

#[tokio::test]
async fn a_large_snapshot_comes_in_parts() {
    let mut grpc = Grpc::start().await;
    let meta: BTreeMap<String, String> = (0..8).map(|n| (n.to_string(), "x".repeat(500))).collect();
    let many = (0..700).map(|n| {
        let (node, id, web) = instance(1, &format!("m{n}"), "web");
        offered((node, id, Instance { meta: meta.clone(), port: 1000 + n, ..web }))
    });
    grpc.server.apply(many);
    let mut watch = within(grpc.client.watch(pb::WatchRequest::default())).await.unwrap().into_inner();
    let (mut parts, mut instances) = (0, 0);
    loop {
        let part = within(watch.message()).await.unwrap().unwrap();
        let Some(WatchEvent::Snapshot(snapshot)) = part.event else { panic!("no part") };
        (parts, instances) = (parts + 1, instances + snapshot.instances.len());
        assert_eq!(snapshot.more, part.index == 0);
        if !snapshot.more {
            break;
        }
    }
    assert_eq!((parts, instances), (3, 701));
}

#[tokio::test]
async fn health_is_that_of_the_node_and_of_each_service() {
    let mut grpc = Grpc::start().await;
    let name = |service: &str| HealthCheckRequest { service: service.into() };
    let check = async |grpc: &mut Grpc, service: &str| {
        within(grpc.health.check(name(service))).await.map(|r| r.into_inner().status()).map_err(|s| s.code())
    };
    for known in ["", "web", "hearsay.v1.Discovery"] {
        assert_eq!(check(&mut grpc, known).await, Ok(ServingStatus::Serving), "{known}");
    }
    assert_eq!(check(&mut grpc, "none").await, Err(Code::NotFound));
    let mut watch = within(grpc.health.watch(name("new"))).await.unwrap().into_inner();
    let mut node = within(grpc.health.watch(name(""))).await.unwrap().into_inner();
    assert_eq!(within(node.message()).await.unwrap().unwrap().status(), ServingStatus::Serving);
    let (node_id, id, new) = instance(1, "n", "new");
    let with = |health| offered((node_id, id.clone(), Instance { health, ..new.clone() }));
    assert_eq!(within(watch.message()).await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    for (change, status) in [
        (with(Health::Critical), ServingStatus::NotServing),
        (with(Health::Warning), ServingStatus::Serving),
        (withdrawn(1, "n"), ServingStatus::ServiceUnknown),
        (with(Health::Passing), ServingStatus::Serving),
    ] {
        // A change of another service sends nothing.
        grpc.server.apply([offered(instance(1, &format!("o{status:?}"), "other")), change]);
        assert_eq!(within(watch.message()).await.unwrap().unwrap().status(), status);
    }
    grpc.server.readiness.send(Readiness::Leaving).unwrap();
    assert_eq!(within(node.message()).await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert_eq!(within(node.message()).await.unwrap(), None);
    assert_eq!(within(watch.message()).await.unwrap(), None, "its status is the same");
    assert_eq!(check(&mut grpc, "").await, Ok(ServingStatus::NotServing));
    let long = within(grpc.health.check(name(&"x".repeat(5000)))).await.unwrap_err();
    assert_eq!(long.code(), Code::OutOfRange);
}

#[tokio::test]
async fn a_node_that_starts_holds_reads_of_the_table() {
    let mut grpc = Grpc::start().await;
    grpc.server.readiness.send(Readiness::Starting).unwrap();
    let node = within(grpc.health.check(HealthCheckRequest::default())).await.unwrap().into_inner();
    assert_eq!(node.status(), ServingStatus::NotServing, "the node answers for itself");
    let (mut lister, mut checker) = (grpc.client.clone(), grpc.health.clone());
    let list = tokio::spawn(async move { lister.list(pb::ListRequest::default()).await });
    let late = HealthCheckRequest { service: "late".into() };
    let check = tokio::spawn(async move { checker.check(late).await });
    assert!(within(grpc.client.members(pb::MembersRequest {})).await.is_ok(), "members are answered");
    assert!(!list.is_finished() && !check.is_finished());
    grpc.server.apply([offered(instance(1, "l", "late"))]);
    grpc.server.readiness.send(Readiness::Ready).unwrap();
    assert_eq!(ids(&within(list).await.unwrap().unwrap().into_inner().instances), ["l", "a"]);
    assert_eq!(within(check).await.unwrap().unwrap().into_inner().status(), ServingStatus::Serving);
}

#[tokio::test]
async fn reflection_describes_every_service_in_both_versions() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let grpc = Grpc::start().await;
    let (channel, _socket) = connect(grpc.address).await;
    let origin = format!("http://{}", grpc.address).parse().unwrap();
    let mut client = ServerReflectionClient::with_origin(channel, origin);
    let ask = |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let requests = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("hearsay.v1.Discovery".into())),
        ask(MessageRequest::FileByFilename("google/protobuf/timestamp.proto".into())),
        ask(MessageRequest::FileContainingSymbol("none.None".into())),
    ];
    let mut responses =
        within(client.server_reflection_info(futures::stream::iter(requests))).await.unwrap().into_inner();
    let mut next = async || within(responses.message()).await.map(|r| r.unwrap().message_response.unwrap());
    let MessageResponse::ListServicesResponse(list) = next().await.unwrap() else { panic!("no list") };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"hearsay.v1.Discovery") && names.contains(&"grpc.health.v1.Health"), "{names:?}");
    assert!(names.iter().filter(|name| name.ends_with(".ServerReflection")).count() == 2, "{names:?}");
    for _ in 0..2 {
        let response = next().await.unwrap();
        let MessageResponse::FileDescriptorResponse(files) = response else { panic!("{response:?}") };
        assert_eq!(files.file_descriptor_proto.len(), 1);
    }
    let missing = next().await;
    let is_missing = matches!(&missing, Ok(MessageResponse::ErrorResponse(error)) if error.error_code == 5)
        || missing.as_ref().is_err_and(|status| status.code() == Code::NotFound);
    assert!(is_missing, "{missing:?}");
}

#[tokio::test]
async fn streams_have_a_limit() {
    let mut grpc = Grpc::with(Setup { stream_limit: 2, ..Setup::default() }).await;
    let name = HealthCheckRequest::default();
    let first_watch = within(grpc.health.watch(name.clone())).await.unwrap();
    let second = within(grpc.client.watch(pb::WatchRequest::default())).await.unwrap();
    assert_eq!(within(grpc.health.watch(name.clone())).await.unwrap_err().code(), Code::ResourceExhausted);
    let refused = within(grpc.client.watch(pb::WatchRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let (_sender, mut responses) = grpc.register(first(registration("job"), "")).await;
    assert_eq!(event(&mut responses).await.unwrap_err().code(), Code::ResourceExhausted);
    drop((first_watch, second));
    until("the permits are returned", || grpc.server.metrics.http.waiting.get() == 0).await;
    assert!(within(grpc.health.watch(name)).await.is_ok());
}

#[tokio::test]
async fn a_deadline_ends_a_call_of_any_kind() {
    let mut grpc = Grpc::start().await;
    let timed = |timeout: &'static str| {
        let mut request = Request::new(pb::WatchRequest::default());
        request.metadata_mut().insert("grpc-timeout", timeout.parse().unwrap());
        request
    };
    let mut watch = within(grpc.client.watch(timed("50m"))).await.unwrap().into_inner();
    assert!(within(watch.message()).await.unwrap().is_some());
    assert_eq!(within(watch.message()).await.unwrap_err().code(), Code::DeadlineExceeded);
    until("the permit is returned", || grpc.server.metrics.http.waiting.get() == 0).await;
    assert_eq!(grpc.calls("/hearsay.v1.Discovery/Watch", "DEADLINE_EXCEEDED"), 1);
    let malformed = within(grpc.client.watch(timed("5 seconds"))).await.unwrap_err();
    assert!(malformed.code() == Code::InvalidArgument && malformed.message().contains("grpc-timeout"));
}

#[tokio::test]
async fn large_answers_are_charged_to_the_budget() {
    let mut grpc = Grpc::with(Setup { response_bytes: 100, ..Setup::default() }).await;
    assert!(within(grpc.client.list(pb::ListRequest::default())).await.is_ok(), "a small one");
    let many = (0..300).map(|n| {
        let (node, id, web) = instance(1, &format!("m{n}"), "web");
        offered((node, id, Instance { port: 1000 + n, ..web }))
    });
    grpc.server.apply(many);
    let refused = within(grpc.client.list(pb::ListRequest::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let mut watch = within(grpc.client.watch(pb::WatchRequest::default())).await.unwrap().into_inner();
    assert_eq!(within(watch.message()).await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn unknown_methods_and_garbage_are_refused_and_break_nothing() {
    let mut grpc = Grpc::start().await;
    let (mut channel, _socket) = connect(grpc.address).await;
    let mut send = async |path: &str, body: &'static [u8]| {
        let request = axum::http::Request::post(format!("http://{}{path}", grpc.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(TonicBody::new(http_body_util::Full::from(body)))
            .unwrap();
        let response = within(tower::Service::call(&mut channel, request)).await.unwrap();
        let head = response.headers().get("grpc-status").cloned();
        let body = within(http_body_util::BodyExt::collect(response.into_body())).await;
        let trailer = body.ok().and_then(|body| body.trailers()?.get("grpc-status").cloned());
        head.or(trailer).map(|status| Code::from_bytes(status.as_bytes()))
    };
    for path in ["/x.Y/Z", "/hearsay.v1.Discovery/Nothing", "/", "/services"] {
        assert_eq!(send(path, b"\0\0\0\0\0").await, Some(Code::Unimplemented), "{path}");
    }
    for garbage in [
        &b"\0\0\0\0\x01\xff"[..],
        b"\0\xff\xff\xff\xff",
        b"\0\0\0\0\x09abc",
        b"\x01\0\0\0\0",
        b"\x07\0\0\0\0",
        b"\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
    ] {
        for method in ["List", "Get", "Watch", "Register", "ReportCheck", "Members"] {
            let code = send(&format!("/hearsay.v1.Discovery/{method}"), garbage).await;
            // An empty message is a message of all but Register.
            assert!(
                code.is_some_and(|code| code != Code::Ok || garbage == b"\0"),
                "{method} {garbage:?}: {code:?}"
            );
        }
        let code = send("/grpc.health.v1.Health/Check", garbage).await;
        assert!(code.is_some_and(|code| code != Code::Ok), "{garbage:?}: {code:?}");
    }
    // Bytes that are not HTTP/2.
    for garbage in [
        &b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        let mut stream = TcpStream::connect(grpc.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        _ = within(stream.read_to_end(&mut answer)).await;
    }
    assert!(within(grpc.client.list(pb::ListRequest::default())).await.is_ok(), "it still answers");
    assert!(grpc.calls("unknown", "UNIMPLEMENTED") >= 3);
    assert!(grpc.held().is_empty());
}
