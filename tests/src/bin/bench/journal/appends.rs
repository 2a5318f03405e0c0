//! Measures the rate, latency and cost of durable appends to Hearsay's journal, Redis and NATS. The systems
//! run in turn, each from an empty state.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    disk::{self, Disk, Writing},
    journal::Options,
    load::{Answered, Connection, Load, alone},
    machine::{self, first_line},
    protocol::{WireProtocol, get, inbox, post},
    server::{Plan, Server, cluster},
    usage::Reading,
};

/// Size of a record, in bytes.
const RECORD_BYTES: usize = 200;
/// Time of load before measuring.
const WARM_UP: Duration = Duration::from_secs(1);
/// Numbers of concurrent connections.
pub(crate) const CLIENTS: [usize; 2] = [1, 64];
/// Records in a batch request.
pub(crate) const BATCH: usize = 100;
/// Longest wait for an idle machine, before each measurement.
const QUIET_MAX: Duration = Duration::from_secs(5);
/// Source of a library that delays each sync.
const SLOW: &str = include_str!("slow.c");
const REDIS_PORT: u16 = 6379;
const NATS_PORT: u16 = 4222;

/// Table of the page to which a kind belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tables {
    Compare,
    Explain,
    Slow,
}

/// System and kind of request that are measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Kind {
    Redis,
    OneNode,
    ThreeNodesLocal,
    ThreeNodesReplicated,
    Nats,
    /// Requests that write nothing.
    Livez,
    /// Appends to a journal without full-text search.
    Visits,
    /// Requests with many records each.
    Batches,
    /// Redis with syncs that take a millisecond longer.
    SlowRedis,
    SlowNode,
}

impl Kind {
    /// All kinds in the order of the tables.
    pub(crate) const ALL: [Self; 10] = [
        Self::Redis,
        Self::OneNode,
        Self::ThreeNodesLocal,
        Self::ThreeNodesReplicated,
        Self::Nats,
        Self::Livez,
        Self::Visits,
        Self::Batches,
        Self::SlowRedis,
        Self::SlowNode,
    ];

    /// Returns the table that shows this kind.
    pub(crate) fn table(self) -> Tables {
        match self {
            Self::Livez | Self::Visits | Self::Batches => Tables::Explain,
            Self::SlowRedis | Self::SlowNode => Tables::Slow,
            _ => Tables::Compare,
        }
    }

