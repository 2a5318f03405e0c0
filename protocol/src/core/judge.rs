//! Concluding who is alive: own observations go out as evidence, everybody's evidence becomes verdicts.

use super::{Core, learn::Worth};
use crate::{
    Incarnation, NodeId, Time,
    io::{Event, Judgement, Output},
    liveness::{Claim, Evidence, Heard, Strength, Verdict},
    providers::{Change, Explanation, MemberState},
    seen::Seen,
    sync::{Ask, Ticket},
    wire::{self, Gossip, Page, Request},
};

/// How often suspects and a neighbour are told what is said of them, while no second report comes; longer where everything is late.
const CONFRONT_EVERY: std::time::Duration = std::time::Duration::from_secs(2);
/// Suspects in one such message. Where there are more, the others have their turn later.
const CONFRONTED_MAX: usize = 64;

/// A connection to the dead is kept for this long, in case they answer after all. Then it goes: TCP would take minutes to notice that a
/// partition has healed, a new dial takes seconds.
const KEEP_DEAD_LINKS: std::time::Duration = std::time::Duration::from_secs(3);
/// While at most this many unaccused members are left, each verdict may decide whether another case needs a second report.
const FEW: usize = 8;

impl Core {
    /// This node saw something of a member. Says so, unless everybody knows.
    pub(super) fn report(&mut self, now: Time, subject: NodeId, strength: Strength) {
        if !self.present.contains(&subject) || self.own.has_left() {
            return;
        }
        if strength == Strength::Weak && self.health.is_beyond_patience(now) {
            self.counters.accusations_withheld += 1;
            return;
        }
        let Some(s) = self.state.node(subject) else { return };
        let (incarnation, version) = (s.incarnation(), s.header_version());
        let claim = Claim { observer: self.id, subject, incarnation, version, strength };
        let lost_since = |then: Time| {
            let mut others = self.concluded.iter().filter(|(id, _)| **id != subject);
            others.any(|(_, (state, at))| *state == MemberState::Failed && then < *at)
        };
        if self.liveness.weigh(&claim) != Heard::News
            || !self.watch.may_say(now, subject, incarnation, version, strength, lost_since)
        {
            return;
        }
        let evidence = claim.sign(&self.me, &self.config.cluster);
        self.counters.accusations_made += 1;
        self.accept(now, evidence.clone(), now);
        self.publish_evidence(evidence);
    }

    pub(super) fn publish_evidence(&mut self, evidence: Evidence) {
        self.publish(&Gossip::Evidence(vec![evidence]));
    }

    pub(super) fn publish(&mut self, gossip: &Gossip) {
        // Before anybody listens there is nobody to tell; anti-entropy will.
        if self.links.subscribed().next().is_some() {
            self.counters.gossip_published += 1;
            self.out.push_back(Output::Publish(wire::encode(gossip)));
        }
    }

    /// Evidence by gossip.
    pub(super) fn hear_all(&mut self, now: Time, evidence: Vec<Evidence>, from: NodeId) -> Judgement {
        let worths: Vec<Worth> = evidence.into_iter().map(|e| self.hear(now, e, from, now)).collect();
        if worths.contains(&Worth::Bad) {
            Judgement::Reject
        } else if worths.contains(&Worth::News) {
            Judgement::Accept
        } else {
            Judgement::Ignore
        }
    }

    /// One piece of evidence from anywhere. `since` is when the time to refute it began.
    pub(super) fn hear(&mut self, now: Time, evidence: Evidence, from: NodeId, since: Time) -> Worth {
        let Claim { observer, subject, incarnation, version, .. } = evidence.claim;
        let about_me = subject == self.id;
        // Only members bear witness: identities cost nothing, members can be counted. One that has died since has still seen it, and so has
        // this node, if it said so in an earlier life. But whoever accuses this node is answered, known here or not: others may know it.
        if !about_me && !self.concluded.contains_key(&observer) {
            return Worth::Stale;
        }
        let current = self.own.incarnation() == incarnation && version == self.own_header_version();
        match about_me {
            true if !current && !self.dispute.is_usurpers(incarnation) => return Worth::Stale,
            false if self.liveness.weigh(&evidence.claim) != Heard::News => return Worth::Stale,
            _ => (),
        }
        if !self.evidence_limit.has_left(now, observer) {
            self.counters.rate_limited += 1;
            return Worth::PutOff;
        }
        if !evidence.is_signed(&self.config.cluster) {
            self.counters.forged += 1;
            self.blame(now, from, "evidence");
            return Worth::Bad;
        }
        self.evidence_limit.take(now, observer);
        self.counters.accusations_heard += 1;
        if about_me {
            match current {
                true => self.refute(now, observer),
                // The younger process under our key has stopped.
                false => self.reclaim(now, incarnation),
            }
            return Worth::News;
        }
        self.accept(now, evidence, since);
        // Look for ourselves where we can: those that watch it, and those that happen to be connected.
        let concerned = self.overlay.watched().contains(&subject) || self.links.is_connected(subject);
        if concerned && self.concluded(subject) == Some(MemberState::Suspect) {
            self.watch.probe(now, subject);
        }
        Worth::News
    }

