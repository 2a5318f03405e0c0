//! Connections: which there are, which should be, and whom to dial when.
//!
//! - A wanted connection is dialled by the node with the lower id; the other follows half a second later if nothing has come, because
//!   it may be the only one that can (a firewall). So two dials seldom cross.
//! - Failed and left members are redialled in the background by those that would watch them, so that a partition heals by itself after any
//!   time: quickly while the failure is fresh, later one at a time.
//! - Strangers that somebody hinted at (mDNS, the ladder of ports, `--join`, memory) are dialled at once while this node is alone,
//!   and one after the other when it is not: most of them are on their way in already.
//! - A connection that nobody needs is closed after a while. Both ends must agree, because the other may need it for a reason of its own.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use crate::{NodeId, Time, config::Config};

/// The higher id waits this long for the lower one to dial.
const YIELD: Duration = Duration::from_millis(500);
/// The pause after a first failed dial of a wanted connection; doubles to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// While a failure is this fresh, its watchers redial every [`RETRY_MAX`] at the most.
const FRESH: Duration = Duration::from_secs(600);
/// Afterwards each node redials one member this often. Design, section 5.
const BACKGROUND: Duration = Duration::from_secs(10);
/// A dial without an outcome for this long is taken for failed; the transport gives up earlier.
const DIAL_MAX: Duration = Duration::from_secs(20);
/// Hints kept. More than one host's ladder and a LAN's first answers; what is lost comes again.
const HINTS_MAX: usize = 256;
/// Strangers dialled at the same time while alone.
const STRANGERS_MAX: usize = 8;
/// The pause between dialling strangers while not alone.
const STRANGER_INTERVAL: Duration = Duration::from_millis(250);
/// With more connections than this a node is one that newcomers join through: it lets them go sooner, because a hundred at the same time
/// cost as much memory as everything else together, and leave their traces in it.
const CROWD: usize = 24;
/// By how much sooner. What is left is still many times what a newcomer takes to fill its table and to dial its neighbours.
const CROWD_HASTE: u32 = 8;
/// How long an address that was hinted at is not tried again. A little less than the first pause of those who hint again.
const HINT_REPEAT: Duration = Duration::from_millis(400);

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Act {
    /// Dial a member at the addresses of its header.
    Dial(NodeId),
    /// Dial somebody of whom only this is known.
    DialStranger(Option<NodeId>, String),
    /// Ask the peer whether it needs this connection; close it if both say no.
    Offer(NodeId),
}

#[derive(Debug)]
struct Link {
    since: Time,
    /// The peer takes part in gossip.
    subscribed: bool,
    /// Since when this node does not need it.
    unneeded: Option<Time>,
}

#[derive(Debug)]
struct Attempt {
    next: Time,
    failures: u32,
    in_flight: Option<Time>,
    /// Set for those believed dead: since when.
    lost: Option<Time>,
}

/// The connections.
#[derive(Debug)]
pub struct Links {
    me: NodeId,
    links: BTreeMap<NodeId, Link>,
    attempts: BTreeMap<NodeId, Attempt>,
    wanted: BTreeSet<NodeId>,
    hints: VecDeque<(Option<NodeId>, String)>,
    /// Hints out of an earlier life: taken in turn with the others, so that neither makes the other wait.
    memory: VecDeque<(Option<NodeId>, String)>,
    from_memory: bool,
    tried: BTreeMap<String, Time>,
    next_stranger: Time,
    next_background: Time,
    prune_after: Duration,
    rng: fastrand::Rng,
    /// Hints dropped because too many waited.
    pub hints_dropped: u64,
}

impl Links {
    /// No connections yet.
    pub fn new(me: NodeId, config: &Config, seed: u64) -> Self {
        Self {
            me,
            links: BTreeMap::new(),
            attempts: BTreeMap::new(),
            wanted: BTreeSet::new(),
            hints: VecDeque::new(),
            memory: VecDeque::new(),
            from_memory: true,
            tried: BTreeMap::new(),
            next_stranger: Time::ZERO,
            next_background: Time::ZERO,
            prune_after: config.prune_after,
            rng: fastrand::Rng::with_seed(seed),
            hints_dropped: 0,
        }
    }

    /// Whether there is a connection.
    pub fn is_connected(&self, id: NodeId) -> bool {
        self.links.contains_key(&id)
    }

    /// Whether this node wants the connection.
    pub fn is_wanted(&self, id: NodeId) -> bool {
        self.wanted.contains(&id)
    }

    /// All connected peers.
    pub fn connected(&self) -> impl Iterator<Item = NodeId> {
        self.links.keys().copied()
    }

    /// Peers that take part in gossip.
    pub fn subscribed(&self) -> impl Iterator<Item = NodeId> {
        self.links.iter().filter(|(_, l)| l.subscribed).map(|(id, _)| *id)
    }

