//! Taking in what others state.

use std::sync::Arc;

use super::Core;
use crate::{
    NodeId, Time,
    io::{Event, Judgement},
    providers::{Change, Explanation, Member, MemberState},
    record::{Entry, Fact, Header, Instance, Key, Presence, parts},
    state::Applied,
    wire::Page,
};

/// What an entry was worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Worth {
    /// It changed something.
    News,
    /// Known, superseded or collected.
    Stale,
    /// True perhaps, and not taken: too early, or too many at once.
    PutOff,
    /// True perhaps, and there is no room.
    NoRoom,
    /// Forged or malformed.
    Bad,
}

impl Core {
    /// Entries by gossip. Passed on if something was news; who already knows stays silent.
    pub(super) fn learn_all(&mut self, now: Time, entries: Vec<Entry>, from: NodeId) -> Judgement {
        let (mut news, mut bad) = (false, false);
        for entry in entries {
            let author = entry.fact.node;
            if !self.entries_limit.has_left(now, author) {
                self.counters.rate_limited += 1;
                continue;
            }
            match self.learn(now, entry, from) {
                Worth::News => {
                    self.entries_limit.take(now, author);
                    news = true;
                }
                Worth::Bad => bad = true,
                // The sender knows more of this life than we do.
                Worth::PutOff => self.sync.soon(now, from),
                // To ask for it at once would bring the same again: a full table would ask without end.
                Worth::Stale | Worth::NoRoom => (),
            }
        }
        match (bad, news) {
            (true, _) => Judgement::Reject,
            (false, true) => Judgement::Accept,
            (false, false) => Judgement::Ignore,
        }
    }

    /// Pages by anti-entropy. Returns whether there was news in them.
    pub(super) fn take_pages(&mut self, now: Time, pages: Vec<Page>, from: NodeId) -> bool {
        let mut any_news = false;
        let mut heard = Vec::new();
        for mut page in pages {
            if !page.covers.is_well_formed() {
                self.malformed(now, from, "page");
                continue;
            }
            let was_present = self.present.contains(&page.node);
            let evidence = std::mem::take(&mut page.evidence);
            let (mut whole, mut returned) = (true, false);
            for entry in &page.entries {
                if (entry.fact.node, entry.fact.incarnation) != (page.node, page.incarnation) {
                    self.malformed(now, from, "page");
                    whole = false;
                    break;
                }
                match self.learn(now, entry.clone(), from) {
                    Worth::News => any_news = true,
                    Worth::Stale => returned |= entry.fact.key == Key::Header,
                    Worth::PutOff | Worth::NoRoom | Worth::Bad => whole = false,
                }
            }
            let returned = returned && evidence.is_empty() && self.state.node(page.node).is_none();
            if returned && page.entries.first().is_some_and(is_running) {
                self.remind(now, page.node, from);
            }
            // Only what was taken whole counts as seen; the rest is asked for again.
            if whole && page.node != self.id {
                for gone in self.state.cover(&page) {
                    self.withdraw(&gone.fact);
                    any_news = true;
                }
            }
            heard.extend(evidence.into_iter().map(|evidence| (evidence, was_present)));
        }
        // Last, because its observers may come on a later page than its subject.
        for (evidence, was_present) in heard {
            // To a newcomer the others' verdict is old; here its subject may still refute it.
            let since = if was_present { now } else { Time::ZERO };
            if self.hear(now, evidence.clone(), from, since) == Worth::News {
                any_news = true;
                // Its watchers may be on the other side of what was a partition. A newcomer tells nobody: all know.
                if was_present {
                    self.publish_evidence(evidence);
                }
            }
        }
        any_news
    }

    /// One entry from anywhere.
    pub(super) fn learn(&mut self, now: Time, entry: Entry, from: NodeId) -> Worth {
        let node = entry.fact.node;
        if node == self.id {
            return self.learn_of_myself(now, &entry, from);
        }
        let key = entry.fact.key.clone();
        let unknown_header = key == Key::Header && self.state.node(node).is_none();
        if unknown_header && self.state.len() >= self.config.members_max {
            self.make_room();
        }
        let applied = self.state.apply(entry);
        for evicted in self.state.take_evicted() {
            self.counters.table_full += 1;
            self.withdraw(&evicted.fact);
        }
        match applied {
            Applied::NewLife => {
                self.counters.entries_applied += 1;
                self.begin_life(now, node);
                Worth::News
            }
            Applied::News(before) => {
                self.counters.entries_applied += 1;
                match key {
                    Key::Header => self.renew(now, node),
                    Key::Instance(id) => self.show_instance(node, &id, before.as_deref()),
                    Key::Part(id, _) => self.show_completed(node, &id),
                    Key::Kv(_) | Key::Other(..) => (),
                }
                Worth::News
            }
            Applied::Stale => {
                self.counters.entries_stale += 1;
                Worth::Stale
            }
            Applied::NoHeader => {
                self.counters.entries_early += 1;
                Worth::PutOff
            }
            Applied::Full => {
                self.counters.table_full += 1;
                Worth::NoRoom
            }
            Applied::Refused(error) => {
                if error == crate::record::EntryError::Forged {
                    self.counters.forged += 1;
                } else {
                    self.counters.malformed += 1;
                }
                self.blame(now, from, "entry");
                Worth::Bad
            }
        }
    }

