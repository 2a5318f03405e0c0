//! No acknowledged write is without effect: each writing path's effect is visible on every node.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, time::Duration};

use hearsay_tests::{Cluster as _, Lab, NodeRef, http::send, scenario};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);
const JSON: &str = "application/json";

/// A write, and how its effect shows.
struct Write {
    /// Method and path, as in `/openapi.json`.
    operation: &'static str,
    request: String,
    content_type: &'static str,
    body: String,
    /// A GET whose answer then contains, or no longer contains, a text.
    read: (&'static str, String, bool),
}

fn write(operation: &'static str, request: &str, body: &Value, read: (&'static str, &str, bool)) -> Write {
    let (path, text, is_there) = read;
    Write {
        operation,
        request: request.to_owned(),
        content_type: JSON,
        body: body.to_string(),
        read: (path, text.to_owned(), is_there),
    }
}

/// Every writing path except those that end a node or a member.
fn writes() -> Vec<Write> {
    let named = |last: &str| json!({ "id": 42, "firstName": "Ann", "lastName": last });
    let grade = json!({ "id": 7, "title": "Oral", "type": "Exam", "score": 95 });
    let record = |value: &str| json!({ "record": { "value": value } });
    let csv = "FirstName,LastName,Title,Type,Score\nEva,Imported,Essay,Homework,81\n";
    let restored =
        json!({ "items": [{ "id": 43, "firstName": "Bob", "lastName": "Restored", "grades": [] }] });
    let restored_keys = json!({ "items": [{ "key": "a/d", "value": "" }] });
    let events = json!({ "message": "an event of another program", "service": "s", "level": "INFO", "time": 1_900_000_000_000u64 });
    vec![
        write("post /students", "POST /students", &named("Added"), ("/students/42", "Added", true)),
        write("put /students/{id}", "PUT /students/42", &named("Renamed"), ("/students/42", "Renamed", true)),
        write(
            "post /students/{id}/grades",
            "POST /students/42/grades",
            &grade,
            ("/students/42", "Oral", true),
        ),
        write(
            "delete /students/{id}/grades/{gid}",
            "DELETE /students/42/grades/7",
            &Value::Null,
            ("/students/42", "Oral", false),
        ),
        write("delete /students/{id}", "DELETE /students/42", &Value::Null, ("/students", "Renamed", false)),
        write("post /students", "POST /students", &named("Again"), ("/students/42", "Again", true)),
        Write {
            content_type: "text/csv",
            body: csv.to_owned(),
            ..write(
                "post /students/import",
                "POST /students/import",
                &Value::Null,
                ("/students", "Imported", true),
            )
        },
        write("post /students/restore", "POST /students/restore", &restored, ("/students", "Restored", true)),
        Write {
            content_type: "text/plain",
            body: "a line of the log".to_owned(),
            ..write("post /log", "POST /log", &Value::Null, ("/log?limit=1000", "a line of the log", true))
        },
        Write {
            content_type: "application/x-ndjson",
            body: events.to_string(),
            ..write(
                "post /log/events",
                "POST /log/events",
                &Value::Null,
                ("/log?limit=1000", "an event of another program", true),
            )
        },
        // A record of /records is a record of the log, on all nodes; its offset belongs to one node.
        write(
            "post /records",
            "POST /records",
            &record("cmVjb3JkZWQ="),
            ("/log?limit=1000", "recorded", true),
        ),
        write("post /visits", "POST /visits", &Value::Null, ("/visits", "\"total\":1", true)),
        write("get /visits/hit", "GET /visits/hit", &Value::Null, ("/visits", "\"total\":2", true)),
        write("put /kv/{key}", "PUT /kv/a/b", &json!("kept"), ("/kv/a/b?raw", "kept", true)),
        write("delete /kv/{key}", "DELETE /kv/a/b", &Value::Null, ("/kv?keys", "a/b", false)),
        write("put /kv/{key}", "PUT /kv/a/c", &json!("again"), ("/v1/kv/a/c?raw", "again", true)),
        write("post /kv", "POST /kv", &restored_keys, ("/kv?keys", "a/d", true)),
        write("delete /kv", "DELETE /kv?prefix=a/", &Value::Null, ("/kv?keys", "a/c", false)),
        write(
            "put /v1/agent/maintenance",
            "PUT /v1/agent/maintenance?enable=true",
            &Value::Null,
            ("/services/visits", "critical", true),
        ),
        write(
            "put /v1/agent/maintenance",
            "PUT /v1/agent/maintenance?enable=false",
            &Value::Null,
            ("/services/visits", "critical", false),
        ),
    ]
}

