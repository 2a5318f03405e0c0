//! [`UserEventState`]: the user events that this node holds for neighbours that missed them, the numbers that
//! it has seen of each origin, its Lamport clock, and the rate limits of origins; and the counters.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::rate_limit::RateLimit;
use crate::{
    Incarnation, NodeId, Time,
    config::Config,
    signed_request::ReplayWindow,
    wire::{EventId, LAMPORT_MAX, UserEvent},
};

/// Events held. If there are more, the one that was fired first is dropped; a neighbour that missed it does
/// not get it from this node.
pub(super) const EVENTS_MAX: usize = 256;
/// Origins whose numbers are remembered. If there are more, the one unused for longest is dropped; an old
/// event of it would be taken a second time.
const ORIGINS_MAX: usize = 16 * 1024;

/// Counters of user events, as `/metrics` lists them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct UserEventCounters {
    /// Events that were fired at this node.
    pub fired: u64,
    /// Events that this node refused to fire because it was over its rate limit.
    pub refused: u64,
    /// Events of other origins, each counted once.
    pub received: u64,
    /// Events among those that gossip did not deliver, and a neighbour did.
    pub recovered: u64,
    /// Events dropped because their origin was no member here yet.
    pub early: u64,
    /// Events dropped because their origin was over its rate limit.
    pub limited: u64,
    /// Events no longer held for neighbours because there were too many.
    pub displaced: u64,
}

impl UserEventCounters {
    /// Name, help text and value of each counter.
    pub fn list(&self) -> [(&'static str, &'static str, u64); 7] {
        [
            ("user_events_fired", "User events fired at this node", self.fired),
            ("user_events_refused", "User events not fired: this node was over its rate limit", self.refused),
            ("user_events_received", "User events of other nodes, each counted once", self.received),
            (
                "user_events_recovered",
                "User events that gossip missed and a neighbour delivered",
                self.recovered,
            ),
            ("user_events_early", "User events dropped because their origin was no member yet", self.early),
            ("user_events_limited", "User events dropped: their origin was over its limit", self.limited),
            (
                "user_events_displaced",
                "User events no longer held for neighbours because there were too many",
                self.displaced,
            ),
        ]
    }
}

/// An event and when it was fired, by this node's clock.
#[derive(Debug)]
struct Held {
    fired_at: Time,
    id: EventId,
    event: UserEvent,
}

/// Numbers seen of one origin, in its two newest incarnations. The older one serves for events that arrive
/// after the origin's restart.
#[derive(Debug)]
struct Origin {
    newest: ReplayWindow,
    before: Option<ReplayWindow>,
    used: Time,
}

impl Origin {
    /// Returns the window of an incarnation. `None`: the incarnation is older than both.
    fn window(&mut self, incarnation: Incarnation) -> Option<&mut ReplayWindow> {
        if self.newest.incarnation() < incarnation {
            let newest = std::mem::replace(&mut self.newest, ReplayWindow::new(incarnation));
            self.before = Some(newest);
        }
        if self.newest.incarnation() == incarnation {
            return Some(&mut self.newest);
        }
        if self.before.as_ref().is_none_or(|before| before.incarnation() < incarnation) {
            self.before = Some(ReplayWindow::new(incarnation));
        }
        self.before.as_mut().filter(|before| before.incarnation() == incarnation)
    }

    fn has_seen(&self, incarnation: Incarnation, number: u64) -> bool {
        let windows = [Some(&self.newest), self.before.as_ref()];
        match windows.into_iter().flatten().find(|window| window.incarnation() == incarnation) {
            Some(window) => !window.clone().note(number),
            None => {
                let oldest = self.before.as_ref().map(ReplayWindow::incarnation);
                number == 0 || oldest.is_some_and(|oldest| incarnation < oldest)
            }
        }
    }
}

/// User events of this node.
#[derive(Debug)]
pub(super) struct UserEventState {
    held: VecDeque<Held>,
    origins: BTreeMap<NodeId, Origin>,
    lamport: u64,
    /// Number of the event that was fired last at this node.
    fired: u64,
    /// Limit on the events of other origins.
    pub(super) limit: RateLimit,
    /// Limit on the events of this node, which is lower, so that receivers do not drop one.
    pub(super) fire_limit: RateLimit,
    pub(super) counters: UserEventCounters,
}

impl UserEventState {
    pub(super) fn new(config: &Config) -> Self {
        let (per_s, burst) = (config.user_events_per_origin_per_s, config.user_events_per_origin_burst);
        Self {
            held: VecDeque::new(),
            origins: BTreeMap::new(),
            lamport: 0,
            fired: 0,
            limit: RateLimit::new(per_s, burst),
            fire_limit: RateLimit::new(per_s / 2, burst / 2),
            counters: UserEventCounters::default(),
        }
    }

    /// Returns number and Lamport time for the next event of this node.
    pub(super) fn advance(&mut self) -> (u64, u64) {
        self.fired += 1;
        self.follow(self.lamport.saturating_add(1));
        (self.fired, self.lamport)
    }

    /// Follows the Lamport time of an event.
    pub(super) fn follow(&mut self, lamport: u64) {
        self.lamport = self.lamport.max(lamport.min(LAMPORT_MAX));
    }

