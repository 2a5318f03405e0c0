//! `bench floods`: measures how long a second host waits for a node's answers while another host floods the
//! node, for each kind of flood.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use hearsay_tests::{Cluster as _, Flooded, Flooding, Lab, TimedRequest};

use crate::{
    machine,
    namespace::{self, Place},
    report::{self, three_us, versions},
    statistics::{Figure, Times},
    system::System,
    table::Table,
};

/// Usage.
pub(crate) const USAGE: &str = "\
bench floods [OPTIONS]    how long a second host waits while one host floods a node; needs root for network namespaces
  --rounds N              how often the second host asks for everything, calm and beside each flood (300)
  --out FILE              the page to write (docs/bench/floods.md)
";

/// Description of the method, printed on the page with the figures.
const METHOD: &str = include_str!("floods/method.md");
/// Limit of a request, in seconds.
const ANSWER_BOUND_S: u64 = 2;
/// Goal: during a flood the p99 is at most this multiple of the calm one, or this time, whichever is longer.
const GOAL_TIMES: u64 = 10;
const GOAL_US: u64 = 50_000;
/// Longest wait for an idle machine, before each flood.
const QUIET_MAX: Duration = Duration::from_secs(5);

/// Figures of one flood.
struct Figures {
    name: &'static str,
    connections: usize,
    calm: Times,
    flooded: Times,
    /// Number of periods of 100 ms in which the flooder had used up its share.
    throttled: Option<u64>,
}

impl Figures {
    /// Longest p99 that meets the goal, in microseconds.
    fn goal_us(&self) -> Option<u64> {
        match self.calm.percentile(99) {
            Figure::Micros(us) => Some(GOAL_US.max(us * GOAL_TIMES)),
            Figure::None | Figure::Over(_) => None,
        }
    }

    fn meets_the_goal(&self) -> bool {
        let p99 = match self.flooded.percentile(99) {
            Figure::Micros(us) => Some(us),
            Figure::None | Figure::Over(_) => None,
        };
        self.flooded.missed() == 0 && p99.zip(self.goal_us()).is_some_and(|(p99, goal)| p99 <= goal)
    }
}

/// Measures, prints, and writes the page.
///
/// # Errors
/// The options are wrong, no namespace can be created, or there is no node.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (rounds, out) = read(arguments)?;
    if let Some(why) = System::Hearsay.missing() {
        bail!("{why}");
    }
    if let Place::Done = namespace::enter()? {
        return Ok(());
    }
    let program = std::env::current_exe()?;
    let program = [program.to_str().context("a path in UTF-8")?, "flooder"];
    let mut lab = Lab::in_this_namespace();
    let mut all = Vec::new();
    for index in 0..Flooding::all("").len() {
        // Each flood begins with a node that has not been flooded.
        let flooded = Flooded::start(&mut lab, &format!("m{index}"), &program);
        let flooding = &Flooding::all(&flooded.host.ip)[index];
        machine::wait_until_idle(QUIET_MAX);
        let calm = times(&flooded.ask(rounds));
        let flood = flooded.flood(&lab, flooding);
        let beside = times(&flooded.ask(rounds));
        let throttled = flood.throttled();
        drop(flood);
        lab.crash(flooded.node);
        eprintln!("{}: p99 {} calm, {} beside it", flooding.name, calm.percentile(99), beside.percentile(99));
        let (name, connections) = (flooding.name, flooding.holding);
        all.push(Figures { name, connections, calm, flooded: beside, throttled });
    }
    let table = table(&all);
    print!("{table}");
    let page = format!(
        "# Floods of one host while a second one works\n\n\
         Measured {} on {}, by `tests/run --bench floods`. All on one machine, in network namespaces of its own; {} requests of the second host \
         before each flood and as many beside it.\n\n{}{table}\n{METHOD}",
        machine::date(),
        machine::describe(),
        all.first().map_or(0, |figures| figures.calm.len()),
        versions(&[machine::node_version()]),
    );
    report::write(&out, &page)
}

fn read(arguments: &[String]) -> Result<(usize, PathBuf)> {
    let (mut rounds, mut out) = (300, Path::new("docs/bench/floods.md").to_owned());
    let mut arguments = arguments.iter();
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} takes a value\n{USAGE}"))?;
        match name.as_str() {
            "--rounds" => rounds = value.parse().context("--rounds")?,
            "--out" => out = value.into(),
            _ => bail!("no option {name}\n{USAGE}"),
        }
    }
    ensure!((1..=10_000).contains(&rounds), "rounds are from 1 to 10000");
    Ok((rounds, out))
}

fn times(asked: &[TimedRequest]) -> Times {
    let us = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    Times::new(asked.iter().map(|asked| asked.took.map(us)), ANSWER_BOUND_S)
}

fn table(all: &[Figures]) -> Table {
    let head = [
        "flood",
        "connections",
        "calm, p50 / p99 / max",
        "beside the flood, p50 / p99 / max",
        "not answered",
        "goal for p99",
        "met",
        "flooder stopped, periods",
    ];
    let mut table = Table::new(&head);
    for figures in all {
        table.row(vec![
            figures.name.into(),
            figures.connections.to_string(),
            three_us(&figures.calm),
            three_us(&figures.flooded),
            format!("{} of {}", figures.flooded.missed(), figures.flooded.len()),
            figures.goal_us().map_or_else(|| "–".into(), |us| format!("≤ {}", Figure::Micros(us))),
            if figures.meets_the_goal() { "yes" } else { "no" }.into(),
            figures.throttled.map_or_else(|| "no limit".into(), |periods| periods.to_string()),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(calm: u64, flooded: &[Option<u64>]) -> Figures {
        Figures {
            name: "a flood",
            connections: 1,
            calm: Times::new([Some(calm)], ANSWER_BOUND_S),
            flooded: Times::new(flooded.iter().copied(), ANSWER_BOUND_S),
            throttled: None,
        }
    }

    #[test]
    fn the_goal_is_fifty_milliseconds_or_ten_times_the_calm_figure_and_no_request_unanswered() {
        for (calm, flooded, is_met) in [
            (1_000, &[Some(50_000)][..], true),
            (1_000, &[Some(50_001)], false),
            (6_000, &[Some(60_000)], true),
            (6_000, &[Some(60_001)], false),
            (1_000, &[Some(1_000), None], false),
        ] {
            assert_eq!(figures(calm, flooded).meets_the_goal(), is_met, "{calm} {flooded:?}");
        }
    }

    #[test]
    fn options_have_defaults_and_nonsense_is_refused() {
        let read = |line: &str| read(&line.split_whitespace().map(Into::into).collect::<Vec<_>>());
        assert_eq!(read("").unwrap().0, 300);
        assert_eq!(read("--rounds 3 --out x").unwrap(), (3, "x".into()));
        for line in ["--rounds 0", "--rounds", "--seconds 3"] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