    /// Returns the kind to which the table's ratios refer.
    pub(crate) fn peer(self) -> Self {
        if self.table() == Tables::Slow { Self::SlowRedis } else { Self::Redis }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis, RPUSH, appendfsync always",
            Self::OneNode => "hearsay, 1 node, local",
            Self::ThreeNodesLocal => "hearsay, 3 nodes, local",
            Self::ThreeNodesReplicated => "hearsay, 3 nodes, replicated",
            Self::Nats => "nats JetStream (not synced)",
            Self::Livez => "hearsay, GET /livez",
            Self::Visits => "hearsay, POST /visits",
            Self::Batches => "hearsay, NDJSON of 100",
            Self::SlowRedis => "redis, 1 ms more a sync",
            Self::SlowNode => "hearsay, 1 node, local, 1 ms more a sync",
        }
    }

    /// Returns the reason if this kind cannot be measured on this machine.
    fn missing(self) -> Option<&'static str> {
        if self.table() == Tables::Slow && first_line("cc", &["--version"]).is_none() {
            return Some("there is no C compiler");
        }
        let (program, flag) = match self {
            Self::Redis | Self::SlowRedis => ("redis-server", "--version"),
            Self::Nats => ("nats-server", "--version"),
            _ => return None,
        };
        first_line(program, &[flag]).is_none().then_some("it is not installed")
    }

    /// Builds the library that is loaded before the C library; `None` if the kind needs none. The compiler is
    /// that which builds SQLite.
    fn library(self, folder: &Path) -> Result<Option<PathBuf>> {
        if self.table() != Tables::Slow {
            return Ok(None);
        }
        fs::create_dir_all(folder)?;
        let (source, library) = (folder.join("slow.c"), folder.join("slow.so"));
        fs::write(&source, SLOW)?;
        let mut command = Command::new("cc");
        command.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(&source).arg("-ldl");
        ensure!(command.status().context("cc")?.success(), "cc failed");
        Ok(Some(library))
    }

    fn protocol(self) -> WireProtocol {
        match self {
            Self::Redis | Self::SlowRedis => WireProtocol::Redis,
            Self::Nats => WireProtocol::Nats,
            _ => WireProtocol::Http,
        }
    }

    /// Starts the servers of this kind. The first one gets the requests.
    fn start(self, folder: &Path) -> Result<Vec<Server>> {
        let library = self.library(folder)?;
        let library = library.as_deref();
        match self {
            Self::Redis | Self::SlowRedis => {
                let port = REDIS_PORT.to_string();
                let options = ["--port", &port, "--bind", "127.0.0.1", "--save", ""];
                let durable = ["--appendonly", "yes", "--appendfsync", "always"];
                let arguments = [&options[..], &durable[..]].concat();
                Ok(vec![Server::start_before("redis-server", &arguments, REDIS_PORT, folder, None, library)?])
            }
            Self::Nats => {
                let port = NATS_PORT.to_string();
                let arguments = ["-js", "-sd", "jetstream", "-a", "127.0.0.1", "-p", &port];
                let server = Server::start("nats-server", &arguments, NATS_PORT, folder, None)?;
                create_stream(&server)?;
                Ok(vec![server])
            }
            Self::ThreeNodesLocal | Self::ThreeNodesReplicated => {
                let mut nodes = cluster(folder, 0, 3, "log")?;
                let replicates = |node: &Server| {
                    let reply = node.ask("POST /log?ack=replicated", &[("content-type", "text/plain")], "x");
                    reply.is_some_and(|reply| reply.status == 200)
                };
                nodes[0].until("a write is replicated", replicates)?;
                Ok(nodes)
            }
            Self::Visits => Ok(vec![Plan::new(folder, 0, "visits", &[]).start()?]),
            Self::OneNode | Self::SlowNode | Self::Livez | Self::Batches => {
                Ok(vec![Plan::new(folder, 0, "log", &[]).before(library).start()?])
            }
        }
    }

    /// Returns the requests of one connection. The connection repeats them.
    fn request(self, connection: usize) -> Vec<u8> {
        let record = record(connection);
        match self {
            Self::Redis | Self::SlowRedis => self.protocol().append("log", connection, &record),
            Self::Nats => self.protocol().append("bench.log", connection, &record),
            Self::OneNode | Self::SlowNode | Self::ThreeNodesLocal => {
                self.protocol().append("/log?ack=local", connection, &record)
            }
            Self::ThreeNodesReplicated => self.protocol().append("/log?ack=replicated", connection, &record),
            Self::Livez => get("/livez"),
            Self::Visits => post("/visits?ack=local", "application/json", ""),
            Self::Batches => {
                let line = format!("{}\n", json!({ "message": record }));
                post("/log?ack=local", "application/x-ndjson", &line.repeat(BATCH))
            }
        }
    }
}

/// Generates words as in a log, exactly this many bytes.
fn record(connection: usize) -> String {
    let text =
        format!("client {connection} asked for a page and was answered in time, which was to be expected; ");
    text.repeat(RECORD_BYTES / text.len() + 1)[..RECORD_BYTES].to_owned()
}

/// Creates a stream in JetStream, which stores the messages to the stream's subjects.
fn create_stream(server: &Server) -> Result<()> {
    let stream = json!({
        "name": "BENCH", "subjects": ["bench.>"], "storage": "file", "retention": "limits",
        "max_consumers": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "discard": "old", "num_replicas": 1,
    });
    alone(async {
        let mut connection = Connection::open(server.address, WireProtocol::Nats, 0).await?;
        let stream = stream.to_string();
        let request =
            format!("PUB $JS.API.STREAM.CREATE.BENCH {} {}\r\n{stream}\r\n", inbox(0), stream.len());
        let created = connection.ask(request.as_bytes()).await?;
        ensure!(created, "no stream: {}", String::from_utf8_lossy(connection.body()));
        Ok(())
    })
}

/// Figures of one kind with one number of connections, over all rounds.
#[derive(Clone, Default, Debug)]
pub(crate) struct Cell {
    pub(crate) answered: Answered,
    /// Rate of each round.
    pub(crate) rates: Vec<f64>,
    /// Processor time of the first server.
    pub(crate) cpu_seconds: f64,
    pub(crate) cpu_seconds_all: f64,
    /// Syncs of the whole machine.
    pub(crate) flushes: u64,
    pub(crate) written_bytes: u64,
    /// Transactions of the first node, if the system counts them.
    pub(crate) commits: Option<u64>,
}

/// Figures of all kinds, and the times of a single sync.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) cells: BTreeMap<(Kind, usize), Cell>,
    /// Times of a single sync at the end of a growing file.
    pub(crate) growing_us: Vec<u64>,
    pub(crate) in_place_us: Vec<u64>,
    pub(crate) counts_disk: bool,
}

