//! Tests of the HTTP server's limits: excess connections, requests and registrations are refused, slow
//! clients are cut off, and unread responses share a memory budget.

use super::*;

/// Sends bytes and reads until the server closes.
async fn until_closed(server: &Server, bytes: &str) -> Reply {
    Reply::read(server.open(bytes).await).await
}

fn limited(change: impl FnOnce(&mut Limits)) -> Setup {
    let mut limits = Limits::default();
    change(&mut limits);
    Setup { limits, ..Setup::default() }
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let server = Server::with(limited(|l| l.head = Duration::from_millis(50))).await;
    let reply = until_closed(&server, "GET /services HTTP/1.1\r\nhost: n1\r\nx-slow: ").await;
    reply.problem(408);
    until("the cut is counted", || server.metrics.http.ended_count("head_time") == 1).await;
    until("the connection is gone", || server.metrics.http.connections.get() == 0).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_between_requests_too() {
    let server = Server::with(limited(|l| l.head = Duration::from_millis(50))).await;
    let reply = until_closed(&server, "GET /livez HTTP/1.1\r\nhost: n1\r\n\r\n").await;
    assert_eq!(reply.status, 200);
    assert!(!reply.body.contains("408"), "an idle connection gets no response: {reply:?}");
    until("the connection is gone", || server.metrics.http.connections.get() == 0).await;
}

#[tokio::test]
async fn a_head_over_the_limit_is_431() {
    let server = Server::start().await;
    let large = format!("x-large: {}", "x".repeat(Limits::default().head_bytes));
    server.send("GET /services", &[&large], "").await.problem(431);
    let many = vec!["x: y"; Limits::default().headers];
    server.send("GET /services", &many, "").await.problem(431);
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_announced_or_not() {
    let server = Server::with(limited(|l| l.body_bytes = 10)).await;
    let json = "content-type: application/json";
    let announced = ["content-length: 11", json];
    assert!(server.send("POST /students", &announced, "").await.problem(413).contains("10 bytes"));
    let chunked = ["transfer-encoding: chunked", json];
    server.send("POST /students", &chunked, "8\r\n12345678\r\n8\r\n12345678\r\n0\r\n\r\n").await.problem(413);
    server.send("POST /students", &chunked, "8\r\n12345678\r\n0\r\n\r\n").await.problem(400);
    assert_eq!(server.metrics.http.refused_count("body_size"), 2);
}

#[tokio::test]
async fn a_body_with_a_coding_is_decoded_within_the_limit_and_an_unknown_coding_is_told_what_is_known() {
    use std::io::Write as _;
    let gzip = |body: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(body).unwrap();
        encoder.finish().unwrap()
    };
    let server = Server::with(limited(|l| l.body_bytes = 1000)).await;
    let post = async |coding: &str, body: Vec<u8>| {
        let coding = format!("content-encoding: {coding}");
        server.send("POST /students", &["content-type: application/json", &coding], body).await
    };
    let ada = br#"{"firstName":"Ada","lastName":"Lovelace"}"#;
    assert_eq!(post("gzip", gzip(ada)).await.status, 201);
    assert_eq!(post("zstd", zstd::stream::encode_all(&ada[..], 3).unwrap()).await.status, 201);
    let large = [&ada[..], &[b' '; 1000]].concat();
    assert!(post("gzip", gzip(&large)).await.problem(413).contains("1000 bytes"));
    assert!(post("gzip", ada.to_vec()).await.problem(400).contains("Content-Encoding"));
    let reply = post("br", ada.to_vec()).await;
    assert!(reply.problem(415).contains("gzip, zstd"));
    assert_eq!(reply.header("accept-encoding"), "gzip, zstd");
    assert_eq!(server.metrics.http.refused_count("content_encoding"), 2);
}

#[tokio::test]
async fn a_body_that_never_ends_is_408() {
    let server = Server::with(limited(|l| l.body = Duration::from_millis(50))).await;
    let headers = ["content-type: application/json", "content-length: 5"];
    server.send("POST /students", &headers, "{").await.problem(408);
}

#[tokio::test]
async fn bodies_share_a_bounded_room() {
    let server = Server::with(limited(|l| l.bodies_bytes = 100)).await;
    let json = "content-type: application/json";
    let reply = server.send("POST /students", &[json], &"x".repeat(101)).await;
    reply.problem(503);
    assert_eq!(reply.header("retry-after"), "1");
    server.send("POST /students", &[json], &"x".repeat(100)).await.problem(400);
    server.send("POST /students", &[json], &"x".repeat(100)).await.problem(400);
}

#[tokio::test]
async fn connections_over_the_limit_are_told_so() {
    let server = Server::with(limited(|l| l.connections = 2)).await;
    let held = (server.open("").await, server.open("").await);
    until("both are open", || server.metrics.http.connections.get() == 2).await;
    until_closed(&server, "").await.problem(503);
    assert_eq!(server.metrics.http.refused_count("connections"), 1);
    drop(held);
    until("there is room again", || server.metrics.http.connections.get() == 0).await;
    assert_eq!(server.get("/livez").await.status, 200);
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_off() {
    let server = Server::with(limited(|l| l.write_stall = Duration::from_millis(100))).await;
    // The response is larger than the socket buffers.
    server.apply([joined(member(1))]);
    server.apply((0..20_000).map(|i| offered(instance(1, &format!("{i:0200}"), "web"))));
    let _held = server.open("GET /services HTTP/1.1\r\nhost: n1\r\n\r\n").await;
    until("the cut is counted", || server.metrics.http.ended_count("write_stall") == 1).await;
    until("the connection is gone", || server.metrics.http.connections.get() == 0).await;
}

#[tokio::test]
async fn unread_responses_share_a_bounded_budget() {
    // One of these responses fits into the budget, two do not.
    let server = Server::with(Setup { response_bytes: 9_000_000, ..Setup::default() }).await;
    server.apply([joined(member(1))]);
    server.apply((0..20_000).map(|i| offered(instance(1, &format!("{i:0100}"), "web"))));
    let whole = server.get("/services").await;
    assert_eq!(whole.status, 200);
    assert!((4_600_000..9_000_000).contains(&whole.body.len()), "{} bytes", whole.body.len());
    assert_eq!(whole.json()["services"]["web"].as_array().unwrap().len(), 20_000);
    let unread = server.open("GET /services HTTP/1.1\r\nhost: n1\r\n\r\n").await;
    within(async { while server.get("/services").await.status != 503 {} }).await;
    server.get("/services").await.problem(503);
    let stream = server.send("GET /services/watch", &[], "").await;
    assert_eq!((stream.status, stream.body.as_str()), (200, "0\r\n\r\n"), "it ends before it begins");
    assert_eq!(server.get("/livez").await.status, 200, "small answers need no room");
    drop(unread);
}

#[tokio::test]
async fn what_is_no_http_is_counted_and_harms_nobody() {
    let server = Server::start().await;
    until_closed(&server, "\x16\x03\x01\x02\r\n\r\n").await.problem(400);
    until("it is counted", || server.metrics.http.ended_count("malformed") == 1).await;
    assert_eq!(server.get("/livez").await.status, 200);
}

#[tokio::test]
async fn stopping_lets_requests_finish_and_cuts_what_does_not() {
    let server = Server::with(limited(|l| l.drain = Duration::from_millis(50))).await;
    let _silent = server.open("").await;
    let _stuck = server.open("POST /students HTTP/1.1\r\nhost: n1\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n").await;
    until("both are open", || server.metrics.http.connections.get() == 2).await;
    server.stop.send_replace(true);
    within(server.serving).await.unwrap();
    assert_eq!(server.metrics.http.connections.get(), 0);
    assert!(TcpStream::connect(server.address).await.is_err(), "the port is closed");
}

/// Bounds on instances of the cluster and of a node.
const CLUSTER_MAX: usize = 100_000;
const NODE_MAX: usize = 10_000;

#[tokio::test]
async fn the_registration_after_the_last_of_a_cluster_is_refused_and_fills_nothing() {
    let server = Server::start().await;
    for seed in 0..10 {
        let seed = 10 + seed;
        let of_node = (0..NODE_MAX).map(|n| offered(instance(seed, &format!("web-{n}"), "web")));
        server.apply([joined(member(seed))].into_iter().chain(of_node));
    }
    let count = || server.view.read(|table| table.providers_len());
    assert_eq!(count(), CLUSTER_MAX);
    let register = |id: &'static str, query: &'static str| {
        let body = serde_json::json!({"name": "web", "id": id, "port": 80}).to_string();
        let server = &server;
        async move {
            let json = ["content-type: application/json"];
            server.send(&format!("POST /services{query}"), &json, body).await
        }
    };
    for query in ["", "?hold"] {
        let refused = register("mine", query).await.problem(507);
        assert!(refused.contains("100000"), "{refused}");
    }
    assert!(server.registry.is_empty());
    // After a removal, one more instance fits.
    server.apply([withdrawn(10, "web-0")]);
    assert_eq!(register("mine", "").await.status, 200);
    server.apply([offered(instance(11, "another", "web"))]);
    register("other", "").await.problem(507);
    // Replacing an instance adds none, and deregistering is possible.
    assert_eq!(register("mine", "").await.status, 200);
    assert_eq!(server.registry.len(), 1);
    assert_eq!(server.send("DELETE /services/mine", &[], "").await.status, 200);
    assert!(server.registry.is_empty() && count() == CLUSTER_MAX);
}
