//! Verifies derived data: rebuilds keys and plug-in tables in an empty database, and compares them.
//!
//! Rows have no common order. So each row's hash is added to one of 1024 buckets, and the sums of the buckets
//! are compared. Only the rows of differing buckets are compared one by one. Equal tables of any size are
//! compared in one pass and a few kilobytes of memory.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use hearsay_protocol::journal::{EntryId, FeedId, JournalEntry, Seq};
use hearsay_services::journal::{Projection, Recorded};
use rusqlite::{Connection, Row, params, types::ValueRef};

use super::report::{Part, Progress, Report};
use crate::journal::store::{
    format::{meta, signed},
    retention::remnant,
};

/// Buckets for the row hashes of a table.
const BUCKETS: usize = 1024;
/// Maximum number of rows reported for each table, both of missing rows and of surplus rows.
const EXAMPLES: usize = 3;
/// Maximum number of characters of a row that are reported.
const ROW_CHARS_MAX: usize = 160;
/// Page cache of the reference database, in KiB.
const CACHE_KIB: i64 = 16 * 1024;

/// The plug-in's schema, indexes and triggers included.
const SCHEMA: &str = "SELECT type, name, tbl_name, sql FROM sqlite_schema
    WHERE name NOT LIKE 'journal\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
/// Tables whose content is compared. The shadow tables of virtual tables depend on the order of writing and
/// are left out.
const TABLES: &str = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table'
    AND name NOT LIKE 'journal\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name";

/// Reference: the derived data that the file should hold.
pub(super) struct Reference {
    folded: Option<Folded>,
    /// Whether entries are missing or unreadable, so that the derived data is unknown.
    pub(super) is_incomplete: bool,
}

/// The plug-in's tables, rebuilt in a temporary database.
struct Folded {
    db: Connection,
    projection: Arc<dyn Projection>,
}

impl Reference {
    /// Creates a reference without entries. `db` is the verified file, in which nothing is changed.
    pub(super) fn new(
        db: &Connection,
        projection: Option<Arc<dyn Projection>>,
        report: &mut Report,
    ) -> rusqlite::Result<Self> {
        db.execute_batch(
            "CREATE TEMP TABLE expected_keys (key, time, feed, seq, PRIMARY KEY (key, time, feed, seq)) WITHOUT ROWID",
        )?;
        let made_by = meta::<i64>(db, "projection")?;
        let folded = match projection {
            None => {
                report
                    .notes
                    .push("this program has no plug-in for it, so its tables were not compared".into());
                None
            }
            Some(projection) if made_by != Some(i64::from(projection.version())) => {
                report
                    .notes
                    .push("its tables are rebuilt at the next start, so they were not compared".into());
                None
            }
            Some(projection) => Some(Folded::new(projection)?),
        };
        Ok(Self { folded, is_incomplete: false })
    }

    /// Records the key of an entry, if it has one.
    pub(super) fn key(
        &self,
        db: &Connection,
        feed: i64,
        seq: Seq,
        entry: &JournalEntry,
    ) -> rusqlite::Result<()> {
        let Some(key) = &entry.key else { return Ok(()) };
        let mut insert =
            db.prepare_cached("INSERT OR IGNORE INTO temp.expected_keys VALUES (?1, ?2, ?3, ?4)")?;
        insert.execute(params![key, entry.time.0.cast_signed(), feed, signed(seq)])?;
        Ok(())
    }

    /// Folds an entry into the reference tables.
    pub(super) fn fold(&self, id: EntryId, entry: &JournalEntry) -> rusqlite::Result<()> {
        let Some(Folded { db, projection }) = &self.folded else { return Ok(()) };
        projection.fold(db, &Recorded::of(projection.as_ref(), id, entry))
    }

    /// Passes the remnant of a feed's entries up to `up_to`, which are dropped, to the plug-in.
    pub(super) fn remember(&self, db: &Connection, feed: FeedId, up_to: Seq) -> rusqlite::Result<()> {
        let Some(folded) = self.folded.as_ref().filter(|_| up_to > Seq::default()) else { return Ok(()) };
        let left = remnant(db, feed)?;
        folded.projection.remember(&folded.db, feed, up_to, left.as_deref())
    }