    /// A member's first header, or that of a new life.
    pub(super) fn begin_life(&mut self, now: Time, node: NodeId) {
        let Some(s) = self.state.node(node) else { return };
        let (incarnation, version, presence) = (s.incarnation(), s.header_version(), s.header().presence);
        self.liveness.renew(node, incarnation, version);
        self.forgets.withdraw(node);
        self.concluded.remove(&node);
        self.change(Change::Explained(node, Explanation::Joined(incarnation)));
        self.conclude(
            now,
            node,
            if presence == Presence::Left { MemberState::Left } else { MemberState::Alive },
        );
    }

    /// A newer header within a life: a refutation, a new address, a farewell.
    pub(super) fn renew(&mut self, now: Time, node: NodeId) {
        let Some(s) = self.state.node(node) else { return };
        let (incarnation, version, presence) = (s.incarnation(), s.header_version(), s.header().presence);
        let accused = self.liveness.renew(node, incarnation, version);
        if presence == Presence::Left {
            return self.conclude(now, node, MemberState::Left);
        }
        if accused {
            self.change(Change::Explained(node, Explanation::Refuted(version)));
        }
        self.show_member(now, node);
        self.judge(now, node);
    }

    /// Shows a member as it is now.
    pub(super) fn show_member(&mut self, now: Time, node: NodeId) {
        let (Some(s), Some((state, since))) = (self.state.node(node), self.concluded.get(&node)) else {
            return;
        };
        let header = s.header();
        let member = Member {
            id: node,
            name: header.name.clone(),
            state: *state,
            roles: header.roles.clone(),
            addresses: header.addresses.clone(),
            http: header.http.clone(),
            zone: header.zone.clone(),
            software: header.software.clone(),
            protocol: header.protocol,
            ephemeral: header.ephemeral,
            incarnation: s.incarnation(),
            version: s.header_version(),
            since: *since,
            rtt: None,
        };
        if state.is_present() {
            self.notice_name(now, node, &member.name);
        }
        self.change(Change::Member(Box::new(member)));
    }

    /// Shows an instance as it is now. While parts of it are missing, what is shown stays.
    pub(super) fn show_instance(&mut self, node: NodeId, id: &str, before: Option<&Entry>) {
        match self.own_entry(node, id) {
            Some(own) => self.show_whole(node, id, own),
            None if before.is_some_and(|b| b.fact.value.is_some()) => {
                self.change(Change::Instance { node, id: id.to_owned(), instance: None });
            }
            None => (),
        }
    }

    /// A part has come: shows its instance, if that waited for it.
    fn show_completed(&mut self, node: NodeId, id: &str) {
        if let Some(own) = self.own_entry(node, id).filter(|own| own.overflow.is_some()) {
            self.show_whole(node, id, own);
        }
    }

    /// What the own entry of an instance says of it.
    fn own_entry(&self, node: NodeId, id: &str) -> Option<Instance> {
        let value = self.state.node(node)?.value(&Key::Instance(id.to_owned()))?;
        Instance::decode(value).ok()
    }

    fn show_whole(&mut self, node: NodeId, id: &str, own: Instance) {
        let Some(s) = self.state.node(node) else { return };
        let part = |number| s.value(&Key::Part(id.to_owned(), number));
        if let Some(whole) = parts::join(own, part) {
            self.change(Change::Instance { node, id: id.to_owned(), instance: Some(Arc::new(whole)) });
        }
    }

    fn withdraw(&mut self, fact: &Fact) {
        if let (Key::Instance(id), Some(_)) = (&fact.key, &fact.value) {
            self.change(Change::Instance { node: fact.node, id: id.clone(), instance: None });
        }
    }

    /// Somebody present has a name. If it is this node's, the later of the two should give way.
    fn notice_name(&mut self, now: Time, node: NodeId, name: &str) {
        if node != self.id && *name == *self.own.profile().name && self.own.name_taken(now, node) {
            self.event(Event::NameTaken(node));
        }
    }
}

/// Whether this is a header of a node that has not left.
fn is_running(entry: &Entry) -> bool {
    let header = entry.fact.value.as_deref().and_then(|value| Header::decode(value).ok());
    entry.fact.key == Key::Header && header.is_some_and(|header| header.presence == Presence::Running)
}

#[cfg(test)]
mod tests;
