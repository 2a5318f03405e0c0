//! Writes the page of the gateway's figures in Markdown.

use std::fmt::Write as _;

use crate::{
    gateway::{
        Figures, Options, follow,
        kills::{self, INSTANCES},
        proxies::{self, LoadKind, PACE, Proxy, Round},
    },
    machine,
    report::{three, versions},
    table::Table,
};

/// Description of the method, printed on the page with the figures.
const METHOD: &str = include_str!("method.md");

/// Returns the whole page.
pub(crate) fn page(figures: &Figures, options: &Options) -> String {
    let wrk = machine::first_line("wrk", &["-v"]).unwrap_or_else(|| "not installed".into());
    let mut with = vec![machine::node_version()];
    for proxy in [Proxy::Nginx, Proxy::Haproxy] {
        with.push((proxy.name(), proxy.version().unwrap_or_else(|| "not installed".into())));
    }
    with.push(("wrk", wrk.split(" Copyright").next().unwrap_or_default().to_owned()));
    format!(
        "# The gateway beside nginx and HAProxy\n\n\
         Measured {} on {}, by `tests/run --bench gateway`. All on one machine, over loopback in a network namespace of its own; {} rounds in turn \
         of {} s each.\n\n{}{}{METHOD}",
        machine::date(),
        machine::describe(),
        options.rounds,
        options.time.as_secs(),
        versions(&with),
        tables(figures),
    )
}

/// Returns all tables.
pub(crate) fn tables(figures: &Figures) -> String {
    let mut text = String::new();
    if let Some(of) = &figures.proxies {
        proxied(&mut text, of);
    }
    if let Some(of) = &figures.follow {
        followed(&mut text, of);
    }
    if let Some(of) = &figures.kills {
        killed(&mut text, of);
    }
    for what in &figures.skipped {
        _ = writeln!(text, "Skipped: {what}.\n");
    }
    text
}

fn proxied(text: &mut String, figures: &proxies::Figures) {
    for asking in LoadKind::ALL {
        let mut table = Table::new(&[
            "proxy",
            "requests/s",
            "lowest – highest round",
            "of nginx (median, best)",
            "p50 µs",
            "p99 µs",
            "added p50 µs",
            "added p99 µs",
            "CPU µs each",
            "requests a CPU second",
            "processor used",
            "errors",
        ]);
        for proxy in Proxy::ALL {
            let Some(rounds) = figures.rounds.get(&(asking, proxy)) else { continue };
            let median = |of: fn(&Round) -> f64, proxy| figures.median(asking, proxy, of).unwrap_or_default();
            let rate = |round: &Round| round.told.per_second;
            let cpu = |round: &Round| round.cpu_seconds * 1e6 / round.told.requests.max(1) as f64;
            let (p50, p99) = (|round: &Round| round.told.p50_us, |round: &Round| round.told.p99_us);
            let rates = || rounds.iter().map(rate);
            let added = |of: fn(&Round) -> f64| match proxy {
                Proxy::None => "–".into(),
                // Without a proxy, the client and the upstreams share a processor, so no comparison is
                // possible.
                _ if asking == LoadKind::Paced => "–".into(),
                _ => format!("{:.0}", median(of, proxy) - median(of, Proxy::None)),
            };
            let of_proxy = |shown: String| if proxy == Proxy::None { "–".into() } else { shown };
            table.row(vec![
                proxy.name().into(),
                format!("{:.0}", median(rate, proxy)),
                format!("{:.0} – {:.0}", rates().fold(f64::MAX, f64::min), rates().fold(0.0, f64::max)),
                of_proxy(format!(
                    "{:.2}, {:.2}",
                    median(rate, proxy) / median(rate, Proxy::Nginx),
                    figures.best(asking, proxy) / figures.best(asking, Proxy::Nginx)
                )),
                format!("{:.0}", median(p50, proxy)),
                format!("{:.0}", median(p99, proxy)),
                added(p50),
                added(p99),
                of_proxy(format!("{:.1}", median(cpu, proxy))),
                of_proxy(format!("{:.0}", 1e6 / median(cpu, proxy))),
                of_proxy(format!("{:.0} %", 100.0 * median(|r| r.cpu_seconds / r.seconds, proxy))),
                rounds.iter().map(|round| round.told.errors).sum::<u64>().to_string(),
            ]);
        }
        let pace = if asking == LoadKind::Paced {
            format!(
                " of {:.0} requests a second, about {:.0} % of what nginx can do",
                figures.pace,
                PACE * 100.0
            )
        } else {
            String::new()
        };
        _ = write!(text, "## {}{pace}\n\nThe median of all rounds:\n\n{table}\n", asking.name());
    }
}

fn followed(text: &mut String, figures: &follow::Figures) {
    let mut table = Table::new(&["from", "p50 / p99 / max", "samples (missed)"]);
    for (what, times) in &figures.times {
        let missed = if times.missed() > 0 { format!(" ({})", times.missed()) } else { String::new() };
        table.row(vec![(*what).into(), three(times), format!("{}{missed}", times.len())]);
    }
    _ = write!(text, "## Until the gateway routes accordingly\n\n{table}\n");
}

fn killed(text: &mut String, figures: &kills::Figures) {
    let times = figures.answered.times();
    _ = write!(
        text,
        "## One of {INSTANCES} instances is killed under load\n\n\
         {} kills; {} GETs answered with 200 ({:.0}/s), **{} failed**. p50 / p99 / max of an answer: {}. The gateway asked another instance {} \
         times, and refused to {} times.\n\n",
        figures.kills,
        times.len(),
        figures.answered.per_second(),
        figures.answered.bad,
        three(&times),
        figures.retries,
        figures.refused,
    );
}
