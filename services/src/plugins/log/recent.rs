//! [`RecentOffsets`]: cache of the offsets of records that this node has just written.
//!
//! The answer to a write has the offset of the record. Reading it from the database would cost several times
//! as much as the write. The thread that folds an entry already knows the number of records posted before it
//! in its feed, and notes that number here. The first offset of the feed is read from the database once. It
//! is read again after a change that may have moved it, such as entries of an earlier incarnation of this
//! node that a replica sends back.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::journal::{EntryId, FeedId, Seq};

/// Maximum number of cached entries: more than one sync covers, so that an entry is still cached when its
/// client is answered. Other offsets are read from the database.
const NOTED_MAX: usize = 8192;

/// Offsets of the newest entries of one feed.
#[derive(Debug, Default)]
pub(super) struct RecentOffsets(Mutex<RecentState>);

#[derive(Debug, Default)]
struct RecentState {
    feed: Option<FeedId>,
    /// First offset of the feed, if known.
    base: Option<u64>,
    /// Number of changes that may have moved the first offset.
    epoch: u64,
    /// Sequence number, and the number of records posted before it in the feed. Sorted.
    before: VecDeque<(Seq, u64)>,
}

impl RecentState {
    fn before(&self, id: EntryId) -> Option<u64> {
        if self.feed != Some(id.feed) {
            return None;
        }
        let place = self.before.binary_search_by_key(&id.seq, |(seq, _)| *seq).ok()?;
        self.before.get(place).map(|(_, before)| *before)
    }

    fn invalidate_base(&mut self) {
        self.base = None;
        self.epoch += 1;
    }
}

impl RecentOffsets {
    fn noted(&self) -> MutexGuard<'_, RecentState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a folded entry, and the number of records posted before it in its feed. `None`: the entry has no
    /// offset, or the offset is unknown.
    pub(super) fn note_entry(&self, id: EntryId, before: Option<i64>) {
        let mut noted = self.noted();
        let Some(feed) = noted.feed else { return };
        if feed != id.feed {
            if feed.writer == id.feed.writer {
                noted.invalidate_base();
            }
            return;
        }
        // A transaction that was rolled back may have had entries with these numbers.
        while noted.before.back().is_some_and(|(seq, _)| *seq >= id.seq) {
            noted.before.pop_back();
        }
        if let Some(before) = before.and_then(|before| u64::try_from(before).ok()) {
            if noted.before.len() >= NOTED_MAX {
                noted.before.pop_front();
            }
            noted.before.push_back((id.seq, before));
        }
    }

    /// Notes that entries of a feed were dropped.
    pub(super) fn dropped(&self, feed: FeedId) {
        let mut noted = self.noted();
        if noted.feed.is_some_and(|own| own.writer == feed.writer) {
            noted.invalidate_base();
        }
    }

    /// Forgets everything, because the tables are being rebuilt.
    pub(super) fn clear(&self) {
        let mut noted = self.noted();
        noted.invalidate_base();
        noted.before.clear();
    }

    /// Returns the offset of a record, if it is cached.
    pub(super) fn offset(&self, id: EntryId) -> Option<u64> {
        let noted = self.noted();
        Some(noted.base? + noted.before(id)?)
    }

    /// Starts to cache the feed of this entry, before its offset is read from the database. Returns the epoch
    /// for [`finish_lookup`](Self::finish_lookup).
    pub(super) fn begin_lookup(&self, id: EntryId) -> u64 {
        let mut noted = self.noted();
        if noted.feed != Some(id.feed) {
            noted.invalidate_base();
            noted.before.clear();
            noted.feed = Some(id.feed);
        }
        noted.epoch
    }

    /// Derives the first offset of the feed from an offset that was read, unless the first offset may have
    /// moved since.
    pub(super) fn finish_lookup(&self, epoch: u64, id: EntryId, offset: u64) {
        let mut noted = self.noted();
        if noted.epoch == epoch
            && let Some(before) = noted.before(id)
        {
            noted.base = offset.checked_sub(before);
        }
    }
}

#[cfg(test)]
mod tests {
    use hearsay_protocol::{NodeId, Version};

    use super::*;

    fn entry(boot: u64, seq: u64) -> EntryId {
        EntryId { feed: FeedId { writer: NodeId::from_public_key([1; 32]), boot }, seq: Version(seq) }
    }

    fn taught() -> RecentOffsets {
        let recent = RecentOffsets::default();
        let epoch = recent.begin_lookup(entry(1, 1));
        recent.note_entry(entry(1, 2), Some(1));
        recent.finish_lookup(epoch, entry(1, 2), 101);
        recent
    }

    #[test]
    fn offsets_follow_from_one_that_the_database_told() {
        let recent = taught();
        recent.note_entry(entry(1, 3), None);
        recent.note_entry(entry(1, 4), Some(2));
        assert_eq!(recent.offset(entry(1, 2)), Some(101));
        assert_eq!(recent.offset(entry(1, 3)), None, "it has none");
        assert_eq!(recent.offset(entry(1, 4)), Some(102));
        assert_eq!(recent.offset(entry(1, 1)), None, "it came before");
        assert_eq!(recent.offset(entry(2, 4)), None, "another feed's");
    }

    #[test]
    fn what_may_move_the_feed_makes_the_database_be_asked_again() {
        for moves in [
            |recent: &RecentOffsets| recent.note_entry(entry(7, 1), Some(0)),
            |recent: &RecentOffsets| recent.dropped(entry(7, 1).feed),
            RecentOffsets::clear,
        ] {
            let recent = taught();
            let asked_before = recent.begin_lookup(entry(1, 3));
            moves(&recent);
            recent.note_entry(entry(1, 3), Some(2));
            assert_eq!(recent.offset(entry(1, 3)), None);
            recent.finish_lookup(asked_before, entry(1, 3), 102);
            assert_eq!(recent.offset(entry(1, 3)), None, "what was read before that does not count");
            recent.finish_lookup(recent.begin_lookup(entry(1, 3)), entry(1, 3), 105);
            assert_eq!(recent.offset(entry(1, 3)), Some(105));
        }
    }

    #[test]
    fn what_was_rolled_back_is_forgotten_and_no_more_is_kept_than_the_bound() {
        let recent = taught();
        recent.note_entry(entry(1, 3), Some(2));
        recent.note_entry(entry(1, 4), Some(3));
        recent.note_entry(entry(1, 3), None);
        recent.note_entry(entry(1, 4), Some(2));
        assert_eq!((recent.offset(entry(1, 3)), recent.offset(entry(1, 4))), (None, Some(102)));
        (5..20_000).for_each(|seq| recent.note_entry(entry(1, seq), Some(seq as i64)));
        assert_eq!(recent.noted().before.len(), NOTED_MAX);
        assert_eq!(recent.offset(entry(1, 19_999)), Some(100 + 19_999));
        assert_eq!(recent.offset(entry(1, 4)), None);
    }
}
