//! Measures how soon clients of all ten nodes learn that a program was killed, for each way to detect it
//! (such as a check or a held connection); and the expiry of etcd's leases.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{etcd, program::Program};
use crate::{
    clock::Moment,
    hearsay::{self, binary},
    load::{Connection, alone, send_all},
    protocol::{WireProtocol, post},
    server::{LOOK, Plan, Server},
    statistics::Events,
};

/// Nodes of the cluster.
pub(crate) const NODES: usize = 10;
/// Time within which a death must be known on all nodes.
const BOUND: Duration = Duration::from_secs(30);
/// Time after which unneeded connections of the start are closed.
const SETTLE: Duration = Duration::from_secs(20);
/// Time to live of a lease, in seconds, which is the minimum of etcd.
pub(crate) const LEASE_S: u64 = 2;
/// Number of deaths for each kind of detection that takes seconds.
const SLOW_KILLS: usize = 20;

/// Way in which a death is detected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Held,
    Watch,
    ProcessById,
    ProcessByPort,
    Wrapped,
    HttpEveryTenSeconds,
    EtcdLease,
}

impl Kind {
    const FAST: [Self; 5] = [Self::Held, Self::Watch, Self::ProcessById, Self::ProcessByPort, Self::Wrapped];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Held => "held registration",
            Self::Watch => "`watch` check",
            Self::ProcessById => "`process` check, by pid",
            Self::ProcessByPort => "`process` check, by port",
            Self::Wrapped => "`node run`",
            Self::HttpEveryTenSeconds => "`http` check every 10 s",
            Self::EtcdLease => "etcd, lease of 2 s",
        }
    }
}

/// Figures of all kinds of detection.
pub(crate) struct Figures {
    pub(crate) kinds: Vec<(Kind, Events)>,
}

impl Figures {
    pub(super) fn json(&self) -> Value {
        self.kinds.iter().map(|(kind, events)| json!({ "how": kind.name(), "events": events })).collect()
    }
}

/// # Errors
/// A node or a program does not start, or is not listed.
pub(super) fn measure(kills: usize, folder: &Path, has_etcd: bool) -> Result<Figures> {
    eprintln!("{NODES} nodes: starting, and settling for {SETTLE:?}");
    let lab = Lab::start(&folder.join("deaths"))?;
    std::thread::sleep(SETTLE);
    let mut kinds = Vec::new();
    for kind in Kind::FAST {
        let mut events = Events::new(BOUND.as_secs());
        for number in 0..kills {
            events.times_us.push(lab.kill_one(kind, number)?);
        }
        eprintln!("{}: {kills} kills, p99 {}", kind.name(), events.pairs().percentile(99));
        kinds.push((kind, events));
    }
    kinds.push((Kind::HttpEveryTenSeconds, lab.kill_many()?));
    drop(lab);
    if has_etcd {
        kinds.push((Kind::EtcdLease, leases(&folder.join("etcd"))?));
    }
    Ok(Figures { kinds })
}

/// Event that a client received: node, kind, data and time.
type Arrival = (usize, String, String, Moment);

struct Lab {
    nodes: Vec<Server>,
    sockets: Vec<PathBuf>,
    arrivals: Receiver<Arrival>,
}

impl Lab {
    fn start(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let (mut nodes, mut sockets) = (Vec::new(), Vec::new());
        for index in 0..NODES {
            let socket = folder.join(format!("{index}.sock"));
            let join: Vec<usize> = (0..index).take(1).collect();
            let options = ["--socket", &socket.to_string_lossy()];
            nodes.push(Plan::new(folder, index, "", &join).with(&options).start()?);
            sockets.push(socket);
        }
        for node in &mut nodes {
            node.until("it sees all others", |node| node.members() == NODES)?;
        }
        let (arrived, arrivals) = mpsc::channel();
        for observer in 0..NODES {
            let arrived = arrived.clone();
            hearsay::changes(observer, "", move |event| {
                // The receiver is gone when measuring is over.
                _ = arrived.send((observer, event.kind.to_owned(), event.data.to_owned(), event.at));
            })?;
        }
        Ok(Self { nodes, sockets, arrivals })
    }

    /// Starts a program, waits until it passes on all nodes, and kills it. Returns the time until each node's
    /// client received the event.
    fn kill_one(&self, kind: Kind, number: usize) -> Result<Vec<Option<u64>>> {
        let node = number % NODES;
        let id = format!("{kind:?}-{number}");
        let program = self.register(kind, node, &id)?;
        let wanted = format!("\"{id}\"");
        let listed = self.until(&[&wanted], |kind, data| kind != "removed" && is_passing(data));
        ensure!(listed.iter().flatten().all(Option::is_some), "{id} is not passing everywhere: {listed:?}");
        let killed = Moment::now();
        program.kill()?;
        let gone = self.until(&[&wanted], |kind, data| kind == "removed" || !is_passing(data));
        let times = gone[0].iter().map(|at| at.map(|at| at.micros_since(killed))).collect();
        // The failing instances must be gone before the next kill.
        _ = self.nodes[node].ask(&format!("DELETE /services/{id}"), &[], "");
        Ok(times)
    }

