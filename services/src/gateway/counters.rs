//! What the gateway counts. Every refusal has a reason out of a fixed list, so that what is counted cannot grow.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use crate::service::{Metric, MetricKind};

/// Why the gateway refused something, or gave up on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Too many connections.
    Connections,
    /// The head came too slowly.
    HeadTime,
    /// The bytes are no HTTP, or over the limits of a head.
    Malformed,
    /// It is not certain where the body ends (request smuggling).
    Framing,
    /// It is not certain whom the request is for.
    Host,
    /// The path is none, or climbs.
    Path,
    /// A method that is not passed on.
    Method,
    /// The request has been here before.
    Loop,
    /// No service has this name or prefix.
    Unknown,
    /// The service has no instance that can be reached.
    Unreachable,
    /// An instance broke off.
    Broken,
    /// An instance took too long.
    AnswerTime,
    /// Too many requests in flight.
    InFlight,
    /// The client's body did not come.
    BodyTime,
    /// The body is larger than what is taken in to be signed.
    BodySize,
    /// The bodies that were taken in to be signed take too much memory.
    BodyRoom,
    /// A write to a built-in role without proof of who asks.
    Unproven,
    /// The HTTP/2 connection broke the rules or was idle for too long.
    Http2,
    /// The client read nothing for too long.
    WriteTime,
    /// The system gave no socket for a client.
    Accept,
    /// Requests were cut off because the node stopped.
    Drain,
    /// The host has its share of the connections.
    ConnectionShare,
    /// The host has its share of the requests in flight.
    InFlightShare,
    /// An idle connection was closed for another one.
    Evicted,
}

impl Reason {
    const ALL: [Self; 24] = [
        Self::Connections,
        Self::HeadTime,
        Self::Malformed,
        Self::Framing,
        Self::Host,
        Self::Path,
        Self::Method,
        Self::Loop,
        Self::Unknown,
        Self::Unreachable,
        Self::Broken,
        Self::AnswerTime,
        Self::InFlight,
        Self::BodyTime,
        Self::BodySize,
        Self::BodyRoom,
        Self::Unproven,
        Self::Http2,
        Self::WriteTime,
        Self::Accept,
        Self::Drain,
        Self::ConnectionShare,
        Self::InFlightShare,
        Self::Evicted,
    ];

    /// The word in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::HeadTime => "head_time",
            Self::Malformed => "malformed",
            Self::Framing => "framing",
            Self::Host => "host",
            Self::Path => "path",
            Self::Method => "method",
            Self::Loop => "loop",
            Self::Unknown => "unknown",
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
            Self::AnswerTime => "answer_time",
            Self::InFlight => "in_flight",
            Self::BodyTime => "body_time",
            Self::BodySize => "body_size",
            Self::BodyRoom => "body_room",
            Self::Unproven => "unproven",
            Self::Http2 => "http2",
            Self::WriteTime => "write_time",
            Self::Accept => "accept",
            Self::Drain => "drain",
            Self::ConnectionShare => "connection_share",
            Self::InFlightShare => "in_flight_share",
            Self::Evicted => "evicted",
        }
    }
}

/// All counters; shared by all threads.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that arrived whole.
    pub requests: AtomicU64,
    /// Attempts after the first, on another instance or a new connection.
    pub retries: AtomicU64,
    /// Attempts that the budget did not allow.
    pub retries_refused: AtomicU64,
    /// Times that an instance was ejected.
    pub ejections: AtomicU64,
    /// Times that an instance would have been ejected, had not too many been already.
    pub ejections_refused: AtomicU64,
    /// Connections opened to instances.
    pub connects: AtomicU64,
    /// Tunnels (WebSocket) opened.
    pub tunnels: AtomicU64,
    /// Clients' connections now open.
    pub connections: AtomicI64,
    /// Requests now in flight.
    pub in_flight: AtomicI64,
    /// Routes now that several services announce.
    pub conflicts: AtomicU64,
    /// Tags and instances now that cannot be used.
    pub ignored: AtomicU64,
    refused: [AtomicU64; Reason::ALL.len()],
    /// Answers by the first digit of their status.
    answers: [AtomicU64; 6],
}

impl Counters {
    /// Counts a refusal.
    pub fn refused(&self, reason: Reason) {
        // The list is in the order of the enum, which a test holds it to.
        if let Some(counter) = self.refused.get(reason as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// How often something was refused for this reason.
    pub fn refused_count(&self, reason: Reason) -> u64 {
        self.refused.get(reason as usize).map_or(0, |counter| counter.load(Relaxed))
    }

    /// Counts an answer, the gateway's own ones included.
    pub fn answered(&self, status: http::StatusCode) {
        if let Some(counter) = self.answers.get(usize::from(status.as_u16() / 100)) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// All of them, for the node's metrics.
    pub fn metrics(&self) -> Vec<Metric> {
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
        for (class, value) in ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(self.answers.iter().skip(1))
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
    fn every_reason_has_a_counter_and_a_word_of_its_own() {
        let counters = Counters::default();
        for (i, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i, "{reason:?} stands where it is looked for");
            counters.refused(reason);
            assert_eq!(counters.refused_count(reason), 1);
        }
        counters.answered(http::StatusCode::NOT_FOUND);
        let metrics = counters.metrics();
        let words: std::collections::BTreeSet<_> = metrics.iter().map(|m| (m.name, m.label)).collect();
        assert_eq!(words.len(), metrics.len());
        assert!(metrics.iter().any(|m| m.label == Some(("class", "4xx")) && m.value == 1));
    }
}
