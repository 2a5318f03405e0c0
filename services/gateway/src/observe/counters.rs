//! [`Counters`] of the gateway, and their names in the node's metrics.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use hearsay_services::{Metric, MetricKind};

use crate::refusal::Reason;

/// All counters, shared by all threads.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Requests received.
    pub(crate) requests: AtomicU64,
    /// Attempts after the first, each at another instance.
    pub(crate) retries: AtomicU64,
    /// Attempts that the retry budget or the time limit did not allow.
    pub(crate) retries_refused: AtomicU64,
    /// Ejections of instances.
    pub(crate) ejections: AtomicU64,
    /// Ejections that did not happen because too many instances were ejected already.
    pub(crate) ejections_refused: AtomicU64,
    /// Connections opened to instances.
    pub(crate) connects: AtomicU64,
    /// Tunnels (WebSocket) opened.
    pub(crate) tunnels: AtomicU64,
    /// Client connections open now.
    pub(crate) connections: AtomicI64,
    /// Requests in flight now.
    pub(crate) in_flight: AtomicI64,
    /// Routes that several services announce now.
    pub(crate) conflicts: AtomicU64,
    /// Tags and instances that cannot be used now.
    pub(crate) ignored: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
    /// Responses by the first digit of their status.
    responses: [AtomicU64; 6],
}

impl Counters {
    /// Counts a refusal.
    pub(crate) fn count_refusal(&self, reason: Reason) {
        // `ALL` has the order of the enum; a test checks that.
        if let Some(counter) = self.refused.get(reason as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Returns the number of refusals for this reason.
    #[cfg(test)]
    fn refusals(&self, reason: Reason) -> u64 {
        self.refused.get(reason as usize).map_or(0, |counter| counter.load(Relaxed))
    }

    /// Counts a response, the gateway's own included.
    pub(crate) fn count_response(&self, status: http::StatusCode) {
        if let Some(counter) = self.responses.get(usize::from(status.as_u16() / 100)) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Returns all counters for the node's metrics.
    pub(crate) fn metrics(&self) -> Vec<Metric> {
        let counter = |name, help, value: &AtomicU64| Metric {
            name,
            help,
            kind: MetricKind::Counter,
            label: None,
            value: value.load(Relaxed),
        };
        let gauge = |name, help, value: &AtomicI64| Metric {
            name,
            help,
            kind: MetricKind::Gauge,
            label: None,
            value: u64::try_from(value.load(Relaxed)).unwrap_or(0),
        };
        let state =
            |name, help, value: &AtomicU64| Metric { kind: MetricKind::Gauge, ..counter(name, help, value) };
        let mut all = vec![
            counter("gateway_requests", "Requests that the gateway received", &self.requests),
            counter("gateway_retries", "Attempts after the first one of a request", &self.retries),
            counter("gateway_retries_refused", "Attempts over the retry budget", &self.retries_refused),
            counter("gateway_ejections", "Times an instance was ejected", &self.ejections),
            counter(
                "gateway_ejections_refused",
                "Times an instance stayed because too many were ejected",
                &self.ejections_refused,
            ),
            counter("gateway_connects", "Connections opened to instances", &self.connects),
            counter("gateway_tunnels", "Upgraded connections (WebSocket)", &self.tunnels),
            gauge("gateway_connections", "Clients' connections open", &self.connections),
            gauge("gateway_in_flight", "Requests in flight", &self.in_flight),
            state("gateway_route_conflicts", "Routes that several services announce", &self.conflicts),
            state("gateway_ignored", "Route tags and instances that the gateway does not use", &self.ignored),
        ];
        let labelled = |name, help, label, value: &AtomicU64| Metric {
            name,
            help,
            kind: MetricKind::Counter,
            label: Some(label),
            value: value.load(Relaxed),
        };
        for (class, value) in
            ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(self.responses.iter().skip(1))
        {
            all.push(labelled("gateway_answers", "Answers by status class", ("class", class), value));
        }
        for reason in Reason::ALL {
            let help = "Requests and connections refused or given up, by reason";
            if let Some(value) = self.refused.get(reason as usize) {
                all.push(labelled("gateway_refused", help, ("reason", reason.as_str()), value));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_label() {
        let counters = Counters::default();
        for (i, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i, "{reason:?}");
            counters.count_refusal(reason);
            assert_eq!(counters.refusals(reason), 1);
        }
        counters.count_response(http::StatusCode::NOT_FOUND);
        let metrics = counters.metrics();
        let labels: std::collections::BTreeSet<_> = metrics.iter().map(|m| (m.name, m.label)).collect();
        assert_eq!(labels.len(), metrics.len());
        assert!(metrics.iter().any(|m| m.label == Some(("class", "4xx")) && m.value == 1));
    }
}
