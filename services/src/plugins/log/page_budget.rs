//! [`PageBudget`]: bounds of one page, in records, bytes and time.

use std::time::{Duration, Instant};

use super::tables::Row;

/// Bytes of messages after which a page is full: 32 records of the greatest length.
const PAGE_BYTES: usize = 1024 * 1024;
/// Time after which a page is returned, however short it is. A reader of rare records sends several requests,
/// so it does not block a read connection.
const TIME_MAX: Duration = Duration::from_millis(25);

/// The records, bytes and time that are left for a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct PageBudget {
    until: Instant,
    bytes: usize,
    records: usize,
}

impl PageBudget {
    pub(super) fn new(records: usize) -> Self {
        Self { until: Instant::now() + TIME_MAX, bytes: PAGE_BYTES, records }
    }

    pub(super) fn is_late(&self) -> bool {
        self.until < Instant::now()
    }

    /// Returns whether a page has reached its bound of records or bytes.
    pub(super) fn is_full(&self) -> bool {
        self.records == 0 || self.bytes == 0
    }

    pub(super) fn take(&mut self, row: &Row) {
        self.records = self.records.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(row.message.len());
    }
}
