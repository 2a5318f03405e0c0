//! Estimates the bytes of a log record, and keeps a table of the bytes and posted records that each source
//! has in the log, by feed (the entries of one writer), for admission control.
//!
//! Records without a source, those of the node and its operator, are counted in the row of the feed, which
//! every append writes anyway.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::record::Record;

/// Estimated bytes of a record on disk, in addition to its texts: a row, a part of its run, and index
/// entries.
const RECORD_BYTES: usize = 200;
/// How often a key is stored: in the entry, in the journal's table of keys, in the plug-in's table and in its
/// index.
const KEYS: usize = 4;

/// Returns the cost of a record in bytes: its encoded entry, its key, and the texts of its row. The service
/// counts twice because it is indexed.
pub(super) fn cost_bytes(body: usize, key: Option<&str>, record: &Record, source: Option<&str>) -> u64 {
    let key = key.map_or(0, str::len);
    let service = record.service.as_deref().map_or(0, str::len);
    let texts = record.message.len() + 2 * service + source.map_or(0, str::len);
    (RECORD_BYTES + body + KEYS * key + texts) as u64
}

/// Change of the bytes and posted records in one feed, by source.
#[derive(Debug, Default)]
pub(super) struct Holdings(BTreeMap<Option<String>, (i64, i64)>);

impl Holdings {
    /// Adds to the change of a source.
    pub(super) fn add(&mut self, source: Option<String>, bytes: i64, posted: i64) {
        let held = self.0.entry(source).or_default();
        *held = (held.0.saturating_add(bytes), held.1.saturating_add(posted));
    }

    /// Returns the negative change that dropping the rows of a feed up to a sequence number makes.
    pub(super) fn of_rows(db: &Connection, feed: i64, up_to: i64) -> rusqlite::Result<Self> {
        let mut sum = db.prepare_cached(
            "SELECT source, -sum(bytes), -sum(posted) FROM log_records WHERE feed = ?1 AND seq <= ?2 GROUP BY source",
        )?;
        let rows =
            sum.query_map(params![feed, up_to], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
        Ok(Self(rows.collect::<rusqlite::Result<_>>()?))
    }

    /// Applies the change to the tables.
    pub(super) fn keep(self, db: &Connection, feed: i64) -> rusqlite::Result<()> {
        for (source, (bytes, posted)) in self.0 {
            let Some(source) = source else {
                db.prepare_cached(
                    "UPDATE log_feeds SET own_bytes = own_bytes + ?2, own_posted = own_posted + ?3 WHERE id = ?1",
                )?
                .execute(params![feed, bytes, posted])?;
                continue;
            };
            db.prepare_cached(
                "INSERT INTO log_holdings (feed, source, bytes, posted) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (feed, source) DO UPDATE SET bytes = bytes + excluded.bytes, posted = posted + excluded.posted",
            )?
            .execute(params![feed, source, bytes, posted])?;
            if bytes < 0 {
                db.prepare_cached("DELETE FROM log_holdings WHERE feed = ?1 AND source = ?2 AND bytes <= 0")?
                    .execute(params![feed, source])?;
            }
        }
        Ok(())
    }
}
