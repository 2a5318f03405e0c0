//! What of each feed is on this disk: version vectors with gaps, and one hash over all of them.

use std::collections::BTreeMap;

use super::{
    feed::{EntryId, FeedId, Seq},
    message::Extent,
};
use crate::{seen::Seen, wire::codec};

/// The most feeds of a topic. Each life of each writer makes one, if it writes: a hundred nodes restarted daily for half a year.
pub const FEEDS_MAX: usize = 16 * 1024;
/// Bytes of extents in one message, by the estimate below.
const PAGE_BYTES: usize = 128 * 1024;
/// A writer, a boot number, a watermark and the number of ranges; and each range.
const EXTENT_BYTES: usize = 60;
const RANGE_BYTES: usize = 18;

/// The extents of all feeds.
#[derive(Debug, Default)]
pub struct Extents {
    feeds: BTreeMap<FeedId, Seen>,
    root: [u8; 16],
}

impl Extents {
    /// Those that a disk holds.
    pub fn restored(feeds: impl IntoIterator<Item = Extent>) -> Self {
        let mut extents = Self::default();
        for Extent { feed, seen } in feeds {
            extents.replace(feed, seen);
        }
        extents
    }

    /// Over everything here. Two replicas with the same one have the same entries.
    pub fn root(&self) -> [u8; 16] {
        self.root
    }

    /// How far this feed is here.
    pub fn of(&self, feed: FeedId) -> Extent {
        Extent { feed, seen: self.feeds.get(&feed).cloned().unwrap_or_default() }
    }

    /// Whether everything that somebody else has of a feed is here, or was.
    pub fn covers(&self, theirs: &Extent) -> bool {
        match self.feeds.get(&theirs.feed) {
            Some(seen) => seen.contains_all(&theirs.seen),
            None => theirs.seen == Seen::default(),
        }
    }

    /// Whether this entry is here, or was.
    pub fn has(&self, id: EntryId) -> bool {
        self.feeds.get(&id.feed).is_some_and(|seen| seen.contains(id.seq))
    }

    /// Whether there is room for something of this feed.
    pub fn has_room(&self, feed: FeedId) -> bool {
        self.feeds.len() < FEEDS_MAX || self.feeds.contains_key(&feed)
    }

    /// This is on the disk now.
    pub fn insert(&mut self, feed: FeedId, start: Seq, end: Seq) {
        let mut seen = self.feeds.get(&feed).cloned().unwrap_or_default();
        seen.insert_range(start, end);
        self.replace(feed, seen);
    }

    /// Nothing else of this feed is on the disk.
    pub fn replace(&mut self, feed: FeedId, seen: Seen) {
        if let Some(before) = self.feeds.remove(&feed) {
            self.mix(feed, before);
        }
        // A feed of which nothing is here is no different from one never heard of.
        if seen != Seen::default() {
            self.mix(feed, seen.clone());
            self.feeds.insert(feed, seen);
        }
    }

    /// In or out: the exclusive or of all hashes does not depend on the order.
    fn mix(&mut self, feed: FeedId, seen: Seen) {
        let hash = blake3::hash(&codec::encode(&Extent { feed, seen }));
        self.root.iter_mut().zip(hash.as_bytes()).for_each(|(byte, other)| *byte ^= other);
    }

    /// The extents above `after`, as many as fit into a message, and whether there are more.
    pub fn page(&self, after: Option<FeedId>) -> (Vec<Extent>, bool) {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut budget = PAGE_BYTES;
        let mut page = Vec::new();
        for (feed, seen) in self.feeds.range((from, Bound::Unbounded)) {
            let bytes = EXTENT_BYTES + RANGE_BYTES * seen.ranges();
            if bytes > budget {
                return (page, true);
            }
            budget -= bytes;
            page.push(Extent { feed: *feed, seen: seen.clone() });
        }
        (page, false)
    }

    /// All feeds.
    pub fn iter(&self) -> impl Iterator<Item = (FeedId, &Seen)> {
        self.feeds.iter().map(|(feed, seen)| (*feed, seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NodeId, Version};

    fn feed(boot: u64) -> FeedId {
        FeedId { writer: NodeId::from_public_key([1; 32]), boot }
    }

    #[test]
    fn the_root_depends_on_what_is_here_and_not_on_how_it_came() {
        let mut a = Extents::default();
        let mut b = Extents::default();
        a.insert(feed(1), Version(1), Version(5));
        a.insert(feed(2), Version(1), Version(1));
        b.insert(feed(2), Version(1), Version(1));
        b.insert(feed(1), Version(4), Version(5));
        assert_ne!(a.root(), b.root());
        assert!(a.covers(&b.of(feed(1))) && !b.covers(&a.of(feed(1))));
        b.insert(feed(1), Version(1), Version(3));
        assert_eq!(a.root(), b.root());
        b.replace(feed(1), Seen::default());
        b.replace(feed(2), Seen::default());
        assert_eq!(b.root(), Extents::default().root());
    }

    #[test]
    fn pages_reach_every_feed_once() {
        let mut extents = Extents::default();
        (0..5_000).for_each(|boot| extents.insert(feed(boot), Version(1), Version(1)));
        let mut all = Vec::new();
        loop {
            let (page, more) = extents.page(all.last().map(|e: &Extent| e.feed));
            assert!(codec::encode(&page).len() <= PAGE_BYTES);
            all.extend(page);
            if !more {
                break;
            }
        }
        assert_eq!(all.len(), 5_000);
    }
}
