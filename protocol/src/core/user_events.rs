//! Part of [`Core`]: fires user events, takes those of other nodes once each, and repairs what gossip missed.
//!
//! An event is flooded, signed by its origin. A node tells by origin, incarnation and number whether it has
//! the event already. Gossip has no memory, so each node holds recent events. A node that holds some asks a
//! neighbour for others after each comparison of their tables, and the neighbour asks in turn if it lacks
//! some. So an event also crosses a partition that heals within the hour, and a cluster without recent events
//! sends nothing. The answer states the age of each event. A node does not take an event that was fired
//! before its own start: a program of a new node must not act on what happened long ago. (gossipsub repeats
//! messages for a few seconds, so an event that is that old may still be taken.)

use std::{collections::BTreeSet, time::Duration};

use super::{
    machine::Core,
    user_event_state::{EVENTS_MAX, UserEventCounters},
};
use crate::{
    NodeId, Time,
    io::{FireId, FireRefusal, Judgement, Output},
    sync::{NO_SESSION, SyncRequest},
    wire::{
        self, AgedUserEvent, Gossip, PAGE_BYTES, Received, Request, Response, UserEvent, UserEventClaim,
        UserEventContent,
    },
};

impl Core {
    /// Counters of user events since the start of the process.
    pub fn user_event_counters(&self) -> UserEventCounters {
        self.user_events.counters
    }

    /// Fires an event at this node, and outputs the outcome.
    pub(super) fn fire_user_event(&mut self, now: Time, id: FireId, content: UserEventContent) {
        let fired = self.sign_user_event(now, content);
        if let Ok(event) = &fired {
            self.publish(&Gossip::UserEvent((**event).clone()));
            self.outputs.push_back(Output::UserEvent(event.clone()));
        }
        self.outputs.push_back(Output::Fired(id, fired));
    }

    fn sign_user_event(
        &mut self,
        now: Time,
        content: UserEventContent,
    ) -> Result<Box<UserEvent>, FireRefusal> {
        if self.own.has_left() {
            return Err(FireRefusal::Left);
        }
        content.check()?;
        if !self.user_events.fire_limit.has_token(now, self.id) {
            self.user_events.counters.refused += 1;
            let per_s = self.config.user_events_per_origin_per_s / 2;
            return Err(FireRefusal::RateLimited {
                per_s,
                burst: self.config.user_events_per_origin_burst / 2,
            });
        }
        self.user_events.fire_limit.take_token(now, self.id);
        let (number, lamport) = self.user_events.advance();
        let incarnation = self.own.incarnation();
        let claim = UserEventClaim { by: self.id, incarnation, number, lamport, content };
        let event = claim.sign(&self.identity, &self.config.cluster);
        self.user_events.hold(now, event.clone());
        self.user_events.counters.fired += 1;
        Ok(Box::new(event))
    }

    /// Takes an event of another node, unless it is known. `age` is the time since the event was fired.
    pub(super) fn learn_user_event(
        &mut self,
        now: Time,
        event: &UserEvent,
        age: Duration,
        from: NodeId,
    ) -> Judgement {
        let by = event.claim.by;
        if by == self.id || self.user_events.has_seen(event) || now.since(self.started) < age {
            return Judgement::Ignore;
        }
        // Only members fire events: identities cost nothing, but the number of members is bounded.
        if !self.member_states.contains_key(&by) {
            self.user_events.counters.early += 1;
            return Judgement::Ignore;
        }
        if !self.user_events.limit.has_token(now, by) {
            self.user_events.counters.limited += 1;
            return Judgement::Ignore;
        }
        if !event.is_bounded() {
            return self.reject_malformed(now, from, "user event");
        }
        if !event.is_signed(&self.config.cluster) {
            self.counters.forged += 1;
            self.record_misbehaviour(now, from, "user event");
            return Judgement::Reject;
        }
        self.user_events.limit.take_token(now, by);
        self.user_events.record_seen(now, event);
        self.user_events.follow(event.claim.lamport);
        self.user_events.hold(now - age, event.clone());
        self.user_events.counters.received += 1;
        self.outputs.push_back(Output::UserEvent(Box::new(event.clone())));
        Judgement::Accept
    }

    /// Compares events with a neighbour, after the two have compared their tables: now the origins are known.
    pub(super) fn compare_user_events(&mut self, now: Time, peer: NodeId) {
        if self.user_events.aged(now).next().is_some() {
            self.request_user_events(now, peer, true);
        }
    }

    /// Asks a neighbour in turn, if it has events that this node lacks.
    fn request_user_events_in_turn(&mut self, now: Time, peer: NodeId, theirs: &[u64]) {
        let ours: BTreeSet<u64> = self.user_events.known().into_iter().collect();
        if theirs.iter().any(|id| !ours.contains(id)) {
            self.request_user_events(now, peer, false);
        }
    }

    /// Asks a neighbour for events that this node lacks.
    fn request_user_events(&mut self, now: Time, peer: NodeId, is_first: bool) {
        let within = now.since(self.started).min(self.config.user_event_age);
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let request = Request::UserEvents { within_ms, known: self.user_events.known(), is_first };
        self.send_request(SyncRequest { peer, request_id: NO_SESSION, request });
    }

    /// Answers a neighbour that asks for the events that it lacks.
    pub(super) fn answer_user_events(
        &mut self,
        now: Time,
        from: NodeId,
        within_ms: u64,
        (known, is_first): (&[u64], bool),
    ) -> Response {
        if known.len() > EVENTS_MAX {
            self.reject_malformed(now, from, "request for user events");
            return Response::Done;
        }
        if is_first {
            self.request_user_events_in_turn(now, from, known);
        }
        let within = Duration::from_millis(within_ms).min(self.config.user_event_age);
        let known: BTreeSet<u64> = known.iter().copied().collect();
        let (mut events, mut bytes, mut more) = (Vec::new(), 0, false);
        for (age, id, event) in self.user_events.aged(now) {
            if age > within || known.contains(&id.short()) {
                continue;
            }
            let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            let aged = AgedUserEvent { age_ms, event: event.clone() };
            bytes += wire::codec::encode(&aged).len();
            if bytes > PAGE_BYTES {
                more = true;
                break;
            }
            events.push(aged);
        }
        Response::UserEvents { events, more }
    }

    /// Handles the response of a neighbour to a request that belongs to no session. Only the one for events
    /// has content.
    pub(super) fn handle_user_events(&mut self, now: Time, from: NodeId, bytes: &[u8]) {
        let (events, more) = match wire::decode::<Response>(bytes) {
            Ok(Received::Known(Response::UserEvents { events, more })) if events.len() <= EVENTS_MAX => {
                (events, more)
            }
            // An older node answers that the request was handled.
            Ok(Received::Known(Response::Done) | Received::Unknown) => return,
            Ok(Received::Known(_)) | Err(_) => {
                self.reject_malformed(now, from, "response");
                return;
            }
        };
        let mut is_news = false;
        for AgedUserEvent { age_ms, event } in events {
            let age = Duration::from_millis(age_ms);
            if self.learn_user_event(now, &event, age, from) == Judgement::Accept {
                is_news = true;
                self.user_events.counters.recovered += 1;
            }
        }
        if !is_news {
            // The next answer would be the same.
            return;
        }
        // Other neighbours may have missed them for the same reason. Gossip states no age, so a node that
        // started later would take them.
        self.schedule_comparisons(now, from);
        if more {
            self.request_user_events(now, from, false);
        }
    }
}

#[cfg(test)]
mod tests;
