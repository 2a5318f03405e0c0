//! Helpers for tests of Consul's interface: send a PUT, list the passing instances of a service, and read the
//! index for a blocking query.

use std::time::Duration;

use hearsay_tests::{Host, Lab, NodeRef};
use serde_json::Value;

pub(crate) const S: Duration = Duration::from_secs(1);

/// Sends a PUT to the node at port 7500 of a host. The answer is 200 and empty.
pub(crate) fn put(host: &Host, path: &str, body: &Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let reply = host.send(7500, &format!("PUT {path}"), &body);
    assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{path}: {reply:?}");
}

/// Returns the ids of the passing instances of a service that a node lists.
pub(crate) fn passing(lab: &Lab, node: NodeRef, service: &str) -> Vec<String> {
    let entries = lab.get(node, &format!("/v1/health/service/{service}?passing")).unwrap_or_default();
    let entries = entries.as_array().cloned().unwrap_or_default();
    entries.iter().map(|entry| entry["Service"]["ID"].as_str().unwrap().to_owned()).collect()
}

/// Returns the index of a blocking query.
pub(crate) fn index_of(host: &Host, path: &str) -> u64 {
    host.send(7500, &format!("GET {path}"), "").header("x-consul-index").unwrap().parse().unwrap()
}
