//! [`Statements`] of one node: its entries in the current life, their hash, and the versions seen. Removes
//! old tombstones, and selects the entry that gives way when there is no room.

use std::sync::Arc;

use super::{
    entries::Entries,
    hash::{Hash, entry_hash, truncate, xor},
};
use crate::{
    Incarnation, NodeId, Version,
    record::{Entry, Header, Key},
    version_set::VersionSet,
};

/// Entries of one node's current life.
#[derive(Debug)]
pub struct Statements {
    pub(super) incarnation: Incarnation,
    pub(super) header: Header,
    pub(super) entries: Entries,
    pub(super) seen: VersionSet,
    /// Versions below this one count as seen only once a page confirms them. It is the floor if versions
    /// below it were missing, else 0.
    pub(super) unconfirmed_below: Version,
    pub(super) hash: Hash,
    pub(super) failed: bool,
    pub(super) instances: usize,
}

impl Statements {
    /// Incarnation that the entries belong to.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Decoded header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Version of the header, to which evidence refers.
    pub fn header_version(&self) -> Version {
        self.entries.get(&Key::Header).map_or(Version(0), |e| e.fact.version)
    }

    /// Entry of a key, tombstones included.
    pub fn entry(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key).map(Arc::as_ref)
    }

    /// Value of a key; `None` without an entry or with a tombstone.
    pub fn value(&self, key: &Key) -> Option<&[u8]> {
        self.entry(key)?.fact.value.as_deref()
    }

    /// All entries in the order of their keys, the header first, tombstones included.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Highest version seen.
    pub fn highest(&self) -> Version {
        self.seen.highest()
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        let version = entry.fact.version;
        if version >= self.unconfirmed_below {
            self.seen.insert(version);
        }
        self.instances += usize::from(is_live_instance(&entry));
        xor(&mut self.hash, &entry_hash(&entry));
        if let Some(old) = self.entries.insert(entry) {
            self.uncount(&old);
        }
    }

    /// Key of the entry that must give way to `entry` when there is no room for both: the competing entry
    /// with the highest version, if that version is higher than `entry`'s. So every node keeps the lowest
    /// versions, whatever the order of arrival.
    pub(super) fn displaced_by(&self, entry: &Entry) -> Option<Key> {
        let competes = |other: &&Entry| {
            other.fact.key != Key::Header && (!is_live_instance(entry) || is_live_instance(other))
        };
        let last = self.entries.latest().find(competes)?;
        (last.fact.version > entry.fact.version).then(|| last.fact.key.clone())
    }

    /// Applies a new floor: removes the tombstones below it. If any version below the floor is missing, all
    /// versions below it count as unseen until a page confirms them (the header's excepted).
    pub(super) fn collect_tombstones(&mut self, floor: Version) {
        if self.seen.watermark().next() < floor {
            self.unconfirmed_below = floor;
            let below = VersionSet::up_to(Version(floor.0.saturating_sub(1)));
            self.seen = self.seen.without(&below);
            self.seen.insert(self.header_version());
        }
        let dead = self.entries.before(floor).filter(|e| e.fact.value.is_none());
        let dead: Vec<Key> = dead.map(|e| e.fact.key.clone()).collect();
        dead.iter().for_each(|key| {
            self.remove(key);
        });
    }

    /// Key of the instance with the highest version.
    pub(super) fn last_instance(&self) -> Option<Key> {
        self.entries.latest().find(|entry| is_live_instance(entry)).map(|entry| entry.fact.key.clone())
    }

    /// Removes an entry, and its version from those seen, so that the entry is fetched again once there is
    /// room.
    pub(super) fn remove_unseen(&mut self, key: &Key) -> Option<Arc<Entry>> {
        let old = self.remove(key)?;
        let mut version = VersionSet::default();
        version.insert(old.fact.version);
        self.seen = self.seen.without(&version);
        Some(old)
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Entry>> {
        let old = self.entries.remove(key)?;
        self.uncount(&old);
        Some(old)
    }

    fn uncount(&mut self, old: &Entry) {
        self.instances -= usize::from(is_live_instance(old));
        xor(&mut self.hash, &entry_hash(old));
    }
}

pub(super) fn is_live_instance(entry: &Entry) -> bool {
    matches!(entry.fact.key, Key::Instance(_)) && entry.fact.value.is_some()
}

/// Hash of one node's entries and state, as part of the root hash.
pub(super) fn node_hash(node: NodeId, statements: &Statements) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(node.public_key()).update(&statements.incarnation.0.to_le_bytes());
    hasher.update(&[u8::from(statements.failed)]).update(&statements.hash);
    truncate(&hasher.finalize())
}
