//! [`TopicMetrics`]: counters and gauges of one topic, for `/metrics`.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use hearsay_protocol::{
    NodeId,
    journal::{AppendError, Appended, JournalCounters, Level},
};
use hearsay_services::{Metric, MetricKind};

/// Reasons why appends fail, in the order of their counters.
const FAILURES: [&str; 7] =
    ["body_too_large", "bad_key", "key_taken", "busy", "disk", "late", "indeterminate"];

/// Counters and gauges of a topic, written by its worker.
#[derive(Debug, Default)]
pub(crate) struct TopicMetrics {
    pub(super) counters: Mutex<JournalCounters>,
    /// Number of synced transactions.
    pub(super) commits: AtomicU64,
    /// Number of commands refused because the queue was full.
    pub(super) refused: AtomicU64,
    /// Number of pages read by the scrub.
    pub(super) scrubbed_pages: AtomicU64,
    /// Number of damaged databases replaced while the node ran.
    pub(super) replaced: AtomicU64,
    /// 1 while the database is not open for writing, else 0.
    pub(super) read_only: AtomicU64,
    /// Number of errors of the database.
    pub(super) disk_errors: AtomicU64,
    /// Number of replicas that a majority is counted of: as configured, or as many as `replicas` has.
    pub(super) replicas_counted: AtomicU64,
    /// Replicas that a majority is counted of, if their number is not configured.
    pub(super) replicas: Mutex<BTreeSet<NodeId>>,
    /// The epoch of the newest entry.
    pub(super) epoch: AtomicU64,
    /// Bytes used in the database.
    pub(super) used_bytes: AtomicU64,
    pub(super) dropped_runs: AtomicU64,
    pub(super) dropped_entries: AtomicU64,
    /// Appends by the level that they reached.
    acknowledged: [AtomicU64; 3],
    /// Appends not acknowledged, by reason.
    failed: [AtomicU64; FAILURES.len()],
}

