//! Tests of the commands `register`, `deregister`, `checks` and `drain` against a fake node: requests, output
//! and exit codes.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap that fails is the test failing")]

mod server;

use std::process::Command;

use serde_json::{Value, json};
use server::{Reply, Server};

const REGISTERED: &str = r#"{"id":"web-1","node":"a","requires":{}}"#;
const REGISTRATIONS: &str = r#"{"node":"a","registrations":[
  {"id":"web-1","name":"web","owner":"api","health":"critical","address":"127.0.0.1","port":80,"requires":[],"checks":[
    {"id":"service:web-1","name":"up","kind":"http","status":"critical","since":"2026-11-21T00:00:00Z",
     "output":"503 \u001b[2J\nmore","lastRun":"2026-11-21T00:00:00Z","nextRun":null,"tookMs":3}]},
  {"id":"db-1","name":"db","owner":"held","health":"passing","address":"127.0.0.1","port":5432,"requires":[],"checks":[]},
  {"id":"old-1","name":"old","owner":"file","health":"critical","maintenance":"new disk","checks":[]}],
 "files":[{"path":"/etc/x.toml","error":"line 2: no name"}]}"#;
const MEMBERS: &str =
    r#"{"cluster":"default","node":"a","members":[{"id":"12D3","name":"a","state":"alive"}]}"#;

/// Runs a command against a fake node with these replies. Returns the exit code, both outputs, and heads and
/// bodies of the requests.
fn ask(replies: &[(&str, Reply)], args: &[&str]) -> (i32, String, String, Vec<String>, Vec<String>) {
    let server = Server::start(replies);
    let mut command = Command::new(env!("CARGO_BIN_EXE_node"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HEARSAY_")) {
        command.env_remove(name);
    }
    let output = command.args(args).args(["--node", &server.url]).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr), server.requests(), server.bodies())
}

#[test]
fn a_registration_is_sent_and_its_id_printed() {
    let args = ["register", "web", "--port", "80", "--check", "http=/health"];
    let (code, stdout, stderr, requests, bodies) = ask(&[("POST /services", Reply::ok(REGISTERED))], &args);
    assert_eq!((code, stdout.as_str()), (0, "web-1\n"), "{stderr}");
    assert!(requests[0].to_lowercase().contains("content-type: application/json"), "{requests:?}");
    let body: Value = serde_json::from_str(&bodies[0]).unwrap();
    assert_eq!(body, json!({"name": "web", "port": 80, "checks": [{"http": "/health"}]}));
    let as_json = [&args[..], &["--json"]].concat();
    assert_eq!(ask(&[("POST /services", Reply::ok(REGISTERED))], &as_json).1.trim_end(), REGISTERED);
    let refused = Reply::status(400, r#"{"detail":"port: 0 is too small"}"#);
    let (code, _, stderr, ..) = ask(&[("POST /services", refused)], &args);
    assert!(code == 1 && stderr.contains("port: 0 is too small"), "{stderr}");
    let (code, ..) = ask(&[], &["register"]);
    assert_eq!(code, 2);
}

#[test]
fn an_instance_is_deregistered_by_its_id() {
    let removed = Reply::ok(r#"{"node":"a","removed":["web 1"]}"#);
    let (code, stdout, ..) = ask(&[("DELETE /services/web%201", removed)], &["deregister", "web 1"]);
    assert_eq!((code, stdout.as_str()), (0, "web 1 is deregistered\n"));
    let elsewhere = Reply::status(404, r#"{"detail":"the node b holds web-1"}"#);
    let (code, _, stderr, ..) = ask(&[("DELETE /services/web-1", elsewhere)], &["deregister", "web-1"]);
    assert!(code == 2 && stderr.contains("the node b holds web-1"), "{stderr}");
}

#[test]
fn checks_are_a_table_of_what_fails_and_why() {
    let registrations = || [("GET /registrations", Reply::ok(REGISTRATIONS))];
    let (code, stdout, stderr, ..) = ask(&registrations(), &["checks"]);
    assert_eq!(code, 0, "{stderr}");
    let lines: Vec<_> = stdout.lines().collect();
    assert!(
        lines[1].starts_with("web-1     up     http   critical") && lines[1].contains("503 \\u001b[2J"),
        "{stdout}"
    );
    assert!(
        !stdout.contains("more") && lines[2].starts_with("db-1") && lines[2].contains("passing"),
        "{stdout}"
    );
    assert!(lines[3].starts_with("old-1") && lines[3].contains("new disk"), "{stdout}");
    assert_eq!(lines[4], "/etc/x.toml: line 2: no name");
    let (code, stdout, ..) = ask(&registrations(), &["checks", "db", "--json"]);
    let only: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, only["registrations"].as_array().unwrap().len()), (0, 1), "{stdout}");
    let (code, _, stderr, ..) = ask(&registrations(), &["checks", "mail"]);
    assert!(code == 2 && stderr.contains("\"mail\""), "{stderr}");
}

#[test]
fn an_instance_or_the_asked_node_is_drained() {
    let members = || ("GET /members", Reply::ok(MEMBERS));
    let done = || Reply::ok(r#"{"id":"web-1","maintenance":true}"#);
    let instance = [members(), ("PUT /services/web-1/maintenance", done())];
    let (code, stdout, stderr, _, bodies) = ask(&instance, &["drain", "web-1", "--reason", "new disk"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("node drain web-1 --undo"), "{stdout}");
    let body: Value = serde_json::from_str(&bodies[1]).unwrap();
    assert_eq!(body, json!({"enable": true, "reason": "new disk"}));
    for subject in ["a", "12D3"] {
        let node = [
            members(),
            ("GET /registrations", Reply::ok(REGISTRATIONS)),
            ("PUT /v1/agent/maintenance?enable=false", Reply::ok("")),
        ];
        let (code, stdout, stderr, ..) = ask(&node, &["drain", subject, "--undo"]);
        assert!(code == 0 && stdout.contains("the node a is back"), "{stdout}{stderr}");
    }
    let unknown = [members(), ("PUT /services/x/maintenance", Reply::status(404, r#"{"detail":"no x"}"#))];
    assert_eq!(ask(&unknown, &["drain", "x"]).0, 2);
}
