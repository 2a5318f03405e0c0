//! Tests of user events over real nodes: each node lists an event once, a blocking list wakes, filters
//! select nodes, a node lists nothing from before its start, a healed partition loses none, and the command
//! line fires and watches.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::Stdio,
    time::Instant,
};

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef,
    registry::{all_see_all, cluster, plain},
    scenario,
};
use serde_json::{Value, json};

use super::{S, put};

/// Fires an event at the node of a host. Returns its id.
fn fire(host: &Host, path: &str, payload: &str) -> String {
    let reply = host.send(7500, &format!("PUT /v1/event/fire/{path}"), payload);
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    reply.json()["ID"].as_str().unwrap().to_owned()
}

/// Ids of the events that a node lists.
fn listed(lab: &Lab, node: NodeRef) -> Vec<String> {
    let events = lab.get(node, "/v1/event/list").unwrap_or_default();
    let events = events.as_array().cloned().unwrap_or_default();
    events.iter().map(|event| event["ID"].as_str().unwrap().to_owned()).collect()
}

/// Waits until each of these nodes lists exactly these events, in any order.
fn all_list(lab: &Lab, nodes: &[NodeRef], ids: &[String]) {
    let mut expected = ids.to_vec();
    expected.sort();
    lab.until(30 * S, "all list the events", |lab| {
        nodes.iter().all(|node| {
            let mut found = listed(lab, *node);
            found.sort();
            found == expected
        })
    });
}

#[test]
fn each_of_five_nodes_lists_an_event_once_and_a_waiting_list_wakes() {
    scenario("events::each_of_five_nodes_lists_an_event_once_and_a_waiting_list_wakes", |lab| {
        let (hosts, nodes) = cluster(lab, 5, &[]);
        let mut waiting = TcpStream::connect(lab.address(nodes[4])).unwrap();
        write!(waiting, "GET /v1/event/list?name=deploy&index=1&wait=60s HTTP/1.0\r\n\r\n").unwrap();
        let mut ids = vec![fire(&hosts[0], "deploy", "v2")];
        let mut answer = String::new();
        waiting.set_read_timeout(Some(10 * S)).unwrap();
        waiting.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("\"Payload\":\"djI=\"") && answer.contains(&ids[0]), "{answer}");
        for round in 0..20 {
            ids.push(fire(&hosts[round % 5], &format!("e{round}"), ""));
        }
        all_list(lab, &nodes, &ids);
        for node in &nodes {
            let events = lab.get(*node, "/v1/event/list?name=deploy").unwrap();
            let (expected, found) = (json!("deploy"), &events[0]);
            assert_eq!((&found["Name"], &found["ID"]), (&expected, &json!(ids[0])));
        }

        // A node that joins later, and one that restarts, list only what is fired from then on.
        let host = lab.host();
        let late = plain(lab, &host, 5, &[]);
        lab.crash(nodes[1]);
        let again = plain(lab, &hosts[1], 1, &[]);
        let all = [nodes[0], again, nodes[2], nodes[3], nodes[4], late];
        all_see_all(lab, &all);
        let after = fire(&host, "after", "");
        all_list(lab, &[late, again], std::slice::from_ref(&after));
        ids.push(after);
        all_list(lab, &[nodes[0], nodes[2], nodes[3], nodes[4]], &ids);
    });
}

#[test]
fn filters_select_the_nodes_that_list_an_event() {
    scenario("events::filters_select_the_nodes_that_list_an_event", |lab| {
        let (hosts, nodes) = cluster(lab, 3, &[]);
        for (host, tag) in [(0, "v1"), (1, "v2")] {
            put(
                &hosts[host],
                "/v1/agent/service/register",
                &json!({ "Name": "web", "Port": 8080, "Tags": [tag] }),
            );
        }
        let mut ids = vec![Vec::new(); 3];
        for (query, expected) in [
            ("node=^m[02]$", vec![0, 2]),
            ("service=^web$", vec![0, 1]),
            ("service=^web$&tag=^v2$", vec![1]),
            ("node=^m2$&service=^web$", vec![]),
            ("", vec![0, 1, 2]),
        ] {
            let id = fire(&hosts[2], &format!("e?{query}"), "");
            expected.into_iter().for_each(|at: usize| ids[at].push(id.clone()));
        }
        // The last event reaches all, so the others have arrived wherever they are listed.
        for (node, ids) in nodes.iter().zip(&ids) {
            all_list(lab, &[*node], ids);
        }
        let bad = hosts[0].send(7500, "PUT /v1/event/fire/e?node=(", "");
        assert_eq!(bad.status, 400, "{bad:?}");
    });
}

