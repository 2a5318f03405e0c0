//! Projection of the log ([`Tables`]): folds journal entries into SQL tables of records, feeds and keys,
//! hides repeated records, keeps a full-text index, and removes dropped entries.
//!
//! Each record is a row. Row numbers follow the order of arrival, never change and are never reused, so that
//! a reader can resume by them. Everything else (order of time, offsets, hidden duplicates) is computed from
//! the entries alone. It is the same on every node, and does not depend on the order of arrival.
//!
//! SQLite's full-text index writes a segment for each transaction, which would cost more than the rest of an
//! append. So rows are indexed a few hundred at a time, in the transaction of the last of them. A search
//! scans the newest rows separately (`search`).

use std::{sync::Arc, time::Duration};

use hearsay_protocol::journal::HybridTime;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    holdings::{Holdings, cost_bytes},
    integers::{signed, sortable, unsortable},
    offsets,
    recent::RecentOffsets,
    record::{Level, Record, StoredRecord},
};
use crate::journal::{EntryId, FeedId, Projection, Recorded, Retention, Seq};

/// Default retention: 30 days, and at most 1 GiB.
pub const LOG_RETENTION_DEFAULT: Retention =
    Retention { age: Some(Duration::from_secs(30 * 24 * 3600)), bytes: Some(1 << 30) };
/// Version of the tables. Raise it with every change of their schema or contents.
const VERSION: u32 = 3;
/// Rows that are indexed together. A search scans half of this number on average.
pub(super) const INDEX_EVERY: i64 = 512;
/// Segments of the index that are merged into one. SQLite's default of 4 copies each word twice as often in a
/// log of a million records. A larger number makes searches and single merges slower. Measured: 8 has the
/// most appends per second and the shortest p99.
const MERGED: i64 = 8;
/// A row with a longer message triggers indexing, so that the rows that are not indexed stay small.
const INDEX_AT_BYTES: usize = 4096;
/// Tokenizer: words are letters and digits of any script, compared without accents and case.
pub(super) const TOKENIZER: &str = "unicode61 remove_diacritics 2";

/// Columns of the index. It includes the service, so that a search in one service skips the records of
/// others.
pub(super) const INDEXED: &str = "id, message, coalesce(service, '')";

const TABLES: &str = "
CREATE TABLE log_meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
INSERT INTO log_meta VALUES ('made', lower(hex(randomblob(4)))), ('indexed', 0), ('dropped', 0);
CREATE TABLE log_feeds (
    id INTEGER PRIMARY KEY,
    writer BLOB NOT NULL,
    boot INTEGER NOT NULL,
    first INTEGER NOT NULL,
    next INTEGER NOT NULL,
    posted INTEGER NOT NULL,
    early INTEGER NOT NULL,
    exact INTEGER NOT NULL,
    own_bytes INTEGER NOT NULL DEFAULT 0,
    own_posted INTEGER NOT NULL DEFAULT 0,
    UNIQUE (writer, boot)
);
CREATE TABLE log_holdings (
    feed INTEGER NOT NULL,
    source TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    posted INTEGER NOT NULL,
    PRIMARY KEY (feed, source)
) WITHOUT ROWID;
CREATE TABLE log_early (feed INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (feed, seq)) WITHOUT ROWID;
CREATE TABLE log_records (
    id INTEGER PRIMARY KEY,
    feed INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    time INTEGER NOT NULL,
    posted INTEGER NOT NULL,
    before INTEGER,
    hidden INTEGER NOT NULL,
    level INTEGER NOT NULL,
    said INTEGER,
    service TEXT,
    node TEXT NOT NULL,
    message TEXT NOT NULL,
    raw BLOB,
    source TEXT,
    bytes INTEGER NOT NULL
);
CREATE UNIQUE INDEX log_by_name ON log_records (feed, seq);
CREATE INDEX log_by_time ON log_records (time);
CREATE INDEX log_by_service ON log_records (service, time) WHERE service IS NOT NULL;
CREATE INDEX log_warnings ON log_records (time) WHERE level >= 4;
CREATE TABLE log_keys (key TEXT NOT NULL, record INTEGER NOT NULL, PRIMARY KEY (key, record)) WITHOUT ROWID;
";

