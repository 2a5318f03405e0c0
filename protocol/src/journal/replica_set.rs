//! [`ReplicaSet`]: the set of a topic's replicas, more than half of which are a majority. Adds and forgets
//! replicas, and merges the sets of other replicas.
//!
//! A replica that ever kept the topic durably is a member until an operator forgets it. It remains a member
//! if it leaves, fails or expires, because its disk may be the only other one with an acknowledged entry. An
//! ephemeral replica, whose database ends with its process, counts only while it is alive.
//!
//! Replicas exchange their sets and merge them. Each replica has a generation, which only grows and is odd
//! while the replica is a member. The higher generation wins. So a replica that was disconnected does not
//! bring a forgotten one back. A forgotten replica that returns becomes a member again under the next
//! generation.

use std::collections::BTreeMap;

use crate::{NodeId, Time, sync::RequestId};

/// Replicas in a set, forgotten ones included. Guess: far more than any topic has. A full set takes 40 kB in
/// a message.
pub(crate) const REPLICAS_MAX: usize = 1024;
/// Greatest distance by which the generation of a peer's set may be ahead. Each step requires an operator or
/// a restart, so honest sets are never this far apart.
const GENERATIONS_AHEAD_MAX: u64 = 1 << 32;

/// A replica and its generation: odd while it is a member.
pub type Generation = (NodeId, u64);

/// Replica set of one topic.
#[derive(Clone, Debug, Default)]
pub(super) struct ReplicaSet {
    generations: BTreeMap<NodeId, u64>,
    refused: u64,
}

impl ReplicaSet {
    pub(super) fn restored(generations: impl IntoIterator<Item = Generation>) -> Self {
        Self { generations: generations.into_iter().collect(), refused: 0 }
    }

    /// Adds a durable replica. Returns its new generation, unless it was already a member.
    pub(super) fn add(&mut self, replica: NodeId) -> Option<Generation> {
        let generation = self.generations.get(&replica).copied().unwrap_or(0);
        if is_member(generation) {
            return None;
        }
        self.set((replica, generation.saturating_add(1)))
    }

    /// Removes a replica by an operator's order. Returns its new generation, if it was a member.
    pub(super) fn forget(&mut self, replica: NodeId) -> Option<Generation> {
        let generation =
            self.generations.get(&replica).copied().filter(|generation| is_member(*generation))?;
        self.set((replica, generation.saturating_add(1)))
    }

    /// Merges a peer's set. Returns the changed generations.
    pub(super) fn merge(&mut self, theirs: Vec<Generation>) -> Vec<Generation> {
        let mut changed = Vec::new();
        for (replica, generation) in theirs {
            let ours = self.generations.get(&replica).copied().unwrap_or(0);
            if generation > ours.saturating_add(GENERATIONS_AHEAD_MAX) {
                self.refused += 1;
            } else if generation > ours {
                changed.extend(self.set((replica, generation)));
            }
        }
        changed
    }

    fn set(&mut self, (replica, generation): Generation) -> Option<Generation> {
        if self.generations.len() >= REPLICAS_MAX && !self.generations.contains_key(&replica) {
            self.refused += 1;
            return None;
        }
        self.generations.insert(replica, generation);
        Some((replica, generation))
    }

    pub(super) fn contains(&self, replica: NodeId) -> bool {
        self.generations.get(&replica).is_some_and(|generation| is_member(*generation))
    }

    /// Whether a replica is a member, or was one that an operator forgot.
    pub(super) fn was_member(&self, replica: NodeId) -> bool {
        self.generations.contains_key(&replica)
    }

    /// Members in the order of their ids.
    pub(super) fn members(&self) -> impl Iterator<Item = NodeId> {
        self.generations.iter().filter(|(_, generation)| is_member(**generation)).map(|(id, _)| *id)
    }

    /// Generations of all replicas, as peers merge them.
    pub(super) fn generations(&self) -> Vec<Generation> {
        self.generations.iter().map(|(id, generation)| (*id, *generation)).collect()
    }

    /// Replicas not added, because the set was full or a peer's generation was out of range.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }
}

fn is_member(generation: u64) -> bool {
    generation % 2 == 1
}

/// State of the exchange of replica sets with one replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SetExchange {
    /// The set is sent at this time.
    Due(Time),
    /// The set was sent, and no response has arrived yet. `stale`: the set has changed since.
    Sent { request_id: RequestId, stale: bool },
    /// The replica has the current set.
    Done,
}

impl Default for SetExchange {
    fn default() -> Self {
        Self::Due(Time::ZERO)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u32) -> NodeId {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        NodeId::from_public_key(key)
    }

    #[test]
    fn a_replica_is_a_member_until_it_is_forgotten_and_again_when_it_returns() {
        let mut set = ReplicaSet::default();
        assert_eq!(set.add(id(1)), Some((id(1), 1)));
        assert_eq!(set.add(id(1)), None);
        assert_eq!(set.forget(id(1)), Some((id(1), 2)));
        assert_eq!((set.forget(id(1)), set.forget(id(2))), (None, None));
        assert!(!set.contains(id(1)) && set.members().next().is_none());
        assert_eq!(set.add(id(1)), Some((id(1), 3)));
        assert!(set.contains(id(1)));
    }

    #[test]
    fn a_replica_that_was_away_does_not_bring_a_forgotten_one_back() {
        let (mut here, mut away) = (ReplicaSet::default(), ReplicaSet::default());
        here.add(id(1));
        away.merge(here.generations());
        here.forget(id(1));
        assert_eq!(here.merge(away.generations()), []);
        assert_eq!(away.merge(here.generations()), [(id(1), 2)]);
        assert!(!here.contains(id(1)) && !away.contains(id(1)));
    }

    #[test]
    fn what_a_peer_can_make_grow_is_bounded_and_counted() {
        let mut set = ReplicaSet::default();
        let flood: Vec<_> = (0..REPLICAS_MAX as u32 + 7).map(|n| (id(n), 1)).collect();
        assert_eq!(set.merge(flood).len(), REPLICAS_MAX);
        assert_eq!(set.refused(), 7);
        assert_eq!(set.merge(vec![(id(0), u64::MAX)]), []);
        assert_eq!(set.refused(), 8);
        assert!(set.forget(id(0)).is_some(), "it can still be forgotten");
    }

    proptest! {
        #[test]
        fn sets_merge_to_the_same_in_any_order(
            a in prop::collection::btree_map(0u32..8, 0u64..9, 0..8),
            b in prop::collection::btree_map(0u32..8, 0u64..9, 0..8),
        ) {
            let make = |of: &std::collections::BTreeMap<u32, u64>| ReplicaSet::restored(of.iter().map(|(n, g)| (id(*n), *g)));
            let (mut ab, mut ba) = (make(&a), make(&b));
            ab.merge(make(&b).generations());
            ba.merge(make(&a).generations());
            let members = |set: &ReplicaSet| set.members().collect::<Vec<_>>();
            prop_assert_eq!(members(&ab), members(&ba));
        }
    }
}
