//! File format of a topic's database: the SQL of its tables, its version, and the conversion between runs and
//! rows.

use std::time::Duration;

use hearsay_protocol::{
    NodeId, Version,
    journal::{ChainHash, EntryId, FeedId, Run, Seq, entries_from_bytes},
};
use rusqlite::{Connection, OptionalExtension, types::FromSql};

/// Version of the journal's own tables.
pub(crate) const FORMAT: i64 = 1;
/// `application_id` in the file's header: "hsay".
pub(crate) const APPLICATION_ID: i64 = 0x6873_6179;
/// How long a statement waits for the locks of other connections.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) const TABLES: &str = "
CREATE TABLE journal_meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE journal_feeds (
    id INTEGER PRIMARY KEY,
    writer BLOB NOT NULL,
    boot INTEGER NOT NULL,
    seen BLOB NOT NULL,
    latest INTEGER NOT NULL,
    dropped INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER,
    UNIQUE (writer, boot)
);
CREATE TABLE journal_runs (
    feed INTEGER NOT NULL REFERENCES journal_feeds (id),
    start INTEGER NOT NULL,
    \"end\" INTEGER NOT NULL,
    time INTEGER NOT NULL,
    before BLOB NOT NULL,
    signature BLOB NOT NULL,
    entries BLOB NOT NULL,
    UNIQUE (feed, start)
);
CREATE TABLE journal_keys (
    key TEXT PRIMARY KEY,
    time INTEGER NOT NULL,
    feed INTEGER NOT NULL REFERENCES journal_feeds (id),
    seq INTEGER NOT NULL
) WITHOUT ROWID;
";

/// Statement run at each opening, because files of versions before replica sets lack this table.
pub(crate) const REPLICAS_TABLE: &str = "CREATE TABLE IF NOT EXISTS journal_replicas
    (replica BLOB PRIMARY KEY, generation INTEGER NOT NULL) WITHOUT ROWID";

/// Returns a value from the file's settings (`journal_meta`).
///
/// # Errors
/// The error of the database.
pub(crate) fn meta<T: FromSql>(db: &Connection, name: &str) -> rusqlite::Result<Option<T>> {
    let mut find = db.prepare_cached("SELECT value FROM journal_meta WHERE name = ?1")?;
    find.query_row([name], |row| row.get(0)).optional()
}

/// Returns the run in a row; `None`: the row is damaged.
///
/// # Errors
/// The error of the database.
pub(crate) fn run_of(feed: FeedId, row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Run>> {
    let start = seq(row.get(0)?);
    let (before, signature): ([u8; 32], [u8; 64]) = match (row.get(2), row.get(3)) {
        (Ok(before), Ok(signature)) => (before, signature),
        _ => return Ok(None),
    };
    // In a damaged file even the type of the value may be wrong.
    let entries = row.get_ref(4)?.as_blob().ok().and_then(|bytes| entries_from_bytes(bytes).ok());
    let Some(entries) = entries else { return Ok(None) };
    Ok(Some(Run::from_parts((EntryId { feed, seq: start }, ChainHash(before)), entries, signature)))
}

/// Returns the feed for the columns `writer` and `boot`.
pub(crate) fn feed_of(writer: [u8; 32], boot: i64) -> FeedId {
    FeedId { writer: NodeId::from_public_key(writer), boot: boot.cast_unsigned() }
}

/// Returns an entry number as SQLite's signed integer. No feed reaches 2^63 entries.
pub(crate) fn signed(seq: Seq) -> i64 {
    i64::try_from(seq.0).unwrap_or(i64::MAX)
}

/// Returns the entry number for SQLite's signed integer.
pub(crate) fn seq(number: i64) -> Seq {
    Version(number.max(0).cast_unsigned())
}
