//! `bench journal`: compares durable appends with Redis and NATS, and measures a log of a million records,
//! and the time until a grade is on all nodes.

mod appends;
mod grades;
mod large;
mod page;

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
bench journal [OPTIONS]   durable appends beside Redis and NATS, a large log, grades on five nodes; needs root for a network namespace
  --parts LIST            what to measure (appends,large,grades)
  --rounds N              how often each kind of append is measured, in turn (3)
  --seconds N             for how long each time, after one second that does not count (5)
  --records N             of the large log (1000000)
  --grades N              that are saved on one node and awaited on four (200)
  --dir DIR               where servers keep what they write (target/bench): on a disk, not in memory
  --out FILE              the page to write (docs/bench/journal.md)
  --json FILE             where to write the figures, too
";

/// Selected measurements, and their number of rounds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    pub(crate) parts: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) time: Duration,
    pub(crate) records: usize,
    pub(crate) grades: usize,
    dir: PathBuf,
    out: PathBuf,
    json: Option<PathBuf>,
}

impl Options {
    fn read(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            parts: ["appends", "large", "grades"].map(String::from).into(),
            rounds: 3,
            time: Duration::from_secs(5),
            records: 1_000_000,
            grades: 200,
            dir: "target/bench".into(),
            out: "docs/bench/journal.md".into(),
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
                "--records" => options.records = value.parse().context("--records")?,
                "--grades" => options.grades = value.parse().context("--grades")?,
                "--dir" => options.dir = value.into(),
                "--out" => options.out = value.into(),
                "--json" => options.json = Some(value.into()),
                _ => bail!("no option {name}\n{USAGE}"),
            }
        }
        for part in &options.parts {
            ensure!(["appends", "large", "grades"].contains(&part.as_str()), "no part {part}\n{USAGE}");
        }
        ensure!((1..=100).contains(&options.rounds), "rounds are from 1 to 100");
        ensure!((1..=600).contains(&options.time.as_secs()), "seconds are from 1 to 600");
        ensure!((1_000..=100_000_000).contains(&options.records), "records are from 1000 to 100000000");
        ensure!((1..=100_000).contains(&options.grades), "grades are from 1 to 100000");
        Ok(options)
    }

    fn has(&self, part: &str) -> bool {
        self.parts.iter().any(|name| name == part)
    }
}

/// All figures of the benchmark.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) appends: Option<appends::Figures>,
    pub(crate) large: Option<large::Figures>,
    pub(crate) grades: Option<grades::Figures>,
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
    let folder = Folder::new(&options.dir, "journal")?;
    let mut figures = Figures::default();
    if options.has("appends") {
        figures.appends = Some(appends::measure(&options, folder.path(), &mut figures.skipped)?);
    }
    if options.has("large") {
        figures.large = Some(large::measure(options.records, folder.path())?);
    }
    if options.has("grades") {
        figures.grades = Some(grades::measure(options.grades, folder.path())?);
    }
    print!("{}", page::tables(&figures));
    if let Some(file) = &options.json {
        let json = json!({
            "appends": figures.appends.as_ref().map(appends::Figures::json),
            "large": figures.large.as_ref().map(large::Figures::json),
            "grades": figures.grades.as_ref().map(grades::Figures::json),
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
        let options = read("--parts large,grades --seconds 2 --records 5000").unwrap();
        assert!(options.has("large") && !options.has("appends"));
        assert_eq!((options.time.as_secs(), options.records), (2, 5000));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["--parts x", "--rounds 0", "--seconds", "--records 1", "--speed 9"] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
