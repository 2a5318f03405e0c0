//! Part of [`Store`]: drops the oldest entries by age and by size, and counts entries that other replicas
//! have dropped as dropped here, so that this node does not wait for them.
//!
//! A feed is shortened only at its start and only up to the first gap. So one number describes the dropped
//! entries, which [`Store::load`] sends to other replicas. Runs are dropped whole, because a part of a run
//! cannot be verified. A run that is only partly too old stays.
//!
//! Max-min fairness: while the database is too large, the writer with the most bytes loses the start of its
//! oldest feed, until another writer has more. So a writer below its share (all bytes divided by the number
//! of writers) loses nothing, however much other writers add.
//!
//! Runs, keys, the plug-in's rows and the feed's row are changed in one transaction of about a thousand
//! entries, so that no append waits long. For dropped entries the plug-in may leave a remnant of a few bytes
//! ([`Projection::dropped`]), so that rebuilt tables stay the same.

use std::collections::BTreeMap;

use hearsay_protocol::{
    Version,
    journal::{Extent, FeedId, HybridTime, Seq, entries_from_bytes, seen_from_bytes, seen_to_bytes},
};
use hearsay_services::journal::{Projection, REMNANT_BYTES_MAX};
use rusqlite::{Connection, OptionalExtension, ffi, params};

use super::{
    database::Store,
    format::{feed_of, seq, signed},
    holdings::Holdings,
};

/// Approximate number of entries dropped in one transaction. On two cores a thousand entries of the log, the
/// most expensive topic, take 20 ms, at most 50 ms (`how_long_dropping_takes`). An append may wait that long.
const ENTRIES_PER_STEP: u64 = 1024;
/// Maximum number of runs dropped in one transaction. If each run has one entry, the number of runs dominates
/// the cost.
const RUNS_PER_STEP: u64 = 256;
/// Maximum number of runs dropped before the next feed is chosen and the size is checked again.
const RUNS_PER_TURN: usize = 64;
/// Maximum number of entries dropped before the next feed is chosen.
const ENTRIES_PER_TURN: u64 = 512;
/// Limits of a turn: it drops about this fraction of all bytes, and advances by at most this fraction of the
/// time span or to the start of the writer's next feed. Turns are cheaper than single runs, and fair enough.
const TURN_OF_ALL: u64 = 64;

/// Bounds of the stored entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bound {
    /// Drop runs whose entries are all earlier than this.
    pub before: Option<HybridTime>,
    /// Drop runs while the database uses more bytes than this.
    pub bytes: Option<u64>,
}

/// Result of one call of [`Store::drop_oldest`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dropped {
    /// Dropped runs.
    pub runs: u64,
    /// Dropped entries.
    pub entries: u64,
    /// Whether more must be dropped.
    pub more: bool,
}

/// A feed whose first run may be dropped.
#[derive(Debug)]
struct Candidate {
    number: i64,
    feed: FeedId,
    /// The last entry before the first gap.
    whole: Seq,
    /// The last dropped entry.
    dropped: Seq,
}

/// Feeds that can be shortened, by the time of their first run and their row id.
type Candidates = BTreeMap<(HybridTime, i64), Candidate>;

/// How far one turn shortens a feed.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// Only runs whose entries are all before this time.
    until: HybridTime,
    /// Runs until their bytes reach this number.
    bytes: u64,
}

impl Default for Turn {
    /// A turn of one run.
    fn default() -> Self {
        Self { until: HybridTime(u64::MAX), bytes: 0 }
    }
}

/// Returns the oldest feed of the writer with the most bytes, and how far to shorten it.
fn next_of_largest_writer(
    candidates: &Candidates,
    holdings: Option<&Holdings>,
    newest: u64,
) -> Option<((HybridTime, i64), Turn)> {
    let holdings = holdings?;
    let writer = holdings.largest(candidates.values().map(|candidate| candidate.feed.writer))?;
    let mut own = candidates.iter().filter(|(_, candidate)| candidate.feed.writer == writer);
    let (&key, _) = own.next()?;
    let next = own.next().map_or(key.0, |((time, _), _)| *time);
    let time = newest.saturating_sub(key.0.0) / TURN_OF_ALL;
    let until = HybridTime(next.0.max(key.0.0.saturating_add(time)).saturating_add(1));
    Some((key, Turn { until, bytes: holdings.total() / TURN_OF_ALL }))
}

impl Store {
    /// Returns the bytes that the database uses, without free pages of its file.
    ///
    /// # Errors
    /// The error of the database.
    pub fn used_bytes(&self) -> rusqlite::Result<u64> {
        let pragma = |name: &str| self.db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let pages = pragma("page_count")? - pragma("freelist_count")?;
        Ok(pages.max(0).cast_unsigned() * pragma("page_size")?.max(0).cast_unsigned())
    }

