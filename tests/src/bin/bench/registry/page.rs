//! Writes the page of the registry's figures in Markdown.

use std::fmt::Write as _;

use super::{
    Figures, Options, checks, deaths, etcd, held, large,
    requests::{self, CLIENTS, Kind, LOOKED_UP},
    spread,
};
use crate::{
    machine::{self, first_line},
    report::{three, three_us, versions},
    statistics::Times,
    table::Table,
    usage::Idle,
};

/// Description of the method, printed on the page with the figures.
const METHOD: &str = include_str!("method.md");

/// Returns the whole page.
pub(super) fn page(figures: &Figures, options: &Options) -> String {
    let unknown = || "not installed".to_owned();
    let wrk = first_line("wrk", &["-v"]).unwrap_or_else(unknown);
    let with = [
        machine::node_version(),
        ("etcd", etcd::version().unwrap_or_else(unknown)),
        ("wrk", wrk.split(" Copyright").next().unwrap_or_default().to_owned()),
    ];
    format!(
        "# The registry: registrations and lookups beside etcd, deaths, checks, and a full table\n\n\
         Measured {} on {}, by `tests/run --bench registry`. All on one machine, over loopback in a network namespace of its own, and on one file \
         system; {} rounds in turn of {} s each.\n\n{}{}{METHOD}",
        machine::date(),
        machine::describe(),
        options.rounds,
        options.time.as_secs(),
        versions(&with),
        tables(figures),
    )
}

/// Returns all tables.
pub(super) fn tables(figures: &Figures) -> String {
    let mut text = String::new();
    if let Some(of) = &figures.requests {
        requested(&mut text, of);
    }
    if let Some(of) = &figures.spread {
        let mut table = Table::new(&["from the request until", "p50 / p99 / max", "samples"]);
        let mut row = |what: &str, times: &Times| {
            table.row(vec![what.into(), three(times), times.len().to_string()]);
        };
        row("the node has answered", &of.answered);
        row("the client of a node is told", &of.seen.pairs());
        row("the clients of all are told", &of.seen.known_by_all());
        _ = write!(text, "## A registration on {} nodes\n\n{table}\n", spread::NODES);
    }
    if let Some(of) = &figures.deaths {
        died(&mut text, of);
    }
    if let Some(of) = &figures.checks {
        _ = write!(
            text,
            "## {} programs, each with an `http` check every 10 s, on one node\n\n\
             {} runs in {:.0} s, of which {} began more than a second late; {}.\n\n",
            checks::CHECKS,
            of.runs,
            of.idle.seconds,
            of.late,
            cost(&of.idle),
        );
    }
    if let Some(of) = &figures.held {
        _ = write!(
            text,
            "## {} held registrations on one node\n\n\
             Registered after {:.1} s; while all are held {}. All connections close: the node lists none {:.0} ms after the first, another node \
             {:.0} ms after.\n\n",
            held::CONNECTIONS,
            of.opened.as_secs_f64(),
            cost(&of.idle),
            of.gone_here.as_secs_f64() * 1e3,
            of.gone_there.as_secs_f64() * 1e3,
        );
    }
    if let Some(of) = &figures.large {
        full(&mut text, of);
    }
    for what in &figures.skipped {
        _ = writeln!(text, "Skipped: {what}.\n");
    }
    text
}

fn requested(text: &mut String, figures: &requests::Figures) {
    for writes in [true, false] {
        let heading = if writes { "Durable registrations" } else { "Lookups of one service" };
        _ = write!(text, "## {heading}\n\n");
        if !writes {
            _ = write!(text, "The service has {LOOKED_UP} instances.\n\n");
        }
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| kind.writes() == writes).collect();
        let table = requests_table(figures, &kinds);
        _ = writeln!(text, "{table}");
    }
    let rounds: Vec<String> = figures
        .wrk
        .iter()
        .map(|told| format!("{:.0}/s with p99 {:.2} ms", told.per_second, told.p99_us / 1e3))
        .collect();
    if !rounds.is_empty() {
        _ = write!(
            text,
            "The same lookup by `wrk`, two threads and 64 connections, round by round: {}.\n\n",
            rounds.join(", ")
        );
    }
}

/// Returns the rates and latencies of these kinds, either writes or lookups.
pub(crate) fn requests_table(figures: &requests::Figures, kinds: &[Kind]) -> Table {
    let writes = kinds.iter().any(|kind| kind.writes());
    let of = if writes { "of etcd" } else { "of etcd, serializable" };
    let head = [
        "clients",
        "what",
        "requests/s",
        "lowest – highest round",
        of,
        "p50 / p99 / max",
        "CPU µs each",
        "bad",
    ];
    let mut table = Table::new(&head);
    for clients in CLIENTS {
        for kind in kinds {
            let Some(cell) = figures.cells.get(&(*kind, clients)) else { continue };
            let peer = figures.cells.get(&(kind.peer(), clients));
            let rates = || cell.rates.iter().copied();
            table.row(vec![
                clients.to_string(),
                kind.name().into(),
                format!("{:.0}", cell.rate()),
                format!("{:.0} – {:.0}", rates().fold(f64::MAX, f64::min), rates().fold(0.0, f64::max)),
                peer.map_or_else(|| "–".into(), |peer| format!("{:.2}", cell.rate() / peer.rate())),
                three_us(&cell.answered.times()),
                format!("{:.0}", cell.cpu_seconds * 1e6 / cell.answered.times_us.len().max(1) as f64),
                cell.answered.bad.to_string(),
            ]);
        }
    }
    table
}

fn died(text: &mut String, figures: &deaths::Figures) {
    let mut table = Table::new(&[
        "the death is found by",
        "a client of a node is told, p50 / p99 / max",
        "clients of all nodes are, p50 / p99 / max",
        "kills",
    ]);
    for (kind, events) in &figures.kinds {
        table.row(vec![
            kind.name().into(),
            three(&events.pairs()),
            three(&events.known_by_all()),
            events.times_us.len().to_string(),
        ]);
    }
    _ = write!(text, "## A program is killed (`kill -9`), on {} nodes\n\n{table}\n", deaths::NODES);
}

fn full(text: &mut String, figures: &large::Figures) {
    _ = write!(
        text,
        "## {} instances over {} nodes\n\n\
         Registered in {:.0} s, with one node after the other; all nodes list all {:.1} s after the last answer. Then, while nothing happens, \
         a node takes {} (median; at most {:.0} MB).\n\n\
         Lookups of a service with {} instances over four connections: {:.0}/s, {} (p50 / p99 / max).\n\n\
         An instance that changes: a client of each node is told after {} (p50 / p99 / max), of all nodes after {}.\n\n",
        figures.instances,
        large::NODES,
        figures.registered.as_secs_f64(),
        figures.converged.as_secs_f64(),
        cost(&figures.idle),
        figures.idle.resident_kib_max as f64 * 1024.0 / 1e6,
        large::OF_A_SERVICE,
        figures.lookups.per_second(),
        three_us(&figures.lookups.times()),
        three(&figures.changes.pairs()),
        three(&figures.changes.known_by_all()),
    );
}

fn cost(idle: &Idle) -> String {
    format!(
        "{:.1} % of a core and {:.0} MB of resident memory",
        idle.cpu_percent,
        idle.resident_kib_p50 as f64 * 1024.0 / 1e6
    )
}
