//! Tests of the real program's command line, mostly against a fake node: exit codes, output and requests of
//! `members`, `services`, `watch`, `forget`, `log`, `doctor` and other commands, and errors for wrong usage.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap that fails is the test failing")]

mod server;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Command, Output, Stdio},
};

use server::{Reply, Server};

const MEMBERS: &str = r#"{"cluster":"default","node":"db1","rootHash":"12ab","members":[
  {"id":"12D3","name":"db1","state":"alive","roles":["grading"],"addresses":["/ip4/127.0.0.1/tcp/1"],
   "http":"127.0.0.1:1","incarnation":1,"version":3,"since":"2026-11-21T00:00:00Z","rttMs":null},
  {"id":"12D4","name":"evil\u001b[2J","state":"failed","roles":[],"addresses":[],"http":null,
   "incarnation":1,"version":3,"since":"2026-11-21T00:00:00Z","rttMs":1.25}]}"#;
const SERVICES: &str = r#"{"cluster":"default","node":"db1","index":7,"services":{"grading":[
  {"id":"g1","name":"grading","node":"db1","nodeId":"12D3","address":"10.0.0.1","port":7500,
   "url":"http://10.0.0.1:7500","tags":["a","b"],"meta":{},"health":"passing","since":"2026-11-21T00:00:00Z"}]}}"#;
const NO_SERVICE: &str =
    r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"no service \"x y\""}"#;

/// Returns the program with a clean environment.
fn node() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_node"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HEARSAY_") {
            command.env_remove(name);
        }
    }
    // Keeps the program from finding the socket of a node on this machine.
    command.env_remove("XDG_RUNTIME_DIR").env("XDG_STATE_HOME", "/nowhere");
    command
}

fn run(args: &[&str]) -> (i32, String, String) {
    finish(node().args(args).output().unwrap())
}

fn finish(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Runs a command against a fake node with these replies.
fn ask(replies: &[(&str, Reply)], args: &[&str]) -> (i32, String, String) {
    let server = Server::start(replies);
    run(&[args, &["--node", &server.url]].concat())
}

#[test]
fn an_error_that_cannot_be_written_changes_no_exit_code() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let status = node().args(["members", "--node", "http://127.0.0.1:1"]).stderr(full).status().unwrap();
    assert_eq!(status.code(), Some(3));
}

#[test]
fn wrong_usage_ends_with_2_and_names_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    std::fs::write(&file, "clustr = 'x'\n").unwrap();
    let file = file.to_str().unwrap();
    let table: [(&[&str], &str); 10] = [
        (&["--frobnicate"], "--frobnicate"),
        (&["frobnicate"], "frobnicate"),
        (&["--role", "gradin"], "grading"),
        (&["--http", "x"], "http:"),
        (&["--ephemeral", "--data-dir", "/nowhere"], "--data-dir"),
        (&["--key-file", "/nowhere"], "node keygen"),
        (&["--config", file], "clustr"),
        (&["--json"], "--json"),
        (&["--cluster", "x", "services"], "options of a node"),
        (&["members", "--node", "https://db1:7500"], "http://host:port"),
    ];
    for (args, part) in table {
        let (code, stdout, stderr) = run(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(part), "{args:?}: {stderr}");
    }
    let (code, _, stderr) = finish(node().env("HEARSAY_DEMO", "maybe").output().unwrap());
    assert_eq!(code, 2);
    assert!(stderr.contains("HEARSAY_DEMO"), "{stderr}");
}

#[test]
fn help_shows_options_and_examples_and_ends_with_0() {
    for args in [&["help"][..], &["--help"]] {
        let (code, stdout, _) = run(args);
        assert_eq!(code, 0);
        for part in ["--role", "--replicas-expected", "Examples:", "doctor", "HEARSAY_DATA_DIR"] {
            assert!(stdout.contains(part), "{part}: {stdout}");
        }
    }
    assert!(run(&["services", "--help"]).1.contains("jq"));
}

