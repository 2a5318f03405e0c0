//! Tests of `node journal verify`, `rebuild` and `backup` on data directories, intact and damaged: output and
//! exit codes.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap that fails is the test failing")]

mod book;

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use book::fill;

/// Returns the program with a clean environment.
fn node(home: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_node"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HEARSAY_") || name == "XDG_STATE_HOME" {
            command.env_remove(name);
        }
    }
    finish(command.args(args).env("HOME", home).output().unwrap())
}

fn finish(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn change(path: &Path, sql: &str) {
    rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn a_data_directory_is_verified_and_what_is_wrong_is_named_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("data");
    let path = fill(&dir, "shop");
    let data_dir = dir.to_str().unwrap();
    let (code, stdout, stderr) = node(home.path(), &["journal", "verify", "--data-dir", data_dir]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let lines: Vec<_> = stdout.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("TOPIC"), "{stdout}");
    assert_eq!(lines[1].split_whitespace().take(5).collect::<Vec<_>>(), ["grading", "10", "10", "1", "ok"]);

    change(&path, "UPDATE journal_runs SET entries = x'00' WHERE start = 4");
    let (code, stdout, stderr) = node(home.path(), &["journal", "verify", "--data-dir", data_dir]);
    assert_eq!(code, 1);
    assert!(stdout.contains("run") && stdout.contains("0000000000000007 4–4"), "{stdout}");
    assert!(stdout.contains("what to do: stop the node and run `node journal rebuild`"), "{stdout}");
    assert!(stderr.contains("something is wrong with 1 of 1"), "{stderr}");
    let (code, stdout, _) = node(home.path(), &["journal", "verify", "--json", path.to_str().unwrap()]);
    let told: Value = serde_json::from_str(&stdout).unwrap();
    let database = &told["databases"][0];
    assert_eq!((code, &database["ok"], &database["problems"][0]["part"]), (1, &false.into(), &"run".into()));
    assert!(database["advice"].is_string() && database["cluster"] == "shop", "{stdout}");
}

#[test]
fn rebuilding_mends_it_and_needs_the_directory_for_itself() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("data");
    let path = fill(&dir, "shop");
    let data_dir = dir.to_str().unwrap();
    change(
        &path,
        "UPDATE journal_runs SET entries = x'00' WHERE start = 4; DELETE FROM students WHERE id = 9",
    );
    let rebuild = ["journal", "rebuild", "--data-dir", data_dir];
    {
        let _node =
            hearsay_node::Storage::open(&hearsay_node::DataDir::Exactly(dir.clone()), "shop").unwrap();
        let (code, _, stderr) = node(home.path(), &rebuild);
        assert!(code == 1 && stderr.contains("in use") && stderr.contains("what to do: stop"), "{stderr}");
        // Verification needs no lock.
        assert_eq!(node(home.path(), &["journal", "verify", "--data-dir", data_dir]).0, 1);
    }
    let (code, stdout, stderr) = node(home.path(), &rebuild);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("rebuilt from 9 entries") && stdout.contains("grading.damaged-1"), "{stdout}");
    assert!(dir.join("journal/grading.damaged-1").exists());
    assert_eq!(node(home.path(), &["journal", "verify", "--data-dir", data_dir]).0, 0);
    let (code, stdout, _) = node(home.path(), &[&rebuild[..], &["grading", "--json"]].concat());
    let told: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        (code, &told["rebuilt"][0]["entries"], &told["failed"]),
        (0, &9.into(), &Value::Array(vec![]))
    );
    let (code, _, stderr) = node(home.path(), &[&rebuild[..], &["log"]].concat());
    assert!(code == 2 && stderr.contains("no journal of \"log\""), "{stderr}");
    // Damage that a rebuild cannot repair is reported, and the file is unchanged.
    std::fs::write(&path, vec![7; 10_000]).unwrap();
    let (code, _, stderr) = node(home.path(), &rebuild);
    assert!(code == 1 && stderr.contains("damaged as a database"), "{stderr}");
    assert_eq!(std::fs::read(&path).unwrap(), vec![7; 10_000]);
}

#[test]
fn a_backup_is_verified_put_back_and_never_overwritten() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("data");
    let path = fill(&dir, "shop");
    let (data_dir, to) = (dir.to_str().unwrap(), home.path().join("backups/today"));
    let backup = ["journal", "backup", to.to_str().unwrap(), "--data-dir", data_dir];
    let (code, stdout, stderr) = node(home.path(), &backup);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.lines().nth(1).unwrap().starts_with("grading"), "{stdout}");
    let (code, stdout, _) = node(home.path(), &["journal", "verify", to.to_str().unwrap()]);
    assert!(code == 0 && stdout.contains("ok"), "{stdout}");
    let names: Vec<_> = to.read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["grading.db"], "verifying leaves nothing behind");
    let (code, _, stderr) = node(home.path(), &backup);
    assert!(code == 1 && stderr.contains("never overwrites"), "{stderr}");

    std::fs::write(&path, "x").unwrap();
    assert_eq!(node(home.path(), &["journal", "verify", "--data-dir", data_dir]).0, 1);
    std::fs::copy(to.join("grading.db"), &path).unwrap();
    let (code, stdout, _) = node(home.path(), &["journal", "verify", "--data-dir", data_dir]);
    assert!(code == 0 && stdout.contains(" 10 "), "{stdout}");
}

#[test]
fn without_a_word_the_slots_of_the_cluster_are_meant() {
    let home = tempfile::tempdir().unwrap();
    let slots = home.path().join(".local/state/hearsay");
    let (code, _, stderr) = node(home.path(), &["journal", "verify"]);
    assert!(code == 2 && stderr.contains("--data-dir") && stderr.contains("default"), "{code} {stderr}");
    fill(&slots.join("default/0"), "default");
    assert_eq!(node(home.path(), &["journal", "rebuild"]).0, 0);
    fill(&slots.join("default/3"), "default");
    fill(&slots.join("shop/0"), "shop");
    let (code, stdout, _) = node(home.path(), &["journal", "verify"]);
    assert_eq!((code, stdout.matches("grading.db").count()), (0, 2), "{stdout}");
    let (code, stdout, _) = node(home.path(), &["journal", "verify", "--cluster", "shop"]);
    assert_eq!((code, stdout.matches("shop/0").count()), (0, 1), "{stdout}");
    let (code, _, stderr) = node(home.path(), &["journal", "rebuild"]);
    assert!(code == 2 && stderr.contains("default/0") && stderr.contains("default/3"), "{stderr}");
    for (args, part) in [
        (&["journal", "verify", "/nowhere.db"][..], "/nowhere.db"),
        (&["journal", "verify", "x.db", "--data-dir", "y"], "--data-dir"),
        (&["journal", "verify", "--node", "http://x:1"], "works on a data directory"),
        (&["journal", "backup"], "<TO>"),
    ] {
        let (code, stdout, stderr) = node(home.path(), args);
        assert!(code == 2 && stdout.is_empty() && stderr.contains(part), "{args:?}: {code} {stderr}");
    }
    let (code, stdout, _) = node(home.path(), &["journal", "backup", "--help"]);
    assert!(code == 0 && stdout.contains("-wal") && stdout.contains("node.key"), "{stdout}");
}
