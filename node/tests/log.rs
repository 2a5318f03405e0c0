//! Tests of `node log append` against fake nodes: each line of standard input is recorded or reported, with
//! any input and any failures of nodes.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap that fails is the test failing")]

mod server;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::{Duration, Instant},
};

use serde_json::Value;
use server::{Reply, Server};

const RECORDED: &str = r#"{"records":[]}"#;
const NO_PROVIDER: &str = r#"{"services":{}}"#;

/// Time limit for a fact; generous for slow machines.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running `node log append` with a pipe as its input.
struct Append {
    child: Child,
    /// Lines of standard error, until it is closed.
    stderr: Receiver<String>,
}

impl Append {
    fn start(url: &str, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_node"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("HEARSAY_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .args(["log", "append", "--node", url])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, stderr) = channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| said.send(line)));
        Self { child, stderr }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Waits for a line on standard error that contains these words.
    fn await_notice(&mut self, words: &str) {
        let mut said = Vec::new();
        while !said.last().is_some_and(|line: &String| line.contains(words)) {
            match self.stderr.recv_timeout(PATIENCE) {
                Ok(line) => said.push(line),
                Err(_) => panic!("{words:?} is not in {said:?}"),
            }
        }
    }

    fn signal(&self, name: &str) {
        let killed = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    /// Waits for the end. Returns exit code, standard output, and the rest of standard error.
    fn finish(mut self) -> (i32, String, String) {
        let mut stderr = String::new();
        loop {
            match self.stderr.recv_timeout(PATIENCE) {
                Ok(line) => stderr += &format!("{line}\n"),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it does not end; it says {stderr:?}"),
            }
        }
        let mut stdout = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        (self.child.wait().unwrap().code().unwrap(), stdout, stderr)
    }

    /// Closes the input and waits for the end.
    fn end(mut self) -> (i32, String, String) {
        drop(self.child.stdin.take());
        self.finish()
    }
}

