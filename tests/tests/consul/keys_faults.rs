//! Tests of the key/value store under faults: after a partition all replicas have the same keys and name the
//! same winning writes, and acknowledged writes survive when all replicas are killed at once.

use std::time::{SystemTime, UNIX_EPOCH};

use hearsay_tests::{Cluster as _, Host, Lab, NodeRef, scenario};
use serde_json::Value;

use super::{S, keys::pairs};

/// Replicas, each on a host of its own.
struct Replicas {
    hosts: Vec<Host>,
    nodes: Vec<NodeRef>,
}

impl Replicas {
    fn start(lab: &mut Lab, count: usize) -> Self {
        let hosts: Vec<Host> = (0..count).map(|_| lab.host()).collect();
        let mut replicas = Self { hosts, nodes: Vec::new() };
        replicas.nodes = (0..count).map(|at| replicas.start_node(lab, at)).collect();
        lab.until(20 * S, "all list all replicas", |lab| replicas.list_all(lab, 0..count));
        replicas
    }

    fn start_node(&self, lab: &mut Lab, at: usize) -> NodeRef {
        let name = format!("m{at}");
        lab.start(Some(&self.hosts[at]), &name, 7500, &["--name", &name, "--role", "kv"])
    }

    /// Whether each of these nodes lists exactly all of them.
    fn list_all(&self, lab: &Lab, range: std::ops::Range<usize>) -> bool {
        self.nodes[range.clone()].iter().all(|node| {
            let entries = lab.get(*node, "/v1/health/service/kv?passing");
            entries.is_some_and(|entries| entries.as_array().is_some_and(|list| list.len() == range.len()))
        })
    }

    fn put(&self, at: usize, key: &str, value: &str) {
        let reply = self.hosts[at].send(7500, &format!("PUT /v1/kv/{key}"), value);
        assert_eq!((reply.status, reply.body.as_str()), (200, "true"), "{key}: {reply:?}");
    }

    fn delete(&self, at: usize, key: &str) {
        let reply = self.hosts[at].send(7500, &format!("DELETE /v1/kv/{key}"), "");
        assert_eq!((reply.status, reply.body.as_str()), (200, "true"), "{key}: {reply:?}");
    }

    /// The writes of a key that a replica itself names.
    fn writes(&self, at: usize, key: &str) -> Value {
        self.hosts[at].send(7500, &format!("GET /kv/{key}?writes"), "").json()["writes"].clone()
    }

    /// Whether all replicas list the same keys and values, these many.
    fn agree(&self, lab: &Lab, count: usize) -> bool {
        let first = pairs(lab, self.nodes[0]);
        first.as_ref().is_some_and(|pairs| pairs.len() == count)
            && self.nodes[1..].iter().all(|node| pairs(lab, *node) == first)
    }
}

/// Waits until the clock shows another millisecond: replicas that do not know of each other's writes order
/// them by milliseconds.
fn pass_a_millisecond() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let began = now();
    while now() <= began {
        std::thread::yield_now();
    }
}

