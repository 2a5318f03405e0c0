//! JSON-RPC over real nodes: Go's `net/rpc/jsonrpc` over TCP, and curl over HTTP. A node without roles
//! carries out the calls of the grade book and the log at another node.
//!
//! | file | content |
//! | --- | --- |
//! | `specification` | the examples of the specification, and the forms of requests and HTTP |
//! | `codes` | every error code |
//! | `hostile` | clients that send half a line, too much, or read nothing |

#![allow(clippy::unwrap_used)]

mod codes;
mod hostile;
mod specification;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpStream},
    process::Command,
    time::Duration,
};

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef,
    clients::{command_on, find_program, run_to_end},
    registry::{all_see_all, passing},
    scenario,
};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);
/// Requests of a batch.
const BATCH_MAX: usize = 100;
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

/// Sends a message with curl to the node of a host, and returns the status and the body of the response.
fn curl(lab: &Lab, host: &Host, options: &[&str], message: &[u8]) -> (u16, String) {
    curl_to(lab, host, "127.0.0.1", options, message)
}

/// Sends a message with curl from a host to the node at an address.
fn curl_to(lab: &Lab, host: &Host, address: &str, options: &[&str], message: &[u8]) -> (u16, String) {
    let file = lab.dir().join("message");
    fs::write(&file, message).unwrap();
    let mut curl = command_on(host, "curl");
    curl.args(["-sS", "-w", "\n%{http_code}"]).args(options);
    if !options.iter().any(|option| option.starts_with("content-type")) {
        curl.args(["-H", "content-type: application/json"]);
    }
    curl.arg("--data-binary").arg(format!("@{}", file.display())).arg(format!("http://{address}:7500/rpc"));
    let output = run_to_end(lab, curl);
    let (body, status) = output.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

/// A call with the id 1.
fn request(method: &str, params: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "method": method, "params": params, "id": 1 })
}

/// Sends bytes to the TCP port of the node on a host, and returns the lines of its answer.
fn lines(host: &Host, bytes: &[u8]) -> Vec<Value> {
    host.enter(|| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 7800)).unwrap();
        stream.set_read_timeout(Some(30 * S)).unwrap();
        // The node may end the connection before it has read everything.
        _ = stream.write_all(bytes);
        _ = stream.shutdown(Shutdown::Write);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    })
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

#[test]
fn a_message_at_a_node_without_the_role_sees_its_own_writes_and_has_their_receipts() {
    const TEST: &str = "a_message_at_a_node_without_the_role_sees_its_own_writes_and_has_their_receipts";
    if find_program(TEST, "curl", None).is_none() {
        return;
    }
    scenario(TEST, |lab| {
        let (hosts, nodes) = start(lab);
        let third = lab.host();
        let other = lab.start(Some(&third), "m2", 7500, &["--name", "m2", "--role", "grading"]);
        all_see_all(lab, &[nodes[0], nodes[1], other]);
        lab.until(10 * S, "both are listed", |lab| passing(lab, nodes[0], "grading") == 2);
        let call = |id: u32, method: &str, params: Value| json!({ "jsonrpc": "2.0", "method": method, "params": params, "id": id });
        for id in 1..=20 {
            // Any of the two replicas carries out each of them.
            let batch = json!([
                call(
                    1,
                    "students.add",
                    json!({ "id": id, "firstName": "Ada", "lastName": "Lovelace", "ack": "local" })
                ),
                call(2, "students.addGrade", json!([id, "Notes", "Exam", 97])),
                call(3, "students.get", json!([id])),
            ]);
            let (_, answer) = curl(lab, &hosts[0], &["-i"], batch.to_string().as_bytes());
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            let answers: Value = serde_json::from_str(body).unwrap();
            assert_eq!(answers[2]["result"]["grades"][0]["score"].as_f64(), Some(97.0), "{answers}");
            let header =
                |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            assert_eq!(header("Hearsay-Token: ").split(',').count(), 2, "{head}");
            assert!(["local", "replicated", "majority"].contains(&header("Hearsay-Ack: ")), "{head}");
            // Another message sees them with the tokens, at any replica.
            let token = format!("hearsay-token: {}", header("Hearsay-Token: "));
            let read = call(4, "students.get", json!([id])).to_string();
            let (_, answer) = curl(lab, &hosts[0], &["-H", &token], read.as_bytes());
            assert!(answer.contains("Lovelace"), "{answer}");
        }
        // So does a connection.
        for id in 101..=110 {
            let text = format!(
                "{}\n{}\n",
                json!({ "method": "students.add", "params": [{ "id": id, "firstName": "A", "lastName": "B", "ack": "local" }], "id": 1 }),
                json!({ "method": "students.get", "params": [id], "id": 2 }),
            );
            let answers = lines(&hosts[0], text.as_bytes());
            assert_eq!(answers[1]["result"]["lastName"], "B", "{answers:?}");
        }
    });
}
