//! One topic on the disk: a SQLite database of signed runs, and the plug-in's tables made of them.
//!
//! Everything is written by one thread in transactions that end synced (`synchronous=FULL` on a WAL): a run, what it adds to its feed, and what the
//! plug-in makes of it are there together or not at all. Nothing is memory-mapped: an I/O error must be an error, not a signal.
//!
//! Runs are kept as their writers signed them. What is read back is checked like what comes from a stranger, so that a disk that decays harms
//! one node's copy and nobody else's.

use std::{path::Path, time::Duration};

use hearsay_protocol::{
    NodeId, Version,
    journal::{
        Restored,
        clock::{HybridTime, Moment},
        disk::{entries_from_bytes, entries_to_bytes, seen_from_bytes, seen_to_bytes},
        feed::{ChainHash, Entry, EntryId, FeedId, RUN_ENTRIES_MAX, Run, Seq},
        message::Extent,
    },
    seen::{RANGES_MAX, Seen},
    wire::PAGE_BYTES,
};
use hearsay_services::journal::{Projection, Recorded};
use rusqlite::{Connection, OptionalExtension, params};

use super::pages;

mod error;

pub use error::StoreError;
pub(super) use error::disk_error;

mod anew;
mod read_only;
mod retention;
mod state;

pub(super) use retention::{Bound, remnant};
pub(super) use state::replicas;

/// The format of the journal's own tables.
pub(super) const FORMAT: i64 = 1;
/// Says in the file's header whose it is: "hsay".
pub(super) const APPLICATION_ID: i64 = 0x6873_6179;
/// How long a statement waits for those of others.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pages in the writer's cache, in KiB.
const CACHE_KIB: i64 = 8 * 1024;

const TABLES: &str = "
CREATE TABLE journal_meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE journal_feeds (
    id INTEGER PRIMARY KEY,
    writer BLOB NOT NULL,
    boot INTEGER NOT NULL,
    seen BLOB NOT NULL,
    latest INTEGER NOT NULL,
    dropped INTEGER NOT NULL DEFAULT 0,
    UNIQUE (writer, boot)
);
CREATE TABLE journal_runs (
    feed INTEGER NOT NULL REFERENCES journal_feeds (id),
    start INTEGER NOT NULL,
    \"end\" INTEGER NOT NULL,
    time INTEGER NOT NULL,
    before BLOB NOT NULL,
    signature BLOB NOT NULL,
    entries BLOB NOT NULL,
    UNIQUE (feed, start)
);
CREATE TABLE journal_keys (
    key TEXT PRIMARY KEY,
    time INTEGER NOT NULL,
    feed INTEGER NOT NULL REFERENCES journal_feeds (id),
    seq INTEGER NOT NULL
) WITHOUT ROWID;
";

/// A topic's database, open for writing.
pub struct Store {
    db: Connection,
    cluster: String,
    topic: String,
    in_transaction: bool,
    is_read_only: bool,
}

impl Store {
    /// Opens a topic's file, makes it if it is not there, and brings the plug-in's tables up to its version.
    ///
    /// # Errors
    /// See [`StoreError`] for what has become of the file.
    pub fn open(
        path: &Path,
        cluster: &str,
        topic: &str,
        projection: &dyn Projection,
    ) -> Result<Self, StoreError> {
        let mut store = Self::open_as_it_is(path, cluster, topic)?;
        let made_by = store.meta::<i64>("projection")?;
        if made_by != Some(i64::from(projection.version())) {
            store.rebuild(projection)?;
        }
        Ok(store)
    }

