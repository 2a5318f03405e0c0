//! Tests of the address policy: no check connects to a forbidden address, such as a link-local or multicast
//! one, or to the node itself.

use super::*;

/// Returns a check of each kind that connects to an address.
fn kinds(address: &str) -> [CheckKind; 7] {
    let address = address.to_owned();
    let url = format!("http://{address}/latest/meta-data");
    [
        CheckKind::Http(HttpCheck { url, ..HttpCheck::default() }),
        CheckKind::Tcp { address: address.clone(), tls: CheckTls::default() },
        CheckKind::Tcp { address: address.clone(), tls: CheckTls { is_used: true, ..CheckTls::default() } },
        CheckKind::Udp { address: address.clone() },
        CheckKind::H2ping { address: address.clone(), tls: CheckTls::default() },
        CheckKind::Grpc { address: address.clone(), service: String::new(), tls: CheckTls::default() },
        CheckKind::Watch { address },
    ]
}

#[tokio::test]
async fn no_kind_calls_a_forbidden_address() {
    let mut node = Node::new();
    for address in
        ["169.254.169.254:80", "224.0.0.251:80", "[fe80::1]:80", "0.0.0.0:80", "[::ffff:169.254.169.254]:80"]
    {
        for kind in kinds(address) {
            let check = node.begin(spec(kind.clone()), Begin::Replaced(state(Health::Passing)));
            let state = node.change_to(Health::Critical).await;
            assert!(state.output.starts_with("not called: "), "{kind:?}: {}", state.output);
            drop(check);
        }
    }
    assert!(node.metric("check_refused") >= 35);
}

#[tokio::test]
async fn no_kind_calls_this_node() {
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let port = server.address.port();
    let mut node = Node::with(|context| context.listeners = vec![SocketAddr::from(([0, 0, 0, 0], port))]);
    for host in ["127.0.0.1", "localhost", "[::1]", "127.1.2.3", "[::ffff:127.0.0.1]"] {
        for kind in kinds(&format!("{host}:{port}")) {
            let check = node.begin(spec(kind.clone()), Begin::Replaced(state(Health::Passing)));
            let state = node.change_to(Health::Critical).await;
            assert!(state.output.contains("is an address of a node"), "{kind:?}: {}", state.output);
            drop(check);
        }
    }
    assert!(server.requests().is_empty());
}
