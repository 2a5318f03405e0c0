//! [`RealClient`]: a program that uses Consul's interface, such as Prometheus, and runs in the background on
//! a host of the lab.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command},
    time::Duration,
};

use hearsay_tests::{Host, Lab, http};
pub(crate) use hearsay_tests::{command_on, find_program, run_to_end};
use serde_json::Value;

/// Limit of a request to a client's own API. Tests take no answer for an empty one, so it is long.
const REQUEST_MAX: Duration = Duration::from_secs(20);

/// Client that runs during a scenario. It is killed when this value is dropped.
pub(crate) struct RealClient {
    child: Child,
    host: Host,
    log: PathBuf,
    api_port: u16,
}

impl RealClient {
    /// Starts a program whose own HTTP API has this port.
    pub(crate) fn spawn(lab: &Lab, host: &Host, mut command: Command, api_port: u16) -> Self {
        let log = lab.dir().join(format!("client-{api_port}.log"));
        let output = File::create(&log).unwrap();
        let errors = output.try_clone().unwrap();
        let child = command.stdout(output).stderr(errors).spawn().unwrap();
        Self { child, host: host.clone(), log, api_port }
    }

    /// Requests a path of the client's own API; null without a JSON answer.
    pub(crate) fn get(&self, path: &str) -> Value {
        let to = ([127, 0, 0, 1], self.api_port).into();
        let answer = self.host.enter(|| http::send(to, &format!("GET {path}"), &[], "", REQUEST_MAX));
        answer.map(|answer| answer.json()).unwrap_or_default()
    }

    /// Returns the client's log so far.
    pub(crate) fn log(&self) -> String {
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