    /// Opens a topic's file and leaves the plug-in's tables alone.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn open_as_it_is(path: &Path, cluster: &str, topic: &str) -> Result<Self, StoreError> {
        pages::check_from_now_on();
        let db = Connection::open(path)?;
        db.busy_timeout(BUSY_TIMEOUT)?;
        let application: i64 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
        let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables > 0 && application != APPLICATION_ID {
            return Err(StoreError::Foreign);
        }
        // Made before pages had sums.
        let is_old = tables > 0 && !pages::have_sums(&db);
        pages::leave_room(&db);
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
        store.db.execute_batch(state::REPLICAS_TABLE)?;
        if is_old {
            store.give_sums()?;
        }
        Ok(store)
    }

    /// Makes a file from before pages had sums anew, with them. What is damaged would prove itself from then on, so it is looked for before.
    fn give_sums(&self) -> rusqlite::Result<()> {
        let verdict: String = self.db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(damaged(verdict));
        }
        self.db.execute_batch("VACUUM")?;
        // Whoever opens the file from now on finds the first page in it, which says that there are sums.
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

    fn meta<T: rusqlite::types::FromSql>(&self, name: &str) -> rusqlite::Result<Option<T>> {
        let mut find = self.db.prepare_cached("SELECT value FROM journal_meta WHERE name = ?1")?;
        find.query_row([name], |row| row.get(0)).optional()
    }

    fn check_owner(&self) -> Result<(), StoreError> {
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

    /// What is there.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn restored(&self) -> Result<Restored, StoreError> {
        let latest = self.epoch_moment()?.unwrap_or_default();
        let mut restored = Restored { latest, replicas: self.replicas()?, ..Restored::default() };
        let mut feeds =
            self.db.prepare("SELECT writer, boot, seen, latest, id, dropped FROM journal_feeds")?;
        let mut rows = feeds.query([])?;
        while let Some(row) = rows.next()? {
            let feed = feed_of(row.get(0)?, row.get(1)?);
            let bytes: Vec<u8> = row.get(2)?;
            let seen = seen_from_bytes(&bytes)
                .map_err(|_| damaged(format!("what is here of the feed {feed:?} cannot be read")))?;
            let last = self.last_run(row.get(4)?, seen.highest())?.max(seq(row.get(5)?));
            // Both are written in one transaction; parts of a file and a log that do not belong together disagree. (Of a feed with very many gaps
            // the end is forgotten, and fetched again.)
            let is_forgotten = last > seen.highest() && seen.ranges() >= RANGES_MAX;
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

    /// The number of the last entry in a feed's runs, if it lies where it should.
    fn last_run(&self, feed: i64, expected: Seq) -> rusqlite::Result<Seq> {
        let mut last = self
            .db
            .prepare_cached("SELECT \"end\" FROM journal_runs WHERE feed = ?1 ORDER BY start DESC LIMIT 1")?;
        let last: Option<i64> = last.query_row([feed], |row| row.get(0)).optional()?;
        if last.map(seq) == Some(expected) {
            return Ok(expected);
        }
        // Nobody keeps a writer from signing runs that overlap.
        let mut last =
            self.db.prepare_cached("SELECT max(\"end\") FROM journal_runs WHERE feed = ?1 AND start > ?2")?;
        let lowest = signed(expected).saturating_sub(RUN_ENTRIES_MAX as i64);
        let last: Option<i64> = last.query_row(params![feed, lowest], |row| row.get(0))?;
        Ok(last.map(seq).unwrap_or_default())
    }

    /// Opens a transaction, unless one is open.
    fn begin(&mut self) -> rusqlite::Result<()> {
        if !self.in_transaction {
            self.db.execute_batch("BEGIN IMMEDIATE")?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Whether there is something to [`commit`](Self::commit).
    pub fn is_dirty(&self) -> bool {
        self.in_transaction
    }

    /// Everything since the last time is on the disk, synced, when this returns.
    ///
    /// # Errors
    /// Nothing of it is there, or, where the error is not that the disk is full, perhaps it is.
    pub fn commit(&mut self) -> rusqlite::Result<()> {
        let committed = self.db.execute_batch("COMMIT");
        if committed.is_err() {
            self.roll_back();
        }
        self.in_transaction = false;
        committed
    }

    /// Gives up everything since the last commit.
    pub fn roll_back(&mut self) {
        // It may have been rolled back already: SQLite does so by itself after some errors.
        _ = self.db.execute_batch("ROLLBACK");
        self.in_transaction = false;
    }

    /// Adds a run that was checked, and folds those of its entries that were not there.
    ///
    /// # Errors
    /// What the database said. The transaction must be rolled back.
    pub fn put(&mut self, run: &Run, projection: &dyn Projection) -> rusqlite::Result<()> {
        self.begin()?;
        let (feed, mut seen, latest) = self.feed(run.feed)?;
        // Nearly always nothing: it goes on where the feed ended.
        let there = match seen.highest() < run.start {
            true => Seen::default(),
            false => self.there(feed, run.start, run.end())?,
        };
        let time = run.entries.iter().map(|e| e.time).max().unwrap_or_default();
        let mut insert = self.db.prepare_cached(
            "INSERT INTO journal_runs (feed, start, \"end\", time, before, signature, entries) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
             ON CONFLICT (feed, start) DO UPDATE SET \"end\" = excluded.\"end\", signature = excluded.signature,
                 entries = excluded.entries, time = excluded.time WHERE excluded.\"end\" > \"end\"",
        )?;
        insert.execute(params![
            feed,
            signed(run.start),
            signed(run.end()),
            time.0.cast_signed(),
            run.before.0,
            run.signature_bytes(),
            entries_to_bytes(&run.entries),
        ])?;
        seen.insert_range(run.start, run.end());
        let mut update =
            self.db.prepare_cached("UPDATE journal_feeds SET seen = ?2, latest = ?3 WHERE id = ?1")?;
        update.execute(params![feed, seen_to_bytes(&seen), time.max(latest).0.cast_signed()])?;
        let entries = (run.start.0..).map(Version).zip(&run.entries);
        self.fold((feed, run.feed), entries.filter(|(seq, _)| !there.contains(*seq)), projection)?;
        Ok(())
    }

    /// Folds entries of a feed, which has this number in the file. Returns how many.
    fn fold<'a>(
        &self,
        (number, feed): (i64, FeedId),
        entries: impl Iterator<Item = (Seq, &'a Entry)>,
        projection: &dyn Projection,
    ) -> rusqlite::Result<usize> {
        let recorded: Vec<Recorded<'_>> =
            entries.map(|(seq, entry)| Recorded::of(projection, EntryId { feed, seq }, entry)).collect();
        self.note_epoch(&recorded)?;
        for Recorded { id, time, key, .. } in &recorded {
            let Some(key) = key else { continue };
            // Of two entries under one key the earlier answers, on every node.
            let mut insert = self.db.prepare_cached(
                "INSERT INTO journal_keys (key, time, feed, seq) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (key) DO UPDATE SET time = excluded.time, feed = excluded.feed, seq = excluded.seq
                 WHERE excluded.time < time",
            )?;
            insert.execute(params![key, time.0.cast_signed(), number, signed(id.seq)])?;
        }
        projection.fold_all(&self.db, &recorded)?;
        Ok(recorded.len())
    }

    /// A feed's number in the file, made if it is new, what of it is there, and its latest time.
    fn feed(&self, feed: FeedId) -> rusqlite::Result<(i64, Seen, HybridTime)> {
        let mut find = self
            .db
            .prepare_cached("SELECT id, seen, latest FROM journal_feeds WHERE writer = ?1 AND boot = ?2")?;
        let key = params![feed.writer.public_key(), feed.boot.cast_signed()];
        let found = find
            .query_row(key, |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?, row.get::<_, i64>(2)?)))
            .optional()?;
        if let Some((id, seen, latest)) = found {
            let seen = seen_from_bytes(&seen).unwrap_or_default();
            return Ok((id, seen, HybridTime(latest.cast_unsigned())));
        }
        let seen = Seen::default();
        self.db.execute(
            "INSERT INTO journal_feeds (writer, boot, seen, latest) VALUES (?1, ?2, ?3, 0)",
            params![feed.writer.public_key(), feed.boot.cast_signed(), seen_to_bytes(&seen)],
        )?;
        Ok((self.db.last_insert_rowid(), seen, HybridTime::default()))
    }

    /// Which entries between these numbers have been folded.
    fn there(&self, feed: i64, start: Seq, end: Seq) -> rusqlite::Result<Seen> {
        let mut there = Seen::default();
        let mut find = self.db.prepare_cached(
            "SELECT start, \"end\" FROM journal_runs WHERE feed = ?1 AND start > ?2 AND start <= ?3 AND \"end\" >= ?4",
        )?;
        let lowest = signed(start).saturating_sub(RUN_ENTRIES_MAX as i64);
        let mut rows = find.query(params![feed, lowest, signed(end), signed(start)])?;
        while let Some(row) = rows.next()? {
            there.insert_range(seq(row.get(0)?), seq(row.get(1)?));
        }
        let dropped: i64 = self
            .db
            .prepare_cached("SELECT dropped FROM journal_feeds WHERE id = ?1")?
            .query_row([feed], |row| row.get(0))?;
        there.insert_range(Version(1), seq(dropped));
        Ok(there)
    }

    /// The entry with this key.
    ///
    /// # Errors
    /// What the database said.
    pub fn with_key(&self, key: &str) -> rusqlite::Result<Option<(EntryId, Entry)>> {
        let mut find = self.db.prepare_cached(
            "SELECT f.writer, f.boot, k.seq, r.start, r.entries FROM journal_keys k
             JOIN journal_feeds f ON f.id = k.feed
             JOIN journal_runs r ON r.feed = k.feed AND r.start <= k.seq AND r.\"end\" >= k.seq
             WHERE k.key = ?1 ORDER BY r.start DESC LIMIT 1",
        )?;
        let found = find
            .query_row([key], |row| {
                let id = EntryId { feed: feed_of(row.get(0)?, row.get(1)?), seq: seq(row.get(2)?) };
                Ok((id, seq(row.get(3)?), row.get::<_, Vec<u8>>(4)?))
            })
            .optional()?;
        Ok(found.and_then(|(id, start, bytes)| {
            let entries = entries_from_bytes(&bytes).ok()?;
            let index = usize::try_from(id.seq.0 - start.0).ok()?;
            Some((id, entries.into_iter().nth(index)?))
        }))
    }

    /// Runs of a feed that hold what `wanted` lacks, the earliest first, as many as fit into a message; and up to where its entries are no
    /// longer kept. A run that does not stand the check is left out and named.
    ///
    /// # Errors
    /// What the database said.
    pub fn load(&self, wanted: &Extent) -> rusqlite::Result<Loaded> {
        let mut loaded = Loaded::default();
        let feed = wanted.feed;
        let mut find = self
            .db
            .prepare_cached("SELECT id, dropped FROM journal_feeds WHERE writer = ?1 AND boot = ?2")?;
        let key = params![feed.writer.public_key(), feed.boot.cast_signed()];
        let found = find.query_row(key, |row| Ok((row.get::<_, i64>(0)?, row.get(1)?))).optional()?;
        let Some((id, dropped)) = found else { return Ok(loaded) };
        loaded.dropped = seq(dropped);
        let mut find = self.db.prepare_cached(
            "SELECT start, \"end\", before, signature, entries FROM journal_runs WHERE feed = ?1 AND start > ?2 ORDER BY start",
        )?;
        let lowest = signed(wanted.seen.watermark()).saturating_sub(RUN_ENTRIES_MAX as i64);
        let mut rows = find.query(params![id, lowest])?;
        let mut budget = PAGE_BYTES;
        while let Some(row) = rows.next()? {
            let (start, end) = (seq(row.get(0)?), seq(row.get(1)?));
            let mut range = Seen::default();
            range.insert_range(start, end);
            if wanted.seen.contains_all(&range) {
                continue;
            }
            let Some(run) = run_of(feed, row)?.filter(|run| self.proves(run)) else {
                loaded.damaged.push(start);
                continue;
            };
            let cost = run.entries.iter().map(Entry::cost_bytes).sum();
            if cost > budget && !loaded.runs.is_empty() {
                break;
            }
            budget = budget.saturating_sub(cost);
            loaded.runs.push(run);
            if loaded.runs.len() >= RUNS_PER_LOAD_MAX {
                break;
            }
        }
        Ok(loaded)
    }

    /// Takes out runs that are damaged, and makes the plug-in's tables anew without them. Returns what of the feed is left.
    ///
    /// # Errors
    /// What the database said.
    pub fn discard(
        &mut self,
        feed: FeedId,
        starts: &[Seq],
        projection: &dyn Projection,
    ) -> Result<Extent, StoreError> {
        self.begin()?;
        let (id, _, _) = self.feed(feed)?;
        for start in starts {
            self.db.execute(
                "DELETE FROM journal_runs WHERE feed = ?1 AND start = ?2",
                params![id, signed(*start)],
            )?;
        }
        let mut seen = Seen::default();
        let dropped: i64 =
            self.db.query_row("SELECT dropped FROM journal_feeds WHERE id = ?1", [id], |row| row.get(0))?;
        seen.insert_range(Version(1), seq(dropped));
        {
            let mut ranges =
                self.db.prepare("SELECT start, \"end\" FROM journal_runs WHERE feed = ?1 ORDER BY start")?;
            let mut rows = ranges.query([id])?;
            while let Some(row) = rows.next()? {
                seen.insert_range(seq(row.get(0)?), seq(row.get(1)?));
            }
        }
        self.db
            .execute("UPDATE journal_feeds SET seen = ?2 WHERE id = ?1", params![id, seen_to_bytes(&seen)])?;
        self.commit()?;
        self.rebuild(projection)?;
        Ok(Extent { feed, seen })
    }

    /// The cluster and the topic that it belongs to.
    pub(super) fn owner(&self) -> (&str, &str) {
        (&self.cluster, &self.topic)
    }

    /// Closes it. All of it is in its file then, and nothing beside that.
    ///
    /// # Errors
    /// What the database said.
    pub(super) fn close(self) -> rusqlite::Result<()> {
        self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        self.db.close().map_err(|(_, error)| error)
    }

    /// Whether a run is its writer's, and of this topic.
    pub(super) fn proves(&self, run: &Run) -> bool {
        run.check(&self.cluster, &self.topic).is_ok()
    }

    /// The database, for what only reads.
    pub fn connection(&self) -> &Connection {
        &self.db
    }
}

/// What SQLite would say, had it noticed.
fn damaged(what: String) -> rusqlite::Error {
    let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(error, Some(what))
}

/// Runs answered with at once. Each may be one small entry.
const RUNS_PER_LOAD_MAX: usize = 512;

/// What was read for a replica.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Up to here nothing is kept.
    pub dropped: Seq,
    /// The earliest first.
    pub runs: Vec<Run>,
    /// Where runs begin that are damaged.
    pub damaged: Vec<Seq>,
}

