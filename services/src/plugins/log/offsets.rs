//! Offsets: numbers of the records that were posted to one node, from 0 and without gaps.
//!
//! A node writes one feed in each incarnation. A feed also holds events of the node, which have no offset.
//! The offset of a record is the number of records posted before it in its feed, plus those in all earlier
//! feeds of the node. An entry that arrives early is counted once the gap before it closes, so that the count
//! does not depend on the order of arrival.

use hearsay_protocol::{NodeId, Version, journal::HybridTime};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::integers::{signed, sortable, unsortable};
use crate::journal::{EntryId, FeedId, Seq};

/// Counts of a feed up to its first missing entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Feed {
    /// Row of the feed.
    pub(super) id: i64,
    /// Sequence number of the first missing entry.
    next: i64,
    /// Records posted before `next`.
    posted: i64,
    /// Number of entries that arrived although an earlier one is missing.
    early: i64,
}

/// Returns the row of a feed, and inserts it if it is missing. `time` is the time of one of its entries.
pub(super) fn find_or_insert_feed(db: &Connection, feed: FeedId, time: HybridTime) -> rusqlite::Result<Feed> {
    let mut find = db.prepare_cached(
        "SELECT id, next, posted, early, first FROM log_feeds WHERE writer = ?1 AND boot = ?2",
    )?;
    let entry_id = params![feed.writer.public_key(), sortable(feed.boot)];
    let found = find
        .query_row(entry_id, |row| {
            let feed = Feed { id: row.get(0)?, next: row.get(1)?, posted: row.get(2)?, early: row.get(3)? };
            Ok((feed, row.get::<_, i64>(4)?))
        })
        .optional()?;
    let time = sortable(time.0);
    if let Some((feed, first)) = found {
        if time < first {
            db.prepare_cached("UPDATE log_feeds SET first = ?2 WHERE id = ?1")?
                .execute(params![feed.id, time])?;
        }
        return Ok(feed);
    }
    insert_feed(db, feed, time)
}

fn insert_feed(db: &Connection, feed: FeedId, first: i64) -> rusqlite::Result<Feed> {
    let mut insert = db.prepare_cached(
        "INSERT INTO log_feeds (writer, boot, first, next, posted, early, exact) VALUES (?1, ?2, ?3, 1, 0, 0, 1)",
    )?;
    let id = insert.insert(params![feed.writer.public_key(), sortable(feed.boot), first])?;
    Ok(Feed { id, next: 1, posted: 0, early: 0 })
}

impl Feed {
    /// Counts an entry. Returns the number of records posted before it, or `None` if an earlier entry is
    /// missing. [`save_counts`](Self::save_counts) stores the result.
    pub(super) fn count(
        &mut self,
        db: &Connection,
        seq: Seq,
        is_posted: bool,
    ) -> rusqlite::Result<Option<i64>> {
        let seq = signed(seq);
        if seq == self.next {
            let before = self.posted;
            (self.next, self.posted) = (seq + 1, before + i64::from(is_posted));
            return Ok(Some(before));
        }
        if seq > self.next {
            let added = db
                .prepare_cached("INSERT OR IGNORE INTO log_early (feed, seq) VALUES (?1, ?2)")?
                .execute(params![self.id, seq])?;
            self.early += added as i64;
        }
        Ok(None)
    }

    /// Stores the counts, and counts entries that had arrived early.
    pub(super) fn save_counts(&self, db: &Connection) -> rusqlite::Result<()> {
        db.prepare_cached("UPDATE log_feeds SET next = ?2, posted = ?3, early = ?4 WHERE id = ?1")?
            .execute(params![self.id, self.next, self.posted, self.early])?;
        if self.early > 0 { close_gap(db, self.id) } else { Ok(()) }
    }
}

