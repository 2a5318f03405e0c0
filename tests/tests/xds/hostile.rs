//! Clients of xDS that break the protocol or hold what they can: each is refused, ignored or dropped and
//! counted, while the node keeps its memory within bounds and answers an honest client.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        },
    },
    google::{
        protobuf::{Struct, Value, value::Kind},
        rpc::Status,
    },
};
use hearsay_tests::{
    Cluster as _, Lab, NodeRef,
    registry::{cluster, register},
    scenario,
    xds::{CLUSTER, Connection, DELTA, ENDPOINTS, Ended, RawStream, STATE_OF_THE_WORLD, WINDOW, prefixed},
};
use prost::{Message, encoding::encode_varint};
use serde_json::json;
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

use super::S;

/// Memory by which a node may grow under a request of 4 MiB, the largest, and under the other attacks here.
const GROWTH_MAX_KIB: u64 = 192 * 1024;
/// Codes of gRPC.
const DEADLINE_EXCEEDED: u32 = 4;
const RESOURCE_EXHAUSTED: u32 = 8;
const OUT_OF_RANGE: u32 = 11;
const INTERNAL: u32 = 13;

/// A node under attack, which has one service.
struct Attacked<'a> {
    lab: &'a Lab,
    node: NodeRef,
    grpc: SocketAddr,
    runtime: Runtime,
}

impl<'a> Attacked<'a> {
    fn start(lab: &'a mut Lab) -> Self {
        let (hosts, nodes) = cluster(lab, 2, &[]);
        register(&hosts[0], &json!({ "name": "web", "address": hosts[0].ip, "port": 9001 }));
        let grpc = SocketAddr::new(lab.address(nodes[0]).ip(), 7700);
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { lab, node: nodes[0], grpc, runtime }
    }