/// Whether this entry is in the database that a connection reads.
///
/// # Errors
/// What the database said.
pub(super) fn holds(db: &Connection, id: EntryId) -> rusqlite::Result<bool> {
    let mut find = db.prepare_cached("SELECT seen FROM journal_feeds WHERE writer = ?1 AND boot = ?2")?;
    let key = params![id.feed.writer.public_key(), id.feed.boot.cast_signed()];
    let seen: Option<Vec<u8>> = find.query_row(key, |row| row.get(0)).optional()?;
    Ok(seen.and_then(|bytes| seen_from_bytes(&bytes).ok()).is_some_and(|seen| seen.contains(id.seq)))
}

pub(super) fn run_of(feed: FeedId, row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<Run>> {
    let start = seq(row.get(0)?);
    let (before, signature): ([u8; 32], [u8; 64]) = match (row.get(2), row.get(3)) {
        (Ok(before), Ok(signature)) => (before, signature),
        _ => return Ok(None),
    };
    // On a disk that decays, even what kind of value it is.
    let entries = row.get_ref(4)?.as_blob().ok().and_then(|bytes| entries_from_bytes(bytes).ok());
    let Some(entries) = entries else { return Ok(None) };
    Ok(Some(Run::from_parts((EntryId { feed, seq: start }, ChainHash(before)), entries, signature)))
}

pub(super) fn feed_of(writer: [u8; 32], boot: i64) -> FeedId {
    FeedId { writer: NodeId::from_public_key(writer), boot: boot.cast_unsigned() }
}

/// SQLite's integers are signed. A feed of more entries than that would take a million years.
pub(super) fn signed(seq: Seq) -> i64 {
    i64::try_from(seq.0).unwrap_or(i64::MAX)
}

pub(super) fn seq(number: i64) -> Seq {
    Version(number.max(0).cast_unsigned())
}
