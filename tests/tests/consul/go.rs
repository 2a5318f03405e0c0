//! Test of Consul's interface with a Go client (armon/consul-api, as Debian packs it), whose program
//! (`round.go`) registers, reports a TTL check, and waits for changes on another node.

use std::{fs, path::Path, process::Command};

use hearsay_tests::{registry::cluster, scenario};

use super::clients::{command_on, find_program, run_to_end};

/// Requests of the client, and the expected answers.
const ROUND: &str = include_str!("round.go");
/// Where Debian keeps the sources of Go's packages.
const GO_PATH: &str = "/usr/share/gocode";

#[test]
fn go_does_a_round() {
    const TEST: &str = "go::go_does_a_round";
    let Some(go) = find_program(TEST, "go", None) else { return };
    let has_package = Path::new(GO_PATH).join("src/github.com/armon/consul-api").is_dir();
    if !has_package {
        println!("skipped: {TEST}: needs golang-github-armon-consul-api-dev; tests/run installs it");
        assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and {TEST} has no client");
        return;
    }
    scenario(TEST, |lab| {
        let (hosts, _) = cluster(lab, 2, &[]);
        let (source, program) = (lab.dir().join("round.go"), lab.dir().join("round"));
        fs::write(&source, ROUND).unwrap();
        let mut build = Command::new(&go);
        build.arg("build").arg("-o").arg(&program).arg(&source);
        // Without modules, nothing is downloaded.
        build.env("GO111MODULE", "off").env("GOPATH", GO_PATH).env("GOCACHE", lab.dir().join("cache"));
        run_to_end(lab, build);
        let mut command = command_on(&hosts[0], &program);
        command.arg(&hosts[1].ip);
        run_to_end(lab, command);
    });
}
