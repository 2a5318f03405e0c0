//! The offsets of what this node wrote a moment ago.
//!
//! Whoever posts a record is told its offset. To read that from the database, on another connection, costs several times what it costs to
//! write the record. But the thread that folds an entry knows how many records were posted before it in its feed; it notes that here, and whoever
//! answers the client adds where the feed begins. That is asked of the database once, and again after something has come that may have moved
//! it: entries of an earlier life of this node, back from another replica.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::journal::{EntryId, FeedId, Seq};

/// Entries noted. More than share a sync, so that each is still here when its client is answered; what is not is read from the database.
const NOTED_MAX: usize = 8192;

/// The last entries of one feed.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<Noted>);

#[derive(Debug, Default)]
struct Noted {
    feed: Option<FeedId>,
    /// The offset at which the feed begins, where that is known.
    base: Option<u64>,
    /// Changes with everything that may have changed the base.
    epoch: u64,
    /// Which entry, and how many records were posted before it in its feed; in the order of their numbers.
    before: VecDeque<(Seq, u64)>,
}

impl Noted {
    fn before(&self, id: EntryId) -> Option<u64> {
        if self.feed != Some(id.feed) {
            return None;
        }
        let place = self.before.binary_search_by_key(&id.seq, |(seq, _)| *seq).ok()?;
        self.before.get(place).map(|(_, before)| *before)
    }

    fn unsettle(&mut self) {
        self.base = None;
        self.epoch += 1;
    }
}

impl Recent {
    fn noted(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An entry was folded; before it, so many records were posted in its feed. `None`: it has no offset, or nobody knows.
    pub(super) fn folded(&self, id: EntryId, before: Option<i64>) {
        let mut noted = self.noted();
        let Some(feed) = noted.feed else { return };
        if feed != id.feed {
            if feed.writer == id.feed.writer {
                noted.unsettle();
            }
            return;
        }
        // A transaction that came to nothing may have had entries of these numbers.
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

    /// Entries of a feed are no longer kept, or will never come.
    pub(super) fn dropped(&self, feed: FeedId) {
        let mut noted = self.noted();
        if noted.feed.is_some_and(|own| own.writer == feed.writer) {
            noted.unsettle();
        }
    }

    /// The tables are made anew.
    pub(super) fn clear(&self) {
        let mut noted = self.noted();
        noted.unsettle();
        noted.before.clear();
    }

    /// A record's offset, if it is known here.
    pub(super) fn offset(&self, id: EntryId) -> Option<u64> {
        let noted = self.noted();
        Some(noted.base? + noted.before(id)?)
    }

    /// Before the database is asked for the offset of this entry: from now on its feed is noted. Returns what [`learn`](Self::learn) takes.
    pub(super) fn asking(&self, id: EntryId) -> u64 {
        let mut noted = self.noted();
        if noted.feed != Some(id.feed) {
            noted.unsettle();
            noted.before.clear();
            noted.feed = Some(id.feed);
        }
        noted.epoch
    }

    /// What the database said, and where the feed begins according to that.
    pub(super) fn learn(&self, epoch: u64, id: EntryId, offset: u64) {
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

    fn taught() -> Recent {
        let recent = Recent::default();
        let epoch = recent.asking(entry(1, 1));
        recent.folded(entry(1, 2), Some(1));
        recent.learn(epoch, entry(1, 2), 101);
        recent
    }

    #[test]
    fn offsets_follow_from_one_that_the_database_told() {
        let recent = taught();
        recent.folded(entry(1, 3), None);
        recent.folded(entry(1, 4), Some(2));
        assert_eq!(recent.offset(entry(1, 2)), Some(101));
        assert_eq!(recent.offset(entry(1, 3)), None, "it has none");
        assert_eq!(recent.offset(entry(1, 4)), Some(102));
        assert_eq!(recent.offset(entry(1, 1)), None, "it came before");
        assert_eq!(recent.offset(entry(2, 4)), None, "another feed's");
    }

    #[test]
    fn what_may_move_the_feed_makes_the_database_be_asked_again() {
        for moves in [
            |recent: &Recent| recent.folded(entry(7, 1), Some(0)),
            |recent: &Recent| recent.dropped(entry(7, 1).feed),
            Recent::clear,
        ] {
            let recent = taught();
            let asked_before = recent.asking(entry(1, 3));
            moves(&recent);
            recent.folded(entry(1, 3), Some(2));
            assert_eq!(recent.offset(entry(1, 3)), None);
            recent.learn(asked_before, entry(1, 3), 102);
            assert_eq!(recent.offset(entry(1, 3)), None, "what was read before that does not count");
            recent.learn(recent.asking(entry(1, 3)), entry(1, 3), 105);
            assert_eq!(recent.offset(entry(1, 3)), Some(105));
        }
    }

    #[test]
    fn what_was_rolled_back_is_forgotten_and_no_more_is_kept_than_the_bound() {
        let recent = taught();
        recent.folded(entry(1, 3), Some(2));
        recent.folded(entry(1, 4), Some(3));
        recent.folded(entry(1, 3), None);
        recent.folded(entry(1, 4), Some(2));
        assert_eq!((recent.offset(entry(1, 3)), recent.offset(entry(1, 4))), (None, Some(102)));
        (5..20_000).for_each(|seq| recent.folded(entry(1, seq), Some(seq as i64)));
        assert_eq!(recent.noted().before.len(), NOTED_MAX);
        assert_eq!(recent.offset(entry(1, 19_999)), Some(100 + 19_999));
        assert_eq!(recent.offset(entry(1, 4)), None);
    }
}
