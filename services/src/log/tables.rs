//! What the log makes of its entries.
//!
//! A row for each record, in the order in which they *arrived here*: its number never changes, and a later one is always higher. That is
//! what a reader resumes by, because in the order of time a record may come late. All else (the order of time, offsets, which of two
//! equal writes shows) is computed from the entries alone, so it is the same on every node, in whatever order they came.
//!
//! Words are indexed a few hundred rows at a time. SQLite's full-text index writes a segment for each transaction that adds to it, which for a
//! single record would cost more than everything else together; so the last few rows are not in the index, and a search looks through
//! those by itself (`search`). The index is still part of the same transactions as the rows.

use std::sync::Arc;

use hearsay_protocol::journal::clock::HybridTime;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    KEPT, numbers,
    recent::Recent,
    record::{Level, Said, Stored},
};
use crate::journal::{EntryId, FeedId, Projection, Recorded, Retention, Seq};

/// Raise it with every change of these tables or of what is put into them.
const VERSION: u32 = 2;
/// Rows that are put into the full-text index together. Half of it is what a search has to look through by itself, on average.
pub(super) const INDEX_EVERY: i64 = 512;
/// Segments of the index that are merged into one. SQLite's default of 4 copies each word twice as often in a log of a million records; with more, a
/// search looks into more of them, and a merge takes longer at once. Measured: 8 appends most, and has the shortest p99.
const MERGED: i64 = 8;
/// A row with a longer message makes everything before it be indexed at once, so that what is not indexed stays small.
const INDEX_AT_BYTES: usize = 4096;
/// How words are told apart: letters and digits of any script, without accents and case.
pub(super) const TOKENIZER: &str = "unicode61 remove_diacritics 2";

/// What of a row is indexed: with its service, so that a search for words of one need not look at all the others.
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
    UNIQUE (writer, boot)
);
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
    raw BLOB
);
CREATE UNIQUE INDEX log_by_name ON log_records (feed, seq);
CREATE INDEX log_by_time ON log_records (time);
CREATE INDEX log_by_service ON log_records (service, time) WHERE service IS NOT NULL;
CREATE INDEX log_warnings ON log_records (time) WHERE level >= 4;
CREATE TABLE log_keys (key TEXT NOT NULL, record INTEGER NOT NULL, PRIMARY KEY (key, record)) WITHOUT ROWID;
";

/// What is the same on every node that has the same entries: rows by the names of their entries, and offsets within a feed only as far as the
/// distance goes, because how many records were dropped before the first that is kept, only those know that had them.
const COMPARED: &[(&str, &str)] = &[
    (
        "log_records",
        "SELECT f.writer, f.boot, r.seq, r.time, r.posted, r.before - min(r.before) OVER (PARTITION BY r.feed) AS before,
         r.hidden, r.level, r.said, r.service, r.node, r.message, r.raw FROM log_records r LEFT JOIN log_feeds f ON f.id = r.feed",
    ),
    ("log_feeds", "SELECT writer, boot, next, early FROM log_feeds"),
    ("log_early", "SELECT f.writer, f.boot, e.seq FROM log_early e LEFT JOIN log_feeds f ON f.id = e.feed"),
    (
        "log_keys",
        "SELECT k.key, f.writer, f.boot, r.seq FROM log_keys k LEFT JOIN log_records r ON r.id = k.record
         LEFT JOIN log_feeds f ON f.id = r.feed",
    ),
];

/// Numbers that sort as those without a sign do, though SQLite's have one.
pub(super) fn sortable(number: u64) -> i64 {
    (number ^ (1 << 63)).cast_signed()
}

/// The inverse of [`sortable`].
pub(super) fn unsortable(number: i64) -> u64 {
    number.cast_unsigned() ^ (1 << 63)
}

/// Sequence numbers, as SQLite keeps them. No feed will ever have more.
pub(super) fn signed(seq: Seq) -> i64 {
    i64::try_from(seq.0).unwrap_or(i64::MAX)
}

/// The log's tables.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    retention: Retention,
    recent: Arc<Recent>,
}

impl Default for Tables {
    fn default() -> Self {
        Self::keeping(KEPT)
    }
}

impl Tables {
    /// Tables whose records are kept so long.
    pub(super) fn keeping(retention: Retention) -> Self {
        Self { retention, recent: Arc::default() }
    }

    /// The offsets of what was folded last.
    pub(super) fn recent(&self) -> Arc<Recent> {
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
        // Without the texts, which stand in the rows.
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
        let mut feed = numbers::feed(db, first.id.feed, time)?;
        let newest = newest(db)?;
        let (mut row, mut has_long) = (newest, false);
        for entry in entries {
            let stored = Stored::from_body(entry.body);
            let is_posted = stored.as_ref().is_some_and(|stored| !stored.is_event);
            let before = feed.count(db, entry.id.seq, is_posted)?;
            self.recent.folded(entry.id, before.filter(|_| is_posted));
            let Some(stored) = stored else { continue };
            row += 1;
            insert(db, (row, feed.id), entry, before, &stored)?;
            if let Some(key) = entry.key {
                join_equals(db, key, row)?;
            }
            has_long |= stored.said.message.len() > INDEX_AT_BYTES;
        }
        if has_long || row / INDEX_EVERY > newest / INDEX_EVERY {
            index(db, row)?;
        }
        feed.counted(db)
    }

