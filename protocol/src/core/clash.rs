//! Two processes under one key: a data dir was copied, or restored twice.
//!
//! Both sign validly, so no third node can tell them apart by what they say. The older one can: it hears of a life under its own key that it
//! did not begin. It says so, signed, and the younger process stops. Between the two stand neighbours for whom both are the same peer: gossip
//! is not passed back to the key it came from, and of two connections each message takes one. So the claim is repeated, by gossip and
//! to each neighbour by itself, and whoever has heard it tells it to whatever is or gets connected under that key. If the younger process
//! does not stop, the older one begins a life above its.

use std::{collections::BTreeMap, time::Duration};

use super::{Core, learn::Worth};
use crate::{
    Incarnation, NodeId, Time, Version,
    io::{Event, Fatal, Judgement, Output},
    record::{Entry, Key, signed_bytes},
    sync::{Ask, Ticket},
    wire::{Clash, ClashClaim, Gossip, Request},
};

/// How often a younger process under our key is told to stop.
const CLASH_INTERVAL: Duration = Duration::from_millis(500);
/// After this long it has stopped, or never will: this node takes its place in the table again.
const RECLAIM_AFTER: Duration = Duration::from_secs(5);
/// For how long a claim is passed on to whoever connects under its key.
const PASS_ON_FOR: Duration = Duration::from_secs(60);
/// Claims kept for that. One costs 120 bytes; more than a few at a time would be an attack by members.
const CLAIMS_MAX: usize = 64;

/// A younger process under our key.
#[derive(Clone, Copy, Debug)]
struct Usurper {
    incarnation: Incarnation,
    since: Time,
    /// When it is told to stop again.
    tell_at: Time,
    /// How often it was told. Gossip passes on no message twice, so no two are alike.
    told: u32,
}

/// The dispute over this node's key, and what is known of those over others'.
#[derive(Debug)]
pub(super) struct Dispute {
    /// The incarnation with which this process began. What it takes later, to get above a usurper's, makes it no younger.
    born: Incarnation,
    usurper: Option<Usurper>,
    /// The newest claim of each node, and when it came.
    claims: BTreeMap<NodeId, (Time, Clash)>,
}

impl Dispute {
    pub(super) fn new(born: Incarnation) -> Self {
        Self { born, usurper: None, claims: BTreeMap::new() }
    }

    pub(super) fn next_due(&self) -> Option<Time> {
        self.usurper.map(|u| u.tell_at.min(u.since + RECLAIM_AFTER))
    }

    /// Keeps a claim for those who connect. Returns whether there was room.
    fn keep(&mut self, now: Time, clash: Clash) -> bool {
        self.claims.retain(|_, (at, _)| now.since(*at) < PASS_ON_FOR);
        let room = self.claims.len() < CLAIMS_MAX || self.claims.contains_key(&clash.claim.node);
        if room {
            self.claims.insert(clash.claim.node, (now, clash));
        }
        room
    }
}

impl Core {
    /// Somebody brings an entry that carries our own signature.
    pub(super) fn learn_of_myself(&mut self, now: Time, entry: &Entry, from: NodeId) -> Worth {
        let fact = &entry.fact;
        let newer_life = fact.incarnation > self.own.incarnation;
        let never_said = fact.incarnation == self.own.incarnation && fact.version > self.own.version;
        if !newer_life && !never_said {
            return Worth::Stale;
        }
        if entry.check(&self.config.cluster).is_err() {
            self.counters.forged += 1;
            self.blame(now, from, "entry");
            return Worth::Bad;
        }
        if never_said {
            // Two processes that began in the same millisecond: neither is the older, so neither goes on.
            self.out.push_back(Output::Fatal(Fatal::KeyTaken(fact.incarnation)));
            return Worth::Stale;
        }
        self.contest(now, fact.incarnation);
        // Let it pass, so that it reaches everybody and we are not the only one who knows.
        Worth::News
    }

