//! `bench registry`: compares registrations and lookups with etcd, and measures the time until a registration
//! and a death are known on all nodes, and a full registry.

mod checks;
mod deaths;
pub(crate) mod etcd;
mod held;
mod large;
pub(crate) mod page;
mod program;
pub(crate) mod requests;
mod spread;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use crate::{
    namespace::{self, Place},
    report,
    server::Folder,
};

pub(crate) use program::run as run_program;

/// Usage.
pub(crate) const USAGE: &str = "\
bench registry [OPTIONS]  registrations and lookups beside etcd; deaths; checks; a full registry; needs root for a network namespace
  --parts LIST            what to measure (requests,spread,deaths,checks,held,large)
  --rounds N              how often registrations and lookups are measured, in turn (3)
  --seconds N             for how long each time, after one second that does not count (5)
  --changes N             registrations that are awaited on 30 nodes (200)
  --kills N               of each kind that are awaited on 10 nodes (50)
  --instances N           of the full registry, over 20 nodes (100000)
  --dir DIR               where servers keep what they write (target/bench): on a disk, not in memory
  --out FILE              the page to write (docs/bench/registry.md)
  --json FILE             where to write the figures, too
";
const PARTS: [&str; 6] = ["requests", "spread", "deaths", "checks", "held", "large"];

/// Selected measurements, and their number of rounds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    parts: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) time: Duration,
    changes: usize,
    kills: usize,
    instances: usize,
    dir: PathBuf,
    out: PathBuf,
    json: Option<PathBuf>,
}

impl Options {
    fn read(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            parts: PARTS.map(String::from).into(),
            rounds: 3,
            time: Duration::from_secs(5),
            changes: 200,
            kills: 50,
            instances: 100_000,
            dir: "target/bench".into(),
            out: "docs/bench/registry.md".into(),
            json: None,
        };
        let mut arguments = arguments.iter();
        while let Some(name) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{name} takes a value\n{USAGE}"))?;
            match name.as_str() {
                "--parts" => options.parts = value.split(',').map(Into::into).collect(),
                "--rounds" => options.rounds = value.parse().context("--rounds")?,
                "--seconds" => {
                    options.time = Duration::from_secs(value.parse().context("--seconds")?);
                }
                "--changes" => options.changes = value.parse().context("--changes")?,
                "--kills" => options.kills = value.parse().context("--kills")?,
                "--instances" => options.instances = value.parse().context("--instances")?,
                "--dir" => options.dir = value.into(),
                "--out" => options.out = value.into(),
                "--json" => options.json = Some(value.into()),
                _ => bail!("no option {name}\n{USAGE}"),
            }
        }
        for part in &options.parts {
            ensure!(PARTS.contains(&part.as_str()), "no part {part}\n{USAGE}");
        }
        ensure!((1..=100).contains(&options.rounds), "rounds are from 1 to 100");
        ensure!((1..=600).contains(&options.time.as_secs()), "seconds are from 1 to 600");
        ensure!((1..=10_000).contains(&options.changes), "changes are from 1 to 10000");
        ensure!((1..=1000).contains(&options.kills), "kills are from 1 to 1000");
        ensure!((1_000..=100_000).contains(&options.instances), "instances are from 1000 to 100000");
        Ok(options)
    }

    fn has(&self, part: &str) -> bool {
        self.parts.iter().any(|name| name == part)
    }
}

/// All figures of the benchmark.
#[derive(Default)]
pub(crate) struct Figures {
    requests: Option<requests::Figures>,
    spread: Option<spread::Figures>,
    deaths: Option<deaths::Figures>,
    checks: Option<checks::Figures>,
    held: Option<held::Figures>,
    large: Option<large::Figures>,
    /// Measurements that were skipped, each with the reason.
    skipped: Vec<String>,
}

impl Figures {
    fn skip(&mut self, what: &str, why: &str) {
        eprintln!("skipped: {what}: {why}");
        self.skipped.push(format!("{what}: {why}"));
    }
}

/// Measures, prints, and writes the page.
///
/// # Errors
/// The options are wrong, no namespace can be created, there is no node, or a server failed.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = Options::read(arguments)?;
    if let Some(why) = crate::system::System::Hearsay.missing() {
        bail!("{why}");
    }
    if let Place::Done = namespace::enter()? {
        return Ok(());
    }
    let folder = Folder::new(&options.dir, "registry")?;
    let mut figures = Figures::default();
    let has_etcd = etcd::version().is_some();
    if !has_etcd {
        figures.skip("etcd", "it is not installed");
    }
    if options.has("requests") {
        figures.requests = Some(requests::measure(&options, folder.path(), has_etcd)?);
    }
    if options.has("spread") {
        figures.spread = Some(spread::measure(options.changes, folder.path())?);
    }
    if options.has("deaths") {
        figures.deaths = Some(deaths::measure(options.kills, folder.path(), has_etcd)?);
    }
    if options.has("checks") {
        figures.checks = Some(checks::measure(folder.path())?);
    }
    if options.has("held") {
        figures.held = Some(held::measure(folder.path())?);
    }
    if options.has("large") {
        figures.large = Some(large::measure(options.instances, folder.path())?);
    }
    print!("{}", page::tables(&figures));
    if let Some(file) = &options.json {
        let json = json!({
            "requests": figures.requests.as_ref().map(requests::Figures::json),
            "spread": figures.spread.as_ref().map(spread::Figures::json),
            "deaths": figures.deaths.as_ref().map(deaths::Figures::json),
            "checks": figures.checks.as_ref().map(checks::Figures::json),
            "held": figures.held.as_ref().map(held::Figures::json),
            "large": figures.large.as_ref().map(large::Figures::json),
            "skipped": figures.skipped,
        });
        report::write(file, &serde_json::to_string_pretty(&json)?)?;
    }
    report::write(&options.out, &page::page(&figures, &options))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Options> {
        Options::read(&line.split_whitespace().map(Into::into).collect::<Vec<_>>())
    }

    #[test]
    fn options_have_defaults_and_are_read() {
        assert_eq!(read("").unwrap().rounds, 3);
        let options = read("--parts held,large --kills 3 --seconds 2").unwrap();
        assert!(options.has("large") && !options.has("requests"));
        assert_eq!((options.time.as_secs(), options.kills), (2, 3));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["--parts x", "--rounds 0", "--seconds", "--kills 0", "--instances 100001", "--speed 9"] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
