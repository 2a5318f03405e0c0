//! Tests of the nodes' DNS server with real clients (dig, DNS forwarders, HAProxy, Caddy) and with garbage.
//! This file has their common helpers: they start daemons, and register and remove instances.

#![allow(clippy::unwrap_used)]

mod balancers;
mod dig;
mod forwarders;
mod garbage;
mod names;
mod private;
mod several_addresses;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use hearsay_tests::{Host, Lab};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);

/// Whether all of these programs are installed. If not, prints that the test is skipped; with `LAB=full` the
/// test fails.
fn has_programs(test: &str, programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let missing: Vec<_> = programs.iter().filter(|program| !is_there(program)).collect();
    if !missing.is_empty() {
        println!("skipped: {test}: needs {missing:?}; tests/run installs them on Debian");
        assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and {test} lacks {missing:?}");
    }
    missing.is_empty()
}

/// The path of a file in `deploy/dns`.
fn shipped(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/dns").join(file).canonicalize().unwrap()
}

/// An instance of a service.
fn instance(service: &str, id: &str, address: &str, port: u16) -> Value {
    json!({ "name": service, "id": id, "address": address, "port": port })
}

/// Deregisters an instance from the node of a host.
fn deregister(host: &Host, id: &str) {
    let reply = host.send(7500, &format!("DELETE /services/{id}"), "");
    assert_eq!(reply.status, 200, "{reply:?}");
}

/// A program that serves in the foreground on a host until this value is dropped.
struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    fn start(lab: &Lab, host: &Host, program: &str, arguments: &[&str]) -> Self {
        let name = Path::new(program).file_name().unwrap().to_str().unwrap();
        let log = lab.dir().join(format!("{name}.log"));
        let output = File::create(&log).unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &host.name, program]).args(arguments);
        command.env("HOME", lab.dir()).env("XDG_DATA_HOME", lab.dir()).env("XDG_CONFIG_HOME", lab.dir());
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Self { child: command.spawn().unwrap(), log }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // The process may already have ended.
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            println!("{}:\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}
