//! A backup as `node journal restore` reads it: checked, and never changed.
//!
//! What it holds is read from tables of the plug-in's present version. A backup that another version made has
//! its tables made once more from its entries, in a database that goes with its connection.

use std::path::{Path, PathBuf};

use hearsay_protocol::{Version, journal::feed::EntryId};
use hearsay_services::journal::{Projection, Recorded};
use rusqlite::Connection;

use super::{
    read_only,
    store::{APPLICATION_ID, FORMAT, feed_of, remnant, run_of, seq},
    verify::{self, Projections, Report, Tell, meta, tables::empty_tables},
};

/// Why a backup is not used. It was not changed.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A log lies beside it, so it is a database in use, or one that was in use when its machine stopped.
    #[error(
        "{} has a log beside it ({}-wal), so it is no backup; make one of it with `node journal backup`",
        .0.display(), .0.display()
    )]
    InUse(PathBuf),
    /// It is no journal, or one of another format.
    #[error("{} is no journal that this version reads", .0.display())]
    Foreign(PathBuf),
    /// It could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the database said.
        source: rusqlite::Error,
    },
}

/// A backup of a topic, open for reading.
pub struct Source {
    db: Connection,
    /// Where it is.
    pub path: PathBuf,
    /// The cluster that it says to belong to.
    pub cluster: String,
    /// The topic that it says to hold.
    pub topic: String,
}

impl Source {
    /// Opens it. Nothing is written to it or beside it.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        if read_only::has_log(path) {
            return Err(SourceError::InUse(path.to_owned()));
        }
        let unreadable = |source| SourceError::Unreadable { path: path.to_owned(), source };
        let db = read_only::connect(path).map_err(unreadable)?;
        let application: i64 =
            db.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(unreadable)?;
        if application != APPLICATION_ID || meta(&db, "format").map_err(unreadable)? != Some(FORMAT) {
            return Err(SourceError::Foreign(path.to_owned()));
        }
        let cluster = meta(&db, "cluster").map_err(unreadable)?.unwrap_or_default();
        let topic = meta(&db, "topic").map_err(unreadable)?.unwrap_or_default();
        Ok(Self { db, path: path.to_owned(), cluster, topic })
    }

    /// Checks all of it, as `node journal verify` does.
    pub fn verify(&self, projections: &Projections<'_>, tell: &mut Tell<'_>) -> Report {
        verify::verify_opened((&self.path, &self.db), &self.topic, projections, tell)
    }

    /// The plug-in's tables. It must have been found sound.
    ///
    /// # Errors
    /// What the database said.
    pub fn into_tables(
        self,
        projection: &dyn Projection,
        tell: &mut Tell<'_>,
    ) -> rusqlite::Result<Connection> {
        match meta::<i64>(&self.db, "projection")? == Some(i64::from(projection.version())) {
            true => Ok(self.db),
            false => fold(&self.db, projection, tell),
        }
    }
}

/// Makes the tables from all entries.
fn fold(db: &Connection, projection: &dyn Projection, tell: &mut Tell<'_>) -> rusqlite::Result<Connection> {
    let tables = empty_tables(projection)?;
    let total: u64 = db.query_row("SELECT count(*) FROM journal_runs", [], |row| row.get(0))?;
    let mut done = 0;
    let mut feeds = db.prepare("SELECT id, writer, boot, dropped FROM journal_feeds ORDER BY id")?;
    let mut feeds = feeds.query([])?;
    while let Some(row) = feeds.next()? {
        let (number, feed): (i64, _) = (row.get(0)?, feed_of(row.get(1)?, row.get(2)?));
        // Runs may overlap. Up to here everything is folded, or no longer kept.
        let mut folded = seq(row.get(3)?);
        if folded > Version::default() {
            projection.remember(&tables, feed, folded, remnant(db, feed)?.as_deref())?;
        }
        let mut runs = db.prepare_cached(
            "SELECT start, \"end\", before, signature, entries FROM journal_runs WHERE feed = ?1 ORDER BY start",
        )?;
        let mut runs = runs.query([number])?;
        while let Some(row) = runs.next()? {
            let Some(run) = run_of(feed, row)? else { continue };
            for (seq, entry) in (run.start.0..).map(Version).zip(&run.entries) {
                if seq > folded {
                    let id = EntryId { feed, seq };
                    projection.fold(&tables, &Recorded::of(projection, id, entry))?;
                }
            }
            folded = folded.max(run.end());
            done += 1;
            tell("making the tables once more", done, total);
        }
    }
    Ok(tables)
}
