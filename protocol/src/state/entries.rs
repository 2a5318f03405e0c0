//! The entries of one node, to be found by key and by version.
//!
//! Two sorted vectors of shared pointers: most nodes have two entries, for which two trees would take ten times as much memory, and every
//! node keeps this of every other. Where one has thousands, moving the pointers behind a new one still costs only microseconds.

use std::sync::Arc;

use crate::{
    Version,
    record::{Entry, Key},
};

/// At most one entry of each key. An owner that counts wrong may give two of them one version.
#[derive(Debug, Default)]
pub(super) struct Entries {
    by_key: Vec<Arc<Entry>>,
    by_version: Vec<Arc<Entry>>,
}

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.by_key.len()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Entry>> {
        self.find(key).ok().and_then(|place| self.by_key.get(place))
    }

    /// In the order of their keys: the header first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.by_key.iter().map(Arc::as_ref)
    }

    /// In the order in which they were stated.
    pub(super) fn in_order(&self) -> impl Iterator<Item = &Entry> {
        self.by_version.iter().map(Arc::as_ref)
    }

    /// The last stated first.
    pub(super) fn latest(&self) -> impl Iterator<Item = &Entry> {
        self.by_version.iter().rev().map(Arc::as_ref)
    }

    /// Those stated before this version.
    pub(super) fn before(&self, version: Version) -> impl Iterator<Item = &Entry> {
        self.in_order().take_while(move |entry| entry.fact.version < version)
    }

    /// Puts an entry in, and returns the one that had its key.
    pub(super) fn insert(&mut self, entry: Entry) -> Option<Arc<Entry>> {
        let old = self.remove(&entry.fact.key);
        let entry = Arc::new(entry);
        let place = self.place_in_order(&entry);
        self.by_version.insert(place, Arc::clone(&entry));
        let (Ok(place) | Err(place)) = self.find(&entry.fact.key);
        self.by_key.insert(place, entry);
        old
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Entry>> {
        let old = self.by_key.remove(self.find(key).ok()?);
        self.by_version.remove(self.place_in_order(&old));
        Some(old)
    }

    fn find(&self, key: &Key) -> Result<usize, usize> {
        self.by_key.binary_search_by(|entry| entry.fact.key.cmp(key))
    }

    fn place_in_order(&self, entry: &Entry) -> usize {
        let (version, key) = (entry.fact.version, &entry.fact.key);
        self.by_version.partition_point(|other| (other.fact.version, &other.fact.key) < (version, key))
    }
}
