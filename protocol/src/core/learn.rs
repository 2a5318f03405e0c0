//! Part of [`Core`]: applies statements of other nodes (entries from gossip, pages from anti-entropy), and
//! publishes the changes to the provider table.

use std::sync::Arc;

use super::machine::Core;
use crate::{
    NodeId, Time,
    io::{Event, Judgement},
    membership::state::Applied,
    providers::{Change, Explanation, Member, MemberState},
    record::{Entry, Fact, Header, Instance, Key, Presence, parts},
    wire::Page,
};

/// Effect of an entry or of evidence on this node's knowledge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Learned {
    /// The statement changed the state.
    New,
    /// The statement is already known, superseded or removed.
    Stale,
    /// Not applied, though it may be valid: it arrived too early, or its author exceeded the rate limit.
    Deferred,
    /// Not applied, though it may be valid: the table is full.
    NoRoom,
    /// The statement is forged or malformed.
    Invalid,
}

impl Core {
    /// Applies entries that arrived by gossip. The message is relayed if one of them was new.
    pub(super) fn learn_entries(&mut self, now: Time, entries: Vec<Entry>, from: NodeId) -> Judgement {
        let (mut any_new, mut any_bad) = (false, false);
        for entry in entries {
            let author = entry.fact.node;
            if !self.entries_limit.has_token(now, author) {
                self.counters.rate_limited += 1;
                continue;
            }
            match self.learn_entry(now, entry, from) {
                Learned::New => {
                    self.entries_limit.take_token(now, author);
                    any_new = true;
                }
                Learned::Invalid => any_bad = true,
                // The sender has more entries of this life.
                Learned::Deferred => self.sync.schedule(now, from),
                // A request would bring the same entry again, so a full table would request without end.
                Learned::Stale | Learned::NoRoom => (),
            }
        }
        match (any_bad, any_new) {
            (true, _) => Judgement::Reject,
            (false, true) => Judgement::Accept,
            (false, false) => Judgement::Ignore,
        }
    }

    /// Applies pages that arrived by anti-entropy. Returns whether any entry or evidence was new.
    pub(super) fn apply_pages(&mut self, now: Time, pages: Vec<Page>, from: NodeId) -> bool {
        let mut any_new = false;
        let mut evidence_list = Vec::new();
        for mut page in pages {
            if !page.covers.is_well_formed() {
                self.reject_malformed(now, from, "page");
                continue;
            }
            let was_present = self.present.contains(&page.node);
            let evidence = std::mem::take(&mut page.evidence);
            let (mut whole, mut returned) = (true, false);
            for entry in &page.entries {
                if (entry.fact.node, entry.fact.incarnation) != (page.node, page.incarnation) {
                    self.reject_malformed(now, from, "page");
                    whole = false;
                    break;
                }
                match self.learn_entry(now, entry.clone(), from) {
                    Learned::New => any_new = true,
                    Learned::Stale => returned |= entry.fact.key == Key::Header,
                    Learned::Deferred | Learned::NoRoom | Learned::Invalid => whole = false,
                }
            }
            let returned = returned && evidence.is_empty() && self.state.node(page.node).is_none();
            if returned && page.entries.first().is_some_and(is_running) {
                self.request_newer_header(now, page.node, from);
            }
            // A page counts as seen only if it was applied completely. Otherwise its entries are requested
            // again.
            if whole && page.node != self.id {
                for gone in self.state.confirm_page(&page) {
                    self.withdraw_instance(&gone.fact);
                    any_new = true;
                }
            }
            evidence_list.extend(evidence.into_iter().map(|evidence| (evidence, was_present)));
        }
        // Evidence is applied last, because the header of an observer may be on a later page than that of the
        // subject.
        for (evidence, was_present) in evidence_list {
            // If this node did not hold the subject present, the verdict is an old one of other nodes.
            // Otherwise the subject may still refute.
            let since = if was_present { now } else { Time::ZERO };
            if self.learn_evidence(now, evidence.clone(), from, since) == Learned::New {
                any_new = true;
                // The subject's watchers may be on the other side of a healed partition, so the evidence is
                // published. A node that has just joined publishes none, because the others know it.
                if was_present {
                    self.publish_evidence(evidence);
                }
            }
        }
        any_new
    }

    /// Applies one entry.
    pub(super) fn learn_entry(&mut self, now: Time, entry: Entry, from: NodeId) -> Learned {
        let node = entry.fact.node;
        if node == self.id {
            return self.learn_own_entry(now, &entry, from);
        }
        let key = entry.fact.key.clone();
        let unknown_header = key == Key::Header && self.state.node(node).is_none();
        if unknown_header && self.state.len() >= self.config.members_max {
            self.forget_longest_gone();
        }
        let applied = self.state.apply(entry);
        for evicted in self.state.take_evicted() {
            self.counters.table_full += 1;
            self.withdraw_instance(&evicted.fact);
        }
        match applied {
            Applied::NewLife => {
                self.counters.entries_applied += 1;
                self.begin_incarnation(now, node);
                Learned::New
            }
            Applied::Updated(before) => {
                self.counters.entries_applied += 1;
                match key {
                    Key::Header => self.update_header(now, node),
                    Key::Instance(id) => self.publish_instance(node, &id, before.as_deref()),
                    Key::Part(id, _) => self.publish_completed_instance(node, &id),
                    Key::Kv(_) | Key::Other(..) => (),
                }
                Learned::New
            }
            Applied::Stale => {
                self.counters.entries_stale += 1;
                Learned::Stale
            }
            Applied::NoHeader => {
                self.counters.entries_early += 1;
                Learned::Deferred
            }
            Applied::Full => {
                self.counters.table_full += 1;
                Learned::NoRoom
            }
            Applied::Refused(error) => {
                if error == crate::record::EntryError::Forged {
                    self.counters.forged += 1;
                } else {
                    self.counters.malformed += 1;
                }
                self.record_misbehaviour(now, from, "entry");
                Learned::Invalid
            }
        }
    }

