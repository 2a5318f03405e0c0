//! The lab: real nodes in network namespaces, and what can go wrong with them.
//!
//! A scenario runs inside a namespace of its own, private down to `/run/netns`: [`scenario`] starts its test again under `unshare`, so that
//! nothing can leak out and everything vanishes with the process, hosts, bridge and rules included. Inside, a [`Host`] is another
//! namespace on one bridge; the test itself sits on the bridge and can ask every node.
//!
//! Nothing waits for a duration: [`Lab::until`] waits for a fact, with a bound, and shows the state of every node when the bound passes.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

mod address_counter;
mod browser;
mod clocks;
mod cluster;
mod compose;
mod feeds;
mod floods;
mod forgetful;
pub mod history;
pub mod http;
mod intruder;
mod programs;
pub mod registry;
pub mod rows;
mod swarms;
mod writers;

pub use address_counter::AddressCounter;
pub use browser::Browser;
pub use clocks::LabClock;
pub use cluster::{Cluster, NodeRef};
pub use compose::{Compose, Container, docker};
pub use feeds::{Feed, feeds};
pub use floods::{Flood, raise_file_limit, status_of};
pub use forgetful::Forgetful;
pub use intruder::{Intruder, spoof_mdns};
pub use programs::Program;
pub use swarms::Swarms;
pub use writers::{Writers, all_written};

use cluster::POLL;

/// Set for the process that runs inside, to a file by which it shows that it ran.
const INSIDE: &str = "HEARSAY_LAB_INSIDE";

/// Runs a scenario inside namespaces of its own. Where that is impossible, says so; with `LAB=full` that is a failure.
pub fn scenario(name: &str, body: impl FnOnce(&mut Lab)) {
    if let Some(sign) = std::env::var_os(INSIDE) {
        fs::write(sign, name).expect("a place for a sign of life");
        return body(&mut Lab::new());
    }
    if let Err(why) = can_unshare() {
        println!("skipped: {name}: {why}");
        assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and {name} cannot run here: {why}");
        return;
    }
    let me = std::env::current_exe().expect("a test has a file");
    let sign = std::env::temp_dir().join(format!("hearsay-scenario-{}-{name}", std::process::id()));
    // SIGHUP as a node under a supervisor has it, also where the tests run under nohup.
    let status = Command::new("env")
        .args(["--default-signal=HUP", "unshare", "--net", "--mount", "--"])
        .arg(me)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, &sign)
        .status()
        .expect("unshare was there a moment ago");
    assert!(status.success(), "{name} failed; see above");
    // A name that matches no test runs none, and succeeds.
    fs::remove_file(&sign).unwrap_or_else(|_| panic!("{name} is not the name of the test that calls it"));
}

fn can_unshare() -> Result<(), String> {
    if std::env::var_os("NODE_BIN").is_none() {
        return Err("NODE_BIN does not name the node to test; tests/run does".into());
    }
    for (what, probe) in [
        ("network namespaces (root)", "unshare --net --mount true"),
        ("ip", "ip -V"),
        ("nft", "nft --version"),
    ] {
        let mut words = probe.split(' ');
        let command = words.next().unwrap_or_default();
        let ran = Command::new(command).args(words).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !ran.is_ok_and(|status| status.success()) {
            return Err(format!("needs {what}"));
        }
    }
    Ok(())
}

/// The build that breaks its word, or speaks a next version, where a test wants it (the features `broken` and `next`). Where there is none, says so; with
/// `LAB=full` that is a failure.
pub fn other_build(test: &str) -> Option<OsString> {
    let build = std::env::var_os("NODE_BROKEN_BIN");
    if build.is_none() {
        println!(
            "skipped: {test}: NODE_BROKEN_BIN does not name a node with the features `broken` and `next`; tests/run does"
        );
        assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and {test} has no such node");
    }
    build
}

/// The build of the version before epochs, two before this one, made from its commit with `LAB_LONG=1`. Where there is none, says so.
pub fn older_build(test: &str) -> Option<OsString> {
    earlier_build(test, "NODE_OLDER_BIN")
}

/// The build of the version before this one, in which no programs registered. Where there is none, says so.
pub fn build_before(test: &str) -> Option<OsString> {
    earlier_build(test, "NODE_BEFORE_BIN")
}

fn earlier_build(test: &str, variable: &str) -> Option<OsString> {
    let build = std::env::var_os(variable);
    if build.is_none() {
        println!(
            "skipped: {test}: {variable} does not name a node of an earlier version; tests/run builds it where git has its commit"
        );
    }
    build
}

/// Runs a command of the lab's own; it must succeed.
pub fn sh(line: &str) {
    let output = Command::new("sh").args(["-c", line]).output().expect("there is a shell");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Namespaces, hosts and nodes of one scenario.
pub struct Lab {
    dir: PathBuf,
    hosts: usize,
    nodes: Vec<Node>,
    /// What is started from now on, and what it finds in its environment.
    binary: OsString,
    environment: Vec<(String, String)>,
}

/// A machine: a namespace with one interface on the lab's bridge.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its namespace.
    pub name: String,
    /// Its address.
    pub ip: String,
}

