//! [`BackupFile`]: opens and verifies a backup for `node journal restore` without changing it, and returns
//! the plug-in's tables from it.
//!
//! Rows are read from tables of the plug-in's current version. For a backup of another version, the tables
//! are rebuilt from its entries in a temporary database.

use std::path::{Path, PathBuf};

use hearsay_protocol::{Version, journal::EntryId};
use hearsay_services::journal::{Projection, Recorded};
use rusqlite::Connection;

use super::verify::{self, Progress, Projections, Report, empty_tables};
use crate::journal::{
    read_only,
    store::{
        format::{APPLICATION_ID, FORMAT, feed_of, meta, run_of, seq},
        retention::remnant,
    },
};

/// Why a backup is refused. The file was not changed.
#[derive(Debug, thiserror::Error)]
pub enum BackupFileError {
    /// The file has a write-ahead log: a node is using it, or was using it when its host stopped.
    #[error(
        "{} has a log beside it ({}-wal), so it is no backup; make one of it with `node journal backup`",
        .0.display(), .0.display()
    )]
    InUse(PathBuf),
    /// The file is not a journal, or has another format.
    #[error("{} is no journal that this version reads", .0.display())]
    Foreign(PathBuf),
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the database.
        source: rusqlite::Error,
    },
}

/// A backup of a topic, open for reading.
pub struct BackupFile {
    db: Connection,
    /// The file.
    pub path: PathBuf,
    /// The cluster that the file names.
    pub cluster: String,
    /// The topic that the file names.
    pub topic: String,
}

impl BackupFile {
    /// Opens a backup. Nothing is written to it or beside it.
    ///
    /// # Errors
    /// See [`BackupFileError`].
    pub fn open(path: &Path) -> Result<Self, BackupFileError> {
        if read_only::has_log(path) {
            return Err(BackupFileError::InUse(path.to_owned()));
        }
        let unreadable = |source| BackupFileError::Unreadable { path: path.to_owned(), source };
        let db = read_only::connect(path).map_err(unreadable)?;
        let application: i64 =
            db.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(unreadable)?;
        if application != APPLICATION_ID || meta(&db, "format").map_err(unreadable)? != Some(FORMAT) {
            return Err(BackupFileError::Foreign(path.to_owned()));
        }
        let cluster = meta(&db, "cluster").map_err(unreadable)?.unwrap_or_default();
        let topic = meta(&db, "topic").map_err(unreadable)?.unwrap_or_default();
        Ok(Self { db, path: path.to_owned(), cluster, topic })
    }

    /// Verifies the backup, as `node journal verify` does.
    pub fn verify(&self, projections: &Projections<'_>, progress: &mut Progress<'_>) -> Report {
        verify::verify_opened((&self.path, &self.db), &self.topic, projections, progress)
    }

    /// Returns the plug-in's tables of a verified backup.
    ///
    /// # Errors
    /// The error of the database.
    pub fn into_tables(
        self,
        projection: &dyn Projection,
        progress: &mut Progress<'_>,
    ) -> rusqlite::Result<Connection> {
        match meta::<i64>(&self.db, "projection")? == Some(i64::from(projection.version())) {
            true => Ok(self.db),
            false => fold(&self.db, projection, progress),
        }
    }
}

/// Rebuilds the tables from all entries.
fn fold(
    db: &Connection,
    projection: &dyn Projection,
    progress: &mut Progress<'_>,
) -> rusqlite::Result<Connection> {
    let tables = empty_tables(projection)?;
    let total: u64 = db.query_row("SELECT count(*) FROM journal_runs", [], |row| row.get(0))?;
    let mut done = 0;
    let mut feeds = db.prepare("SELECT id, writer, boot, dropped FROM journal_feeds ORDER BY id")?;
    let mut feeds = feeds.query([])?;
    while let Some(row) = feeds.next()? {
        let (number, feed): (i64, _) = (row.get(0)?, feed_of(row.get(1)?, row.get(2)?));
        // Runs may overlap, so this number is the last entry that is folded or no longer kept.
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
            progress("rebuilding the tables", done, total);
        }
    }
    Ok(tables)
}
