//! `bench cluster`: compares Hearsay with other systems at several sizes. The systems run in turn, under the
//! same conditions.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    measure::{Figures, Plan, measure},
    namespace::{self, Place},
    report, swarms,
    system::System,
};

/// Usage.
pub(crate) const USAGE: &str = "\
bench cluster [OPTIONS]   Hearsay beside serf, foca and chitchat; needs root for a network namespace
  --sizes LIST            numbers of nodes (10,30,100)
  --systems LIST          which to measure (all): hearsay, serf-lan, serf-local, foca-lan, foca-fast, chitchat-1s, chitchat-fast
  --repeats N             events of each kind (5)
  --idle-seconds N        for how long idling is measured (30)
  --swarms LIST           at the end, so many nodes in one process (10,1000); 0: none
  --out FILE              the page to write (docs/bench/cluster.md)
  --json FILE             where to write every single time, too
  --logs DIR              where to keep what the processes write; without it, nowhere
";

/// Smallest cluster. In a smaller one, no other member could confirm a report.
const SIZE_MIN: usize = 3;
/// Largest cluster. For a larger one there are not enough ports.
const SIZE_MAX: usize = 1_000;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Options {
    sizes: Vec<usize>,
    systems: Vec<System>,
    repeats: usize,
    idle_seconds: u64,
    swarms: Vec<usize>,
    out: PathBuf,
    json: Option<PathBuf>,
    logs: Option<PathBuf>,
}

impl Options {
    fn read(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            sizes: vec![10, 30, 100],
            systems: System::ALL.to_vec(),
            repeats: 5,
            idle_seconds: 30,
            swarms: vec![10, 1000],
            out: "docs/bench/cluster.md".into(),
            json: None,
            logs: None,
        };
        let mut arguments = arguments.iter();
        while let Some(name) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{name} takes a value\n{USAGE}"))?;
            match name.as_str() {
                "--sizes" => {
                    options.sizes =
                        value.split(',').map(str::parse).collect::<Result<_, _>>().context("--sizes")?;
                }
                "--systems" => {
                    let system =
                        |name| System::from_name(name).with_context(|| format!("no system {name}\n{USAGE}"));
                    options.systems = value.split(',').map(system).collect::<Result<_>>()?;
                }
                "--repeats" => options.repeats = value.parse().context("--repeats")?,
                "--idle-seconds" => options.idle_seconds = value.parse().context("--idle-seconds")?,
                "--swarms" => {
                    options.swarms =
                        value.split(',').map(str::parse).collect::<Result<_, _>>().context("--swarms")?;
                    options.swarms.retain(|size| *size > 0);
                }
                "--out" => options.out = value.into(),
                "--json" => options.json = Some(value.into()),
                "--logs" => options.logs = Some(value.into()),
                _ => bail!("no option {name}\n{USAGE}"),
            }
        }
        let fits = |size: &usize| (SIZE_MIN..=SIZE_MAX).contains(size);
        ensure!(options.sizes.iter().all(fits), "sizes are from {SIZE_MIN} to {SIZE_MAX}");
        ensure!((1..=100).contains(&options.repeats), "repeats are from 1 to 100");
        ensure!((1..=3600).contains(&options.idle_seconds), "idle seconds are from 1 to 3600");
        Ok(options)
    }
}

/// Measures, and writes the results after every system, so that an interrupted run keeps them.
///
/// # Errors
/// The options are wrong, no namespace can be created, or a file cannot be written.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = Options::read(arguments)?;
    if let Place::Done = namespace::enter()? {
        return Ok(());
    }
    if let Some(logs) = &options.logs {
        fs::create_dir_all(logs).with_context(|| logs.display().to_string())?;
    }
    let plan = Plan {
        repeats: options.repeats,
        idle: Duration::from_secs(options.idle_seconds),
        logs: options.logs.clone(),
    };
    let mut figures: Vec<Figures> = Vec::new();
    for &size in &options.sizes {
        for &system in &options.systems {
            if let Some(why) = system.missing() {
                eprintln!("skipped: {}: {why}", system.name());
                continue;
            }
            match measure(system, size, &plan) {
                Ok(measured) => figures.push(measured),
                Err(problem) => eprintln!("{} at {size}: {problem:#}", system.name()),
            }
            report::write(&options.out, &report::page(&figures, &[], &plan))?;
            if let Some(json) = &options.json {
                report::write(json, &serde_json::to_string_pretty(&figures)?)?;
            }
        }
    }
    ensure!(!figures.is_empty(), "nothing could be measured");
    print!("{}", report::tables(&figures));
    let swarms = swarms::measure_all(&options.swarms, options.idle_seconds)?;
    print!("{}", swarms::table(&swarms));
    report::write(&options.out, &report::page(&figures, &swarms, &plan))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Options> {
        Options::read(&line.split_whitespace().map(Into::into).collect::<Vec<_>>())
    }

    #[test]
    fn options_have_defaults_and_are_read() {
        assert_eq!(read("").unwrap().sizes, [10, 30, 100]);
        let options = read("--sizes 5,7 --systems foca-fast,hearsay --repeats 2 --json x").unwrap();
        assert_eq!(options.sizes, [5, 7]);
        assert_eq!(options.systems, [System::FocaFast, System::Hearsay]);
        assert_eq!((options.repeats, options.json), (2, Some("x".into())));
    }

    #[test]
    fn nonsense_is_refused() {
        for line in ["--sizes", "--sizes 1", "--sizes x", "--systems consul", "--repeats 0", "--speed 9"] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
