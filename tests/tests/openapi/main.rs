//! `/openapi.json` is true: Schemathesis generates requests from it and checks every answer against it.

// In a test, a failed unwrap is the failure.
#![allow(clippy::unwrap_used)]

use std::{ffi::OsString, fs, path::Path, process::Command, time::Duration};

use hearsay_tests::{Cluster as _, Lab, scenario};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);
/// Serialisers that Schemathesis lacks.
const HOOKS: &str = include_str!("hooks.py");
/// Configuration: statuses that are no defect.
const CONFIGURATION: &str = include_str!("schemathesis.toml");
const CHECKS: [&str; 5] = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
];
/// Requests for each operation, and the minimum of requests in all.
const SHORT: (u32, u64) = (2, 500);
const LONG: (u32, u64) = (100, 10_000);
/// Limit of runs until that minimum. A run of the long form sends thousands of requests, one of the short
/// form over a thousand.
const SEEDS_MAX: usize = 10;
/// Paths of the registry, with their methods.
const REGISTRY: [(&str, &[&str]); 8] = [
    ("/services", &["get", "post", "delete"]),
    ("/services/{name}", &["get", "delete"]),
    ("/services/{name}/{id}", &["get", "delete"]),
    ("/services/{name}/maintenance", &["put"]),
    ("/services/watch", &["get"]),
    ("/registrations", &["get"]),
    ("/checks/{id}", &["put"]),
    ("/dependencies", &["get"]),
];

/// Returns the program, as `tests/run` installs it. Without it, prints that the test is skipped; with
/// `LAB=full` the test fails.
fn schemathesis(test: &str) -> Option<OsString> {
    let program = std::env::var_os("SCHEMATHESIS");
    if program.is_none() {
        println!("skipped: {test}: SCHEMATHESIS does not name the program; tests/run installs it with pip");
        assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and {test} has no Schemathesis");
    }
    program
}

/// Returns the document without operations that never end (streams) or that end the node.
fn bounded(mut document: Value) -> Value {
    let is_endless = |path: &str, operation: &Value| {
        let content = operation["responses"]["200"]["content"].as_object();
        let types: Vec<&String> = content.into_iter().flat_map(|content| content.keys()).collect();
        path == "/v1/agent/leave" || types == ["text/event-stream"]
    };
    let paths = document["paths"].as_object_mut().unwrap();
    for (path, item) in paths.iter_mut() {
        item.as_object_mut().unwrap().retain(|_, operation| !is_endless(path, operation));
    }
    paths.retain(|_, item| item.as_object().unwrap().keys().any(|key| key != "parameters"));
    let register = &mut document["paths"]["/services"]["post"];
    register["parameters"].as_array_mut().unwrap().retain(|p| p["name"] != "hold" && p["name"] != "grace");
    document
}

fn assert_registry_is_described(document: &Value) {
    for (path, methods) in REGISTRY {
        for method in methods {
            let operation = &document["paths"][path][method];
            let answer = operation["responses"]["200"]["content"].as_object();
            let answer = answer.unwrap_or_else(|| panic!("{method} {path} has no answer"));
            assert!(
                answer.values().all(|content| content["schema"].is_object()),
                "{method} {path}: {answer:?}"
            );
            if ["post", "put"].contains(method) {
                let body = &operation["requestBody"]["content"]["application/json"]["schema"];
                assert!(body.is_object(), "{method} {path} has no schema of its body");
            }
        }
    }
}

