//! Real clients of a node's interfaces, such as Prometheus, Envoy or a Python program: found where
//! `tests/run` installs them, and run on a host of the lab, to their end or in the background
//! ([`RealClient`]).

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::{Cluster as _, Host, Lab, http};

/// Limit of a request to a client's own API. Tests take no answer for an empty one, so it is long.
const REQUEST_MAX: Duration = Duration::from_secs(20);

/// Returns the path of a program. Without the program, prints that the test is skipped; with `LAB=full` the
/// test fails. `variable` is the environment variable in which `tests/run` gives the path; without it, the
/// program is searched in `PATH`.
pub fn find_program(test: &str, name: &str, variable: Option<&str>) -> Option<PathBuf> {
    let found = match variable {
        Some(variable) => std::env::var_os(variable).map(PathBuf::from),
        None => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
        }
    };
    if found.is_none() {
        println!("skipped: {test}: needs {name}; tests/run installs it");
        assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and {test} has no {name}");
    }
    found
}

/// Returns a command that runs a program inside a host's namespace.
pub fn command_on(host: &Host, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &host.name]).arg(program).stdin(Stdio::null());
    command
}

/// Runs a program to its end and returns its output. Fails unless the program succeeds.
pub fn run_to_end(lab: &Lab, mut command: Command) -> String {
    let output = command.output().expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}\n{}", lab.describe());
    text.into_owned()
}

/// Client that runs during a scenario. It is killed when this value is dropped.
#[derive(Debug)]
pub struct RealClient {
    child: Child,
    host: Host,
    log: PathBuf,
    api_port: u16,
}

impl RealClient {
    /// Starts a program whose own HTTP API has this port.
    pub fn spawn(lab: &Lab, host: &Host, mut command: Command, api_port: u16) -> Self {
        let log = lab.dir().join(format!("client-{api_port}.log"));
        let output = File::create(&log).expect("a log");
        let errors = output.try_clone().expect("a log");
        let child = command.stdout(output).stderr(errors).spawn().expect("the program starts");
        Self { child, host: host.clone(), log, api_port }
    }

    /// Requests a path of the client's own API; null without a JSON answer.
    pub fn get(&self, path: &str) -> Value {
        let to = ([127, 0, 0, 1], self.api_port).into();
        let answer = self.host.enter(|| http::send(to, &format!("GET {path}"), &[], "", REQUEST_MAX));
        answer.map(|answer| answer.json()).unwrap_or_default()
    }

    /// Requests a path of the client's own API, and returns the body of a successful answer.
    pub fn text(&self, path: &str) -> Option<String> {
        let to = ([127, 0, 0, 1], self.api_port).into();
        let answer = self.host.enter(|| http::send(to, &format!("GET {path}"), &[], "", REQUEST_MAX));
        answer.ok().filter(|answer| answer.status == 200).map(|answer| answer.body)
    }

    /// Returns the client's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for RealClient {
    fn drop(&mut self) {
        // The process may already have ended.
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            println!("{}", self.log());
        }
    }
}
