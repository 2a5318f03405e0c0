//! Speaking for this node: its header, its instances, its refutations, its farewell; and defending its name.

use std::{collections::VecDeque, time::Duration};

use super::Core;
use crate::{
    Incarnation, NodeId, Time, Version,
    config::Config,
    io::{Event, Fatal, Output, Profile},
    record::{ADDRESSES_MAX, Entry, Fact, Header, Instance, Key, Presence, parts},
    seen::Seen,
    sync::{Ask, Ticket},
    wire::{Gossip, PAGE_BYTES, Page, Request},
};

/// The protocol version that this build speaks. 2: entries of journals carry epochs, and pings tell the time.
/// 3: instances have an origin, ports, checks and what else a registration says, and parts where one entry
/// does not hold them.
pub(super) const PROTOCOL: u16 = 3;
/// A floor is raised at most this often: each time costs a header.
const FLOOR_INTERVAL: Duration = Duration::from_secs(300);

/// Two refutations are at least so far apart. A tenth of the time that there is for one.
const REFUTE_INTERVAL: Duration = Duration::from_millis(100);

/// What this node says, and what it has to defend.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) incarnation: Incarnation,
    pub(super) version: Version,
    profile: Profile,
    presence: Presence,
    pub(super) floor: Version,
    floor_raised: Time,
    boot: u64,
    /// When each tombstone was stated, oldest first.
    pub(super) tombstones: VecDeque<(Time, Version)>,
    /// Stated, and not yet told.
    unsent: Vec<Entry>,
    last_flush: Time,
    flush_at: Option<Time>,
    /// Who has our name, and since when we know.
    namesake: Option<(NodeId, Time)>,
    /// When it last refuted, and whom it has to answer when it may again.
    refuted: Option<Time>,
    to_refute: Option<NodeId>,
}

impl Own {
    pub(super) fn new(incarnation: Incarnation, profile: Profile, boot: u64, now: Time) -> Self {
        Self {
            incarnation,
            version: Version(0),
            profile,
            presence: Presence::Running,
            floor: Version(0),
            floor_raised: now,
            boot,
            tombstones: VecDeque::new(),
            unsent: Vec::new(),
            last_flush: Time::ZERO,
            flush_at: None,
            namesake: None,
            refuted: None,
            to_refute: None,
        }
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub(super) fn profile(&self) -> &Profile {
        &self.profile
    }

    pub(super) fn has_left(&self) -> bool {
        self.presence == Presence::Left
    }

    pub(super) fn flush_at(&self) -> Option<Time> {
        self.flush_at
    }

    pub(super) fn next_due(&self, config: &Config) -> Option<Time> {
        if self.has_left() {
            return None;
        }
        let namesake = self.namesake.map(|(_, since)| since + config.name_clash);
        let refutation = self.to_refute.and(self.refuted).map(|at| at + REFUTE_INTERVAL);
        namesake.into_iter().chain(refutation).min()
    }

    /// Notes a member with this node's name. Returns whether that is news.
    pub(super) fn name_taken(&mut self, now: Time, by: NodeId) -> bool {
        let known = self.namesake.is_some_and(|(who, _)| who == by);
        if !known {
            self.namesake = Some((by, now));
        }
        !known
    }

    fn header(&self) -> Header {
        Header {
            name: self.profile.name.clone(),
            addresses: self.profile.addresses.iter().take(ADDRESSES_MAX).cloned().collect(),
            http: self.profile.http.clone(),
            roles: self.profile.roles.clone(),
            zone: self.profile.zone.clone(),
            software: self.profile.software.clone(),
            protocol: PROTOCOL,
            floor: self.floor,
            presence: self.presence,
            boot: self.boot,
            ephemeral: self.profile.ephemeral,
        }
    }
}

impl Core {
    pub(super) fn own_header_version(&self) -> Version {
        self.state.node(self.id).map_or(Version(0), |s| s.header_version())
    }

    /// Signs a fact about this node and applies it. What breaks a bound is counted and not said; whoever asked for it should have
    /// checked.
    pub(super) fn state_fact(&mut self, now: Time, key: Key, value: Option<Vec<u8>>) -> bool {
        let version = self.own.version.next();
        let fact =
            Fact { node: self.id, incarnation: self.own.incarnation, version, key: key.clone(), value };
        let Ok(entry) = fact.sign(&self.me, &self.config.cluster) else {
            self.counters.malformed += 1;
            return false;
        };
        let before = match self.state.apply_own(entry.clone()) {
            crate::state::Applied::NewLife => None,
            crate::state::Applied::News(before) => before,
            _ => {
                self.counters.table_full += 1;
                return false;
            }
        };
        self.own.version = version;
        match &key {
            Key::Instance(id) => self.show_instance(self.id, id, before.as_deref()),
            Key::Header if self.concluded.contains_key(&self.id) => self.renew(now, self.id),
            Key::Header => self.begin_life(now, self.id),
            Key::Kv(_) | Key::Part(..) | Key::Other(..) => (),
        }
        self.own.unsent.push(entry);
        let due = self.own.last_flush + self.config.coalesce;
        self.own.flush_at.get_or_insert(due.max(now));
        true
    }

