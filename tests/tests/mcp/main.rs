//! The Model Context Protocol over real nodes, with the MCP client of PyPI: an agent reads the cluster, and
//! changes it only with the token, or where `node mcp` allows writes.

// In a test, a failed unwrap is the failure.
#![allow(clippy::unwrap_used)]

use std::{
    ffi::{OsStr, OsString},
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use hearsay_tests::{Cluster as _, Host, Lab, find, registry, scenario};
use serde_json::json;

const S: Duration = Duration::from_secs(1);
/// Calls of the client, and the expected results.
const ROUND: &str = include_str!("round.py");

/// Returns the Python that has the client, as `tests/run` installs it. Without it, prints that the test is
/// skipped; with `LAB=full` the test fails.
fn python(test: &str) -> Option<OsString> {
    let python = std::env::var_os("MCP_CLIENT");
    if python.is_none() {
        println!(
            "skipped: {test}: MCP_CLIENT does not name a Python with the package mcp; tests/run installs it"
        );
        assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and {test} has no client");
    }
    python
}

/// Starts two nodes. The second one has the log; each has an instance.
fn cluster(lab: &mut Lab) -> Vec<Host> {
    let hosts: Vec<Host> = (0..2).map(|_| lab.host()).collect();
    let nodes =
        [registry::plain(lab, &hosts[0], 0, &[]), registry::plain(lab, &hosts[1], 1, &["--role", "log"])];
    registry::all_see_all(lab, &nodes);
    let web = json!({ "id": "web-1", "name": "web", "port": 8080, "tags": ["mcp"], "meta": { "mcp_path": "/agents" },
        "requires": ["db"], "checks": [{ "ttl": "1h", "status": "passing" }] });
    registry::register(&hosts[0], &web);
    registry::register(&hosts[1], &json!({ "id": "far-1", "name": "far", "port": 8080 }));
    let record = json!({ "message": "an unmistakable record", "level": "warn" });
    assert_eq!(hosts[1].send(7500, "POST /log", &record.to_string()).status, 200);
    lab.until(10 * S, "the first node lists all of it", |lab| {
        ["web", "far", "log"].iter().all(|service| registry::passing(lab, nodes[0], service) == 1)
    });
    hosts
}

/// Runs the client on the first host.
fn run(lab: &Lab, host: &Host, python: &OsStr, arguments: &[&OsStr]) {
    let script = lab.dir().join("round.py");
    fs::write(&script, ROUND).unwrap();
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &host.name]).arg(python).arg(&script).args(arguments).stdin(Stdio::null());
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{}", lab.describe());
}

#[test]
fn an_agent_reads_over_http_and_drains_only_with_the_token() {
    let test = "an_agent_reads_over_http_and_drains_only_with_the_token";
    let Some(python) = python(test) else { return };
    scenario(test, |lab| {
        let hosts = cluster(lab);
        let token = find(&lab.dir().join("m0"), "api-token").expect("the node has a token");
        let token = OsString::from(fs::read_to_string(token).unwrap().trim());
        let url = OsStr::new("http://127.0.0.1:7500/mcp");
        run(lab, &hosts[0], &python, &[OsStr::new("http"), url, &token]);
    });
}

#[test]
fn an_agent_reads_over_stdio_and_drains_only_where_writes_are_allowed() {
    let test = "an_agent_reads_over_stdio_and_drains_only_where_writes_are_allowed";
    let Some(python) = python(test) else { return };
    scenario(test, |lab| {
        let hosts = cluster(lab);
        let node = std::env::var_os("NODE_BIN").unwrap();
        let url = OsStr::new("http://127.0.0.1:7500");
        run(lab, &hosts[0], &python, &[OsStr::new("stdio"), &node, url]);
    });
}
