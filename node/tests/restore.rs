//! Tests of `node journal restore` with real backups against a fake node: without `--yes` nothing is written,
//! remaining differences are a failure, and damaged or foreign backups are refused.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap that fails is the test failing")]

mod book;
mod server;

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use hearsay_node::Store;
use serde_json::{Value, json};
use tempfile::TempDir;

use book::fill;
use server::{Reply, Server};

const LOOK: &str = "POST /students/restore?dry-run";
const WRITE: &str = "POST /students/restore";

/// A backup of a grade book with ten students.
struct Kept {
    dir: TempDir,
}

impl Kept {
    fn new() -> Self {
        let kept = Self { dir: tempfile::tempdir().unwrap() };
        let data = kept.dir.path().join("data");
        fill(&data, "shop");
        kept.backup();
        kept
    }

    /// Makes a backup of the data directory.
    fn backup(&self) {
        let (to, data) = (self.path(), self.dir.path().join("data"));
        _ = std::fs::remove_dir_all(&to);
        let (code, _, stderr) =
            node(&["journal", "backup", to.to_str().unwrap(), "--data-dir", data.to_str().unwrap()]);
        assert_eq!(code, 0, "{stderr}");
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("backup")
    }

    fn add_topic(&self, topic: &str) {
        let plugin = hearsay_node::builtin().into_iter().find(|s| s.name() == topic).unwrap();
        let path = self.dir.path().join("data/journal").join(format!("{topic}.db"));
        drop(Store::open(&path, "shop", topic, plugin.projection().unwrap().as_ref()).unwrap());
        self.backup();
    }

    /// Restores from this backup through a fake node.
    fn restore(&self, server: &Server, args: &[&str]) -> (i32, String, String) {
        restore(&self.path(), server, args)
    }
}

fn restore(from: &Path, server: &Server, args: &[&str]) -> (i32, String, String) {
    let from = ["journal", "restore", "--from", from.to_str().unwrap(), "--node", &server.url];
    node(&[&from, args].concat())
}

