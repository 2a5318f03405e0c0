//! [`Extents`]: records which entries of each feed (the log of one writer since its start) this disk has, as
//! version vectors with gaps. Replicas compare one hash over all of them.

use std::collections::BTreeMap;

use super::{
    feed::{EntryId, FeedId, Seq},
    message::Extent,
};
use crate::{NodeId, version_set::VersionSet, wire::codec};

/// Feeds of a topic, at most. Each start of a node that writes creates one: a hundred nodes that restart
/// daily reach this after almost two years.
const FEEDS_MAX: usize = 64 * 1024;
/// Feeds of one writer, at most: a writer that restarts every hour reaches this after a year.
const FEEDS_PER_WRITER_MAX: usize = 8 * 1024;
/// Feeds that each live replica may have, however many feeds others have.
const FEEDS_GUARANTEED: usize = 64;
/// Bytes of extents in one message, by the estimates below.
const PAGE_BYTES: usize = 128 * 1024;
/// Encoded size of an extent without ranges: writer, boot number, watermark and count. Each range adds
/// [`RANGE_BYTES`].
const EXTENT_BYTES: usize = 60;
const RANGE_BYTES: usize = 18;

/// What this node knows of a writer. The higher the standing, the more room its feeds have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Standing {
    /// Not known to have kept the topic: a replica that ended before this node started, or an invention.
    Unknown,
    /// In the replica set, now or before an operator forgot it, but not alive. Other replicas state this.
    Former,
    /// A live replica, or this node.
    Live,
}

impl Standing {
    /// Number of feeds of all writers above which a writer of this standing begins no further feed.
    fn feeds_max(self) -> usize {
        match self {
            Self::Unknown => FEEDS_MAX / 4,
            Self::Former => FEEDS_MAX / 2,
            Self::Live => FEEDS_MAX,
        }
    }
}

/// Extents of all feeds.
#[derive(Debug, Default)]
pub struct Extents {
    feeds: BTreeMap<FeedId, VersionSet>,
    root: [u8; 16],
}

impl Extents {
    /// Extents of the feeds on a disk.
    pub fn restored(feeds: impl IntoIterator<Item = Extent>) -> Self {
        let mut extents = Self::default();
        for Extent { feed, seen } in feeds {
            extents.replace(feed, seen);
        }
        extents
    }

    /// Root hash. Two replicas with the same extents have the same hash.
    pub fn root(&self) -> [u8; 16] {
        self.root
    }

    /// Extent of a feed.
    pub fn of(&self, feed: FeedId) -> Extent {
        Extent { feed, seen: self.feeds.get(&feed).cloned().unwrap_or_default() }
    }

    /// Whether every entry in another replica's extent is on this disk, or was dropped from it.
    pub fn covers(&self, theirs: &Extent) -> bool {
        match self.feeds.get(&theirs.feed) {
            Some(seen) => seen.contains_all(&theirs.seen),
            None => theirs.seen == VersionSet::default(),
        }
    }

    /// Whether an entry is on this disk, or was dropped from it.
    pub fn has(&self, id: EntryId) -> bool {
        self.feeds.get(&id.feed).is_some_and(|seen| seen.contains(id.seq))
    }

    /// Whether entries of a feed can be stored: the feed is known, or the writer may begin another one.
    pub(super) fn has_room(&self, feed: FeedId, standing: Standing) -> bool {
        if self.feeds.contains_key(&feed) {
            return true;
        }
        let own = self.feeds_of(feed.writer);
        let is_guaranteed = standing == Standing::Live && own < FEEDS_GUARANTEED;
        is_guaranteed || (self.feeds.len() < standing.feeds_max() && own < FEEDS_PER_WRITER_MAX)
    }

    /// Number of feeds of a writer.
    pub(super) fn feeds_of(&self, writer: NodeId) -> usize {
        let feed = |boot| FeedId { writer, boot };
        self.feeds.range(feed(0)..=feed(u64::MAX)).count()
    }

    /// Adds stored entries.
    pub fn insert(&mut self, feed: FeedId, start: Seq, end: Seq) {
        let mut seen = self.feeds.get(&feed).cloned().unwrap_or_default();
        seen.insert_range(start, end);
        self.replace(feed, seen);
    }

    /// Replaces the extent of a feed.
    pub fn replace(&mut self, feed: FeedId, seen: VersionSet) {
        if let Some(before) = self.feeds.remove(&feed) {
            self.toggle_hash(feed, before);
        }
        // A feed without entries is not listed.
        if seen != VersionSet::default() {
            self.toggle_hash(feed, seen.clone());
            self.feeds.insert(feed, seen);
        }
    }

    /// Adds an extent's hash to the root hash, or removes it (XOR does both).
    fn toggle_hash(&mut self, feed: FeedId, seen: VersionSet) {
        let hash = blake3::hash(&codec::encode(&Extent { feed, seen }));
        self.root.iter_mut().zip(hash.as_bytes()).for_each(|(byte, other)| *byte ^= other);
    }

    /// Extents of the feeds after `after` that fit into a message, and whether there are more.
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

    /// Extents of all feeds.
    pub fn iter(&self) -> impl Iterator<Item = (FeedId, &VersionSet)> {
        self.feeds.iter().map(|(feed, seen)| (*feed, seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Version;

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
        b.replace(feed(1), VersionSet::default());
        b.replace(feed(2), VersionSet::default());
        assert_eq!(b.root(), Extents::default().root());
    }

    #[test]
    fn invented_writers_and_lives_leave_room_for_live_replicas() {
        let of = |writer: u32, boot| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&writer.to_be_bytes());
            FeedId { writer: NodeId::from_public_key(key), boot }
        };
        let mut extents = Extents::default();
        let mut begin = |feed, standing| {
            let has_room = extents.has_room(feed, standing);
            if has_room {
                extents.insert(feed, Version(1), Version(1));
            }
            has_room
        };
        let lives = (0..8_500).filter(|boot| begin(of(0, *boot), Standing::Live)).count();
        assert_eq!(lives, FEEDS_PER_WRITER_MAX, "lives of one writer");
        assert!(begin(of(0, 1), Standing::Unknown), "a known feed continues");
        let invented = (1..100_000).filter(|writer| begin(of(*writer, 1), Standing::Unknown)).count();
        assert_eq!(lives + invented, FEEDS_MAX / 4);
        let former = (100_000..200_000).filter(|writer| begin(of(*writer, 1), Standing::Former)).count();
        assert_eq!(lives + invented + former, FEEDS_MAX / 2);
        let live = (200_000..300_000).filter(|writer| begin(of(*writer, 1), Standing::Live)).count();
        assert_eq!(live, 100_000, "every live replica begins feeds");
        let more = (2..1_000).filter(|boot| begin(of(299_999, *boot), Standing::Live)).count();
        assert_eq!(more, FEEDS_GUARANTEED - 1);
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
