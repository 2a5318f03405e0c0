//! Part of [`Core`]: states facts about this node (header, instances, refutations and departure). Also
//! batches entries that were not sent yet, raises the tombstone floor, and checks for another member with
//! this node's name.

use std::time::Duration;

use super::{machine::Core, own::REFUTE_INTERVAL};
use crate::{
    NodeId, Time, Version,
    io::{Event, Profile},
    membership::state::Applied,
    record::{Entry, Fact, Instance, Key, Presence, parts},
    sync::{NO_SESSION, SyncRequest},
    version_set::VersionSet,
    wire::{Gossip, PAGE_BYTES, Page, Request},
};

/// Shortest time between two raises of the floor (the version below which receivers may forget tombstones);
/// each raise publishes a new header.
const FLOOR_INTERVAL: Duration = Duration::from_secs(300);

impl Core {
    pub(super) fn own_header_version(&self) -> Version {
        self.state.node(self.id).map_or(Version(0), |s| s.header_version())
    }

    /// Signs a fact about this node and applies it. Returns whether it was stated. A fact that breaks a bound
    /// is counted and not stated, because callers must check bounds.
    pub(super) fn state_fact(&mut self, now: Time, key: Key, value: Option<Vec<u8>>) -> bool {
        let version = self.own.version.next();
        let fact =
            Fact { node: self.id, incarnation: self.own.incarnation, version, key: key.clone(), value };
        let Ok(entry) = fact.sign(&self.identity, &self.config.cluster) else {
            self.counters.malformed += 1;
            return false;
        };
        let before = match self.state.apply_own(entry.clone()) {
            Applied::NewLife => None,
            Applied::Updated(before) => before,
            _ => {
                self.counters.table_full += 1;
                return false;
            }
        };
        self.own.version = version;
        match &key {
            Key::Instance(id) => self.publish_instance(self.id, id, before.as_deref()),
            Key::Header if self.member_states.contains_key(&self.id) => self.update_header(now, self.id),
            Key::Header => self.begin_incarnation(now, self.id),
            Key::Kv(_) | Key::Part(..) | Key::Other(..) => (),
        }
        self.own.unsent.push(entry);
        let due = self.own.last_flush + self.config.coalesce;
        self.own.flush_at.get_or_insert(due.max(now));
        true
    }

    pub(super) fn state_header(&mut self, now: Time) {
        let header = self.own.header();
        let header = if self.config.is_next { self.encode_next_header(header) } else { header.encode() };
        self.state_fact(now, Key::Header, Some(header));
    }

    pub(super) fn set_profile(&mut self, now: Time, profile: Profile) {
        if !self.own.has_left() && self.own.profile != profile {
            self.own.profile = profile;
            self.state_header(now);
        }
    }

    /// States an instance with its parts, or removes it. States only the entries that differ from the current
    /// ones.
    pub(super) fn set_instance(&mut self, now: Time, id: String, instance: Option<Instance>) {
        if self.own.has_left() {
            return;
        }
        let stated = instance.map(|instance| parts::split(&instance)).transpose();
        let Ok(stated) = stated else {
            // The node checks each registration with `check_instance_size`.
            self.counters.malformed += 1;
            return;
        };
        let (value, parts) = stated.map_or((None, Vec::new()), |stated| (Some(stated.value), stated.parts));
        // New parts are stated before the instance, so that a receiver that applies the entries in order
        // publishes the new value at once. Old parts are removed after it.
        let needed = u16::try_from(parts.len()).unwrap_or(parts::PARTS_MAX);
        for (number, part) in (0..needed).zip(parts) {
            if !self.state_value(now, Key::Part(id.clone(), number), Some(part)) {
                return;
            }
        }
        if !self.state_value(now, Key::Instance(id.clone()), value) {
            return;
        }
        let own = self.state.node(self.id);
        let stated_parts = (needed..parts::PARTS_MAX)
            .take_while(|number| own.is_some_and(|s| s.value(&Key::Part(id.clone(), *number)).is_some()));
        // Parts are removed in descending order, so that the remaining parts are always numbered from 0
        // without gaps.
        for number in stated_parts.collect::<Vec<u16>>().into_iter().rev() {
            self.state_value(now, Key::Part(id.clone(), number), None);
        }
    }

