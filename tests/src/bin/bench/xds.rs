//! `bench xds`: measures the time until a change is on the streams of many xDS clients of one node, what such
//! streams cost, and how fast a client gets a table of many services.

mod client;
mod first;
mod streams;

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use crate::{
    machine,
    namespace::{self, Place},
    report::{self, three, versions},
    server::Folder,
    system::System,
    table::Table,
};

/// Usage.
pub(crate) const USAGE: &str = "\
bench xds [OPTIONS]       delta streams of many clients of one node, and the first answer with many services; needs root for a network namespace
  --parts LIST            what to measure (streams,first)
  --streams N             clients of one node (200)
  --changes N             changes that reach all of them (200)
  --services N            services of three instances for the first answer (10000)
  --dir DIR               where nodes keep what they write (target/bench): on a disk, not in memory
  --out FILE              the page to write (docs/bench/xds.md)
  --json FILE             where to write the figures, too
";
const PARTS: [&str; 2] = ["streams", "first"];
/// Description of the method, printed on the page with the figures.
const METHOD: &str = include_str!("xds/method.md");
/// Instances of a service.
const INSTANCES: usize = 3;

/// Selected measurements, and their numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Options {
    parts: Vec<String>,
    streams: usize,
    changes: usize,
    services: usize,
    dir: PathBuf,
    out: PathBuf,
    json: Option<PathBuf>,
}

impl Options {
    fn read(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            parts: PARTS.map(String::from).into(),
            streams: 200,
            changes: 200,
            services: 10_000,
            dir: "target/bench".into(),
            out: "docs/bench/xds.md".into(),
            json: None,
        };
        let mut arguments = arguments.iter();
        while let Some(name) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{name} takes a value\n{USAGE}"))?;
            match name.as_str() {
                "--parts" => options.parts = value.split(',').map(Into::into).collect(),
                "--streams" => options.streams = value.parse().context("--streams")?,
                "--changes" => options.changes = value.parse().context("--changes")?,
                "--services" => options.services = value.parse().context("--services")?,
                "--dir" => options.dir = value.into(),
                "--out" => options.out = value.into(),
                "--json" => options.json = Some(value.into()),
                _ => bail!("no option {name}\n{USAGE}"),
            }
        }
        for part in &options.parts {
            ensure!(PARTS.contains(&part.as_str()), "no part {part}\n{USAGE}");
        }
        ensure!((1..=1000).contains(&options.streams), "streams are from 1 to 1000");
        // Each change is a weight of its own.
        ensure!((1..=10_000).contains(&options.changes), "changes are from 1 to 10000");
        ensure!((1..=10_000).contains(&options.services), "services are from 1 to 10000");
        Ok(options)
    }

    fn has(&self, part: &str) -> bool {
        self.parts.iter().any(|name| name == part)
    }
}

/// Measures, prints, and writes the page.
///
/// # Errors
/// The options are wrong, no namespace can be created, there is no node, or a node failed.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let options = Options::read(arguments)?;
    if let Some(why) = System::Hearsay.missing() {
        bail!("{why}");
    }
    if let Place::Done = namespace::enter()? {
        return Ok(());
    }
    machine::allow_files(8192)?;
    let folder = Folder::new(&options.dir, "xds")?;
    let (mut of_streams, mut of_first) = (None, None);
    if options.has("streams") {
        of_streams = Some(streams::measure(options.streams, options.changes, folder.path())?);
    }
    if options.has("first") {
        of_first = Some(first::measure(options.services, folder.path())?);
    }
    let tables = tables(of_streams.as_ref(), of_first.as_ref());
    print!("{tables}");
    if let Some(file) = &options.json {
        let json = json!({
            "streams": of_streams.as_ref().map(streams::Figures::json),
            "first": of_first.as_ref().map(first::Figures::json),
        });
        report::write(file, &serde_json::to_string_pretty(&json)?)?;
    }
    let page = format!(
        "# xDS: many clients of one node, many services\n\n\
         Measured {} on {}, by `tests/run --bench xds`. All on one machine, over loopback in a network namespace of its own.\n\n{}{tables}{METHOD}",
        machine::date(),
        machine::describe(),
        versions(&[machine::node_version()]),
    );
    report::write(&options.out, &page)
}

/// Returns all tables.
fn tables(of_streams: Option<&streams::Figures>, of_first: Option<&first::Figures>) -> String {
    let mut text = String::new();
    if let Some(of) = of_streams {
        let mut table =
            Table::new(&["from the request of a change until it is on", "p50 / p99 / max", "samples"]);
        for (what, times) in
            [("a stream", of.seen.pairs()), ("the last of all streams", of.seen.known_by_all())]
        {
            table.row(vec![what.into(), three(&times), times.len().to_string()]);
        }
        _ = write!(
            text,
            "## {} delta streams on one node\n\n{} services of {INSTANCES} instances. Every stream subscribes to all clusters and endpoints.\n\n{table}\n\
             A change is {} bytes on each stream, and takes {:.2} ms of the node's processor time for all of them. The streams take {} KiB of the node's \
             memory each ({} MiB before, {} MiB with all).\n\n",
            of.streams,
            streams::SERVICES,
            of.bytes_of_change,
            of.cpu_ms_of_change,
            of.kib_of_stream(),
            of.resident_kib_before / 1024,
            of.resident_kib / 1024,
        );
    }
    if let Some(of) = of_first {
        let mut table = Table::new(&["a client that connects has", "p50 / max", "bytes"]);
        for (what, times, bytes) in
            [("all clusters", &of.clusters, of.bytes.0), ("and all endpoints", &of.endpoints, of.bytes.1)]
        {
            table.row(vec![
                what.into(),
                format!("{} / {}", times.percentile(50), times.max()),
                bytes.to_string(),
            ]);
        }
        _ = write!(
            text,
            "## {} services of {INSTANCES} instances\n\n{table}\nA change of one service is {} bytes on a stream, {} (p50 / p99 / max) after its request to another node. \
             The node has {} MiB of memory.\n\n",
            of.services,
            of.bytes_of_change,
            three(&of.changes),
            of.resident_kib / 1024,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_have_defaults_and_nonsense_is_refused() {
        let read = |line: &str| Options::read(&line.split_whitespace().map(Into::into).collect::<Vec<_>>());
        assert_eq!(read("").unwrap().streams, 200);
        let options = read("--parts first --services 5").unwrap();
        assert!(options.has("first") && !options.has("streams") && options.services == 5);
        for line in ["--parts x", "--streams 0", "--services", "--changes 10001"] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
