//! [`Flooded`]: starts a node, floods it from one host, and times the answers to requests of a second host.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{flood::Flood, kinds::Flooding};
use crate::{Cluster as _, Host, Lab, NodeRef, sh};

const S: Duration = Duration::from_secs(1);
/// Limit of one request. A Kubernetes probe has 1 s; here the machine may be busy.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Limit of open files of the node. From it the node derives limits of 3,584 connections and 2,864 streams,
/// and at the gateway of 1,024 connections and requests.
const FILES: usize = 4096;
/// Paths that the second host requests.
const PATHS: [(u16, &str); 4] =
    [(7500, "/services"), (7500, "/services/watch"), (7500, "/log?limit=1"), (8080, "/students")];

/// A request of the second host, and its time to the first byte; `None` if it did not get an answer with
/// status 200.
#[derive(Clone, Debug)]
pub struct TimedRequest {
    /// Path of the request.
    pub what: String,
    /// Time until the answer began.
    pub took: Option<Duration>,
}

/// A node with all roles but `visits` and `kv`, and the host that floods it. The second host is the scenario
/// itself, at the bridge's address.
#[derive(Debug)]
pub struct Flooded {
    /// Host of the node.
    pub host: Host,
    /// The node.
    pub node: NodeRef,
    flooder: Host,
    program: Vec<String>,
}

impl Flooded {
    /// Starts a node of this name. `program` is the command that calls [`run_flooder`](crate::run_flooder).
    pub fn start(lab: &mut Lab, name: &str, program: &[&str]) -> Self {
        raise_file_limit();
        let limited = lab.dir().join("limited");
        let binary = std::env::var("NODE_BIN").expect("a node");
        fs::write(&limited, format!("#!/bin/sh\nulimit -n {FILES}\nexec {binary} \"$@\"\n"))
            .expect("a script");
        sh(&format!("chmod 755 {}", limited.display()));
        lab.use_binary(limited.as_os_str(), &[]);
        let (host, flooder) = (lab.host(), lab.host());
        let roles = ["--no-mdns", "--name", name, "--role", "grading,log,portal,gateway", "--demo"];
        let node = lab.start(Some(&host), name, 7500, &roles);
        let program = program.iter().map(ToString::to_string).collect();
        let flooded = Self { host, node, flooder, program };
        lab.until(20 * S, "the gateway brings the students", |_| {
            status_of(flooded.at(8080), "/students", ANSWER_MAX) == Some(200)
        });
        flooded
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.host.ip.parse().expect("an address"), port)
    }

    /// Returns a counter or gauge of the node.
    pub fn counted(&self, lab: &Lab, figure: &str) -> f64 {
        let metrics = lab.text(self.node, "/metrics").unwrap_or_default();
        let value = metrics.lines().find_map(|line| line.strip_prefix(figure)?.trim().parse().ok());
        value.unwrap_or(0.0)
    }

    /// Sends a request for every path this many times, from the second host and from the node's own machine.
    pub fn ask(&self, rounds: usize) -> Vec<TimedRequest> {
        let timed = |what: String, ask: &dyn Fn() -> Option<u16>| {
            let begun = Instant::now();
            let took = (ask() == Some(200)).then(|| begun.elapsed());
            TimedRequest { what, took }
        };
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 7500));
        let probe = || self.host.enter(|| status_of(loopback, "/livez", ANSWER_MAX));
        let round = |_| {
            let others = PATHS.iter().map(|(port, path)| {
                timed(format!("{port}{path}"), &|| status_of(self.at(*port), path, ANSWER_MAX))
            });
            [timed("the probe".to_owned(), &probe)].into_iter().chain(others).collect::<Vec<_>>()
        };
        (0..rounds).flat_map(round).collect()
    }

    /// Starts a flood. Returns after the flooder has tried to open all its connections.
    pub fn flood(&self, lab: &Lab, flooding: &Flooding) -> Flood {
        let Flooding { port, first, holding, gauge: (gauge, value), .. } = flooding;
        let program: Vec<&str> = self.program.iter().map(String::as_str).collect();
        let flood = Flood::start(&program, &self.flooder, self.at(*port), first, *holding);
        lab.until(120 * S, &format!("the flood is there: {gauge} {value}"), |lab| {
            flood.is_open() && self.counted(lab, gauge) >= *value
        });
        flood
    }
}

/// Raises this process's limit of open files as far as the system allows.
fn raise_file_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("up to the maximum");
}

/// Returns the status of the answer to a GET whose body may never end.
fn status_of(to: SocketAddr, path: &str, limit: Duration) -> Option<u16> {
    let mut stream = TcpStream::connect_timeout(&to, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {to}\r\n\r\n").ok()?;
    let mut line = [0; 12];
    stream.read_exact(&mut line).ok()?;
    String::from_utf8_lossy(&line).split(' ').nth(1)?.parse().ok()
}
