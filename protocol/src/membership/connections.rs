//! [`Connections`]: tracks this node's open and wanted connections, and decides which nodes to dial, when,
//! and which unneeded connections to close.
//!
//! - The node with the lower id dials a wanted connection. The other node dials 500 ms later, because a
//!   firewall may block dials in one direction. So the two dials rarely cross.
//! - Watchers redial failed and left members, so that a partition heals even after a long time. At first they
//!   redial at a short interval, later one member at a time.
//! - Hints are addresses of unknown nodes (from mDNS, the port ladder, `--join`, an earlier life). A node
//!   without connections dials several at once. Other nodes dial them one at a time, because most of the
//!   hinted nodes are already connecting.
//! - A connection that neither end needs is closed after a while. Both ends must agree, because each may need
//!   the connection for a different reason.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use crate::{NodeId, Time, config::Config};

/// Delay of the node with the higher id, in which the node with the lower id dials.
const YIELD_DELAY: Duration = Duration::from_millis(500);
/// Pause after the first failed dial of a wanted connection. Doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
/// While a member was lost less than this long ago, it is redialled every [`RETRY_PAUSE_MAX`] at most.
const RECENT: Duration = Duration::from_secs(600);
/// Interval at which a node redials one of the members that were lost longer ago.
const BACKGROUND_INTERVAL: Duration = Duration::from_secs(10);
/// A dial without an outcome for this long counts as failed. The transport's own timeout is shorter.
const DIAL_MAX: Duration = Duration::from_secs(20);
/// Hints kept. Suffices for the ports of one host and the first answers of a LAN. A dropped hint is repeated
/// by its source.
const HINTS_MAX: usize = 256;
/// Hints dialled at the same time by a node without connections.
const HINT_DIALS_MAX: usize = 8;
/// Pause between two dialled hints of a node with connections.
const HINT_INTERVAL: Duration = Duration::from_millis(250);
/// Above this many connections, new nodes probably join through this node. It then closes unneeded
/// connections sooner, because a hundred of them take as much memory as everything else.
const CROWDED_CONNECTIONS: usize = 24;
/// Divisor of the time before pruning, above [`CROWDED_CONNECTIONS`]. The rest is still many times as long as
/// a new node needs to fill its table and to dial its neighbours.
const CROWDED_DIVISOR: u32 = 8;
/// Time in which a hinted address is not dialled again. Slightly less than the shortest interval at which
/// hints are repeated.
const HINT_REPEAT: Duration = Duration::from_millis(400);

/// Action that the core must carry out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ConnectionAction {
    /// Dial a member at the addresses of its header.
    Dial(NodeId),
    /// Dial a node of which only an address is known, and perhaps the id.
    DialHint(Option<NodeId>, String),
    /// Ask the peer whether it needs this connection. The peer closes the connection if it does not.
    OfferClose(NodeId),
}

#[derive(Debug)]
struct Connection {
    since: Time,
    /// Whether the peer subscribed to the gossip topic.
    subscribed: bool,
    /// Since when this node does not need the connection.
    unneeded: Option<Time>,
}

#[derive(Debug)]
struct Attempt {
    next: Time,
    failures: u32,
    in_flight: Option<Time>,
    /// Since when the member is failed or left; `None` while it is present.
    lost: Option<Time>,
}

/// All connections, dials and hints of this node.
#[derive(Debug)]
pub(crate) struct Connections {
    me: NodeId,
    open: BTreeMap<NodeId, Connection>,
    attempts: BTreeMap<NodeId, Attempt>,
    wanted: BTreeSet<NodeId>,
    hints: VecDeque<(Option<NodeId>, String)>,
    /// Hints of an earlier life. `pop_hint` takes from both queues in turn, so that neither delays the other.
    remembered: VecDeque<(Option<NodeId>, String)>,
    from_remembered: bool,
    tried: BTreeMap<String, Time>,
    next_hint_at: Time,
    next_background: Time,
    prune_after: Duration,
    rng: fastrand::Rng,
    /// Hints dropped because too many waited.
    pub hints_dropped: u64,
}