/// Runs `node kv` on a replica's host against its own node.
fn kv(lab: &Lab, replicas: &Replicas, at: usize, arguments: &[&str]) -> (Option<i32>, String) {
    let url = format!("http://127.0.0.1:{}", lab.address(replicas.nodes[at]).port());
    let arguments = [&["kv"], arguments, &["--node", &url]].concat();
    let output = lab.command(Some(&replicas.hosts[at]), "m0", &arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn both_sides_of_a_partition_end_with_the_same_keys_and_name_the_same_winner() {
    scenario(
        "keys_faults::both_sides_of_a_partition_end_with_the_same_keys_and_name_the_same_winner",
        |lab| {
            let replicas = Replicas::start(lab, 4);
            replicas.put(0, "both/limit", "before");
            replicas.put(0, "both/gone", "before");
            lab.until(10 * S, "all have them", |lab| replicas.agree(lab, 2));
            let (left, right) = replicas.hosts.split_at(2);
            let (l, r): (Vec<&Host>, Vec<&Host>) = (left.iter().collect(), right.iter().collect());
            left.iter().for_each(|host| host.drop_packets_from(&r));
            right.iter().for_each(|host| host.drop_packets_from(&l));
            lab.until(20 * S, "each side lists itself alone", |lab| {
                replicas.list_all(lab, 0..2) && replicas.list_all(lab, 2..4)
            });
            replicas.put(0, "both/limit", "left");
            replicas.put(3, "both/gone", "right");
            pass_a_millisecond();
            replicas.put(2, "both/limit", "right");
            replicas.delete(1, "both/gone");
            replicas.put(0, "left/only", "1");
            replicas.put(3, "right/only", "1");
            assert_eq!(lab.text(replicas.nodes[1], "/v1/kv/left/only?raw").as_deref(), Some("1"));
            replicas.hosts.iter().for_each(Host::drop_nothing);
            lab.until(30 * S, "together again", |lab| replicas.list_all(lab, 0..4));
            lab.until(20 * S, "all replicas have the same keys", |lab| replicas.agree(lab, 3));
            for key in ["both/limit", "both/gone"] {
                lab.until(5 * S, "all name the same writes", |_| {
                    let first = replicas.writes(0, key);
                    (1..4).all(|at| replicas.writes(at, key) == first)
                });
            }
            let is_of_side = |write: &Value, side: [&str; 2]| side.contains(&write["Node"].as_str().unwrap());
            for at in 0..4 {
                let (code, text) = kv(lab, &replicas, at, &["get", "-v", "both/limit", "--json"]);
                let pair: Value = serde_json::from_str(&text).unwrap();
                let writes = &pair[0]["Writes"];
                assert_eq!((code, &writes["Latest"]["Change"]), (Some(0), &"put".into()), "{text}");
                assert_eq!(lab.text(replicas.nodes[at], "/v1/kv/both/limit?raw").as_deref(), Some("right"));
                assert!(is_of_side(&writes["Latest"], ["m2", "m3"]), "{text}");
                assert!(is_of_side(&writes["Superseded"], ["m0", "m1"]), "{text}");
                let (code, text) = kv(lab, &replicas, at, &["get", "-v", "both/gone"]);
                assert!(code == Some(2) && text.contains("in effect   delete"), "{code:?}: {text}");
                assert!(text.contains("superseded  put"), "{text}");
            }
        },
    );
}

#[test]
fn acknowledged_keys_survive_when_all_replicas_are_killed_and_deleted_ones_stay_deleted() {
    scenario(
        "keys_faults::acknowledged_keys_survive_when_all_replicas_are_killed_and_deleted_ones_stay_deleted",
        |lab| {
            let mut replicas = Replicas::start(lab, 3);
            for number in 0..60 {
                replicas.put(number % 3, &format!("kept/{number:02}"), &number.to_string());
                replicas.put((number + 1) % 3, &format!("gone/{number:02}"), "x");
                pass_a_millisecond();
                replicas.delete((number + 2) % 3, &format!("gone/{number:02}"));
            }
            for node in replicas.nodes.clone() {
                lab.crash(node);
            }
            replicas.nodes = (0..3).map(|at| replicas.start_node(lab, at)).collect();
            lab.until(20 * S, "all list all again", |lab| replicas.list_all(lab, 0..3));
            lab.until(20 * S, "all acknowledged keys are on every replica", |lab| replicas.agree(lab, 60));
            let kept = pairs(lab, replicas.nodes[2]).unwrap();
            assert!(kept.iter().all(|(key, _)| key.starts_with("kept/")), "{kept:?}");
            for number in 0..60 {
                let path = format!("/v1/kv/kept/{number:02}?raw");
                assert_eq!(
                    lab.text(replicas.nodes[number % 3], &path).as_deref(),
                    Some(&*number.to_string())
                );
            }
        },
    );
}
