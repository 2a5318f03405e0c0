//! Part of [`Store`]: appends runs, looks entries up, loads runs for other replicas, and discards damaged
//! runs.

use hearsay_protocol::{
    Version, VersionSet,
    journal::{
        EntryId, Extent, FeedId, HybridTime, JournalEntry, RUN_ENTRIES_MAX, Run, Seq, entries_from_bytes,
        entries_to_bytes, seen_from_bytes, seen_to_bytes,
    },
    wire::PAGE_BYTES,
};
use hearsay_services::journal::{Projection, Recorded};
use rusqlite::{Connection, OptionalExtension, params};

use super::{
    database::Store,
    error::StoreError,
    format::{feed_of, run_of, seq, signed},
};

/// Maximum number of runs loaded at once. A run may be one small entry.
const RUNS_PER_LOAD_MAX: usize = 512;

/// Runs read for a replica.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The last entry that this node has dropped.
    pub dropped: Seq,
    /// Runs in ascending order.
    pub runs: Vec<Run>,
    /// Numbers of the first entries of damaged runs.
    pub damaged: Vec<Seq>,
}

impl Store {
    /// Adds a verified run to the open transaction, and folds its new entries into the plug-in's tables.
    ///
    /// # Errors
    /// The error of the database. The transaction must be rolled back.
    pub fn append_run(&mut self, run: &Run, projection: &dyn Projection) -> rusqlite::Result<()> {
        self.begin()?;
        let (feed, mut seen, latest) = self.feed(run.feed)?;
        // Empty in the usual case: the run continues its feed.
        let folded = match seen.highest() < run.start {
            true => VersionSet::default(),
            false => self.folded(feed, run.start, run.end())?,
        };
        let time = run.entries.iter().map(|e| e.time).max().unwrap_or_default();
        let encoded = entries_to_bytes(&run.entries);
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
            &encoded,
        ])?;
        // If the run may replace another one, `NULL` means that the feed's bytes must be counted.
        let bytes = (seen.highest() < run.start).then_some(encoded.len() as i64);
        seen.insert_range(run.start, run.end());
        let mut update = self.db.prepare_cached(
            "UPDATE journal_feeds SET seen = ?2, latest = ?3, bytes = bytes + ?4 WHERE id = ?1",
        )?;
        update.execute(params![feed, seen_to_bytes(&seen), time.max(latest).0.cast_signed(), bytes])?;
        let entries = (run.start.0..).map(Version).zip(&run.entries);
        self.fold((feed, run.feed), entries.filter(|(seq, _)| !folded.contains(*seq)), projection)?;
        Ok(())
    }

    /// Folds entries of a feed into the tables. `number` is the feed's row id. Returns the number of entries.
    pub(super) fn fold<'a>(
        &self,
        (number, feed): (i64, FeedId),
        entries: impl Iterator<Item = (Seq, &'a JournalEntry)>,
        projection: &dyn Projection,
    ) -> rusqlite::Result<usize> {
        let recorded: Vec<Recorded<'_>> =
            entries.map(|(seq, entry)| Recorded::of(projection, EntryId { feed, seq }, entry)).collect();
        self.store_epoch(&recorded)?;
        for Recorded { id, time, key, .. } in &recorded {
            let Some(key) = key else { continue };
            // If two entries have the same key, every node keeps the key of the earlier one.
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

    /// Returns a feed's row id, its stored entries and its latest time. A new feed gets a row.
    pub(super) fn feed(&self, feed: FeedId) -> rusqlite::Result<(i64, VersionSet, HybridTime)> {
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
        let seen = VersionSet::default();
        self.db.execute(
            "INSERT INTO journal_feeds (writer, boot, seen, latest, bytes) VALUES (?1, ?2, ?3, 0, 0)",
            params![feed.writer.public_key(), feed.boot.cast_signed(), seen_to_bytes(&seen)],
        )?;
        Ok((self.db.last_insert_rowid(), seen, HybridTime::default()))
    }

    /// Returns the entries from `start` to `end` that have been folded, and all dropped entries.
    fn folded(&self, feed: i64, start: Seq, end: Seq) -> rusqlite::Result<VersionSet> {
        let mut folded = VersionSet::default();
        let mut find = self.db.prepare_cached(
            "SELECT start, \"end\" FROM journal_runs WHERE feed = ?1 AND start > ?2 AND start <= ?3 AND \"end\" >= ?4",
        )?;
        let lowest = signed(start).saturating_sub(RUN_ENTRIES_MAX as i64);
        let mut rows = find.query(params![feed, lowest, signed(end), signed(start)])?;
        while let Some(row) = rows.next()? {
            folded.insert_range(seq(row.get(0)?), seq(row.get(1)?));
        }
        let dropped: i64 = self
            .db
            .prepare_cached("SELECT dropped FROM journal_feeds WHERE id = ?1")?
            .query_row([feed], |row| row.get(0))?;
        folded.insert_range(Version(1), seq(dropped));
        Ok(folded)
    }

    /// Returns the entry with this idempotency key.
    ///
    /// # Errors
    /// The error of the database.
    pub fn find_key(&self, key: &str) -> rusqlite::Result<Option<(EntryId, JournalEntry)>> {
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

    /// Loads the earliest runs of a feed with entries that `wanted` lacks, as many as fit into a message.
    /// Runs that fail verification are left out and listed as damaged.
    ///
    /// # Errors
    /// The error of the database.
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
            let mut range = VersionSet::default();
            range.insert_range(start, end);
            if wanted.seen.contains_all(&range) {
                continue;
            }
            let Some(run) = run_of(feed, row)?.filter(|run| self.verifies(run)) else {
                loaded.damaged.push(start);
                continue;
            };
            let cost = run.entries.iter().map(JournalEntry::cost_bytes).sum();
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

    /// Deletes damaged runs, and rebuilds the plug-in's tables without them. Returns the feed's new extent.
    ///
    /// # Errors
    /// The error of the database.
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
        let mut seen = VersionSet::default();
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
        self.db.execute(
            "UPDATE journal_feeds SET seen = ?2, bytes = NULL WHERE id = ?1",
            params![id, seen_to_bytes(&seen)],
        )?;
        self.commit()?;
        self.rebuild(projection)?;
        Ok(Extent { feed, seen })
    }
}

/// Whether an entry counts as stored in the database of a connection. Dropped entries count, too.
///
/// # Errors
/// The error of the database.
pub(crate) fn holds(db: &Connection, id: EntryId) -> rusqlite::Result<bool> {
    let mut find = db.prepare_cached("SELECT seen FROM journal_feeds WHERE writer = ?1 AND boot = ?2")?;
    let key = params![id.feed.writer.public_key(), id.feed.boot.cast_signed()];
    let seen: Option<Vec<u8>> = find.query_row(key, |row| row.get(0)).optional()?;
    Ok(seen.and_then(|bytes| seen_from_bytes(&bytes).ok()).is_some_and(|seen| seen.contains(id.seq)))
}
