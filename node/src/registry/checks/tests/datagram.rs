//! Tests of the `udp` check: an answer and silence pass, a refusal is critical, and of several addresses one
//! that does not refuse suffices.

use std::net::UdpSocket as StdSocket;

use tokio::net::UdpSocket;

use super::*;

fn udp(address: impl ToString) -> CheckKind {
    CheckKind::Udp { address: address.to_string() }
}

/// Returns an address of loopback at which nothing receives datagrams.
fn refusing() -> SocketAddr {
    StdSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn an_answer_passes_before_the_time_is_over() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        let (length, from) = server.recv_from(&mut [0; 1024]).await.unwrap();
        server.send_to(&[7; 4096], from).await.unwrap();
        length
    });
    let outcome = run_once(udp(address), PATIENCE).await;
    assert_eq!(outcome, Outcome::passing(format!("{address} answered")));
    assert!(answering.await.unwrap() > 0, "the datagram is not empty");
}

#[tokio::test]
async fn silence_until_the_timeout_passes() {
    let server = StdSocket::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let outcome = run_once(udp(address), Duration::from_millis(100)).await;
    assert_eq!(outcome, Outcome::passing(format!("{address} neither answered nor refused within 100ms")));
}

#[tokio::test]
async fn a_refused_datagram_is_critical_at_once() {
    let address = refusing();
    let outcome = run_once(udp(address), PATIENCE).await;
    assert_eq!(outcome.health, Health::Critical, "{}", outcome.output);
    assert!(outcome.output.starts_with(&format!("{address} cannot be reached: ")), "{}", outcome.output);
}

#[tokio::test]
async fn an_answer_of_another_address_does_not_count() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(async move {
        let (_, from) = server.recv_from(&mut [0; 1024]).await.unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        other.send_to(b"answer", from).await.unwrap();
    });
    let outcome = run_once(udp(address), Duration::from_millis(300)).await;
    assert!(outcome.output.contains("neither answered"), "{}", outcome.output);
}

#[tokio::test]
async fn the_next_address_of_a_name_is_tried_if_one_refuses() {
    // `localhost` is 127.0.0.1 and then ::1.
    let Ok(server) = StdSocket::bind("[::1]:0") else { return };
    let port = server.local_addr().unwrap().port();
    let outcome = run_once(udp(format!("localhost:{port}")), Duration::from_secs(2)).await;
    assert_eq!(outcome.health, Health::Passing, "{}", outcome.output);
    assert!(outcome.output.starts_with("[::1]:"), "{}", outcome.output);
}

#[tokio::test]
async fn the_status_follows_the_server() {
    let mut node = Node::new();
    let address = refusing();
    let spec = CheckSpec { timeout: Duration::from_millis(50), ..often(udp(address)) };
    let _check = node.begin(spec, Begin::Replaced(state(Health::Passing)));
    node.change_to(Health::Critical).await;
    let server = StdSocket::bind(address).unwrap();
    node.change_to(Health::Passing).await;
    drop(server);
    node.change_to(Health::Critical).await;
}
