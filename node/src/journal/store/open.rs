//! Part of [`Store`]: opens or creates a topic's database, checks its format and owner, and reads the state
//! from which the journal resumes.

use std::path::Path;

use hearsay_protocol::VERSION_RANGES_MAX;
use hearsay_protocol::journal::{
    Extent, HybridTime, Moment, RUN_ENTRIES_MAX, RestoredJournal, Seq, seen_from_bytes,
};
use hearsay_services::journal::Projection;
use rusqlite::{Connection, OptionalExtension, params};

use super::{
    database::Store,
    error::{StoreError, damaged},
    format::{APPLICATION_ID, BUSY_TIMEOUT, FORMAT, REPLICAS_TABLE, TABLES, feed_of, seq, signed},
};
use crate::journal::integrity::checksum_vfs;

/// Page cache of the writer, in KiB.
const CACHE_KIB: i64 = 8 * 1024;

impl Store {
    /// Opens or creates a topic's file. Tables of another version of the plug-in are rebuilt.
    ///
    /// # Errors
    /// See [`StoreError`] for the state of the file.
    pub fn open(
        path: &Path,
        cluster: &str,
        topic: &str,
        projection: &dyn Projection,
    ) -> Result<Self, StoreError> {
        let mut store = Self::open_as_it_is(path, cluster, topic)?;
        let table_version = store.meta::<i64>("projection")?;
        if table_version != Some(i64::from(projection.version())) {
            store.rebuild(projection)?;
        }
        Ok(store)
    }

    /// Opens a topic's file without touching the plug-in's tables.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_as_it_is(path: &Path, cluster: &str, topic: &str) -> Result<Self, StoreError> {
        checksum_vfs::check_from_now_on();
        let db = Connection::open(path)?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        let application: i64 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables > 0 && application != APPLICATION_ID {
            return Err(StoreError::Foreign);
        }
        // The file was created before pages had checksums.
        let is_old = tables > 0 && !checksum_vfs::have_sums(&db);
        checksum_vfs::leave_room(&db);
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "mmap_size", 0)?;
        db.pragma_update(None, "cache_size", -CACHE_KIB)?;
        db.pragma_update(None, "cell_size_check", true)?;
        let mut store = Self {
            db,
            cluster: cluster.to_owned(),
            topic: topic.to_owned(),
            in_transaction: false,
            is_read_only: false,
        };
        if tables == 0 {
            store.create()?;
        }
        store.check_owner()?;
        store.db.execute_batch(REPLICAS_TABLE)?;
        store.add_bytes_column()?;
        if is_old {
            store.add_checksums()?;
        }
        Ok(store)
    }

    /// Adds page checksums to a file of a version without them, by rewriting it. The file is checked first,
    /// because damaged pages would get valid checksums.
    fn add_checksums(&self) -> rusqlite::Result<()> {
        let verdict: String = self.db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(damaged(verdict));
        }
        self.db.execute_batch("VACUUM")?;
        // The new first page must be in the file, not only in the log: it says that pages have checksums.
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    }

    fn create(&mut self) -> rusqlite::Result<()> {
        let tx = self.db.transaction()?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.execute_batch(TABLES)?;
        tx.execute("INSERT INTO journal_meta VALUES ('format', ?1)", [FORMAT])?;
        tx.execute("INSERT INTO journal_meta VALUES ('cluster', ?1)", [&self.cluster])?;
        tx.execute("INSERT INTO journal_meta VALUES ('topic', ?1)", [&self.topic])?;
        tx.commit()
    }

    pub(super) fn check_owner(&self) -> Result<(), StoreError> {
        match self.meta("format")? {
            Some(FORMAT) => (),
            other => return Err(StoreError::Format(other.unwrap_or_default())),
        }
        let cluster: Option<String> = self.meta("cluster")?;
        let topic: Option<String> = self.meta("topic")?;
        if cluster.as_ref() == Some(&self.cluster) && topic.as_ref() == Some(&self.topic) {
            return Ok(());
        }
        let (cluster, topic) = (cluster.unwrap_or_default(), topic.unwrap_or_default());
        Err(StoreError::Elsewhere(format!("the topic {topic:?} of the cluster {cluster:?}")))
    }

    /// Returns the state from which the journal resumes.
    ///
    /// # Errors
    /// The file cannot be read, or is damaged.
    pub fn restored(&self) -> Result<RestoredJournal, StoreError> {
        let latest = self.epoch_moment()?.unwrap_or_default();
        let mut restored =
            RestoredJournal { latest, replicas: self.replicas()?, ..RestoredJournal::default() };
        let mut feeds =
            self.db.prepare("SELECT writer, boot, seen, latest, id, dropped FROM journal_feeds")?;
        let mut rows = feeds.query([])?;
        while let Some(row) = rows.next()? {
            let feed = feed_of(row.get(0)?, row.get(1)?);
            let bytes: Vec<u8> = row.get(2)?;
            let seen = seen_from_bytes(&bytes)
                .map_err(|_| damaged(format!("the extent of the feed {feed:?} cannot be read")))?;
            let last = self.last_run(row.get(4)?, seen.highest())?.max(seq(row.get(5)?));
            // `seen` and the runs are written in one transaction, so they disagree only if file and log do
            // not belong together. Exception: in a feed with very many gaps, `seen` forgets its end, which is
            // fetched again.
            let is_forgotten = last > seen.highest() && seen.ranges() >= VERSION_RANGES_MAX;
            if last != seen.highest() && !is_forgotten {
                let detail =
                    format!("of the feed {feed:?} it lists {} entries and has {}", seen.highest().0, last.0);
                return Err(damaged(detail).into());
            }
            let time = HybridTime(row.get::<_, i64>(3)?.cast_unsigned());
            restored.latest = restored.latest.max(Moment { epoch: 0, time });
            restored.extents.push(Extent { feed, seen });
        }
        Ok(restored)
    }

    /// Returns the number of the last entry in a feed's runs.
    fn last_run(&self, feed: i64, expected: Seq) -> rusqlite::Result<Seq> {
        let mut last = self
            .db
            .prepare_cached("SELECT \"end\" FROM journal_runs WHERE feed = ?1 ORDER BY start DESC LIMIT 1")?;
        let last: Option<i64> = last.query_row([feed], |row| row.get(0)).optional()?;
        if last.map(seq) == Some(expected) {
            return Ok(expected);
        }
        // A writer may sign overlapping runs, so the run that starts last need not end last.
        let mut last =
            self.db.prepare_cached("SELECT max(\"end\") FROM journal_runs WHERE feed = ?1 AND start > ?2")?;
        let lowest = signed(expected).saturating_sub(RUN_ENTRIES_MAX as i64);
        let last: Option<i64> = last.query_row(params![feed, lowest], |row| row.get(0))?;
        Ok(last.map(seq).unwrap_or_default())
    }
}
