//! Tests of the `h2ping` check: an acknowledged PING passes, and a server without HTTP/2, a silent one, and
//! one that closes the connection are critical.

use super::{grpc::serve, *};

fn h2ping(address: SocketAddr) -> CheckKind {
    CheckKind::H2ping { address: address.to_string(), tls: CheckTls::default() }
}

#[tokio::test]
async fn an_acknowledged_ping_passes() {
    let server = Server::start(serve).await;
    let outcome = run_once(h2ping(server.address), PATIENCE).await;
    assert_eq!(outcome, Outcome::passing(format!("{} acknowledged an HTTP/2 PING", server.address)));
}

#[tokio::test]
async fn a_server_without_http2_is_critical() {
    let server = Server::answering("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let outcome = run_once(h2ping(server.address), PATIENCE).await;
    assert_eq!(outcome.health, Health::Critical, "{}", outcome.output);
    assert!(outcome.output.contains("acknowledged no HTTP/2 PING: "), "{}", outcome.output);
    let closing = Server::start(|stream| async { drop(stream) }).await;
    let outcome = run_once(h2ping(closing.address), PATIENCE).await;
    assert_eq!(outcome.health, Health::Critical, "{}", outcome.output);
    let silent = Server::start(|mut stream| async move {
        while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let outcome = run_once(h2ping(silent.address), Duration::from_millis(200)).await;
    assert_eq!(outcome, Outcome::critical("no answer within 200ms"));
}

#[tokio::test]
async fn a_server_that_ends_is_noticed() {
    let mut node = Node::new();
    let server = Server::start(serve).await;
    let _check = node.start(often(h2ping(server.address)));
    node.change_to(Health::Passing).await;
    server.kill().await;
    node.change_to(Health::Critical).await;
}
