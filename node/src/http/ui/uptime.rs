//! [`Uptime`] of an instance: the statuses of its checks over the last hour, as a bar and a sentence.
//!
//! The statuses come from the events of `/why`. For a check without an event, the current status holds since
//! the time that its holder states; before that it is unknown.

use std::collections::{BTreeMap, BTreeSet};

use hearsay_protocol::{Health, Provider};
use hearsay_services::http::Number;

use crate::http::api::why::Line;

/// Time span of the bar, in milliseconds.
const SPAN_MS: u64 = 3_600_000;
/// Maximum number of segments of the bar; more could not be distinguished.
const BARS_MAX: usize = 200;

// Sizes in units of the drawing.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 20.0;
/// Least width of a segment that is not passing, so that a failure of a second is visible.
const FAILURE_WIDTH_MIN: f64 = 2.0;

/// The bar and the sentence.
pub(crate) struct Uptime {
    pub(crate) bars: Vec<Bar>,
    pub(crate) description: String,
}

/// A segment of the bar with one status. Both its height and its colour show the status.
pub(crate) struct Bar {
    pub(crate) x: Number,
    pub(crate) y: Number,
    pub(crate) width: Number,
    pub(crate) height: Number,
    pub(crate) class: &'static str,
    pub(crate) title: String,
}

/// Start of a status in milliseconds, and the status; `None`: unknown.
type Step = (u64, Option<Health>);

/// A status between two times in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Segment {
    from: u64,
    to: u64,
    status: Option<Health>,
}

impl Uptime {
    /// Computes the uptime of a listed instance. `lines` are the events of its service, oldest first, with
    /// times in milliseconds since the Unix epoch.
    pub(crate) fn of(provider: &Provider, lines: &[(u64, &Line)], now_ms: u64) -> Self {
        let node_id = provider.node_id.to_string();
        let is_about =
            |line: &Line| line.instance.as_deref() == Some(provider.id.as_str()) && line.node_id == node_id;
        let own: Vec<(u64, &Line)> = lines.iter().copied().filter(|(_, line)| is_about(line)).collect();
        let segments = segments(&tracks(provider, &own), &absences(&own), now_ms);
        Self { bars: bars(&segments, now_ms), description: describe(&segments) }
    }
}

/// Returns the changes of status of each check.
fn tracks(provider: &Provider, lines: &[(u64, &Line)]) -> Vec<Vec<Step>> {
    let instance = &provider.instance;
    let mut by_check = BTreeMap::<&str, Vec<Step>>::new();
    for (at, line) in lines.iter().filter(|(_, line)| line.event == "check") {
        let Some(check) = line.check.as_deref() else { continue };
        by_check.entry(check).or_default().push((*at, line.state.and_then(health_named)));
    }
    for (check, steps) in &mut by_check {
        let last = steps.last().map_or(0, |(at, _)| *at);
        if instance.checks.iter().any(|current| current.id == *check) {
            continue;
        }
        // A removed check, such as that of a maintenance, ended at the next change of the instance.
        let end = lines.iter().map(|(at, _)| *at).find(|at| *at > last);
        steps.push((end.unwrap_or(last), None));
    }
    for check in &instance.checks {
        by_check.entry(&check.id).or_insert_with(|| vec![(check.since_ms, Some(check.status))]);
    }
    let stated = instance.checks.iter().map(|check| check.status).max();
    let mut tracks: Vec<Vec<Step>> = by_check.into_values().collect();
    // Without a check, or with a health worse than that of all checks, the bar shows the instance's health
    // since its last change.
    if stated.is_none_or(|stated| stated < instance.health) {
        let changed = lines.iter().rev().find(|(_, line)| line.event == "changed").map(|(at, _)| *at);
        let from = if stated.is_none() && instance.health == Health::Passing { None } else { changed };
        tracks.push(vec![(from.unwrap_or(instance.since_ms), Some(instance.health))]);
    }
    tracks
}

fn health_named(word: &str) -> Option<Health> {
    [Health::Passing, Health::Warning, Health::Critical].into_iter().find(|health| health.as_str() == word)
}

