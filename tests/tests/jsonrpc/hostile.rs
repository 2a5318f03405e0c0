//! Hostile clients: half lines, unread answers, thousands of notifications, batches of writes. Their
//! connections end and are counted, and other clients are answered meanwhile.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    process::Stdio,
    time::Instant,
};

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef,
    clients::{command_on, find_program},
    scenario,
};
use serde_json::{Value, json};

use super::{BATCH_MAX, S, curl, lines, request, start};

/// Connections with half a line. With the others they take less than the share of one host.
const HALF_LINES: usize = 60;

/// Returns a counter of the node without roles.
fn refused(lab: &Lab, node: NodeRef, reason: &str) -> u64 {
    let name = format!("hearsay_jsonrpc_refused_total{{reason=\"{reason}\"}} ");
    let text = lab.text(node, "/metrics").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0)
}

fn connect(host: &Host) -> TcpStream {
    host.enter(|| TcpStream::connect((Ipv4Addr::LOCALHOST, 7800)).unwrap())
}

/// Fails unless another client is answered soon.
fn other_is_answered(host: &Host) {
    let begun = Instant::now();
    let answers = lines(host, b"{\"method\":\"members.list\",\"params\":[],\"id\":1}\n");
    assert!(answers[0]["result"].is_object() && begun.elapsed() < 5 * S, "{answers:?}");
}

#[test]
fn half_lines_and_unread_answers_end_with_a_reason() {
    scenario("hostile::half_lines_and_unread_answers_end_with_a_reason", |lab| {
        let (hosts, nodes) = start(lab);
        let mut halves: Vec<TcpStream> = (0..HALF_LINES).map(|_| connect(&hosts[0])).collect();
        for half in &mut halves {
            half.write_all(b"{\"method\":\"why\",\"params\":[\"").unwrap();
        }
        // The node reads no further request before its answer is sent, so at last this client cannot write.
        let mut unread = connect(&hosts[0]);
        unread.set_write_timeout(Some(S)).unwrap();
        let many = "{\"method\":\"members.list\",\"params\":[],\"id\":1}\n".repeat(1000);
        while unread.write_all(many.as_bytes()).is_ok() {}
        other_is_answered(&hosts[0]);
        for mut half in halves {
            half.set_read_timeout(Some(30 * S)).unwrap();
            let mut text = String::new();
            half.read_to_string(&mut text).unwrap();
            assert!(text.contains("took too long"), "{text}");
        }
        lab.until(20 * S, "they are counted, and their connections are gone", |lab| {
            let gauge = lab.text(nodes[0], "/metrics").unwrap_or_default();
            refused(lab, nodes[0], "line_time") == HALF_LINES as u64
                && refused(lab, nodes[0], "write_stall") == 1
                && gauge.lines().any(|line| line == "hearsay_jsonrpc_connections 0")
        });
    });
}

#[test]
fn a_line_that_is_too_long_is_answered_although_it_goes_on() {
    scenario("hostile::a_line_that_is_too_long_is_answered_although_it_goes_on", |lab| {
        let (hosts, nodes) = start(lab);
        for _ in 0..20 {
            let answers =
                lines(&hosts[0], format!("{{\"method\":\"{}\"}}\n", "a".repeat(900_000)).as_bytes());
            let error = answers[0]["error"].as_str().unwrap_or_default();
            assert!(error.contains("longer than 262144 bytes") && error.ends_with("(-32600)"), "{answers:?}");
        }
        lab.until(5 * S, "all are counted", |lab| refused(lab, nodes[0], "line_bytes") == 20);
    });
}

#[test]
fn thousands_of_notifications_keep_no_client_waiting() {
    scenario("hostile::thousands_of_notifications_keep_no_client_waiting", |lab| {
        let (hosts, nodes) = start(lab);
        let write = json!({ "method": "students.add", "params": ["A", "Notified"], "id": null });
        let quiet = json!({ "method": "foobar", "params": [], "id": null });
        let text = format!("{quiet}\n").repeat(200) + &format!("{write}\n");
        let text = text.repeat(100) + "{\"method\":\"members.list\",\"params\":[],\"id\":1}\n";
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| lines(&hosts[0], text.as_bytes()));
            while !flood.is_finished() {
                other_is_answered(&hosts[0]);
            }
            let answers = flood.join().unwrap();
            assert!(answers.len() == 1 && answers[0]["result"].is_object(), "{answers:?}");
        });
        let written = lab.get(nodes[1], "/students?q=Notified&limit=1000").unwrap();
        assert_eq!(written.as_array().unwrap().len(), 100);
    });
}

#[test]
fn batches_of_writes_are_carried_out_beside_other_clients() {
    const TEST: &str = "hostile::batches_of_writes_are_carried_out_beside_other_clients";
    if find_program(TEST, "curl", None).is_none() {
        return;
    }
    scenario(TEST, |lab| {
        let (hosts, nodes) = start(lab);
        let batch = vec![request("students.add", &json!(["A", "Batched"])); BATCH_MAX];
        let file = lab.dir().join("batch");
        std::fs::write(&file, json!(batch).to_string()).unwrap();
        let mut clients: Vec<_> = (0..4)
            .map(|_| {
                let mut curl = command_on(&hosts[0], "curl");
                curl.args(["-sS", "-H", "content-type: application/json", "http://127.0.0.1:7500/rpc"]);
                curl.arg("--data-binary").arg(format!("@{}", file.display())).stdout(Stdio::piped());
                curl.spawn().unwrap()
            })
            .collect();
        while clients.iter_mut().any(|client| client.try_wait().unwrap().is_none()) {
            let begun = Instant::now();
            let (status, _) =
                curl(lab, &hosts[0], &[], request("members.list", &json!({})).to_string().as_bytes());
            assert!(status == 200 && begun.elapsed() < 5 * S);
        }
        for client in clients {
            let answers: Value = serde_json::from_slice(&client.wait_with_output().unwrap().stdout).unwrap();
            let done = answers.as_array().unwrap().iter().filter(|answer| answer["result"]["id"].is_number());
            assert_eq!(done.count(), BATCH_MAX, "{answers}");
        }
        let written = lab.get(nodes[1], "/students?q=Batched&limit=1000").unwrap();
        assert_eq!(written.as_array().unwrap().len(), 4 * BATCH_MAX);
    });
}