    /// Returns the value of a line of `/metrics`; 0 without the line.
    fn metric(&self, line: &str) -> u64 {
        let text = self.lab.text(self.node, "/metrics").unwrap();
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// Runs an attack, and asserts that each of these counters moves by as much, that the node's memory stays
    /// within its bound at any time, that it answers an honest client, and that its log has no error.
    fn under<R>(&self, moves: &[(&str, u64)], attack: impl AsyncFnOnce(Connection) -> R) -> R {
        let before: Vec<u64> = moves.iter().map(|(line, _)| self.metric(line)).collect();
        let status = format!("/proc/{}", self.lab.pid(self.node));
        // From here on the kernel records the largest resident memory again.
        fs::write(format!("{status}/clear_refs"), "5").unwrap();
        let resident = self.lab.resident_kb(self.node);
        let result = self.runtime.block_on(async {
            let connection = Connection::open(self.grpc, WINDOW).await.unwrap();
            let result = timeout(60 * S, attack(connection.clone())).await.expect("the attack ends");
            // The connection serves other streams.
            assert_eq!(first_clusters(&connection).await, 1);
            result
        });
        for ((line, by), before) in moves.iter().zip(before) {
            let moved = |_: &Lab| self.metric(line) - before >= *by;
            self.lab.until(10 * S, &format!("{line} moves by {by}"), moved);
            assert_eq!(self.metric(line), before + by, "{line}");
        }
        let status = fs::read_to_string(format!("{status}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next());
        let growth = peak.unwrap().parse::<u64>().unwrap().saturating_sub(resident);
        println!("{moves:?}: {resident} KiB, and at most {growth} KiB more");
        assert!(growth < GROWTH_MAX_KIB, "{moves:?}: {growth} KiB more than {resident} KiB");
        self.assert_serves();
        result
    }

    /// Asserts that an honest client on a connection of its own is answered, and that the log has no error.
    fn assert_serves(&self) {
        let honest = async { first_clusters(&Connection::open(self.grpc, WINDOW).await.unwrap()).await };
        assert_eq!(self.runtime.block_on(honest), 1);
        let log = self.lab.log(self.node);
        let bad = log.lines().find(|line| line.contains("ERROR") || line.contains("panicked"));
        assert_eq!(bad, None);
    }
}

/// Returns the number of clusters in the first response of a stream.
async fn first_clusters(connection: &Connection) -> usize {
    let request = DiscoveryRequest { type_url: CLUSTER.into(), ..DiscoveryRequest::default() };
    let mut stream = connection.stream(STATE_OF_THE_WORLD, &request).await.unwrap();
    next(&mut stream).await.resources.len()
}

async fn next(stream: &mut RawStream) -> DiscoveryResponse {
    let message = timeout(10 * S, stream.next()).await.expect("a response in time").unwrap();
    DiscoveryResponse::decode(message).unwrap()
}

/// Waits for the end of a stream.
async fn end(stream: &mut RawStream) -> Ended {
    loop {
        if let Err(ended) = stream.next().await {
            return ended;
        }
    }
}

fn whole(type_url: &str, names: Vec<String>) -> DiscoveryRequest {
    DiscoveryRequest { type_url: type_url.into(), resource_names: names, ..DiscoveryRequest::default() }
}

/// Asserts that the next response is one to this request, so that none to earlier requests comes.
async fn assert_no_response_before(stream: &mut RawStream, service: &str) {
    stream.send(&whole(ENDPOINTS, vec![service.into()])).unwrap();
    let response = next(stream).await;
    assert_eq!((response.type_url.as_str(), response.resources.len()), (ENDPOINTS, 1));
}

#[test]
fn refusals_old_nonces_and_unknown_types_are_counted_and_have_no_response() {
    const TEST: &str = "hostile::refusals_old_nonces_and_unknown_types_are_counted_and_have_no_response";
    scenario(TEST, |lab| {
        let attacked = Attacked::start(lab);
        let error = || Some(Status { code: 3, message: "no".into(), ..Status::default() });
        attacked.under(&[("hearsay_xds_nacks_total{kind=\"cds\"}", 1000)], async |connection| {
            let all = whole(CLUSTER, vec![]);
            let mut stream = connection.stream(STATE_OF_THE_WORLD, &all).await.unwrap();
            let response_nonce = next(&mut stream).await.nonce;
            for _ in 0..1000 {
                let nack = DiscoveryRequest {
                    response_nonce: response_nonce.clone(),
                    error_detail: error(),
                    ..all.clone()
                };
                stream.send(&nack).unwrap();
            }
            assert_no_response_before(&mut stream, "nacks").await;
        });
        attacked.under(&[("hearsay_xds_nacks_total{kind=\"eds\"}", 1000)], async |connection| {
            let request = DeltaDiscoveryRequest {
                type_url: ENDPOINTS.into(),
                resource_names_subscribe: vec!["web".into()],
                ..DeltaDiscoveryRequest::default()
            };
            let mut stream = connection.stream(DELTA, &request).await.unwrap();
            let response = DeltaDiscoveryResponse::decode(stream.next().await.unwrap()).unwrap();
            for _ in 0..1000 {
                let nack = DeltaDiscoveryRequest {
                    type_url: ENDPOINTS.into(),
                    response_nonce: response.nonce.clone(),
                    error_detail: error(),
                    ..DeltaDiscoveryRequest::default()
                };
                stream.send(&nack).unwrap();
            }
            let marker = DeltaDiscoveryRequest { resource_names_subscribe: vec!["nacks".into()], ..request };
            stream.send(&marker).unwrap();
            let response = DeltaDiscoveryResponse::decode(stream.next().await.unwrap()).unwrap();
            assert_eq!(response.resources[0].name, "nacks");
        });
        attacked.under(&[("hearsay_xds_ignored_total{reason=\"old_nonce\"}", 1000)], async |connection| {
            let all = whole(CLUSTER, vec![]);
            let mut stream = connection.stream(STATE_OF_THE_WORLD, &all).await.unwrap();
            next(&mut stream).await;
            for n in 0..1000 {
                let response_nonce = format!("old-{n}");
                stream
                    .send(&DiscoveryRequest { response_nonce, ..whole(CLUSTER, vec![format!("c{n}")]) })
                    .unwrap();
            }
            assert_no_response_before(&mut stream, "nonces").await;
        });
        attacked.under(&[("hearsay_xds_ignored_total{reason=\"unknown_type\"}", 1000)], async |connection| {
            let mut stream = connection.stream(STATE_OF_THE_WORLD, &whole("", vec![])).await.unwrap();
            for n in 1..1000 {
                stream.send(&whole(&format!("{}/{n}", "x".repeat(1000)), vec!["web".into()])).unwrap();
            }
            assert_no_response_before(&mut stream, "types").await;
        });
    });
}

/// Returns a request whose client has this description, which is encoded already.
fn with_node(node: &[u8]) -> Bytes {
    let rest = whole(CLUSTER, vec![]).encode_to_vec();
    let mut message = Vec::new();
    // Field 2 of `DiscoveryRequest`, with a length.
    message.push(0x12);
    encode_varint(node.len() as u64, &mut message);
    message.extend_from_slice(node);
    message.extend_from_slice(&rest);
    with_prefix(&message)
}

fn with_prefix(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).unwrap());
    bytes.extend_from_slice(message);
    bytes.freeze()
}

#[test]
fn large_requests_are_refused_or_ignored_within_a_bound_of_memory() {
    const TEST: &str = "hostile::large_requests_are_refused_or_ignored_within_a_bound_of_memory";
    scenario(TEST, |lab| {
        let attacked = Attacked::start(lab);
        let responses = "hearsay_xds_responses_total{kind=\"cds\"}";
        // One of the three is that of the honest client on the same connection.
        attacked.under(&[(responses, 3)], async |connection| {
            let text = |size: usize| Value { kind: Some(Kind::StringValue("m".repeat(size))) };
            let fields = (0..64).map(|n| (n.to_string(), text(16 * 1024))).collect();
            let node = Node { metadata: Some(Struct { fields }), ..Node::default() };
            let mut stream = connection.stream(STATE_OF_THE_WORLD, &whole("", vec![])).await.unwrap();
            stream.send_bytes(with_node(&node.encode_to_vec())).unwrap();
            assert_eq!(next(&mut stream).await.resources.len(), 1);
            // Field 9 of `Node`: two million empty extensions.
            let mut stream = connection.stream(STATE_OF_THE_WORLD, &whole("", vec![])).await.unwrap();
            stream.send_bytes(with_node(&[0x4a, 0].repeat(2_000_000))).unwrap();
            assert_eq!(next(&mut stream).await.resources.len(), 1);
        });
        attacked.under(&[(responses, 2)], async |connection| {
            let wildcards = vec!["*".to_owned(); 1_000_000];
            let mut stream = connection.stream(STATE_OF_THE_WORLD, &whole(CLUSTER, wildcards)).await.unwrap();
            assert_eq!(next(&mut stream).await.resources.len(), 1);
        });
        let limit = "hearsay_xds_ended_total{reason=\"limit\"}";
        attacked.under(&[(limit, 3)], async |connection| {
            let names: Vec<String> = (0..100_000).map(|n| format!("name-{n}")).collect();
            let request = whole(ENDPOINTS, names.clone());
            let mut stream = connection.stream(STATE_OF_THE_WORLD, &request).await.unwrap();
            let ended = end(&mut stream).await;
            assert_eq!(ended.code, Some(RESOURCE_EXHAUSTED), "{ended}");
            let request = DeltaDiscoveryRequest {
                type_url: ENDPOINTS.into(),
                resource_names_subscribe: names,
                ..DeltaDiscoveryRequest::default()
            };
            let mut stream = connection.stream(DELTA, &request).await.unwrap();
            let ended = end(&mut stream).await;
            assert_eq!(ended.code, Some(RESOURCE_EXHAUSTED), "{ended}");
            let names: Vec<String> = (0..4_000_000).map(|_| String::new()).collect();
            let mut stream = connection.stream(STATE_OF_THE_WORLD, &whole("", names)).await.unwrap();
            let ended = end(&mut stream).await;
            assert_eq!(ended.code, Some(OUT_OF_RANGE), "{ended}");
        });
    });
}

/// Connects, sends bytes, and waits until the node closes the connection.
fn send_to_end(to: SocketAddr, bytes: &[u8]) {
    let mut connection = TcpStream::connect(to).unwrap();
    connection.set_read_timeout(Some(10 * S)).unwrap();
    // The node may close the connection before it has read everything.
    _ = connection.write_all(bytes);
    _ = connection.shutdown(Shutdown::Write);
    let mut answer = [0; 4096];
    loop {
        match connection.read(&mut answer) {
            Ok(0) => return,
            Ok(_) => (),
            Err(error) => {
                assert_eq!(
                    error.kind(),
                    std::io::ErrorKind::ConnectionReset,
                    "the node keeps the connection"
                );
                return;
            }
        }
    }
}

/// Returns the preface of HTTP/2, empty settings, and frames whose types, flags, streams and contents are
/// random.
fn random_frames(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    for _ in 0..64 {
        let length = random.u8(..64);
        bytes.extend([0, 0, length, random.u8(..12), random.u8(..), 0, 0, 0, random.u8(..6)]);
        bytes.extend((0..length).map(|_| random.u8(..)));
    }
    bytes
}

#[test]
fn garbage_and_half_a_message_end_their_stream_or_connection_alone() {
    const TEST: &str = "hostile::garbage_and_half_a_message_end_their_stream_or_connection_alone";
    scenario(TEST, |lab| {
        let attacked = Attacked::start(lab);
        let broken = "hearsay_http_connections_ended_total{reason=\"broken\"}";
        let before = attacked.metric(broken);
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..200 {
            send_to_end(attacked.grpc, &random_frames(&mut random));
            let noise: Vec<u8> = (0..1000).map(|_| random.u8(..)).collect();
            send_to_end(attacked.grpc, &noise);
        }
        send_to_end(attacked.grpc, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n");
        let has_counted = |_: &Lab| attacked.metric(broken) > before + 200;
        attacked.lab.until(10 * S, "the connections are counted", has_counted);
        attacked.assert_serves();
        let malformed = "hearsay_xds_ended_total{reason=\"malformed\"}";
        // Neither a field without an end, nor groups within groups, nor text that is no UTF-8 is a message.
        let garbage: [&[u8]; 3] = [&[0xff; 16], &[0x7b; 10_000], &[0x22, 2, 0xff, 0xfe]];
        attacked.under(&[(malformed, garbage.len() as u64)], async |connection| {
            for message in garbage {
                let mut stream = connection.stream(STATE_OF_THE_WORLD, &whole("", vec![])).await.unwrap();
                stream.send_bytes(with_prefix(message)).unwrap();
                let ended = end(&mut stream).await;
                assert_eq!(ended.code, Some(INTERNAL), "{ended}");
            }
        });
        let half = [
            ("hearsay_xds_ended_total{reason=\"slow\"}", 1),
            ("hearsay_http_refused_total{reason=\"body_time\"}", 1),
        ];
        attacked.under(&half, async |connection| {
            let mut stream = connection.stream(STATE_OF_THE_WORLD, &whole("", vec![])).await.unwrap();
            let message = prefixed(&whole(ENDPOINTS, vec!["x".repeat(1000)]));
            stream.send_bytes(message.slice(..500)).unwrap();
            let ended = end(&mut stream).await;
            assert_eq!(ended.code, Some(DEADLINE_EXCEEDED), "{ended}");
        });
    });
}

#[test]
fn a_client_that_keeps_its_window_shut_is_dropped() {
    const TEST: &str = "hostile::a_client_that_keeps_its_window_shut_is_dropped";
    const CONNECTIONS: u64 = 4;
    const STREAMS: u64 = 50;
    scenario(TEST, |lab| {
        let attacked = Attacked::start(lab);
        let unread = "hearsay_http_refused_total{reason=\"unread\"}";
        attacked.under(&[(unread, CONNECTIONS * STREAMS)], async |_| {
            let mut streams = Vec::new();
            for _ in 0..CONNECTIONS {
                let shut = Connection::open(attacked.grpc, 0).await.unwrap();
                for _ in 0..STREAMS {
                    streams.push(shut.stream(STATE_OF_THE_WORLD, &whole(CLUSTER, vec![])).await.unwrap());
                }
            }
            for stream in &mut streams {
                let ended = end(stream).await;
                assert_eq!(ended.code, None, "{ended}");
            }
        });
        let streams = |_: &Lab| attacked.metric("hearsay_xds_streams") == 0;
        attacked.lab.until(10 * S, "the node holds no stream", streams);
    });
}
