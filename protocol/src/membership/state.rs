//! [`State`]: the signed entries that all nodes have stated about themselves, replicated on every node.
//!
//! Entries arrive in any order, by gossip and by anti-entropy, some repeatedly and some never. Two rules make
//! all nodes hold the same entries: a higher incarnation replaces all entries of a lower one, and within an
//! incarnation each key keeps its highest version. The versions seen show which entries are missing
//! ([`VersionSet`]); the highest version alone would not.
//!
//! - **A header opens an incarnation.** Entries that arrive before the header are refused for now;
//!   anti-entropy sends headers first.
//! - **Tombstones** keep deleted keys from coming back. Their owner removes them after an hour by raising the
//!   `floor` in its header, so that all nodes remove the same tombstones at the same version. A node with
//!   gaps below a new floor may hold entries that were deleted there. It drops its record of the versions
//!   *seen* below the floor, receives the entries again, and removes those that no page confirms. Only a node
//!   that knows the floor confirms entries. Its page covers only versions whose entries it sends or does not
//!   hold, and no version that the receiver called seen: the receiver may have dropped that record since.
//! - **Forgotten members and removed keys do not return.** Entries of a forgotten member, or of a key below
//!   its node's floor, are refused when another node still sends them. The member itself returns by stating a
//!   newer header; this node requests one.
//!
//! The list of versions that a page covers is not signed. So a *member* that lies can withhold another node's
//! entries from nodes that compare with this member alone. This ends when they compare with another node,
//! because the hashes differ. A lie can never invent an entry.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use crate::{
    Incarnation, NodeId, Version,
    config::Config,
    record::{Entry, EntryError, Header, Key, Presence},
    version_set::VersionSet,
    wire::{Digest, PAGE_BYTES, Page},
};

mod entries;
mod hash;
mod statements;

use entries::Entries;
pub(crate) use hash::Hash;
use hash::xor;
pub(crate) use statements::Statements;
use statements::{is_live_instance, node_hash};

/// Forgotten members whose old entries are refused. If there are more, the one with the oldest incarnation is
/// dropped.
const FORGOTTEN_MAX: usize = 4096;
/// Recently forgotten members listed to peers. Peers compare within seconds, and more members are hardly ever
/// forgotten in that time.
const LISTED_FORGOTTEN_MAX: usize = 256;

/// Parts into which the table is divided by node id. If two tables differ little, few nodes are listed.
const PARTS: usize = 64;
/// All parts, one bit each.
pub(crate) const ALL_PARTS: u64 = u64::MAX;

fn part_of(node: NodeId) -> usize {
    usize::from(node.public_key()[0]) % PARTS
}

/// Effect of an entry on the state.
#[derive(Debug, PartialEq, Eq)]
pub enum Applied {
    /// The first header of a node or of its new life. All entries of the old life are removed.
    NewLife,
    /// A newer entry of the current life, with the entry that it replaced.
    Updated(Option<Arc<Entry>>),
    /// Already known, superseded, or removed.
    Stale,
    /// Of a life whose header has not arrived.
    NoHeader,
    /// The table, or this node's part of it, is full.
    Full,
    /// Forged or malformed.
    Refused(EntryError),
}

/// The entries of all nodes.
#[derive(Debug)]
pub struct State {
    cluster: String,
    nodes: BTreeMap<NodeId, Statements>,
    root: Hash,
    parts: [u64; PARTS],
    /// Last incarnation and header version of each forgotten member.
    forgotten: BTreeMap<NodeId, (Incarnation, Version)>,
    /// Recently forgotten members in order. Some occur more than once.
    recently_forgotten: VecDeque<NodeId>,
    evicted: Vec<Arc<Entry>>,
    members_max: usize,
    entries_per_node_max: usize,
    instances_per_node_max: usize,
    instances_max: usize,
    /// Instances of all nodes.
    instances: usize,
    /// The node that holds this state; see [`State::set_own`].
    own: Option<NodeId>,
}

impl State {
    /// State without entries.
    pub fn new(config: &Config) -> Self {
        Self {
            cluster: config.cluster.clone(),
            nodes: BTreeMap::new(),
            root: Hash::default(),
            parts: [0; PARTS],
            forgotten: BTreeMap::new(),
            evicted: Vec::new(),
            recently_forgotten: VecDeque::new(),
            members_max: config.members_max,
            entries_per_node_max: config.entries_per_node_max,
            instances_per_node_max: config.instances_per_node_max,
            instances_max: config.instances_max,
            instances: 0,
            own: None,
        }
    }

