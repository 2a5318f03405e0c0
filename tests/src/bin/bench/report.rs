//! Writes the figures of the cluster benchmark: tables on the terminal, and the Markdown page in
//! `docs/bench`.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use crate::{
    machine,
    measure::{Figures, Plan, SETTLE},
    statistics::{Events, Figure, Times},
    swarms,
    system::System,
    table::Table,
};

/// Description of the method, printed on the page with the figures.
const METHOD: &str = include_str!("method.md");

/// Returns the whole page.
pub(crate) fn page(figures: &[Figures], swarms: &[swarms::Figures], plan: &Plan) -> String {
    let mut page = format!(
        "# Hearsay beside its peers\n\n\
         Measured {} on {}, by `tests/run --bench cluster`. One process per node, all on one machine, over loopback in a network \
         namespace of their own; {} events of each kind, {} s of settling, {} s of idling.\n\n",
        machine::date(),
        machine::describe(),
        plan.repeats,
        SETTLE.as_secs(),
        plan.idle.as_secs(),
    );
    page.push_str(&versions(&machine::versions()));
    page.push_str(&tables(figures));
    if !swarms.is_empty() {
        _ = write!(page, "## Many nodes in one process\n\n{}\n", swarms::table(swarms));
    }
    page.push_str(METHOD);
    page
}

/// Describes the measured versions in a paragraph.
pub(crate) fn versions(of: &[(&str, String)]) -> String {
    let all: Vec<String> = of.iter().map(|(name, version)| format!("{name} ({version})")).collect();
    format!("Versions as they name themselves: {}.\n\n", all.join(", "))
}

/// Writes a page to a file, and creates its folder if needed.
///
/// # Errors
/// The system refuses.
pub(crate) fn write(file: &Path, text: &str) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::write(file, text).with_context(|| file.display().to_string())
}

