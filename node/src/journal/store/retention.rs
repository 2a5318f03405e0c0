//! What is no longer kept: by age, by size, and because nobody has it any more.
//!
//! A feed is shortened at its start only, and only as far as nothing is missing, so that one number says what is gone ([`Store::load`] tells it to
//! whoever asks). Runs go whole: a run that is cut does not prove itself. One that is partly older stays until all of it is.
//!
//! Runs, keys, the plug-in's rows and the number that says so go in one transaction, a thousand entries at a time, so that no append
//! waits for long. Of what is gone the plug-in may leave a few bytes ([`Projection::dropped`]): with them tables that are made anew come
//! out the same.

use std::collections::BTreeMap;

use hearsay_protocol::{
    Version,
    journal::{
        clock::HybridTime,
        disk::{entries_from_bytes, seen_from_bytes, seen_to_bytes},
        feed::{FeedId, Seq},
        message::Extent,
    },
};
use hearsay_services::journal::{Projection, REMNANT_BYTES_MAX};
use rusqlite::{Connection, OptionalExtension, ffi, params};

use super::{Store, feed_of, seq, signed};

/// Entries dropped in one transaction, about. On a machine with two cores a thousand of the log's, which cost most, take 20 ms, at worst 50
/// (`how_long_dropping_takes`): so long an append may have to wait.
const ENTRIES_PER_STEP: u64 = 1024;
/// Runs dropped in one transaction. Where a run is one entry, these are what costs, as much.
const RUNS_PER_STEP: u64 = 256;
/// Runs dropped before it is looked again whose turn it is, and whether it is enough.
const RUNS_PER_TURN: usize = 64;
/// As [`RUNS_PER_TURN`], in entries.
const ENTRIES_PER_TURN: u64 = 512;
/// While there is too much, a feed is shortened beyond the next older one by such a part of all the time that is kept: fairly, and not run by run.
const TURN_OF_ALL: u64 = 64;

/// What is not kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bound {
    /// Runs of which every entry is earlier.
    pub before: Option<HybridTime>,
    /// What makes the database use more than this.
    pub bytes: Option<u64>,
}

/// What went.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dropped {
    /// Runs.
    pub runs: u64,
    /// Entries.
    pub entries: u64,
    /// Whether there is more to drop.
    pub more: bool,
}

/// A feed whose first run may go.
#[derive(Debug)]
struct Candidate {
    number: i64,
    feed: FeedId,
    /// Up to here nothing is missing.
    whole: Seq,
    dropped: Seq,
}

impl Store {
    /// Bytes that the database uses, without what is free in its file.
    ///
    /// # Errors
    /// What the database said.
    pub fn used_bytes(&self) -> rusqlite::Result<u64> {
        let pragma = |name: &str| self.db.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        let pages = pragma("page_count")? - pragma("freelist_count")?;
        Ok(pages.max(0).cast_unsigned() * pragma("page_size")?.max(0).cast_unsigned())
    }

