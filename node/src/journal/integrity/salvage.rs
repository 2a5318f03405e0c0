//! Copies those runs (signed groups of entries) that still verify from a damaged database into a new one.
//!
//! The extent of damage in a file is unknown, so the whole file is put aside. But the signature of its writer
//! still verifies each run. So the damaged file is read without page checksums, row by row where necessary.
//! Missing runs come from other replicas.

use std::path::Path;

use hearsay_protocol::journal::Run;
use hearsay_services::journal::{Projection, is_damage};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};

use crate::journal::{
    read_only::{has_log, uri},
    store::{
        database::Store,
        error::StoreError,
        format::{feed_of, run_of},
        state::replicas,
    },
};

/// Runs copied in one transaction.
const BATCH: i64 = 256;
/// Consecutive unreadable rows after which the salvage stops.
const MISSING_MAX: i64 = 100_000;
/// SQLite's own VFS, which compares no checksums.
const UNCHECKED: &std::ffi::CStr = c"unix";

const COLUMNS: &str = "SELECT r.start, r.\"end\", r.before, r.signature, r.entries, r.rowid, f.writer, f.boot
    FROM journal_runs r JOIN journal_feeds f ON f.id = r.feed";

/// Copies the sound runs. Returns the number of runs in the new database.
///
/// # Errors
/// The new database reported an error. An unreadable part of the damaged one is no error.
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

/// Returns URIs for reading the database with its log and, if there is a log, without it: either file may be
/// damaged.
fn uris(damaged: &Path) -> Vec<String> {
    let ways = if has_log(damaged) { &["", "?immutable=1"][..] } else { &[""] };
    ways.iter().map(|way| uri(damaged, way)).collect()
}

fn from(old: &Connection, store: &mut Store, projection: &dyn Projection) -> Result<(), StoreError> {
    // Without the replica set, a majority would be counted of too few replicas, until other replicas send
    // theirs.
    for generation in replicas(old).unwrap_or_default() {
        store.keep_replica(generation)?;
    }
    let (mut after, mut missing) = (0i64, 0i64);
    while missing < MISSING_MAX {
        let runs = match batch(old, after) {
            Ok(runs) if runs.is_empty() => break,
            Ok(runs) => runs,
            // One of the next rows cannot be read. To find it, each row is read separately.
            Err(error) if is_damage(&error) => match row(old, after + 1) {
                Ok(Some(run)) => vec![(after + 1, Some(run))],
                _ => vec![(after + 1, None)],
            },
            Err(_) => break,
        };
        for (rowid, run) in runs {
            after = rowid;
            match run.filter(|run| store.verifies(run)) {
                Some(run) => {
                    store.append_run(&run, projection)?;
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

/// Returns the run in a row; `None`: a column is damaged.
fn run(row: &Row<'_>) -> Option<Run> {
    run_of(feed_of(row.get(6).ok()?, row.get(7).ok()?), row).ok()?
}
