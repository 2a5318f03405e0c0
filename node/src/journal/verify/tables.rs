//! What follows from the entries: the keys, and the plug-in's tables, made once more in an empty database and compared.
//!
//! Rows have no order that is the same everywhere, so what is compared is the sum of their hashes, in a thousand parts. Only where a part differs,
//! its rows are looked at one by one. So a table of any size is compared in one pass and a few kilobytes.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use hearsay_protocol::journal::feed::{Entry, EntryId, FeedId, Seq};
use hearsay_services::journal::{Projection, Recorded};
use rusqlite::{Connection, Row, params, types::ValueRef};

use super::{Part, Report, Tell, meta};
use crate::journal::store::{remnant, signed};

/// Parts that a table is compared in.
const BUCKETS: usize = 1024;
/// Rows that differ and are shown, of each table and each side; and keys.
const EXAMPLES: usize = 3;
/// Characters that are shown of a row.
const ROW_CHARS_MAX: usize = 160;
/// Pages in the cache of the database that is made anew, in KiB.
const CACHE_KIB: i64 = 16 * 1024;

/// What makes the plug-in's tables is part of them: indexes, triggers.
const SCHEMA: &str = "SELECT type, name, tbl_name, sql FROM sqlite_schema
    WHERE name NOT LIKE 'journal\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
/// Tables with contents of their own. What a virtual one keeps in others is its own business, and depends on the order of writing.
const TABLES: &str = "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type = 'table'
    AND name NOT LIKE 'journal\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name";

/// What should be in the file.
pub(super) struct Reference {
    folded: Option<Folded>,
    /// Not all entries are here or can be read, so that what follows from them is not known.
    pub(super) is_incomplete: bool,
}

/// The plug-in's tables, made anew in a database that goes with its connection.
struct Folded {
    db: Connection,
    projection: Arc<dyn Projection>,
}

impl Reference {
    /// Begins with no entries. `db` is the file, in which nothing is changed.
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
                report.notes.push(
                    "its tables are to be made anew at the next start, so they were not compared".into(),
                );
                None
            }
            Some(projection) => Some(Folded::new(projection)?),
        };
        Ok(Self { folded, is_incomplete: false })
    }

    /// An entry that is there, and may have a key.
    pub(super) fn key(&self, db: &Connection, feed: i64, seq: Seq, entry: &Entry) -> rusqlite::Result<()> {
        let Some(key) = &entry.key else { return Ok(()) };
        let mut insert =
            db.prepare_cached("INSERT OR IGNORE INTO temp.expected_keys VALUES (?1, ?2, ?3, ?4)")?;
        insert.execute(params![key, entry.time.0.cast_signed(), feed, signed(seq)])?;
        Ok(())
    }

    /// An entry that is there.
    pub(super) fn fold(&self, id: EntryId, entry: &Entry) -> rusqlite::Result<()> {
        let Some(Folded { db, projection }) = &self.folded else { return Ok(()) };
        projection.fold(db, &Recorded::of(projection.as_ref(), id, entry))
    }

    /// Entries of a feed up to here are no longer kept, and will not be folded.
    pub(super) fn remember(&self, db: &Connection, feed: FeedId, up_to: Seq) -> rusqlite::Result<()> {
        let Some(folded) = self.folded.as_ref().filter(|_| up_to > Seq::default()) else { return Ok(()) };
        let left = remnant(db, feed)?;
        folded.projection.remember(&folded.db, feed, up_to, left.as_deref())
    }

    /// Compares what is there with what should be.
    pub(super) fn compare(
        &self,
        db: &Connection,
        report: &mut Report,
        tell: &mut Tell<'_>,
    ) -> rusqlite::Result<()> {
        if self.is_incomplete {
            report.notes.push(
                "entries are missing or damaged, so keys and tables were not compared with what follows from them"
                    .into(),
            );
            return Ok(());
        }
        keys(db, report)?;
        let Some(folded) = &self.folded else { return Ok(()) };
        let compared = folded.compared()?;
        let total = compared.len() as u64;
        for (done, (name, query)) in (0..).zip(&compared) {
            tell("comparing tables", done, total);
            // What cannot be read here was told when the structure was checked; but perhaps a table is not there at all.
            match difference(db, &folded.db, query) {
                Ok(None) => (),
                Ok(Some(problem)) => report.add(Part::Tables, name, problem),
                Err(error) => report.add(Part::Tables, name, format_args!("it cannot be read: {error}")),
            }
        }
        tell("comparing tables", total, total);
        Ok(())
    }
}

/// Makes a plug-in's tables, empty, in a database that goes with its connection.
pub(in crate::journal) fn empty_tables(projection: &dyn Projection) -> rusqlite::Result<Connection> {
    // A name that is empty: a file that nobody else sees, and that goes with the connection.
    let db = Connection::open("")?;
    db.pragma_update(None, "journal_mode", "MEMORY")?;
    db.pragma_update(None, "synchronous", "OFF")?;
    db.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // Never committed.
    db.execute_batch("BEGIN")?;
    projection.create(&db)?;
    Ok(db)
}

impl Folded {
    fn new(projection: Arc<dyn Projection>) -> rusqlite::Result<Self> {
        let db = empty_tables(projection.as_ref())?;
        Ok(Self { db, projection })
    }

    /// Names and queries of what must be equal.
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

/// Whether each key leads to the earliest entry that carries it. Of entries that are no longer kept, the keys may be left.
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
            // Where something was dropped, it may have been an earlier entry with the same key, to which the key led.
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

/// The rows of a query, without their order.
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

/// Over the kinds and values of all columns.
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

/// In what a query's rows differ from those expected, in words.
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
    let mut tell = |what: &str, is: fn(i64) -> bool| {
        for (_, text) in odd.values().filter(|(count, _)| is(*count)).take(EXAMPLES) {
            // Writing to a String cannot fail.
            _ = write!(problem, "; {what}: {text}");
        }
    };
    tell("missing", |count| count > 0);
    tell("too much", |count| count < 0);
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

/// A value for people.
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
