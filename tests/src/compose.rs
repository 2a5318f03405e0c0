//! Cluster of `deploy/compose.yaml` in containers, with a unique project name and free ports, so that it is
//! isolated from other projects on the machine.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    cluster::{POLL, SLACK},
    get,
};

/// Number of clusters that this process has started.
static STARTED: AtomicU32 = AtomicU32::new(0);
/// Lines of a container's log that a failed test prints.
const SHOWN_LINES: usize = 30;

/// Cluster of containers. Dropping a `Compose` removes the containers and their volumes.
pub struct Compose {
    /// Command that runs Compose: the program and its first arguments.
    command: (&'static str, &'static [&'static str]),
    project: String,
    files: Vec<PathBuf>,
    /// Address at which the portal is published.
    pub portal: SocketAddr,
    /// Address at which the gateway is published.
    pub gateway: SocketAddr,
}

/// One container of the cluster.
#[derive(Clone, Debug)]
pub struct Container {
    /// Container name.
    pub name: String,
    /// Service of the Compose file.
    pub service: String,
    /// HTTP address of the container's node; `None` if the container has no address.
    pub http: Option<SocketAddr>,
    /// Id of the container's first process; 0 if the process has ended.
    pub pid: u32,
    /// Exit code, if it has ended.
    pub exit_code: i64,
    /// Number of restarts.
    pub restarts: u64,
    /// Whether its health check passes.
    pub is_healthy: bool,
}

impl Compose {
    /// Returns whether Docker, Compose and the image are available, and prints the reason if not. With
    /// `LAB=full` on a machine with Docker, the others must be available.
    pub fn is_there(test: &str) -> bool {
        let has_engine = runs("docker", &["info"]);
        let why = if !has_engine {
            "needs Docker"
        } else if compose_command().is_none() {
            "needs Docker Compose"
        } else if std::env::var_os("HEARSAY_IMAGE").is_none() {
            "HEARSAY_IMAGE does not name the image to test; tests/run does"
        } else {
            return true;
        };
        println!("skipped: {test}: {why}");
        assert!(!has_engine || std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and {test} {why}");
        false
    }

    /// Starts the cluster from these files in `deploy`. Returns after its containers were started.
    pub fn up(files: &[&str]) -> Self {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        // Both listeners exist at the same time, so that they get different ports.
        let free: Vec<TcpListener> =
            (0..2).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port")).collect();
        let address = |i: usize| free[i].local_addr().expect("it is bound");
        let compose = Self {
            command: compose_command().expect("looked for before"),
            project: format!(
                "hearsay-lab-{}-{}",
                std::process::id(),
                STARTED.fetch_add(1, Ordering::Relaxed)
            ),
            files: files.iter().map(|file| deploy.join(file)).collect(),
            portal: address(0),
            gateway: address(1),
        };
        drop(free);
        compose.run(&["up", "-d"]);
        compose
    }

    /// Scales a service to this many containers.
    pub fn scale(&self, service: &str, count: usize) {
        self.run(&["up", "-d", "--no-recreate", "--scale", &format!("{service}={count}")]);
    }

    /// Runs a Compose command, which must succeed. Returns its output.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("it was there a moment ago");
        must(arguments, &output)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let (program, first) = self.command;
        let mut command = Command::new(program);
        command.args(first).args(["-p", &self.project]);
        for file in &self.files {
            command.arg("-f").arg(file);
        }
        command.args(arguments);
        command.env("HEARSAY_PORTAL_PORT", self.portal.port().to_string());
        command.env("HEARSAY_GATEWAY_PORT", self.gateway.port().to_string());
        command
    }

    /// Returns all containers in their current state, including ended ones.
    pub fn containers(&self) -> Vec<Container> {
        let label = format!("label=com.docker.compose.project={}", self.project);
        let ids = docker(&["ps", "-aq", "--filter", &label]);
        let mut arguments = vec!["inspect"];
        arguments.extend(ids.split_whitespace());
        if arguments.len() == 1 {
            return Vec::new();
        }
        let all: Value = serde_json::from_str(&docker(&arguments)).expect("docker inspect prints JSON");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let container = |seen: &Value| {
            let networks = seen["NetworkSettings"]["Networks"].as_object();
            let address =
                networks.and_then(|all| all.values().next()).map(|network| text(&network["IPAddress"]));
            Container {
                name: text(&seen["Name"]).trim_start_matches('/').to_owned(),
                service: text(&seen["Config"]["Labels"]["com.docker.compose.service"]),
                http: address.and_then(|ip| Some(SocketAddr::new(ip.parse().ok()?, 7500))),
                pid: seen["State"]["Pid"].as_u64().and_then(|pid| pid.try_into().ok()).unwrap_or(0),
                exit_code: seen["State"]["ExitCode"].as_i64().unwrap_or(-1),
                restarts: seen["RestartCount"].as_u64().unwrap_or(u64::MAX),
                is_healthy: seen["State"]["Health"]["Status"] == "healthy",
            }
        };
        let mut containers: Vec<Container> = all.as_array().into_iter().flatten().map(container).collect();
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        containers
    }

    /// Returns the running containers of a service.
    pub fn of(&self, service: &str) -> Vec<Container> {
        self.containers().into_iter().filter(|c| c.service == service && c.pid != 0).collect()
    }

    /// Returns the name of the cluster's network.
    pub fn network(&self) -> String {
        format!("{}_cluster", self.project)
    }

    /// Returns the log of a container.
    pub fn log(&self, container: &Container) -> String {
        let output = Command::new("docker").args(["logs", &container.name]).output();
        let output = output.expect("docker was there a moment ago");
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// Waits until a condition holds. Returns the time that it took. Fails `SLACK` after the bound and prints
    /// the state of the cluster.
    pub fn until(
        &self,
        bound: Duration,
        what: &str,
        mut holds: impl FnMut(&[Container]) -> bool,
    ) -> Duration {
        let start = Instant::now();
        loop {
            let containers = self.containers();
            if holds(&containers) {
                println!("{what}: {:?}", start.elapsed());
                return start.elapsed();
            }
            assert!(start.elapsed() < bound + SLACK, "not within {bound:?}: {what}\n{}", self.describe());
            std::thread::sleep(POLL);
        }
    }

    /// Describes every container, the members that it sees, and the end of its log.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for container in self.containers() {
            let members = container.http.and_then(|http| get(http, "/members"));
            let log = self.log(&container);
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            text += &format!("{container:?}\n{}\n{end}\n", members.unwrap_or_default());
        }
        text
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        // Errors are ignored, because the cluster must be removed even after a failed test.
        _ = self.command(&["down", "-v", "--timeout", "5"]).output();
    }
}

/// Runs a Docker command, which must succeed. Returns its output.
pub fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().expect("docker was there a moment ago");
    must(arguments, &output)
}

fn must(arguments: &[&str], output: &Output) -> String {
    assert!(
        output.status.success(),
        "{arguments:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the command of Compose: a plug-in of Docker, or the older separate program.
fn compose_command() -> Option<(&'static str, &'static [&'static str])> {
    let ways: [(&str, &[&str]); 2] = [("docker", &["compose"]), ("docker-compose", &[])];
    ways.into_iter().find(|(program, first)| runs(program, &[first, &["version"][..]].concat()))
}

fn runs(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}