#[test]
fn an_event_that_was_fired_beyond_a_partition_arrives_when_it_heals() {
    scenario("events::an_event_that_was_fired_beyond_a_partition_arrives_when_it_heals", |lab| {
        let (hosts, nodes) = cluster(lab, 3, &[]);
        let (first, rest) = hosts.split_first().unwrap();
        first.drop_packets_from(&[&rest[0], &rest[1]]);
        rest.iter().for_each(|host| host.drop_packets_from(&[first]));
        lab.until(20 * S, "both sides are apart", |lab| {
            lab.sees(nodes[1], "m0").as_deref() == Some("failed")
                && lab.sees(nodes[0], "m1").as_deref() == Some("failed")
        });
        let ids = [fire(first, "left", ""), fire(&rest[0], "right", "")];
        all_list(lab, &nodes[..1], &ids[..1]);
        all_list(lab, &nodes[1..], &ids[1..]);
        hosts.iter().for_each(Host::drop_nothing);
        all_list(lab, &nodes, &ids);
    });
}

#[test]
fn the_command_line_fires_lists_and_watches_events() {
    scenario("events::the_command_line_fires_lists_and_watches_events", |lab| {
        let (hosts, nodes) = cluster(lab, 2, &[]);
        let command = |lab: &Lab, at: usize, arguments: &[&str]| {
            let url = format!("http://127.0.0.1:{}", lab.address(nodes[at]).port());
            let name = format!("m{at}");
            let mut command = lab.command(Some(&hosts[at]), &name, &[&["event"], arguments].concat());
            command.args(["--node", &url]);
            command
        };
        let mut watch = command(lab, 1, &["watch", "deploy", "--json"]);
        let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        let (sender, received) = std::sync::mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        // The watch prints events from its start on, which is not to be seen from outside.
        let mut fired = Vec::new();
        let began = Instant::now();
        let first = loop {
            let output = command(lab, 0, &["fire", "deploy", "--payload", "v2"]).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            fired.push(String::from_utf8(output.stdout).unwrap().trim().to_owned());
            if let Ok(line) = received.recv_timeout(S) {
                break line;
            }
            assert!(began.elapsed() < 20 * S, "the watch prints nothing: {}", lab.describe());
        };
        let mut printed = vec![first];
        let last = command(lab, 0, &["fire", "deploy", "--for-node", "^m1$"]).output().unwrap();
        fired.push(String::from_utf8(last.stdout).unwrap().trim().to_owned());
        while !printed.last().unwrap().contains(fired.last().unwrap()) {
            printed.push(received.recv_timeout(10 * S).unwrap());
        }
        watch.kill().unwrap();
        watch.wait().unwrap();
        let printed: Vec<Value> = printed.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let ids: Vec<&str> = printed.iter().map(|event| event["ID"].as_str().unwrap()).collect();
        assert_eq!(ids, fired[fired.len() - ids.len()..], "each once, in order");
        assert_eq!(printed[0]["Payload"], "djI=");

        let run = |arguments: &[&str]| {
            let output = command(lab, 1, arguments).output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap())
        };
        let (code, table) = run(&["list", "deploy"]);
        assert_eq!((code, table.lines().count()), (Some(0), fired.len() + 1), "{table}");
        assert_eq!(run(&["fire", ""]).0, Some(2));
        assert_eq!(run(&["fire", "x", "--payload", &"x".repeat(513)]).0, Some(2));
        assert_eq!(run(&["fire", "x", "--for-tag", "v1"]).0, Some(2));
        assert_eq!(run(&["fire", "x", "--for-node", "("]).0, Some(1));
    });
}