    fn register(&self, kind: Kind, node: usize, id: &str) -> Result<Program> {
        let address = self.nodes[node].address;
        let socket = format!("unix:{}", self.sockets[node].display());
        let node_binary = binary().context("NODE_BIN")?;
        match kind {
            Kind::Held => {
                // The program replaces `PORT` by its port.
                let body = format!("{{\"name\":\"deaths\",\"id\":\"{id}\",\"port\":PORT}}");
                Program::start(None, &["hold", &address.to_string(), &body])
            }
            Kind::Watch | Kind::HttpEveryTenSeconds => {
                let program = Program::start(None, &[])?;
                let check = match kind {
                    Kind::Watch => json!({ "watch": true }),
                    _ => json!({ "http": "/", "interval": "10s", "timeout": "1s" }),
                };
                let body = json!({ "name": "deaths", "id": id, "port": program.port, "checks": [check] });
                let request = post("/services", "application/json", &body.to_string());
                send_all(address, &[request], 1)?;
                Ok(program)
            }
            Kind::ProcessById | Kind::ProcessByPort => {
                let program = Program::start(None, &[])?;
                let check = match kind {
                    Kind::ProcessById => format!("process={}", program.pid()),
                    _ => format!("process=:{}", program.port),
                };
                let status = Command::new(node_binary)
                    .args(["register", "deaths", "--id", id, "--port", &program.port.to_string()])
                    .args(["--check", &check, "--node", &socket])
                    .stdout(std::process::Stdio::null())
                    .status()?;
                ensure!(status.success(), "node register: {status}");
                Ok(program)
            }
            Kind::Wrapped => {
                let mut command = Command::new(node_binary);
                command.args(["run", "--service", "deaths", "--id", id, "--port", "auto", "--node", &socket]);
                Program::start(Some(&command), &[])
            }
            Kind::EtcdLease => anyhow::bail!("not by a node"),
        }
    }

    /// Kills many programs at once, because each detection takes long. Their checks have different phases.
    fn kill_many(&self) -> Result<Events> {
        let kind = Kind::HttpEveryTenSeconds;
        let ids: Vec<String> = (0..SLOW_KILLS).map(|number| format!("{kind:?}-{number}")).collect();
        let wanted: Vec<String> = ids.iter().map(|id| format!("\"{id}\"")).collect();
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let start = |(number, id): (usize, &String)| self.register(kind, number % NODES, id);
        let programs = ids.iter().enumerate().map(start).collect::<Result<Vec<_>>>()?;
        let listed = self.until(&wanted, |kind, data| kind != "removed" && is_passing(data));
        ensure!(listed.iter().flatten().all(Option::is_some), "not all are passing everywhere");
        // No program may be killed before the first run of its check has ended.
        std::thread::sleep(Duration::from_secs(10));
        let killed = Moment::now();
        for program in &programs {
            program.kill()?;
        }
        let gone = self.until(&wanted, |kind, data| kind == "removed" || !is_passing(data));
        let since = |at: &Option<Moment>| at.map(|at| at.micros_since(killed));
        let times_us = gone.iter().map(|nodes| nodes.iter().map(since).collect()).collect();
        Ok(Events { times_us, bound_s: BOUND.as_secs() })
    }

    /// Returns, for each instance, when the client of each node received a wanted event.
    fn until(&self, wanted: &[&str], is_wanted: impl Fn(&str, &str) -> bool) -> Vec<Vec<Option<Moment>>> {
        let mut times = vec![vec![None; NODES]; wanted.len()];
        let until = Instant::now() + BOUND;
        while times.iter().flatten().any(Option::is_none) {
            let left = until.saturating_duration_since(Instant::now());
            let Ok((observer, kind, data, at)) = self.arrivals.recv_timeout(left) else { break };
            if is_wanted(&kind, &data)
                && let Some(index) = wanted.iter().position(|id| data.contains(id))
            {
                times[index][observer].get_or_insert(at);
            }
        }
        times
    }
}

fn is_passing(data: &str) -> bool {
    data.contains("\"health\":\"passing\"")
}

/// Measures the time until a key is gone after its lease is no longer renewed.
fn leases(folder: &Path) -> Result<Events> {
    let server = etcd::start(folder)?;
    let mut events = Events::new(BOUND.as_secs());
    alone(async {
        let mut connection = Connection::open(server.address, WireProtocol::Grpc, 0).await?;
        // The first answer on a connection has full headers, and later ones refer to them.
        connection.ask_length(&etcd::range("deaths", false)).await?;
        let empty = connection.ask_length(&etcd::range("deaths", false)).await?;
        for lease in 1..=SLOW_KILLS as u64 / 2 {
            let killed = Moment::now();
            ensure!(connection.ask(&etcd::grant(lease, LEASE_S)).await?, "no lease");
            let key = etcd::key("deaths", &lease.to_string());
            ensure!(connection.ask(&etcd::put_leased(&key, "x", lease)).await?, "no key");
            let until = Instant::now() + BOUND;
            let mut gone = None;
            while gone.is_none() && Instant::now() < until {
                // A revision may take one byte more in a later answer; a key takes many.
                if connection.ask_length(&etcd::range("deaths", false)).await? < empty + 8 {
                    gone = Some(Moment::now().micros_since(killed));
                }
                tokio::time::sleep(LOOK).await;
            }
            events.times_us.push(vec![gone]);
        }
        Ok(())
    })?;
    eprintln!("{}: p50 {}", Kind::EtcdLease.name(), events.pairs().percentile(50));
    Ok(events)
}