impl TopicMetrics {
    /// Counts the answer to an append.
    pub(super) fn record_answer(&self, answer: &Result<Appended, AppendError>) {
        let counter = match answer {
            Ok(appended) => self.acknowledged.get(appended.level as usize),
            Err(error) => self.failed.get(match error {
                AppendError::BodyTooLarge(..) => 0,
                AppendError::BadKey(_) => 1,
                AppendError::KeyTaken(_) => 2,
                AppendError::Busy => 3,
                AppendError::DiskFull | AppendError::DiskFailed => 4,
                AppendError::Late => 5,
                AppendError::Indeterminate(..) => 6,
            }),
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Returns all metrics of the topic. `queued_bytes` is the size of its queue.
    pub(super) fn metrics(&self, queued_bytes: u64) -> Vec<Metric> {
        let mut all = machine_counters(*self.counters.lock().unwrap_or_else(PoisonError::into_inner));
        all.extend(self.worker_counters());
        all.extend(self.gauges(queued_bytes));
        all.extend(self.append_counters());
        all
    }

    /// Counters of the database and the queue.
    fn worker_counters(&self) -> Vec<Metric> {
        vec![
            counter("journal_commits", "Transactions synced to the disk", self.commits.load(Relaxed)),
            counter(
                "journal_overflows",
                "Appends and requests refused because the topic's queue was full",
                self.refused.load(Relaxed),
            ),
            counter(
                "journal_pages_checked",
                "Pages of the database checked by the background scrub",
                self.scrubbed_pages.load(Relaxed),
            ),
            counter(
                "journal_replaced",
                "Damaged databases put aside and replaced while the node ran",
                self.replaced.load(Relaxed),
            ),
            counter("journal_disk_errors", "Errors of the database", self.disk_errors.load(Relaxed)),
            counter(
                "journal_dropped",
                "Entries dropped because they were too old or too many",
                self.dropped_entries.load(Relaxed),
            ),
            counter(
                "journal_dropped_runs",
                "Runs dropped because they were too old or too many",
                self.dropped_runs.load(Relaxed),
            ),
        ]
    }

    fn gauges(&self, queued_bytes: u64) -> Vec<Metric> {
        vec![
            gauge(
                "journal_epoch",
                "The epoch of the newest entry; above 0 where some node's clock was off by more than a day",
                self.epoch.load(Relaxed),
            ),
            gauge(
                "journal_replicas_counted",
                "Replicas that a majority is counted of",
                self.replicas_counted.load(Relaxed),
            ),
            gauge(
                "journal_waiting_bytes",
                "Bytes of appends and requests in the topic's queue",
                queued_bytes,
            ),
            gauge(
                "journal_read_only",
                "1 while the database is not open for writing, because its disk was full at the start",
                self.read_only.load(Relaxed),
            ),
            gauge(
                "journal_database_bytes",
                "Bytes used in the journal's database, without what is free in its file",
                self.used_bytes.load(Relaxed),
            ),
        ]
    }

    /// Counters of appends, by the level reached or the reason of failure.
    fn append_counters(&self) -> Vec<Metric> {
        let labelled = |name, help, label, value: &AtomicU64| Metric {
            label: Some(label),
            ..counter(name, help, value.load(Relaxed))
        };
        let levels = [Level::Local, Level::Replicated, Level::Majority].into_iter().zip(&self.acknowledged);
        let acknowledged = levels.map(|(level, count)| {
            let help = "Appends acknowledged, by the level reached";
            labelled("journal_acknowledged", help, ("level", level.name()), count)
        });
        let failed = FAILURES.into_iter().zip(&self.failed).map(|(reason, count)| {
            let help = "Appends not acknowledged, by reason";
            labelled("journal_unacknowledged", help, ("reason", reason), count)
        });
        acknowledged.chain(failed).collect()
    }
}

fn counter(name: &'static str, help: &'static str, value: u64) -> Metric {
    Metric { name, help, kind: MetricKind::Counter, label: None, value }
}

fn gauge(name: &'static str, help: &'static str, value: u64) -> Metric {
    Metric { kind: MetricKind::Gauge, ..counter(name, help, value) }
}

/// Counters of the journal's state machine.
fn machine_counters(c: JournalCounters) -> Vec<Metric> {
    vec![
        counter("journal_appended", "Entries written here", c.appended),
        counter("journal_replicated", "Entries of other writers stored here", c.replicated),
        counter(
            "journal_refused",
            "Runs and requests refused because they were forged or broke a bound",
            c.refused,
        ),
        counter(
            "journal_put_off",
            "Runs of other writers deferred because too many waited for the disk, or it had failed",
            c.put_off,
        ),
        counter(
            "journal_strangers",
            "Pushes and pulls refused because the peer is no replica, or the run's writer never was one",
            c.strangers,
        ),
        counter(
            "journal_feeds_refused",
            "Runs and feeds of other writers left out because there are too many feeds",
            c.feeds_refused,
        ),
        counter("journal_receipts", "Receipts of replicas for runs written here or waited for", c.receipts),
        counter("journal_comparisons", "Comparisons with replicas begun", c.comparisons),
        counter("journal_differences", "Comparisons that found a difference", c.differences),
        counter("journal_damaged", "Times that damaged runs were found on the disk and deleted", c.damaged),
        counter(
            "journal_times_ahead",
            "Entries of other writers stored with a time more than a day ahead of this node's clock",
            c.times_ahead,
        ),
        counter(
            "journal_epochs_opened",
            "Epochs opened because an entry's time was too far ahead of this node's clock",
            c.epochs_opened,
        ),
        counter(
            "journal_replicas_refused",
            "Replicas not counted because there were too many, or a peer's count made no sense",
            c.replicas_refused,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_counted_under_its_name() {
        let metrics = TopicMetrics::default();
        metrics.record_answer(&Err(AppendError::DiskFull));
        metrics.record_answer(&Err(AppendError::DiskFailed));
        metrics.record_answer(&Err(AppendError::Late));
        let of = |reason| {
            let all = metrics.metrics(0);
            all.iter().find(|metric| metric.label == Some(("reason", reason))).unwrap().value
        };
        assert_eq!([of("disk"), of("late"), of("busy")], [2, 1, 0]);
        assert_eq!(Level::Majority as usize, 2, "levels are counted in their order");
    }
}