    /// Drops a limited number of the oldest runs beyond the bound, and commits.
    ///
    /// # Errors
    /// The error of the database. The transaction must be rolled back; then nothing is dropped.
    pub fn drop_oldest(&mut self, bound: Bound, projection: &dyn Projection) -> rusqlite::Result<Dropped> {
        if bound == Bound::default() {
            return Ok(Dropped::default());
        }
        let mut candidates = self.candidates()?;
        let newest: i64 =
            self.db.query_row("SELECT coalesce(max(latest), 0) FROM journal_feeds", [], |row| row.get(0))?;
        let newest = newest.cast_unsigned();
        let (mut all, mut holdings) = (Dropped::default(), None);
        while let Some((&first, _)) = candidates.first_key_value() {
            let is_old = bound.before.is_some_and(|before| first.0 < before);
            let is_over = match bound.bytes {
                Some(bytes) if !is_old => self.used_bytes()? > bytes,
                _ => false,
            };
            if !is_old && !is_over {
                break;
            }
            if all.entries >= ENTRIES_PER_STEP || all.runs >= RUNS_PER_STEP {
                all.more = true;
                break;
            }
            let (key, turn) = match bound.before.filter(|_| is_old) {
                Some(until) => (first, Turn { until, bytes: u64::MAX }),
                None => {
                    if holdings.is_none() {
                        holdings = Some(self.holdings()?);
                    }
                    next_of_largest_writer(&candidates, holdings.as_ref(), newest)
                        .unwrap_or((first, Turn::default()))
                }
            };
            let Some(mut candidate) = candidates.remove(&key) else { break };
            let Some(up_to) = self.end_of_turn(&candidate, turn)? else { continue };
            self.begin()?;
            let (runs, bytes) = self.drop_up_to(candidate.number, candidate.feed, up_to, projection)?;
            if let Some(holdings) = &mut holdings {
                holdings.release(candidate.feed.writer, bytes);
            }
            all.runs += runs;
            all.entries += up_to.0.saturating_sub(candidate.dropped.0);
            candidate.dropped = up_to;
            if let Some(time) = self.first_time(&candidate)? {
                candidates.insert((time, candidate.number), candidate);
            }
        }
        if self.is_dirty() {
            self.commit()?;
        }
        Ok(all)
    }

    /// Returns the feeds that can be shortened, by the time of their first run.
    fn candidates(&self) -> rusqlite::Result<Candidates> {
        let mut candidates = BTreeMap::new();
        let mut feeds =
            self.db.prepare_cached("SELECT id, writer, boot, seen, dropped FROM journal_feeds")?;
        let mut rows = feeds.query([])?;
        while let Some(row) = rows.next()? {
            let seen = seen_from_bytes(&row.get::<_, Vec<u8>>(3)?).unwrap_or_default();
            let candidate = Candidate {
                number: row.get(0)?,
                feed: feed_of(row.get(1)?, row.get(2)?),
                whole: seen.watermark(),
                dropped: seq(row.get(4)?),
            };
            if candidate.whole > candidate.dropped
                && let Some(time) = self.first_time(&candidate)?
            {
                candidates.insert((time, candidate.number), candidate);
            }
        }
        Ok(candidates)
    }

    /// Returns the time of a feed's first run; `None`: that run cannot be dropped.
    fn first_time(&self, candidate: &Candidate) -> rusqlite::Result<Option<HybridTime>> {
        let mut first = self.db.prepare_cached(
            "SELECT \"end\", time FROM journal_runs WHERE feed = ?1 ORDER BY start LIMIT 1",
        )?;
        let found = first.query_row([candidate.number], |row| Ok((seq(row.get(0)?), row.get(1)?)));
        let Some((end, time)) = found.optional()? else { return Ok(None) };
        Ok((end <= candidate.whole).then_some(HybridTime(i64::cast_unsigned(time))))
    }

    /// Returns the last entry of a feed that one turn drops.
    fn end_of_turn(&self, candidate: &Candidate, turn: Turn) -> rusqlite::Result<Option<Seq>> {
        let mut runs = self.db.prepare_cached(
            "SELECT \"end\", time, length(entries) FROM journal_runs WHERE feed = ?1 ORDER BY start LIMIT ?2",
        )?;
        let mut rows = runs.query(params![candidate.number, RUNS_PER_TURN as i64])?;
        let (mut up_to, mut bytes) = (None, 0u64);
        while let Some(row) = rows.next()? {
            let (end, time) = (seq(row.get(0)?), HybridTime(row.get::<_, i64>(1)?.cast_unsigned()));
            if end > candidate.whole || time >= turn.until {
                break;
            }
            up_to = up_to.max(Some(end));
            bytes += row.get::<_, Option<i64>>(2)?.unwrap_or(0).max(0).cast_unsigned();
            if bytes >= turn.bytes || end.0.saturating_sub(candidate.dropped.0) >= ENTRIES_PER_TURN {
                break;
            }
        }
        Ok(up_to)
    }

