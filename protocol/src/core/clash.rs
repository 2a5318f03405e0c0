//! Two processes under one key: a data dir was copied, or restored twice.
//!
//! Both sign validly, so no third node can tell them apart by what they say. The older one can: it hears of a life under its own key that it
//! did not begin. It says so, signed, and the younger process stops. Between the two stand neighbours for whom both are the same peer: gossip
//! is not passed back to the key it came from, and of two connections each message takes one. So the claim is repeated, by gossip and
//! to each neighbour by itself, and whoever has heard it tells it to whatever is or gets connected under that key.
//!
//! Meanwhile the older process takes its place in the table back at once, by a life above the younger one's: what the younger process
//! stated, and that it is gone a moment later, then concerns a life that is over. A process that has just begun cannot tell that it is the
//! older one, and waits; so does one that had to take its place back a moment ago, or two that take each other's would never rest.

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
/// After this long it has stopped, or never will: it is told no more, and a node that had to wait takes its place in the table back.
const RECLAIM_AFTER: Duration = Duration::from_secs(5);
/// A process that has run for this long takes its place back at once. A younger one waits for [`RECLAIM_AFTER`]: it may be the copy, which
/// hears of the older process within this time of its first connection.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
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
    /// When this process last took its place in the table back.
    reclaimed_at: Option<Time>,
    /// The newest claim of each node, and when it came.
    claims: BTreeMap<NodeId, (Time, Clash)>,
}

impl Dispute {
    pub(super) fn new(born: Incarnation) -> Self {
        Self { born, usurper: None, reclaimed_at: None, claims: BTreeMap::new() }
    }

    pub(super) fn next_due(&self) -> Option<Time> {
        self.usurper.map(|u| u.tell_at.min(u.since + RECLAIM_AFTER))
    }