    fn accept(&mut self, now: Time, evidence: Evidence, since: Time) {
        let Claim { observer: by, subject, strength, .. } = evidence.claim;
        if self.liveness.hear(now, evidence, since) == Heard::News {
            self.event(Event::Accused { by, subject, strength });
            let strong = strength == Strength::Strong;
            self.change(Change::Explained(subject, Explanation::Accused { by, strong }));
            self.judge(now, subject);
        }
    }

    /// Draws the conclusion from what is known about a member right now.
    pub(super) fn judge(&mut self, now: Time, subject: NodeId) {
        let Some((before, since)) = self.concluded.get(&subject).copied() else { return };
        if before == MemberState::Left || subject == self.id {
            return;
        }
        if before == MemberState::Failed && since + KEEP_DEAD_LINKS <= now && self.links.is_connected(subject)
        {
            self.out.push_back(Output::Disconnect(subject));
        }
        let suspicion = self.suspicion(now, subject);
        let verdict = self.liveness.conclude(now, subject, &self.present, suspicion);
        let state = match verdict {
            Verdict::Clear => MemberState::Alive,
            Verdict::Failed => MemberState::Failed,
            Verdict::Suspect(at) => {
                // Without a second report it stays a suspect, and soon others take over from it as watcher.
                let since = self.liveness.accused_since(subject).unwrap_or(now);
                let again = at.unwrap_or(since + suspicion);
                if again <= now {
                    self.unresolved.insert(subject);
                }
                self.deadlines.insert((if again > now { again } else { now + CONFRONT_EVERY }, subject));
                MemberState::Suspect
            }
        };
        if state != before {
            return self.conclude(now, subject, state);
        }
        self.place(now, subject, state);
    }

    /// Some members stay suspects, because no second report comes. Perhaps the gossip was lost with the connections that it was on: then the
    /// suspect has not heard what it could refute, or another observer's report has not come here, nor this node's there. So each suspect that
    /// is connected is told, and one neighbour that is not a suspect, another one each time, which passes on what is news to it. A suspect
    /// that is connected may be silent, so telling it alone would not do. One message for all, because where many are suspects the nodes are
    /// late, and must not make each other later.
    pub(super) fn confront(&mut self, now: Time) {
        if self.unresolved.is_empty() || now < self.next_confrontation {
            return;
        }
        self.next_confrontation = now + self.health.stretch(now, CONFRONT_EVERY);
        let unresolved = std::mem::take(&mut self.unresolved);
        let suspects: Vec<NodeId> =
            unresolved.into_iter().filter(|id| self.concluded(*id) == Some(MemberState::Suspect)).collect();
        let connected: Vec<NodeId> = self.links.connected().collect();
        for suspect in suspects.iter().filter(|suspect| connected.contains(suspect)) {
            self.tell_accusations(*suspect, &[*suspect]);
        }
        let of_state = |state: MemberState| -> Vec<NodeId> {
            connected.iter().copied().filter(|id| self.concluded(*id) == Some(state)).collect()
        };
        let alive = of_state(MemberState::Alive);
        let neighbours = if alive.is_empty() { of_state(MemberState::Suspect) } else { alive };
        let turn = self.confrontations;
        self.confrontations += 1;
        let in_turn = |of: usize| turn.checked_rem(of);
        let peer = in_turn(neighbours.len()).map(|i| neighbours[i]);
        // The next share once each neighbour has had this one.
        let round = turn / neighbours.len().max(1);
        let shares = suspects.len().div_ceil(CONFRONTED_MAX);
        let share = round.checked_rem(shares).and_then(|i| suspects.chunks(CONFRONTED_MAX).nth(i));
        if let (Some(peer), Some(share)) = (peer, share) {
            self.tell_accusations(peer, share);
            // The neighbour is probed as well: if it is silent too, it becomes a suspect, and the next round uses another one.
            self.watch.probe(now, peer);
        }
    }