/// Returns all tables, size by size, and the notes.
pub(crate) fn tables(figures: &[Figures]) -> String {
    let mut text = String::new();
    let mut sizes: Vec<usize> = figures.iter().map(|f| f.size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for size in sizes {
        let figures: Vec<&Figures> = figures.iter().filter(|f| f.size == size).collect();
        _ = write!(
            text,
            "## {size} nodes\n\n\
             Time until one observer knows, over all pairs of event and observer (samples in the order of the columns):\n\n{}\n\
             Time until all know, over events; and what it costs:\n\n{}\n",
            observers(&figures),
            all_observers(&figures)
        );
        let ratios = ratios(&figures);
        if !ratios.is_empty() {
            _ = write!(
                text,
                "How many times longer than Hearsay, p50 / p99 of an observer's time:\n\n{ratios}\n"
            );
        }
        for figures in figures {
            for note in &figures.notes {
                _ = writeln!(text, "- {}: {note}.", figures.system);
            }
            if !figures.notes.is_empty() {
                text.push('\n');
            }
        }
    }
    text
}

fn observers(figures: &[&Figures]) -> String {
    let mut table = Table::new(&[
        "system",
        "change p50 / p99 / max",
        "crash p50 / p99 / max",
        "freeze p50 / max",
        "thaw p50 / max",
        "leave p50 / p99 / max",
        "samples (missed)",
    ]);
    for f in figures {
        let leave = if says_goodbye(f) { three(&f.leave.pairs()) } else { "none".into() };
        table.row(vec![
            f.system.into(),
            three(&f.change.pairs()),
            three(&f.crash.pairs()),
            two(&f.freeze.pairs()),
            two(&f.thaw.pairs()),
            leave,
            samples(f),
        ]);
    }
    table.to_string()
}

fn all_observers(figures: &[&Figures]) -> String {
    let mut table = Table::new(&[
        "system",
        "change, half p50",
        "change p50 / max",
        "crash p50 / max",
        "freeze p50 / max",
        "thaw p50 / max",
        "leave p50 / max",
        "idle B/s",
        "CPU %",
        "RSS p50 / max MiB",
        "false alarms",
    ]);
    for f in figures {
        let mib = |kib: u64| format!("{:.1}", kib as f64 / 1024.0);
        let idle = f.idle.as_ref();
        let of_idle = |text: &dyn Fn(&crate::usage::Idle) -> String| idle.map_or_else(|| "–".into(), text);
        let thawed = match f.false_alarms_by_thawed {
            0 => String::new(),
            count => format!(" (+ {count} by the thawed)"),
        };
        table.row(vec![
            f.system.into(),
            f.change.known_by_half().percentile(50).to_string(),
            two(&f.change.known_by_all()),
            two(&f.crash.known_by_all()),
            two(&f.freeze.known_by_all()),
            two(&f.thaw.known_by_all()),
            if says_goodbye(f) { two(&f.leave.known_by_all()) } else { "none".into() },
            of_idle(&|idle| format!("{:.0}", idle.bytes_per_second)),
            of_idle(&|idle| format!("{:.2}", idle.cpu_percent)),
            of_idle(&|idle| format!("{} / {}", mib(idle.resident_kib_p50), mib(idle.resident_kib_max))),
            format!("{}{thawed}", f.false_alarms),
        ]);
    }
    table.to_string()
}

/// Returns each peer's times as multiples of Hearsay's; empty if there is nothing to compare.
fn ratios(figures: &[&Figures]) -> String {
    let (ours, peers): (Vec<&Figures>, Vec<&Figures>) =
        figures.iter().partition(|f| f.system == System::Hearsay.name());
    let (Some(ours), false) = (ours.first(), peers.is_empty()) else { return String::new() };
    let mut table = Table::new(&["peer", "crash", "change", "leave"]);
    for peer in peers {
        let cell = |events: fn(&Figures) -> &Events| {
            let (theirs, ours) = (events(peer).pairs(), events(ours).pairs());
            let at = |percent| ratio(theirs.percentile(percent), ours.percentile(percent));
            format!("{} / {}", at(50), at(99))
        };
        table.row(vec![
            peer.system.into(),
            cell(|f| &f.crash),
            cell(|f| &f.change),
            if says_goodbye(peer) { cell(|f| &f.leave) } else { "none".into() },
        ]);
    }
    table.to_string()
}

fn ratio(theirs: Figure, ours: Figure) -> String {
    let times = |theirs: f64, ours: u64| {
        let ratio = theirs / ours.max(1) as f64;
        if ratio < 10.0 { format!("{ratio:.1}") } else { format!("{ratio:.0}") }
    };
    match (theirs, ours) {
        (Figure::Micros(theirs), Figure::Micros(ours)) => times(theirs as f64, ours),
        (Figure::Over(seconds), Figure::Micros(ours)) => format!("> {}", times(seconds as f64 * 1e6, ours)),
        _ => "–".into(),
    }
}

fn says_goodbye(f: &Figures) -> bool {
    System::from_name(f.system).is_some_and(System::can_leave)
}

/// Formats p50, p99 and maximum, each in milliseconds or seconds.
pub(crate) fn three(times: &Times) -> String {
    if times.len() == 0 {
        return "–".into();
    }
    format!("{} / {} / {}", times.percentile(50), times.percentile(99), times.max())
}

/// Formats p50, p99 and maximum. Times below a millisecond are in microseconds.
pub(crate) fn three_us(times: &Times) -> String {
    let one = |percent| match times.percentile(percent) {
        Figure::Micros(us @ ..1000) => format!("{us} µs"),
        figure => figure.to_string(),
    };
    format!("{} / {} / {}", one(50), one(99), one(100))
}

fn two(times: &Times) -> String {
    if times.len() == 0 {
        return "–".into();
    }
    format!("{} / {}", times.percentile(50), times.max())
}

/// Returns the number of measured pairs in each column of a row, in the order of the columns, and the number
/// of missing ones.
fn samples(f: &Figures) -> String {
    let all = [&f.change, &f.crash, &f.freeze, &f.thaw, &f.leave].map(Events::pairs);
    let counts = all.each_ref().map(|times| times.len().to_string()).join(", ");
    match all.iter().map(Times::missed).sum::<usize>() {
        0 => counts,
        missed => format!("{counts} ({missed})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(system: System, us: u64) -> Figures {
        let events = |times: &[u64]| Events {
            times_us: vec![times.iter().map(|us| Some(*us)).collect()],
            bound_s: 60,
        };
        Figures {
            system: system.name(),
            size: 10,
            converged_s: None,
            idle: None,
            change: events(&[us, us]),
            crash: Events { times_us: vec![vec![Some(us), None]], bound_s: 60 },
            freeze: events(&[us]),
            thaw: events(&[us]),
            leave: events(&[]),
            false_alarms: 3,
            false_alarms_by_thawed: 1,
            notes: vec!["it snowed".into()],
        }
    }

    #[test]
    fn a_page_has_a_row_for_every_system_and_says_what_is_missing() {
        let all = [figures(System::Hearsay, 2_000), figures(System::ChitchatSecond, 900_000)];
        let text = tables(&all);
        assert!(text.contains("## 10 nodes"), "{text}");
        assert!(text.contains("| 900 ms / > 60 s / > 60 s "), "{text}");
        assert!(text.contains("| 2, 2, 1, 1, 0 (1)"), "{text}");
        assert!(text.contains("3 (+ 1 by the thawed)"), "{text}");
        assert!(text.contains("- hearsay: it snowed."), "{text}");
        let plan = Plan { repeats: 1, idle: std::time::Duration::from_secs(1), logs: None };
        assert!(page(&all, &[], &plan).contains("## How this is measured"));
    }

    #[test]
    fn ratios_are_of_the_peers_time_to_ours() {
        assert_eq!(ratio(Figure::Micros(900_000), Figure::Micros(2_000)), "450");
        assert_eq!(ratio(Figure::Micros(3_000), Figure::Micros(2_000)), "1.5");
        assert_eq!(ratio(Figure::Over(60), Figure::Micros(60_000)), "> 1000");
        assert_eq!(ratio(Figure::Micros(1), Figure::Over(60)), "–");
    }
}
