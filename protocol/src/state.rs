//! What every node has stated about itself: the replicated state.
//!
//! Entries come in any order, by gossip and by anti-entropy, more than once, and some never. The rule that makes all nodes end up with
//! the same: a higher incarnation replaces the whole of a lower one; within an incarnation each key keeps its highest version. What
//! is missing is known from the versions seen ([`Seen`]), never guessed from a maximum.
//!
//! - **A header opens an incarnation.** Entries of a life whose header has not come are put off; anti-entropy sends headers first.
//! - **Tombstones** keep the deleted from coming back. Their owner collects them after an hour by raising the `floor` in its header, so
//!   that everybody collects the same ones at the same version. Whoever has gaps below a new floor may hold what was
//!   deleted there: it forgets what it has *seen* of that node below the floor, is sent that again, and drops what was not confirmed.
//!   Only who knows the floor can confirm, and only what it sends or says it has nothing of: a page covers no version that its
//!   receiver said it had seen, because the receiver may have forgotten that since.
//! - **The collected stay away.** A member forgotten after 72 h, or a key below its node's floor, is refused when some straggler brings it;
//!   the member itself comes back by stating a newer header, and is asked to.
//!
//! What a relay says a page covers is not signed: a *member* that lies can withhold another's entries from those that sync with it
//! alone, until they sync with somebody else (the hashes differ, and then the whole is exchanged). It can never invent one.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use crate::{
    Incarnation, NodeId, Version,
    config::Config,
    record::{Entry, EntryError, Header, Key, Presence, name_of_part},
    seen::Seen,
    wire::{Digest, PAGE_BYTES, Page},
};

mod entries;
mod statements;

use entries::Entries;
pub use statements::Statements;
use statements::is_live_instance;

/// Forgotten members whose return is refused. The oldest incarnation goes first.
const BURIED_MAX: usize = 4096;
/// Of them so many are listed to others. They are compared with within seconds, and hardly ever are so many forgotten in that time.
const LATELY_MAX: usize = 256;

/// Over everything that two nodes should agree on.
pub type Hash = [u8; 16];

/// Into so many parts the table is divided by the nodes' ids, so that two that differ in little need not list everything.
const PARTS: usize = 64;
/// All parts, a bit for each.
pub const ALL_PARTS: u64 = u64::MAX;

fn part_of(node: NodeId) -> usize {
    usize::from(node.public_key()[0]) % PARTS
}

fn xor(hash: &mut Hash, other: &Hash) {
    hash.iter_mut().zip(other).for_each(|(a, b)| *a ^= b);
}

fn truncate(hash: &blake3::Hash) -> Hash {
    let mut short = Hash::default();
    short.copy_from_slice(&hash.as_bytes()[..16]);
    short
}

/// Key and version stand for the value: an owner never gives two values to one version.
fn entry_hash(entry: &Entry) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&entry.fact.version.0.to_le_bytes());
    match &entry.fact.key {
        Key::Header => hasher.update(&[0]),
        Key::Instance(id) => hasher.update(&[1]).update(id.as_bytes()),
        Key::Kv(path) => hasher.update(&[2]).update(path.as_bytes()),
        // As nodes hash it that know it only as another kind.
        Key::Part(id, number) => hasher.update(&[3]).update(name_of_part(id, *number).as_bytes()),
        Key::Other(kind, name) => hasher.update(&[*kind]).update(name.as_bytes()),
    };
    truncate(&hasher.finalize())
}

/// A node's share of the root hash.
fn node_hash(node: NodeId, statements: &Statements) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(node.public_key()).update(&statements.incarnation.0.to_le_bytes());
    hasher.update(&[u8::from(statements.failed)]).update(&statements.hash);
    truncate(&hasher.finalize())
}

/// What became of an entry.
#[derive(Debug, PartialEq, Eq)]
pub enum Applied {
    /// The first header of a node, or of a new life of it. Everything of the old life is gone.
    NewLife,
    /// Something new within the current life. The entry that it replaced, if there was one.
    News(Option<Arc<Entry>>),
    /// Known already, superseded, or collected.
    Stale,
    /// Of a life whose header has not come yet.
    NoHeader,
    /// The table, or this node's part of it, is full.
    Full,
    /// Not to be believed or not to be understood.
    Refused(EntryError),
}

