//! [`Overlay`]: the watchers of each member, and the connections that follow from them.
//!
//! A member's watchers are the live members that rank highest for it by rendezvous hashing (Thaler and
//! Ravishankar, 1998). All nodes compute the same watchers from the same table, without a message. When a
//! watcher dies, the candidate with the next rank replaces it. A join changes about as many edges as a member
//! has watchers. The edges form a random graph of out-degree 3, which is an expander (compare Rapid, ATC
//! 2018). So a flood reaches all members in about log N hops, and no small cut partitions the graph.
//!
//! Cost: each id is hashed once, a rank takes a few multiplications, and a membership change is O(N). In a
//! prototype with O(N²) and a slow hash, nodes were late, so they were accused, and the cluster collapsed.

use std::collections::{BTreeMap, BTreeSet};

use crate::NodeId;

/// Position of an id on the ring. Part of the protocol, because all nodes must compute the same positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point(u64);

impl Point {
    fn of(id: NodeId) -> Self {
        let hash = blake3::hash(id.public_key());
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hash.as_bytes()[..8]);
        Self(u64::from_le_bytes(bytes))
    }

    /// Rank of a watcher for a subject: the finalizer of SplitMix64 (Steele et al., 2014) over both points.
    /// The watcher's point is rotated, so that the rank is not symmetric.
    fn rank(subject: Self, watcher: Self) -> u64 {
        let mut z = subject.0 ^ watcher.0.rotate_left(32);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A subject's position and its highest ranked watchers.
#[derive(Debug)]
struct Ranking {
    point: Point,
    /// Lowest rank that is still admitted, or 0 until `best` is full. Kept here so that a scan of all
    /// subjects reads no other memory.
    least_rank: u64,
    /// The highest ranked candidates, best first. One more than needed: this spare gives a fourth edge to a
    /// node that watches no member.
    best: Vec<(u64, NodeId)>,
}

impl Ranking {
    /// Admits a candidate if it ranks among the `size` best. Returns whether it was admitted.
    fn admit(&mut self, candidate: NodeId, at: Point, size: usize) -> bool {
        let rank = Point::rank(self.point, at);
        if rank < self.least_rank {
            return false;
        }
        let rank = (rank, candidate);
        let position = self.best.partition_point(|other| *other > rank);
        if position == size {
            return false;
        }
        if self.best.len() == size {
            self.best.pop();
        }
        self.best.insert(position, rank);
        if self.best.len() == size {
            self.least_rank = self.best.last().map_or(0, |(least, _)| *least);
        }
        true
    }

    fn is_ranked(&self, at: Point) -> bool {
        Point::rank(self.point, at) >= self.least_rank
    }
}

/// Rankings of all watched members.
#[derive(Debug)]
pub struct Overlay {
    me: NodeId,
    /// Number of watchers of each subject.
    watchers: usize,
    full_mesh_max: usize,
    /// Members that can watch others: present and reliable.
    candidates: BTreeMap<NodeId, Point>,
    /// Watched members: every remembered member that has not left.
    subjects: BTreeMap<NodeId, Ranking>,
    /// Subjects that this node watches.
    watched_by_me: BTreeSet<NodeId>,
}

impl Overlay {
    /// Overlay without members.
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

    /// Sets whether a member is watched, and whether it can watch others. Returns whether either changed,
    /// which costs O(N).
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
            self.subjects.insert(id, self.rank_candidates(id, Point::of(id)));
            self.update_watched(id);
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
            others.filter_map(|(subject, ranking)| ranking.admit(id, at, size).then_some(*subject)).collect()
        } else {
            let Some(at) = self.candidates.remove(&id) else { return false };
            let affected: Vec<(NodeId, Point)> = self
                .subjects
                .iter()
                .filter(|(_, ranking)| ranking.is_ranked(at))
                .map(|(subject, ranking)| (*subject, ranking.point))
                .collect();
            for (subject, point) in &affected {
                self.subjects.insert(*subject, self.rank_candidates(*subject, *point));
            }
            affected.into_iter().map(|(subject, _)| subject).collect()
        };
        moved.into_iter().for_each(|subject| self.update_watched(subject));
        true
    }

    fn rank_candidates(&self, subject: NodeId, point: Point) -> Ranking {
        let size = self.watchers + 1;
        let mut ranking = Ranking { point, least_rank: 0, best: Vec::with_capacity(size) };
        for (id, at) in self.candidates.iter().filter(|(id, _)| **id != subject) {
            ranking.admit(*id, *at, size);
        }
        ranking
    }

    fn update_watched(&mut self, subject: NodeId) {
        if self.watchers_of(subject).any(|id| id == self.me) {
            self.watched_by_me.insert(subject);
        } else {
            self.watched_by_me.remove(&subject);
        }
    }

    /// Watchers of a member, highest ranked first.
    pub fn watchers_of(&self, subject: NodeId) -> impl Iterator<Item = NodeId> {
        let best = self.subjects.get(&subject).map(|ranking| ranking.best.as_slice()).unwrap_or_default();
        best.iter().take(self.watchers).map(|(_, id)| *id)
    }

    /// Members that this node watches. This node redials those of them that failed.
    pub fn watched(&self) -> &BTreeSet<NodeId> {
        &self.watched_by_me
    }

    /// Peers to which this node wants a connection. In a small cluster these are all candidates. Otherwise
    /// they are its subjects and its watchers. If these are fewer than four, the spare is added.
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

    /// Whether this node is among the `count` candidates with the highest rank for the whole cluster. Only
    /// these use mDNS in a large cluster.
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
            let mut single = Overlay::new(id(0), 3, 6);
            let mut last = BTreeMap::new();
            for (n, subject, candidate) in &steps {
                single.set(id(*n), *subject, *candidate);
                last.insert(*n, (*subject, *candidate));
            }
            let mut other = Overlay::new(id(1), 3, 6);
            steps.reverse();
            for (n, (subject, candidate)) in &last {
                other.set(id(*n), *subject, *candidate);
            }
            for n in 0..20 {
                let a: Vec<_> = single.watchers_of(id(n)).collect();
                prop_assert_eq!(&a, &other.watchers_of(id(n)).collect::<Vec<_>>());
                prop_assert_eq!(single.watched().contains(&id(n)), a.contains(&id(0)));
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