    /// States or removes the value of a key, unless it is already current. Returns whether it is current
    /// afterwards.
    fn state_value(&mut self, now: Time, key: Key, value: Option<Vec<u8>>) -> bool {
        if self.state.node(self.id).and_then(|s| s.value(&key)) == value.as_deref() {
            return true;
        }
        let tombstone = value.is_none();
        let stated = self.state_fact(now, key, value);
        if stated && tombstone {
            self.own.tombstones.push_back((now, self.own.version));
        }
        stated
    }

    /// Refutes the report of `by` that this node failed, by publishing a newer header. If the last refutation
    /// was recent, this one is postponed. Each refutation is gossiped to the whole cluster, and a hostile
    /// node could report every new header at once.
    pub(super) fn refute(&mut self, now: Time, by: NodeId) {
        if self.own.has_left() {
            return;
        }
        if self.own.last_refutation.is_some_and(|at| now < at + REFUTE_INTERVAL) {
            self.own.pending_refutation = Some(by);
            return;
        }
        (self.own.last_refutation, self.own.pending_refutation) = (Some(now), None);
        self.counters.refutations += 1;
        self.state_header(now);
        self.flush_unsent(now);
        self.push_event(Event::Refuted { by, version: self.own_header_version() });
    }

    /// Announces the departure: by gossip, and to each neighbour directly.
    pub(super) fn leave(&mut self, now: Time) {
        if self.own.has_left() {
            return;
        }
        self.own.presence = Presence::Left;
        self.state_header(now);
        self.flush_unsent(now);
        let header = self.state.node(self.id).and_then(|s| s.entry(&Key::Header)).cloned();
        let page = header.map(|header| {
            let mut covers = VersionSet::default();
            covers.insert(header.fact.version);
            let (node, incarnation) = (self.id, self.own.incarnation);
            Page { node, incarnation, covers, entries: vec![header], evidence: Vec::new() }
        });
        let neighbours: Vec<NodeId> = self.connections.connected().collect();
        for peer in neighbours {
            let request = Request::Push(page.iter().cloned().collect());
            self.send_request(SyncRequest { peer, request_id: NO_SESSION, request });
        }
    }

    /// Publishes this node's entries once the first neighbour subscribes. Entries that do not fit into the
    /// message follow by anti-entropy.
    pub(super) fn publish_own_entries(&mut self, now: Time) {
        let Some(s) = self.state.node(self.id) else { return };
        let mut bytes = 0;
        let fits = |e: &&Entry| {
            bytes += e.encoded_len();
            bytes < PAGE_BYTES / 2
        };
        self.own.unsent = s.entries().take_while(fits).cloned().collect();
        self.flush_unsent(now);
    }

    fn flush_unsent(&mut self, now: Time) {
        self.own.flush_at = None;
        self.own.last_flush = now;
        let mut unsent = std::mem::take(&mut self.own.unsent).into_iter().peekable();
        while unsent.peek().is_some() {
            let mut bytes = 0;
            let mut batch = Vec::new();
            while let Some(entry) = unsent.next_if(|e| {
                bytes += e.encoded_len();
                bytes <= PAGE_BYTES || bytes == e.encoded_len()
            }) {
                batch.push(entry);
            }
            self.publish(&Gossip::Entries(batch));
        }
    }

    pub(super) fn run_own_due(&mut self, now: Time) {
        if self.own.flush_at.is_some_and(|at| at <= now) {
            self.flush_unsent(now);
        }
        if self.own.has_left() {
            return;
        }
        if let Some(by) = self.own.pending_refutation {
            self.refute(now, by);
        }
        self.raise_floor(now);
        self.run_clash_due(now);
    }

    fn raise_floor(&mut self, now: Time) {
        let mut floor = self.own.floor;
        if now.since(self.own.floor_raised) < FLOOR_INTERVAL {
            return;
        }
        while let Some((at, version)) = self.own.tombstones.front().copied()
            && now.since(at) > self.config.tombstone_age
        {
            self.own.tombstones.pop_front();
            floor = version.next();
        }
        if floor > self.own.floor {
            self.own.floor = floor;
            self.own.floor_raised = now;
            self.state_header(now);
        }
    }
}
