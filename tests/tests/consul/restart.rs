//! Tests of a restart: the node holds requests until it lists the instances of its peers, at most 5 s, so
//! that clients do not get an empty list.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef, http,
    registry::{cluster, plain},
    scenario,
};
use serde_json::json;

use super::requests::{S, passing, put};

/// Longest time for which the node holds a request while it starts.
const HOLD_MAX: Duration = Duration::from_secs(5);

/// Sends a GET until a connection succeeds, and returns the first answer.
fn first_answer(address: SocketAddr, path: &str) -> http::Reply {
    let begun = Instant::now();
    loop {
        match http::send(address, &format!("GET {path}"), &[], "", 20 * S) {
            Ok(answer) => return answer,
            Err(error) => assert!(begun.elapsed() < 20 * S, "no answer to {path}: {error:?}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Starts m0 and m1, registers `web-1` with m1, and stops m0 when it lists the instance.
fn with_m0_stopped(lab: &mut Lab) -> (Vec<Host>, Vec<NodeRef>) {
    let (hosts, nodes) = cluster(lab, 2, &[]);
    let check = json!({ "TTL": "1h", "Status": "passing" });
    let body = json!({ "Name": "web", "ID": "web-1", "Address": "10.77.9.9", "Port": 8080, "Check": check });
    put(&hosts[1], "/v1/agent/service/register", &body);
    lab.until(10 * S, "m0 lists it", |lab| passing(lab, nodes[0], "web") == ["web-1"]);
    lab.leave(nodes[0]);
    lab.ended(nodes[0], 10 * S);
    (hosts, nodes)
}

#[test]
fn the_first_answers_of_a_restarted_node_list_the_instances_of_its_peers() {
    scenario("restart::the_first_answers_of_a_restarted_node_list_the_instances_of_its_peers", |lab| {
        let (hosts, nodes) = with_m0_stopped(lab);
        let address = lab.address(nodes[0]);
        let paths = [
            "/v1/health/service/web?passing",
            "/v1/catalog/services",
            "/v1/catalog/service/web",
            "/sd/prometheus",
        ];
        std::thread::scope(|scope| {
            // The requests begin before the node listens.
            let answers = paths.map(|path| (path, scope.spawn(move || first_answer(address, path))));
            plain(lab, &hosts[0], 0, &[]);
            for (path, answer) in answers {
                let answer = answer.join().unwrap();
                assert!(answer.status == 200 && answer.body.contains("web"), "{path}: {answer:?}");
            }
        });
    });
}

#[test]
fn a_restarted_node_without_its_peers_answers_after_a_bound() {
    scenario("restart::a_restarted_node_without_its_peers_answers_after_a_bound", |lab| {
        let (hosts, nodes) = with_m0_stopped(lab);
        lab.crash(nodes[1]);
        let begun = Instant::now();
        let node = plain(lab, &hosts[0], 0, &[]);
        let answer = first_answer(lab.address(node), "/v1/health/service/web");
        assert_eq!((answer.status, answer.body.trim()), (200, "[]"));
        let held = begun.elapsed();
        // The start of a process takes time, too.
        assert!((HOLD_MAX..3 * HOLD_MAX).contains(&held), "{held:?}");
        lab.until(5 * S, "it is ready", |lab| {
            lab.get(node, "/readyz").is_some_and(|it| it["status"] == "ready")
        });
    });
}