    /// Sets the node that holds this state. Its own instances are never displaced.
    pub fn set_own(&mut self, own: NodeId) {
        self.own = Some(own);
    }

    /// Root hash. Two nodes that hold the same entries and the same members failed have the same hash.
    pub fn root(&self) -> Hash {
        self.root
    }

    /// Hash of each part of the table. The XOR of all of them is the first half of the root hash.
    pub fn parts(&self) -> &[u64] {
        &self.parts
    }

    /// Parts in which another table differs, one bit each; all parts if no hash differs.
    pub fn differing_parts(&self, theirs: &[u64]) -> u64 {
        let differs = |part: usize| theirs.get(part) != self.parts.get(part);
        let parts = (0..PARTS).filter(|part| differs(*part)).fold(0, |parts, part| parts | 1 << part);
        if parts == 0 { ALL_PARTS } else { parts }
    }

    /// Entries of one node.
    pub fn node(&self, node: NodeId) -> Option<&Statements> {
        self.nodes.get(&node)
    }

    /// Entries of all nodes, in the order of node ids.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Statements)> {
        self.nodes.iter().map(|(id, statements)| (*id, statements))
    }

    /// Number of known nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no node is known.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Applies an entry from any peer. Checks the signature only if the entry is new or fills a gap.
    pub fn apply(&mut self, entry: Entry) -> Applied {
        self.apply_checked(entry, |entry, cluster| entry.check(cluster))
    }

    /// Applies an entry that this node has just signed. Skips the signature check, which takes twice as long
    /// as signing.
    pub(crate) fn apply_own(&mut self, entry: Entry) -> Applied {
        self.apply_checked(entry, |entry, _| entry.check_statement())
    }

    fn apply_checked(
        &mut self,
        entry: Entry,
        check: impl FnOnce(&Entry, &str) -> Result<(), EntryError>,
    ) -> Applied {
        let fact = &entry.fact;
        if fact.version == Version(0) {
            return Applied::Stale;
        }
        if self.is_stale(&entry) {
            return self.record_superseded(&entry);
        }
        let known = self.nodes.get(&fact.node);
        let current = known.filter(|s| s.incarnation == fact.incarnation);
        if current.is_none() && fact.key != Key::Header {
            return Applied::NoHeader;
        }
        let mut evicted_key = None;
        let mut displaced = None;
        if self.is_node_full(&entry, known, current) {
            evicted_key = current.and_then(|s| s.displaced_by(&entry));
            if evicted_key.is_none() {
                return Applied::Full;
            }
        } else if self.exceeds_instances_max(&entry, current) {
            displaced = self.displaced_instance(&entry);
            if displaced.is_none() {
                return Applied::Full;
            }
        }
        if let Err(error) = check(&entry, &self.cluster) {
            return Applied::Refused(error);
        }
        if let Some(key) = evicted_key {
            let evicted = self.update_node(entry.fact.node, |s| s.remove(&key)).flatten();
            self.evicted.extend(evicted);
        }
        if let Some((node, key)) = displaced {
            let displaced = self.update_node(node, |s| s.remove_unseen(&key)).flatten();
            self.evicted.extend(displaced);
        }
        match self.nodes.get(&entry.fact.node).is_some_and(|s| s.incarnation == entry.fact.incarnation) {
            true => self.insert_entry(entry),
            false => self.begin_life(entry),
        }
    }

    /// Removes and returns the entries evicted since the last call. Of a node that states more than its
    /// limit, the entries with the lowest versions are kept.
    pub fn take_evicted(&mut self) -> Vec<Arc<Entry>> {
        std::mem::take(&mut self.evicted)
    }

    fn is_stale(&self, entry: &Entry) -> bool {
        let fact = &entry.fact;
        let Some(known) = self.nodes.get(&fact.node) else {
            return self.forgotten.get(&fact.node).is_some_and(|(incarnation, version)| {
                let newer_header = fact.key == Key::Header && fact.version > *version;
                fact.incarnation < *incarnation || fact.incarnation == *incarnation && !newer_header
            });
        };
        if fact.incarnation != known.incarnation {
            return fact.incarnation < known.incarnation;
        }
        match known.entries.get(&fact.key) {
            Some(current_entry) => fact.version <= current_entry.fact.version,
            // The version is seen, below the floor, and no entry has the key: a tombstone superseded it and
            // is removed.
            None => fact.version < known.header.floor && known.seen.contains(fact.version),
        }
    }

    /// Counts the version of a superseded entry as seen, if its owner signed it. Otherwise gossip that
    /// arrives out of order would leave gaps. Each digest would list them, and each new floor would cause
    /// this node to fetch all entries again.
    fn record_superseded(&mut self, entry: &Entry) -> Applied {
        let fact = &entry.fact;
        let Some(s) = self.nodes.get_mut(&fact.node).filter(|s| s.incarnation == fact.incarnation) else {
            return Applied::Stale;
        };
        if fact.version >= s.unconfirmed_below && !s.seen.contains(fact.version) {
            if let Err(error) = entry.check(&self.cluster) {
                return Applied::Refused(error);
            }
            s.seen.insert(fact.version);
        }
        Applied::Stale
    }

    fn is_node_full(&self, entry: &Entry, known: Option<&Statements>, current: Option<&Statements>) -> bool {
        match current {
            None => known.is_none() && self.nodes.len() >= self.members_max,
            Some(s) => {
                let current_entry = s.entries.get(&entry.fact.key);
                current_entry.is_none() && s.entries.len() >= self.entries_per_node_max
                    || is_live_instance(entry)
                        && !current_entry.is_some_and(|entry| is_live_instance(entry))
                        && s.instances >= self.instances_per_node_max
            }
        }
    }

    /// Whether an entry would exceed the limit of instances of other nodes.
    fn exceeds_instances_max(&self, entry: &Entry, current: Option<&Statements>) -> bool {
        let current_entry = current.and_then(|s| s.entries.get(&entry.fact.key));
        let own = self.own.and_then(|own| self.nodes.get(&own)).map_or(0, |own| own.instances);
        is_live_instance(entry)
            && !current_entry.is_some_and(|entry| is_live_instance(entry))
            && self.instances - own >= self.instances_max
            && self.own != Some(entry.fact.node)
    }

    /// Instance that this entry displaces: the last one of the newest node, if it comes after this entry in
    /// the order of incarnation, node and version.
    ///
    /// In that order each node keeps the first `instances_max` instances of other nodes, whatever the order
    /// of arrival, and all of its own instances. So if the table is full, two nodes differ in their own
    /// instances, and each comparison finds the difference. This costs a few pages every `sync_interval`, and
    /// fetches displaced instances once there is room. With one bound for all instances, a node would
    /// withdraw its own registrations.
    fn displaced_instance(&self, entry: &Entry) -> Option<(NodeId, Key)> {
        let others = self.nodes.iter().filter(|(id, s)| s.instances > 0 && self.own != Some(**id));
        let (newest, statements) = others.max_by_key(|(id, s)| (s.incarnation, **id))?;
        let key = match (statements.incarnation, *newest).cmp(&(entry.fact.incarnation, entry.fact.node)) {
            Ordering::Greater => statements.last_instance(),
            Ordering::Equal => statements.displaced_by(entry),
            Ordering::Less => None,
        };
        key.map(|key| (*newest, key))
    }

    /// Applies a change to one node's entries, and updates the root hash and the count of instances.
    fn update_node<R>(&mut self, node: NodeId, update: impl FnOnce(&mut Statements) -> R) -> Option<R> {
        let statements = self.nodes.get_mut(&node)?;
        let before = node_hash(node, statements);
        self.instances -= statements.instances;
        let result = update(statements);
        self.instances += statements.instances;
        let after = node_hash(node, statements);
        self.toggle_hash(node, &before);
        self.toggle_hash(node, &after);
        Some(result)
    }

    /// Adds a node's hash to the hashes that contain it, or removes it (XOR does both).
    fn toggle_hash(&mut self, node: NodeId, hash: &Hash) {
        xor(&mut self.root, hash);
        let mut short = [0; 8];
        short.copy_from_slice(&hash[..8]);
        self.parts[part_of(node)] ^= u64::from_le_bytes(short);
    }

    fn begin_life(&mut self, entry: Entry) -> Applied {
        let (node, incarnation) = (entry.fact.node, entry.fact.incarnation);
        let Some(header) = entry.fact.value.as_deref().and_then(|v| Header::decode(v).ok()) else {
            return Applied::Refused(EntryError::Malformed);
        };
        self.remove_node(node);
        self.forgotten.remove(&node);
        let statements = Statements {
            incarnation,
            // No entry below the floor is confirmed yet.
            unconfirmed_below: header.floor.min(entry.fact.version),
            header,
            entries: Entries::default(),
            seen: VersionSet::default(),
            hash: Hash::default(),
            failed: false,
            instances: 0,
        };
        self.toggle_hash(node, &node_hash(node, &statements));
        self.nodes.insert(node, statements);
        self.update_node(node, |s| s.insert(entry));
        Applied::NewLife
    }

    fn insert_entry(&mut self, entry: Entry) -> Applied {
        let node = entry.fact.node;
        let header = match (&entry.fact.key, entry.fact.value.as_deref()) {
            (Key::Header, Some(value)) => match Header::decode(value) {
                Ok(header) => Some(header),
                Err(error) => return Applied::Refused(error.into()),
            },
            _ => None,
        };
        let before = self.update_node(node, |s| {
            let before = s.entries.get(&entry.fact.key).cloned();
            // The header of a faulty owner may state a floor above its own version, and must not be removed.
            let floor_max = entry.fact.version;
            s.insert(entry);
            if let Some(header) = header {
                let floor = header.floor.min(floor_max);
                let raised = floor > s.header.floor;
                s.header = header;
                if raised {
                    s.collect_tombstones(floor);
                }
            }
            before
        });
        Applied::Updated(before.flatten())
    }

    /// Counts all versions that a page covers as seen. Call this after all entries of the page were applied
    /// and none was refused. Returns the entries that are removed because the page does not confirm them.
    pub fn confirm_page(&mut self, page: &Page) -> Vec<Arc<Entry>> {
        let (node, incarnation) = (page.node, page.incarnation);
        self.update_node(node, |s| {
            if s.incarnation != incarnation {
                return Vec::new();
            }
            // A peer without this header may not know the floor, and may hold entries that were deleted below
            // it.
            if !page.covers.contains(s.header_version()) {
                let below = VersionSet::up_to(Version(s.unconfirmed_below.0.saturating_sub(1)));
                s.seen.insert_all(&page.covers.without(&below));
                return Vec::new();
            }
            s.seen.insert_all(&page.covers);
            let confirmed: BTreeSet<Version> = page.entries.iter().map(|e| e.fact.version).collect();
            let gone: Vec<Key> = s
                .entries
                .before(s.unconfirmed_below)
                .filter(|e| page.covers.contains(e.fact.version) && !confirmed.contains(&e.fact.version))
                .map(|e| e.fact.key.clone())
                .collect();
            if s.seen.watermark().next() >= s.unconfirmed_below {
                s.unconfirmed_below = Version(0);
            }
            gone.iter().filter_map(|key| s.remove(key)).collect()
        })
        .unwrap_or_default()
    }

    /// Sets whether a node is failed, which is part of the root hash. Returns whether the state changed.
    pub fn set_failed(&mut self, node: NodeId, failed: bool) -> bool {
        self.update_node(node, |s| std::mem::replace(&mut s.failed, failed) != failed).unwrap_or(false)
    }

    /// Forgets a member. Afterwards only a newer header of the member brings it back.
    pub fn forget(&mut self, node: NodeId) {
        if let Some(last) = self.remove_node(node) {
            self.forgotten.insert(node, last);
            if self.forgotten.len() > FORGOTTEN_MAX {
                let oldest = self.forgotten.iter().min_by_key(|(_, last)| **last).map(|(id, _)| *id);
                oldest.and_then(|id| self.forgotten.remove(&id));
            }
            self.recently_forgotten.push_back(node);
            if self.recently_forgotten.len() > LISTED_FORGOTTEN_MAX {
                self.recently_forgotten.pop_front();
            }
        }
    }

    /// Last incarnation and header version of a forgotten member.
    pub fn forgotten(&self, node: NodeId) -> Option<(Incarnation, Version)> {
        self.forgotten.get(&node).copied()
    }

    /// Whether a node is known, and failed or left.
    pub fn is_gone(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|s| s.failed || s.header.presence == Presence::Left)
    }

    fn remove_node(&mut self, node: NodeId) -> Option<(Incarnation, Version)> {
        let statements = self.nodes.remove(&node)?;
        self.instances -= statements.instances;
        self.toggle_hash(node, &node_hash(node, &statements));
        Some((statements.incarnation, statements.header_version()))
    }

    /// Summary of a node's entries, for comparison with a peer.
    pub fn digest(&self, node: NodeId) -> Digest {
        match self.nodes.get(&node) {
            Some(s) => Digest {
                node,
                incarnation: s.incarnation,
                failed: s.failed,
                seen: s.seen.clone(),
                hash: s.hash,
            },
            None => {
                let incarnation =
                    self.forgotten.get(&node).map(|(incarnation, _)| *incarnation).unwrap_or_default();
                Digest { incarnation, ..Digest::of_nothing(node) }
            }
        }
    }

    /// Nodes in these parts of the table after `after`, in order.
    pub fn nodes_in(&self, parts: u64, after: Option<NodeId>) -> impl Iterator<Item = NodeId> {
        let from = match after {
            Some(id) => (std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded),
            None => (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded),
        };
        self.nodes.range(from).map(|(id, _)| *id).filter(move |id| parts >> part_of(*id) & 1 == 1)
    }

    /// Nodes to list in these parts after `after`, in order. Recently forgotten nodes are included, so that
    /// peers forget them, too. Otherwise a node that joined later would keep them longer, because each node
    /// counts the age of a death from when it learned of it.
    pub fn listed_in(&self, parts: u64, after: Option<NodeId>) -> impl Iterator<Item = NodeId> {
        let forgotten = self.recently_forgotten.iter().copied().filter(move |id| {
            self.forgotten.contains_key(id) && parts >> part_of(*id) & 1 == 1 && Some(*id) > after
        });
        let mut forgotten = forgotten.collect::<BTreeSet<NodeId>>().into_iter().peekable();
        let mut known = self.nodes_in(parts, after).peekable();
        std::iter::from_fn(move || match (known.peek(), forgotten.peek()) {
            (Some(a), Some(b)) if b < a => forgotten.next(),
            (None, _) => forgotten.next(),
            _ => known.next(),
        })
    }

    /// Whether the holder of `mine` would gain by pulling from the holder of `theirs`.
    pub fn lacks(mine: &Digest, theirs: &Digest) -> bool {
        if mine.incarnation != theirs.incarnation {
            return mine.incarnation < theirs.incarnation;
        }
        theirs.failed && !mine.failed
            || !mine.seen.contains_all(&theirs.seen)
            || mine.hash != theirs.hash && mine.seen == theirs.seen
    }

    /// Page with the entries of that node that the sender of `theirs` lacks, of about `budget` bytes at most,
    /// and whether there are more. `None`: the sender lacks nothing, or this node knows less.
    pub fn sign_in_url(&self, theirs: &Digest, budget: usize) -> Option<(Page, bool)> {
        let ours = self.digest(theirs.node);
        let s = self.nodes.get(&theirs.node)?;
        if !Self::lacks(theirs, &ours) {
            return None;
        }
        let nothing = VersionSet::default();
        let same_life = theirs.incarnation == s.incarnation;
        // The versions are equal but the entries differ, so one of the two received a wrong page. All entries
        // are sent.
        let is_contradiction = theirs.hash != s.hash && theirs.seen == s.seen;
        let seen_by_peer = if same_life && !is_contradiction { &theirs.seen } else { &nothing };
        let header = s.entries.get(&Key::Header)?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        // One entry besides the header is sent even if it exceeds the budget: a peer with many gaps requests
        // the header each time, and the page must make progress.
        let mut has_entry = false;
        if !seen_by_peer.contains(header.fact.version) {
            bytes += header.encoded_len();
            entries.push(header.as_ref().clone());
        }
        let missing = s.entries.in_order();
        let missing = missing.filter(|e| !seen_by_peer.contains(e.fact.version) && e.fact.key != Key::Header);
        let mut complete_to = None;
        for entry in missing {
            bytes += entry.encoded_len();
            if bytes > budget.min(PAGE_BYTES) && has_entry {
                complete_to = Some(Version(entry.fact.version.0 - 1));
                break;
            }
            entries.push(entry.clone());
            has_entry = true;
        }
        let mut covers = complete_to.map_or_else(|| s.seen.clone(), |limit| s.seen.below(limit));
        covers = covers.without(seen_by_peer);
        covers.insert(header.fact.version);
        let page =
            Page { node: theirs.node, incarnation: s.incarnation, covers, entries, evidence: Vec::new() };
        Some((page, complete_to.is_some()))
    }
}

#[cfg(test)]
mod tests;
