//! Offline rebuild of a topic's file (`node journal rebuild`): derives keys and the plug-in's tables again
//! from the runs (signed groups of entries), after deleting damaged runs.
//!
//! Tables, keys and extents are derived from the runs and can be rebuilt. A damaged run cannot be rebuilt,
//! but other replicas have it. So the rebuild deletes the run and lists it as missing, and the node fetches
//! it when it runs again. A copy of the old file is kept, in which an operator can still look at the damaged
//! run.

use std::path::{Path, PathBuf};

use hearsay_protocol::{Version, VersionSet, journal::seen_to_bytes};
use rusqlite::{Connection, params};

use super::{
    backup::{BackupError, backup},
    verify::{Part, Progress, Projections, Report, verify},
};
use crate::journal::{
    integrity::replace_damaged::name_aside,
    store::{database::Store, error::StoreError, format::seq},
};

/// Why a file was not rebuilt, and the state of the file.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The file is damaged as a database, which a rebuild does not repair. The file was not touched.
    #[error("{} is damaged as a database: {}", .0.path.display(), first_problem(.0))]
    Damaged(Box<Report>),
    /// This program has no plug-in for the topic. The file was not touched.
    #[error("this program has no plug-in for {0:?}")]
    NoPlugin(String),
    /// No copy could be made, so the file was not touched.
    #[error("cannot keep a copy: {0}")]
    NoCopy(#[from] BackupError),
    /// There are too many copies beside the file. The file was not touched.
    #[error("there are too many copies beside {}; move them away", .0.display())]
    TooManyCopies(PathBuf),
    /// The database reported an error. Its sound entries are kept; its tables are rebuilt at the next start.
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for RebuildError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

fn first_problem(report: &Report) -> &str {
    let mut of_file = report.problems.iter().filter(|problem| problem.part == Part::File);
    of_file.next().map_or("", |problem| &problem.problem)
}

/// The result of a rebuild.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rebuilt {
    /// Entries folded into the tables.
    pub entries: u64,
    /// Runs that were deleted.
    pub deleted_runs: u64,
    /// The copy of the old file, if runs were deleted.
    pub copy: Option<PathBuf>,
}

/// Rebuilds a topic's file. No node may be using it.
///
/// # Errors
/// See [`RebuildError`] for the state of the file.
pub fn rebuild(
    path: &Path,
    topic: &str,
    projections: &Projections<'_>,
    progress: &mut Progress<'_>,
) -> Result<Rebuilt, RebuildError> {
    // The tables are not checked, because they are dropped.
    let report = verify(path, Some(topic), &|_| None, progress);
    if !report.is_sound(Part::File) {
        return Err(RebuildError::Damaged(Box::new(report)));
    }
    let projection = projections(topic).ok_or_else(|| RebuildError::NoPlugin(topic.to_owned()))?;
    let copy = match report.needs_run_repair() {
        true => {
            let aside = name_aside(path).ok_or_else(|| RebuildError::TooManyCopies(path.to_owned()))?;
            backup(path, &aside, progress)?;
            Some(aside)
        }
        false => None,
    };
    let mut store = Store::open_as_it_is(path, &report.cluster, topic)?;
    let deleted_runs =
        if report.needs_run_repair() { delete_runs(store.connection(), &report.damaged_rows)? } else { 0 };
    let entries = store.rebuild_with_progress(projection.as_ref(), &mut |done, total| {
        progress("rebuilding the tables", done, total)
    })?;
    Ok(Rebuilt { entries, deleted_runs, copy })
}

/// Deletes runs, and updates the extents. Returns how many runs were deleted.
fn delete_runs(db: &Connection, rows: &[i64]) -> rusqlite::Result<u64> {
    let tx = db.unchecked_transaction()?;
    let mut deleted = 0;
    for row in rows {
        deleted += tx.prepare_cached("DELETE FROM journal_runs WHERE rowid = ?1")?.execute([row])?;
    }
    // Runs of a feed without a valid writer cannot be checked.
    const NAMELESS: &str = "typeof(writer) <> 'blob' OR length(writer) <> 32 OR typeof(boot) <> 'integer'";
    deleted += tx.execute(
        &format!("DELETE FROM journal_runs WHERE feed IN (SELECT id FROM journal_feeds WHERE {NAMELESS})"),
        [],
    )?;
    tx.execute("DELETE FROM journal_keys", [])?;
    tx.execute(&format!("DELETE FROM journal_feeds WHERE {NAMELESS}"), [])?;
    let feeds: Vec<i64> = {
        let mut feeds = tx.prepare("SELECT id FROM journal_feeds")?;
        feeds.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?
    };
    for feed in feeds {
        update_extent(&tx, feed)?;
    }
    // Until they are rebuilt, the tables do not match the runs.
    tx.execute("DELETE FROM journal_meta WHERE name = 'projection'", [])?;
    tx.commit()?;
    Ok(deleted as u64)
}

/// Updates a feed's row from its runs.
fn update_extent(db: &Connection, feed: i64) -> rusqlite::Result<()> {
    let numbers = db.query_row("SELECT latest, dropped FROM journal_feeds WHERE id = ?1", [feed], |row| {
        // Damaged values count as zero.
        Ok((row.get::<_, i64>(0).unwrap_or(0), row.get::<_, i64>(1).unwrap_or(0)))
    });
    let (latest, dropped) = numbers?;
    let mut seen = VersionSet::default();
    seen.insert_range(Version(1), seq(dropped));
    let mut latest = latest.cast_unsigned();
    {
        let mut runs = db
            .prepare_cached("SELECT start, \"end\", time FROM journal_runs WHERE feed = ?1 ORDER BY start")?;
        let mut rows = runs.query([feed])?;
        while let Some(row) = rows.next()? {
            seen.insert_range(seq(row.get(0)?), seq(row.get(1)?));
            latest = latest.max(row.get::<_, i64>(2)?.cast_unsigned());
        }
    }
    db.prepare_cached(
        "UPDATE journal_feeds SET seen = ?2, latest = ?3, dropped = ?4, bytes = NULL WHERE id = ?1",
    )?
    .execute(params![feed, seen_to_bytes(&seen), latest.cast_signed(), dropped])?;
    Ok(())
}