    /// Drops the entries of a feed up to `up_to`. Returns the number of dropped runs, and their bytes.
    fn drop_up_to(
        &self,
        number: i64,
        feed: FeedId,
        up_to: Seq,
        projection: &dyn Projection,
    ) -> rusqlite::Result<(u64, u64)> {
        let bytes = self.bytes_up_to(number, signed(up_to))?;
        let range = params![number, signed(up_to)];
        self.drop_keys(number, up_to)?;
        let runs = self
            .db
            .prepare_cached("DELETE FROM journal_runs WHERE feed = ?1 AND start <= ?2 AND \"end\" <= ?2")?
            .execute(range)?;
        self.db
            .prepare_cached(
                "UPDATE journal_feeds SET dropped = max(dropped, ?2), bytes = max(bytes - ?3, 0) WHERE id = ?1",
            )?
            .execute(params![number, signed(up_to), bytes.cast_signed()])?;
        match projection.dropped(&self.db, feed, up_to)? {
            Some(left) if left.len() > REMNANT_BYTES_MAX => {
                let error = ffi::Error::new(ffi::SQLITE_TOOBIG);
                let problem = format!("the plug-in leaves {} bytes for dropped entries", left.len());
                return Err(rusqlite::Error::SqliteFailure(error, Some(problem)));
            }
            left => self.keep_remnant(feed, left)?,
        }
        Ok((runs as u64, bytes))
    }

    /// Deletes the idempotency keys of dropped entries.
    fn drop_keys(&self, number: i64, up_to: Seq) -> rusqlite::Result<()> {
        let mut find = self.db.prepare_cached(
            "SELECT start, entries, \"end\" FROM journal_runs WHERE feed = ?1 AND start <= ?2 AND \"end\" <= ?2",
        )?;
        let mut drop =
            self.db.prepare_cached("DELETE FROM journal_keys WHERE key = ?1 AND feed = ?2 AND seq = ?3")?;
        let mut rows = find.query(params![number, signed(up_to)])?;
        let mut all_known = true;
        while let Some(row) = rows.next()? {
            let start = seq(row.get(0)?);
            let entries = row.get_ref(1)?.as_blob().ok().and_then(|bytes| entries_from_bytes(bytes).ok());
            let entries = entries.unwrap_or_default();
            let count = (seq(row.get(2)?).0.saturating_sub(start.0)).saturating_add(1);
            all_known &= count == entries.len() as u64;
            for (seq, entry) in (start.0..).map(Version).zip(entries) {
                if let Some(key) = entry.key {
                    drop.execute(params![key, number, signed(seq)])?;
                }
            }
        }
        if !all_known {
            // The keys of a damaged run are unreadable, so all keys are searched.
            self.db
                .prepare_cached("DELETE FROM journal_keys WHERE feed = ?1 AND seq <= ?2")?
                .execute(params![number, signed(up_to)])?;
        }
        Ok(())
    }

    fn keep_remnant(&self, feed: FeedId, left: Option<Vec<u8>>) -> rusqlite::Result<()> {
        let name = remnant_name(feed);
        match left {
            Some(left) => self
                .db
                .prepare_cached("INSERT OR REPLACE INTO journal_meta (name, value) VALUES (?1, ?2)")?
                .execute(params![name, left]),
            None => self.db.prepare_cached("DELETE FROM journal_meta WHERE name = ?1")?.execute([name]),
        }?;
        Ok(())
    }

    /// Counts entries of a feed that another replica has dropped as dropped here, so that this node stops
    /// waiting for them. Stops before the first entry that is stored here. Returns the feed's new extent, if
    /// it changed.
    ///
    /// Stored entries stay until this node's own retention drops them.
    ///
    /// # Errors
    /// The error of the database. The transaction must be rolled back.
    pub fn forgo(
        &mut self,
        feed: FeedId,
        up_to: Seq,
        projection: &dyn Projection,
    ) -> rusqlite::Result<Option<Extent>> {
        self.begin()?;
        let (number, mut seen, _) = self.feed(feed)?;
        let (first, dropped): (Option<i64>, i64) = self
            .db
            .prepare_cached(
                "SELECT (SELECT min(start) FROM journal_runs WHERE feed = ?1), dropped FROM journal_feeds WHERE id = ?1",
            )?
            .query_row([number], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let up_to = first.map_or(up_to, |first| up_to.min(seq(first - 1)));
        if up_to <= seq(dropped) {
            return Ok(None);
        }
        self.drop_up_to(number, feed, up_to, projection)?;
        seen.insert_range(Version(1), up_to);
        self.db
            .prepare_cached("UPDATE journal_feeds SET seen = ?2 WHERE id = ?1")?
            .execute(params![number, seen_to_bytes(&seen)])?;
        Ok(Some(Extent { feed, seen }))
    }
}

/// Returns the name under which a feed's remnant is stored.
fn remnant_name(feed: FeedId) -> String {
    let writer: String = feed.writer.public_key().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("remnant {writer} {:016x}", feed.boot)
}

/// Returns the remnant that the plug-in left for a feed's dropped entries.
///
/// # Errors
/// The error of the database.
pub(crate) fn remnant(db: &Connection, feed: FeedId) -> rusqlite::Result<Option<Vec<u8>>> {
    let mut find = db.prepare_cached("SELECT value FROM journal_meta WHERE name = ?1")?;
    find.query_row([remnant_name(feed)], |row| row.get(0)).optional()
}

#[cfg(test)]
mod tests;
