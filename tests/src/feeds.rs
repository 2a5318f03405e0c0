//! Reads a topic's database into [`Feed`]s, a form that tests compare between nodes.
//!
//! Nodes compare only the numbers of entries. A test that reads all databases finds out whether entries with
//! equal numbers are equal.

use std::{collections::BTreeMap, path::Path};

use hearsay_protocol::journal::entries_from_bytes;
use rusqlite::{Connection, OpenFlags};

/// One feed, as stored by one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Feed {
    /// Number of the last entry.
    pub last: u64,
    /// Number of entries. It equals the last number if the feed has no gap.
    pub entries: u64,
    /// Hash over all entries in order.
    pub hash: String,
}

/// Reads all feeds of a database, by writer and boot number. No node may have the database open.
///
/// # Panics
/// The database is not a journal, or an entry cannot be read.
pub fn feeds(path: &Path) -> BTreeMap<String, Feed> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("a database");
    let mut runs = db
        .prepare(
            "SELECT hex(f.writer), f.boot, r.start, r.entries FROM journal_runs r
             JOIN journal_feeds f ON f.id = r.feed ORDER BY f.writer, f.boot, r.start",
        )
        .expect("a journal");
    let mut rows = runs.query([]).expect("a journal");
    let mut feeds: BTreeMap<String, BTreeMap<u64, String>> = BTreeMap::new();
    while let Some(row) = rows.next().expect("a readable journal") {
        let column = |i| row.get::<_, i64>(i).expect("a number");
        let writer: String = row.get(0).expect("a writer");
        let bytes: Vec<u8> = row.get(3).expect("entries");
        let entries = entries_from_bytes(&bytes).expect("readable entries");
        let feed = feeds.entry(format!("{writer}-{:016x}", column(1))).or_default();
        for (seq, entry) in (column(2).unsigned_abs()..).zip(entries) {
            let hash = format!("{entry:?}");
            let before = feed.insert(seq, hash.clone());
            assert!(
                before.is_none_or(|before| before == hash),
                "{path:?}: two entries under the number {seq}"
            );
        }
    }
    let close = |entries: BTreeMap<u64, String>| {
        let mut hasher = blake3::Hasher::new();
        entries.iter().for_each(|(seq, entry)| _ = hasher.update(format!("{seq} {entry}\n").as_bytes()));
        Feed {
            last: entries.keys().next_back().copied().unwrap_or_default(),
            entries: entries.len() as u64,
            hash: hasher.finalize().to_hex().to_string(),
        }
    };
    feeds.into_iter().map(|(name, entries)| (name, close(entries))).collect()
}
