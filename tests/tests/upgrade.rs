//! Two versions of the protocol together: the build that ships, and one that speaks a next version (the feature `next`), with a field, a kind of entry
//! and a kind of message that the other does not know.

// In a test, what cannot be unwrapped is the failure.
#![allow(clippy::unwrap_used)]

use std::{ffi::OsStr, time::Duration};

use hearsay_tests::{Cluster as _, Lab, NodeRef, http, other_build, scenario};
use serde_json::json;

const S: Duration = Duration::from_secs(1);

/// Runs a scenario with both builds: the one that ships, and the next one.
fn with_both(test: &str, body: impl FnOnce(&mut Lab, &OsStr, &OsStr)) {
    let Some(next) = other_build(test) else { return };
    scenario(test, |lab| {
        let this = std::env::var_os("NODE_BIN").expect("looked for before");
        body(lab, &this, &next);
    });
}

/// The value of a counter or gauge without labels.
fn metric(lab: &Lab, node: NodeRef, name: &str) -> Option<u64> {
    let metrics = lab.text(node, "/metrics")?;
    metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

#[test]
fn what_only_the_next_version_knows_passes_through_this_one() {
    with_both("what_only_the_next_version_knows_passes_through_this_one", |lab, this, next| {
        let hosts: Vec<_> = (0..3).map(|_| lab.host()).collect();
        // Whatever the first and the last know of each other, they know through the one in the middle.
        hosts[0].deafen(&[&hosts[2]]);
        hosts[2].deafen(&[&hosts[0]]);
        let mut nodes = Vec::new();
        for (i, host) in hosts.iter().enumerate() {
            let is_next = i != 1;
            if is_next {
                lab.go_on_with(next, &[("HEARSAY_NEXT", "1")]);
            } else {
                lab.go_on_with(this, &[]);
            }
            nodes.push(lab.grading(host, &format!("m{}", i + 1)));
        }
        // Equal hashes cover the entries of a kind that the middle does not know; and a header of which a field was lost would not be signed by its owner.
        lab.until(10 * S, "all list all, and know the same", |lab| {
            lab.all_list_all(&nodes) && lab.agree(&nodes)
        });
        // Each heard of a kind of message that it does not know, and of the outer two nobody but the other has sent one.
        lab.until(10 * S, "messages of another version were passed on", |lab| {
            nodes
                .iter()
                .all(|node| metric(lab, *node, "hearsay_unknown_kind_total").is_some_and(|heard| heard > 0))
        });
        for node in &nodes {
            assert_eq!(metric(lab, *node, "hearsay_malformed_total"), Some(0));
            assert_eq!(metric(lab, *node, "hearsay_forged_total"), Some(0));
        }
        // What happens to one is known to the other.
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
        // Up, and down again: who finds a fault in the next version goes back.
        for (step, is_up) in [true, true, true, false, false, false].into_iter().enumerate() {
            let at = step % 3;
            lab.signal(nodes[at], "TERM");
            assert!(lab.ended(nodes[at], 15 * S).success());
            save(lab, nodes[(at + 1) % 3], &mut saved);
            match is_up {
                true => lab.go_on_with(next, &[("HEARSAY_NEXT", "1")]),
                false => lab.go_on_with(this, &[]),
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
    let reply = http::send(lab.address(at), "POST /students/1/grades", &headers, &body, 5 * S).unwrap();
    assert_eq!(reply.status, 201, "{}", reply.body);
    saved.push(title);
}

/// The titles of the grades that were saved, as a node has them.
fn titles(lab: &Lab, node: NodeRef) -> Option<Vec<String>> {
    let student = lab.get(node, "/students/1")?;
    let grades = student["grades"].as_array()?.iter().filter_map(|grade| grade["title"].as_str());
    let mut titles: Vec<String> =
        grades.filter(|title| title.starts_with("Grade ")).map(Into::into).collect();
    titles.sort();
    Some(titles)
}
