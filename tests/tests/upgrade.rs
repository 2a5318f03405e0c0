//! Tests of mixed versions: nodes of the shipped build pass on fields, entries and messages that only a next
//! version knows (`node-broken` with `HEARSAY_NEXT`), and a rolling upgrade and downgrade lose no write.

// In a test, a failed unwrap is the failure.
#![allow(clippy::unwrap_used)]

use std::{ffi::OsStr, time::Duration};

use hearsay_tests::{Cluster as _, Lab, NodeRef, http, other_build, scenario};
use serde_json::json;

const S: Duration = Duration::from_secs(1);

/// Runs a scenario with both builds: the shipped one and the next one.
fn with_both(test: &str, body: impl FnOnce(&mut Lab, &OsStr, &OsStr)) {
    let Some(next) = other_build(test) else { return };
    scenario(test, |lab| {
        let this = std::env::var_os("NODE_BIN").expect("looked for before");
        body(lab, &this, &next);
    });
}

/// Returns a counter or gauge without labels.
fn metric(lab: &Lab, node: NodeRef, name: &str) -> Option<u64> {
    let metrics = lab.text(node, "/metrics")?;
    metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[test]
fn what_only_the_next_version_knows_passes_through_this_one() {
    with_both("what_only_the_next_version_knows_passes_through_this_one", |lab, this, next| {
        let hosts: Vec<_> = (0..3).map(|_| lab.host()).collect();
        // The first and the last node know each other only through the middle one.
        hosts[0].drop_packets_from(&[&hosts[2]]);
        hosts[2].drop_packets_from(&[&hosts[0]]);
        let mut nodes = Vec::new();
        for (i, host) in hosts.iter().enumerate() {
            let is_next = i != 1;
            if is_next {
                lab.use_binary(next, &[("HEARSAY_NEXT", "1")]);
            } else {
                lab.use_binary(this, &[]);
            }
            nodes.push(lab.grading(host, &format!("m{}", i + 1)));
        }
        // Equal hashes cover the entries of a kind that the middle node does not know; a header without one
        // of its fields would fail its signature.
        lab.until(10 * S, "all list all, and know the same", |lab| {
            lab.all_list_all(&nodes) && lab.agree(&nodes)
        });
        // Each received a kind of message that it does not know. Of the outer two, only the other one sends
        // it.
        lab.until(10 * S, "messages of another version were passed on", |lab| {
            nodes
                .iter()
                .all(|node| metric(lab, *node, "hearsay_unknown_kind_total").is_some_and(|heard| heard > 0))
        });
        for node in &nodes {
            assert_eq!(metric(lab, *node, "hearsay_malformed_total"), Some(0));
            assert_eq!(metric(lab, *node, "hearsay_forged_total"), Some(0));
        }
        // Each node sees events of the other one.
        lab.signal(nodes[0], "TERM");
        lab.until(5 * S, "a farewell is known through another version", |lab| {
            nodes[1..].iter().all(|node| lab.sees(*node, "m1").as_deref() == Some("left"))
        });
    });
}

#[test]
fn a_cluster_is_upgraded_node_by_node_and_back_and_loses_nothing() {
    with_both("a_cluster_is_upgraded_node_by_node_and_back_and_loses_nothing", |lab, this, next| {
        let hosts: Vec<_> = (0..3).map(|_| lab.host()).collect();
        let mut nodes: Vec<NodeRef> = hosts.iter().enumerate().map(|(i, host)| begin(lab, host, i)).collect();
        lab.until(10 * S, "all list all", |lab| lab.all_list_all(&nodes));
        let mut saved = Vec::new();
        // Up, and down again: operators downgrade after a fault in the next version.
        for (step, is_up) in [true, true, true, false, false, false].into_iter().enumerate() {
            let at = step % 3;
            lab.signal(nodes[at], "TERM");
            assert!(lab.ended(nodes[at], 15 * S).success());
            save(lab, nodes[(at + 1) % 3], &mut saved);
            match is_up {
                true => lab.use_binary(next, &[("HEARSAY_NEXT", "1")]),
                false => lab.use_binary(this, &[]),
            }
            nodes[at] = begin(lab, &hosts[at], at);
            lab.until(10 * S, "it is back", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
            save(lab, nodes[at], &mut saved);
            lab.until(10 * S, "every node has every grade", |lab| {
                nodes.iter().all(|node| titles(lab, *node).is_some_and(|titles| titles == saved))
            });
        }
        assert_eq!(lab.logged("member failed"), [""; 0]);
    });
}

fn begin(lab: &mut Lab, host: &hearsay_tests::Host, index: usize) -> NodeRef {
    let name = format!("m{}", index + 1);
    lab.start(Some(host), &name, 7500, &["--role", "grading", "--demo", "--name", &name])
}

/// Saves one more grade of a student who has none.
fn save(lab: &Lab, at: NodeRef, saved: &mut Vec<String>) {
    let title = format!("Grade {:02}", saved.len());
    let body = json!({ "title": title, "type": "Quiz", "score": 50 }).to_string();
    let headers = [("content-type", "application/json")];
    let reply = http::send(lab.address(at), "POST /students/1/grades", &headers, &body, 8 * S).unwrap();
    assert_eq!(reply.status, 201, "{}", reply.body);
    saved.push(title);
}

/// Returns the titles of the saved grades, as a node has them.
fn titles(lab: &Lab, node: NodeRef) -> Option<Vec<String>> {
    let student = lab.get(node, "/students/1")?;
    let grades = student["grades"].as_array()?.iter().filter_map(|grade| grade["title"].as_str());
    let mut titles: Vec<String> =
        grades.filter(|title| title.starts_with("Grade ")).map(Into::into).collect();
    titles.sort();
    Some(titles)
}
