//! Making anew what follows from the entries, and taking out what is no entry any more.
//!
//! Tables, keys and extents follow from the runs, so they can be made again. A damaged run cannot; but its feed's other replicas have it. So it is
//! taken out, the extents are made to say that it is missing, and the node fetches it when it runs again. Since somebody may still want to
//! read what can be read of it, a copy of the file is kept.

use std::path::{Path, PathBuf};

use hearsay_protocol::{Version, journal::disk::seen_to_bytes, seen::Seen};
use rusqlite::{Connection, params};

use super::{
    backup::{BackupError, backup},
    mend::name_aside,
    store::{Store, StoreError, seq},
    verify::{Part, Projections, Report, Tell, verify},
};

/// Why a file was not made anew, and what has become of it.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// It is damaged as a database, which no rebuilding mends. It was not touched.
    #[error("{} is damaged as a database: {}", .0.path.display(), first(.0))]
    Damaged(Box<Report>),
    /// This program has no plug-in for the topic. The file was not touched.
    #[error("this program has no plug-in for {0:?}")]
    NoPlugin(String),
    /// No copy could be made, so the file was not touched.
    #[error("cannot keep a copy: {0}")]
    NoCopy(#[from] BackupError),
    /// There are too many copies beside it. The file was not touched.
    #[error("there are too many copies beside {}; move them away", .0.display())]
    TooManyCopies(PathBuf),
    /// The database refused. Its entries are as they were; its tables are made anew at the next start.
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for RebuildError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

fn first(report: &Report) -> &str {
    let mut of_file = report.problems.iter().filter(|problem| problem.part == Part::File);
    of_file.next().map_or("", |problem| &problem.problem)
}

/// What was done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rebuilt {
    /// Entries that the tables were made of.
    pub entries: u64,
    /// Runs that were taken out.
    pub taken_out: u64,
    /// The copy of the file as it was, where something had to be taken out.
    pub copy: Option<PathBuf>,
}

/// Makes anew what follows from the entries of a topic's file. No node may be using it.
///
/// # Errors
/// See [`RebuildError`] for what has become of the file.
pub fn rebuild(
    path: &Path,
    topic: &str,
    projections: &Projections<'_>,
    tell: &mut Tell<'_>,
) -> Result<Rebuilt, RebuildError> {
    // Its tables do not matter, because they go.
    let report = verify(path, Some(topic), &|_| None, tell);
    if !report.is_sound(Part::File) {
        return Err(RebuildError::Damaged(Box::new(report)));
    }
    let projection = projections(topic).ok_or_else(|| RebuildError::NoPlugin(topic.to_owned()))?;
    let copy = match report.is_mendable() {
        true => {
            let aside = name_aside(path).ok_or_else(|| RebuildError::TooManyCopies(path.to_owned()))?;
            backup(path, &aside, tell)?;
            Some(aside)
        }
        false => None,
    };
    let mut store = Store::open_as_it_is(path, &report.cluster, topic)?;
    let taken_out =
        if report.is_mendable() { take_out(store.connection(), &report.damaged_rows)? } else { 0 };
    let entries = store.rebuild_telling(projection.as_ref(), &mut |done, total| {
        tell("making the tables anew", done, total)
    })?;
    Ok(Rebuilt { entries, taken_out, copy })
}

/// Takes out runs, and makes the extents say what is left. Returns how many runs went.
fn take_out(db: &Connection, rows: &[i64]) -> rusqlite::Result<u64> {
    let tx = db.unchecked_transaction()?;
    let mut gone = 0;
    for row in rows {
        gone += tx.prepare_cached("DELETE FROM journal_runs WHERE rowid = ?1")?.execute([row])?;
    }
    // Of a feed without a name, nothing can be checked.
    const NAMELESS: &str = "typeof(writer) <> 'blob' OR length(writer) <> 32 OR typeof(boot) <> 'integer'";
    gone += tx.execute(
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
        extent(&tx, feed)?;
    }
    // Until they are made anew, the tables are no longer what follows from the runs.
    tx.execute("DELETE FROM journal_meta WHERE name = 'projection'", [])?;
    tx.commit()?;
    Ok(gone as u64)
}

/// Makes a feed's row say what its runs are.
fn extent(db: &Connection, feed: i64) -> rusqlite::Result<()> {
    let numbers = db.query_row("SELECT latest, dropped FROM journal_feeds WHERE id = ?1", [feed], |row| {
        // What is damaged counts as nothing.
        Ok((row.get::<_, i64>(0).unwrap_or(0), row.get::<_, i64>(1).unwrap_or(0)))
    });
    let (latest, dropped) = numbers?;
    let mut seen = Seen::default();
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
    db.prepare_cached("UPDATE journal_feeds SET seen = ?2, latest = ?3, dropped = ?4 WHERE id = ?1")?
        .execute(params![feed, seen_to_bytes(&seen), latest.cast_signed(), dropped])?;
    Ok(())
}
