//! Part of [`Core`]: resolves key clashes, in which two processes run under one key, because a data directory
//! was copied or restored twice.
//!
//! Both processes sign validly, so no other node can distinguish them. But the older process receives an
//! incarnation under its own key that it did not begin. It then floods a signed claim, and the younger
//! process stops. A neighbour of both processes takes them for one peer. Gossip is not sent back to the key
//! from which it came, and a message takes only one of two connections. So the claim is sent repeatedly, by
//! gossip and to each neighbour directly. A node that has a claim forwards it to every peer that is or
//! becomes connected under that key.
//!
//! Meanwhile the older process reclaims its key by an incarnation above the younger one's. Statements of the
//! younger process, and reports of its end, then belong to an outdated life. A process that has just started
//! cannot know whether it is the older one, so it waits. A process that has just reclaimed its key waits,
//! too. Otherwise two processes could reclaim in turn without end.

use std::time::Duration;

use super::{
    key_clash::{PASS_ON_FOR, RECLAIM_AFTER, YoungerProcess},
    learn::Learned,
    machine::Core,
};
use crate::{
    Incarnation, NodeId, Time, Version,
    io::{Event, Fatal, Judgement, Output},
    record::{Entry, Key, signed_bytes},
    sync::{NO_SESSION, SyncRequest},
    wire::{Clash, ClashClaim, Gossip, Request},
};

/// Interval at which claims to a younger process are repeated.
const CLASH_INTERVAL: Duration = Duration::from_millis(500);
/// A process that has run for this long reclaims its key at once. Before, it waits for [`RECLAIM_AFTER`]. It
/// may be the younger process itself, which receives the older one's claim within this time of its first
/// connection.
const SETTLED_AFTER: Duration = Duration::from_secs(2);

impl Core {
    /// Handles an entry that carries this node's own signature.
    pub(super) fn learn_own_entry(&mut self, now: Time, entry: &Entry, from: NodeId) -> Learned {
        let fact = &entry.fact;
        let newer_life = fact.incarnation > self.own.incarnation;
        let never_stated = fact.incarnation == self.own.incarnation && fact.version > self.own.version;
        if !newer_life && !never_stated {
            return Learned::Stale;
        }
        if entry.check(&self.config.cluster).is_err() {
            self.counters.forged += 1;
            self.record_misbehaviour(now, from, "entry");
            return Learned::Invalid;
        }
        if never_stated {
            // Two processes that began in the same millisecond have the same incarnation. Neither is older,
            // so both stop.
            self.outputs.push_back(Output::Fatal(Fatal::KeyTaken(fact.incarnation)));
            return Learned::Stale;
        }
        self.contest_key(now, fact.incarnation);
        // The entry is relayed, so that other nodes learn of the clash, too.
        Learned::New
    }

    /// Starts to defend the key against a younger process. That process may not be connected at the moment,
    /// so the claim is repeated.
    fn contest_key(&mut self, now: Time, newer: Incarnation) {
        if self.key_clash.younger.is_some_and(|known| known.incarnation >= newer) {
            return;
        }
        self.push_event(Event::KeyTaken(newer));
        self.send_clash_claim(
            now,
            YoungerProcess { incarnation: newer, since: now, next_claim_at: now, claims_sent: 0 },
        );
        let may_reclaim = self.key_clash.reclaimed_at.is_none_or(|at| now >= at + RECLAIM_AFTER);
        if now >= self.started + SETTLED_AFTER && may_reclaim {
            self.reclaim(now, newer);
        }
    }

    fn send_clash_claim(&mut self, now: Time, younger: YoungerProcess) {
        let round = younger.claims_sent;
        self.key_clash.younger =
            Some(YoungerProcess { next_claim_at: now + CLASH_INTERVAL, claims_sent: round + 1, ..younger });
        let claim =
            ClashClaim { node: self.id, older: self.key_clash.born, newer: younger.incarnation, round };
        let signature = self.identity.sign(&signed_bytes("clash", &self.config.cluster, &claim));
        let clash = Clash { claim, signature };
        let neighbours: Vec<NodeId> = self.connections.connected().collect();
        for peer in neighbours {
            self.send_request(SyncRequest {
                peer,
                request_id: NO_SESSION,
                request: Request::Clash(clash.clone()),
            });
        }
        self.publish(&Gossip::Clash(clash));
    }

    pub(super) fn run_clash_due(&mut self, now: Time) {
        if let Some(younger) = self.key_clash.younger {
            if now >= younger.since + RECLAIM_AFTER {
                self.key_clash.younger = None;
                self.reclaim(now, younger.incarnation);
            } else if now >= younger.next_claim_at {
                self.send_clash_claim(now, younger);
            }
        }
    }

    /// Forwards a claim on a peer's key to that peer, which may be either of the two processes.
    pub(super) fn forward_clash(&mut self, now: Time, peer: NodeId) {
        if let Some((at, clash)) = self.key_clash.claims.get(&peer)
            && now.since(*at) < PASS_ON_FOR
        {
            let request = Request::Clash(clash.clone());
            self.send_request(SyncRequest { peer, request_id: NO_SESSION, request });
        }
    }

