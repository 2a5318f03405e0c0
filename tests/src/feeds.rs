//! What a topic's database holds, feed by feed, in a form that can be held against another node's.
//!
//! The nodes compare which numbers they have. Whether the same number is the same entry everywhere, only somebody can tell who reads all files.

use std::{collections::BTreeMap, path::Path};

use hearsay_protocol::journal::disk::entries_from_bytes;
use rusqlite::{Connection, OpenFlags};

/// One life of one writer, as one node has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Feed {
    /// The last entry's number.
    pub last: u64,
    /// How many entries there are. Without a gap, as many as the last one's number says.
    pub entries: u64,
    /// The hash over all of them, in their order.
    pub hash: String,
}

/// All feeds of a database that no node has open, by writer and boot number.
///
/// # Panics
/// It is no journal, or an entry cannot be read.
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
