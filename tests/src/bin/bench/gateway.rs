//! `bench gateway`: compares the gateway with nginx and HAProxy on one processor, and measures how fast its
//! routes follow starts and ends of instances, and how clients are affected when one is killed.

mod follow;
mod kills;
mod paced;
mod page;
mod proxies;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use crate::{
    namespace::{self, Place},
    report,
    server::Folder,
};

/// Usage.
pub(crate) const USAGE: &str = "\
bench gateway [OPTIONS]   the gateway beside nginx and haproxy, under wrk; changes and kills; needs root for a network namespace
  --parts LIST            what to measure (proxies,follow,kills)
  --rounds N              how often each proxy is measured, in turn (5)
  --seconds N             for how long each time, after one second that does not count (5)
  --changes N             of each kind that the gateway has to follow (20)
  --kills N               instances killed under load (10)
  --dir DIR               where servers keep what they write (target/bench)
  --out FILE              the page to write (docs/bench/gateway.md)
  --json FILE             where to write the figures, too
";

/// Selected measurements, and their number of rounds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    pub(crate) parts: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) time: Duration,
    pub(crate) changes: usize,
    pub(crate) kills: usize,
    dir: PathBuf,
    out: PathBuf,
    json: Option<PathBuf>,
}

impl Options {
    fn read(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            parts: ["proxies", "follow", "kills"].map(String::from).into(),
            rounds: 5,
            time: Duration::from_secs(5),
            changes: 20,
            kills: 10,
            dir: "target/bench".into(),
            out: "docs/bench/gateway.md".into(),
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
                "--dir" => options.dir = value.into(),
                "--out" => options.out = value.into(),
                "--json" => options.json = Some(value.into()),
                _ => bail!("no option {name}\n{USAGE}"),
            }
        }
        for part in &options.parts {
            ensure!(["proxies", "follow", "kills"].contains(&part.as_str()), "no part {part}\n{USAGE}");
        }
        ensure!((1..=100).contains(&options.rounds), "rounds are from 1 to 100");
        ensure!((1..=600).contains(&options.time.as_secs()), "seconds are from 1 to 600");
        ensure!((1..=1000).contains(&options.changes), "changes are from 1 to 1000");
        ensure!((1..=1000).contains(&options.kills), "kills are from 1 to 1000");
        Ok(options)
    }

    fn has(&self, part: &str) -> bool {
        self.parts.iter().any(|name| name == part)
    }
}

/// All figures of the benchmark.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) proxies: Option<proxies::Figures>,
    pub(crate) follow: Option<follow::Figures>,
    pub(crate) kills: Option<kills::Figures>,
    /// Measurements that were skipped, each with the reason.
    pub(crate) skipped: Vec<String>,
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
    let folder = Folder::new(&options.dir, "gateway")?;
    let mut figures = Figures::default();
    if options.has("proxies") {
        figures.proxies = proxies::measure(&options, folder.path(), &mut figures.skipped)?;
    }
    if options.has("follow") {
        figures.follow = Some(follow::measure(options.changes, folder.path())?);
    }
    if options.has("kills") {
        figures.kills = Some(kills::measure(options.kills, folder.path())?);
    }
    print!("{}", page::tables(&figures));
    if let Some(file) = &options.json {
        let json = json!({
            "proxies": figures.proxies.as_ref().map(proxies::Figures::json),
            "follow": figures.follow.as_ref().map(follow::Figures::json),
            "kills": figures.kills.as_ref().map(kills::Figures::json),
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
        assert_eq!(read("").unwrap().rounds, 5);
        let options = read("--parts kills --kills 3 --seconds 2").unwrap();
        assert!(options.has("kills") && !options.has("proxies"));
        assert_eq!((options.time.as_secs(), options.kills), (2, 3));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["--parts x", "--rounds 0", "--seconds", "--kills 0", "--speed 9"] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
