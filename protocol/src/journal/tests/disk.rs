//! In-memory disk of a simulated node.

use super::*;

/// Simulated disk, which survives the process of its node.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) entries: BTreeMap<EntryId, (ChainHash, JournalEntry)>,
    /// Stored runs by feed and first number.
    pub(super) runs: BTreeMap<(FeedId, Seq), Run>,
    /// Last dropped entry of each feed.
    pub(super) dropped: BTreeMap<FeedId, Seq>,
    pub(super) full: bool,
    /// Replica set.
    pub(super) replicas: BTreeMap<NodeId, u64>,
}

impl Disk {
    pub(super) fn store(&mut self, run: &Run, hashes: &[ChainHash]) {
        for (index, (entry, hash)) in run.entries.iter().zip(hashes).enumerate() {
            let id = EntryId { feed: run.feed, seq: Version(run.start.0 + index as u64) };
            let (held, _) = self.entries.entry(id).or_insert_with(|| (*hash, entry.clone()));
            assert_eq!(held, hash, "one number, two entries");
        }
        self.runs.insert((run.feed, run.start), run.clone());
    }

    pub(super) fn restored(&self) -> RestoredJournal {
        let mut feeds: BTreeMap<FeedId, VersionSet> = BTreeMap::new();
        self.entries.keys().for_each(|id| feeds.entry(id.feed).or_default().insert(id.seq));
        RestoredJournal {
            extents: feeds.into_iter().map(|(feed, seen)| Extent { feed, seen }).collect(),
            latest: self.latest(),
            replicas: self.replicas.clone().into_iter().collect(),
        }
    }

    /// Latest moment of all entries.
    pub(super) fn latest(&self) -> Moment {
        self.entries.values().map(|(_, entry)| moment(entry)).max().unwrap_or_default()
    }

    pub(super) fn load(&self, wanted: &Extent) -> Vec<Run> {
        let lacking = |run: &&Run| (run.start.0..=run.end().0).any(|seq| !wanted.seen.contains(Version(seq)));
        let feed = self.runs.range((wanted.feed, Version(0))..=(wanted.feed, Version(u64::MAX)));
        feed.map(|(_, run)| run).filter(lacking).take(3).cloned().collect()
    }

    pub(super) fn with_key(&self, key: &str) -> Option<(EntryId, JournalEntry)> {
        let found = self.entries.iter().find(|(_, (_, entry))| entry.key.as_deref() == Some(key));
        found.map(|(id, (_, entry))| (*id, entry.clone()))
    }
}