    /// Whether this is the life of the younger process under our key, and still to be taken back.
    pub(super) fn is_usurpers(&self, incarnation: Incarnation) -> bool {
        self.usurper.is_some_and(|usurper| usurper.incarnation == incarnation)
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
        let is_rested = self.dispute.reclaimed_at.is_none_or(|at| now >= at + RECLAIM_AFTER);
        if now >= self.started + SETTLED_AFTER && is_rested {
            self.reclaim(now, newer);
        }
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
                self.dispute.usurper = None;
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

    /// Begins a life above that of the younger process under our key, and states everything again; unless this life is above it already.
    pub(super) fn reclaim(&mut self, now: Time, newer: Incarnation) {
        if newer <= self.own.incarnation {
            return;
        }
        self.dispute.reclaimed_at = Some(now);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Identity, Restored,
        config::Config,
        io::{Command, GossipId, Input, Profile},
        liveness::{Claim, Strength},
        record::{Fact, Header},
        wire::{self, Received},
    };

    const BORN: Incarnation = Incarnation(1_000);
    const COPY: Incarnation = Incarnation(5_000);

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    fn identity(seed: u8) -> Identity {
        Identity::from_seed(&[seed; 32])
    }

    fn profile(name: &str) -> Profile {
        Profile {
            name: name.into(),
            addresses: vec!["/ip4/10.77.0.1/tcp/7600".into()],
            http: None,
            roles: vec![],
            zone: None,
            software: "test".into(),
            ephemeral: false,
        }
    }

    fn header(seed: u8, incarnation: Incarnation) -> Entry {
        let header = Header { name: format!("n{seed}"), software: "test".into(), ..Header::default() };
        let fact = Fact {
            node: identity(seed).id(),
            incarnation,
            version: Version(1),
            key: Key::Header,
            value: Some(header.encode()),
        };
        fact.sign(&identity(seed), "default").unwrap()
    }

    /// Node 1 with the neighbour 2, which is a member.
    fn core() -> Core {
        let restored = Restored { incarnation: BORN, remembered: vec![] };
        let mut core = Core::new(identity(1), Config::default(), profile("n1"), restored, 1, Time::ZERO);
        core.handle(at(0), Input::Connected(identity(2).id()));
        core.handle(at(0), Input::Subscribed(identity(2).id()));
        gossip(&mut core, at(1), Gossip::Entries(vec![header(2, BORN)]));
        core
    }

    /// What the core publishes upon a message of its neighbour, and up to a moment later.
    fn gossip(core: &mut Core, now: Time, message: Gossip) -> Vec<Gossip> {
        let bytes = wire::encode(&message);
        core.handle(now, Input::Gossip { id: GossipId(1), from: identity(2).id(), bytes });
        published(core, now)
    }

    fn published(core: &mut Core, now: Time) -> Vec<Gossip> {
        core.handle(now, Input::Tick);
        core.handle(now + Duration::from_millis(5), Input::Tick);
        let outputs = std::iter::from_fn(|| core.poll_output());
        let published = outputs.filter_map(|output| match output {
            Output::Publish(bytes) => wire::decode::<Gossip>(&bytes).ok(),
            _ => None,
        });
        published
            .filter_map(|received| match received {
                Received::Known(gossip) => Some(gossip),
                Received::Unknown => None,
            })
            .collect()
    }

    /// The lives of node 1 whose headers are among these.
    fn lives(published: &[Gossip]) -> Vec<Incarnation> {
        let entries = published.iter().filter_map(|gossip| match gossip {
            Gossip::Entries(entries) => Some(entries),
            _ => None,
        });
        entries.flatten().filter(|e| e.fact.key == Key::Header).map(|e| e.fact.incarnation).collect()
    }

    fn next(life: Incarnation) -> Incarnation {
        Incarnation(life.0 + 1)
    }

    #[test]
    fn a_settled_process_takes_its_place_back_before_its_copy_has_stopped() {
        let mut core = core();
        let said = gossip(&mut core, at(10_000), Gossip::Entries(vec![header(1, COPY)]));
        assert!(said.iter().any(|g| matches!(g, Gossip::Clash(c) if c.claim.newer == COPY)), "{said:?}");
        assert_eq!(lives(&said), [next(COPY)]);
        // It goes on telling the copy to stop, and begins no further life.
        let later = published(&mut core, at(10_600));
        assert!(later.iter().any(|g| matches!(g, Gossip::Clash(_))), "{later:?}");
        assert_eq!(lives(&published(&mut core, at(16_000))), []);
    }

    #[test]
    fn two_that_take_their_place_back_from_each_other_rest_in_between() {
        let mut core = core();
        gossip(&mut core, at(10_000), Gossip::Entries(vec![header(1, COPY)]));
        let above = Incarnation(COPY.0 + 2);
        let said = gossip(&mut core, at(10_050), Gossip::Entries(vec![header(1, above)]));
        assert_eq!(lives(&said), [], "it has just begun a life");
        // Somebody saw the copy stop.
        let claim = Claim {
            observer: identity(2).id(),
            subject: identity(1).id(),
            incarnation: above,
            version: Version(1),
            strength: Strength::Strong,
        };
        let evidence = claim.sign(&identity(2), "default");
        let said = gossip(&mut core, at(10_100), Gossip::Evidence(vec![evidence.clone()]));
        assert_eq!(lives(&said), [next(above)]);
        let said = gossip(&mut core, at(10_200), Gossip::Evidence(vec![evidence]));
        assert_eq!(lives(&said), [], "once");
    }

    #[test]
    fn a_process_that_has_just_begun_waits_because_it_may_be_the_copy() {
        let mut core = core();
        let said = gossip(&mut core, at(500), Gossip::Entries(vec![header(1, COPY)]));
        assert_eq!(lives(&said), []);
        let said = published(&mut core, at(6_000));
        assert_eq!(lives(&said), [next(COPY)], "the other one has stopped, or never will");
    }

    #[test]
    fn a_claim_over_a_life_below_the_own_one_never_lowers_it() {
        let mut core = core();
        gossip(&mut core, at(10_000), Gossip::Entries(vec![header(1, COPY)]));
        core.handle(at(16_000), Input::Command(Command::KeepLinks(Default::default())));
        let claim =
            ClashClaim { node: identity(1).id(), older: Incarnation(4_000), newer: next(COPY), round: 0 };
        let signature = identity(1).sign(&signed_bytes("clash", "default", &claim));
        let said = gossip(&mut core, at(17_000), Gossip::Clash(Clash { claim, signature }));
        assert!(said.iter().any(|g| matches!(g, Gossip::Clash(_))), "{said:?}");
        assert_eq!(lives(&said), []);
        assert_eq!(lives(&published(&mut core, at(23_000))), []);
    }
}