/// Writing paths of the registry. The node that takes a registration holds it, so all of these go to one
/// node.
fn writes_of_registry() -> Vec<Write> {
    let nothing = Value::Null;
    let named = |id: &str| json!({ "name": "web", "id": id, "address": "10.77.9.9", "port": 8080 });
    let checked = json!({
        "name": "job", "id": "job-1", "address": "10.77.9.9", "port": 1, "check": { "id": "job-ttl", "ttl": "1h" },
    });
    let drained = |enable: bool| json!({ "enable": enable, "reason": "a new disk" });
    let maintenance = "put /services/{name}/maintenance";
    vec![
        write("post /services", "POST /services", &named("web-1"), ("/services/web", "web-1", true)),
        write("post /services", "POST /services", &named("web-2"), ("/services", "web-2", true)),
        write("post /services", "POST /services", &named("web-3"), ("/services", "web-3", true)),
        write(
            maintenance,
            "PUT /services/web-1/maintenance",
            &drained(true),
            ("/services/web", "critical", true),
        ),
        write(
            maintenance,
            "PUT /services/web-1/maintenance",
            &drained(false),
            ("/services/web", "critical", false),
        ),
        write("delete /services/{name}", "DELETE /services/web-1", &nothing, ("/services", "web-1", false)),
        write(
            "delete /services/{name}/{id}",
            "DELETE /services/web/web-2",
            &nothing,
            ("/services", "web-2", false),
        ),
        write("delete /services", "DELETE /services", &named("web-3"), ("/services", "web-3", false)),
        write("post /services", "POST /services", &checked, ("/services/job", "critical", true)),
        write(
            "put /checks/{id}",
            "PUT /checks/job-ttl",
            &json!({ "status": "passing" }),
            ("/services/job", "passing", true),
        ),
    ]
}

/// Operations that end a node or a member, which other scenarios cover.
const OF_MEMBERS: [&str; 2] = ["put /v1/agent/leave", "delete /members/{id}"];

/// A session is valid at one node: `tests/tests/strangers.rs`.
const OF_SESSIONS: [&str; 2] = ["post /login", "post /logout"];
/// Requests whose effects are those of other paths: `tests/tests/jsonrpc`, `tests/tests/mcp`.
const OF_INNER: [&str; 2] = ["post /mcp", "post /rpc"];
/// Forms of the node's pages, which browser scenarios cover (`pages/services.rs`).
const OF_PAGES: [&str; 2] = ["post /ui/registrations/deregister", "post /ui/registrations/maintenance"];

#[test]
fn every_write_that_is_acknowledged_shows_on_every_node() {
    scenario("every_write_that_is_acknowledged_shows_on_every_node", |lab| {
        let hosts: Vec<_> = (0..3).map(|_| lab.host()).collect();
        let roles = ["--role", "grading,log,visits,kv", "--name"];
        let nodes: Vec<NodeRef> = hosts
            .iter()
            .zip(["m1", "m2", "m3"])
            .map(|(host, name)| lab.start(Some(host), name, 7500, &[&roles[..], &[name]].concat()))
            .collect();
        lab.until(10 * S, "all list all", |lab| lab.all_list_all(&nodes));
        let token = |lab: &Lab, name: &str| {
            let found = hearsay_tests::find(&lab.dir().join(name), "api-token");
            std::fs::read_to_string(found.expect("the node has a token")).unwrap().trim().to_owned()
        };
        let of_registry: BTreeSet<&str> = writes_of_registry().iter().map(|write| write.operation).collect();
        for (turn, write) in writes().into_iter().chain(writes_of_registry()).enumerate() {
            // Maintenance begins and ends on one node, as registrations do.
            let is_of_node = write.operation.contains("maintenance") || of_registry.contains(write.operation);
            let at = nodes[if is_of_node { 0 } else { turn % 3 }];
            // Maintenance is of the class admin, and this test is on another machine.
            let bearer = format!("Bearer {}", token(lab, &lab.name_of(at)));
            let headers = [("content-type", write.content_type), ("authorization", bearer.as_str())];
            let body = if write.body == "null" { "" } else { &write.body };
            let reply = send(lab.address(at), &write.request, &headers, body, 8 * S).unwrap();
            assert!((200..207).contains(&reply.status), "{}: {} {}", write.request, reply.status, reply.body);
            let (path, text, is_there) = &write.read;
            lab.until(5 * S, &format!("{} shows everywhere", write.request), |lab| {
                nodes
                    .iter()
                    .all(|node| lab.text(*node, path).is_some_and(|read| read.contains(text) == *is_there))
            });
        }
        // A new path must be added above, too.
        let covered: BTreeSet<String> = writes()
            .iter()
            .map(|write| write.operation)
            .chain(of_registry.iter().copied())
            .chain(OF_MEMBERS)
            .chain(OF_PAGES)
            .chain(OF_SESSIONS)
            .chain(OF_INNER)
            .map(Into::into)
            .collect();
        let openapi = lab.get(nodes[0], "/openapi.json").unwrap();
        let is_write = |operation: &str, path: &str| {
            ["post", "put", "delete", "patch"].contains(&operation) || path == "/visits/hit"
        };
        let written: BTreeSet<String> = openapi["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, operations)| {
                let operations = operations.as_object().unwrap().keys();
                operations.filter(|o| is_write(o, path)).map(move |o| format!("{o} {path}"))
            })
            .collect();
        assert_eq!(covered, written);
    });
}