#[test]
fn without_an_answer_the_code_is_3_and_the_url_is_named() {
    // The port was bound and closed again, so it is free.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    for command in [&["services"][..], &["members"], &["watch"], &["why", "x"], &["leave"], &["health"]] {
        let (code, stdout, stderr) = run(&[command, &["--node", &url]].concat());
        assert_eq!((code, stdout.as_str()), (3, ""), "{command:?}");
        assert!(stderr.contains(&url) && stderr.contains("--node"), "{stderr}");
    }
    let (code, _, stderr) = finish(node().arg("members").env("HEARSAY_NODE", &url).output().unwrap());
    assert_eq!(code, 3);
    assert!(stderr.contains(&url), "{stderr}");
}

#[test]
fn members_are_a_table_without_control_characters() {
    let (code, stdout, stderr) = ask(&[("GET /members", Reply::ok(MEMBERS))], &["members"]);
    assert_eq!(code, 0, "{stderr}");
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{stdout}");
    assert!(lines[0].starts_with("NAME"), "{stdout}");
    assert!(lines[1].starts_with("db1") && lines[1].contains("alive"), "{stdout}");
    assert!(lines[2].contains("\\u001b[2J") && lines[2].contains("1.2 ms"), "{stdout}");
    assert!(!stdout.contains('\x1b'), "{stdout}");
}

#[test]
fn json_is_the_nodes_own() {
    for (path, body, command) in
        [("GET /members", MEMBERS, "members"), ("GET /services", SERVICES, "services")]
    {
        let (code, stdout, _) = ask(&[(path, Reply::ok(body))], &[command, "--json"]);
        assert_eq!((code, stdout.trim_end()), (0, body));
    }
}

#[test]
fn a_service_is_found_by_name_and_an_unknown_one_ends_with_2() {
    let (code, stdout, _) = ask(&[("GET /services/grading", Reply::ok(SERVICES))], &["services", "grading"]);
    assert_eq!(code, 0);
    assert!(stdout.contains("http://10.0.0.1:7500") && stdout.contains("a,b"), "{stdout}");
    let unknown = [("GET /services/x%20y", Reply::status(404, NO_SERVICE))];
    let (code, stdout, stderr) = ask(&unknown, &["services", "x y"]);
    assert_eq!((code, stdout.as_str()), (2, ""));
    assert!(stderr.contains("no service \"x y\""), "{stderr}");
}

#[test]
fn why_prints_a_line_per_event() {
    let events = r#"{"events":[{"time":"2026-11-21T00:00:00Z","event":"failed","by":"db2","text":"db2: connection refused"}]}"#;
    let (code, stdout, _) = ask(&[("GET /why/db1", Reply::ok(events))], &["why", "db1"]);
    assert_eq!((code, stdout.as_str()), (0, "2026-11-21T00:00:00Z  db2: connection refused\n"));
}

