//! Tests of the key/value store over real nodes: any node serves all keys, they survive the failure of a
//! replica, and the command line reads and writes them.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use hearsay_tests::{Cluster as _, Host, Lab, NodeRef, http::send, scenario};
use serde_json::{Value, json};

use super::S;

fn write(host: &Host, request: &str, body: &Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let reply = host.send(7500, request, &body);
    assert_eq!((reply.status, reply.body.as_str()), (200, "true"), "{request}: {reply:?}");
}

/// The keys and values that a replica has, without its own indexes.
pub(super) fn pairs(lab: &Lab, replica: NodeRef) -> Option<Vec<(String, String)>> {
    let pairs = lab.get(replica, "/kv")?;
    let text = |pair: &Value, name: &str| pair[name].as_str().unwrap_or_default().to_owned();
    Some(pairs.as_array()?.iter().map(|pair| (text(pair, "key"), text(pair, "value"))).collect())
}

#[test]
fn keys_are_served_by_every_node_and_survive_a_replica() {
    scenario("keys::keys_are_served_by_every_node_and_survive_a_replica", |lab| {
        let hosts: Vec<Host> = (0..3).map(|_| lab.host()).collect();
        let start = |lab: &mut Lab, at: usize| {
            let name = format!("m{at}");
            let role: &[&str] = if at < 2 { &["--role", "kv"] } else { &[] };
            lab.start(Some(&hosts[at]), &name, 7500, &[&["--name", &name], role].concat())
        };
        let nodes: Vec<NodeRef> = (0..3).map(|at| start(lab, at)).collect();
        lab.until(10 * S, "all list both replicas", |lab| {
            nodes.iter().all(|node| {
                let entries = lab.get(*node, "/v1/health/service/kv?passing");
                entries.is_some_and(|entries| entries.as_array().is_some_and(|list| list.len() == 2))
            })
        });
        write(&hosts[2], "PUT /v1/kv/web/limit", &json!(100));
        write(&hosts[0], "PUT /v1/kv/web/large", &json!("x".repeat(100_000)));
        write(&hosts[1], "PUT /v1/kv/gone", &json!(1));
        write(&hosts[2], "DELETE /v1/kv/gone", &Value::Null);
        lab.until(5 * S, "both replicas have the same keys", |lab| {
            let first = pairs(lab, nodes[0]);
            first.as_ref().is_some_and(|pairs| pairs.len() == 2) && first == pairs(lab, nodes[1])
        });
        for node in &nodes {
            assert_eq!(lab.text(*node, "/v1/kv/web/limit?raw").as_deref(), Some("100"));
        }
        // A private address is no proof.
        let stranger = send(lab.address(nodes[2]), "PUT /v1/kv/web/limit", &[], "1", 5 * S).unwrap();
        assert_eq!(stranger.status, 401, "{stranger:?}");

        let index = hosts[2].send(7500, "GET /v1/kv/web/?recurse", "");
        let index = index.header("x-consul-index").unwrap().to_owned();
        let mut waiting = TcpStream::connect(lab.address(nodes[2])).unwrap();
        write!(waiting, "GET /v1/kv/web/?recurse&index={index}&wait=60s HTTP/1.0\r\n\r\n").unwrap();
        let own = lab.text(nodes[0], "/kv/web/limit");
        lab.crash(nodes[0]);
        lab.until(10 * S, "a write finds the other replica", |_| {
            hosts[2].send(7500, "PUT /v1/kv/web/new", "7").body == "true"
        });
        let mut answer = String::new();
        waiting.set_read_timeout(Some(30 * S)).unwrap();
        waiting.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "{head}");
        // The other replica does not know the index, so it answers at once, perhaps before the write.
        if !body.contains("web/new") {
            let mut lines = head.lines().filter_map(|line| line.strip_prefix("X-Consul-Index: "));
            let index = lines.next().unwrap();
            let again = hosts[2].send(7500, &format!("GET /v1/kv/web/?recurse&index={index}&wait=60s"), "");
            assert!(again.body.contains("web/new"), "no write is missed");
        }

        let again = start(lab, 0);
        lab.until(20 * S, "the first replica has what it missed", |lab| {
            lab.text(again, "/kv/web/new?raw").as_deref() == Some("7")
        });
        assert_eq!(lab.text(again, "/kv/web/limit"), own, "its indexes are those from before");
    });
}

#[test]
fn the_command_line_reads_and_writes_keys() {
    scenario("keys::the_command_line_reads_and_writes_keys", |lab| {
        let host = lab.host();
        let node = lab.start(Some(&host), "m0", 7500, &["--name", "m0", "--role", "kv"]);
        lab.until(10 * S, "it keeps keys", |lab| {
            lab.get(node, "/v1/health/service/kv?passing").is_some_and(|list| !list[0].is_null())
        });
        let run = |lab: &Lab, arguments: &[&str]| {
            let url = format!("http://127.0.0.1:{}", lab.address(node).port());
            let arguments = [&["kv"], arguments, &["--node", &url]].concat();
            let output = lab.command(Some(&host), "m0", &arguments).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            (output.status.code(), text, String::from_utf8(output.stderr).unwrap())
        };
        let ended = |code, text: &str, (ended, stdout, stderr): (Option<i32>, String, String)| {
            assert_eq!((ended, stdout.as_str()), (Some(code), text), "{stderr}");
        };
        ended(2, "", run(lab, &["get", "a/b"]));
        ended(0, "", run(lab, &["put", "a/b", "-1", "--flags", "3"]));
        ended(0, "-1", run(lab, &["get", "a/b"]));
        ended(0, "", run(lab, &["put", "a/c/", ""]));
        ended(0, "a/b\na/c/\n", run(lab, &["list"]));
        ended(0, "", run(lab, &["delete", "a/b"]));
        ended(0, "a/c/\n", run(lab, &["list", "a/"]));
        ended(0, "", run(lab, &["delete", "a/", "--prefix"]));
        ended(2, "", run(lab, &["list"]));
        ended(2, "", run(lab, &["get", ""]));
    });
}