impl Connections {
    /// Starts without connections.
    pub(crate) fn new(me: NodeId, config: &Config, seed: u64) -> Self {
        Self {
            me,
            open: BTreeMap::new(),
            attempts: BTreeMap::new(),
            wanted: BTreeSet::new(),
            hints: VecDeque::new(),
            remembered: VecDeque::new(),
            from_remembered: true,
            tried: BTreeMap::new(),
            next_hint_at: Time::ZERO,
            next_background: Time::ZERO,
            prune_after: config.prune_after,
            rng: fastrand::Rng::with_seed(seed),
            hints_dropped: 0,
        }
    }

    /// Whether a peer is connected.
    pub(crate) fn is_connected(&self, id: NodeId) -> bool {
        self.open.contains_key(&id)
    }

    /// Whether this node wants a connection to a peer.
    pub(crate) fn is_wanted(&self, id: NodeId) -> bool {
        self.wanted.contains(&id)
    }

    /// All connected peers.
    pub(crate) fn connected(&self) -> impl Iterator<Item = NodeId> {
        self.open.keys().copied()
    }

    /// Connected peers that subscribed to the gossip topic.
    pub(crate) fn subscribed(&self) -> impl Iterator<Item = NodeId> {
        self.open.iter().filter(|(_, l)| l.subscribed).map(|(id, _)| *id)
    }

