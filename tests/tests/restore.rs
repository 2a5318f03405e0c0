//! Tests the two restore procedures of `docs/journal.md`, after a lost disk and after a deletion: runs the
//! commands of the page, and checks that the data is back on both nodes.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use hearsay_tests::{Cluster, Lab, NodeRef, http::send, scenario};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);
const JSON: (&str, &str) = ("content-type", "application/json");
const LOST: &str = "## Restoring: a disk was lost";
const DELETED: &str = "## Restoring: something was deleted or overwritten";

/// Returns the commands of a section: its fenced shell blocks, in order.
fn blocks(heading: &str) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/journal.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, section) =
        page.split_once(&format!("{heading}\n")).unwrap_or_else(|| panic!("{heading:?} is gone"));
    let section = section.split("\n## ").next().unwrap();
    let fenced = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    fenced.collect()
}

/// A machine with systemd, as far as the page needs it, on which `hearsay@grading` is a node at port 7500.
struct Machine {
    dir: PathBuf,
}

impl Machine {
    fn new(lab: &Lab) -> Self {
        let machine = Self { dir: lab.dir().join("h1") };
        let bin = machine.dir.join("bin");
        fs::create_dir_all(&bin).unwrap();
        symlink(std::env::var_os("NODE_BIN").unwrap(), bin.join("node")).unwrap();
        let systemctl = r#"#!/bin/sh
set -eu
[ "$2" = hearsay@grading ]
case "$1" in
start)
    node --role grading,log --name h1 --http 127.0.0.1:7500 --swarm 127.0.0.1 --data-dir "$H1/data" >>"$H1/log" 2>&1 &
    echo $! >"$H1/pid" ;;
stop)
    pid=$(cat "$H1/pid")
    kill "$pid"
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || exit 0; sleep 0.1; done
    exit 1 ;;
