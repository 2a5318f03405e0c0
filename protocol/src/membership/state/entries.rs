//! [`Entries`]: collection of one node's current entries, for lookup by key and iteration by version.
//!
//! Two sorted vectors of shared pointers. Every node holds the entries of all nodes, and most nodes have two
//! entries, for which two trees would take ten times the memory. With thousands of entries, an insertion
//! takes microseconds to move pointers.

use std::sync::Arc;

use crate::{
    Version,
    record::{Entry, Key},
};

/// Entries of one node, at most one for each key. A faulty owner may give the same version to two entries.
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
        self.find(key).ok().and_then(|position| self.by_key.get(position))
    }

    /// Entries in the order of their keys, the header first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.by_key.iter().map(Arc::as_ref)
    }

    /// Entries in the order of their versions.
    pub(super) fn in_order(&self) -> impl Iterator<Item = &Entry> {
        self.by_version.iter().map(Arc::as_ref)
    }

    /// Entries in the reverse order of their versions.
    pub(super) fn latest(&self) -> impl Iterator<Item = &Entry> {
        self.by_version.iter().rev().map(Arc::as_ref)
    }

    /// Entries below a version.
    pub(super) fn before(&self, version: Version) -> impl Iterator<Item = &Entry> {
        self.in_order().take_while(move |entry| entry.fact.version < version)
    }

    /// Inserts an entry, and returns the one that it replaces.
    pub(super) fn insert(&mut self, entry: Entry) -> Option<Arc<Entry>> {
        let old = self.remove(&entry.fact.key);
        let entry = Arc::new(entry);
        let position = self.position_by_version(&entry);
        self.by_version.insert(position, Arc::clone(&entry));
        let (Ok(position) | Err(position)) = self.find(&entry.fact.key);
        self.by_key.insert(position, entry);
        old
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Entry>> {
        let old = self.by_key.remove(self.find(key).ok()?);
        self.by_version.remove(self.position_by_version(&old));
        Some(old)
    }

    fn find(&self, key: &Key) -> Result<usize, usize> {
        self.by_key.binary_search_by(|entry| entry.fact.key.cmp(key))
    }

    fn position_by_version(&self, entry: &Entry) -> usize {
        let (version, key) = (entry.fact.version, &entry.fact.key);
        self.by_version.partition_point(|other| (other.fact.version, &other.fact.key) < (version, key))
    }
}
