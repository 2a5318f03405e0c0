//! DNS answers a second, beside unbound that serves the same zone from memory.

use std::{fmt::Write as _, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    process::{Process, bound},
    server::{LOOK, Plan, Server},
    table::Table,
};

/// Port at which each server answers.
const PORT: u16 = 7553;
/// Instances of the service that is asked for.
const INSTANCES: u16 = 3;
/// Processor of the server that is asked; the client has the other.
const SERVER_PROCESSOR: usize = 0;
const CLIENT_PROCESSOR: usize = 1;
/// Longest wait for a server's first answer.
const START_MAX: Duration = Duration::from_secs(20);

/// Queries that are asked, one kind in each measurement.
pub(super) const KINDS: [&str; 3] = ["A", "SRV", "NXDOMAIN"];

/// Answers a second of each round, for each kind of query.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub(super) rows: Vec<Row>,
}

/// One server, asked one kind of query.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) kind: &'static str,
    pub(super) server: &'static str,
    /// Answers a second, one figure for each round.
    pub(super) rates: Vec<f64>,
    /// Mean time of an answer in the last round, in microseconds.
    pub(super) mean_us: f64,
    /// Queries without an answer.
    pub(super) lost: u64,
}

impl Figures {
    pub(super) fn json(&self) -> Value {
        let row = |row: &Row| json!({ "kind": row.kind, "server": row.server, "rates": row.rates, "meanUs": row.mean_us, "lost": row.lost });
        self.rows.iter().map(row).collect()
    }

    /// Median rate of a server; `None` if it was not measured.
    fn rate(&self, kind: &str, server: &str) -> Option<f64> {
        let row = self.rows.iter().find(|row| row.kind == kind && row.server == server)?;
        Some(row.median())
    }

    fn add(&mut self, kind: &'static str, server: &'static str, of: Round) {
        let found = self.rows.iter_mut().find(|row| row.kind == kind && row.server == server);
        match found {
            Some(row) => {
                row.rates.push(of.rate);
                row.mean_us = of.mean_us;
                row.lost += of.lost;
            }
            None => {
                self.rows.push(Row { kind, server, rates: vec![of.rate], mean_us: of.mean_us, lost: of.lost })
            }
        }
    }
}

impl Row {
    fn median(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or(0.0)
    }
}

/// Table of all rows, each compared with unbound.
pub(super) fn table(figures: &Figures) -> Table {
    let mut table =
        Table::new(&["query", "server", "answers/s", "lowest – highest round", "of unbound", "mean", "lost"]);
    for row in &figures.rows {
        let (lowest, highest) =
            row.rates.iter().fold((f64::MAX, 0.0), |(low, high), rate| (rate.min(low), rate.max(high)));
        let of_unbound = figures.rate(row.kind, "unbound").map_or(0.0, |rate| row.median() / rate);
        table.row(vec![
            row.kind.into(),
            row.server.into(),
            format!("{:.0}", row.median()),
            format!("{lowest:.0} – {highest:.0}"),
            format!("{of_unbound:.2}"),
            format!("{:.0} µs", row.mean_us),
            row.lost.to_string(),
        ]);
    }
    table
}

/// What one run of dnsperf prints.
#[derive(Debug, PartialEq)]
struct Round {
    rate: f64,
    mean_us: f64,
    lost: u64,
}

/// Whether dnsperf and unbound are installed.
pub(super) fn missing() -> Option<&'static str> {
    let runs = |name: &str| Command::new(name).arg("-h").output().is_ok();
    match (runs("dnsperf"), runs("unbound")) {
        (true, true) => None,
        (false, _) => Some("dnsperf is not installed"),
        (true, false) => Some("unbound is not installed"),
    }
}

/// Asks a node and unbound in turn, over UDP at loopback.
///
/// # Errors
/// A server does not start, or dnsperf fails.
pub(super) fn measure(rounds: usize, time: Duration, folder: &Path) -> Result<Figures> {
    let mut figures = Figures::default();
    for kind in KINDS {
        let (name, of_type) = match kind {
            "NXDOMAIN" => ("no-such.service.hearsay", "A"),
            of_type => ("web.service.hearsay", of_type),
        };
        fs::write(folder.join(kind), format!("{name} {of_type}\n"))?;
    }
    for round in 0..rounds {
        eprintln!("DNS, round {}", round + 1);
        {
            let _node = start_node(&folder.join("dns"))?;
            for kind in KINDS {
                figures.add(kind, "hearsay", ask(&folder.join(kind), time)?);
            }
        }
        let _unbound = start_unbound(folder)?;
        for kind in KINDS {
            figures.add(kind, "unbound", ask(&folder.join(kind), time)?);
        }
    }
    Ok(figures)
}

