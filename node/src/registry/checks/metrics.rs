//! [`CheckMetrics`]: counts check runs by kind and result, refused and late runs, and runs in flight.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hearsay_protocol::Health;
use hearsay_services::{MetricKind, network::Forbidden};

use super::spec::CheckKind;

/// Label values of kinds, in the order of [`kind_index`].
const KINDS: [&str; 10] =
    ["http", "tcp", "grpc", "ttl", "alias", "watch", "process", "exec", "udp", "h2ping"];
/// Label values of results, in the order of [`Health`].
const RESULTS: [&str; 3] = ["passing", "warning", "critical"];
/// Label values of the rules of the address policy.
const RULES: [&str; Forbidden::RULES.len()] = Forbidden::RULES;

/// Counters of all checks of a node.
#[derive(Debug, Default)]
pub struct CheckMetrics {
    runs: [[AtomicU64; RESULTS.len()]; KINDS.len()],
    refused: [AtomicU64; RULES.len()],
    late: AtomicU64,
    in_flight: AtomicU64,
    checks: AtomicU64,
}

/// One sample of a metric.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckMetric {
    /// Name, without `hearsay_` and `_total`.
    pub name: &'static str,
    /// Help text.
    pub help: &'static str,
    /// Counter or gauge.
    pub kind: MetricKind,
    /// Label names and values. Samples of one name are adjacent.
    pub labels: Vec<(&'static str, &'static str)>,
    /// The value.
    pub value: u64,
}

impl CheckMetrics {
    /// Returns all samples, without labelled ones that are zero.
    pub fn list(&self) -> Vec<CheckMetric> {
        let mut list = Vec::new();
        for (kind, results) in KINDS.iter().zip(&self.runs) {
            for (result, count) in RESULTS.iter().zip(results) {
                list.push(CheckMetric {
                    name: "check_runs",
                    help: "Runs of health checks, reports and events of waiting checks included",
                    kind: MetricKind::Counter,
                    labels: vec![("kind", kind), ("result", result)],
                    value: count.load(Relaxed),
                });
            }
        }
        for (rule, count) in RULES.iter().zip(&self.refused) {
            list.push(CheckMetric {
                name: "check_refused",
                help: "Runs of health checks whose target the address policy refused",
                kind: MetricKind::Counter,
                labels: vec![("rule", rule)],
                value: count.load(Relaxed),
            });
        }
        list.retain(|metric| metric.value > 0);
        let single = |name, help, kind, count: &AtomicU64| CheckMetric {
            name,
            help,
            kind,
            labels: Vec::new(),
            value: count.load(Relaxed),
        };
        let late = "Runs of health checks that began more than a second after they were due";
        list.push(single("check_late", late, MetricKind::Counter, &self.late));
        list.push(single(
            "check_in_flight",
            "Runs of health checks in progress",
            MetricKind::Gauge,
            &self.in_flight,
        ));
        list.push(single("checks", "Health checks of this node", MetricKind::Gauge, &self.checks));
        list
    }

    /// Counts a run.
    pub(super) fn count_run(&self, kind: &CheckKind, health: Health, refused_by: Option<&str>) {
        let result = match health {
            Health::Passing => 0,
            Health::Warning => 1,
            Health::Critical => 2,
        };
        self.runs[kind_index(kind)][result].fetch_add(1, Relaxed);
        if let Some(at) = refused_by.and_then(|rule| RULES.iter().position(|known| *known == rule)) {
            self.refused[at].fetch_add(1, Relaxed);
        }
    }

    /// Counts a run that began late.
    pub(super) fn count_late(&self) {
        self.late.fetch_add(1, Relaxed);
    }

    /// Counts a run as in progress until the guard is dropped.
    pub(super) fn begin_run(&self) -> InFlight<'_> {
        InFlight::of(&self.in_flight)
    }

    /// Counts a check until the guard is dropped.
    pub(super) fn begin_check(&self) -> InFlight<'_> {
        InFlight::of(&self.checks)
    }
}

/// Increments a gauge until it is dropped.
#[derive(Debug)]
pub(super) struct InFlight<'a>(&'a AtomicU64);

impl<'a> InFlight<'a> {
    fn of(gauge: &'a AtomicU64) -> Self {
        gauge.fetch_add(1, Relaxed);
        Self(gauge)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn kind_index(kind: &CheckKind) -> usize {
    match kind {
        CheckKind::Http(_) => 0,
        CheckKind::Tcp { .. } => 1,
        CheckKind::Grpc { .. } => 2,
        CheckKind::Ttl { .. } => 3,
        CheckKind::Alias { .. } => 4,
        CheckKind::Watch { .. } => 5,
        CheckKind::Process(_) => 6,
        CheckKind::Exec { .. } => 7,
        CheckKind::Udp { .. } => 8,
        CheckKind::H2ping { .. } => 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::checks::CheckTls;

    #[test]
    fn runs_are_listed_by_kind_and_result_and_refusals_by_rule() {
        let metrics = CheckMetrics::default();
        let kind = CheckKind::Tcp { address: String::new(), tls: CheckTls::default() };
        metrics.count_run(&kind, Health::Critical, Some("member"));
        metrics.count_run(&kind, Health::Critical, None);
        let run = metrics.begin_run();
        let value = |name: &str| metrics.list().iter().find(|m| m.name == name).map(|m| m.value);
        assert_eq!((value("check_runs"), value("check_refused")), (Some(2), Some(1)));
        assert_eq!(value("check_in_flight"), Some(1));
        drop(run);
        assert_eq!(value("check_in_flight"), Some(0));
        let list = metrics.list();
        assert_eq!(list[0].labels, [("kind", "tcp"), ("result", "critical")]);
        assert_eq!(list[1].labels, [("rule", "member")]);
    }

    #[test]
    fn every_kind_has_its_label() {
        let exec = CheckKind::Exec { argv: Vec::new() };
        let ttl = CheckKind::Ttl { ttl: std::time::Duration::ZERO };
        let udp = CheckKind::Udp { address: String::new() };
        let h2ping = CheckKind::H2ping { address: String::new(), tls: CheckTls::default() };
        for kind in [exec, ttl, udp, h2ping] {
            assert_eq!(KINDS[kind_index(&kind)], kind.as_str());
        }
    }
}