/// Counts the early entries before which no entry is missing any more.
fn close_gap(db: &Connection, feed: i64) -> rusqlite::Result<()> {
    let (mut next, mut posted, mut early): (i64, i64, i64) = db
        .prepare_cached("SELECT next, posted, early FROM log_feeds WHERE id = ?1")?
        .query_row([feed], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut take = db.prepare_cached("DELETE FROM log_early WHERE feed = ?1 AND seq = ?2")?;
    let mut number = db
        .prepare_cached("UPDATE log_records SET before = ?3 WHERE feed = ?1 AND seq = ?2 RETURNING posted")?;
    while early > 0 && take.execute(params![feed, next])? > 0 {
        // An entry that could not be decoded has no row.
        let is_posted: Option<i64> =
            number.query_row(params![feed, next, posted], |row| row.get(0)).optional()?;
        posted += is_posted.unwrap_or(0);
        (next, early) = (next + 1, early - 1);
    }
    db.prepare_cached("UPDATE log_feeds SET next = ?2, posted = ?3, early = ?4 WHERE id = ?1")?
        .execute(params![feed, next, posted, early])?;
    Ok(())
}

/// Drops the entries of a feed up to a sequence number, whether or not they ever arrived. Returns the feed's
/// row.
pub(super) fn drop_entries(db: &Connection, feed: FeedId, up_to: Seq) -> rusqlite::Result<i64> {
    let mut find = db.prepare_cached("SELECT id, next FROM log_feeds WHERE writer = ?1 AND boot = ?2")?;
    let entry_id = params![feed.writer.public_key(), sortable(feed.boot)];
    let found = find.query_row(entry_id, |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let (id, next): (i64, i64) = match found {
        Some(found) => found,
        // The start is unknown until the first entry arrives.
        None => (insert_feed(db, feed, i64::MAX)?.id, 1),
    };
    let up_to = signed(up_to);
    if next <= up_to {
        // It is unknown how many of the entries that never arrived were posted, so the count is no longer
        // exact.
        let gone = db
            .prepare_cached("DELETE FROM log_early WHERE feed = ?1 AND seq <= ?2")?
            .execute(params![id, up_to])?;
        let posted: i64 = db
            .prepare_cached(
                "SELECT count(*) FROM log_records WHERE feed = ?1 AND seq >= ?2 AND seq <= ?3 AND posted",
            )?
            .query_row(params![id, next, up_to], |row| row.get(0))?;
        db.prepare_cached(
            "UPDATE log_feeds SET next = ?2, posted = posted + ?3, early = early - ?4, exact = 0 WHERE id = ?1",
        )?
        .execute(params![id, up_to.saturating_add(1), posted, gone as i64])?;
        close_gap(db, id)?;
    }
    Ok(id)
}

/// Remnant of a feed: a summary of its dropped entries. Without it, rebuilt tables would give the other
/// records other offsets.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Remnant {
    /// Time of the first entry of the feed.
    first: i64,
    /// Number of posted records among the dropped entries.
    posted: i64,
    /// Whether that number is exact.
    exact: bool,
}

/// Returns the remnant of a feed's entries up to a sequence number, all of which have been
/// [dropped](drop_entries).
pub(super) fn remnant(db: &Connection, feed: i64, up_to: Seq) -> rusqlite::Result<Remnant> {
    let (first, next, posted, exact): (i64, i64, i64, bool) = db
        .prepare_cached("SELECT first, next, posted, exact FROM log_feeds WHERE id = ?1")?
        .query_row([feed], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    // Each row before the first gap has the number of records posted before it.
    let before: Option<i64> = db
        .prepare_cached(
            "SELECT before FROM log_records WHERE feed = ?1 AND seq > ?2 AND seq < ?3 ORDER BY seq LIMIT 1",
        )?
        .query_row(params![feed, signed(up_to), next], |row| row.get(0))
        .optional()?
        .flatten();
    Ok(Remnant { first, posted: before.unwrap_or(posted), exact })
}

/// Starts a feed after its dropped entries.
pub(super) fn restore_feed(
    db: &Connection,
    feed: FeedId,
    up_to: Seq,
    remnant: Option<Remnant>,
) -> rusqlite::Result<()> {
    let Some(Remnant { first, posted, exact }) = remnant else {
        return drop_entries(db, feed, up_to).map(|_| ());
    };
    let Feed { id, .. } = insert_feed(db, feed, first)?;
    db.prepare_cached("UPDATE log_feeds SET next = ?2, posted = ?3, exact = ?4 WHERE id = ?1")?
        .execute(params![id, signed(up_to).saturating_add(1), posted, exact])?;
    Ok(())
}

/// Returns the feed of a feed row.
pub(super) fn feed_id(db: &Connection, id: i64) -> rusqlite::Result<FeedId> {
    db.prepare_cached("SELECT writer, boot FROM log_feeds WHERE id = ?1")?.query_row([id], |row| {
        Ok(FeedId { writer: NodeId::from_public_key(row.get(0)?), boot: unsortable(row.get(1)?) })
    })
}

/// A feed with its first offset.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct FeedView {
    /// Writer and boot number.
    pub(super) feed: FeedId,
    /// Offset of the first record; `None` if it is unknown here.
    pub(super) base: Option<i64>,
}

/// Returns the feed of a row, with its first offset. The first offset is always known for a feed of this node
/// (`me`), because a node's offsets count the records that it has stored itself.
pub(super) fn feed_view(db: &Connection, id: i64, me: NodeId) -> rusqlite::Result<FeedView> {
    let (feed, first, is_exact) = db
        .prepare_cached("SELECT writer, boot, first, exact FROM log_feeds WHERE id = ?1")?
        .query_row([id], |row| {
            let feed = FeedId { writer: NodeId::from_public_key(row.get(0)?), boot: unsortable(row.get(1)?) };
            Ok((feed, row.get::<_, i64>(2)?, row.get::<_, bool>(3)?))
        })?;
    let (base, are_whole): (i64, bool) = db
        .prepare_cached(
            "SELECT coalesce(sum(posted), 0), coalesce(min(exact AND early = 0), 1) FROM log_feeds
             WHERE writer = ?1 AND (first, boot) < (?2, ?3)",
        )?
        .query_row(params![feed.writer.public_key(), first, sortable(feed.boot)], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let is_known = feed.writer == me || is_exact && are_whole;
    Ok(FeedView { feed, base: is_known.then_some(base) })
}

/// Returns the offset of a posted record; `None` if it has none, or if it is unknown here.
pub(super) fn offset(db: &Connection, id: EntryId, me: NodeId) -> rusqlite::Result<Option<u64>> {
    let mut find = db.prepare_cached(
        "SELECT r.feed, r.before FROM log_records r JOIN log_feeds f ON f.id = r.feed
         WHERE f.writer = ?1 AND f.boot = ?2 AND r.seq = ?3 AND r.posted",
    )?;
    let entry_id = params![id.feed.writer.public_key(), sortable(id.feed.boot), signed(id.seq)];
    let found: Option<(i64, Option<i64>)> =
        find.query_row(entry_id, |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((feed, Some(before))) = found else { return Ok(None) };
    Ok(feed_view(db, feed, me)?.base.and_then(|base| u64::try_from(base + before).ok()))
}

/// Result of a lookup by offset.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum OffsetLookup {
    /// The message.
    Found(Vec<u8>),
    /// The record was dropped.
    Dropped,
    /// No record has this offset yet. Holds the number of offsets.
    PastTheEnd(u64),
}

/// Returns the record that was posted to a node under an offset.
pub(super) fn find_by_offset(db: &Connection, writer: NodeId, offset: u64) -> rusqlite::Result<OffsetLookup> {
    let mut feeds =
        db.prepare_cached("SELECT id, next, posted FROM log_feeds WHERE writer = ?1 ORDER BY first, boot")?;
    let mut rows = feeds.query([writer.public_key()])?;
    let mut base = 0u64;
    while let Some(row) = rows.next()? {
        let (feed, next, posted): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let posted = u64::try_from(posted).unwrap_or(0);
        if offset - base < posted {
            return find_in_feed(db, feed, next, (offset - base).cast_signed());
        }
        base += posted;
    }
    Ok(OffsetLookup::PastTheEnd(base))
}

/// Finds the record of a feed that has `before` posted records before it. A binary search is possible,
/// because this number rises with the sequence number.
fn find_in_feed(db: &Connection, feed: i64, next: i64, before: i64) -> rusqlite::Result<OffsetLookup> {
    let mut look = db.prepare_cached(
        "SELECT seq, before FROM log_records WHERE feed = ?1 AND seq >= ?2 AND seq < ?3 AND posted
         AND before IS NOT NULL ORDER BY seq LIMIT 1",
    )?;
    let (mut low, mut high) = (1, next);
    while low < high {
        let middle = low + (high - low) / 2;
        let found: Option<(i64, i64)> =
            look.query_row(params![feed, middle, high], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        match found {
            // No posted record lies between the middle and the end.
            None => high = middle,
            Some((seq, at)) if at == before => return message(db, feed, seq),
            Some((seq, at)) if at < before => low = seq + 1,
            Some(_) => high = middle,
        }
    }
    Ok(OffsetLookup::Dropped)
}

fn message(db: &Connection, feed: i64, seq: i64) -> rusqlite::Result<OffsetLookup> {
    db.prepare_cached(
        "SELECT coalesce(raw, CAST(message AS BLOB)) FROM log_records WHERE feed = ?1 AND seq = ?2",
    )?
    .query_row(params![feed, seq], |row| row.get(0))
    .map(OffsetLookup::Found)
}

/// Returns the number of records posted to a node, which is the offset of the next one.
pub(super) fn posted(db: &Connection, writer: NodeId) -> rusqlite::Result<u64> {
    let posted: i64 = db
        .prepare_cached("SELECT coalesce(sum(posted), 0) FROM log_feeds WHERE writer = ?1")?
        .query_row([writer.public_key()], |row| row.get(0))?;
    Ok(u64::try_from(posted).unwrap_or(0))
}

/// Returns the row of an entry; `None` if it is not here.
pub(super) fn row_of(db: &Connection, id: EntryId) -> rusqlite::Result<Option<i64>> {
    let mut find = db.prepare_cached(
        "SELECT r.id FROM log_feeds f JOIN log_records r ON r.feed = f.id AND r.seq = ?3
         WHERE f.writer = ?1 AND f.boot = ?2",
    )?;
    find.query_row(params![id.feed.writer.public_key(), sortable(id.feed.boot), signed(id.seq)], |row| {
        row.get(0)
    })
    .optional()
}

/// Returns the id of a record, given its feed.
pub(super) fn entry_id(feed: FeedId, seq: i64) -> EntryId {
    EntryId { feed, seq: Version(seq.cast_unsigned()) }
}