    /// A neighbour holds a life of a member for present that this node has forgotten: it was away for longer than it is remembered. Whatever
    /// it states of that life is refused here, so it is asked to state something newer, as any suspect is.
    pub(super) fn remind(&mut self, now: Time, subject: NodeId, from: NodeId) {
        let Some((incarnation, version)) = self.state.buried(subject) else { return };
        if !self.reminders.has_left(now, subject) {
            return;
        }
        self.reminders.take(now, subject);
        let claim = Claim { observer: self.id, subject, incarnation, version, strength: Strength::Weak };
        let evidence = claim.sign(&self.me, &self.config.cluster);
        let page = page_of_evidence(subject, incarnation, vec![evidence.clone()]);
        self.request(Ask { peer: from, ticket: Ticket(0), request: Request::Push(vec![page]) });
        self.publish_evidence(evidence);
    }

    fn tell_accusations(&mut self, peer: NodeId, suspects: &[NodeId]) {
        let page = |node: NodeId| {
            let incarnation = self.state.node(node)?.incarnation();
            Some(page_of_evidence(node, incarnation, self.liveness.reports(node).cloned().collect()))
        };
        let pages = suspects.iter().copied().filter_map(page).collect();
        self.request(Ask { peer, ticket: Ticket(0), request: Request::Push(pages) });
    }

    /// When suspects are to be told next what is said of them.
    pub(super) fn next_confrontation(&self) -> Option<Time> {
        (!self.unresolved.is_empty()).then_some(self.next_confrontation)
    }

    /// Makes a conclusion known.
    pub(super) fn conclude(&mut self, now: Time, id: NodeId, state: MemberState) {
        let before = self.concluded.insert(id, (state, now)).map(|(state, _)| state);
        match (before, state) {
            (_, MemberState::Failed) => self.counters.verdicts_failed += 1,
            (Some(MemberState::Failed), MemberState::Alive | MemberState::Suspect) => {
                self.counters.verdicts_revoked += 1;
            }
            _ => (),
        }
        if state == MemberState::Failed {
            self.deadlines.insert((now + KEEP_DEAD_LINKS, id));
        }
        if state.is_present() {
            self.present.insert(id);
        } else {
            self.present.remove(&id);
            self.watch.settled(id);
        }
        if state == MemberState::Left {
            self.liveness.dismiss(id);
        }
        self.state.set_failed(id, state == MemberState::Failed);
        self.place(now, id, state);
        if state == MemberState::Failed
            && let Some(since) = self.liveness.silent_since(id)
        {
            self.change(Change::Silent { node: id, since });
        }
        self.show_member(now, id);
        if before != Some(state) && id != self.id {
            let name = self.state.node(id).map(|s| s.header().name.clone()).unwrap_or_default();
            self.event(Event::Member(id, name, state));
            self.change(Change::Explained(id, Explanation::Became(state)));
        }
        if self.present.len() <= self.liveness.accused().len() + FEW {
            let others = self.liveness.accused().filter(|other| **other != id);
            self.deadlines.extend(others.map(|other| (now, *other)));
        }
    }

    /// How long it may take to refute.
    fn suspicion(&self, now: Time, subject: NodeId) -> std::time::Duration {
        self.health.stretch(now, self.config.suspicion) + self.health.extra(now, subject)
    }

    /// Puts a member where it belongs in the overlay.
    fn place(&mut self, now: Time, id: NodeId, state: MemberState) {
        let suspicion = self.suspicion(now, id);
        let reliable = state.is_present() && !self.liveness.is_doubted(now, id, suspicion);
        self.overlay_moved |= self.overlay.set(id, true, reliable);
    }
}

/// A page that states nothing and tells what speaks against a node.
fn page_of_evidence(node: NodeId, incarnation: Incarnation, evidence: Vec<Evidence>) -> Page {
    Page { node, incarnation, covers: Seen::default(), entries: Vec::new(), evidence }
}
