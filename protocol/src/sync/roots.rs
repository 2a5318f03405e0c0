//! [`Roots`]: compares the root hashes in pongs with this node's recent ones, and decides with which peers to
//! start a session.
//!
//! A pong carries the first eight bytes of its sender's root hash. While a change spreads, two nodes differ
//! for a moment, so a root is no difference if this node had it within the [`SPREAD_TIME`], or has it by the
//! end of the [`SPREAD_TIME`] after the pong. Otherwise gossip was lost, and the two compare.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use crate::{NodeId, Time, membership::patience::Patience};

/// Time that gossip normally takes to all nodes; lateness extends it. A flood takes 0.2 s among 100 processes
/// on two busy cores. With the ping interval, a lost entry is found within 2 s.
const SPREAD_TIME: Duration = Duration::from_millis(700);
/// Shortest time between two sessions that pongs start, whatever the number of peers.
const SESSION_INTERVAL: Duration = Duration::from_secs(1);
/// Bound of the pause before a pong of one peer starts a session again. The pause doubles with each session,
/// until a pong has this node's root. Tables that are full differ for good, and no session makes them equal.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Recent roots kept. If there are more changes within the spread time, pongs start sessions without need,
/// within the bounds above.
const ROOTS_MAX: usize = 256;

/// The first eight bytes of a root hash, as a pong carries them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RootPrefix(pub [u8; 8]);

impl RootPrefix {
    /// Prefix of a root hash.
    pub fn of(root: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = root;
        Self([a, b, c, d, e, f, g, h])
    }
}

/// A root of a peer that this node did not have within the spread time.
#[derive(Clone, Copy, Debug)]
struct Pending {
    root: RootPrefix,
    /// When the pong with this root arrived. If this node has had the root since, nothing is lost.
    since: Time,
    /// When the two compare otherwise.
    due: Time,
}

/// A peer whose root differs from this node's.
#[derive(Debug)]
struct Difference {
    /// `None`: no session is due.
    pending: Option<Pending>,
    /// When a session with this peer may start at the earliest.
    not_before: Time,
    /// Pause after the next session.
    pause: Duration,
}

/// This node's recent roots, and the peers whose roots differ.
#[derive(Debug)]
pub(super) struct Roots {
    current: RootPrefix,
    /// Earlier roots, and when each was replaced, oldest first.
    replaced: VecDeque<(Time, RootPrefix)>,
    differences: BTreeMap<NodeId, Difference>,
    /// Peers whose newest pong carried no root, as those of protocol version 3.
    rootless: BTreeSet<NodeId>,
    next_session: Time,
}

impl Roots {
    /// Roots of a node without entries.
    pub(super) fn new() -> Self {
        Self {
            current: RootPrefix::default(),
            replaced: VecDeque::new(),
            differences: BTreeMap::new(),
            rootless: BTreeSet::new(),
            next_session: Time::ZERO,
        }
    }

    /// Records this node's root hash after a change.
    pub(super) fn record_own(&mut self, now: Time, root: RootPrefix) {
        if root != self.current {
            self.replaced.push_back((now, std::mem::replace(&mut self.current, root)));
            if self.replaced.len() > ROOTS_MAX {
                self.replaced.pop_front();
            }
        }
    }

    /// Records the root hash in the pong of a connected peer; `None`: the pong carried none.
    pub(super) fn record_pong(
        &mut self,
        now: Time,
        peer: NodeId,
        root: Option<RootPrefix>,
        patience: &Patience,
    ) {
        let Some(root) = root else {
            self.rootless.insert(peer);
            return;
        };
        self.rootless.remove(&peer);
        if root == self.current {
            self.differences.remove(&peer);
            return;
        }
        let spread_time = patience.stretch(now, SPREAD_TIME);
        let replaced = self.replaced.iter().rev().find(|(_, old)| *old == root).map(|(at, _)| *at);
        let due = replaced.unwrap_or(now) + spread_time;
        let difference = self.differences.entry(peer).or_insert(Difference {
            pending: None,
            not_before: Time::ZERO,
            pause: SESSION_INTERVAL,
        });
        difference.pending = match difference.pending {
            // The peer is behind by less than the spread time.
            _ if replaced.is_some() && due > now => None,
            // Where changes never end, roots never repeat, so the first difference sets the time.
            Some(earlier) => Some(Pending { root, since: now, due: due.min(earlier.due) }),
            None => Some(Pending { root, since: now, due }),
        };
    }

    /// Removes a peer that is no longer connected.
    pub(super) fn remove_peer(&mut self, peer: NodeId) {
        self.differences.remove(&peer);
        self.rootless.remove(&peer);
    }

    /// Whether the peer's newest pong carried no root.
    pub(super) fn is_rootless(&self, peer: NodeId) -> bool {
        self.rootless.contains(&peer)
    }