/// Returns the program with a clean environment and without a terminal.
fn node(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_node"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HEARSAY_") {
            command.env_remove(name);
        }
    }
    let output = command.args(args).stdin(std::process::Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Returns a fake node of the backup's cluster with the plug-in.
fn grading() -> Server {
    Server::start(&[
        ("GET /members", Reply::ok(r#"{"cluster":"shop","members":[]}"#)),
        (LOOK, Reply::ok("{}")),
    ])
}

fn report(written: u64, remaining: u64, change: &str) -> Reply {
    let ack = if written > 0 { json!("replicated") } else { Value::Null };
    let difference =
        json!({ "item": "student:4", "change": change, "now": null, "backup": "A B4", "note": "why" });
    let report =
        json!({ "differences": [difference], "written": written, "ack": ack, "remaining": remaining });
    Reply::ok(&report.to_string())
}

fn asked(server: &Server, request: &str) -> usize {
    server.requests().iter().filter(|head| head.starts_with(&format!("{request} "))).count()
}

#[test]
fn without_yes_the_difference_is_shown_and_nothing_is_written() {
    let kept = Kept::new();
    for (args, code) in [(&[][..], 2), (&["--dry-run"], 0)] {
        let server = grading();
        server.expect(LOOK, report(0, 0, "add"));
        let (ended, stdout, stderr) = kept.restore(&server, args);
        assert_eq!(ended, code, "{stdout}{stderr}");
        assert!(
            stdout.contains("student:4") && stdout.contains("A B4") && stdout.contains("nothing was written")
        );
        assert_eq!(stderr.contains("add --yes"), code == 2, "{stderr}");
        assert_eq!(asked(&server, WRITE), 0);
        let sent: Value = serde_json::from_str(server.bodies().last().unwrap()).unwrap();
        let ids: Vec<_> =
            sent["items"].as_array().unwrap().iter().map(|s| s["id"].as_u64().unwrap()).collect();
        assert_eq!(ids, (1..=10).collect::<Vec<_>>());
    }
    let server = grading();
    server.expect(LOOK, Reply::ok("{}"));
    let (code, stdout, _) = kept.restore(&server, &[]);
    assert!(code == 0 && stdout.contains("nothing to restore"), "{stdout}");
}

#[test]
fn with_yes_it_is_written_with_the_level_and_remaining_differences_are_a_failure() {
    let kept = Kept::new();
    for (reply, code, words) in [
        (report(1, 0, "add"), 0, "acknowledged: replicated"),
        (report(1, 1, "setBack"), 1, "run it again"),
        (report(0, 0, "refuse"), 1, "not restored"),
        (Reply::status(413, r#"{"detail":"too large"}"#), 1, "too large"),
    ] {
        let server = grading();
        server.expect(WRITE, reply);
        let (ended, stdout, stderr) = kept.restore(&server, &["--yes"]);
        assert_eq!(ended, code, "{stdout}{stderr}");
        assert!(format!("{stdout}{stderr}").contains(words), "{words}: {stdout}{stderr}");
        assert_eq!(asked(&server, WRITE), 1);
    }
    let server = grading();
    server.expect(WRITE, report(1, 0, "add"));
    let (code, stdout, _) = kept.restore(&server, &["--yes", "--json", "--only", "student:4"]);
    let told: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((code, &told["written"], &told["ack"]), (0, &json!(1), &json!("replicated")));
    assert_eq!((&told["dryRun"], &told["differences"][0]["topic"]), (&json!(false), &json!("grading")));
    let sent: Value = serde_json::from_str(server.bodies().last().unwrap()).unwrap();
    assert_eq!(sent["items"], json!([{ "id": 4, "firstName": "A", "lastName": "B4", "grades": [] }]));
}

#[test]
fn topics_that_would_count_twice_are_refused_and_left_out_of_a_backup_of_several() {
    let kept = Kept::new();
    kept.add_topic("log");
    kept.add_topic("visits");
    let server = grading();
    server.expect(LOOK, Reply::ok("{}"));
    let (code, stdout, stderr) = kept.restore(&server, &["--dry-run"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("log is left out: its records would be in the log twice"), "{stdout}");
    assert!(stdout.contains("visits is left out: its visits would be counted twice"), "{stdout}");
    for from in [kept.path().join("log.db"), kept.path()] {
        let server = grading();
        let (code, _, stderr) = restore(&from, &server, &["--yes", "log"]);
        assert!(code == 1 && stderr.contains("would be in the log twice"), "{code} {stderr}");
        assert_eq!((asked(&server, LOOK), asked(&server, WRITE)), (0, 0));
    }
}

#[test]
fn a_backup_that_is_damaged_in_use_or_of_another_cluster_is_not_used() {
    let kept = Kept::new();
    let file = kept.path().join("grading.db");
    let sound = std::fs::read(&file).unwrap();
    let refused = |words: &str| {
        let server = grading();
        let (code, _, stderr) = kept.restore(&server, &["--yes"]);
        assert!(code == 1 && stderr.contains(words), "{words}: {code} {stderr}");
        assert_eq!((asked(&server, LOOK), asked(&server, WRITE)), (0, 0));
    };
    rusqlite::Connection::open(&file)
        .unwrap()
        .execute_batch("UPDATE journal_runs SET entries = x'00' WHERE start = 4")
        .unwrap();
    refused("is damaged");
    std::fs::write(&file, b"no database").unwrap();
    refused("cannot read");
    std::fs::write(&file, &sound).unwrap();
    std::fs::write(kept.path().join("grading.db-wal"), "x").unwrap();
    refused("it is no backup");
    std::fs::remove_file(kept.path().join("grading.db-wal")).unwrap();
    let server = Server::start(&[("GET /members", Reply::ok(r#"{"cluster":"home"}"#))]);
    let (code, _, stderr) = kept.restore(&server, &["--yes"]);
    assert!(code == 1 && stderr.contains("\"shop\"") && stderr.contains("\"home\""), "{stderr}");
    let names: Vec<_> = kept.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(
        names == ["grading.db"] && std::fs::read(&file).unwrap() == sound,
        "nothing was changed: {names:?}"
    );
}

#[test]
fn a_backup_that_another_version_made_is_read_as_this_one_reads_it() {
    let kept = Kept::new();
    let file = kept.path().join("grading.db");
    rusqlite::Connection::open(&file)
        .unwrap()
        .execute_batch("UPDATE journal_meta SET value = 0 WHERE name = 'projection'; DROP TABLE students")
        .unwrap();
    let server = grading();
    server.expect(LOOK, report(0, 0, "add"));
    let (code, stdout, stderr) = kept.restore(&server, &["--dry-run"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let sent: Value = serde_json::from_str(server.bodies().last().unwrap()).unwrap();
    assert_eq!(sent["items"].as_array().unwrap().len(), 10);
}

#[test]
fn missing_backups_and_items_are_reported() {
    let kept = Kept::new();
    for (args, words) in [
        (&["--only", "student:99"][..], "the backup has no student 99"),
        (&["--only", "grade:1"], "there is no kind \"grade\""),
        (&["--only", "student"], "KIND:ID"),
        (&["visits"], "no journal of \"visits\""),
    ] {
        let server = grading();
        let (code, _, stderr) = kept.restore(&server, args);
        assert!(code == 2 && stderr.contains(words), "{words}: {code} {stderr}");
        assert_eq!(asked(&server, WRITE), 0);
    }
    let (code, _, stderr) = restore(Path::new("/nowhere"), &grading(), &[]);
    assert!(code == 2 && stderr.contains("/nowhere"), "{stderr}");
    let server = Server::start(&[("GET /members", Reply::ok(r#"{"cluster":"shop"}"#))]);
    let (code, _, stderr) = kept.restore(&server, &["--yes"]);
    assert!(code == 2 && stderr.contains("--role grading"), "{code} {stderr}");
    // The port was bound and closed again, so it is free.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (from, url) = (kept.path(), format!("http://127.0.0.1:{port}"));
    let (code, _, stderr) =
        node(&["journal", "restore", "--from", from.to_str().unwrap(), "--node", &url, "--yes"]);
    assert!(code == 3 && stderr.contains(&url), "{code} {stderr}");
}