    /// Compares keys and tables with the reference, and reports differences.
    pub(super) fn compare(
        &self,
        db: &Connection,
        report: &mut Report,
        progress: &mut Progress<'_>,
    ) -> rusqlite::Result<()> {
        if self.is_incomplete {
            report.notes.push(
                "entries are missing or damaged, so keys and tables were not compared with them".into(),
            );
            return Ok(());
        }
        keys(db, report)?;
        let Some(folded) = &self.folded else { return Ok(()) };
        let compared = folded.compared()?;
        let total = compared.len() as u64;
        for (done, (name, query)) in (0..).zip(&compared) {
            progress("comparing tables", done, total);
            // The check of the structure reported unreadable tables, but not missing ones.
            match difference(db, &folded.db, query) {
                Ok(None) => (),
                Ok(Some(problem)) => report.add(Part::Tables, name, problem),
                Err(error) => report.add(Part::Tables, name, format_args!("it cannot be read: {error}")),
            }
        }
        progress("comparing tables", total, total);
        Ok(())
    }
}

/// Creates a plug-in's empty tables in a temporary database.
pub(in crate::journal) fn empty_tables(projection: &dyn Projection) -> rusqlite::Result<Connection> {
    // For an empty name, SQLite creates a temporary file that only this connection can open.
    let db = Connection::open("")?;
    db.pragma_update(None, "journal_mode", "MEMORY")?;
    db.pragma_update(None, "synchronous", "OFF")?;
    db.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // This transaction is never committed.
    db.execute_batch("BEGIN")?;
    projection.create(&db)?;
    Ok(db)
}

impl Folded {
    fn new(projection: Arc<dyn Projection>) -> rusqlite::Result<Self> {
        let db = empty_tables(projection.as_ref())?;
        Ok(Self { db, projection })
    }

    /// Returns names and queries of the data that must be equal.
    fn compared(&self) -> rusqlite::Result<Vec<(String, String)>> {
        let mut compared = vec![("schema".to_owned(), SCHEMA.to_owned())];
        if let Some(queries) = self.projection.compared() {
            compared.extend(queries.iter().map(|(name, query)| ((*name).to_owned(), (*query).to_owned())));
            return Ok(compared);
        }
        let mut tables = self.db.prepare(TABLES)?;
        let names = tables.query_map([], |row| row.get::<_, String>(0))?;
        for name in names {
            let name = name?;
            let query = format!("SELECT * FROM \"{}\"", name.replace('"', "\"\""));
            compared.push((name, query));
        }
        Ok(compared)
    }
}

/// Reports keys that do not lead to the earliest entry with that key. Keys of dropped entries may remain.
fn keys(db: &Connection, report: &mut Report) -> rusqlite::Result<()> {
    let kept =
        "FROM journal_keys k LEFT JOIN journal_feeds f ON f.id = k.feed WHERE k.seq > coalesce(f.dropped, 0)";
    let checks = [
        (
            "it leads to an entry that does not carry it",
            format!(
                "SELECT k.key {kept} AND NOT EXISTS (SELECT 1 FROM temp.expected_keys e
                 WHERE e.key = k.key AND e.time = k.time AND e.feed = k.feed AND e.seq = k.seq)"
            ),
        ),
        (
            "an earlier entry carries it, too",
            format!(
                "SELECT k.key {kept} AND k.time > (SELECT min(e.time) FROM temp.expected_keys e WHERE e.key = k.key)"
            ),
        ),
        (
            "an entry carries it, and it leads nowhere",
            // In a feed with dropped entries, the key may have led to an earlier, dropped entry.
            "SELECT DISTINCT e.key FROM temp.expected_keys e
             WHERE NOT EXISTS (SELECT 1 FROM journal_keys k WHERE k.key = e.key)
             AND NOT EXISTS (SELECT 1 FROM journal_feeds WHERE dropped > 0)"
                .to_owned(),
        ),
    ];
    for (problem, query) in checks {
        let mut find = db.prepare(&query)?;
        let mut rows = find.query([])?;
        while let Some(row) = rows.next()? {
            report.add(Part::Keys, shown(row.get_ref(0)?), problem);
        }
    }
    Ok(())
}