/// Starts a node with the instances.
fn start_node(folder: &Path) -> Result<Server> {
    let dns = format!("127.0.0.1:{PORT}");
    let node =
        Plan::new(folder, 0, "", &[]).with(&["--dns", &dns]).on(SERVER_PROCESSOR).ephemeral().start()?;
    for n in 1..=INSTANCES {
        let body = json!({ "name": "web", "id": format!("web-{n}"), "address": format!("10.77.0.{n}"), "port": 8080 });
        let reply = node.ask("POST /services", &[("content-type", "application/json")], &body.to_string());
        ensure!(reply.is_some_and(|reply| reply.status == 200), "an instance is not registered");
    }
    await_answer()?;
    Ok(node)
}

/// Starts unbound with a local zone of the same records.
fn start_unbound(folder: &Path) -> Result<Process> {
    let mut zone = String::new();
    for n in 1..=INSTANCES {
        let target = format!("web-{n}.web.service.hearsay.");
        _ = writeln!(zone, "  local-data: \"web.service.hearsay. 0 IN A 10.77.0.{n}\"");
        _ = writeln!(zone, "  local-data: \"web.service.hearsay. 0 IN SRV 1 1 8080 {target}\"");
        _ = writeln!(zone, "  local-data: \"{target} 0 IN A 10.77.0.{n}\"");
    }
    let config = folder.join("unbound.conf");
    fs::write(
        &config,
        format!(
            "server:\n  interface: 127.0.0.1@{PORT}\n  do-daemonize: no\n  username: \"\"\n  chroot: \"\"\n  directory: \"{}\"\n  pidfile: \"\"\n  \
             use-syslog: no\n  num-threads: 1\n  module-config: \"iterator\"\n  local-zone: \"hearsay.\" static\n{zone}remote-control:\n  control-enable: no\n",
            folder.display()
        ),
    )?;
    let mut command = bound("unbound", Some(SERVER_PROCESSOR));
    command.args(["-d", "-c"]).arg(&config);
    let process = Process::spawn(command, &folder.join("unbound.out"))?;
    await_answer().with_context(|| fs::read_to_string(folder.join("unbound.out")).unwrap_or_default())?;
    Ok(process)
}

/// Waits until the server answers with an address.
fn await_answer() -> Result<()> {
    let query =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x07service\x07hearsay\x00\x00\x01\x00\x01";
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let begin = std::time::Instant::now();
    let mut answer = [0; 512];
    loop {
        _ = socket.send_to(query, ("127.0.0.1", PORT));
        // The number of answers is in bytes 6 and 7.
        if socket.recv(&mut answer).is_ok_and(|length| length > 12 && answer[7] == INSTANCES as u8) {
            return Ok(());
        }
        ensure!(begin.elapsed() < START_MAX, "no answer of {INSTANCES} addresses");
        std::thread::sleep(LOOK);
    }
}

/// Asks one kind of query for some time, with up to 100 queries outstanding.
fn ask(queries: &Path, time: Duration) -> Result<Round> {
    let mut command = bound("dnsperf", Some(CLIENT_PROCESSOR));
    command.args(["-s", "127.0.0.1", "-p", &PORT.to_string(), "-l", &time.as_secs().to_string(), "-d"]);
    let output = command.arg(queries).output().context("dnsperf")?;
    let text = String::from_utf8_lossy(&output.stdout);
    read(&text).with_context(|| format!("dnsperf: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Reads the summary of dnsperf.
fn read(text: &str) -> Option<Round> {
    let value = |name: &str| {
        let rest = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
        rest.split_whitespace().next()?.parse::<f64>().ok()
    };
    Some(Round {
        rate: value("Queries per second:")?,
        mean_us: value("Average Latency (s):")? * 1e6,
        lost: value("Queries lost:")? as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_of_dnsperf_is_read() {
        let text = "Statistics:\n\n  Queries sent:         10\n  Queries completed:    8 (80.00%)\n  Queries lost:         2 (20.00%)\n\n\
                    \x20 Response codes:       NOERROR 8 (100.00%)\n  Run time (s):         1.0\n  Queries per second:   8000.5\n\n  \
                    Average Latency (s):  0.000250 (min 0.0001, max 0.01)\n";
        assert_eq!(read(text), Some(Round { rate: 8000.5, mean_us: 250.0, lost: 2 }));
        assert_eq!(read("Statistics:"), None);
    }
}
