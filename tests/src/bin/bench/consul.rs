//! `bench consul`: measures the time until a change wakes the blocking queries of clients of all nodes, and
//! compares lookups by Consul's path with the node's own path and with etcd, and DNS with unbound.

mod dns;
mod wakes;

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use crate::{
    machine,
    namespace::{self, Place},
    registry::{
        etcd,
        page::requests_table,
        requests::{self, Kind, LOOKED_UP},
    },
    report::{self, three, versions},
    server::Folder,
    system::System,
    table::Table,
};

/// Usage.
pub(crate) const USAGE: &str = "\
bench consul [OPTIONS]    blocking queries on 10 nodes, lookups beside etcd, DNS beside unbound; needs root for a network namespace
  --parts LIST            what to measure (wakes,lookups,dns)
  --changes N             changes that wake queries (200)
  --rounds N              how often lookups and DNS are measured, in turn (3)
  --seconds N             for how long each time, after one second that does not count (5)
  --dir DIR               where servers keep what they write (target/bench): on a disk, not in memory
  --out FILE              the page to write (docs/bench/consul.md)
  --json FILE             where to write the figures, too
";
const PARTS: [&str; 3] = ["wakes", "lookups", "dns"];
/// Description of the method, printed on the page with the figures.
const METHOD: &str = include_str!("consul/method.md");

/// Selected measurements, and their numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Options {
    parts: Vec<String>,
    changes: usize,
    rounds: usize,
    time: Duration,
    dir: PathBuf,
    out: PathBuf,
    json: Option<PathBuf>,
}

impl Options {
    fn read(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            parts: PARTS.map(String::from).into(),
            changes: 200,
            rounds: 3,
            time: Duration::from_secs(5),
            dir: "target/bench".into(),
            out: "docs/bench/consul.md".into(),
            json: None,
        };
        let mut arguments = arguments.iter();
        while let Some(name) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{name} takes a value\n{USAGE}"))?;
            match name.as_str() {
                "--parts" => options.parts = value.split(',').map(Into::into).collect(),
                "--changes" => options.changes = value.parse().context("--changes")?,
                "--rounds" => options.rounds = value.parse().context("--rounds")?,
                "--seconds" => options.time = Duration::from_secs(value.parse().context("--seconds")?),
                "--dir" => options.dir = value.into(),
                "--out" => options.out = value.into(),
                "--json" => options.json = Some(value.into()),
                _ => bail!("no option {name}\n{USAGE}"),
            }
        }
        for part in &options.parts {
            ensure!(PARTS.contains(&part.as_str()), "no part {part}\n{USAGE}");
        }
        ensure!((1..=10_000).contains(&options.changes), "changes are from 1 to 10000");
        ensure!((1..=100).contains(&options.rounds), "rounds are from 1 to 100");
        ensure!((1..=600).contains(&options.time.as_secs()), "seconds are from 1 to 600");
        Ok(options)
    }

    fn has(&self, part: &str) -> bool {
        self.parts.iter().any(|name| name == part)
    }
}

/// All figures of the benchmark.
#[derive(Default)]
struct Figures {
    wakes: Option<wakes::Figures>,
    lookups: Option<requests::Figures>,
    dns: Option<dns::Figures>,
    has_etcd: bool,
}

/// Measures, prints, and writes the page.
///
/// # Errors
/// The options are wrong, no namespace can be created, there is no node, or a server failed.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = Options::read(arguments)?;
    if let Some(why) = System::Hearsay.missing() {
        bail!("{why}");
    }
    if let Place::Done = namespace::enter()? {
        return Ok(());
    }
    let folder = Folder::new(&options.dir, "consul")?;
    let mut figures = Figures { has_etcd: etcd::version().is_some(), ..Figures::default() };
    if options.has("wakes") {
        figures.wakes = Some(wakes::measure(options.changes, folder.path())?);
    }
    if options.has("lookups") {
        let mut lookups = requests::Figures::default();
        for round in 0..options.rounds {
            eprintln!("round {}", round + 1);
            let kinds = Kind::CONSUL.into_iter().filter(|kind| figures.has_etcd || !kind.is_etcd());
            requests::measure_round(kinds, options.time, folder.path(), &mut lookups)?;
        }
        figures.lookups = Some(lookups);
    }
    if options.has("dns") {
        match dns::missing() {
            Some(why) => eprintln!("skipped: DNS: {why}"),
            None => figures.dns = Some(dns::measure(options.rounds, options.time, folder.path())?),
        }
    }
    print!("{}", tables(&figures));
    if let Some(file) = &options.json {
        let json = json!({
            "wakes": figures.wakes.as_ref().map(wakes::Figures::json),
            "lookups": figures.lookups.as_ref().map(requests::Figures::json),
            "dns": figures.dns.as_ref().map(dns::Figures::json),
        });
        report::write(file, &serde_json::to_string_pretty(&json)?)?;
    }
    let with =
        [machine::node_version(), ("etcd", etcd::version().unwrap_or_else(|| "not installed".to_owned()))];
    let page = format!(
        "# Consul's interface and DNS: blocking queries, lookups beside etcd, DNS beside unbound\n\n\
         Measured {} on {}, by `tests/run --bench consul`. All on one machine, over loopback in a network namespace of its own; {} rounds \
         in turn of {} s each.\n\n{}{}{METHOD}",
        machine::date(),
        machine::describe(),
        options.rounds,
        options.time.as_secs(),
        versions(&with),
        tables(&figures),
    );
    report::write(&options.out, &page)
}

/// Returns all tables.
fn tables(figures: &Figures) -> String {
    let mut text = String::new();
    if let Some(of) = &figures.wakes {
        let mut table = Table::new(&["from the request until the answer of", "p50 / p99 / max", "samples"]);
        for (what, times) in [
            ("the query at the same node", of.same_node()),
            ("a query at another node", of.other_nodes()),
            ("the last query of all nodes", of.all_nodes()),
        ] {
            table.row(vec![what.into(), three(&times), times.len().to_string()]);
        }
        _ = write!(text, "## Blocking queries on {} nodes\n\n{table}\n", wakes::NODES);
    }
    if let Some(of) = &figures.lookups {
        let table = requests_table(of, &Kind::CONSUL);
        _ = write!(text, "## Lookups of one service\n\nThe service has {LOOKED_UP} instances.\n\n{table}\n");
        if !figures.has_etcd {
            _ = writeln!(text, "Skipped: etcd: it is not installed.\n");
        }
    }
    if let Some(of) = &figures.dns {
        _ = write!(text, "## DNS over UDP\n\n{}\n", dns::table(of));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_defaults_and_nonsense_is_refused() {
        let read = |line: &str| Options::read(&line.split_whitespace().map(Into::into).collect::<Vec<_>>());
        assert_eq!(read("").unwrap().changes, 200);
        let options = read("--parts wakes --changes 5").unwrap();
        assert!(options.has("wakes") && !options.has("lookups") && options.changes == 5);
        for line in ["--parts x", "--changes 0", "--seconds", "--rounds 101"] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