/// What every node has stated.
#[derive(Debug)]
pub struct State {
    cluster: String,
    nodes: BTreeMap<NodeId, Statements>,
    root: Hash,
    parts: [u64; PARTS],
    /// The forgotten: which life and header of them was the last.
    buried: BTreeMap<NodeId, (Incarnation, Version)>,
    /// The last of them to be forgotten, some more than once.
    lately_buried: VecDeque<NodeId>,
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
    /// Nothing stated yet.
    pub fn new(config: &Config) -> Self {
        Self {
            cluster: config.cluster.clone(),
            nodes: BTreeMap::new(),
            root: Hash::default(),
            parts: [0; PARTS],
            buried: BTreeMap::new(),
            evicted: Vec::new(),
            lately_buried: VecDeque::new(),
            members_max: config.members_max,
            entries_per_node_max: config.entries_per_node_max,
            instances_per_node_max: config.instances_per_node_max,
            instances_max: config.instances_max,
            instances: 0,
            own: None,
        }
    }

    /// Names the node that holds this state. Its own instances are never left out for want of room.
    pub fn set_own(&mut self, own: NodeId) {
        self.own = Some(own);
    }

    /// How many instances all nodes state together. A node refuses registrations beyond `instances_max`.
    pub fn instances_len(&self) -> usize {
        self.instances
    }

    /// Equal on two nodes when they hold the same and believe the same nodes dead.
    pub fn root(&self) -> Hash {
        self.root
    }

    /// What the root is made of, by parts of the table.
    pub fn parts(&self) -> &[u64] {
        &self.parts
    }

    /// The parts in which somebody holds something else, a bit for each; all of them if that cannot be told.
    pub fn differing_parts(&self, theirs: &[u64]) -> u64 {
        let differs = |part: usize| theirs.get(part) != self.parts.get(part);
        let parts = (0..PARTS).filter(|part| differs(*part)).fold(0, |parts, part| parts | 1 << part);
        if parts == 0 { ALL_PARTS } else { parts }
    }

    /// What this node has stated.
    pub fn node(&self, node: NodeId) -> Option<&Statements> {
        self.nodes.get(&node)
    }