    /// Records an opened connection.
    pub(crate) fn record_opened(&mut self, now: Time, id: NodeId) {
        let unneeded = (!self.wanted.contains(&id)).then_some(now);
        self.open.insert(id, Connection { since: now, subscribed: false, unneeded });
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.in_flight = None;
            attempt.failures = 0;
        }
    }

    /// Records that the last connection to a peer closed.
    pub(crate) fn record_closed(&mut self, now: Time, id: NodeId) {
        self.open.remove(&id);
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.next = now + RETRY_PAUSE;
        }
    }

    /// Records that a peer subscribed to the gossip topic. Returns whether the subscription is new.
    pub(crate) fn record_subscription(&mut self, id: NodeId) -> bool {
        self.open.get_mut(&id).is_some_and(|link| !std::mem::replace(&mut link.subscribed, true))
    }

    /// Records a dial that was made for another purpose, so that the peer is not dialled twice.
    pub(crate) fn record_dial(&mut self, now: Time, id: NodeId) {
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.in_flight = Some(now);
        }
    }

    /// Records a failed dial.
    pub(crate) fn record_failed_dial(&mut self, now: Time, id: NodeId) {
        let jitter = 0.75 + self.rng.f64() / 2.0;
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.in_flight = None;
            attempt.failures = attempt.failures.saturating_add(1);
            if attempt.lost.is_some_and(|since| now.since(since) > RECENT) {
                // This member is dialled after all others that wait for their turn.
                attempt.next = attempt.next.max(now + BACKGROUND_INTERVAL);
                return;
            }
            let pause = RETRY_PAUSE * 2u32.saturating_pow(attempt.failures.min(8) - 1);
            attempt.next = now + pause.min(RETRY_PAUSE_MAX).mul_f64(jitter);
        }
    }

    /// Sets the wanted connections, and the lost members to redial, each with the time of its loss.
    pub(crate) fn set_wanted(&mut self, now: Time, wanted: BTreeSet<NodeId>, lost: &BTreeMap<NodeId, Time>) {
        self.attempts.retain(|id, _| wanted.contains(id) || lost.contains_key(id));
        for id in wanted.iter().filter(|id| !lost.contains_key(id)) {
            let me = self.me;
            let attempt = self.attempts.entry(*id).or_insert_with(|| Attempt {
                next: if me < *id { now } else { now + YIELD_DELAY },
                failures: 0,
                in_flight: None,
                lost: None,
            });
            if attempt.lost.take().is_some() {
                attempt.next = attempt.next.min(now + YIELD_DELAY);
                attempt.failures = 0;
            }
        }
        for (id, since) in lost {
            let attempt = self.attempts.entry(*id).or_insert_with(|| Attempt {
                next: now + RETRY_PAUSE,
                failures: 0,
                in_flight: None,
                lost: None,
            });
            attempt.lost = Some(*since);
        }
        for (id, link) in &mut self.open {
            match wanted.contains(id) {
                true => link.unneeded = None,
                false => _ = link.unneeded.get_or_insert(now),
            }
        }
        self.wanted = wanted;
    }

    /// Adds a member of an earlier life as a hint. If the queue is full, the new hint is dropped.
    pub(crate) fn add_remembered(&mut self, id: NodeId, address: String) {
        if self.remembered.len() >= HINTS_MAX {
            self.hints_dropped += 1;
        } else if id != self.me {
            self.remembered.push_back((Some(id), address));
        }
    }

    /// Adds an address at which a node may be reachable. If the queue is full, the oldest hint is dropped.
    pub(crate) fn add_hint(&mut self, now: Time, id: Option<NodeId>, address: String) {
        self.tried.retain(|_, at| now.since(*at) < HINT_REPEAT);
        let known = id.is_some_and(|id| id == self.me || self.open.contains_key(&id));
        if known || self.tried.contains_key(&address) || self.hints.iter().any(|(_, a)| *a == address) {
            return;
        }
        if self.hints.len() >= HINTS_MAX {
            self.hints.pop_front();
            self.hints_dropped += 1;
        }
        self.hints.push_back((id, address));
    }

    /// Actions that are due. `is_member` says whether a node is a present member; hints of such nodes are
    /// skipped.
    pub(crate) fn due(&mut self, now: Time, is_member: impl Fn(NodeId) -> bool) -> Vec<ConnectionAction> {
        let mut actions = Vec::new();
        let mut background: Option<(Time, NodeId)> = None;
        for (id, attempt) in &mut self.attempts {
            if attempt.in_flight.is_some_and(|at| now.since(at) >= DIAL_MAX) {
                attempt.in_flight = None;
            }
            if self.open.contains_key(id) || attempt.in_flight.is_some() || attempt.next > now {
                continue;
            }
            if attempt.lost.is_some_and(|since| now.since(since) > RECENT) {
                let waits = (attempt.next, *id);
                background = Some(background.map_or(waits, |other| other.min(waits)));
                continue;
            }
            attempt.in_flight = Some(now);
            actions.push(ConnectionAction::Dial(*id));
        }
        // Of the members that were lost long ago, the one that has waited longest is dialled.
        if self.next_background <= now
            && let Some((_, id)) = background
            && let Some(attempt) = self.attempts.get_mut(&id)
        {
            self.next_background = now + BACKGROUND_INTERVAL.mul_f64(0.75 + self.rng.f64() / 2.0);
            attempt.next = now + BACKGROUND_INTERVAL;
            attempt.in_flight = Some(now);
            actions.push(ConnectionAction::Dial(id));
        }
        while let Some((id, address)) = self.next_hint(now) {
            if id.is_some_and(|id| is_member(id) || self.open.contains_key(&id)) {
                continue;
            }
            self.tried.insert(address.clone(), now);
            actions.push(ConnectionAction::DialHint(id, address));
        }
        let prune_after = self.prune_after();
        for (id, link) in &mut self.open {
            if link.unneeded.is_some_and(|since| now.since(since) >= prune_after) {
                link.unneeded = Some(now);
                actions.push(ConnectionAction::OfferClose(*id));
            }
        }
        actions
    }

    fn next_hint(&mut self, now: Time) -> Option<(Option<NodeId>, String)> {
        if self.open.is_empty() {
            let trying = self.tried.values().filter(|at| now.since(**at) < RETRY_PAUSE).count();
            return if trying < HINT_DIALS_MAX { self.pop_hint() } else { None };
        }
        if self.next_hint_at > now {
            return None;
        }
        let hint = self.pop_hint();
        if hint.is_some() {
            self.next_hint_at = now + HINT_INTERVAL;
        }
        hint
    }

    fn pop_hint(&mut self) -> Option<(Option<NodeId>, String)> {
        self.from_remembered = !self.from_remembered;
        let (first, second) = match self.from_remembered {
            true => (&mut self.hints, &mut self.remembered),
            false => (&mut self.remembered, &mut self.hints),
        };
        first.pop_front().or_else(|| second.pop_front())
    }

    fn prune_after(&self) -> Duration {
        if self.open.len() > CROWDED_CONNECTIONS {
            self.prune_after / CROWDED_DIVISOR
        } else {
            self.prune_after
        }
    }

    /// When [`due`](Self::due) next has an action.
    pub(crate) fn next_due(&self, now: Time) -> Option<Time> {
        let dials = self.attempts.iter().filter(|(id, _)| !self.open.contains_key(id)).map(|(_, attempt)| {
            let recent = attempt.lost.is_none_or(|since| now.since(since) <= RECENT);
            let pace = if recent { Time::ZERO } else { self.next_background };
            attempt.in_flight.map_or(attempt.next.max(pace), |at| at + DIAL_MAX)
        });
        let hints = (!self.hints.is_empty() || !self.remembered.is_empty())
            .then(|| if self.open.is_empty() { now + Duration::from_millis(50) } else { self.next_hint_at });
        let prune_after = self.prune_after();
        let prune = self.open.values().filter_map(|l| l.unneeded).map(|since| since + prune_after);
        dials.chain(hints).chain(prune).min()
    }

    /// Time for which a connection has been open.
    pub(crate) fn age(&self, now: Time, id: NodeId) -> Option<Duration> {
        self.open.get(&id).map(|link| now.since(link.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> NodeId {
        NodeId::from_public_key([n; 32])
    }

    #[test]
    fn everybody_lost_for_long_has_its_turn_though_all_refuse() {
        let mut open = Connections::new(id(0), &Config::default(), 1);
        let lost: BTreeMap<NodeId, Time> = (1..=4).map(|n| (id(n), Time::ZERO)).collect();
        open.set_wanted(Time::ZERO, BTreeSet::new(), &lost);
        let mut now = Time::ZERO + RECENT * 2;
        let until = now + Duration::from_secs(60);
        let mut dialled = BTreeSet::new();
        let mut dials = 0;
        while now < until {
            for act in open.due(now, |_| false) {
                let ConnectionAction::Dial(id) = act else { panic!("{act:?}") };
                dialled.insert(id);
                dials += 1;
                open.record_failed_dial(now, id);
            }
            now = open.next_due(now).map_or(until, |at| at.max(now + Duration::from_millis(1)));
        }
        assert_eq!(dialled.len(), 4);
        assert!(dials <= 9, "{dials} dials in a minute");
    }

    #[test]
    fn memory_and_hints_take_turns() {
        let mut open = Connections::new(id(0), &Config::default(), 1);
        (1..=100).for_each(|n| open.add_remembered(id(n), format!("/ip4/10.0.0.{n}/tcp/7600")));
        open.add_hint(Time::ZERO, None, "/ip4/127.0.0.1/tcp/7601".into());
        let first = open.due(Time::ZERO, |_| false);
        assert_eq!(first.len(), HINT_DIALS_MAX);
        assert!(first.contains(&ConnectionAction::DialHint(None, "/ip4/127.0.0.1/tcp/7601".into())));
        assert!(first.contains(&ConnectionAction::DialHint(Some(id(1)), "/ip4/10.0.0.1/tcp/7600".into())));
    }
}
