//! Test lab: real nodes in network namespaces, and the faults that scenarios inject.
//!
//! [`scenario`] restarts its test under `unshare`, in private network and mount namespaces (`/run/netns`
//! included). So hosts, bridge and firewall rules affect no other network, and the kernel removes them when
//! the process ends. A [`Host`] is another namespace on one bridge; the test itself is on the bridge and
//! reaches every node.
//!
//! Tests wait for facts, never for durations: [`Lab::until`] has a bound. If the bound passes, it fails and
//! shows the state of every node.

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
pub mod clients;
mod clocks;
mod cluster;
mod compose;
pub mod faulty_store;
mod feeds;
mod floods;
mod foreign;
pub mod history;
pub mod http;
mod intruder;
mod lossy_disk;
mod programs;
pub mod registry;
pub mod rows;
mod swarms;
mod writers;
pub mod xds;

pub use address_counter::AddressCounter;
pub use browser::Browser;
pub use clocks::LabClock;
pub use cluster::{Cluster, NodeRef};
pub use compose::{Compose, Container, docker};
pub use feeds::{Feed, feeds};
pub use floods::{CpuLimit, Flood, Flooded, Flooding, TimedRequest, run_flooder};
pub use foreign::{ForeignSite, NameServer, SiteRequest};
pub use intruder::{Intruder, spoof_mdns};
pub use lossy_disk::LossyDisk;
pub use programs::Program;
pub use swarms::Swarms;
pub use writers::{Writers, all_written};

use cluster::{POLL, SLACK};

/// Environment variable that is set for the process inside the namespaces. It names a file that the process
/// creates as proof that the test ran.
const INSIDE: &str = "HEARSAY_LAB_INSIDE";

/// Runs a scenario inside new namespaces. If that is impossible, prints the reason; with `LAB=full` the test
/// fails.
pub fn scenario(name: &str, body: impl FnOnce(&mut Lab)) {
    if let Some(sign) = std::env::var_os(INSIDE) {
        fs::write(sign, name).expect("a place for a sign of life");
        return body(&mut Lab::in_this_namespace());
    }
    if let Err(why) = can_unshare() {
        println!("skipped: {name}: {why}");
        assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and {name} cannot run here: {why}");
        return;
    }
    let me = std::env::current_exe().expect("a test has a file");
    let sign = std::env::temp_dir().join(format!("hearsay-scenario-{}-{name}", std::process::id()));
    // SIGHUP gets its default handling, as under a supervisor, even if the tests run under nohup.
    let status = Command::new("env")
        .args(["--default-signal=HUP", "unshare", "--net", "--mount", "--"])
        .arg(me)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, &sign)
        .status()
        .expect("unshare was there a moment ago");
    assert!(status.success(), "{name} failed; see above");
    // If no test has the name, the process runs none and still succeeds.
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

/// Returns the program `node-broken`, whose journal breaks its guarantees, or which speaks the next version
/// of the protocol. Without the program, prints that the test is skipped; with `LAB=full` the test fails.
pub fn other_build(test: &str) -> Option<OsString> {
    let build = std::env::var_os("NODE_BROKEN_BIN");
    if build.is_none() {
        println!("skipped: {test}: NODE_BROKEN_BIN does not name the program node-broken; tests/run does");
        assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and {test} has no such node");
    }
    build
}

/// Returns the build of the version without epochs, two versions ago. With `LAB_LONG=1`, `tests/run` builds
/// it from its commit. Without a build, prints that the test is skipped.
pub fn older_build(test: &str) -> Option<OsString> {
    earlier_build(test, "NODE_OLDER_BIN")
}

/// Returns the build of the previous version, which has no registry. Without a build, prints that the test is
/// skipped.
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

