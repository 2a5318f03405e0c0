//! Part of [`Core`]: forgets members that are gone, by age, because the table is full, or by an operator's
//! order.
//!
//! If one node forgets a member by age, all nodes do within one comparison, because anti-entropy lists
//! forgotten members. No message is needed. An operator's order is flooded, signed by the node that received
//! it, for two reasons. It takes effect on all nodes at once. It also says that the member is not expected
//! back, so no majority counts it ([`Output::ForgottenByOperator`]). A node obeys only if its own table lists
//! the member as failed or left, in the incarnation and at the header that the order names. So neither a lie
//! nor an old order removes a live member. If a forgotten member is alive, it comes back by stating a newer
//! header.
//!
//! Gossip has no memory. So a node keeps each order for as long as its subject would have been remembered,
//! and sends it to each peer that connects.

use std::time::Duration;

use super::machine::Core;
use crate::{
    NodeId, Time,
    io::{Event, Judgement, Output},
    providers::{Change, MemberState},
    sync::{NO_SESSION, SyncRequest},
    wire::{Forget, ForgetClaim, Gossip, Request},
};

impl Core {
    /// Gives an operator's order to forget a member. Does nothing if the member is unknown or present.
    pub(super) fn order_to_forget(&mut self, now: Time, subject: NodeId) {
        if self.own.has_left() || !self.is_gone(subject) {
            return;
        }
        let Some(s) = self.state.node(subject) else { return };
        let claim =
            ForgetClaim { by: self.id, subject, incarnation: s.incarnation(), version: s.header_version() };
        let forget = claim.sign(&self.identity, &self.config.cluster);
        self.publish(&Gossip::Forget(forget.clone()));
        self.obey(now, forget);
    }

    /// Handles an operator's order that another node signed.
    pub(super) fn handle_forget_order(&mut self, now: Time, forget: &Forget, from: NodeId) -> Judgement {
        let ForgetClaim { by, subject, incarnation, version } = forget.claim;
        // Only members give orders: identities cost nothing, but the number of members is bounded.
        if !self.member_states.contains_key(&by) {
            return Judgement::Ignore;
        }
        let Some(s) = self.state.node(subject) else { return Judgement::Ignore };
        let current_version = s.header_version();
        // No node can have a newer header of this node than this node itself.
        let is_current = current_version == version || current_version < version && subject != self.id;
        if s.incarnation() != incarnation || !is_current {
            return Judgement::Ignore;
        }
        if !self.evidence_limit.has_token(now, by) {
            self.counters.rate_limited += 1;
            return Judgement::Ignore;
        }
        if !forget.is_signed(&self.config.cluster) {
            self.counters.forged += 1;
            self.record_misbehaviour(now, from, "forget");
            return Judgement::Reject;
        }
        self.evidence_limit.take_token(now, by);
        if subject == self.id {
            self.refute(now, by);
        } else if self.is_gone(subject) {
            self.obey(now, forget.clone());
        } else {
            self.counters.forgets_refused += 1;
        }
        Judgement::Accept
    }

    /// Sends the kept orders to a peer that has just connected.
    pub(super) fn forward_forget_orders(&mut self, peer: NodeId) {
        let orders: Vec<Forget> =
            self.forget_orders.orders.values().map(|(_, forget)| forget.clone()).collect();
        if !orders.is_empty() {
            self.send_request(SyncRequest { peer, request_id: NO_SESSION, request: Request::Forget(orders) });
        }
    }

    fn obey(&mut self, now: Time, forget: Forget) {
        let ForgetClaim { by, subject, .. } = forget.claim;
        let name = self.state.node(subject).map(|s| s.header().name.clone()).unwrap_or_default();
        self.counters.forgets_dropped += u64::from(self.forget_orders.keep(now, forget));
        self.counters.forgotten_by_operator += 1;
        self.forget(subject);
        self.outputs.push_back(Output::ForgottenByOperator(subject));
        self.push_event(Event::Forgotten { id: subject, name, by });
    }

    /// Forgets members whose time of being remembered is over.
    pub(super) fn forget_expired_members(&mut self, now: Time) {
        self.forget_orders.drop_older_than(now, self.config.forget_after);
        let is_old = |id: &NodeId, (state, since): &(MemberState, Time)| {
            !state.is_present() && now.since(*since) > self.remembered_for(*id, *state)
        };
        let old: Vec<NodeId> =
            self.member_states.iter().filter(|(id, gone)| is_old(id, gone)).map(|(id, _)| *id).collect();
        old.into_iter().for_each(|id| self.forget(id));
    }

    /// Time for which a member is remembered once it is gone.
    fn remembered_for(&self, id: NodeId, state: MemberState) -> Duration {
        let is_ephemeral = self.state.node(id).is_some_and(|s| s.header().ephemeral);
        match state {
            MemberState::Failed if is_ephemeral => {
                self.config.forget_ephemeral_after.min(self.config.forget_after)
            }
            _ => self.config.forget_after,
        }
    }

    /// Makes room in a full table by forgetting the member that has been gone for longest.
    pub(super) fn forget_longest_gone(&mut self) {
        let gone = self.member_states.iter().filter(|(_, (state, _))| !state.is_present());
        if let Some(id) = gone.min_by_key(|(_, (_, since))| *since).map(|(id, _)| *id) {
            self.forget(id);
        }
    }

    /// Removes a member. Only the incarnation and version of its last header are kept, so that only a newer
    /// header brings it back.
    pub(super) fn forget(&mut self, id: NodeId) {
        let heirs = self.namesakes.set(id, None);
        self.namesakes.forget(id);
        self.state.forget(id);
        self.liveness.remove(id);
        self.prober.forget(id);
        self.member_states.remove(&id);
        self.present.remove(&id);
        self.overlay_changed |= self.overlay.set(id, false, false);
        self.push_change(Change::Forgotten(id));
        heirs.into_iter().for_each(|heir| self.publish_member(heir));
    }

    fn is_gone(&self, id: NodeId) -> bool {
        self.member_state(id).is_some_and(|state| !state.is_present())
    }
}

#[cfg(test)]
mod tests;
