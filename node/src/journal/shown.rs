//! What a topic's thread shows of itself, for `/metrics`.

use std::collections::BTreeSet;
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use hearsay_protocol::{
    NodeId,
    journal::{
        Counters,
        append::{AppendError, Appended, Level},
    },
};
use hearsay_services::service::{Metric, MetricKind};

/// Why an append was not acknowledged, in the order of their counters.
const FAILURES: [&str; 7] =
    ["body_too_large", "bad_key", "key_taken", "busy", "disk", "late", "indeterminate"];

/// What a topic's thread shows of itself.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    pub(super) counters: Mutex<Counters>,
    /// Transactions that were synced.
    pub(super) commits: AtomicU64,
    /// What did not fit into the queue.
    pub(super) refused: AtomicU64,
    /// Pages that were looked at without anybody asking for them.
    pub(super) looked_at: AtomicU64,
    /// Databases that were put aside because they were damaged.
    pub(super) replaced: AtomicU64,
    /// Whether nothing can be written before the disk has room: 0 or 1.
    pub(super) read_only: AtomicU64,
    /// Errors of the database.
    pub(super) disk_errors: AtomicU64,
    /// Replicas that a majority is counted of: the number, and where none is configured, which.
    pub(super) replicas_counted: AtomicU64,
    pub(super) replicas: Mutex<BTreeSet<NodeId>>,
    /// The epoch of the newest entry.
    pub(super) epoch: AtomicU64,
    /// What the database uses.
    pub(super) used_bytes: AtomicU64,
    pub(super) dropped_runs: AtomicU64,
    pub(super) dropped_entries: AtomicU64,
    /// Appends by the level that they reached.
    acknowledged: [AtomicU64; 3],
    /// Appends by what they were answered instead.
    failed: [AtomicU64; FAILURES.len()],
}

impl Shown {
    /// Counts what an append was answered with.
    pub(super) fn answered(&self, answer: &Result<Appended, AppendError>) {
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

    /// All of it; `waiting_bytes` is what waits for the thread.
    pub(super) fn metrics(&self, waiting_bytes: u64) -> Vec<Metric> {
        let c = *self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let counter =
            |name, help, value| Metric { name, help, kind: MetricKind::Counter, label: None, value };
        let gauge = |name, help, value| Metric { kind: MetricKind::Gauge, ..counter(name, help, value) };
        let mut all = vec![
            counter("journal_appended", "Entries written here", c.appended),
            counter("journal_replicated", "Entries of other writers stored here", c.replicated),
            counter(
                "journal_refused",
                "Runs and requests refused because they were forged or broke a bound",
                c.refused,
            ),
            counter(
                "journal_put_off",
                "Runs of others put off because too much waited for the disk",
                c.put_off,
            ),
            counter(
                "journal_receipts",
                "Receipts of replicas for what was written here or is waited for",
                c.receipts,
            ),
            counter("journal_comparisons", "Comparisons with replicas begun", c.comparisons),
            counter("journal_differences", "Comparisons that found a difference", c.differences),
            counter(
                "journal_damaged",
                "Times that runs on the disk were found damaged and taken out",
                c.damaged,
            ),
            counter("journal_commits", "Transactions synced to the disk", self.commits.load(Relaxed)),
            counter(
                "journal_overflows",
                "Appends and requests refused because too much waited for the journal's thread",
                self.refused.load(Relaxed),
            ),
            counter(
                "journal_pages_checked",
                "Pages of the database looked at, without anybody asking for them",
                self.looked_at.load(Relaxed),
            ),
            counter(
                "journal_replaced",
                "Databases put aside while running, because they were found damaged",
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
            counter(
                "journal_epochs_opened",
                "Times that an entry's time was too far ahead of this node's clock, and an epoch of the order was opened",
                c.epochs_opened,
            ),
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
            counter(
                "journal_replicas_refused",
                "Replicas not counted because there were too many, or a peer's count made no sense",
                c.replicas_refused,
            ),
            gauge(
                "journal_waiting_bytes",
                "Bytes of appends and requests that wait for the journal's thread",
                waiting_bytes,
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
        ];
        let labelled = |name, help, label, value: &AtomicU64| Metric {
            label: Some(label),
            ..counter(name, help, value.load(Relaxed))
        };
        for (level, count) in
            [Level::Local, Level::Replicated, Level::Majority].into_iter().zip(&self.acknowledged)
        {
            let help = "Appends acknowledged, by the level reached";
            all.push(labelled("journal_acknowledged", help, ("level", level.name()), count));
        }
        for (reason, count) in FAILURES.into_iter().zip(&self.failed) {
            let help = "Appends not acknowledged, by reason";
            all.push(labelled("journal_unacknowledged", help, ("reason", reason), count));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_is_counted_under_its_name() {
        let shown = Shown::default();
        shown.answered(&Err(AppendError::DiskFull));
        shown.answered(&Err(AppendError::DiskFailed));
        shown.answered(&Err(AppendError::Late));
        let of = |reason| {
            let all = shown.metrics(0);
            all.iter().find(|metric| metric.label == Some(("reason", reason))).unwrap().value
        };
        assert_eq!([of("disk"), of("late"), of("busy")], [2, 1, 0]);
        assert_eq!(Level::Majority as usize, 2, "levels are counted in their order");
    }
}
