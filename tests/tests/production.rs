//! `docs/production.md` to the letter: runs the blocks of commands of the page.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path, process::Command, time::Duration};

use hearsay_tests::{Cluster as _, Host, Lab, http::send, scenario, sh};
use serde_json::json;

const S: Duration = Duration::from_secs(1);

/// Returns the shell blocks, in order.
fn blocks() -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/production.md");
    let page = fs::read_to_string(page).unwrap();
    page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// Runs a block on a host, in a directory of its own, with the program under its packaged name.
fn run(lab: &Lab, on: &Host, block: &str) -> String {
    let dir = lab.dir().join("operator");
    let path = format!("{}:{}", dir.join("bin").display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &on.name, "sh", "-euc", block]).current_dir(&dir).env("PATH", path);
    let output = command.env("NO_COLOR", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{block}\n{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn the_commands_of_the_page_do_what_it_says() {
    scenario("the_commands_of_the_page_do_what_it_says", |lab| {
        // Private to this scenario, like its network.
        sh(
            "mkdir -p /var/lib/hearsay /backup && mount -t tmpfs none /var/lib/hearsay && mount -t tmpfs none /backup",
        );
        let bin = lab.dir().join("operator/bin");
        fs::create_dir_all(&bin).unwrap();
        std::os::unix::fs::symlink(std::env::var_os("NODE_BIN").unwrap(), bin.join("hearsay")).unwrap();
        let hosts = [lab.host(), lab.host()];
        let data = "/var/lib/hearsay/grading";
        let arguments = ["--role", "grading", "--name", "h1", "--data-dir", data];
        let node = lab.start(Some(&hosts[0]), "h1", 7500, &arguments);
        let gone = lab.grading(&hosts[1], "h2");
        lab.until(10 * S, "both list both", |lab| lab.all_list_all(&[node, gone]));
        let student = json!({ "firstName": "Ann", "lastName": "Lee" }).to_string();
        let headers = [("content-type", "application/json")];
        let added = send(lab.address(node), "POST /students", &headers, &student, 8 * S).unwrap();
        assert_eq!(added.status, 201, "{}", added.body);
        let mut seen = Vec::new();
        for block in blocks() {
            // A block that is added to the page must be added here, too.
            let what = match block.trim() {
                keygen if keygen.contains("hearsay keygen") => {
                    run(lab, &hosts[0], keygen);
                    let key = lab.dir().join("operator/cluster.key");
                    let mode =
                        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&key).unwrap().permissions());
                    assert_eq!(mode & 0o777, 0o600);
                    "key"
                }
                join if join.starts_with("HEARSAY_JOIN=") => {
                    let name = format!("{join}\nexport HEARSAY_JOIN\nhearsay --help >/dev/null");
                    run(lab, &hosts[0], &name);
                    "join"
                }
                forget if forget.starts_with("hearsay forget NAME") => {
                    lab.crash(gone);
                    lab.until(10 * S, "the other one has failed", |lab| {
                        lab.sees(node, "h2").as_deref() == Some("failed")
                    });
                    run(lab, &hosts[0], &forget.replace("NAME", "h2"));
                    lab.until(5 * S, "it is forgotten", |lab| lab.sees(node, "h2").is_none());
                    lab.until(5 * S, "a majority is no longer counted of it", |lab| {
                        let counted = "hearsay_journal_replicas_counted{topic=\"grading\"} 1";
                        lab.text(node, "/metrics").is_some_and(|metrics| metrics.contains(counted))
                    });
                    "forget"
                }
                docker if docker.starts_with("docker run") => "containers",
                backup if backup.contains("hearsay journal backup") => {
                    let said = run(lab, &hosts[0], backup);
                    assert!(said.contains("grading"), "{said}");
                    "backup"
                }
                other => panic!("the page has a block that nothing follows:\n{other}"),
            };
            seen.push(what);
        }
        assert_eq!(seen, ["key", "join", "forget", "backup", "containers"]);
        // The page's instructions after a deletion.
        let path = added.header("location").unwrap().to_owned();
        assert_eq!(send(lab.address(node), &format!("DELETE {path}"), &[], "", 8 * S).unwrap().status, 204);
        let restore = "hearsay journal restore --from /backup/$(date +%F)";
        let page =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/production.md")).unwrap();
        assert!(page.contains("hearsay journal restore --from /backup/"), "the page tells another command");
        run(lab, &hosts[0], &format!("{restore} --dry-run || [ $? = 2 ]"));
        run(lab, &hosts[0], &format!("{restore} --yes"));
        lab.until(5 * S, "the student is back", |lab| {
            lab.text(node, "/students").is_some_and(|book| book.contains("Lee"))
        });
    });
}