/// Returns the times in which the instance was not listed.
fn absences(lines: &[(u64, &Line)]) -> Vec<(u64, u64)> {
    let (mut absences, mut gone) = (Vec::new(), None);
    for (at, line) in lines {
        match line.event {
            "removed" => gone = Some(*at),
            "added" => absences.extend(gone.take().map(|from| (from, *at))),
            _ => (),
        }
    }
    absences
}

/// Returns the worst status of all checks over the last hour.
fn segments(tracks: &[Vec<Step>], absences: &[(u64, u64)], now_ms: u64) -> Vec<Segment> {
    let start = now_ms.saturating_sub(SPAN_MS);
    let steps = tracks.iter().flatten().map(|(at, _)| *at);
    let edges = absences.iter().flat_map(|(from, to)| [*from, *to]);
    let moments: BTreeSet<u64> =
        steps.chain(edges).filter(|at| (start..now_ms).contains(at)).chain([start]).collect();
    let status_at = |at: u64| {
        if absences.iter().any(|(from, to)| (*from..*to).contains(&at)) {
            return None;
        }
        let last =
            |track: &Vec<Step>| track.iter().rev().find(|(from, _)| *from <= at).and_then(|step| step.1);
        tracks.iter().filter_map(last).max()
    };
    let ends = moments.iter().skip(1).copied().chain([now_ms]);
    let mut segments: Vec<Segment> = Vec::new();
    for (from, to) in moments.iter().copied().zip(ends) {
        let status = status_at(from);
        match segments.last_mut() {
            Some(last) if last.status == status => last.to = to,
            _ => segments.push(Segment { from, to, status }),
        }
    }
    segments
}

fn bars(segments: &[Segment], now_ms: u64) -> Vec<Bar> {
    let start = now_ms.saturating_sub(SPAN_MS);
    let place = |at: u64| WIDTH * at.saturating_sub(start) as f64 / SPAN_MS as f64;
    let mut drawn: Vec<&Segment> = segments.iter().rev().take(BARS_MAX).collect();
    // The worst status is drawn last, on top of the others.
    drawn.sort_by_key(|segment| (segment.status, segment.from));
    let bar = |segment: &Segment| {
        let (class, share) = match segment.status {
            None => ("unknown", 0.2),
            Some(Health::Passing) => ("passing", 1.0),
            Some(Health::Warning) => ("warning", 0.7),
            Some(Health::Critical) => ("critical", 0.45),
        };
        let least =
            if matches!(segment.status, None | Some(Health::Passing)) { 0.0 } else { FAILURE_WIDTH_MIN };
        let width = (place(segment.to) - place(segment.from)).max(least);
        let height = HEIGHT * share;
        Bar {
            x: Number(place(segment.from).min(WIDTH - width)),
            y: Number(HEIGHT - height),
            width: Number(width),
            height: Number(height),
            class,
            title: format!("{class} for {}", duration(segment.to - segment.from)),
        }
    };
    drawn.into_iter().map(bar).collect()
}

/// Returns the share of time with the status passing, as a sentence.
fn describe(segments: &[Segment]) -> String {
    let length = |wanted: &dyn Fn(Option<Health>) -> bool| -> u64 {
        segments.iter().filter(|s| wanted(s.status)).map(|s| s.to - s.from).sum()
    };
    let known = length(&|status| status.is_some());
    if known == 0 {
        return "No status is known for the last hour yet.".to_owned();
    }
    let passing = length(&|status| status == Some(Health::Passing));
    // Rounded down: 100 % means without interruption.
    let percent = Number((1000.0 * passing as f64 / known as f64).floor() / 10.0);
    if known + 1000 >= SPAN_MS {
        return format!("Passing for {percent} % of the last hour.");
    }
    format!("Passing for {percent} % of the {} of the last hour that this node knows.", duration(known))
}