    /// A connection opened.
    pub fn opened(&mut self, now: Time, id: NodeId) {
        let unneeded = (!self.wanted.contains(&id)).then_some(now);
        self.links.insert(id, Link { since: now, subscribed: false, unneeded });
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.in_flight = None;
            attempt.failures = 0;
        }
    }

    /// The last connection to a peer closed.
    pub fn closed(&mut self, now: Time, id: NodeId) {
        self.links.remove(&id);
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.next = now + RETRY;
        }
    }

    /// The peer takes part in gossip. Returns whether that was new.
    pub fn subscribe(&mut self, id: NodeId) -> bool {
        self.links.get_mut(&id).is_some_and(|link| !std::mem::replace(&mut link.subscribed, true))
    }

    /// Notes a dial made for another reason, so that it is not made twice.
    pub fn dialling(&mut self, now: Time, id: NodeId) {
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.in_flight = Some(now);
        }
    }

    /// A dial came to nothing.
    pub fn dial_failed(&mut self, now: Time, id: NodeId) {
        let jitter = 0.75 + self.rng.f64() / 2.0;
        if let Some(attempt) = self.attempts.get_mut(&id) {
            attempt.in_flight = None;
            attempt.failures = attempt.failures.saturating_add(1);
            if attempt.lost.is_some_and(|since| now.since(since) > FRESH) {
                // Behind all others that wait for their turn.
                attempt.next = attempt.next.max(now + BACKGROUND);
                return;
            }
            let pause = RETRY * 2u32.saturating_pow(attempt.failures.min(8) - 1);
            attempt.next = now + pause.min(RETRY_MAX).mul_f64(jitter);
        }
    }

    /// Says which connections this node wants, and which lost members it redials, since when they are lost.
    pub fn set_wanted(&mut self, now: Time, wanted: BTreeSet<NodeId>, lost: &BTreeMap<NodeId, Time>) {
        self.attempts.retain(|id, _| wanted.contains(id) || lost.contains_key(id));
        for id in wanted.iter().filter(|id| !lost.contains_key(id)) {
            let me = self.me;
            let attempt = self.attempts.entry(*id).or_insert_with(|| Attempt {
                next: if me < *id { now } else { now + YIELD },
                failures: 0,
                in_flight: None,
                lost: None,
            });
            if attempt.lost.take().is_some() {
                attempt.next = attempt.next.min(now + YIELD);
                attempt.failures = 0;
            }
        }
        for (id, since) in lost {
            let attempt = self.attempts.entry(*id).or_insert_with(|| Attempt {
                next: now + RETRY,
                failures: 0,
                in_flight: None,
                lost: None,
            });
            attempt.lost = Some(*since);
        }
        for (id, link) in &mut self.links {
            match wanted.contains(id) {
                true => link.unneeded = None,
                false => _ = link.unneeded.get_or_insert(now),
            }
        }
        self.wanted = wanted;
    }

    /// A member of an earlier life may still be there. The first are the best.
    pub fn remember(&mut self, id: NodeId, address: String) {
        if self.memory.len() >= HINTS_MAX {
            self.hints_dropped += 1;
        } else if id != self.me {
            self.memory.push_back((Some(id), address));
        }
    }

    /// Somebody may be reached there.
    pub fn hint(&mut self, now: Time, id: Option<NodeId>, address: String) {
        self.tried.retain(|_, at| now.since(*at) < HINT_REPEAT);
        let known = id.is_some_and(|id| id == self.me || self.links.contains_key(&id));
        if known || self.tried.contains_key(&address) || self.hints.iter().any(|(_, a)| *a == address) {
            return;
        }
        if self.hints.len() >= HINTS_MAX {
            self.hints.pop_front();
            self.hints_dropped += 1;
        }
        self.hints.push_back((id, address));
    }

    /// What is due now. `is_member` says who is in the table and present: such a one is no stranger.
    pub fn due(&mut self, now: Time, is_member: impl Fn(NodeId) -> bool) -> Vec<Act> {
        let mut acts = Vec::new();
        let mut in_turn: Option<(Time, NodeId)> = None;
        for (id, attempt) in &mut self.attempts {
            if attempt.in_flight.is_some_and(|at| now.since(at) >= DIAL_MAX) {
                attempt.in_flight = None;
            }
            if self.links.contains_key(id) || attempt.in_flight.is_some() || attempt.next > now {
                continue;
            }
            if attempt.lost.is_some_and(|since| now.since(since) > FRESH) {
                let waits = (attempt.next, *id);
                in_turn = Some(in_turn.map_or(waits, |other| other.min(waits)));
                continue;
            }
            attempt.in_flight = Some(now);
            acts.push(Act::Dial(*id));
        }
        // Of those lost for long, whoever has waited for longest.
        if self.next_background <= now
            && let Some((_, id)) = in_turn
            && let Some(attempt) = self.attempts.get_mut(&id)
        {
            self.next_background = now + BACKGROUND.mul_f64(0.75 + self.rng.f64() / 2.0);
            attempt.next = now + BACKGROUND;
            attempt.in_flight = Some(now);
            acts.push(Act::Dial(id));
        }
        while let Some((id, address)) = self.next_hint(now) {
            if id.is_some_and(|id| is_member(id) || self.links.contains_key(&id)) {
                continue;
            }
            self.tried.insert(address.clone(), now);
            acts.push(Act::DialStranger(id, address));
        }
        let prune_after = self.prune_after();
        for (id, link) in &mut self.links {
            if link.unneeded.is_some_and(|since| now.since(since) >= prune_after) {
                link.unneeded = Some(now);
                acts.push(Act::Offer(*id));
            }
        }
        acts
    }

    fn next_hint(&mut self, now: Time) -> Option<(Option<NodeId>, String)> {
        if self.links.is_empty() {
            let trying = self.tried.values().filter(|at| now.since(**at) < RETRY).count();
            return if trying < STRANGERS_MAX { self.pop_hint() } else { None };
        }
        if self.next_stranger > now {
            return None;
        }
        let hint = self.pop_hint();
        if hint.is_some() {
            self.next_stranger = now + STRANGER_INTERVAL;
        }
        hint
    }

    fn pop_hint(&mut self) -> Option<(Option<NodeId>, String)> {
        self.from_memory = !self.from_memory;
        let (first, second) = match self.from_memory {
            true => (&mut self.hints, &mut self.memory),
            false => (&mut self.memory, &mut self.hints),
        };
        first.pop_front().or_else(|| second.pop_front())
    }

    fn prune_after(&self) -> Duration {
        if self.links.len() > CROWD { self.prune_after / CROWD_HASTE } else { self.prune_after }
    }

    /// When something will be due.
    pub fn next_due(&self, now: Time) -> Option<Time> {
        let dials =
            self.attempts.iter().filter(|(id, _)| !self.links.contains_key(id)).map(|(_, attempt)| {
                let fresh = attempt.lost.is_none_or(|since| now.since(since) <= FRESH);
                let pace = if fresh { Time::ZERO } else { self.next_background };
                attempt.in_flight.map_or(attempt.next.max(pace), |at| at + DIAL_MAX)
            });
        let hints = (!self.hints.is_empty() || !self.memory.is_empty()).then(|| {
            if self.links.is_empty() { now + Duration::from_millis(50) } else { self.next_stranger }
        });
        let prune_after = self.prune_after();
        let prune = self.links.values().filter_map(|l| l.unneeded).map(|since| since + prune_after);
        dials.chain(hints).chain(prune).min()
    }

    /// How long the connection has been open.
    pub fn age(&self, now: Time, id: NodeId) -> Option<Duration> {
        self.links.get(&id).map(|link| now.since(link.since))
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
        let mut links = Links::new(id(0), &Config::default(), 1);
        let lost: BTreeMap<NodeId, Time> = (1..=4).map(|n| (id(n), Time::ZERO)).collect();
        links.set_wanted(Time::ZERO, BTreeSet::new(), &lost);
        let mut now = Time::ZERO + FRESH * 2;
        let until = now + Duration::from_secs(60);
        let mut dialled = BTreeSet::new();
        let mut dials = 0;
        while now < until {
            for act in links.due(now, |_| false) {
                let Act::Dial(id) = act else { panic!("{act:?}") };
                dialled.insert(id);
                dials += 1;
                links.dial_failed(now, id);
            }
            now = links.next_due(now).map_or(until, |at| at.max(now + Duration::from_millis(1)));
        }
        assert_eq!(dialled.len(), 4);
        assert!(dials <= 9, "{dials} dials in a minute");
    }

    #[test]
    fn memory_and_hints_take_turns() {
        let mut links = Links::new(id(0), &Config::default(), 1);
        (1..=100).for_each(|n| links.remember(id(n), format!("/ip4/10.0.0.{n}/tcp/7600")));
        links.hint(Time::ZERO, None, "/ip4/127.0.0.1/tcp/7601".into());
        let first = links.due(Time::ZERO, |_| false);
        assert_eq!(first.len(), STRANGERS_MAX);
        assert!(first.contains(&Act::DialStranger(None, "/ip4/127.0.0.1/tcp/7601".into())));
        assert!(first.contains(&Act::DialStranger(Some(id(1)), "/ip4/10.0.0.1/tcp/7600".into())));
    }
}