/// Queries with the same result on all nodes that have the same entries. Rows are identified by their
/// entries. Offsets are compared relative to the feed's first remaining record: only nodes that received the
/// dropped records know how many came before it.
const COMPARED: &[(&str, &str)] = &[
    (
        "log_records",
        "SELECT f.writer, f.boot, r.seq, r.time, r.posted, r.before - min(r.before) OVER (PARTITION BY r.feed) AS before,
         r.hidden, r.level, r.said, r.service, r.node, r.message, r.raw, r.source, r.bytes FROM log_records r LEFT JOIN log_feeds f ON f.id = r.feed",
    ),
    ("log_feeds", "SELECT writer, boot, next, early, own_bytes, own_posted FROM log_feeds"),
    (
        "log_holdings",
        "SELECT f.writer, f.boot, h.source, h.bytes, h.posted FROM log_holdings h LEFT JOIN log_feeds f ON f.id = h.feed",
    ),
    ("log_early", "SELECT f.writer, f.boot, e.seq FROM log_early e LEFT JOIN log_feeds f ON f.id = e.feed"),
    (
        "log_keys",
        "SELECT k.key, f.writer, f.boot, r.seq FROM log_keys k LEFT JOIN log_records r ON r.id = k.record
         LEFT JOIN log_feeds f ON f.id = r.feed",
    ),
];

/// Projection of the log.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    retention: Retention,
    recent: Arc<RecentOffsets>,
}

impl Default for Tables {
    fn default() -> Self {
        Self::keeping(LOG_RETENTION_DEFAULT)
    }
}

impl Tables {
    /// A projection with this retention.
    pub(super) fn keeping(retention: Retention) -> Self {
        Self { retention, recent: Arc::default() }
    }

    /// Returns the offsets of the newest entries.
    pub(super) fn recent(&self) -> Arc<RecentOffsets> {
        Arc::clone(&self.recent)
    }
}

impl Projection for Tables {
    fn version(&self) -> u32 {
        VERSION
    }

    fn create(&self, db: &Connection) -> rusqlite::Result<()> {
        self.recent.clear();
        db.execute_batch(TABLES)?;
        // The index has no copy of the texts, which are in the rows.
        db.execute_batch(&format!(
            "CREATE VIRTUAL TABLE log_search USING fts5(message, service, content='', columnsize=0, tokenize='{TOKENIZER}');
             INSERT INTO log_search (log_search, rank) VALUES ('automerge', {MERGED})"
        ))
    }

    fn fold(&self, db: &Connection, entry: &Recorded<'_>) -> rusqlite::Result<()> {
        self.fold_all(db, std::slice::from_ref(entry))
    }

    fn fold_all(&self, db: &Connection, entries: &[Recorded<'_>]) -> rusqlite::Result<()> {
        let (Some(first), Some(time)) = (entries.first(), entries.iter().map(|entry| entry.time).min())
        else {
            return Ok(());
        };
        let mut feed = offsets::find_or_insert_feed(db, first.id.feed, time)?;
        let newest = newest(db)?;
        let (mut row, mut has_long) = (newest, false);
        let mut holdings = Holdings::default();
        for entry in entries {
            let stored = StoredRecord::from_body(entry.body);
            let is_posted = stored.as_ref().is_some_and(|stored| !stored.is_event);
            let before = feed.count(db, entry.id.seq, is_posted)?;
            self.recent.note_entry(entry.id, before.filter(|_| is_posted));
            let Some(stored) = stored else { continue };
            row += 1;
            let bytes = insert(db, (row, feed.id), entry, before, &stored)?;
            holdings.add(stored.source, bytes, i64::from(is_posted));
            if let Some(key) = entry.key {
                join_equals(db, key, row)?;
            }
            has_long |= stored.record.message.len() > INDEX_AT_BYTES;
        }
        if has_long || row / INDEX_EVERY > newest / INDEX_EVERY {
            index(db, row)?;
        }
        holdings.keep(db, feed.id)?;
        feed.save_counts(db)
    }

    fn compared(&self) -> Option<&'static [(&'static str, &'static str)]> {
        Some(COMPARED)
    }

    fn retention(&self) -> Retention {
        self.retention
    }