    fn compared(&self) -> Option<&'static [(&'static str, &'static str)]> {
        Some(COMPARED)
    }

    fn retention(&self) -> Retention {
        self.retention
    }

    fn dropped(&self, db: &Connection, feed: FeedId, up_to: Seq) -> rusqlite::Result<Option<Vec<u8>>> {
        self.recent.dropped(feed);
        let feed = numbers::forget(db, feed, up_to)?;
        let range = params![feed, signed(up_to)];
        // A table without texts has to be told the words that it is to forget.
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
        // Three numbers always serialise; should they not, the others are numbered as on a node that never had these.
        Ok(serde_json::to_vec(&numbers::remnant(db, feed, up_to)?).ok())
    }

    fn remember(
        &self,
        db: &Connection,
        feed: FeedId,
        up_to: Seq,
        remnant: Option<&[u8]>,
    ) -> rusqlite::Result<()> {
        self.recent.dropped(feed);
        // What cannot be read is as good as not there.
        let remnant = remnant.and_then(|bytes| serde_json::from_slice(bytes).ok());
        numbers::remember(db, feed, up_to, remnant)
    }
}

/// Adds a row of this number, of a feed.
fn insert(
    db: &Connection,
    (row, feed): (i64, i64),
    entry: &Recorded<'_>,
    before: Option<i64>,
    stored: &Stored,
) -> rusqlite::Result<()> {
    let Said { level, service, time_ms, message } = &stored.said;
    let text = String::from_utf8_lossy(message);
    // Only what is no text is kept as it is, too.
    let raw = matches!(text, std::borrow::Cow::Owned(_)).then_some(message);
    let mut insert = db.prepare_cached(
        "INSERT INTO log_records (id, feed, seq, time, posted, before, hidden, level, said, service, node, message, raw)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?;
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
    ])?;
    Ok(())
}

/// A keyed record is one of its equals: of those, the earliest shows. (Under one key but with another content it is something else that somebody
/// was told is kept: each side of a partition may take one, and neither may be lost.)
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

/// Of the records that equal this one, shows the earliest and hides the others.
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

/// The record of an entry, as it was written; `None`: it is not here.
pub(super) fn stored(db: &Connection, id: EntryId) -> rusqlite::Result<Option<Stored>> {
    let mut find = db.prepare_cached(
        "SELECT r.level, r.service, r.said, coalesce(r.raw, CAST(r.message AS BLOB)), r.node, r.posted
         FROM log_records r JOIN log_feeds f ON f.id = r.feed WHERE f.writer = ?1 AND f.boot = ?2 AND r.seq = ?3",
    )?;
    let name = params![id.feed.writer.public_key(), sortable(id.feed.boot), signed(id.seq)];
    let read = |row: &rusqlite::Row<'_>| {
        let said = Said {
            level: Level::from_number(row.get(0)?),
            service: row.get(1)?,
            time_ms: row.get::<_, Option<i64>>(2)?.map(i64::cast_unsigned),
            message: row.get(3)?,
        };
        Ok(Stored { said, node: row.get(4)?, is_event: !row.get::<_, bool>(5)? })
    };
    find.query_row(name, read).optional()
}

/// Puts all rows up to this one into the full-text index.
fn index(db: &Connection, up_to: i64) -> rusqlite::Result<()> {
    let mut fill = db.prepare_cached(&format!(
        "INSERT INTO log_search (rowid, message, service) SELECT {INDEXED} FROM log_records
         WHERE id > (SELECT value FROM log_meta WHERE name = 'indexed') AND id <= ?1"
    ))?;
    fill.execute([up_to])?;
    db.prepare_cached("UPDATE log_meta SET value = ?1 WHERE name = 'indexed'")?.execute([up_to])?;
    Ok(())
}

/// Up to which row words are indexed.
pub(super) fn indexed(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT value FROM log_meta WHERE name = 'indexed'")?.query_row([], |row| row.get(0))
}

/// The number of the newest row, also of one that was dropped; 0 without any. So no number is given twice, also where the newest are dropped first.
/// (`AUTOINCREMENT` promises the same, and writes a page of its own for each row.)
pub(super) fn newest(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached(
        "SELECT max(coalesce((SELECT max(id) FROM log_records), 0), (SELECT value FROM log_meta WHERE name = 'dropped'))",
    )?
    .query_row([], |row| row.get(0))
}

/// Which tables these are: row numbers of others mean nothing here.
pub(super) fn made(db: &Connection) -> rusqlite::Result<String> {
    db.prepare_cached("SELECT value FROM log_meta WHERE name = 'made'")?.query_row([], |row| row.get(0))
}

/// Columns that [`Row::read`] takes, of `log_records r`.
pub(super) const COLUMNS: &str = "r.id, r.feed, r.seq, r.time, r.posted, r.before, r.hidden, r.level, r.said, r.service, r.node, r.message";

/// A row, as it is listed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) feed: i64,
    pub(super) seq: i64,
    /// When it was written.
    pub(super) time: HybridTime,
    pub(super) is_posted: bool,
    /// How many records of its feed were posted before it, where that is known.
    pub(super) before: Option<i64>,
    /// An equal one shows in its place.
    pub(super) is_hidden: bool,
    pub(super) level: Level,
    /// When it happened, if somebody said so.
    pub(super) said_ms: Option<u64>,
    pub(super) service: Option<String>,
    pub(super) node: String,
    pub(super) message: String,
}

impl Row {
    /// Reads [`COLUMNS`].
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
            said_ms: row.get::<_, Option<i64>>(8)?.map(i64::cast_unsigned),
            service: row.get(9)?,
            node: row.get(10)?,
            message: row.get(11)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_order_in_the_database() {
        let numbers = [0, 1, (1 << 63) - 1, 1 << 63, u64::MAX];
        assert!(numbers.windows(2).all(|w| sortable(w[0]) < sortable(w[1])));
        assert!(numbers.iter().all(|n| unsortable(sortable(*n)) == *n));
    }
}