    /// Peer with which a session must start now.
    pub(super) fn due(&mut self, now: Time) -> Option<NodeId> {
        let (current, replaced) = (self.current, &self.replaced);
        let is_lost = |pending: &Pending| {
            let had_since = |(at, root): &(Time, RootPrefix)| *root == pending.root && pending.since < *at;
            pending.due > now || pending.root != current && !replaced.iter().any(had_since)
        };
        for difference in self.differences.values_mut() {
            difference.pending = difference.pending.filter(is_lost);
        }
        if self.next_session > now {
            return None;
        }
        let is_due = |difference: &Difference| {
            difference.pending.is_some_and(|pending| pending.due <= now) && difference.not_before <= now
        };
        let (peer, difference) = self.differences.iter_mut().find(|(_, d)| is_due(d))?;
        difference.pending = None;
        difference.not_before = now + difference.pause;
        difference.pause = (difference.pause * 2).min(PAUSE_MAX);
        self.next_session = now + SESSION_INTERVAL;
        Some(*peer)
    }

    /// When [`due`](Self::due) next returns a peer, at the earliest.
    pub(super) fn next_due(&self) -> Option<Time> {
        let due = |d: &Difference| d.pending.map(|pending| pending.due.max(d.not_before));
        self.differences.values().filter_map(due).min().map(|at| at.max(self.next_session))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_start(Duration::from_millis(ms))
    }

    fn peer(n: u8) -> NodeId {
        NodeId::from_public_key([n; 32])
    }

    fn root(n: u64) -> RootPrefix {
        RootPrefix(n.to_le_bytes())
    }

    /// Roots of a node in a calm network whose root is 1.
    struct Fixture {
        roots: Roots,
        patience: Patience,
    }

    impl Fixture {
        fn new() -> Self {
            let mut roots = Roots::new();
            roots.record_own(at(600_000), root(1));
            Self { roots, patience: Patience::new(Time::ZERO) }
        }

        fn pong(&mut self, ms: u64, n: u8, other: u64) {
            self.roots.record_pong(at(ms), peer(n), Some(root(other)), &self.patience);
        }

        /// Times and peers of the sessions up to this time.
        fn sessions(&mut self, ms: std::ops::Range<u64>) -> Vec<(u64, NodeId)> {
            ms.filter_map(|t| self.roots.due(at(t)).map(|peer| (t, peer))).collect()
        }
    }

    #[test]
    fn a_difference_that_gossip_ends_starts_no_session() {
        let mut fixture = Fixture::new();
        // The peer is ahead.
        fixture.pong(601_000, 1, 2);
        fixture.roots.record_own(at(601_300), root(2));
        fixture.roots.record_own(at(601_400), root(3));
        // The peer is behind, and then not.
        fixture.pong(601_500, 2, 2);
        fixture.pong(602_500, 2, 3);
        assert_eq!(fixture.sessions(601_000..610_000), []);
    }

    #[test]
    fn a_peer_that_is_ahead_or_behind_for_longer_is_compared_with() {
        let mut fixture = Fixture::new();
        fixture.pong(601_000, 1, 2);
        let sessions = fixture.sessions(601_000..603_000);
        assert!(sessions.iter().all(|(t, by)| (601_700..601_800).contains(t) && *by == peer(1)));
        assert_eq!(sessions.len(), 1);
        fixture.roots.record_own(at(610_000), root(4));
        fixture.pong(611_000, 2, 1);
        assert_eq!(fixture.sessions(611_000..613_000), [(611_000, peer(2))]);
    }

    #[test]
    fn peers_that_differ_for_good_start_one_session_a_second_and_then_fewer() {
        let mut fixture = Fixture::new();
        let mut sessions = Vec::new();
        for second in 601..1801 {
            (1..=5).for_each(|n| fixture.pong(second * 1000, n, second + u64::from(n)));
            sessions.extend(fixture.sessions(second * 1000..(second + 1) * 1000));
        }
        assert!(sessions.windows(2).all(|pair| pair[1].0 >= pair[0].0 + 1000), "{sessions:?}");
        for n in 1..=5 {
            let of_peer = sessions.iter().filter(|(_, by)| *by == peer(n)).count();
            assert!((70..=88).contains(&of_peer), "{of_peer} sessions in 20 minutes");
        }
        // One pong with this node's root ends the pause.
        fixture.pong(1_801_000, 1, 1);
        fixture.pong(1_802_000, 1, 7);
        assert!(!fixture.sessions(1_802_000..1_804_000).is_empty());
    }

    #[test]
    fn more_changes_than_roots_kept_are_bounded() {
        let mut fixture = Fixture::new();
        (2..2_000).for_each(|n| fixture.roots.record_own(at(600_000 + n), root(n)));
        assert_eq!(fixture.roots.replaced.len(), ROOTS_MAX);
        fixture.pong(602_000, 1, 1_990);
        assert_eq!(fixture.sessions(602_000..602_600), []);
    }
}
