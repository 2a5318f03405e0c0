//! Helpers for tests of registered programs: start nodes without roles, register instances, and read which
//! instances a node lists.

use std::time::Duration;

use serde_json::Value;

use crate::{Cluster as _, Host, Lab, NodeRef};

const S: Duration = Duration::from_secs(1);

/// Starts a node without roles on each of several hosts (m0, m1, …), and waits until all nodes see each
/// other.
pub fn cluster(lab: &mut Lab, count: usize, more: &[&str]) -> (Vec<Host>, Vec<NodeRef>) {
    let hosts: Vec<Host> = (0..count).map(|_| lab.host()).collect();
    let nodes: Vec<NodeRef> = hosts.iter().enumerate().map(|(i, host)| plain(lab, host, i, more)).collect();
    all_see_all(lab, &nodes);
    (hosts, nodes)
}

/// Starts a node without roles on a host.
pub fn plain(lab: &mut Lab, host: &Host, i: usize, more: &[&str]) -> NodeRef {
    let name = format!("m{i}");
    lab.start(Some(host), &name, 7500, &[&["--name", name.as_str()], more].concat())
}

/// Starts two nodes on each of five hosts. With a second node on each host, a test can distinguish a fault of
/// a node from a fault of the network.
pub fn on_five_hosts(lab: &mut Lab) -> (Vec<Host>, Vec<NodeRef>) {
    let hosts: Vec<Host> = (0..5).map(|_| lab.host()).collect();
    let mut nodes = Vec::new();
    for i in 0..10 {
        let (name, port) = (format!("m{i}"), 7500 + i % 2);
        // The ports are explicit, because otherwise the two nodes of a host would race for the default ports.
        let http = format!("[::]:{port}");
        let host = &hosts[usize::from(i / 2)];
        nodes.push(lab.start(Some(host), &name, port, &["--name", &name, "--http", &http]));
    }
    all_see_all(lab, &nodes);
    (hosts, nodes)
}

/// Waits until each of these nodes sees each of them as alive.
pub fn all_see_all(lab: &Lab, nodes: &[NodeRef]) {
    let names: Vec<String> = nodes.iter().map(|node| lab.name_of(*node)).collect();
    lab.until(20 * S, "all see all", |lab| {
        nodes.iter().all(|by| names.iter().all(|name| lab.sees(*by, name).as_deref() == Some("alive")))
    });
}

/// Returns the instances of a service that a node lists.
pub fn instances(lab: &Lab, node: NodeRef, query: &str) -> Vec<Value> {
    let answer = lab.get(node, &format!("/services/{query}")).unwrap_or_default();
    let services = answer["services"].as_object().cloned().unwrap_or_default();
    services.into_values().filter_map(|list| list.as_array().cloned()).flatten().collect()
}

/// Returns the number of passing instances of a service.
pub fn passing(lab: &Lab, node: NodeRef, service: &str) -> usize {
    instances(lab, node, &format!("{service}?health=passing")).len()
}

/// Returns whether each of these nodes lists this many passing instances.
pub fn all_have(lab: &Lab, nodes: &[NodeRef], service: &str, count: usize) -> bool {
    nodes.iter().all(|node| passing(lab, *node, service) == count)
}

/// Registers an instance with the node at port 7500 of a host. Returns the answer.
pub fn register(host: &Host, body: &Value) -> Value {
    let reply = host.send(7500, "POST /services", &body.to_string());
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()
}
