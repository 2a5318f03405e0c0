//! Who watches whom, and thereby who is connected to whom.
//!
//! Every member is watched by the live members that rank highest for it by rendezvous hashing (Thaler and Ravishankar, 1998). Everybody
//! computes the same watchers from the same table, without a message; when one dies the next takes over, and a join moves
//! about as many edges as there are watchers. The edges are the overlay: a random graph of out-degree 3 is an expander (compare
//! Rapid, ATC 2018), so a flood reaches everybody in about log N hops and no small cut parts it.
//!
//! Cheap on purpose: an id is hashed once, a rank is a few multiplications, and a membership change costs O(N). A prototype that
//! computed this in O(N²) with a slow hash made nodes late, the late were accused, and the cluster melted.

use std::collections::{BTreeMap, BTreeSet};

use crate::NodeId;

/// Where an id stands on the ring: part of the protocol, because all must compute the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point(u64);

impl Point {
    fn of(id: NodeId) -> Self {
        let hash = blake3::hash(id.public_key());
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hash.as_bytes()[..8]);
        Self(u64::from_le_bytes(bytes))
    }

    /// How high a watcher ranks for a subject. The finalizer of SplitMix64 (Steele et al., 2014) over both points, of which one
    /// is turned so that the rank is not symmetric.
    fn rank(subject: Self, watcher: Self) -> u64 {
        let mut z = subject.0 ^ watcher.0.rotate_left(32);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Where a subject stands, and who ranks highest for it.
#[derive(Debug)]
struct Ranking {
    point: Point,
    /// The least rank that would still be taken, here so that a look at every subject touches nothing else: 0 while there is room.
    bar: u64,
    /// The best ranked candidates first; one more than needed, the spare, which gives a node that watches nobody its fourth edge.
    best: Vec<(u64, NodeId)>,
}

impl Ranking {
    /// Takes a candidate in if it ranks among the `size` best. Returns whether it does.
    fn offer(&mut self, candidate: NodeId, at: Point, size: usize) -> bool {
        let rank = Point::rank(self.point, at);
        if rank < self.bar {
            return false;
        }
        let rank = (rank, candidate);
        let place = self.best.partition_point(|other| *other > rank);
        if place == size {
            return false;
        }
        if self.best.len() == size {
            self.best.pop();
        }
        self.best.insert(place, rank);
        if self.best.len() == size {
            self.bar = self.best.last().map_or(0, |(least, _)| *least);
        }
        true
    }

    fn ranks(&self, at: Point) -> bool {
        Point::rank(self.point, at) >= self.bar
    }
}

/// Ranks for everybody who is watched.
#[derive(Debug)]
pub struct Overlay {
    me: NodeId,
    /// How many watch each subject.
    watchers: usize,
    full_mesh_max: usize,
    /// Who can watch: present, and not known to be in trouble.
    candidates: BTreeMap<NodeId, Point>,
    /// Who is watched: every remembered member but those that left.
    subjects: BTreeMap<NodeId, Ranking>,
    /// Subjects for which this node ranks among the watchers.
    watched_by_me: BTreeSet<NodeId>,
}

impl Overlay {
    /// An overlay of nobody.
    pub fn new(me: NodeId, watchers: usize, full_mesh_max: usize) -> Self {
        Self {
            me,
            watchers,
            full_mesh_max,
            candidates: BTreeMap::new(),
            subjects: BTreeMap::new(),
            watched_by_me: BTreeSet::new(),
        }
    }

    /// Says what a member is: whether it is to be watched, and whether it can watch. O(N) if that is new, else nothing. Returns whether
    /// it was new.
    pub fn set(&mut self, id: NodeId, subject: bool, candidate: bool) -> bool {
        let a = self.set_subject(id, subject);
        let b = self.set_candidate(id, candidate);
        a || b
    }

    fn set_subject(&mut self, id: NodeId, yes: bool) -> bool {
        if yes == self.subjects.contains_key(&id) {
            return false;
        }
        if yes {
            self.subjects.insert(id, self.best_for(id, Point::of(id)));
            self.note(id);
        } else {
            self.subjects.remove(&id);
            self.watched_by_me.remove(&id);
        }
        true
    }

    fn set_candidate(&mut self, id: NodeId, yes: bool) -> bool {
        if yes == self.candidates.contains_key(&id) {
            return false;
        }
        let moved: Vec<NodeId> = if yes {
            let (at, size) = (Point::of(id), self.watchers + 1);
            self.candidates.insert(id, at);
            let others = self.subjects.iter_mut().filter(|(subject, _)| **subject != id);
            others.filter_map(|(subject, ranking)| ranking.offer(id, at, size).then_some(*subject)).collect()
        } else {
            let Some(at) = self.candidates.remove(&id) else { return false };
            let bereft: Vec<(NodeId, Point)> = self
                .subjects
                .iter()
                .filter(|(_, ranking)| ranking.ranks(at))
                .map(|(subject, ranking)| (*subject, ranking.point))
                .collect();
            for (subject, point) in &bereft {
                self.subjects.insert(*subject, self.best_for(*subject, *point));
            }
            bereft.into_iter().map(|(subject, _)| subject).collect()
        };
        moved.into_iter().for_each(|subject| self.note(subject));
        true
    }

    fn best_for(&self, subject: NodeId, point: Point) -> Ranking {
        let size = self.watchers + 1;
        let mut ranking = Ranking { point, bar: 0, best: Vec::with_capacity(size) };
        for (id, at) in self.candidates.iter().filter(|(id, _)| **id != subject) {
            ranking.offer(*id, *at, size);
        }
        ranking
    }

    fn note(&mut self, subject: NodeId) {
        if self.watchers_of(subject).any(|id| id == self.me) {
            self.watched_by_me.insert(subject);
        } else {
            self.watched_by_me.remove(&subject);
        }
    }

    /// The watchers of a member, the highest ranked first.
    pub fn watchers_of(&self, subject: NodeId) -> impl Iterator<Item = NodeId> {
        let best = self.subjects.get(&subject).map(|ranking| ranking.best.as_slice()).unwrap_or_default();
        best.iter().take(self.watchers).map(|(_, id)| *id)
    }

    /// Whom this node watches, the failed included: those it redials.
    pub fn watched(&self) -> &BTreeSet<NodeId> {
        &self.watched_by_me
    }

    /// The connections this node wants: everybody while all are few, else those it watches, those that watch it, and the spare
    /// where that makes fewer than four. Only members that can be there.
    pub fn wanted(&self) -> BTreeSet<NodeId> {
        let present = |id: &NodeId| *id != self.me && self.candidates.contains_key(id);
        if self.candidates.len() <= self.full_mesh_max {
            return self.candidates.keys().copied().filter(present).collect();
        }
        let mut wanted: BTreeSet<NodeId> =
            self.watched_by_me.iter().copied().chain(self.watchers_of(self.me)).filter(present).collect();
        if wanted.len() < 4
            && let Some(ranking) = self.subjects.get(&self.me)
        {
            wanted.extend(ranking.best.iter().map(|(_, id)| *id).filter(present));
        }
        wanted
    }

    /// Whether this node is among the `count` candidates that rank highest for the cluster as a whole: who keeps talking mDNS in
    /// a large one.
    pub fn is_among_first(&self, count: usize) -> bool {
        let Some(mine) = self.candidates.get(&self.me) else { return true };
        let whole = Point(0);
        let my_rank = Point::rank(whole, *mine);
        self.candidates.values().filter(|p| Point::rank(whole, **p) > my_rank).count() < count
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u32) -> NodeId {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        NodeId::from_public_key(key)
    }

    fn overlay(me: u32, members: impl IntoIterator<Item = u32>) -> Overlay {
        let mut overlay = Overlay::new(id(me), 3, 6);
        for n in members {
            overlay.set(id(n), true, true);
        }
        overlay
    }

    proptest! {
        #[test]
        fn everybody_computes_the_same_watchers_whatever_the_order(
            mut steps in prop::collection::vec((0u32..20, any::<bool>(), any::<bool>()), 1..60)
        ) {
            let mut one = Overlay::new(id(0), 3, 6);
            let mut last = BTreeMap::new();
            for (n, subject, candidate) in &steps {
                one.set(id(*n), *subject, *candidate);
                last.insert(*n, (*subject, *candidate));
            }
            let mut other = Overlay::new(id(1), 3, 6);
            steps.reverse();
            for (n, (subject, candidate)) in &last {
                other.set(id(*n), *subject, *candidate);
            }
            for n in 0..20 {
                let a: Vec<_> = one.watchers_of(id(n)).collect();
                prop_assert_eq!(&a, &other.watchers_of(id(n)).collect::<Vec<_>>());
                prop_assert_eq!(one.watched().contains(&id(n)), a.contains(&id(0)));
            }
        }
    }

    #[test]
    fn a_join_moves_about_as_many_edges_as_there_are_watchers() {
        let mut views: Vec<Overlay> = (0..200).map(|me| overlay(me, 0..200)).collect();
        let edges = |views: &[Overlay]| -> BTreeSet<(NodeId, NodeId)> {
            views.iter().flat_map(|v| v.watched().iter().map(|s| (v.me, *s))).collect()
        };
        let before = edges(&views);
        assert_eq!(before.len(), 600);
        views.iter_mut().for_each(|v| {
            v.set(id(200), true, true);
        });
        let after = edges(&views);
        let moved = before.difference(&after).count();
        assert!(moved <= 15, "{moved} edges moved");
    }

    #[test]
    fn the_graph_of_wanted_connections_is_symmetric_connected_and_thin() {
        let views: Vec<Overlay> = (0..300).map(|me| overlay(me, 0..300)).collect();
        let wanted: BTreeMap<NodeId, BTreeSet<NodeId>> = views.iter().map(|v| (v.me, v.wanted())).collect();
        let degree = wanted.values().map(BTreeSet::len).sum::<usize>() as f64 / 300.0;
        assert!((5.0..7.0).contains(&degree), "mean degree {degree}");
        assert!(wanted.values().all(|w| w.len() >= 3));
        let (mut reached, mut todo) = (BTreeSet::from([id(0)]), vec![id(0)]);
        while let Some(next) = todo.pop() {
            todo.extend(wanted[&next].iter().filter(|n| reached.insert(**n)));
        }
        assert_eq!(reached.len(), 300);
    }

    #[test]
    fn a_few_are_all_connected() {
        assert_eq!(overlay(0, 0..6).wanted().len(), 5);
    }
}
