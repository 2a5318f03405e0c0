//! Verification of a topic's file (`node journal verify`), without changing it.
//!
//! A database that SQLite can read may still be wrong: a disk decays, a file is cut short or edited, a backup
//! mixes two states. All checks read one snapshot, so a node may go on writing. Four parts are checked:
//! - the database's structure, by SQLite;
//! - the signature, chain and numbers of every run;
//! - the extents and keys, which the journal stores beside the runs;
//! - the plug-in's tables, which must equal those that all entries produce in an empty database.

use std::{path::Path, sync::Arc};

use hearsay_services::journal::Projection;
use rusqlite::{Connection, OpenFlags};

mod report;
mod runs;
mod tables;

pub use report::{Part, Progress, Report};
use runs::Walk;
use tables::Reference;
pub(super) use tables::empty_tables;

use crate::journal::{
    integrity::checksum_vfs,
    store::format::{APPLICATION_ID, BUSY_TIMEOUT, FORMAT, meta},
};

/// Maximum number of problems requested from SQLite's check. Further ones are mostly consequences of the
/// first.
const COMPLAINTS_MAX: i64 = 20;

/// Function that returns the projection of a topic, if this program has its plug-in.
pub type Projections<'a> = dyn Fn(&str) -> Option<Arc<dyn Projection>> + 'a;

/// Verifies a file. `topic` is the topic that the file must hold, if known.
pub fn verify(
    path: &Path,
    topic: Option<&str>,
    projections: &Projections<'_>,
    progress: &mut Progress<'_>,
) -> Report {
    let mut report = Report { path: path.to_owned(), ..Report::default() };
    let checked = open(path).and_then(|db| {
        // All following reads see one snapshot.
        db.execute_batch("BEGIN")?;
        check(&db, topic, projections, &mut report, progress)
    });
    with_error(report, checked)
}

/// Checks an open database, as [`verify`] does.
pub(super) fn verify_opened(
    (path, db): (&Path, &Connection),
    topic: &str,
    projections: &Projections<'_>,
    progress: &mut Progress<'_>,
) -> Report {
    let mut report = Report { path: path.to_owned(), ..Report::default() };
    let checked = check(db, Some(topic), projections, &mut report, progress);
    with_error(report, checked)
}

/// Adds to the report the error that ended the check, if any.
fn with_error(mut report: Report, checked: rusqlite::Result<()>) -> Report {
    if let Err(error) = checked {
        report.add(Part::File, "", format_args!("it cannot be read: {error}"));
    }
    report
}

/// Opens a file for reading.
///
/// # Errors
/// The error of the database.
pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    checksum_vfs::check_from_now_on();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.pragma_update(None, "mmap_size", 0)?;
    db.pragma_update(None, "cell_size_check", true)?;
    Ok(db)
}

fn check(
    db: &Connection,
    topic: Option<&str>,
    projections: &Projections<'_>,
    report: &mut Report,
    progress: &mut Progress<'_>,
) -> rusqlite::Result<()> {
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let application: i64 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if tables == 0 || application != APPLICATION_ID {
        let problem = if tables == 0 { "it is empty" } else { "it is the database of something else" };
        report.add(Part::File, "", problem);
        return Ok(());
    }
    progress("checking the structure", 0, 0);
    let mut complaints = db.prepare(&format!("PRAGMA integrity_check({COMPLAINTS_MAX})"))?;
    let complaints = complaints.query_map([], |row| row.get::<_, String>(0))?;
    for complaint in complaints.collect::<rusqlite::Result<Vec<_>>>()? {
        // One row may hold several lines.
        complaint.lines().filter(|line| *line != "ok").for_each(|line| report.add(Part::File, "", line));
    }
    let format = meta::<i64>(db, "format")?;
    if format != Some(FORMAT) {
        let problem =
            format!("its format is {}, and this version reads {FORMAT}", format.unwrap_or_default());
        report.add(Part::File, "", problem);
        return Ok(());
    }
    report.cluster = meta(db, "cluster")?.unwrap_or_default();
    report.topic = meta(db, "topic")?.unwrap_or_default();
    if let Some(topic) = topic.filter(|topic| *topic != report.topic) {
        let problem = format!("it holds the topic {:?} under the name of {topic:?}", report.topic);
        report.add(Part::File, "", problem);
    }
    let mut reference = Reference::new(db, projections(&report.topic), report)?;
    Walk::new(db, report, &mut reference, progress)?.check_all()?;
    reference.compare(db, report, progress)
}

#[cfg(test)]
mod tests;