    /// Drops the oldest runs that are over the bound, a limited number of them, and commits.
    ///
    /// # Errors
    /// What the database said. The transaction must be rolled back; nothing is dropped then.
    pub fn drop_oldest(&mut self, bound: Bound, projection: &dyn Projection) -> rusqlite::Result<Dropped> {
        if bound == Bound::default() {
            return Ok(Dropped::default());
        }
        let mut candidates = self.candidates()?;
        let newest: i64 =
            self.db.query_row("SELECT coalesce(max(latest), 0) FROM journal_feeds", [], |row| row.get(0))?;
        let newest = newest.cast_unsigned();
        let mut all = Dropped::default();
        while let Some(((oldest, _), mut candidate)) = candidates.pop_first() {
            let is_old = bound.before.is_some_and(|before| oldest < before);
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
            let until = match bound.before.filter(|_| is_old) {
                Some(before) => before,
                None => {
                    let next = candidates.first_key_value().map_or(oldest, |((time, _), _)| *time);
                    let turn = newest.saturating_sub(oldest.0) / TURN_OF_ALL;
                    HybridTime(next.0.max(oldest.0.saturating_add(turn)).saturating_add(1))
                }
            };
            let Some(up_to) = self.turn(&candidate, until)? else { continue };
            self.begin()?;
            all.runs += self.drop_up_to(candidate.number, candidate.feed, up_to, projection)?;
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

    /// The feeds that can be shortened, by when their first run ends.
    fn candidates(&self) -> rusqlite::Result<BTreeMap<(HybridTime, i64), Candidate>> {
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

    /// When the first run of a feed ends; `None`: it cannot go.
    fn first_time(&self, candidate: &Candidate) -> rusqlite::Result<Option<HybridTime>> {
        let mut first = self.db.prepare_cached(
            "SELECT \"end\", time FROM journal_runs WHERE feed = ?1 ORDER BY start LIMIT 1",
        )?;
        let found = first.query_row([candidate.number], |row| Ok((seq(row.get(0)?), row.get(1)?)));
        let Some((end, time)) = found.optional()? else { return Ok(None) };
        Ok((end <= candidate.whole).then_some(HybridTime(i64::cast_unsigned(time))))
    }

    /// Up to where a feed's first runs are all earlier than this, in one turn.
    fn turn(&self, candidate: &Candidate, until: HybridTime) -> rusqlite::Result<Option<Seq>> {
        let mut runs = self.db.prepare_cached(
            "SELECT \"end\", time FROM journal_runs WHERE feed = ?1 ORDER BY start LIMIT ?2",
        )?;
        let mut rows = runs.query(params![candidate.number, RUNS_PER_TURN as i64])?;
        let mut up_to = None;
        while let Some(row) = rows.next()? {
            let (end, time) = (seq(row.get(0)?), HybridTime(row.get::<_, i64>(1)?.cast_unsigned()));
            if end > candidate.whole || time >= until {
                break;
            }
            up_to = up_to.max(Some(end));
            if end.0.saturating_sub(candidate.dropped.0) >= ENTRIES_PER_TURN {
                break;
            }
        }
        Ok(up_to)
    }

    /// Entries of this feed up to here are no longer kept. Returns how many runs went.
    fn drop_up_to(
        &self,
        number: i64,
        feed: FeedId,
        up_to: Seq,
        projection: &dyn Projection,
    ) -> rusqlite::Result<u64> {
        let range = params![number, signed(up_to)];
        self.drop_keys(number, up_to)?;
        let runs = self
            .db
            .prepare_cached("DELETE FROM journal_runs WHERE feed = ?1 AND start <= ?2 AND \"end\" <= ?2")?
            .execute(range)?;
        self.db
            .prepare_cached("UPDATE journal_feeds SET dropped = max(dropped, ?2) WHERE id = ?1")?
            .execute(range)?;
        match projection.dropped(&self.db, feed, up_to)? {
            Some(left) if left.len() > REMNANT_BYTES_MAX => {
                let error = ffi::Error::new(ffi::SQLITE_TOOBIG);
                let problem = format!("the plug-in leaves {} bytes of what is dropped", left.len());
                return Err(rusqlite::Error::SqliteFailure(error, Some(problem)));
            }
            left => self.keep_remnant(feed, left)?,
        }
        Ok(runs as u64)
    }

    /// The keys of entries that go lead nowhere.
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
            // A run is damaged, and with it goes what it says of its keys: this looks through all there are.
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

    /// A replica no longer keeps entries of this feed up to here: those of them that come before everything that is here will never come.
    /// Returns what there is to say of the feed from now on, if that is something else than before.
    ///
    /// What is here stays, whoever says what. It goes by this node's own bounds, and then more can be given up.
    ///
    /// # Errors
    /// What the database said. The transaction must be rolled back.
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

/// Under which name the journal keeps what the plug-in has left of a feed's dropped entries.
fn remnant_name(feed: FeedId) -> String {
    let writer: String = feed.writer.public_key().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("remnant {writer} {:016x}", feed.boot)
}

/// What the plug-in has left of a feed's dropped entries.
///
/// # Errors
/// What the database said.
pub(in crate::journal) fn remnant(db: &Connection, feed: FeedId) -> rusqlite::Result<Option<Vec<u8>>> {
    let mut find = db.prepare_cached("SELECT value FROM journal_meta WHERE name = ?1")?;
    find.query_row([remnant_name(feed)], |row| row.get(0)).optional()
}

#[cfg(test)]
mod tests;
