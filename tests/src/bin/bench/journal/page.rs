//! Writes the page of the journal's figures in Markdown.

use std::fmt::Write as _;

use crate::{
    journal::{
        Figures, Options,
        appends::{self, BATCH, CLIENTS, Cell, Kind, Tables},
        grades::{self, NODES},
        large,
    },
    machine::{self, first_line},
    report::{three, three_us, versions},
    statistics::Times,
    table::Table,
};

/// Description of the method, printed on the page with the figures.
const METHOD: &str = include_str!("method.md");

/// Returns the whole page.
pub(crate) fn page(figures: &Figures, options: &Options) -> String {
    let unknown = || "not installed".to_owned();
    let with = [
        machine::node_version(),
        ("redis", first_line("redis-server", &["--version"]).unwrap_or_else(unknown)),
        ("nats", first_line("nats-server", &["--version"]).unwrap_or_else(unknown)),
    ];
    format!(
        "# The journal: appends, a large log, grades on five nodes\n\n\
         Measured {} on {}, by `tests/run --bench journal`. All on one machine, over loopback in a network namespace of its own, and on one file \
         system; {} rounds in turn of {} s each.\n\n{}{}{METHOD}",
        machine::date(),
        machine::describe(),
        options.rounds,
        options.time.as_secs(),
        versions(&with),
        tables(figures),
    )
}

/// Returns all tables, and the ratios that follow from them.
pub(crate) fn tables(figures: &Figures) -> String {
    let mut text = String::new();
    if let Some(of) = &figures.appends {
        appended(&mut text, of);
    }
    if let Some(of) = &figures.large {
        searched(&mut text, of);
    }
    if let Some(of) = &figures.grades {
        graded(&mut text, of);
    }
    for what in &figures.skipped {
        _ = writeln!(text, "Skipped: {what}.\n");
    }
    text
}

fn appended(text: &mut String, figures: &appends::Figures) {
    for clients in CLIENTS {
        let of = |table: Tables| {
            let kinds = Kind::ALL.into_iter().filter(|kind| kind.table() == table);
            let found = kinds.filter_map(|kind| Some((kind, figures.cells.get(&(kind, clients))?)));
            cells(figures, clients, &found.collect::<Vec<_>>())
        };
        let plural = if clients == 1 { "" } else { "s" };
        _ = write!(
            text,
            "## Appends of 200 bytes, {clients} client{plural}\n\n{}\nBeside them, to see where the rest goes:\n\n{}\n\
             As on a disk where a sync takes a millisecond longer (simulated):\n\n{}\n",
            of(Tables::Compare),
            of(Tables::Explain),
            of(Tables::Slow),
        );
    }
    let times = |us: &[u64]| {
        let times = Times::new(us.iter().copied().map(Some), 60);
        format!("{} (p50 / p99 / max)", three_us(&times))
    };
    _ = write!(
        text,
        "A write and `fdatasync` alone, one after the other: {} of 200 bytes at the end of a file, as Redis does; {} of a page of 4096 bytes in \
         place, as SQLite's log does.\n\n",
        times(&figures.growing_us),
        times(&figures.in_place_us),
    );
}

impl Cell {
    /// Returns appends a second, over all rounds.
    fn rate(&self) -> f64 {
        self.answered.per_second()
    }
}

fn cells(figures: &appends::Figures, clients: usize, cells: &[(Kind, &Cell)]) -> String {
    let mut table = Table::new(&[
        "what",
        "requests/s",
        "lowest – highest round",
        "of Redis",
        "p50 / p99 / max",
        "CPU µs each",
        "of all nodes",
        "syncs each",
        "requests a commit",
        "bytes to disk each",
        "bad",
    ]);
    for (kind, cell) in cells {
        let count = cell.answered.times_us.len().max(1) as f64;
        let peer = figures.cells.get(&(kind.peer(), clients));
        let (low, high) = (cell.rates.iter().copied().fold(f64::MAX, f64::min), cell.rates.iter().copied());
        let disk = |value: f64, digits: usize| match figures.counts_disk {
            true => format!("{value:.digits$}"),
            false => "–".into(),
        };
        table.row(vec![
            kind.name().into(),
            format!("{:.0}", cell.rate()),
            format!("{low:.0} – {:.0}", high.fold(0.0, f64::max)),
            peer.map_or_else(|| "–".into(), |peer| format!("{:.2}", cell.rate() / peer.rate())),
            three_us(&cell.answered.times()),
            format!("{:.0}", cell.cpu_seconds * 1e6 / count),
            format!("{:.0}", cell.cpu_seconds_all * 1e6 / count),
            disk(cell.flushes as f64 / count, 3),
            cell.commits
                .filter(|commits| *commits > 0)
                .map_or_else(|| "–".into(), |commits| format!("{:.1}", count / commits as f64)),
            disk(cell.written_bytes as f64 / count, 0),
            cell.answered.bad.to_string(),
        ]);
    }
    let mut text = table.to_string();
    for (kind, cell) in cells.iter().filter(|(kind, _)| *kind == Kind::Batches) {
        _ = writeln!(text, "\n{}: {:.0} records/s.", kind.name(), cell.rate() * BATCH as f64);
    }
    text
}

fn searched(text: &mut String, figures: &large::Figures) {
    let mut table = Table::new(&["query", "p50 / p99 / max", "samples"]);
    let mut row = |name: &str, times: &Times| {
        table.row(vec![name.into(), three_us(times), times.len().to_string()]);
    };
    row("**all below but the last**", &figures.mix);
    for (name, times) in &figures.searches {
        row(name, times);
    }
    row(figures.worst.0, &figures.worst.1);
    let mut restarts =
        Table::new(&["ended by", "ready, p50 / max", "first right answer, p50 / max", "samples"]);
    for (after, ready, right) in &figures.restarts {
        let two = |times: &Times| format!("{} / {}", times.percentile(50), times.max());
        restarts.row(vec![(*after).into(), two(ready), two(right), ready.len().to_string()]);
    }
    let resident: Vec<String> = figures
        .resident
        .iter()
        .map(|(when, kib)| format!("{:.0} MiB {when}", *kib as f64 / 1024.0))
        .collect();
    _ = write!(
        text,
        "## A log of {} records in one node\n\n\
         Loaded by four connections in batches of 1,000 in {:.0} s ({:.0} records/s); {:.0} MB on the disk; resident memory {}.\n\n\
         Searches, one after the other, over HTTP:\n\n{table}\n\
         From the start of the process, with the whole log on the disk:\n\n{restarts}\n",
        figures.records,
        figures.loaded.as_secs_f64(),
        figures.records as f64 / figures.loaded.as_secs_f64(),
        figures.disk_bytes as f64 / 1e6,
        resident.join(", "),
    );
}

fn graded(text: &mut String, figures: &grades::Figures) {
    let mut table = Table::new(&["from the request on the writer until", "p50 / p99 / max", "samples"]);
    let mut row = |what: &str, times: &Times| {
        table.row(vec![what.into(), three(times), times.len().to_string()]);
    };
    row("the writer has answered (`replicated`)", &figures.answered);
    row("one other node has shown it", &figures.shown.pairs());
    row("all others have", &figures.shown.known_by_all());
    _ = write!(text, "## A grade on {NODES} nodes\n\n{table}\n");
}