impl Drop for Append {
    fn drop(&mut self) {
        // Has an effect only if the test failed.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Waits until the node has received a batch.
fn await_batch(server: &Server) {
    let ends = Instant::now() + PATIENCE;
    while server.bodies().concat().is_empty() {
        assert!(Instant::now() < ends, "nothing is sent");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns a fake log node that accepts this number of batches.
fn log_node(batches: usize) -> Server {
    let server = Server::start(&[
        ("GET /log?limit=1", Reply::ok("{}")),
        ("GET /services/log", Reply::ok(NO_PROVIDER)),
    ]);
    (0..batches).for_each(|_| server.expect("POST /log", Reply::ok(RECORDED)));
    server
}

fn knows(url: &str) -> Reply {
    Reply::ok(&format!(r#"{{"services":{{"log":[{{"node":"n2","url":"{url}","health":"passing"}}]}}}}"#))
}

/// Returns the messages of all received batches.
fn messages(server: &Server) -> Vec<String> {
    let records = server.bodies().concat();
    records
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["message"].as_str().unwrap().to_owned())
        .collect()
}

fn keys(server: &Server) -> Vec<String> {
    let is_key = |line: &&str| line.starts_with("idempotency-key: ");
    server.requests().iter().filter_map(|head| Some(head.lines().find(is_key)?.to_owned())).collect()
}

/// Returns a URL at which nothing listens.
fn nowhere() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn odd_lines_are_recorded_and_each_kind_is_reported_once_with_its_line() {
    let server = log_node(20);
    let mut append = Append::start(&server.url, &["--service", "s", "--level", "FATAL"]);
    append.write(b"1\n\ncaf\xe9\nna\xefve\r\n");
    append.write(&[vec![b'z'; 40_000], b"\n".to_vec()].concat());
    append.write(&[vec![b'y'; 70_000], b"\nlast".to_vec()].concat());
    let (code, stdout, stderr) = append.end();
    assert_eq!((code, stdout.as_str()), (0, "9 records\n"), "{stderr}");
    let told: Vec<_> = stderr.lines().collect();
    assert_eq!(told.len(), 2, "{stderr}");
    assert!(
        told[0].starts_with("line 3 is not UTF-8") && told[1].starts_with("line 5 is too long"),
        "{stderr}"
    );
    let messages = messages(&server);
    assert_eq!(messages[..3], ["1", "caf\u{fffd}", "na\u{fffd}ve"]);
    assert_eq!((messages[3..5].concat(), messages[5..8].concat()), ("z".repeat(40_000), "y".repeat(70_000)));
    assert_eq!(messages[8], "last");
    let record: Value = serde_json::from_str(server.bodies().concat().lines().next().unwrap()).unwrap();
    assert_eq!((&record["service"], &record["level"]), (&"s".into(), &"error".into()));
    let mut keys = keys(&server);
    let sent = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), sent, "each batch has a key of its own");
}

#[test]
fn without_a_log_node_it_waits_and_then_continues() {
    let address = nowhere();
    let mut append = Append::start(&format!("http://{address}"), &[]);
    append.write(b"1\n2\n");
    append.await_notice("waiting for one");
    let server = Server::start_at(
        &address,
        &[
            ("GET /log?limit=1", Reply::ok("{}")),
            ("GET /services/log", Reply::ok(NO_PROVIDER)),
            ("GET /services/log", Reply::ok(NO_PROVIDER)),
            ("POST /log", Reply::ok(RECORDED)),
            ("POST /log", Reply::ok(RECORDED)),
        ],
    );
    append.await_notice("continuing");
    append.write(b"3\n");
    let (code, stdout, stderr) = append.end();
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, "3 records\n", ""));
    assert_eq!(messages(&server), ["1", "2", "3"]);
}

#[test]
fn a_batch_whose_answer_is_lost_goes_to_another_node_under_the_same_key() {
    let other = Server::start(&[("POST /log", Reply::ok(RECORDED))]);
    let asked = Server::start(&[
        ("GET /log?limit=1", Reply::ok("{}")),
        ("GET /services/log", knows(&other.url)),
        // This node closes the connection within its answer.
        ("POST /log", Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")),
    ]);
    let mut append = Append::start(&asked.url, &[]);
    append.write(b"1\n");
    let (code, stdout, stderr) = append.end();
    assert_eq!((code, stdout.as_str()), (0, "1 records\n"), "{stderr}");
    assert_eq!(keys(&asked), keys(&other));
    assert_eq!((keys(&other).len(), asked.bodies().concat()), (1, other.bodies().concat()));
}

#[test]
fn a_signal_while_it_waits_ends_it_with_the_lines_that_are_not_recorded() {
    for name in ["-TERM", "-INT"] {
        let server = log_node(1);
        let mut append = Append::start(&server.url, &[]);
        append.write(b"recorded\n");
        await_batch(&server);
        // From now on the node answers 404: it no longer has the role.
        append.write(b"2\n\n4\nunfinished");
        append.await_notice("waiting for one");
        append.signal(name);
        let (code, _, stderr) = append.finish();
        assert_eq!(code, 1, "{stderr}");
        assert!(
            stderr.contains("3 lines that were read are not known to be recorded, from line 2 on"),
            "{stderr}"
        );
    }
}

#[test]
fn a_signal_after_all_is_recorded_is_success() {
    let server = log_node(2);
    let mut append = Append::start(&server.url, &[]);
    append.write(b"1\n2");
    await_batch(&server);
    append.signal("-TERM");
    let (code, stdout, stderr) = append.finish();
    assert_eq!((code, stdout.as_str()), (0, "2 records\n"), "{stderr}");
    assert_eq!(messages(&server), ["1", "2"]);
}

#[test]
fn refused_records_are_reported_by_line_and_the_others_are_recorded() {
    let partly =
        r#"{"records":[{"id":"a"}],"refused":[{"record":1,"line":2,"detail":"message: no \u001b[2J"}]}"#;
    let server = log_node(0);
    server.expect("POST /log", Reply::status(207, partly));
    let mut append = Append::start(&server.url, &[]);
    append.write(b"\n2\n3\n");
    let (code, stdout, stderr) = append.end();
    assert_eq!((code, stdout.as_str()), (1, "1 records\n"), "{stderr}");
    assert!(stderr.contains("line 3 is refused: message: no \\u001b[2J"), "{stderr}");
    // An older node refuses a whole batch.
    let server = log_node(0);
    server.expect("POST /log", Reply::status(400, r#"{"detail":"no"}"#));
    server.expect("POST /log", Reply::ok(RECORDED));
    let mut append = Append::start(&server.url, &[]);
    append.write(b"1\n2\n");
    append.await_notice("lines 1 to 2 are refused: no");
    append.write(b"3\n");
    let (code, stdout, stderr) = append.end();
    assert_eq!((code, stdout.as_str()), (1, "1 records\n"), "{stderr}");
}

#[test]
fn invalid_fields_are_wrong_usage() {
    for (args, words) in [
        (["--level", "loud"], "--level: \"loud\" is not a level: trace"),
        (["--service", ""], "--service has 0 bytes; give 1 to 128"),
    ] {
        let (code, _, stderr) = Append::start("http://127.0.0.1:1", &args).end();
        assert!(code == 2 && stderr.contains(words), "{code} {stderr}");
    }
}