esac
"#;
        fs::write(bin.join("systemctl"), systemctl).unwrap();
        fs::set_permissions(bin.join("systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
        machine
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn backup(&self) -> PathBuf {
        self.dir.join("backup")
    }

    /// Runs a script with its commands on the path.
    fn run(&self, script: &str) -> Output {
        let path = format!("{}:{}", self.dir.join("bin").display(), std::env::var("PATH").unwrap());
        let mut sh = Command::new("sh");
        sh.args(["-euc", script]).env("PATH", path).env("H1", &self.dir).env("NO_COLOR", "1");
        sh.stdin(std::process::Stdio::null()).output().unwrap()
    }

    /// Runs a block after the block of variables, with the values of this machine, as a reader would.
    fn follow(&self, variables: &str, block: &str) -> String {
        let meant = variables.lines().map(|line| {
            let (name, _) = line.split_once('=').unwrap_or_else(|| panic!("{line:?} sets no variable"));
            match name {
                "DATA_DIR" => format!("{name}='{}'\n", self.data().display()),
                "BACKUP" => format!("{name}='{}'\n", self.backup().display()),
                "TOPIC" => line.to_owned() + "\n",
                _ => panic!("this test gives {name} no value"),
            }
        });
        let output = self.run(&format!("{}{block}", meant.collect::<String>()));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{block}\n{}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        _ = self.run("kill -9 \"$(cat \"$H1/pid\")\"");
    }
}

fn h1() -> SocketAddr {
    "127.0.0.1:7500".parse().unwrap()
}

fn get(node: SocketAddr, path: &str) -> Option<(u16, Value)> {
    let reply = send(node, &format!("GET {path}"), &[], "", 5 * S).ok()?;
    Some((reply.status, serde_json::from_str(&reply.body).unwrap_or_default()))
}

fn write(node: SocketAddr, request: &str, body: &Value) -> Value {
    let reply = send(node, request, &[JSON], &body.to_string(), 8 * S).unwrap();
    assert!(reply.status < 300, "{request}: {} {}", reply.status, reply.body);
    serde_json::from_str(&reply.body).unwrap_or_default()
}

fn both_have(lab: &Lab, h2: NodeRef, what: &str, is: impl Fn(SocketAddr) -> bool) {
    lab.until(20 * S, what, |lab| is(h1()) && is(lab.address(h2)));
}

/// Returns the files of a backup with their content.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|f| f.unwrap().path())
        .map(|p| (p.clone(), fs::read(p).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn both_procedures_for_restoring_do_what_the_page_says() {
    scenario("both_procedures_for_restoring_do_what_the_page_says", |lab| {
        let machine = Machine::new(lab);
        assert!(machine.run("systemctl start hearsay@grading").status.success());
        let h2 = lab.start(
            None,
            "h2",
            7501,
            &["--role", "grading,log", "--name", "h2", "--http", "127.0.0.1:7501", "--swarm", "127.0.0.1"],
        );
        let address = lab.address(h2);
        both_have(lab, h2, "both know both", |node| {
            get(node, "/services/grading")
                .is_some_and(|(_, list)| list["services"]["grading"].as_array().map_or(0, Vec::len) == 2)
        });
        let essay = json!({ "title": "Essay", "type": "Homework", "score": 90.0 });
        let student = json!({ "firstName": "Ann", "lastName": "Lee", "grades": [essay] });
        let ann = write(h1(), "POST /students?ack=replicated", &student);
        let bob =
            write(h1(), "POST /students?ack=replicated", &json!({ "firstName": "Bob", "lastName": "Ray" }));
        let (ann_path, bob_path) = (format!("/students/{}", ann["id"]), format!("/students/{}", bob["id"]));
        let backup = format!(
            "node journal backup '{}' --data-dir '{}'",
            machine.backup().display(),
            machine.data().display()
        );
        assert!(machine.run(&backup).status.success());
        let kept = files(&machine.backup());

        // Written since the backup, through the other node.
        write(address, &format!("DELETE {ann_path}"), &Value::Null);
        write(address, &format!("PUT {bob_path}"), &json!({ "firstName": "Bob", "lastName": "Overwritten" }));
        let new = write(address, "POST /students", &json!({ "firstName": "New", "lastName": "One" }));
        let new_path = format!("/students/{}", new["id"]);

        let lost = blocks(LOST);
        let [variables, commands] = lost.as_slice() else { panic!("{lost:#?}") };
        machine.follow(variables, commands);
        both_have(lab, h2, "what was written since comes back, the deletion too", |node| {
            get(node, &ann_path).is_some_and(|(status, _)| status == 404)
                && get(node, &new_path).is_some_and(|(status, _)| status == 200)
                && get(node, &bob_path).is_some_and(|(_, bob)| bob["lastName"] == "Overwritten")
        });
        assert!(files(&machine.backup()) == kept, "the backup is as it was");

        let deleted = blocks(DELETED);
        let [variables, look, restore] = deleted.as_slice() else { panic!("{deleted:#?}") };
        let shown = machine.follow(variables, look);
        let item = format!("student:{}", ann["id"]);
        assert!(shown.contains(&item) && shown.contains("Overwritten"), "{shown}");
        assert!(shown.contains("nothing was written") && shown.contains("log is left out"), "{shown}");
        both_have(lab, h2, "looking writes nothing", |node| {
            get(node, &ann_path).is_some_and(|(status, _)| status == 404)
        });
        let told = machine.follow(variables, restore);
        assert!(told.contains("differences restored: 3") && told.contains("acknowledged: "), "{told}");
        both_have(lab, h2, "it is back on both, as it was", |node| {
            get(node, &ann_path).is_some_and(|(_, now)| now == ann)
                && get(node, &bob_path).is_some_and(|(_, now)| now == bob)
                && get(node, &new_path).is_some_and(|(status, _)| status == 200)
        });
        assert!(machine.follow(variables, restore).contains("nothing to restore"));
        assert!(files(&machine.backup()) == kept, "the backup is as it was");
    });
}