/// Runs a shell command, which must succeed.
pub fn sh(line: &str) {
    let output = Command::new("sh").args(["-c", line]).output().expect("there is a shell");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Lab of one scenario: its hosts and nodes.
pub struct Lab {
    dir: PathBuf,
    hosts: usize,
    nodes: Vec<Node>,
    /// Binary of nodes that start from now on. They also get `environment`.
    binary: OsString,
    environment: Vec<(String, String)>,
}

/// Simulated machine: a namespace with one interface on the lab's bridge.
#[derive(Clone, Debug)]
pub struct Host {
    /// Name of its namespace.
    pub name: String,
    /// IP address.
    pub ip: String,
}

impl Host {
    /// Runs a command on the host, which must succeed.
    pub fn sh(&self, line: &str) {
        sh(&format!("ip netns exec {} {line}", self.name));
    }

    /// Drops packets that arrive from these hosts.
    pub fn drop_packets_from(&self, to: &[&Host]) {
        let from = to.iter().map(|h| h.ip.as_str()).collect::<Vec<_>>().join(", ");
        self.sh(&format!(
            "nft 'add table inet lab; add chain inet lab in {{ type filter hook input priority 0; }}; \
             add rule inet lab in ip saddr {{ {from} }} drop'"
        ));
    }

    /// Drops this percentage of incoming packets, at random.
    pub fn drop_percent(&self, percent: u8) {
        self.sh(&format!(
            "nft 'add table inet lab; add chain inet lab in {{ type filter hook input priority 0; }}; \
             add rule inet lab in iifname eth0 numgen random mod 100 < {percent} drop'"
        ));
    }

    /// Ends the packet loss.
    pub fn drop_nothing(&self) {
        self.sh("nft delete table inet lab");
    }
}

/// Processes that keep processors busy until this is dropped; each uses at most 700 s of processor time.
#[derive(Debug)]
pub struct Busy(Vec<Child>);

impl Busy {
    /// Starts this many processes.
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

/// Process of a node under test.
#[derive(Debug)]
pub struct Node {
    /// Name.
    pub name: String,
    /// HTTP address.
    pub http: SocketAddr,
    child: Child,
    log: PathBuf,
}

impl Lab {
    /// Creates the lab inside the namespaces of this process. `NODE_BIN` names the node's binary.
    pub fn in_this_namespace() -> Self {
        let dir = std::env::temp_dir().join(format!("hearsay-lab-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a place for logs");
        // `ip netns` keeps its handles in /run/netns. Each scenario mounts a private one, so that concurrent
        // scenarios do not collide.
        sh("mkdir -p /run/netns && mount -t tmpfs none /run/netns && ip link set lo up && \
            ip link add br0 type bridge && ip addr add 10.77.0.1/16 dev br0 && ip link set br0 up");
        let binary = std::env::var_os("NODE_BIN").expect("NODE_BIN names the node");
        Self { dir, hosts: 0, nodes: Vec::new(), binary, environment: Vec::new() }
    }

    /// Returns the folder of this scenario.
    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// Adds a machine to the LAN.
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

    /// Starts a node on a host, or on loopback. The node's state directory has its name.
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

    /// Builds the node's command line without running it.
    pub fn command(&self, on: Option<&Host>, name: &str, arguments: &[&str]) -> Command {
        let mut command = match on {
            Some(host) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &host.name]).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        };
        // Logs that tests read must not depend on the caller's environment.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("HEARSAY_") {
                command.env_remove(variable);
            }
        }
        command
            .args(arguments)
            .env_remove("RUST_LOG")
            // A node outside of the lab may have its socket in this directory.
            .env_remove("XDG_RUNTIME_DIR")
            .env("XDG_STATE_HOME", self.dir.join(name))
            .env("NO_COLOR", "1")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Kills all nodes. Nodes that start from now on use another binary.
    pub fn restart_with(&mut self, binary: &OsStr, environment: &[(&str, &str)]) {
        for node in &mut self.nodes {
            // The process may already have ended.
            _ = node.child.kill();
            _ = node.child.wait();
        }
        self.use_binary(binary, environment);
    }

    /// Nodes that start from now on use another binary; running nodes remain.
    pub fn use_binary(&mut self, binary: &OsStr, environment: &[(&str, &str)]) {
        self.binary = binary.to_owned();
        self.environment = environment.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    }

    /// Starts a named grading node with the default ports on a host.
    pub fn grading(&mut self, on: &Host, name: &str) -> NodeRef {
        self.start(Some(on), name, 7500, &["--role", "grading", "--name", name])
    }

    /// Returns a node's HTTP address.
    pub fn address(&self, node: NodeRef) -> SocketAddr {
        self.nodes[node.0].http
    }

    /// Returns a node's process id.
    pub fn pid(&self, node: NodeRef) -> u32 {
        self.nodes[node.0].child.id()
    }

    /// Returns the Unix socket in a node's state directory.
    pub fn socket(&self, node: NodeRef) -> PathBuf {
        let Node { name, http, .. } = &self.nodes[node.0];
        find(&self.dir.join(name), &format!("default-{}.sock", http.port())).expect("a socket")
    }

    /// Sends a signal, given by number or name, to a node.
    pub fn signal(&self, node: NodeRef, signal: &str) {
        sh(&format!("kill -{signal} {}", self.pid(node)));
    }

    /// Waits for a node's process to end. Fails `SLACK` after the bound.
    pub fn ended(&mut self, node: NodeRef, bound: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.nodes[node.0].child.try_wait().expect("a child") {
                return status;
            }
            assert!(
                start.elapsed() < bound + SLACK,
                "{} still runs\n{}",
                self.nodes[node.0].name,
                self.describe()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Returns a node's log so far.
    pub fn log(&self, node: NodeRef) -> String {
        fs::read_to_string(&self.nodes[node.0].log).unwrap_or_default()
    }

    /// Waits for a line in a node's log that contains all of these texts. The node writes its log in a
    /// separate thread, so a line may appear after the effect that it describes.
    pub fn until_logged(&self, bound: Duration, node: NodeRef, texts: &[&str]) {
        self.until(bound, &format!("it logs {texts:?}"), |lab| {
            lab.log(node).lines().any(|line| texts.iter().all(|text| line.contains(text)))
        });
    }

    /// Sends a GET and parses the JSON answer; `None` if either fails.
    pub fn get(&self, node: NodeRef, path: &str) -> Option<Value> {
        get(self.nodes[node.0].http, path)
    }

    /// Sends a GET and returns the body of the answer; `None` without an answer.
    pub fn text(&self, node: NodeRef, path: &str) -> Option<String> {
        get_text(self.nodes[node.0].http, path)
    }

    /// Returns the resident memory of a node, in KiB.
    pub fn resident_kb(&self, node: NodeRef) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid(node))).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        line.and_then(|l| l.trim().split(' ').next()?.parse().ok()).expect("a running process")
    }

    /// Returns the lines of all nodes' logs that contain this text.
    pub fn logged(&self, text: &str) -> Vec<String> {
        let all = (0..self.nodes.len()).map(|i| self.log(NodeRef(i))).collect::<String>();
        all.lines().filter(|line| line.contains(text)).map(Into::into).collect()
    }
}

impl Cluster for Lab {
    /// Starts the node on a new host.
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
            // The process may already have ended.
            _ = node.child.kill();
            _ = node.child.wait();
        }
        _ = fs::remove_dir_all(&self.dir);
    }
}

/// Finds the first file with this name in a directory or below it.
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

/// Sends a GET and parses the JSON answer; `None` if either fails.
pub fn get(address: SocketAddr, path: &str) -> Option<Value> {
    serde_json::from_str(&get_text(address, path)?).ok()
}

fn get_text(address: SocketAddr, path: &str) -> Option<String> {
    // Long enough for a busy machine: many tests take no answer for a fault.
    let limit = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.to_owned())
}
