//! Offsets: the numbers of the records that were posted to one node, from 0 and without gaps, whatever happens to the node.
//!
//! A node writes a new feed in each of its lives, and into it go also what happened to itself, which no client posted. So a record's offset is how
//! many were posted before it in its feed, plus all those of the node's earlier feeds. The first is counted here as entries come, in the
//! order of their numbers. One that comes early is counted when the gap before it closes, so that what is counted does not depend
//! on who came first.

use hearsay_protocol::{NodeId, Version, journal::clock::HybridTime};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::tables::{signed, sortable, unsortable};
use crate::journal::{EntryId, FeedId, Seq};

/// A feed, as a record's entry finds it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Feed {
    /// Its row.
    pub(super) id: i64,
    /// The number of the first entry that is not here.
    next: i64,
    /// Records posted before that.
    posted: i64,
    /// Entries that are here though an earlier one is not.
    early: i64,
}

/// Finds the row of a feed, or makes it. `time` is that of one of its entries.
pub(super) fn feed(db: &Connection, feed: FeedId, time: HybridTime) -> rusqlite::Result<Feed> {
    let mut find = db.prepare_cached(
        "SELECT id, next, posted, early, first FROM log_feeds WHERE writer = ?1 AND boot = ?2",
    )?;
    let name = params![feed.writer.public_key(), sortable(feed.boot)];
    let found = find
        .query_row(name, |row| {
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
    make(db, feed, time)
}

fn make(db: &Connection, feed: FeedId, first: i64) -> rusqlite::Result<Feed> {
    let mut insert = db.prepare_cached(
        "INSERT INTO log_feeds (writer, boot, first, next, posted, early, exact) VALUES (?1, ?2, ?3, 1, 0, 0, 1)",
    )?;
    let id = insert.insert(params![feed.writer.public_key(), sortable(feed.boot), first])?;
    Ok(Feed { id, next: 1, posted: 0, early: 0 })
}

impl Feed {
    /// Counts an entry, if all before it are here: then returns how many records were posted before it. What was counted is written down by
    /// [`counted`](Self::counted).
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

    /// Writes down what was counted, and counts on over entries that came early.
    pub(super) fn counted(&self, db: &Connection) -> rusqlite::Result<()> {
        db.prepare_cached("UPDATE log_feeds SET next = ?2, posted = ?3, early = ?4 WHERE id = ?1")?
            .execute(params![self.id, self.next, self.posted, self.early])?;
        if self.early > 0 { close_gap(db, self.id) } else { Ok(()) }
    }
}

/// Counts on, over entries that came early.
fn close_gap(db: &Connection, feed: i64) -> rusqlite::Result<()> {
    let (mut next, mut posted, mut early): (i64, i64, i64) = db
        .prepare_cached("SELECT next, posted, early FROM log_feeds WHERE id = ?1")?
        .query_row([feed], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut take = db.prepare_cached("DELETE FROM log_early WHERE feed = ?1 AND seq = ?2")?;
    let mut number = db
        .prepare_cached("UPDATE log_records SET before = ?3 WHERE feed = ?1 AND seq = ?2 RETURNING posted")?;
    while early > 0 && take.execute(params![feed, next])? > 0 {
        // An entry that made no sense has no row.
        let is_posted: Option<i64> =
            number.query_row(params![feed, next, posted], |row| row.get(0)).optional()?;
        posted += is_posted.unwrap_or(0);
        (next, early) = (next + 1, early - 1);
    }
    db.prepare_cached("UPDATE log_feeds SET next = ?2, posted = ?3, early = ?4 WHERE id = ?1")?
        .execute(params![feed, next, posted, early])?;
    Ok(())
}

/// Entries of a feed up to this number are no longer kept, or will never come. Returns the feed's row.
pub(super) fn forget(db: &Connection, feed: FeedId, up_to: Seq) -> rusqlite::Result<i64> {
    let mut find = db.prepare_cached("SELECT id, next FROM log_feeds WHERE writer = ?1 AND boot = ?2")?;
    let name = params![feed.writer.public_key(), sortable(feed.boot)];
    let found = find.query_row(name, |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let (id, next): (i64, i64) = match found {
        Some(found) => found,
        // Its first entry that comes says when it began.
        None => (make(db, feed, i64::MAX)?.id, 1),
    };
    let up_to = signed(up_to);
    if next <= up_to {
        // How many of those that never came were posted, nobody here can say.
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

/// What is left of a feed's entries that are no longer kept: without it, tables that are made anew would number the others differently.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Remnant {
    /// The time of the feed's first entry, as the table has it.
    first: i64,
    /// How many of those that are gone were posted.
    posted: i64,
    /// Whether that is known for sure.
    exact: bool,
}

/// What to keep of the entries of a feed up to this number, all of which are [forgotten](forget).
pub(super) fn remnant(db: &Connection, feed: i64, up_to: Seq) -> rusqlite::Result<Remnant> {
    let (first, next, posted, exact): (i64, i64, i64, bool) = db
        .prepare_cached("SELECT first, next, posted, exact FROM log_feeds WHERE id = ?1")?
        .query_row([feed], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
    // Every row before the first gap knows how many were posted before it.
    let before: Option<i64> = db
        .prepare_cached(
            "SELECT before FROM log_records WHERE feed = ?1 AND seq > ?2 AND seq < ?3 ORDER BY seq LIMIT 1",
        )?
        .query_row(params![feed, signed(up_to), next], |row| row.get(0))
        .optional()?
        .flatten();
    Ok(Remnant { first, posted: before.unwrap_or(posted), exact })
}

/// Begins a feed behind entries that are no longer kept.
pub(super) fn remember(
    db: &Connection,
    feed: FeedId,
    up_to: Seq,
    remnant: Option<Remnant>,
) -> rusqlite::Result<()> {
    let Some(Remnant { first, posted, exact }) = remnant else {
        return forget(db, feed, up_to).map(|_| ());
    };
    let Feed { id, .. } = make(db, feed, first)?;
    db.prepare_cached("UPDATE log_feeds SET next = ?2, posted = ?3, exact = ?4 WHERE id = ?1")?
        .execute(params![id, signed(up_to).saturating_add(1), posted, exact])?;
    Ok(())
}

/// Which feed a row is of.
pub(super) fn feed_id(db: &Connection, id: i64) -> rusqlite::Result<FeedId> {
    db.prepare_cached("SELECT writer, boot FROM log_feeds WHERE id = ?1")?.query_row([id], |row| {
        Ok(FeedId { writer: NodeId::from_public_key(row.get(0)?), boot: unsortable(row.get(1)?) })
    })
}

/// A feed, as a reader sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shown {
    /// Whose and which it is.
    pub(super) feed: FeedId,
    /// The offset at which it begins; `None`: not known here.
    pub(super) base: Option<i64>,
}

/// What a reader needs to know of a feed's row. `me`: the own node, whose offsets are what is here, whatever was lost.
pub(super) fn shown(db: &Connection, id: i64, me: NodeId) -> rusqlite::Result<Shown> {
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
    Ok(Shown { feed, base: is_known.then_some(base) })
}

/// The offset of a record that was posted; `None`: it has none, or it is not known here.
pub(super) fn offset(db: &Connection, id: EntryId, me: NodeId) -> rusqlite::Result<Option<u64>> {
    let mut find = db.prepare_cached(
        "SELECT r.feed, r.before FROM log_records r JOIN log_feeds f ON f.id = r.feed
         WHERE f.writer = ?1 AND f.boot = ?2 AND r.seq = ?3 AND r.posted",
    )?;
    let name = params![id.feed.writer.public_key(), sortable(id.feed.boot), signed(id.seq)];
    let found: Option<(i64, Option<i64>)> =
        find.query_row(name, |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((feed, Some(before))) = found else { return Ok(None) };
    Ok(shown(db, feed, me)?.base.and_then(|base| u64::try_from(base + before).ok()))
}

/// A record found by its offset.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Found {
    /// Its message.
    Here(Vec<u8>),
    /// It was here, and is no longer kept.
    Dropped,
    /// No record has this offset yet; so many have one.
    PastTheEnd(u64),
}

/// The record that was posted to a node under this offset.
pub(super) fn at_offset(db: &Connection, writer: NodeId, offset: u64) -> rusqlite::Result<Found> {
    let mut feeds =
        db.prepare_cached("SELECT id, next, posted FROM log_feeds WHERE writer = ?1 ORDER BY first, boot")?;
    let mut rows = feeds.query([writer.public_key()])?;
    let mut base = 0u64;
    while let Some(row) = rows.next()? {
        let (feed, next, posted): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let posted = u64::try_from(posted).unwrap_or(0);
        if offset - base < posted {
            return in_feed(db, feed, next, (offset - base).cast_signed());
        }
        base += posted;
    }
    Ok(Found::PastTheEnd(base))
}

/// Finds the record of a feed before which so many were posted, by halving: that number rises with the entry's own.
fn in_feed(db: &Connection, feed: i64, next: i64, before: i64) -> rusqlite::Result<Found> {
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
            // Nothing that counts between the middle and the end.
            None => high = middle,
            Some((seq, at)) if at == before => return message(db, feed, seq),
            Some((seq, at)) if at < before => low = seq + 1,
            Some(_) => high = middle,
        }
    }
    Ok(Found::Dropped)
}

fn message(db: &Connection, feed: i64, seq: i64) -> rusqlite::Result<Found> {
    db.prepare_cached(
        "SELECT coalesce(raw, CAST(message AS BLOB)) FROM log_records WHERE feed = ?1 AND seq = ?2",
    )?
    .query_row(params![feed, seq], |row| row.get(0))
    .map(Found::Here)
}

/// How many records were posted to a node so far: the offset of the next one.
pub(super) fn posted(db: &Connection, writer: NodeId) -> rusqlite::Result<u64> {
    let posted: i64 = db
        .prepare_cached("SELECT coalesce(sum(posted), 0) FROM log_feeds WHERE writer = ?1")?
        .query_row([writer.public_key()], |row| row.get(0))?;
    Ok(u64::try_from(posted).unwrap_or(0))
}

/// The row of an entry; `None`: it is not here.
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

/// The name of a record, given its feed.
pub(super) fn name(feed: FeedId, seq: i64) -> EntryId {
    EntryId { feed, seq: Version(seq.cast_unsigned()) }
}