impl Host {
    /// Runs a command on the host; it must succeed.
    pub fn sh(&self, line: &str) {
        sh(&format!("ip netns exec {} {line}", self.name));
    }

    /// Drops whatever comes from these hosts.
    pub fn deafen(&self, to: &[&Host]) {
        let from = to.iter().map(|h| h.ip.as_str()).collect::<Vec<_>>().join(", ");
        self.sh(&format!(
            "nft 'add table inet lab; add chain inet lab in {{ type filter hook input priority 0; }}; \
             add rule inet lab in ip saddr {{ {from} }} drop'"
        ));
    }

    /// Loses so many of a hundred packets that come in.
    pub fn lose(&self, percent: u8) {
        self.sh(&format!(
            "nft 'add table inet lab; add chain inet lab in {{ type filter hook input priority 0; }}; \
             add rule inet lab in iifname eth0 numgen random mod 100 < {percent} drop'"
        ));
    }

    /// Hears everything again.
    pub fn hear(&self) {
        self.sh("nft delete table inet lab");
    }
}

/// Processes that do nothing, as fast as they can, until this is dropped; not for longer than 700 s of processor time each.
#[derive(Debug)]
pub struct Busy(Vec<Child>);

impl Busy {
    /// So many of them.
    pub fn start(count: usize) -> Self {
        let spin = || Command::new("sh").args(["-c", "ulimit -t 700; while :; do :; done"]).spawn();
        Self((0..count).map(|_| spin().expect("there is a shell")).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for child in &mut self.0 {
            _ = child.kill();
            _ = child.wait();
        }
    }
}

/// A node process.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where it answers.
    pub http: SocketAddr,
    child: Child,
    log: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("hearsay-lab-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a place for logs");
        // `ip netns` keeps its handles in /run/netns: a private one, so that two scenarios never meet.
        sh("mkdir -p /run/netns && mount -t tmpfs none /run/netns && ip link set lo up && \
            ip link add br0 type bridge && ip addr add 10.77.0.1/16 dev br0 && ip link set br0 up");
        let binary = std::env::var_os("NODE_BIN").expect("checked before");
        Self { dir, hosts: 0, nodes: Vec::new(), binary, environment: Vec::new() }
    }

    /// The folder of this scenario.
    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// Another machine on the LAN.
    pub fn host(&mut self) -> Host {
        self.hosts += 1;
        let host = Host { name: format!("h{}", self.hosts), ip: format!("10.77.1.{}", self.hosts) };
        let Host { name, ip } = &host;
        sh(&format!(
            "ip netns add {name} && ip link add v{name} type veth peer name eth0 netns {name} && \
             ip link set v{name} master br0 up && ip -n {name} addr add {ip}/16 dev eth0 && \
             ip -n {name} link set eth0 up && ip -n {name} link set lo up"
        ));
        host
    }

    /// Starts a node on a host, or here on loopback, with a state directory named after it.
    pub fn start(&mut self, on: Option<&Host>, name: &str, http: u16, arguments: &[&str]) -> NodeRef {
        let log = self.dir.join(format!("{name}-{}.log", self.nodes.len()));
        let mut command = self.command(on, name, arguments);
        let output = File::create(&log).expect("a log");
        let errors = output.try_clone().expect("a log");
        let child = command.stdout(output).stderr(errors).spawn().expect("the node starts");
        let ip = on.map_or("127.0.0.1", |h| h.ip.as_str());
        let http = format!("{ip}:{http}").parse().expect("an address");
        self.nodes.push(Node { name: name.into(), http, child, log });
        NodeRef(self.nodes.len() - 1)
    }

    /// The node's command line, not yet run.
    pub fn command(&self, on: Option<&Host>, name: &str, arguments: &[&str]) -> Command {
        let mut command = match on {
            Some(host) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &host.name]).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        // What tests read in logs must not depend on who runs them.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("HEARSAY_") {
                command.env_remove(variable);
            }
        }
        command
            .args(arguments)
            .env_remove("RUST_LOG")
            // Where a node that runs here may have its socket.
            .env_remove("XDG_RUNTIME_DIR")
            .env("XDG_STATE_HOME", self.dir.join(name))
            .env("NO_COLOR", "1")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Ends all nodes without a word, and starts another program from now on.
    pub fn begin_anew(&mut self, binary: &OsStr, environment: &[(&str, &str)]) {
        for node in &mut self.nodes {
            // It may have ended by itself.
            _ = node.child.kill();
            _ = node.child.wait();
        }
        self.go_on_with(binary, environment);
    }

    /// Starts another program from now on, beside what runs.
    pub fn go_on_with(&mut self, binary: &OsStr, environment: &[(&str, &str)]) {
        self.binary = binary.to_owned();
        self.environment = environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    }

    /// Starts a named grading node with the default ports on a host.
    pub fn grading(&mut self, on: &Host, name: &str) -> NodeRef {
        self.start(Some(on), name, 7500, &["--role", "grading", "--name", name])
    }

    /// Where a node answers HTTP.
    pub fn address(&self, node: NodeRef) -> SocketAddr {
        self.nodes[node.0].http
    }

    /// A node's process id.
    pub fn pid(&self, node: NodeRef) -> u32 {
        self.nodes[node.0].child.id()
    }

    /// The Unix socket of a node that has one in its state directory.
    pub fn socket(&self, node: NodeRef) -> PathBuf {
        let Node { name, http, .. } = &self.nodes[node.0];
        find(&self.dir.join(name), &format!("default-{}.sock", http.port())).expect("a socket")
    }

    /// Sends a signal by number or name.
    pub fn signal(&self, node: NodeRef, signal: &str) {
        sh(&format!("kill -{signal} {}", self.pid(node)));
    }

    /// Waits for a process to end.
    pub fn ended(&mut self, node: NodeRef, bound: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.nodes[node.0].child.try_wait().expect("a child") {
                return status;
            }
            assert!(start.elapsed() < bound, "{} still runs\n{}", self.nodes[node.0].name, self.describe());
            std::thread::sleep(POLL);
        }
    }

    /// What a node wrote so far.
    pub fn log(&self, node: NodeRef) -> String {
        fs::read_to_string(&self.nodes[node.0].log).unwrap_or_default()
    }

    /// What a node answers to a GET, if it does.
    pub fn get(&self, node: NodeRef, path: &str) -> Option<Value> {
        get(self.nodes[node.0].http, path)
    }

    /// What a node answers to a GET, as text.
    pub fn text(&self, node: NodeRef, path: &str) -> Option<String> {
        get_text(self.nodes[node.0].http, path)
    }

    /// The memory that a node has in use.
    pub fn resident_kb(&self, node: NodeRef) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid(node))).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        line.and_then(|l| l.trim().split(' ').next()?.parse().ok()).expect("a running process")
    }

    /// Lines of all logs that contain this.
    pub fn logged(&self, text: &str) -> Vec<String> {
        let all = (0..self.nodes.len()).map(|i| self.log(NodeRef(i))).collect::<String>();
        all.lines().filter(|line| line.contains(text)).map(Into::into).collect()
    }
}

