//! Part of [`Store`]: rebuilds the plug-in's tables from the stored runs and from the remnants of dropped
//! runs.

use hearsay_protocol::{
    Version,
    journal::{RUN_ENTRIES_MAX, Seq},
};
use hearsay_services::journal::Projection;
use rusqlite::params;

use super::{
    database::Store,
    error::StoreError,
    format::{feed_of, run_of, seq, signed},
    retention::remnant,
};

/// Runs folded in one transaction.
const REBUILD_BATCH: usize = 1000;

impl Store {
    /// Rebuilds the plug-in's tables from all runs. Returns the number of entries.
    ///
    /// # Errors
    /// The error of the database. The next opening starts the rebuild again.
    pub fn rebuild(&mut self, projection: &dyn Projection) -> Result<u64, StoreError> {
        let topic = self.topic.clone();
        let report = |runs, of| tracing::info!(topic, runs, of, "rebuilding the tables");
        self.rebuild_with_progress(projection, &mut { report })
    }

    /// Like [`rebuild`](Self::rebuild), but reports progress: the folded runs and all runs.
    pub(crate) fn rebuild_with_progress(
        &mut self,
        projection: &dyn Projection,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<u64, StoreError> {
        self.begin()?;
        self.db.execute("DELETE FROM journal_meta WHERE name IN ('projection', 'moment')", [])?;
        let tables: Vec<String> = {
            // Virtual tables first: their shadow tables go with them.
            let mut list = self.db.prepare(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'journal\\_%' ESCAPE '\\'
                 AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY sql LIKE 'CREATE VIRTUAL%' DESC",
            )?;
            list.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?
        };
        for table in tables {
            self.db.execute_batch(&format!("DROP TABLE IF EXISTS \"{}\"", table.replace('"', "\"\"")))?;
        }
        self.db.execute("DELETE FROM journal_keys", [])?;
        projection.create(&self.db)?;
        self.restore_remnants(projection)?;
        self.commit()?;
        let (mut after, mut folded, mut done) = (0i64, 0u64, 0u64);
        let total: u64 = self.db.query_row("SELECT count(*) FROM journal_runs", [], |row| row.get(0))?;
        loop {
            self.begin()?;
            let batch = self.rebuild_batch(after, projection)?;
            self.commit()?;
            let Some((last, entries)) = batch else { break };
            (after, folded) = (last, folded + entries);
            done = (done + REBUILD_BATCH as u64).min(total);
            progress(done, total);
        }
        self.db.execute(
            "INSERT OR REPLACE INTO journal_meta VALUES ('projection', ?1)",
            [i64::from(projection.version())],
        )?;
        Ok(folded)
    }

    /// Folds the next runs after this row id. Returns the last row id and the number of entries; `None`: no
    /// run is left.
    fn rebuild_batch(&self, after: i64, projection: &dyn Projection) -> rusqlite::Result<Option<(i64, u64)>> {
        let mut find = self.db.prepare_cached(
            "SELECT r.start, r.\"end\", r.before, r.signature, r.entries, r.rowid, r.feed, f.writer, f.boot, f.dropped
             FROM journal_runs r JOIN journal_feeds f ON f.id = r.feed WHERE r.rowid > ?1 ORDER BY r.rowid LIMIT ?2",
        )?;
        let mut rows = find.query(params![after, REBUILD_BATCH as i64])?;
        let mut done = None;
        while let Some(row) = rows.next()? {
            let (rowid, number): (i64, i64) = (row.get(5)?, row.get(6)?);
            let feed = feed_of(row.get(7)?, row.get(8)?);
            let dropped = seq(row.get(9)?);
            let entries = run_of(feed, row)?;
            let (_, before) = done.unwrap_or((0, 0));
            let mut count = before;
            if let Some(run) = entries {
                let mut kept = Vec::with_capacity(run.entries.len());
                for (seq, entry) in (run.start.0..).map(Version).zip(&run.entries) {
                    // The remnant covers the dropped entries of a partly kept run.
                    if seq > dropped && self.is_first_at(number, run.start, seq)? {
                        kept.push((seq, entry));
                    }
                }
                count += self.fold((number, feed), kept.into_iter(), projection)? as u64;
            }
            done = Some((rowid, count));
        }
        Ok(done)
    }

    /// Whether no run that starts earlier also holds this entry.
    fn is_first_at(&self, feed: i64, start: Seq, seq: Seq) -> rusqlite::Result<bool> {
        let mut find = self.db.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM journal_runs WHERE feed = ?1 AND start > ?2 AND start < ?3 AND \"end\" >= ?4)",
        )?;
        let lowest = signed(start).saturating_sub(RUN_ENTRIES_MAX as i64);
        let earlier: bool =
            find.query_row(params![feed, lowest, signed(start), signed(seq)], |row| row.get(0))?;
        Ok(!earlier)
    }

    /// Passes the remnants of dropped entries to the plug-in.
    fn restore_remnants(&self, projection: &dyn Projection) -> rusqlite::Result<()> {
        let mut feeds = self
            .db
            .prepare("SELECT writer, boot, dropped FROM journal_feeds WHERE dropped > 0 ORDER BY id")?;
        let mut rows = feeds.query([])?;
        while let Some(row) = rows.next()? {
            let feed = feed_of(row.get(0)?, row.get(1)?);
            let left = remnant(&self.db, feed)?;
            projection.remember(&self.db, feed, seq(row.get(2)?), left.as_deref())?;
        }
        Ok(())
    }
}