    pub(super) fn state_header(&mut self, now: Time) {
        let header = self.own.header();
        #[cfg(feature = "next")]
        let header = if self.config.is_next { self.next_header(header) } else { header.encode() };
        #[cfg(not(feature = "next"))]
        let header = header.encode();
        self.state_fact(now, Key::Header, Some(header));
    }

    pub(super) fn set_profile(&mut self, now: Time, profile: Profile) {
        if !self.own.has_left() && self.own.profile != profile {
            self.own.profile = profile;
            self.state_header(now);
        }
    }

    /// States an instance with its parts, or takes it back. Only what differs from what is stated already is
    /// stated.
    pub(super) fn set_instance(&mut self, now: Time, id: String, instance: Option<Instance>) {
        if self.own.has_left() {
            return;
        }
        let stated = instance.map(|instance| parts::split(&instance)).transpose();
        let Ok(stated) = stated else {
            // The node checks each registration with `check_size`.
            self.counters.malformed += 1;
            return;
        };
        let (value, parts) = stated.map_or((None, Vec::new()), |stated| (Some(stated.value), stated.parts));
        // Parts go first and the instance after them, so that a receiver of both in order shows the new value
        // at once. What is to go goes the other way round.
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
        let held = (needed..parts::PARTS_MAX)
            .take_while(|number| own.is_some_and(|s| s.value(&Key::Part(id.clone(), *number)).is_some()));
        // The last one first: those that are held are always numbered from 0 on.
        for number in held.collect::<Vec<u16>>().into_iter().rev() {
            self.state_value(now, Key::Part(id.clone(), number), None);
        }
    }

    /// States a value of a key, or takes it back, unless that is what is stated already. Returns whether it
    /// is stated now.
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

    /// Somebody says that this node is gone. A newer header says otherwise; a little later if one has just done so, because each costs a flood,
    /// and somebody could accuse each new header at once.
    pub(super) fn refute(&mut self, now: Time, by: NodeId) {
        if self.own.has_left() {
            return;
        }
        if self.own.refuted.is_some_and(|at| now < at + REFUTE_INTERVAL) {
            self.own.to_refute = Some(by);
            return;
        }
        (self.own.refuted, self.own.to_refute) = (Some(now), None);
        self.counters.refutations += 1;
        self.state_header(now);
        self.flush(now);
        self.event(Event::Refuted { by, version: self.own_header_version() });
    }

    /// Says goodbye: by gossip, and to each neighbour directly.
    pub(super) fn leave(&mut self, now: Time) {
        if self.own.has_left() {
            return;
        }
        self.own.presence = Presence::Left;
        self.state_header(now);
        self.flush(now);
        let header = self.state.node(self.id).and_then(|s| s.entry(&Key::Header)).cloned();
        let page = header.map(|header| {
            let mut covers = Seen::default();
            covers.insert(header.fact.version);
            let (node, incarnation) = (self.id, self.own.incarnation);
            Page { node, incarnation, covers, entries: vec![header], evidence: Vec::new() }
        });
        let neighbours: Vec<NodeId> = self.links.connected().collect();
        for peer in neighbours {
            let request = Request::Push(page.iter().cloned().collect());
            self.request(Ask { peer, ticket: Ticket(0), request });
        }
    }

    /// The first neighbour listens: tell everybody who we are. What does not fit is left to anti-entropy.
    pub(super) fn introduce(&mut self, now: Time) {
        let Some(s) = self.state.node(self.id) else { return };
        let mut bytes = 0;
        let fits = |e: &&Entry| {
            bytes += e.encoded_len();
            bytes < PAGE_BYTES / 2
        };
        self.own.unsent = s.entries().take_while(fits).cloned().collect();
        self.flush(now);
    }

    fn flush(&mut self, now: Time) {
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

    pub(super) fn own_due(&mut self, now: Time) {
        if self.own.flush_at.is_some_and(|at| at <= now) {
            self.flush(now);
        }
        if self.own.has_left() {
            return;
        }
        if let Some(by) = self.own.to_refute {
            self.refute(now, by);
        }
        self.raise_floor(now);
        self.clash_due(now);
        if let Some((by, since)) = self.own.namesake
            && now >= since + self.config.name_clash
        {
            self.own.namesake = None;
            let theirs = self.state.node(by).filter(|s| s.header().name == self.own.profile.name);
            let first = theirs.is_some_and(|s| s.incarnation() < self.own.incarnation);
            if first && self.present.contains(&by) && now.since(self.started) < self.config.newcomer {
                let name = self.own.profile.name.clone();
                self.out.push_back(Output::Fatal(Fatal::NameTaken { name, by }));
            }
        }
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