/// Runs Schemathesis on the node's host, and returns its report.
fn run(lab: &Lab, program: &OsString, host: &str, examples: u32, seed: u64) -> Value {
    let dir = lab.dir().join("schemathesis");
    let report = dir.join("report.json");
    let output = Command::new("ip")
        .args(["netns", "exec", host])
        .arg(program)
        .args(["--no-color", "--config-file", "schemathesis.toml", "run", "openapi.json"])
        .args(["--url", "http://127.0.0.1:7500", "--max-redirects", "0", "--warnings", "off"])
        .args(["--generation-database", "none", "--seed", &seed.to_string()])
        .args(["--max-examples", &examples.to_string(), "--checks", &CHECKS.join(",")])
        // A busy machine is slow.
        .args(["--suppress-health-check", "all", "--request-timeout", "30"])
        .args(["--continue-on-failure", "--report", "json", "--report-json-path"])
        .arg(&report)
        .env("SCHEMATHESIS_HOOKS", "hooks")
        .env("PYTHONPATH", &dir)
        .env("HOME", &dir)
        .current_dir(&dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = || format!("{said}{}\n{}", String::from_utf8_lossy(&output.stderr), lab.describe());
    assert!(output.status.success(), "the node does not do what /openapi.json says:\n{}", failed());
    serde_json::from_str(&fs::read_to_string(&report).unwrap_or_else(|_| panic!("{}", failed()))).unwrap()
}

fn write(dir: &Path, name: &str, content: &str) {
    fs::write(dir.join(name), content).unwrap();
}

#[test]
fn a_node_does_what_its_openapi_document_says() {
    let Some(program) = schemathesis("a_node_does_what_its_openapi_document_says") else { return };
    scenario("a_node_does_what_its_openapi_document_says", |lab| {
        let hosts = [lab.host(), lab.host()];
        let roles = ["--demo", "--role", "log,grading,visits,kv,portal,gateway", "--name", "m1"];
        let node = lab.start(Some(&hosts[0]), "m1", 7500, &roles);
        // A second replica, so that writes reach every level.
        let other =
            lab.start(Some(&hosts[1]), "m2", 7500, &["--role", "log,grading,visits,kv", "--name", "m2"]);
        lab.until(10 * S, "they see each other", |lab| {
            lab.sees(node, "m2").as_deref() == Some("alive")
                && lab.sees(other, "m1").as_deref() == Some("alive")
        });
        // The ids are those of the document's examples.
        let check = json!([{"id": "web-1-ttl", "ttl": "30s"}]);
        let web = json!({"name": "web", "id": "web-1", "port": 8080, "requires": ["db"], "checks": check});
        let db = json!({"name": "db", "id": "db-1", "port": 5432, "checks": [{"ttl": "1h", "initial_status": "passing"}]});
        for (host, registration) in [(&hosts[0], web), (&hosts[1], db)] {
            assert_eq!(host.send(7500, "POST /services", &registration.to_string()).status, 200);
        }
        lab.until(5 * S, "an instance of the other node is listed", |lab| {
            lab.get(node, "/services/db").is_some()
        });
        let document = lab.get(node, "/openapi.json").unwrap();
        assert_registry_is_described(&document);
        let dir = lab.dir().join("schemathesis");
        fs::create_dir_all(&dir).unwrap();
        write(&dir, "openapi.json", &bounded(document).to_string());
        write(&dir, "schemathesis.toml", CONFIGURATION);
        write(&dir, "hooks.py", HOOKS);
        let seed: u64 = std::env::var("LAB_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        let (examples, least) = if std::env::var_os("LAB_LONG").is_some() { LONG } else { SHORT };
        let mut sent = 0;
        // The number of requests depends on the seed.
        for seed in (seed..).take(SEEDS_MAX) {
            let report = run(lab, &program, &hosts[0].name, examples, seed);
            assert_eq!(report["operations"]["tested"], report["operations"]["total"]);
            sent += report["test_cases"]["generated"].as_u64().unwrap();
            println!("LAB_SEED={seed}: {sent} requests by now");
            if sent >= least {
                break;
            }
        }
        assert!(sent >= least, "{sent} requests, and {least} were wanted");
        assert!(lab.get(node, "/readyz").is_some(), "the node is no longer ready");
        assert_eq!(lab.logged("panicked"), Vec::<String>::new());
    });
}