    /// Everybody, in the order of their ids.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Statements)> {
        self.nodes.iter().map(|(id, statements)| (*id, statements))
    }

    /// How many nodes are known.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Applies an entry from anywhere. The signature is checked only for what would be news, or fills a gap.
    pub fn apply(&mut self, entry: Entry) -> Applied {
        self.apply_checked(entry, |entry, cluster| entry.check(cluster))
    }

    /// Applies an entry that this node has just signed. To verify that signature would take twice as long as to make it.
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
            return self.pass_over(&entry);
        }
        let known = self.nodes.get(&fact.node);
        let current = known.filter(|s| s.incarnation == fact.incarnation);
        if current.is_none() && fact.key != Key::Header {
            return Applied::NoHeader;
        }
        let mut gives_way = None;
        let mut left_out = None;
        if self.is_full_for(&entry, known, current) {
            gives_way = current.and_then(|s| s.later_than(&entry));
            if gives_way.is_none() {
                return Applied::Full;
            }
        } else if self.is_beyond_all(&entry, current) {
            left_out = self.newer_instance(&entry);
            if left_out.is_none() {
                return Applied::Full;
            }
        }
        if let Err(error) = check(&entry, &self.cluster) {
            return Applied::Refused(error);
        }
        if let Some(key) = gives_way {
            let evicted = self.change(entry.fact.node, |s| s.remove(&key)).flatten();
            self.evicted.extend(evicted);
        }
        if let Some((node, key)) = left_out {
            let left_out = self.change(node, |s| s.leave_out(&key)).flatten();
            self.evicted.extend(left_out);
        }
        match self.nodes.get(&entry.fact.node).is_some_and(|s| s.incarnation == entry.fact.incarnation) {
            true => self.put(entry),
            false => self.begin(entry),
        }
    }

    /// What gave way since this was asked last, so that a node that states more than it may keeps its earliest statements.
    pub fn take_evicted(&mut self) -> Vec<Arc<Entry>> {
        std::mem::take(&mut self.evicted)
    }

    fn is_stale(&self, entry: &Entry) -> bool {
        let fact = &entry.fact;
        let Some(known) = self.nodes.get(&fact.node) else {
            return self.buried.get(&fact.node).is_some_and(|(incarnation, version)| {
                let newer_header = fact.key == Key::Header && fact.version > *version;
                fact.incarnation < *incarnation || fact.incarnation == *incarnation && !newer_header
            });
        };
        if fact.incarnation != known.incarnation {
            return fact.incarnation < known.incarnation;
        }
        match known.entries.get(&fact.key) {
            Some(held) => fact.version <= held.fact.version,
            // Seen, and not held, and below the floor: it was superseded by a tombstone that is collected.
            None => fact.version < known.header.floor && known.seen.contains(fact.version),
        }
    }

    /// What is superseded still shows that its version is not missing, if its owner stated it: gossip that overtook gossip would leave
    /// gaps behind, which every digest has to list and every new floor makes a reason to fetch the whole again.
    fn pass_over(&mut self, entry: &Entry) -> Applied {
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

    fn is_full_for(&self, entry: &Entry, known: Option<&Statements>, current: Option<&Statements>) -> bool {
        match current {
            None => known.is_none() && self.nodes.len() >= self.members_max,
            Some(s) => {
                let held = s.entries.get(&entry.fact.key);
                held.is_none() && s.entries.len() >= self.entries_per_node_max
                    || is_live_instance(entry)
                        && !held.is_some_and(|held| is_live_instance(held))
                        && s.instances >= self.instances_per_node_max
            }
        }
    }

    /// Whether an entry is an instance of another node that comes on top of as many as the table holds of
    /// others.
    fn is_beyond_all(&self, entry: &Entry, current: Option<&Statements>) -> bool {
        let held = current.and_then(|s| s.entries.get(&entry.fact.key));
        let own = self.own.and_then(|own| self.nodes.get(&own)).map_or(0, |own| own.instances);
        is_live_instance(entry)
            && !held.is_some_and(|held| is_live_instance(held))
            && self.instances - own >= self.instances_max
            && self.own != Some(entry.fact.node)
    }

    /// The instance that is left out for this one: the last of the newest node, if it comes after this one in
    /// the order of incarnation, node and version.
    ///
    /// In that order each node keeps the first `instances_max` of the others, whatever came first, and all of
    /// its own. So two tables beyond the bound differ in their owners' instances, and each comparison finds
    /// that: it costs a page or a few every `sync_interval`, and brings what was left out once there is room.
    /// One bound for all would have a node withdraw its own registrations.
    fn newer_instance(&self, entry: &Entry) -> Option<(NodeId, Key)> {
        let others = self.nodes.iter().filter(|(id, s)| s.instances > 0 && self.own != Some(**id));
        let (newest, statements) = others.max_by_key(|(id, s)| (s.incarnation, **id))?;
        let key = match (statements.incarnation, *newest).cmp(&(entry.fact.incarnation, entry.fact.node)) {
            Ordering::Greater => statements.last_instance(),
            Ordering::Equal => statements.later_than(entry),
            Ordering::Less => None,
        };
        key.map(|key| (*newest, key))
    }

    /// Keeps the root hash and the count of instances true over any change to a node.
    fn change<R>(&mut self, node: NodeId, change: impl FnOnce(&mut Statements) -> R) -> Option<R> {
        let statements = self.nodes.get_mut(&node)?;
        let before = node_hash(node, statements);
        self.instances -= statements.instances;
        let result = change(statements);
        self.instances += statements.instances;
        let after = node_hash(node, statements);
        self.mix(node, &before);
        self.mix(node, &after);
        Some(result)
    }

    /// Takes a node's hash into those that it is part of, or out of them.
    fn mix(&mut self, node: NodeId, hash: &Hash) {
        xor(&mut self.root, hash);
        let mut short = [0; 8];
        short.copy_from_slice(&hash[..8]);
        self.parts[part_of(node)] ^= u64::from_le_bytes(short);
    }

    fn begin(&mut self, entry: Entry) -> Applied {
        let (node, incarnation) = (entry.fact.node, entry.fact.incarnation);
        let Some(header) = entry.fact.value.as_deref().and_then(|v| Header::decode(v).ok()) else {
            return Applied::Refused(EntryError::Malformed);
        };
        self.drop_node(node);
        self.buried.remove(&node);
        let statements = Statements {
            incarnation,
            // Of what was collected before, nothing is known here.
            unconfirmed_below: header.floor.min(entry.fact.version),
            header,
            entries: Entries::default(),
            seen: Seen::default(),
            hash: Hash::default(),
            failed: false,
            instances: 0,
        };
        self.mix(node, &node_hash(node, &statements));
        self.nodes.insert(node, statements);
        self.change(node, |s| s.put(entry));
        Applied::NewLife
    }

    fn put(&mut self, entry: Entry) -> Applied {
        let node = entry.fact.node;
        let header = match (&entry.fact.key, entry.fact.value.as_deref()) {
            (Key::Header, Some(value)) => match Header::decode(value) {
                Ok(header) => Some(header),
                Err(error) => return Applied::Refused(error.into()),
            },
            _ => None,
        };
        let before = self.change(node, |s| {
            let before = s.entries.get(&entry.fact.key).cloned();
            // An owner that counts wrong must not have its own header collected.
            let floor_max = entry.fact.version;
            s.put(entry);
            if let Some(header) = header {
                let floor = header.floor.min(floor_max);
                let raised = floor > s.header.floor;
                s.header = header;
                if raised {
                    s.collect(floor);
                }
            }
            before
        });
        Applied::News(before.flatten())
    }

    /// Says that everything in `page.covers` which still counts has been applied. To be called after all entries of the page were
    /// applied and none was refused. Returns the entries that are gone, because the page does not confirm them.
    pub fn cover(&mut self, page: &Page) -> Vec<Arc<Entry>> {
        let (node, incarnation) = (page.node, page.incarnation);
        self.change(node, |s| {
            if s.incarnation != incarnation {
                return Vec::new();
            }
            // Who has not seen this header may not know of the floor, and still believe in what was deleted below it.
            if !page.covers.contains(s.header_version()) {
                let below = Seen::up_to(Version(s.unconfirmed_below.0.saturating_sub(1)));
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

    /// Notes a verdict, which is part of what nodes compare. Returns whether it was news.
    pub fn set_failed(&mut self, node: NodeId, failed: bool) -> bool {
        self.change(node, |s| std::mem::replace(&mut s.failed, failed) != failed).unwrap_or(false)
    }

    /// Forgets a member; a straggler that still has this life of it brings it back no more. Only itself can, by a newer header.
    pub fn bury(&mut self, node: NodeId) {
        if let Some(last) = self.drop_node(node) {
            self.buried.insert(node, last);
            if self.buried.len() > BURIED_MAX {
                let oldest = self.buried.iter().min_by_key(|(_, last)| **last).map(|(id, _)| *id);
                oldest.and_then(|id| self.buried.remove(&id));
            }
            self.lately_buried.push_back(node);
            if self.lately_buried.len() > LATELY_MAX {
                self.lately_buried.pop_front();
            }
        }
    }

    /// The last that was known of a forgotten member: which life, which header.
    pub fn buried(&self, node: NodeId) -> Option<(Incarnation, Version)> {
        self.buried.get(&node).copied()
    }

    /// Whether it is known, and not there.
    pub fn is_gone(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|s| s.failed || s.header.presence == Presence::Left)
    }

    fn drop_node(&mut self, node: NodeId) -> Option<(Incarnation, Version)> {
        let statements = self.nodes.remove(&node)?;
        self.instances -= statements.instances;
        self.mix(node, &node_hash(node, &statements));
        Some((statements.incarnation, statements.header_version()))
    }

    /// How we stand to a node's entries.
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
                    self.buried.get(&node).map(|(incarnation, _)| *incarnation).unwrap_or_default();
                Digest { incarnation, ..Digest::of_nothing(node) }
            }
        }
    }

    /// The nodes in these parts of the table above `after`, in order.
    pub fn nodes_in(&self, parts: u64, after: Option<NodeId>) -> impl Iterator<Item = NodeId> {
        let from = match after {
            Some(id) => (std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded),
            None => (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded),
        };
        self.nodes.range(from).map(|(id, _)| *id).filter(move |id| parts >> part_of(*id) & 1 == 1)
    }

    /// What to list of these parts above `after`, in order: the nodes, and those lately forgotten, so that others forget them too. How long
    /// ago somebody died each node counts from when it heard of it, and a young one would keep the dead for others as young.
    pub fn listed_in(&self, parts: u64, after: Option<NodeId>) -> impl Iterator<Item = NodeId> {
        let forgotten = self.lately_buried.iter().copied().filter(move |id| {
            self.buried.contains_key(id) && parts >> part_of(*id) & 1 == 1 && Some(*id) > after
        });
        let mut forgotten = forgotten.collect::<BTreeSet<NodeId>>().into_iter().peekable();
        let mut held = self.nodes_in(parts, after).peekable();
        std::iter::from_fn(move || match (held.peek(), forgotten.peek()) {
            (Some(a), Some(b)) if b < a => forgotten.next(),
            (None, _) => forgotten.next(),
            _ => held.next(),
        })
    }

    /// Whether the holder of `mine` would gain from pulling of the holder of `theirs`.
    pub fn lacks(mine: &Digest, theirs: &Digest) -> bool {
        if mine.incarnation != theirs.incarnation {
            return mine.incarnation < theirs.incarnation;
        }
        theirs.failed && !mine.failed
            || !mine.seen.contains_all(&theirs.seen)
            || mine.hash != theirs.hash && mine.seen == theirs.seen
    }

    /// What the holder of `theirs` lacks of that node, at most about `budget` bytes, and whether there is more. `None`: nothing, or we
    /// know less.
    pub fn delta(&self, theirs: &Digest, budget: usize) -> Option<(Page, bool)> {
        let ours = self.digest(theirs.node);
        let s = self.nodes.get(&theirs.node)?;
        if !Self::lacks(theirs, &ours) {
            return None;
        }
        let nothing = Seen::default();
        let same_life = theirs.incarnation == s.incarnation;
        // Who has seen the same and yet holds something else has been told wrong by somebody: start from nothing.
        let contradicts = theirs.hash != s.hash && theirs.seen == s.seen;
        let they_saw = if same_life && !contradicts { &theirs.seen } else { &nothing };
        let header = s.entries.get(&Key::Header)?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        // Whatever the budget, one entry besides the header goes: who has too many gaps to remember the header asks for it each time.
        let mut any = false;
        if !they_saw.contains(header.fact.version) {
            bytes += header.encoded_len();
            entries.push(header.as_ref().clone());
        }
        let missing = s.entries.in_order();
        let missing = missing.filter(|e| !they_saw.contains(e.fact.version) && e.fact.key != Key::Header);
        let mut complete_to = None;
        for entry in missing {
            bytes += entry.encoded_len();
            if bytes > budget.min(PAGE_BYTES) && any {
                complete_to = Some(Version(entry.fact.version.0 - 1));
                break;
            }
            entries.push(entry.clone());
            any = true;
        }
        let mut covers = complete_to.map_or_else(|| s.seen.clone(), |limit| s.seen.below(limit));
        covers = covers.without(they_saw);
        covers.insert(header.fact.version);
        let page =
            Page { node: theirs.node, incarnation: s.incarnation, covers, entries, evidence: Vec::new() };
        Some((page, complete_to.is_some()))
    }
}

#[cfg(test)]
mod tests;
