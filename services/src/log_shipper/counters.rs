//! [`ShipperCounters`]: counts the events of a node that were stored in the log, and those that were dropped,
//! by reason.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts events by outcome, for `/metrics`.
#[derive(Debug, Default)]
pub struct ShipperCounters {
    pub(super) shipped: AtomicU64,
    pub(super) unqueued: AtomicU64,
    pub(super) unspooled: AtomicU64,
    pub(super) refused: AtomicU64,
}

impl ShipperCounters {
    /// Returns name, help and value of each counter.
    pub fn list(&self) -> [(&'static str, &'static str, u64); 4] {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("events_shipped", "Events of this node that were stored in the log", value(&self.shipped)),
            ("events_unqueued", "Events dropped because the queue was full", value(&self.unqueued)),
            (
                "events_unspooled",
                "Events dropped because the spool was full or could not be written, while there was no log node",
                value(&self.unspooled),
            ),
            ("events_refused", "Events dropped because the log refused them", value(&self.refused)),
        ]
    }

    pub(super) fn count(counter: &AtomicU64, events: usize) {
        counter.fetch_add(events as u64, Ordering::Relaxed);
    }
}
