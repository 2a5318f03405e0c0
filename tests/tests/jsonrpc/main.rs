//! JSON-RPC over real nodes: Go's `net/rpc/jsonrpc` over TCP, and curl over HTTP. A node without roles
//! carries out the calls of the grade book and the log at another node.

#![allow(clippy::unwrap_used)]

use std::{fs, process::Command, time::Duration};

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef,
    clients::{command_on, find_program, run_to_end},
    registry::all_see_all,
    scenario,
};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);
/// A program that calls every kind of method.
const ROUND: &str = include_str!("round.go");

/// Starts a node without roles that speaks JSON-RPC over TCP, and a node with the grade book and the log.
fn start(lab: &mut Lab) -> ([Host; 2], [NodeRef; 2]) {
    let hosts = [lab.host(), lab.host()];
    let plain = lab.start(Some(&hosts[0]), "m0", 7500, &["--name", "m0", "--jsonrpc-tcp", "0.0.0.0:7800"]);
    let roles = ["--name", "m1", "--role", "grading,log"];
    let nodes = [plain, lab.start(Some(&hosts[1]), "m1", 7500, &roles)];
    all_see_all(lab, &nodes);
    lab.until(10 * S, "the roles are listed", |lab| {
        ["grading", "log"].iter().all(|role| {
            lab.get(nodes[0], &format!("/services/{role}"))
                .is_some_and(|services| services["services"][role].is_array())
        })
    });
    (hosts, nodes)
}

/// Posts a message to the node of a host with curl, and returns the response.
fn post(lab: &Lab, host: &Host, message: &Value) -> Value {
    let mut curl = command_on(host, "curl");
    curl.args(["-sS", "--fail-with-body", "-H", "content-type: application/json", "--data-binary"]);
    curl.arg(message.to_string()).arg("http://127.0.0.1:7500/rpc");
    serde_json::from_str(&run_to_end(lab, curl)).unwrap()
}

#[test]
fn go_calls_every_kind_of_method() {
    const TEST: &str = "go_calls_every_kind_of_method";
    let Some(go) = find_program(TEST, "go", None) else { return };
    scenario(TEST, |lab| {
        let (hosts, nodes) = start(lab);
        let (source, program) = (lab.dir().join("round.go"), lab.dir().join("round"));
        fs::write(&source, ROUND).unwrap();
        let mut build = Command::new(&go);
        build.arg("build").arg("-o").arg(&program).arg(&source);
        // Without modules, nothing is downloaded.
        build.env("GO111MODULE", "off").env("GOCACHE", lab.dir().join("cache"));
        run_to_end(lab, build);
        let mut command = command_on(&hosts[0], &program);
        command.arg("127.0.0.1:7800");
        let members = run_to_end(lab, command);
        // They are listed by their ids, which are random.
        let mut members: Vec<&str> = members.lines().collect();
        members.sort_unstable();
        assert_eq!(members, ["m0 alive", "m1 alive"]);
        let log = lab.get(nodes[1], "/log?service=web").unwrap().to_string();
        assert!(log.contains("from go"), "{log}");
    });
}

#[test]
fn curl_sends_a_batch_and_no_http_request_is_a_line() {
    const TEST: &str = "curl_sends_a_batch_and_no_http_request_is_a_line";
    if find_program(TEST, "curl", None).is_none() {
        return;
    }
    scenario(TEST, |lab| {
        let (hosts, nodes) = start(lab);
        let request = |id: u32, method: &str, params: Value| json!({ "jsonrpc": "2.0", "method": method, "params": params, "id": id });
        let batch = json!([
            request(1, "services.register", json!({ "name": "web", "id": "web-1", "port": 8080 })),
            request(2, "services.get", json!(["web"])),
            request(3, "students.add", json!(["Ada", "Lovelace"])),
            request(4, "services.register", json!({ "name": "api", "id": "api-1", "port": 1, "node": "m1" })),
            request(5, "services.get", json!({})),
        ]);
        let answers = post(lab, &hosts[0], &batch);
        assert_eq!(answers[1]["result"]["services"]["web"][0]["port"], 8080, "{answers}");
        assert_eq!(answers[2]["result"]["lastName"], "Lovelace", "{answers}");
        assert_eq!(answers[3]["result"]["node"], "m1", "{answers}");
        assert_eq!(answers[4]["error"]["code"], -32602, "{answers}");
        let books = lab.get(nodes[1], "/students?q=Lovelace").unwrap();
        assert_eq!(books.as_array().unwrap().len(), 1);

        // What a page could make a browser send: the body is the same line as a client's.
        let line = r#"{"method":"services.register","params":[{"name":"evil","port":1}],"id":0}"#;
        let mut page = command_on(&hosts[0], "curl");
        page.args(["-s", "--http0.9", "-H", "content-type: text/plain", "--data-binary"]);
        page.arg(format!("{line}\n")).arg("http://127.0.0.1:7800/");
        let shown = String::from_utf8(page.output().unwrap().stdout).unwrap();
        assert!(shown.is_empty() || shown.contains("not a JSON object"), "{shown}");
        assert_eq!(
            post(lab, &hosts[0], &request(1, "services.get", json!(["evil"])))["error"]["code"],
            -32004
        );

        // A host without proof registers itself, and no other.
        let ask = |line: &str| {
            let mut shell = command_on(&hosts[1], "bash");
            let (ip, read) = (&hosts[0].ip, "read -r -t 20 line <&3; echo \"$line\"");
            shell.arg("-c").arg(format!("exec 3<>/dev/tcp/{ip}/7800; printf '%s\\n' '{line}' >&3; {read}"));
            serde_json::from_str::<Value>(&run_to_end(lab, shell)).unwrap()
        };
        let own = ask(r#"{"method":"services.register","params":[{"name":"own","port":1}],"id":0}"#);
        assert_eq!(own["error"], Value::Null, "{own}");
        let other = ask(
            r#"{"method":"services.register","params":[{"name":"other","address":"10.9.9.9","port":1}],"id":0}"#,
        );
        assert!(other["error"].as_str().unwrap().ends_with("(-32003)"), "{other}");
    });
}