impl Figures {
    pub(crate) fn json(&self) -> Value {
        let cell = |((kind, clients), cell): (&(Kind, usize), &Cell)| {
            let answers = cell.answered.times_us.len().max(1) as f64;
            json!({
                "what": kind.name(), "clients": clients, "perSecond": cell.answered.per_second(), "rates": cell.rates,
                "p50": cell.answered.times().percentile(50).to_string(), "p99": cell.answered.times().percentile(99).to_string(),
                "max": cell.answered.times().max().to_string(), "bad": cell.answered.bad, "answers": answers,
                "cpuMicros": cell.cpu_seconds * 1e6 / answers, "cpuMicrosOfAll": cell.cpu_seconds_all * 1e6 / answers,
                "flushes": cell.flushes, "writtenBytes": cell.written_bytes, "commits": cell.commits,
            })
        };
        self.cells.iter().map(cell).collect()
    }
}

/// Measures all kinds, in turn, as often as requested.
///
/// # Errors
/// A server did not start, or refused to append.
pub(crate) fn measure(options: &Options, folder: &Path, skipped: &mut Vec<String>) -> Result<Figures> {
    let mut figures = Figures { counts_disk: Disk::of(folder).is_some(), ..Figures::default() };
    let mut kinds = Kind::ALL.to_vec();
    kinds.retain(|kind| match kind.missing() {
        Some(why) => {
            eprintln!("skipped: {}: {why}", kind.name());
            skipped.push(format!("{}: {why}", kind.name()));
            false
        }
        None => true,
    });
    for round in 0..options.rounds {
        figures.growing_us.extend(disk::syncs(folder, Writing::AtTheEnd(RECORD_BYTES), WARM_UP)?);
        figures.in_place_us.extend(disk::syncs(folder, Writing::InPlace, WARM_UP)?);
        for kind in &kinds {
            for clients in CLIENTS {
                let place = folder.join("servers");
                let cell = figures.cells.entry((*kind, clients)).or_default();
                append(*kind, clients, options.time, &place, cell)
                    .with_context(|| format!("{}, {clients} clients", kind.name()))?;
                fs::remove_dir_all(&place).with_context(|| place.display().to_string())?;
                eprintln!(
                    "round {}: {}, {clients} clients: {:.0}/s",
                    round + 1,
                    kind.name(),
                    cell.rates.last().copied().unwrap_or_default()
                );
            }
        }
    }
    Ok(figures)
}

/// Runs one round of one kind, with new servers.
fn append(kind: Kind, clients: usize, time: Duration, place: &Path, cell: &mut Cell) -> Result<()> {
    let servers = kind.start(place)?;
    let load = Load {
        to: servers[0].address,
        protocol: kind.protocol(),
        requests: (0..clients).map(|connection| vec![kind.request(connection)]).collect(),
        warm_up: WARM_UP,
        time,
    };
    let look = || {
        let one = Reading::take([servers[0].process.pid()].into_iter())?;
        let all = Reading::take(servers.iter().map(|server| server.process.pid()))?;
        Ok((one, all, Disk::of(place), commits(kind, &servers[0])))
    };
    machine::wait_until_idle(QUIET_MAX);
    let (answered, first, last) = load.run(look)?;
    ensure!(!answered.times_us.is_empty(), "nothing was answered");
    cell.rates.push(answered.per_second());
    cell.answered.and(answered);
    cell.cpu_seconds += last.0.cpu_seconds_since(&first.0);
    cell.cpu_seconds_all += last.1.cpu_seconds_since(&first.1);
    if let (Some(first), Some(last)) = (first.2, last.2) {
        cell.flushes += last.since(first).flushes;
        cell.written_bytes += last.since(first).written_bytes;
    }
    if let (Some(first), Some(last)) = (first.3, last.3) {
        *cell.commits.get_or_insert_default() += last - first;
    }
    Ok(())
}

/// Returns the sum of all topics' commits in `/metrics`.
fn commits(kind: Kind, server: &Server) -> Option<u64> {
    if kind.protocol() != WireProtocol::Http {
        return None;
    }
    let metrics = server.ask("GET /metrics", &[], "")?.body;
    let lines = metrics.lines().filter(|line| line.starts_with("hearsay_journal_commits"));
    Some(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_their_length() {
        assert!([0, 63].into_iter().all(|client| record(client).len() == RECORD_BYTES));
    }
}