    pub(super) fn handle_clash(&mut self, now: Time, clash: &Clash, from: NodeId) -> Judgement {
        let claim = &clash.claim;
        // Claims on keys of non-members are dropped: keys cost nothing, so there may be any number of such
        // claims.
        if claim.node != self.id && !self.member_states.contains_key(&claim.node) {
            return Judgement::Ignore;
        }
        if !self.evidence_limit.has_token(now, claim.node) {
            self.counters.rate_limited += 1;
            return Judgement::Ignore;
        }
        if !claim.node.has_signed(&signed_bytes("clash", &self.config.cluster, claim), &clash.signature) {
            self.counters.forged += 1;
            self.record_misbehaviour(now, from, "clash");
            return Judgement::Reject;
        }
        self.evidence_limit.take_token(now, claim.node);
        let born = self.key_clash.born;
        if claim.node != self.id {
            if !self.key_clash.keep_claim(now, clash.clone()) {
                self.counters.claims_dropped += 1;
                return Judgement::Ignore;
            }
            if self.connections.is_connected(claim.node) {
                self.forward_clash(now, claim.node);
            }
        } else if claim.older < born && claim.newer >= born {
            self.outputs.push_back(Output::Fatal(Fatal::KeyTaken(claim.older)));
        } else if claim.older > born {
            // The other process takes this one for the younger, because this process began a higher
            // incarnation when it reclaimed the key.
            self.contest_key(now, claim.older);
        }
        Judgement::Accept
    }

    /// Begins an incarnation above that of the younger process and states everything again, unless the
    /// current incarnation is already above it.
    pub(super) fn reclaim(&mut self, now: Time, newer: Incarnation) {
        if newer <= self.own.incarnation {
            return;
        }
        self.key_clash.reclaimed_at = Some(now);
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
        self.member_states.remove(&self.id);
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
        Identity, Startup,
        config::Config,
        io::{Command, GossipId, Input, Profile},
        membership::evidence::{Claim, Strength},
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
            grpc: None,
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

    /// Starts node 1 with the neighbour 2, which is a member.
    fn core() -> Core {
        let startup =
            Startup { incarnation: BORN, remembered: vec![], known: vec![], profile: profile("n1"), seed: 1 };
        let mut core = Core::new(identity(1), Config::default(), startup, Time::ZERO);
        core.handle(at(0), Input::Connected(identity(2).id()));
        core.handle(at(0), Input::Subscribed(identity(2).id()));
        gossip(&mut core, at(1), Gossip::Entries(vec![header(2, BORN)]));
        core
    }

    /// Messages that the core publishes in answer to a message of its neighbour, within 5 ms.
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

    /// Incarnations of node 1 among these headers.
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
        let outputs = gossip(&mut core, at(10_000), Gossip::Entries(vec![header(1, COPY)]));
        assert!(
            outputs.iter().any(|g| matches!(g, Gossip::Clash(c) if c.claim.newer == COPY)),
            "{outputs:?}"
        );
        assert_eq!(lives(&outputs), [next(COPY)]);
        // It continues to send claims, but begins no further incarnation.
        let later = published(&mut core, at(10_600));
        assert!(later.iter().any(|g| matches!(g, Gossip::Clash(_))), "{later:?}");
        assert_eq!(lives(&published(&mut core, at(16_000))), []);
    }

    #[test]
    fn two_that_take_their_place_back_from_each_other_rest_in_between() {
        let mut core = core();
        gossip(&mut core, at(10_000), Gossip::Entries(vec![header(1, COPY)]));
        let above = Incarnation(COPY.0 + 2);
        let outputs = gossip(&mut core, at(10_050), Gossip::Entries(vec![header(1, above)]));
        assert_eq!(lives(&outputs), [], "it has just begun a life");
        // A member observed the copy's end.
        let claim = Claim {
            observer: identity(2).id(),
            subject: identity(1).id(),
            incarnation: above,
            version: Version(1),
            strength: Strength::Strong,
        };
        let evidence = claim.sign(&identity(2), "default");
        let outputs = gossip(&mut core, at(10_100), Gossip::Evidence(vec![evidence.clone()]));
        assert_eq!(lives(&outputs), [next(above)]);
        let outputs = gossip(&mut core, at(10_200), Gossip::Evidence(vec![evidence]));
        assert_eq!(lives(&outputs), [], "once");
    }

    #[test]
    fn a_process_that_has_just_begun_waits_because_it_may_be_the_copy() {
        let mut core = core();
        let outputs = gossip(&mut core, at(500), Gossip::Entries(vec![header(1, COPY)]));
        assert_eq!(lives(&outputs), []);
        let outputs = published(&mut core, at(6_000));
        assert_eq!(lives(&outputs), [next(COPY)], "the other one has stopped, or never will");
    }

    #[test]
    fn a_claim_over_a_life_below_the_own_one_never_lowers_it() {
        let mut core = core();
        gossip(&mut core, at(10_000), Gossip::Entries(vec![header(1, COPY)]));
        core.handle(at(16_000), Input::Command(Command::KeepLinks(Default::default())));
        let claim =
            ClashClaim { node: identity(1).id(), older: Incarnation(4_000), newer: next(COPY), round: 0 };
        let signature = identity(1).sign(&signed_bytes("clash", "default", &claim));
        let outputs = gossip(&mut core, at(17_000), Gossip::Clash(Clash { claim, signature }));
        assert!(outputs.iter().any(|g| matches!(g, Gossip::Clash(_))), "{outputs:?}");
        assert_eq!(lives(&outputs), []);
        assert_eq!(lives(&published(&mut core, at(23_000))), []);
    }
}