    fn dropped(&self, db: &Connection, feed: FeedId, up_to: Seq) -> rusqlite::Result<Option<Vec<u8>>> {
        self.recent.dropped(feed);
        let feed = offsets::drop_entries(db, feed, up_to)?;
        let range = params![feed, signed(up_to)];
        // The FTS index stores no texts, so deleting a row from it requires passing the row's text again.
        db.prepare_cached(&format!(
            "INSERT INTO log_search (log_search, rowid, message, service)
             SELECT 'delete', {INDEXED} FROM log_records WHERE feed = ?1 AND seq <= ?2
             AND id <= (SELECT value FROM log_meta WHERE name = 'indexed')"
        ))?
        .execute(range)?;
        db.prepare_cached(
            "UPDATE log_meta SET value = max(value, coalesce((SELECT max(id) FROM log_records WHERE feed = ?1 AND seq <= ?2), 0))
             WHERE name = 'dropped'",
        )?
        .execute(range)?;
        Holdings::of_rows(db, feed, signed(up_to))?.keep(db, feed)?;
        let mut widows: Vec<(String, i64)> = Vec::new();
        {
            let mut keyed = db.prepare_cached(
                "SELECT k.key, r.id FROM log_keys k JOIN log_records r ON r.id = k.record WHERE k.record IN
                 (SELECT id FROM log_records WHERE feed = ?1 AND seq <= ?2)",
            )?;
            let mut rows = keyed.query(range)?;
            while let Some(row) = rows.next()? {
                widows.push((row.get(0)?, row.get(1)?));
            }
        }
        for (key, record) in &widows {
            db.prepare_cached("DELETE FROM log_keys WHERE key = ?1 AND record = ?2")?
                .execute(params![key, record])?;
        }
        db.prepare_cached("DELETE FROM log_records WHERE feed = ?1 AND seq <= ?2")?.execute(range)?;
        for (key, _) in &widows {
            let left: Vec<i64> = db
                .prepare_cached("SELECT record FROM log_keys WHERE key = ?1")?
                .query_map([key], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            left.into_iter().try_for_each(|record| show_first(db, key, record))?;
        }
        // Serialising three numbers cannot fail. If it did, the node would only lose the offsets, like a node
        // that never had the entries.
        Ok(serde_json::to_vec(&offsets::remnant(db, feed, up_to)?).ok())
    }

    fn remember(
        &self,
        db: &Connection,
        feed: FeedId,
        up_to: Seq,
        remnant: Option<&[u8]>,
    ) -> rusqlite::Result<()> {
        self.recent.dropped(feed);
        // An unreadable remnant counts as a missing one.
        let remnant = remnant.and_then(|bytes| serde_json::from_slice(bytes).ok());
        offsets::restore_feed(db, feed, up_to, remnant)
    }
}

/// Inserts the row of a record. Returns its cost in bytes.
fn insert(
    db: &Connection,
    (row, feed): (i64, i64),
    entry: &Recorded<'_>,
    before: Option<i64>,
    stored: &StoredRecord,
) -> rusqlite::Result<i64> {
    let Record { level, service, time_ms, message } = &stored.record;
    let text = String::from_utf8_lossy(message);
    // The bytes are stored only if the message is not UTF-8.
    let raw = matches!(text, std::borrow::Cow::Owned(_)).then_some(message);
    let mut insert = db.prepare_cached(
        "INSERT INTO log_records (id, feed, seq, time, posted, before, hidden, level, said, service, node, message, raw, source, bytes)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )?;
    let bytes = cost_bytes(entry.body.len(), entry.key, &stored.record, stored.source.as_deref());
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    insert.execute(params![
        row,
        feed,
        signed(entry.id.seq),
        sortable(entry.time.0),
        !stored.is_event,
        before,
        *level as u8,
        time_ms.map(u64::cast_signed),
        service,
        stored.node,
        text,
        raw,
        stored.source,
        bytes,
    ])?;
    Ok(bytes)
}

/// Adds a record to those with the same key, and hides duplicates. Records with the same key but different
/// content are all shown: each side of a partition may have acknowledged one, and neither may be lost.
fn join_equals(db: &Connection, key: &str, record: i64) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT INTO log_keys (key, record) VALUES (?1, ?2)")?.execute(params![key, record])?;
    let mut others =
        db.prepare_cached("SELECT EXISTS (SELECT 1 FROM log_keys WHERE key = ?1 AND record <> ?2)")?;
    if others.query_row(params![key, record], |row| row.get(0))? {
        show_first(db, key, record)
    } else {
        Ok(())
    }
}

/// Shows the earliest of the records that are equal to this one, and hides the others.
fn show_first(db: &Connection, key: &str, record: i64) -> rusqlite::Result<()> {
    let mut find = db.prepare_cached(
        "SELECT b.id FROM log_records a
         JOIN log_keys k ON k.key = ?1
         JOIN log_records b ON b.id = k.record
         JOIN log_feeds f ON f.id = b.feed
         WHERE a.id = ?2 AND b.message = a.message AND b.raw IS a.raw AND b.level = a.level
           AND b.service IS a.service AND b.said IS a.said AND b.posted = a.posted
         ORDER BY b.time, f.writer, f.boot, b.seq",
    )?;
    let equals: Vec<i64> =
        find.query_map(params![key, record], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let mut hide = db.prepare_cached("UPDATE log_records SET hidden = ?2 WHERE id = ?1 AND hidden <> ?2")?;
    for (place, id) in equals.into_iter().enumerate() {
        hide.execute(params![id, place > 0])?;
    }
    Ok(())
}

/// Returns the record of an entry as it was stored; `None` if it is not here.
pub(super) fn stored(db: &Connection, id: EntryId) -> rusqlite::Result<Option<StoredRecord>> {
    let mut find = db.prepare_cached(
        "SELECT r.level, r.service, r.said, coalesce(r.raw, CAST(r.message AS BLOB)), r.node, r.posted, r.source
         FROM log_records r JOIN log_feeds f ON f.id = r.feed WHERE f.writer = ?1 AND f.boot = ?2 AND r.seq = ?3",
    )?;
    let name = params![id.feed.writer.public_key(), sortable(id.feed.boot), signed(id.seq)];
    let read = |row: &rusqlite::Row<'_>| {
        let record = Record {
            level: Level::from_number(row.get(0)?),
            service: row.get(1)?,
            time_ms: row.get::<_, Option<i64>>(2)?.map(i64::cast_unsigned),
            message: row.get(3)?,
        };
        let is_event = !row.get::<_, bool>(5)?;
        Ok(StoredRecord { record, node: row.get(4)?, is_event, source: row.get(6)? })
    };
    find.query_row(name, read).optional()
}

/// Indexes all rows up to this one.
fn index(db: &Connection, up_to: i64) -> rusqlite::Result<()> {
    let mut fill = db.prepare_cached(&format!(
        "INSERT INTO log_search (rowid, message, service) SELECT {INDEXED} FROM log_records
         WHERE id > (SELECT value FROM log_meta WHERE name = 'indexed') AND id <= ?1"
    ))?;
    fill.execute([up_to])?;
    db.prepare_cached("UPDATE log_meta SET value = ?1 WHERE name = 'indexed'")?.execute([up_to])?;
    Ok(())
}

/// Returns the last indexed row.
pub(super) fn indexed(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT value FROM log_meta WHERE name = 'indexed'")?.query_row([], |row| row.get(0))
}

/// Returns the highest row number ever used, including dropped rows, or 0. Counting on from it never reuses a
/// number. (`AUTOINCREMENT` gives the same guarantee, but writes one more page for each row.)
pub(super) fn newest(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached(
        "SELECT max(coalesce((SELECT max(id) FROM log_records), 0), (SELECT value FROM log_meta WHERE name = 'dropped'))",
    )?
    .query_row([], |row| row.get(0))
}

/// Returns the identity of these tables. Row numbers of other tables have no meaning here.
pub(super) fn tables_id(db: &Connection) -> rusqlite::Result<String> {
    db.prepare_cached("SELECT value FROM log_meta WHERE name = 'made'")?.query_row([], |row| row.get(0))
}

/// Columns of `log_records r` that [`Row::read`] reads.
pub(super) const COLUMNS: &str = "r.id, r.feed, r.seq, r.time, r.posted, r.before, r.hidden, r.level, r.said, r.service, r.node, r.message";

/// A row of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) feed: i64,
    pub(super) seq: i64,
    /// Time of the entry.
    pub(super) time: HybridTime,
    pub(super) is_posted: bool,
    /// Records posted before this one in its feed, if known.
    pub(super) before: Option<i64>,
    /// Whether an equal record is shown instead of this one.
    pub(super) is_hidden: bool,
    pub(super) level: Level,
    /// Time that the client stated.
    pub(super) stated_ms: Option<u64>,
    pub(super) service: Option<String>,
    pub(super) node: String,
    pub(super) message: String,
}

impl Row {
    /// Reads the [`COLUMNS`].
    pub(super) fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            feed: row.get(1)?,
            seq: row.get(2)?,
            time: HybridTime(unsortable(row.get(3)?)),
            is_posted: row.get(4)?,
            before: row.get(5)?,
            is_hidden: row.get(6)?,
            level: Level::from_number(row.get(7)?),
            stated_ms: row.get::<_, Option<i64>>(8)?.map(i64::cast_unsigned),
            service: row.get(9)?,
            node: row.get(10)?,
            message: row.get(11)?,
        })
    }
}