impl Cluster for Lab {
    /// On a host of its own.
    fn add(&mut self, name: &str) -> NodeRef {
        let host = self.host();
        self.grading(&host, name)
    }

    fn crash(&mut self, node: NodeRef) {
        self.signal(node, "KILL");
        self.ended(node, Duration::from_secs(5));
    }

    fn leave(&mut self, node: NodeRef) {
        self.signal(node, "TERM");
        assert!(self.ended(node, Duration::from_secs(5)).success());
    }

    fn name_of(&self, node: NodeRef) -> String {
        self.nodes[node.0].name.clone()
    }

    fn sees(&self, by: NodeRef, name: &str) -> Option<String> {
        let members = self.get(by, "/members")?;
        let states = members["members"].as_array()?.iter().filter(|m| m["name"] == name);
        states.filter_map(|m| m["state"].as_str()).min().map(Into::into)
    }

    fn providers(&self, by: NodeRef) -> Vec<String> {
        let services = self.get(by, "/services").unwrap_or_default();
        let providers = services["services"]["grading"].as_array().cloned().unwrap_or_default();
        let mut names: Vec<String> =
            providers.iter().filter_map(|p| Some(p["node"].as_str()?.to_owned())).collect();
        names.sort();
        names
    }

    fn root(&self, by: NodeRef) -> Option<String> {
        Some(self.get(by, "/members")?["rootHash"].as_str()?.to_owned())
    }

    fn describe(&self) -> String {
        let tail = |log: String| {
            log.lines()
                .rev()
                .take(if std::env::var_os("LAB_ALL").is_some() { 100_000 } else { 12 })
                .map(|l| format!("    {l}\n"))
                .collect::<String>()
        };
        let node = |(i, node): (usize, &Node)| {
            let members = self.get(NodeRef(i), "/members").unwrap_or_default();
            let list = members["members"].as_array().cloned().unwrap_or_default();
            let states: Vec<String> = list.iter().map(|m| format!("{}={}", m["name"], m["state"])).collect();
            let log = tail(self.log(NodeRef(i)));
            format!(
                "{} at {} root {}: {}\n{log}",
                node.name,
                node.http,
                members["rootHash"],
                states.join(" ")
            )
        };
        self.nodes.iter().enumerate().map(node).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // It may have ended by itself.
            _ = node.child.kill();
            _ = node.child.wait();
        }
        _ = fs::remove_dir_all(&self.dir);
    }
}

/// The first file of this name below a directory.
pub fn find(dir: &Path, name: &str) -> Option<PathBuf> {
    let mut below = Vec::new();
    for entry in fs::read_dir(dir).ok()?.flatten() {
        if entry.file_name() == name {
            return Some(entry.path());
        }
        below.extend(entry.path().is_dir().then(|| entry.path()));
    }
    below.into_iter().find_map(|dir| find(&dir, name))
}

/// Asks for JSON.
pub fn get(address: SocketAddr, path: &str) -> Option<Value> {
    serde_json::from_str(&get_text(address, path)?).ok()
}

fn get_text(address: SocketAddr, path: &str) -> Option<String> {
    let limit = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.to_owned())
}