/// A multiset of rows, for comparison without order.
struct Digest {
    rows: u64,
    buckets: Vec<u128>,
}

fn digest(db: &Connection, query: &str) -> rusqlite::Result<Digest> {
    let mut digest = Digest { rows: 0, buckets: vec![0; BUCKETS] };
    each(db, query, |hash, _| {
        digest.rows += 1;
        let sum = &mut digest.buckets[bucket(hash)];
        *sum = sum.wrapping_add(hash);
        Ok(())
    })?;
    Ok(digest)
}

fn bucket(hash: u128) -> usize {
    (hash % BUCKETS as u128) as usize
}

fn each(
    db: &Connection,
    query: &str,
    mut look: impl FnMut(u128, &Row<'_>) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut query = db.prepare(query)?;
    let columns = query.column_count();
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        look(hash(row, columns)?, row)?;
    }
    Ok(())
}

/// Returns the hash of the types and values of all columns.
fn hash(row: &Row<'_>, columns: usize) -> rusqlite::Result<u128> {
    let mut hasher = blake3::Hasher::new();
    for column in 0..columns {
        let (kind, number, bytes) = match row.get_ref(column)? {
            ValueRef::Null => (0, 0, &[][..]),
            ValueRef::Integer(number) => (1, number.cast_unsigned(), &[][..]),
            ValueRef::Real(number) => (2, number.to_bits(), &[][..]),
            ValueRef::Text(text) => (3, text.len() as u64, text),
            ValueRef::Blob(blob) => (4, blob.len() as u64, blob),
        };
        hasher.update(&[kind]).update(&number.to_le_bytes()).update(bytes);
    }
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Ok(u128::from_le_bytes(half))
}

/// Describes the differences of a query's rows from those expected.
fn difference(db: &Connection, expected: &Connection, query: &str) -> rusqlite::Result<Option<String>> {
    let (here, there) = (digest(db, query)?, digest(expected, query)?);
    let differs = |bucket: &usize| here.buckets[*bucket] != there.buckets[*bucket];
    let differing: Vec<usize> = (0..BUCKETS).filter(differs).take(EXAMPLES).collect();
    if differing.is_empty() {
        return Ok(None);
    }
    let mut odd: BTreeMap<u128, (i64, String)> = BTreeMap::new();
    for (db, one) in [(expected, 1), (db, -1)] {
        each(db, query, |hash, row| {
            if differing.contains(&bucket(hash)) {
                let (count, text) = odd.entry(hash).or_default();
                *count += one;
                if text.is_empty() {
                    *text = shown_row(row)?;
                }
            }
            Ok(())
        })?;
    }
    let mut problem = format!("it has {} rows, and {} follow from the entries", here.rows, there.rows);
    let mut describe = |what: &str, is: fn(i64) -> bool| {
        for (_, text) in odd.values().filter(|(count, _)| is(*count)).take(EXAMPLES) {
            // Writing to a String cannot fail.
            _ = write!(problem, "; {what}: {text}");
        }
    };
    describe("missing", |count| count > 0);
    describe("too much", |count| count < 0);
    Ok(Some(problem))
}

fn shown_row(row: &Row<'_>) -> rusqlite::Result<String> {
    let names = row.as_ref().column_names().enumerate();
    let mut cells = Vec::new();
    for (column, name) in names {
        cells.push(format!("{name}={}", shown(row.get_ref(column)?)));
    }
    let text = cells.join(" ");
    Ok(match text.char_indices().nth(ROW_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    })
}

/// Formats a value for people.
fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "NULL".into(),
        ValueRef::Integer(number) => number.to_string(),
        ValueRef::Real(number) => number.to_string(),
        ValueRef::Text(text) => format!("{:?}", String::from_utf8_lossy(text)),
        ValueRef::Blob(blob) => {
            let hex = blob.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>();
            if blob.len() > 8 { format!("x'{hex}…'") } else { format!("x'{hex}'") }
        }
    }
}
