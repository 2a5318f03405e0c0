//! Out of a damaged database, what still proves itself.
//!
//! A file that is damaged somewhere is put aside as a whole, because nobody can say what else its damage has touched. But each run of entries proves
//! itself by its writer's signature, wherever it is read from. So the damaged file is read without regard to its pages' sums, row by row
//! where that is what it takes, and every sound run is taken over. What then is missing comes from other replicas, if any has it.

use std::path::Path;

use hearsay_protocol::journal::feed::Run;
use hearsay_services::journal::{Projection, is_damage};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};

use super::{
    read_only::{has_log, uri},
    store::{Store, StoreError, feed_of, replicas, run_of},
};

/// Runs taken over in one transaction.
const BATCH: i64 = 256;
/// Rows that may be missing in a row before the rest is given up.
const MISSING_MAX: i64 = 100_000;
/// SQLite's own file system, which compares no sums.
const UNCHECKED: &std::ffi::CStr = c"unix";

const COLUMNS: &str = "SELECT r.start, r.\"end\", r.before, r.signature, r.entries, r.rowid, f.writer, f.boot
    FROM journal_runs r JOIN journal_feeds f ON f.id = r.feed";

/// Takes over what is sound. Returns how many runs the new database has.
///
/// # Errors
/// The new database refused. What of the damaged one cannot be read is no error.
pub(super) fn salvage(
    damaged: &Path,
    store: &mut Store,
    projection: &dyn Projection,
) -> Result<u64, StoreError> {
    for uri in uris(damaged) {
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let Ok(old) = Connection::open_with_flags_and_vfs(uri, flags, UNCHECKED) else { continue };
        from(&old, store, projection)?;
    }
    Ok(store.connection().query_row("SELECT count(*) FROM journal_runs", [], |row| row.get(0))?)
}

/// The database with its log, and, where there is a log, without: either may be what is damaged.
fn uris(damaged: &Path) -> Vec<String> {
    let ways = if has_log(damaged) { &["", "?immutable=1"][..] } else { &[""] };
    ways.iter().map(|way| uri(damaged, way)).collect()
}

fn from(old: &Connection, store: &mut Store, projection: &dyn Projection) -> Result<(), StoreError> {
    // Or a majority would be counted of fewer, until other replicas have told theirs.
    for generation in replicas(old).unwrap_or_default() {
        store.keep_replica(generation)?;
    }
    let (mut after, mut missing) = (0i64, 0i64);
    while missing < MISSING_MAX {
        let runs = match batch(old, after) {
            Ok(runs) if runs.is_empty() => break,
            Ok(runs) => runs,
            // One of the next rows cannot be read. Which, only asking for each can tell.
            Err(error) if is_damage(&error) => match row(old, after + 1) {
                Ok(Some(run)) => vec![(after + 1, Some(run))],
                _ => vec![(after + 1, None)],
            },
            Err(_) => break,
        };
        for (rowid, run) in runs {
            after = rowid;
            match run.filter(|run| store.proves(run)) {
                Some(run) => {
                    store.put(&run, projection)?;
                    missing = 0;
                }
                None => missing += 1,
            }
        }
        if store.is_dirty() {
            store.commit()?;
        }
    }
    if store.is_dirty() {
        store.commit()?;
    }
    Ok(())
}

fn batch(db: &Connection, after: i64) -> rusqlite::Result<Vec<(i64, Option<Run>)>> {
    let mut find = db.prepare_cached(&format!("{COLUMNS} WHERE r.rowid > ?1 ORDER BY r.rowid LIMIT ?2"))?;
    find.query_map([after, BATCH], |row| Ok((row.get(5)?, run(row))))?.collect()
}

fn row(db: &Connection, rowid: i64) -> rusqlite::Result<Option<Run>> {
    let mut find = db.prepare_cached(&format!("{COLUMNS} WHERE r.rowid = ?1"))?;
    Ok(find.query_row([rowid], |row| Ok(run(row))).optional()?.flatten())
}

/// In a file that is damaged any column may be anything.
fn run(row: &Row<'_>) -> Option<Run> {
    run_of(feed_of(row.get(6).ok()?, row.get(7).ok()?), row).ok()?
}