/// Formats a duration in its two largest units.
fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{} s", ms / 1000),
        60_000..600_000 => format!("{} min {} s", ms / 60_000, ms / 1000 % 60),
        _ => format!("{} min", ms / 60_000),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hearsay_protocol::{CheckSummary, Instance, NodeId};

    use super::*;

    /// A moment that is no round number, ten hours after the epoch.
    const NOW: u64 = 36_000_123;
    const MIN: u64 = 60_000;

    fn provider(checks: &[(&str, Health, u64)], health: Health) -> Provider {
        let checks = checks.iter().map(|(id, status, since_ms)| CheckSummary {
            id: (*id).into(),
            status: *status,
            since_ms: *since_ms,
            ..CheckSummary::default()
        });
        let instance =
            Instance { checks: checks.collect(), health, since_ms: NOW - 30 * MIN, ..Instance::default() };
        Provider {
            id: "web-1".into(),
            node_id: NodeId::from_public_key([1; 32]),
            node: "n1".into(),
            zone: None,
            instance: Arc::new(instance),
            addresses: vec![],
            role: false,
            unverified: false,
        }
    }

    fn line(of: &Provider, event: &'static str, check: Option<(&str, &'static str)>) -> Line {
        Line {
            event,
            node_id: of.node_id.to_string(),
            instance: Some(of.id.clone()),
            check: check.map(|(id, _)| id.to_owned()),
            state: check.map(|(_, state)| state),
            ..Line::default()
        }
    }

    fn bars_of(uptime: &Uptime) -> Vec<(&'static str, String)> {
        uptime.bars.iter().map(|bar| (bar.class, bar.width.to_string())).collect()
    }

    #[test]
    fn without_lines_the_status_holds_since_the_holder_says() {
        let provider = provider(&[("c", Health::Passing, NOW - 30 * MIN)], Health::Passing);
        let uptime = Uptime::of(&provider, &[], NOW);
        assert_eq!(bars_of(&uptime), [("unknown", "300".into()), ("passing", "300".into())]);
        assert_eq!(
            uptime.description,
            "Passing for 100 % of the 30 min of the last hour that this node knows."
        );
    }

    #[test]
    fn an_instance_without_a_check_passes_since_it_was_registered() {
        let provider = provider(&[], Health::Passing);
        let changed = line(&provider, "changed", None);
        let uptime = Uptime::of(&provider, &[(NOW - MIN, &changed)], NOW);
        assert_eq!(bars_of(&uptime), [("unknown", "300".into()), ("passing", "300".into())]);
    }

    #[test]
    fn the_worst_check_counts_and_a_short_failure_is_seen() {
        let provider =
            provider(&[("a", Health::Passing, NOW - 9), ("b", Health::Passing, 1)], Health::Passing);
        let failed = line(&provider, "check", Some(("a", "critical")));
        let again = line(&provider, "check", Some(("a", "passing")));
        let lines = [(NOW - 2 * SPAN_MS, &again), (NOW - 15 * MIN, &failed), (NOW - 15 * MIN + 500, &again)];
        let uptime = Uptime::of(&provider, &lines, NOW);
        assert_eq!(uptime.description, "Passing for 99.9 % of the last hour.");
        let worst = uptime.bars.last().unwrap();
        assert_eq!(
            (worst.class, worst.width.to_string(), worst.title.as_str()),
            ("critical", "2".into(), "critical for 500 ms")
        );
    }

    #[test]
    fn what_was_not_listed_is_not_known_and_a_check_that_is_gone_counts_no_more() {
        let provider = provider(&[("a", Health::Passing, 1)], Health::Passing);
        let drained = line(&provider, "check", Some(("upkeep", "critical")));
        let [changed, removed, added] =
            ["changed", "removed", "added"].map(|event| line(&provider, event, None));
        let lines = [
            (NOW - 40 * MIN, &drained),
            (NOW - 30 * MIN, &changed),
            (NOW - 20 * MIN, &removed),
            (NOW - 10 * MIN, &added),
        ];
        let uptime = Uptime::of(&provider, &lines, NOW);
        let expected = [("unknown", "100"), ("passing", "200"), ("passing", "100"), ("passing", "100")];
        let expected = expected.into_iter().chain([("critical", "100")]).map(|(c, w)| (c, w.to_owned()));
        assert_eq!(bars_of(&uptime), expected.collect::<Vec<_>>());
        assert_eq!(
            uptime.description,
            "Passing for 80 % of the 50 min of the last hour that this node knows."
        );
    }

    #[test]
    fn lines_of_others_do_not_count() {
        let provider = provider(&[("a", Health::Passing, 1)], Health::Passing);
        let mut other = line(&provider, "check", Some(("a", "critical")));
        other.node_id = "another".into();
        assert_eq!(
            Uptime::of(&provider, &[(NOW - MIN, &other)], NOW).description,
            "Passing for 100 % of the last hour."
        );
    }
}
