//! Tests of all web pages of real nodes in headless Chromium. This file has their common helpers: they start
//! nodes and the browser, write data, and check that the browser contacted only the node.
//!
//! | file | what |
//! | --- | --- |
//! | `cluster` | the cluster page while nodes die |
//! | `tour` | a person keeps the grade book, by mouse and by keys, while grading nodes die |
//! | `log` | a person reads the log while it is written |
//! | `hostile` | markup, scripts and hidden characters wherever a stranger can put them |
//! | `services` | the pages of services: registrations are followed, drained and ended; what programs say stays text |
//! | `foreign` | a page of another origin, and one whose name comes to lead to a node, try all that a page can |
//! | `looks` | both themes, wide and narrow: contrast, labels, focus; and the pictures in `docs` |

mod cluster;
mod foreign;
mod hostile;
mod log;
mod looks;
mod services;
mod tour;

use std::time::Duration;

use hearsay_tests::{
    Browser, Cluster, Lab, NodeRef,
    http::{self, Reply},
    scenario,
};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);
/// Address of the portal: the first node.
const HERE: &str = "http://127.0.0.1:7500";

/// Starts nodes on loopback that see each other: names with roles, and further options.
fn start(lab: &mut Lab, nodes: &[(&str, &str, &[&str])]) -> Vec<NodeRef> {
    let start = |(i, (name, roles, more)): (usize, &(&str, &str, &[&str]))| {
        let mut arguments = vec!["--no-mdns", "--demo", "--name", name];
        if !roles.is_empty() {
            arguments.extend(["--role", roles]);
        }
        arguments.extend_from_slice(more);
        let node = lab.start(None, &format!("m{}", i + 1), 7500 + i as u16, &arguments);
        lab.until(5 * S, "it answers", |lab| lab.get(node, "/members").is_some());
        node
    };
    let started: Vec<NodeRef> = nodes.iter().enumerate().map(start).collect();
    lab.until(5 * S, "all see all", |lab| {
        started.iter().all(|n| nodes.iter().all(|(name, ..)| lab.sees(*n, name).as_deref() == Some("alive")))
    });
    started
}

/// Starts nodes as [`start`] does, with names from `m1`.
fn nodes(lab: &mut Lab, roles: &[&str]) -> Vec<NodeRef> {
    let names: Vec<String> = (1..=roles.len()).map(|i| format!("m{i}")).collect();
    let nodes: Vec<(&str, &str, &[&str])> =
        names.iter().zip(roles).map(|(name, roles)| (name.as_str(), *roles, &[][..])).collect();
    start(lab, &nodes)
}

/// Starts a browser for this scenario.
fn browser(lab: &Lab) -> Browser {
    let mut browser = Browser::start(&lab.dir().join("browser"));
    browser.view(1280, false);
    browser
}

/// Sends JSON as a program does. Waits longer than the time after which the node answers "indeterminate".
fn post(lab: &Lab, to: NodeRef, path: &str, body: &Value) -> Reply {
    let headers = [("content-type", "application/json")];
    let reply = http::send(lab.address(to), &format!("POST {path}"), &headers, &body.to_string(), 8 * S);
    reply.unwrap_or_else(|error| panic!("POST {path}: {error:?}\n{}", lab.describe()))
}

/// Writes a record to the log.
fn record(lab: &Lab, to: NodeRef, service: &str, level: &str, message: &str) {
    let body = json!({ "service": service, "level": level, "message": message });
    let reply = post(lab, to, "/log", &body);
    assert!(reply.status < 300, "{}", reply.body);
}

/// Checks that only the node itself was contacted, nothing opened, and the browser had no complaints except
/// about error statuses.
fn nothing_strange(browser: &mut Browser) {
    let strange = |objection: &String| !objection.contains("the server responded with a status of");
    let objections: Vec<String> = browser.objections().into_iter().filter(strange).collect();
    assert_eq!(objections, Vec::<String>::new());
    assert_eq!(browser.origins(), [HERE.to_owned()].into());
    assert_eq!(browser.opened(), Vec::<String>::new());
}