    /// Begins a member's life, after the first header or the header of a new incarnation.
    pub(super) fn begin_incarnation(&mut self, now: Time, node: NodeId) {
        let Some(s) = self.state.node(node) else { return };
        let (incarnation, version, presence) = (s.incarnation(), s.header_version(), s.header().presence);
        self.liveness.renew(node, incarnation, version);
        self.forget_orders.withdraw(node);
        self.member_states.remove(&node);
        self.push_change(Change::Explained(node, Explanation::Joined(incarnation)));
        self.set_member_state(
            now,
            node,
            if presence == Presence::Left { MemberState::Left } else { MemberState::Alive },
        );
    }

    /// Applies a newer header within a life: a refutation, a new address, or a departure.
    pub(super) fn update_header(&mut self, now: Time, node: NodeId) {
        let Some(s) = self.state.node(node) else { return };
        let (incarnation, version, presence) = (s.incarnation(), s.header_version(), s.header().presence);
        let accused = self.liveness.renew(node, incarnation, version);
        if presence == Presence::Left {
            return self.set_member_state(now, node, MemberState::Left);
        }
        if accused {
            self.push_change(Change::Explained(node, Explanation::Refuted(version)));
        }
        self.publish_member(node);
        self.judge(now, node);
    }

    /// Publishes a member's current state to the provider table.
    pub(super) fn publish_member(&mut self, node: NodeId) {
        let (Some(s), Some((state, since))) = (self.state.node(node), self.member_states.get(&node)) else {
            return;
        };
        let header = s.header();
        let stated = header.name.clone();
        let is_news = state.is_present() && !self.namesakes.has(node, &stated);
        let renamed = self.namesakes.set(node, state.is_present().then_some(stated.as_str()));
        let first = self.namesakes.first(&stated).filter(|first| *first != node);
        let member = Member {
            id: node,
            name: self.namesakes.shown(node, &stated),
            state: *state,
            roles: header.roles.clone(),
            addresses: header.addresses.clone(),
            http: header.http.clone(),
            zone: header.zone.clone(),
            software: header.software.clone(),
            protocol: header.protocol,
            ephemeral: header.ephemeral,
            grpc: header.grpc.clone(),
            incarnation: s.incarnation(),
            version: s.header_version(),
            since: *since,
            rtt: None,
            rank: self.namesakes.rank(node),
            namesake: first.is_some(),
        };
        if let Some(first) = first
            && is_news
        {
            let shown = member.name.clone();
            self.push_event(Event::NameTaken { name: stated, first, other: node, shown });
        }
        self.push_change(Change::Member(Box::new(member)));
        for other in renamed {
            self.publish_member(other);
        }
    }

    /// Publishes an instance's current state. While parts are missing, the last published state remains.
    pub(super) fn publish_instance(&mut self, node: NodeId, id: &str, before: Option<&Entry>) {
        match self.decode_instance_entry(node, id) {
            Some(own) => self.publish_joined_instance(node, id, own),
            None if before.is_some_and(|b| b.fact.value.is_some()) => {
                self.push_change(Change::Instance { node, id: id.to_owned(), instance: None });
            }
            None => (),
        }
    }

    /// Publishes an instance after one of its parts arrived, if it is complete.
    fn publish_completed_instance(&mut self, node: NodeId, id: &str) {
        if let Some(own) = self.decode_instance_entry(node, id).filter(|own| own.overflow.is_some()) {
            self.publish_joined_instance(node, id, own);
        }
    }

    /// Decodes an instance from its own entry, without parts.
    fn decode_instance_entry(&self, node: NodeId, id: &str) -> Option<Instance> {
        let value = self.state.node(node)?.value(&Key::Instance(id.to_owned()))?;
        Instance::decode(value).ok()
    }

    fn publish_joined_instance(&mut self, node: NodeId, id: &str, own: Instance) {
        let Some(s) = self.state.node(node) else { return };
        let part = |number| s.value(&Key::Part(id.to_owned(), number));
        if let Some(whole) = parts::join(own, part) {
            self.push_change(Change::Instance { node, id: id.to_owned(), instance: Some(Arc::new(whole)) });
        }
    }

    fn withdraw_instance(&mut self, fact: &Fact) {
        if let (Key::Instance(id), Some(_)) = (&fact.key, &fact.value) {
            self.push_change(Change::Instance { node: fact.node, id: id.clone(), instance: None });
        }
    }
}

/// Whether an entry is the header of a node that has not left.
fn is_running(entry: &Entry) -> bool {
    let header = entry.fact.value.as_deref().and_then(|value| Header::decode(value).ok());
    entry.fact.key == Key::Header && header.is_some_and(|header| header.presence == Presence::Running)
}

#[cfg(test)]
mod tests;
