//! `udp` and `h2ping` checks of real servers: both pass, and the end of a server is known on every node.

use std::net::{TcpListener, UdpSocket};

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef,
    registry::{all_have, cluster, register},
    scenario,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::S;

const UDP: u16 = 5300;
const HTTP2: u16 = 8443;

/// Starts a server of datagrams that answers none.
fn serve_udp(host: &Host) -> UdpSocket {
    host.enter(|| UdpSocket::bind(("127.0.0.1", UDP)).expect("a free port"))
}

/// Starts a server of HTTP/2 with prior knowledge, which serves until the runtime is dropped.
fn serve_http2(host: &Host) -> Runtime {
    let listener = host.enter(|| TcpListener::bind(("127.0.0.1", HTTP2)).expect("a free port"));
    listener.set_nonblocking(true).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = {
        let _entered = runtime.enter();
        tokio::net::TcpListener::from_std(listener).unwrap()
    };
    runtime.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await?;
                // Requests are dropped; PING frames are acknowledged while this waits for one.
                while let Some(request) = connection.accept().await {
                    drop(request?);
                }
                Ok::<_, h2::Error>(())
            });
        }
    });
    runtime
}

/// Returns kind and status of the only check of an instance, as a node lists it.
fn check(lab: &Lab, node: NodeRef, service: &str) -> (Value, Value) {
    let checks = lab.get(node, &format!("/v1/health/checks/{service}")).unwrap_or_default();
    (checks[0]["Type"].clone(), checks[0]["Status"].clone())
}

/// Returns the only check of an instance, as its holder shows it.
fn held(lab: &Lab, node: NodeRef, service: &str) -> Value {
    let list = lab.get(node, "/registrations").unwrap_or_default();
    let mut list = list["registrations"].as_array().into_iter().flatten();
    let found = list.find(|registration| registration["name"] == service);
    found.map(|registration| registration["checks"][0].clone()).unwrap_or_default()
}

#[test]
fn the_end_of_a_server_of_datagrams_or_http2_is_known_everywhere() {
    scenario("kinds::the_end_of_a_server_of_datagrams_or_http2_is_known_everywhere", |lab| {
        let (hosts, nodes) = cluster(lab, 2, &[]);
        let (udp, http2) = (serve_udp(&hosts[0]), serve_http2(&hosts[0]));
        let times = json!({"interval": "500ms", "timeout": "200ms"});
        let mut native = times.clone();
        native["udp"] = json!(true);
        register(&hosts[0], &json!({"name": "names", "port": UDP, "check": native}));
        let target = format!("127.0.0.1:{HTTP2}");
        let consul = json!({"Name": "pages", "Port": HTTP2,
            "Check": {"H2PING": target, "H2PingUseTLS": false, "Interval": "1s", "Timeout": "500ms"}});
        let reply = hosts[0].send(7500, "PUT /v1/agent/service/register", &consul.to_string());
        assert_eq!(reply.status, 200, "{reply:?}");
        let both_have = |lab: &Lab, count| ["names", "pages"].iter().all(|s| all_have(lab, &nodes, s, count));
        lab.until(10 * S, "both pass on both nodes", |lab| both_have(lab, 1));
        for (service, kind) in [("names", "udp"), ("pages", "h2ping")] {
            assert_eq!(check(lab, nodes[1], service), (json!(kind), json!("passing")));
            assert_eq!(held(lab, nodes[0], service)["kind"], kind);
        }
        drop(udp);
        lab.until(10 * S, "a refused datagram is known", |lab| all_have(lab, &nodes, "names", 0));
        assert!(all_have(lab, &nodes, "pages", 1));
        drop(http2);
        lab.until(10 * S, "the end of HTTP/2 is known", |lab| both_have(lab, 0));
        assert_eq!(check(lab, nodes[1], "pages").1, "critical");
        let _again = (serve_udp(&hosts[0]), serve_http2(&hosts[0]));
        lab.until(10 * S, "both pass again", |lab| both_have(lab, 1));
        // A server that speaks HTTP/2 with prior knowledge alone fails with TLS, the default of this kind.
        let mut tls = times;
        tls["h2ping"] = json!(true);
        register(&hosts[0], &json!({"name": "sealed", "port": HTTP2, "check": tls}));
        lab.until(10 * S, "the handshake fails", |lab| {
            let check = held(lab, nodes[0], "sealed");
            check["output"].as_str().is_some_and(|output| output.starts_with("TLS handshake failed"))
        });
    });
}
