//! Forgetting: members that are gone leave the table by age, for want of room, or because an operator says so.
//!
//! What is forgotten by age is forgotten by all within one comparison, because anti-entropy lists it; so nothing is said of it. An operator's
//! order is said, signed by the node that was asked, for two reasons: it takes effect everywhere at once, and it means more than age does
//! (the member is not expected back, so nothing is counted on it: [`Output::ForgottenByOperator`]). A node obeys only for a member that it holds
//! failed or left itself, in the life and at the header that the order names; so neither a lie nor an old order removes a member that lives,
//! and one that was forgotten and lives comes back by stating something newer, as after any forgetting.
//!
//! Gossip has no memory. The order is kept for as long as its subject would have been remembered, and told to each peer that connects.

use std::{collections::BTreeMap, time::Duration};

use super::Core;
use crate::{
    NodeId, Time,
    io::{Event, Judgement, Output},
    providers::{Change, MemberState},
    sync::{Ask, Ticket},
    wire::{Forget, ForgetClaim, Gossip, Request},
};

/// Orders kept for peers that connect later. Guess: an operator forgets a rack at a time. Each takes 150 bytes, so all of them fit into a
/// fifth of one message. When there are more, the oldest goes; anti-entropy still spreads the forgetting, though not who ordered it.
const ORDERS_MAX: usize = 256;

/// Orders to forget that this node has obeyed.
#[derive(Debug, Default)]
pub(super) struct Forgets {
    /// By subject, with the time of obeying.
    orders: BTreeMap<NodeId, (Time, Forget)>,
}

impl Forgets {
    /// Keeps an order. Returns whether another one had to make room.
    fn keep(&mut self, now: Time, forget: Forget) -> bool {
        self.orders.insert(forget.claim.subject, (now, forget));
        if self.orders.len() <= ORDERS_MAX {
            return false;
        }
        let oldest = self.orders.iter().min_by_key(|(_, (at, _))| *at).map(|(subject, _)| *subject);
        oldest.and_then(|subject| self.orders.remove(&subject)).is_some()
    }

    /// The member is back.
    pub(super) fn withdraw(&mut self, subject: NodeId) {
        self.orders.remove(&subject);
    }

    fn drop_older_than(&mut self, now: Time, age: Duration) {
        self.orders.retain(|_, (at, _)| now.since(*at) <= age);
    }
}

impl Core {
    /// An operator asked this node. Does nothing for a member that is unknown or present.
    pub(super) fn order_to_forget(&mut self, now: Time, subject: NodeId) {
        if self.own.has_left() || !self.is_gone(subject) {
            return;
        }
        let Some(s) = self.state.node(subject) else { return };
        let claim =
            ForgetClaim { by: self.id, subject, incarnation: s.incarnation(), version: s.header_version() };
        let forget = claim.sign(&self.me, &self.config.cluster);
        self.publish(&Gossip::Forget(forget.clone()));
        self.obey(now, forget);
    }

    /// An operator asked another node.
    pub(super) fn on_forget(&mut self, now: Time, forget: &Forget, from: NodeId) -> Judgement {
        let ForgetClaim { by, subject, incarnation, version } = forget.claim;
        // Only members give orders: identities cost nothing, members can be counted.
        if !self.concluded.contains_key(&by) {
            return Judgement::Ignore;
        }
        let Some(s) = self.state.node(subject) else { return Judgement::Ignore };
        let held = s.header_version();
        // Nobody can have heard more of this node than it has said.
        let is_current = held == version || held < version && subject != self.id;
        if s.incarnation() != incarnation || !is_current {
            return Judgement::Ignore;
        }
        if !self.evidence_limit.has_left(now, by) {
            self.counters.rate_limited += 1;
            return Judgement::Ignore;
        }
        if !forget.is_signed(&self.config.cluster) {
            self.counters.forged += 1;
            self.blame(now, from, "forget");
            return Judgement::Reject;
        }
        self.evidence_limit.take(now, by);
        if subject == self.id {
            self.refute(now, by);
        } else if self.is_gone(subject) {
            self.obey(now, forget.clone());
        } else {
            self.counters.forgets_refused += 1;
        }
        Judgement::Accept
    }

    /// Tells a peer that has just connected what it may have missed.
    pub(super) fn pass_on_forgets(&mut self, peer: NodeId) {
        let orders: Vec<Forget> = self.forgets.orders.values().map(|(_, forget)| forget.clone()).collect();
        if !orders.is_empty() {
            self.request(Ask { peer, ticket: Ticket(0), request: Request::Forget(orders) });
        }
    }

    fn obey(&mut self, now: Time, forget: Forget) {
        let ForgetClaim { by, subject, .. } = forget.claim;
        let name = self.state.node(subject).map(|s| s.header().name.clone()).unwrap_or_default();
        self.counters.forgets_dropped += u64::from(self.forgets.keep(now, forget));
        self.counters.forgotten_by_operator += 1;
        self.forget(subject);
        self.out.push_back(Output::ForgottenByOperator(subject));
        self.event(Event::Forgotten { id: subject, name, by });
    }

    /// Forgets members that have been gone for long.
    pub(super) fn forget_the_old(&mut self, now: Time) {
        self.forgets.drop_older_than(now, self.config.forget_after);
        let is_old = |id: &NodeId, (state, since): &(MemberState, Time)| {
            !state.is_present() && now.since(*since) > self.remembered_for(*id, *state)
        };
        let old: Vec<NodeId> =
            self.concluded.iter().filter(|(id, gone)| is_old(id, gone)).map(|(id, _)| *id).collect();
        old.into_iter().for_each(|id| self.forget(id));
    }

    /// How long a member is remembered once it is gone.
    fn remembered_for(&self, id: NodeId, state: MemberState) -> Duration {
        let is_ephemeral = self.state.node(id).is_some_and(|s| s.header().ephemeral);
        match state {
            MemberState::Failed if is_ephemeral => {
                self.config.forget_ephemeral_after.min(self.config.forget_after)
            }
            _ => self.config.forget_after,
        }
    }

    /// The table is full: the member that has been gone for longest makes room.
    pub(super) fn make_room(&mut self) {
        let gone = self.concluded.iter().filter(|(_, (state, _))| !state.is_present());
        if let Some(id) = gone.min_by_key(|(_, (_, since))| *since).map(|(id, _)| *id) {
            self.forget(id);
        }
    }

    /// Removes a member from everything but the memory of what it stated last, so that only something newer brings it back.
    pub(super) fn forget(&mut self, id: NodeId) {
        self.state.bury(id);
        self.liveness.dismiss(id);
        self.watch.forget(id);
        self.concluded.remove(&id);
        self.present.remove(&id);
        self.overlay_moved |= self.overlay.set(id, false, false);
        self.change(Change::Forgotten(id));
    }

    fn is_gone(&self, id: NodeId) -> bool {
        self.concluded(id).is_some_and(|state| !state.is_present())
    }
}

#[cfg(test)]
mod tests;
