//! What one node has stated: its entries, and which versions of it were seen.

use std::sync::Arc;

use super::{Hash, entries::Entries, entry_hash, xor};
use crate::{
    Incarnation, Version,
    record::{Entry, Header, Key},
    seen::Seen,
};

/// What one node has stated in its current life.
#[derive(Debug)]
pub struct Statements {
    pub(super) incarnation: Incarnation,
    pub(super) header: Header,
    pub(super) entries: Entries,
    pub(super) seen: Seen,
    /// Set after a gap below the floor: entries below it count as seen only once a page has confirmed them.
    pub(super) unconfirmed_below: Version,
    pub(super) hash: Hash,
    pub(super) failed: bool,
    pub(super) instances: usize,
}

impl Statements {
    /// The current life.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// What it says of itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The version of the header: what evidence refers to.
    pub fn header_version(&self) -> Version {
        self.entries.get(&Key::Header).map_or(Version(0), |e| e.fact.version)
    }

    /// The entry of a key, tombstones included.
    pub fn entry(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key).map(Arc::as_ref)
    }

    /// The value of a key; `None` if it has none, or a tombstone.
    pub fn value(&self, key: &Key) -> Option<&[u8]> {
        self.entry(key)?.fact.value.as_deref()
    }

    /// All entries in the order of their keys, the header first, tombstones included.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The highest version seen.
    pub fn highest(&self) -> Version {
        self.seen.highest()
    }

    pub(super) fn put(&mut self, entry: Entry) {
        let version = entry.fact.version;
        if version >= self.unconfirmed_below {
            self.seen.insert(version);
        }
        self.instances += usize::from(is_live_instance(&entry));
        xor(&mut self.hash, &entry_hash(&entry));
        if let Some(old) = self.entries.insert(entry) {
            self.forget(&old);
        }
    }

    /// Which entry there is no room for if this one is to have some: the last stated of those that compete
    /// with it, if it was stated later. So everybody keeps the same of a node that states too much, whatever
    /// came first; otherwise they would never agree.
    pub(super) fn later_than(&self, entry: &Entry) -> Option<Key> {
        let competes = |other: &&Entry| {
            other.fact.key != Key::Header && (!is_live_instance(entry) || is_live_instance(other))
        };
        let last = self.entries.latest().find(competes)?;
        (last.fact.version > entry.fact.version).then(|| last.fact.key.clone())
    }

    /// A new floor has come: tombstones below it go, and if there are gaps, so does the claim to have seen
    /// anything below it.
    pub(super) fn collect(&mut self, floor: Version) {
        if self.seen.watermark().next() < floor {
            self.unconfirmed_below = floor;
            let below = Seen::up_to(Version(floor.0.saturating_sub(1)));
            self.seen = self.seen.without(&below);
            self.seen.insert(self.header_version());
        }
        let dead = self.entries.before(floor).filter(|e| e.fact.value.is_none());
        let dead: Vec<Key> = dead.map(|e| e.fact.key.clone()).collect();
        dead.iter().for_each(|key| {
            self.remove(key);
        });
    }

    /// The key of the instance that was stated last.
    pub(super) fn last_instance(&self) -> Option<Key> {
        self.entries.latest().find(|entry| is_live_instance(entry)).map(|entry| entry.fact.key.clone())
    }

    /// Removes an entry as if it had never come, so that it is asked for again once there is room.
    pub(super) fn leave_out(&mut self, key: &Key) -> Option<Arc<Entry>> {
        let old = self.remove(key)?;
        let mut version = Seen::default();
        version.insert(old.fact.version);
        self.seen = self.seen.without(&version);
        Some(old)
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Entry>> {
        let old = self.entries.remove(key)?;
        self.forget(&old);
        Some(old)
    }

    fn forget(&mut self, old: &Entry) {
        self.instances -= usize::from(is_live_instance(old));
        xor(&mut self.hash, &entry_hash(old));
    }
}

pub(super) fn is_live_instance(entry: &Entry) -> bool {
    matches!(entry.fact.key, Key::Instance(_)) && entry.fact.value.is_some()
}