#[test]
fn leave_sends_the_token_and_reports_a_refusal() {
    let server = Server::start(&[("PUT /v1/agent/leave", Reply::ok(""))]);
    let leave = node().args(["leave", "--node", &server.url]).env("HEARSAY_TOKEN", "abc").output().unwrap();
    assert_eq!(leave.status.code(), Some(0));
    let request = server.requests().remove(0).to_lowercase();
    assert!(request.contains("authorization: bearer abc"), "{request}");
    let (code, _, stderr) =
        ask(&[("PUT /v1/agent/leave", Reply::status(403, "Permission denied"))], &["leave"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("Permission denied") && stderr.contains("HEARSAY_TOKEN"), "{stderr}");
    assert!(!stderr.contains("abc"), "{stderr}");
}

#[test]
fn forget_selects_a_gone_member_and_reports_a_refusal() {
    const GONE: &str = r#"{"members":[{"id":"12D1","name":"a","state":"alive"},{"id":"12D2","name":"a","state":"failed"},
        {"id":"12D3","name":"b","state":"left"},{"id":"12D4","name":"b","state":"failed"},{"id":"12D5","name":"c","state":"suspect"}]}"#;
    let members = || ("GET /members", Reply::ok(GONE));
    // `forget` selects the failed member, although an alive member has the same name.
    let forgotten = Reply::ok(r#"{"id":"12D2","name":"a"}"#);
    let (code, stdout, stderr) = ask(&[members(), ("DELETE /members/12D2", forgotten)], &["forget", "a"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("a is forgotten"), "{stdout}");
    let (code, _, stderr) = ask(&[members()], &["forget", "b"]);
    assert!(code == 2 && stderr.contains("12D3 (left)") && stderr.contains("12D4 (failed)"), "{stderr}");
    let (code, ..) = ask(&[members(), ("DELETE /members/12D4", Reply::ok("{}"))], &["forget", "12D4"]);
    assert_eq!(code, 0);
    let refused = Reply::status(409, r#"{"detail":"the member \"c\" is suspect here"}"#);
    let (code, _, stderr) = ask(&[members(), ("DELETE /members/12D5", refused)], &["forget", "c"]);
    assert!(code == 1 && stderr.contains("suspect"), "{stderr}");
    let (code, _, stderr) = ask(&[members()], &["forget", "d"]);
    assert!(code == 2 && stderr.contains("node members"), "{stderr}");
}

#[test]
fn health_is_an_exit_code() {
    assert_eq!(ask(&[("GET /readyz", Reply::ok("ok"))], &["health"]).0, 0);
    let (code, _, stderr) = ask(&[("GET /readyz", Reply::status(503, "leaving"))], &["health"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("leaving"), "{stderr}");
}

#[test]
fn an_answer_of_another_server_is_a_failure() {
    let (code, _, stderr) = ask(&[("GET /members", Reply::ok("<html>"))], &["members"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("not one of a Hearsay node"), "{stderr}");
    let (code, _, stderr) = ask(&[("GET /members", Reply::raw("SSH-2.0-x\r\n"))], &["members"]);
    assert_eq!(code, 3, "{stderr}");
}

#[test]
fn watch_prints_a_line_per_change_and_resumes_after_the_last_one() {
    let event = |id: u32, what: &str| {
        format!(
            "id: {id}\nevent: {what}\ndata: {{\"name\":\"web\",\"node\":\"db1\",\"url\":\"http://a:1\",\"health\":\"passing\"}}\n\n"
        )
    };
    let server = Server::start(&[
        ("GET /services/watch", Reply::stream(event(41, "added"))),
        ("GET /services/watch", Reply::stream(event(42, "removed"))),
    ]);
    let mut watch = node()
        .args(["watch", "--node", &server.url])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines: Vec<_> =
        BufReader::new(watch.stdout.take().unwrap()).lines().take(2).map(Result::unwrap).collect();
    watch.kill().unwrap();
    watch.wait().unwrap();
    assert!(lines[0].contains("added") && lines[0].contains("web  db1"), "{lines:?}");
    assert!(lines[1].contains("removed"), "{lines:?}");
    let requests = server.requests();
    assert!(!requests[0].to_lowercase().contains("last-event-id"), "{requests:?}");
    assert!(requests[1].to_lowercase().contains("last-event-id: 41"), "{requests:?}");
}

const LOG: &str =
    r#"{"node":"n1","services":{"log":[{"node":"n1","url":"http://10.0.0.1:7500","health":"passing"}]}}"#;
const RECORD: &str = r#"{"id":"x","node":"n1","offset":0,"time":"T","service":"web","level":"warn","message":"slow \u001b[2J"}"#;

#[test]
fn the_log_is_searched_and_an_empty_answer_ends_with_2() {
    let page = |records: &str| Reply::ok(&format!(r#"{{"records":[{records}],"next":null}}"#));
    let request = "GET /log?level=warn&before=end&limit=50&q=slow%20query";
    let search = |json: &'static [&'static str], page: Reply| {
        let args = [&["log", "search", "slow", "query", "--level", "warn"], json].concat();
        ask(&[("GET /services/log", Reply::ok(LOG)), (request, page)], &args)
    };
    let (code, stdout, stderr) = search(&[], page(RECORD));
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("T     warn   web      n1    slow \\u001b[2J"), "{stdout}");
    assert_eq!(search(&[], page("")).0, 2);
    let (code, stdout, _) = search(&["--json"], page(RECORD));
    assert!(code == 0 && stdout.contains(RECORD), "{stdout}");
    let no_service = [("GET /services/log", Reply::status(404, NO_SERVICE))];
    let (code, _, stderr) = ask(&no_service, &["log", "search", "x"]);
    assert!(code == 2 && stderr.contains("--role log"), "{stderr}");
}

#[test]
fn the_log_is_written_and_read_at_a_log_node() {
    let keeper = Server::start(&[("POST /log", Reply::ok(r#"{"id":"w-1","offset":0,"ack":"replicated"}"#))]);
    let elsewhere = format!(
        r#"{{"node":"n1","services":{{"log":[{{"node":"n2","url":"{}","health":"passing"}}]}}}}"#,
        keeper.url
    );
    let asked = [("GET /services/log", Reply::ok(&elsewhere))];
    let (code, stdout, stderr) = ask(&asked, &["log", "append", "it", "works", "--token", "secret"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("w-1") && stdout.contains("replicated"), "{stdout}");
    let request = keeper.requests().remove(0).to_lowercase();
    assert!(request.contains("application/json") && !request.contains("secret"), "{request}");
}

#[test]
fn a_tail_is_a_line_per_record_and_resumes_after_the_last_one() {
    let event = |id: u32| format!("id: c.{id}\ndata: {RECORD}\n\n");
    let server = Server::start(&[
        ("GET /services/log", Reply::ok(LOG)),
        ("GET /log/tail?last=3&q=slow", Reply::stream(event(1))),
        ("GET /log/tail?last=3&q=slow", Reply::stream(event(2))),
    ]);
    let mut tail = node()
        .args(["log", "tail", "-n", "3", "--grep", "slow", "--node", &server.url])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines: Vec<_> =
        BufReader::new(tail.stdout.take().unwrap()).lines().take(2).map(Result::unwrap).collect();
    tail.kill().unwrap();
    tail.wait().unwrap();
    assert!(lines.iter().all(|line| line == "T  warn   web@n1  slow \\u001b[2J"), "{lines:?}");
    assert!(server.requests()[2].to_lowercase().contains("last-event-id: c.1"));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let server = Server::start(&[("GET /members", Reply::ok(MEMBERS))]);
    let mut members = node()
        .args(["members", "--node", &server.url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(members.stdout.take());
    let mut stderr = String::new();
    members.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((members.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_node_accepts_a_key_from_keygen() {
    let (code, key, _) = run(&["keygen"]);
    assert_eq!(code, 0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cluster.key");
    std::fs::write(&path, &key).unwrap();
    // The key file is read before the unknown role is reported.
    let (code, _, stderr) = run(&["--key-file", path.to_str().unwrap(), "--role", "gardener"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("gardener"), "{stderr}");
    assert_ne!(run(&["keygen"]).1, key);
}

#[test]
fn completions_know_the_commands() {
    let (code, script, _) = run(&["completions", "bash"]);
    assert_eq!(code, 0);
    assert!(script.contains("doctor") && script.contains("--replicas-expected"));
}

/// Joining a multicast group sends messages, so the doctor is tested in its own network namespace.
#[test]
fn the_doctor_prints_problems_and_advice() {
    const INSIDE: &str = "HEARSAY_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_none() {
        let script = "ip link set lo up && exec \"$0\" --exact the_doctor_prints_problems_and_advice";
        let inside = Command::new("unshare")
            .args(["-Urn", "sh", "-c", script])
            .arg(std::env::current_exe().unwrap())
            .env(INSIDE, "1")
            .output();
        let possible = Command::new("unshare").args(["-Urn", "ip", "link", "set", "lo", "up"]).output();
        if !possible.is_ok_and(|output| output.status.success()) {
            assert_ne!(std::env::var("LAB").as_deref(), Ok("full"), "no network namespaces");
            eprintln!("skipped: no network namespaces here (unshare -Urn, ip)");
            return;
        }
        let inside = inside.unwrap();
        assert!(inside.status.success(), "{}", String::from_utf8_lossy(&inside.stdout));
        return;
    }
    let (code, stdout, stderr) = run(&["doctor"]);
    assert_eq!(code, 3, "{stdout}");
    assert!(stdout.contains("FAIL  no node answers at http://127.0.0.1:7500"), "{stdout}");
    assert!(stdout.contains("warn  no interface is up that can multicast"), "{stdout}");
    assert!(stdout.contains("what to do: ") && stdout.contains("--join"), "{stdout}");
    assert!(stderr.contains("no node answers at http://127.0.0.1:7500"), "{stderr}");

    // A node that is alone is healthy, with a warning.
    let swarm = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::start(&[("GET /readyz", Reply::ok("ok"))]);
    let alone = format!(
        r#"{{"cluster":"default","node":"db1","rootHash":"12ab","members":[{{"name":"db1","state":"alive",
            "addresses":["/ip4/127.0.0.1/tcp/{}"],"http":"{}"}}]}}"#,
        swarm.local_addr().unwrap().port(),
        server.url
    );
    (0..8).for_each(|_| server.expect("GET /members", Reply::ok(&alone)));
    let (code, stdout, stderr) = run(&["doctor", "--json", "--node", &server.url]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let findings: Vec<serde_json::Value> = serde_json::from_str(&stdout).unwrap();
    let verdict = |part: &str| {
        findings.iter().find(|f| f["what"].as_str().unwrap().contains(part)).unwrap()["verdict"].clone()
    };
    assert_eq!(verdict("is alone"), "warn");
    assert_eq!(verdict("only loopback"), "warn");
    assert_eq!(verdict("swarm port can be reached"), "ok");
}

#[test]
fn bootstrap_files_have_the_address_and_zone_of_the_node() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let members = MEMBERS.replacen("\"http\":", &format!("\"grpc\":\"10.0.0.1:{port}\",\"http\":"), 1);
    let replies = [
        ("GET /members", Reply::ok(&members)),
        ("GET /v1/agent/self", Reply::ok(r#"{"Meta":{"zone":"east"}}"#)),
    ];
    let (code, stdout, stderr) = ask(&replies, &["xds", "bootstrap", "envoy"]);
    assert_eq!(code, 0, "{stderr}");
    // The node of this machine is reached on loopback, where something listens at that port.
    for line in [
        "  id: \"envoy-db1\"".to_owned(),
        "  locality: {zone: \"east\"}".to_owned(),
        format!("                    socket_address: {{address: \"127.0.0.1\", port_value: {port}}}"),
    ] {
        assert!(stdout.lines().any(|found| found == line), "{line}: {stdout}");
    }
    // Nothing listens at port 1 of loopback.
    let elsewhere = members.replace(&format!("10.0.0.1:{port}"), "10.0.0.1:1");
    let replies = [("GET /members", Reply::ok(&elsewhere)), replies[1].clone()];
    let (code, stdout, _) = ask(&replies, &["xds", "bootstrap", "grpc", "--id", "x", "--json"]);
    let file: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let found = (code, &file["node"]["id"], &file["node"]["locality"]["zone"]);
    assert_eq!(found, (0, &"x".into(), &"east".into()));
    assert_eq!(file["xds_servers"][0]["server_uri"], "10.0.0.1:1");
    let (code, stdout, stderr) = ask(&[("GET /members", Reply::ok(MEMBERS))], &["xds", "bootstrap", "grpc"]);
    assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
    assert!(stderr.contains("\"db1\" serves no gRPC") && stderr.contains("--grpc"), "{stderr}");
    let (code, _, stderr) = run(&["xds", "bootstrap", "envoy", "--id", ""]);
    assert!(code == 2 && stderr.contains("--id has 1 to 192 bytes"), "{stderr}");
}