    /// A younger process speaks under our key. It may be connected to nobody yet or no longer, so it is told for as long as we wait for it.
    fn contest(&mut self, now: Time, newer: Incarnation) {
        if self.dispute.usurper.is_some_and(|known| known.incarnation >= newer) {
            return;
        }
        self.event(Event::KeyTaken(newer));
        self.tell_usurper(now, Usurper { incarnation: newer, since: now, tell_at: now, told: 0 });
    }

    fn tell_usurper(&mut self, now: Time, usurper: Usurper) {
        let round = usurper.told;
        self.dispute.usurper = Some(Usurper { tell_at: now + CLASH_INTERVAL, told: round + 1, ..usurper });
        let claim = ClashClaim { node: self.id, older: self.dispute.born, newer: usurper.incarnation, round };
        let signature = self.me.sign(&signed_bytes("clash", &self.config.cluster, &claim));
        let clash = Clash { claim, signature };
        let neighbours: Vec<NodeId> = self.links.connected().collect();
        for peer in neighbours {
            self.request(Ask { peer, ticket: Ticket(0), request: Request::Clash(clash.clone()) });
        }
        self.publish(&Gossip::Clash(clash));
    }

    pub(super) fn clash_due(&mut self, now: Time) {
        if let Some(usurper) = self.dispute.usurper {
            if now >= usurper.since + RECLAIM_AFTER {
                self.reclaim(now, usurper.incarnation);
            } else if now >= usurper.tell_at {
                self.tell_usurper(now, usurper);
            }
        }
    }

    /// If the key of a peer is disputed, it is told, whichever of the two it is.
    pub(super) fn pass_on_clash(&mut self, now: Time, peer: NodeId) {
        if let Some((at, clash)) = self.dispute.claims.get(&peer)
            && now.since(*at) < PASS_ON_FOR
        {
            let request = Request::Clash(clash.clone());
            self.request(Ask { peer, ticket: Ticket(0), request });
        }
    }

    pub(super) fn on_clash(&mut self, now: Time, clash: &Clash, from: NodeId) -> Judgement {
        let claim = &clash.claim;
        // Keys cost nothing: of those that are nobody's there is no end.
        if claim.node != self.id && !self.concluded.contains_key(&claim.node) {
            return Judgement::Ignore;
        }
        if !self.evidence_limit.has_left(now, claim.node) {
            self.counters.rate_limited += 1;
            return Judgement::Ignore;
        }
        if !claim.node.has_signed(&signed_bytes("clash", &self.config.cluster, claim), &clash.signature) {
            self.counters.forged += 1;
            self.blame(now, from, "clash");
            return Judgement::Reject;
        }
        self.evidence_limit.take(now, claim.node);
        let born = self.dispute.born;
        if claim.node != self.id {
            if !self.dispute.keep(now, clash.clone()) {
                self.counters.claims_dropped += 1;
                return Judgement::Ignore;
            }
            if self.links.is_connected(claim.node) {
                self.pass_on_clash(now, claim.node);
            }
        } else if claim.older < born && claim.newer >= born {
            self.out.push_back(Output::Fatal(Fatal::KeyTaken(claim.older)));
        } else if claim.older > born {
            // It takes us for the younger one, because we began a life above its.
            self.contest(now, claim.older);
        }
        Judgement::Accept
    }

    /// The younger process under our key has been told to stop. Begin a life above its, and say everything again.
    fn reclaim(&mut self, now: Time, newer: Incarnation) {
        self.dispute.usurper = None;
        let Some(s) = self.state.node(self.id) else { return };
        let instances: Vec<(Key, Option<Vec<u8>>)> = s
            .entries()
            .filter(|e| e.fact.key != Key::Header && e.fact.value.is_some())
            .map(|e| (e.fact.key.clone(), e.fact.value.clone()))
            .collect();
        self.own.incarnation = Incarnation(newer.0.saturating_add(1));
        self.own.version = Version(0);
        self.own.floor = Version(0);
        self.own.tombstones.clear();
        self.concluded.remove(&self.id);
        self.state_header(now);
        for (key, value) in instances {
            self.state_fact(now, key, value);
        }
    }
}