    /// Whether an event was seen, or is too old to tell.
    pub(super) fn has_seen(&self, event: &UserEvent) -> bool {
        let claim = &event.claim;
        self.origins.get(&claim.by).is_some_and(|origin| origin.has_seen(claim.incarnation, claim.number))
            || claim.number == 0
    }

    /// Records that an event was seen.
    pub(super) fn record_seen(&mut self, now: Time, event: &UserEvent) {
        let claim = &event.claim;
        if self.origins.len() >= ORIGINS_MAX && !self.origins.contains_key(&claim.by) {
            let stalest = self.origins.iter().min_by_key(|(_, origin)| origin.used).map(|(id, _)| *id);
            stalest.and_then(|id| self.origins.remove(&id));
        }
        let new = || Origin { newest: ReplayWindow::new(claim.incarnation), before: None, used: now };
        let origin = self.origins.entry(claim.by).or_insert_with(new);
        origin.used = now;
        if let Some(window) = origin.window(claim.incarnation) {
            // The caller has asked whether it is new.
            let _ = window.note(claim.number);
        }
    }

    /// Whether this node holds events for neighbours.
    pub(super) fn holds_events(&self) -> bool {
        !self.held.is_empty()
    }

    /// Holds an event for neighbours that missed it.
    pub(super) fn hold(&mut self, fired_at: Time, event: UserEvent) {
        // By the time of firing, so that neighbours hold the same events.
        let place = self.held.partition_point(|held| held.fired_at <= fired_at);
        self.held.insert(place, Held { fired_at, id: event.id(), event });
        if self.held.len() > EVENTS_MAX {
            self.held.pop_front();
            self.counters.displaced += 1;
        }
    }

    /// Numbers of the held events, by which a neighbour finds those that this node lacks.
    pub(super) fn known(&self) -> Vec<u64> {
        self.held.iter().map(|held| held.id.short()).collect()
    }

    /// Held events with their ages, oldest first.
    pub(super) fn aged(&self, now: Time) -> impl Iterator<Item = (Duration, EventId, &UserEvent)> {
        self.held.iter().map(move |held| (now.since(held.fired_at), held.id, &held.event))
    }

    /// Drops events that are older than `age`, and full rate limits.
    pub(super) fn prune(&mut self, now: Time, age: Duration) {
        self.held.retain(|held| now.since(held.fired_at) <= age);
        self.limit.prune(now);
        self.fire_limit.prune(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Identity,
        wire::{UserEventClaim, UserEventContent},
    };

    fn event(seed: u16, incarnation: u64, number: u64) -> UserEvent {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&seed.to_le_bytes());
        let me = Identity::from_seed(&bytes);
        let (incarnation, content) = (Incarnation(incarnation), UserEventContent::default());
        UserEventClaim { by: me.id(), incarnation, number, lamport: 1, content }.sign(&me, "home")
    }

    fn take(state: &mut UserEventState, event: &UserEvent) -> bool {
        let is_new = !state.has_seen(event);
        if is_new {
            state.record_seen(Time::ZERO, event);
            state.hold(Time::ZERO, event.clone());
        }
        is_new
    }

    #[test]
    fn an_event_is_new_once_in_any_order_of_lives_and_numbers() {
        let mut state = UserEventState::new(&Config::default());
        let sent = [(2, 1), (2, 3), (3, 1), (2, 2), (3, 2), (1, 5), (4, 1), (3, 3)];
        let new: Vec<bool> =
            sent.iter().map(|(life, number)| take(&mut state, &event(1, *life, *number))).collect();
        // Life 1 is older than the two that are remembered.
        assert_eq!(new, [true, true, true, true, true, false, true, true]);
        assert!(sent.iter().all(|(life, number)| !take(&mut state, &event(1, *life, *number))));
        assert!(take(&mut state, &event(2, 1, 1)), "another origin");
        assert!(!take(&mut state, &event(2, 1, 0)), "no event has this number");
    }

    #[test]
    fn the_held_events_are_bounded_in_number_and_age() {
        let mut state = UserEventState::new(&Config::default());
        for number in 1..=EVENTS_MAX as u64 + 3 {
            assert!(take(&mut state, &event(1, 1, number)));
        }
        assert_eq!((state.known().len(), state.counters.displaced), (EVENTS_MAX, 3));
        assert_eq!(state.known()[0], event(1, 1, 4).id().short());
        let age = Duration::from_secs(60);
        state.prune(Time::ZERO + age, age);
        assert_eq!(state.known().len(), EVENTS_MAX);
        state.prune(Time::ZERO + 2 * age, age);
        assert_eq!(state.known(), []);
        assert!(!take(&mut state, &event(1, 1, 4)), "what is no longer held is still known");
    }

    #[test]
    fn a_lamport_time_follows_and_never_overflows() {
        let mut state = UserEventState::new(&Config::default());
        assert_eq!(state.advance(), (1, 1));
        state.follow(41);
        state.follow(7);
        assert_eq!(state.advance(), (2, 42));
        state.follow(u64::MAX);
        assert_eq!(state.advance(), (3, LAMPORT_MAX));
    }
}
