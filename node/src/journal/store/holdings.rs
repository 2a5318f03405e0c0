//! [`Holdings`]: bytes of stored runs (signed groups of entries) per writer, so that retention can drop those
//! of the largest writer first.
//!
//! Each feed's row has the bytes of its runs, updated in the transaction that adds or drops them. `NULL`
//! means that they must be counted: a version without this column wrote the feed, a run may have replaced
//! another one, or damaged runs were deleted.

use std::collections::BTreeMap;

use hearsay_protocol::NodeId;
use rusqlite::params;

use super::database::Store;

/// Bytes of the runs of each writer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Holdings(BTreeMap<NodeId, u64>);

impl Holdings {
    /// Returns the bytes of all writers.
    pub(super) fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Returns the writer with the most bytes of these writers.
    pub(super) fn largest(&self, of: impl Iterator<Item = NodeId>) -> Option<NodeId> {
        of.max_by_key(|writer| self.0.get(writer).copied().unwrap_or(0))
    }

    /// Subtracts dropped bytes of a writer.
    pub(super) fn release(&mut self, writer: NodeId, bytes: u64) {
        if let Some(total) = self.0.get_mut(&writer) {
            *total = total.saturating_sub(bytes);
        }
    }
}

impl Store {
    /// Adds the column `bytes` to a file of a version without it. Earlier versions ignore the column.
    pub(super) fn add_bytes_column(&self) -> rusqlite::Result<()> {
        if self.db.column_exists(None, "journal_feeds", "bytes")? {
            return Ok(());
        }
        self.db.execute_batch("ALTER TABLE journal_feeds ADD COLUMN bytes INTEGER")
    }

    /// Returns the bytes of each writer. Feeds whose bytes are `NULL` are counted, and the next
    /// [`commit`](Self::commit) stores the results.
    ///
    /// # Errors
    /// The error of the database. The transaction must be rolled back.
    pub(super) fn holdings(&mut self) -> rusqlite::Result<Holdings> {
        let uncounted: Vec<i64> = {
            let mut find = self.db.prepare_cached("SELECT id FROM journal_feeds WHERE bytes IS NULL")?;
            find.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?
        };
        if !uncounted.is_empty() {
            self.begin()?;
        }
        for feed in uncounted {
            let bytes = self.bytes_up_to(feed, i64::MAX)?;
            self.db
                .prepare_cached("UPDATE journal_feeds SET bytes = ?2 WHERE id = ?1")?
                .execute(params![feed, bytes.cast_signed()])?;
        }
        let mut list =
            self.db.prepare_cached("SELECT writer, sum(bytes) FROM journal_feeds GROUP BY writer")?;
        let rows = list.query_map([], |row| {
            Ok((NodeId::from_public_key(row.get(0)?), row.get::<_, i64>(1)?.max(0).cast_unsigned()))
        })?;
        Ok(Holdings(rows.collect::<rusqlite::Result<_>>()?))
    }

    /// Returns the bytes of a feed's runs that end at `up_to` or before.
    ///
    /// # Errors
    /// The error of the database.
    pub(super) fn bytes_up_to(&self, feed: i64, up_to: i64) -> rusqlite::Result<u64> {
        let mut sum = self.db.prepare_cached(
            "SELECT coalesce(sum(length(entries)), 0) FROM journal_runs WHERE feed = ?1 AND start <= ?2 AND \"end\" <= ?2",
        )?;
        sum.query_row(params![feed, up_to], |row| row.get::<_, i64>(0)).map(|sum| sum.max(0).cast_unsigned())
    }
}
