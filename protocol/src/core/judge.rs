//! Part of [`Core`]: signs this node's observations as evidence, and sets the state of each member by the
//! evidence of all nodes.

use super::{learn::Learned, machine::Core};
use crate::{
    Incarnation, NodeId, Time,
    io::{Event, Judgement, Output},
    membership::{
        evidence::{Claim, Evidence, Strength},
        liveness::{EvidenceEffect, Verdict},
    },
    providers::{Change, Explanation, MemberState},
    sync::{NO_SESSION, SyncRequest},
    version_set::VersionSet,
    wire::{self, Gossip, Page, Request},
};

/// Interval at which suspects without a second report, and one neighbour, receive the evidence. Extended when
/// answers are late.
const NOTIFY_INTERVAL: std::time::Duration = std::time::Duration::from_secs(2);
/// Suspects in one such message. Further suspects follow in later rounds.
const NOTIFIED_SUSPECTS_MAX: usize = 64;
/// Watchers that are probed in each round because they did not confirm a suspect. Guess: few enough dials at
/// once. Further watchers follow in later rounds.
const PROBED_WATCHERS_MAX: usize = 32;

/// Time for which the connection to a failed member is kept, in case the member answers. After a healed
/// partition, TCP takes minutes to resume; a new dial takes seconds.
const FAILED_CONNECTION_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(3);
/// While at most this many unaccused members are left, each change of a member's state is followed by new
/// verdicts on all suspects. The change may decide whether a suspect needs a second report.
const FEW_MEMBERS: usize = 8;

impl Core {
    /// Reports an observation of a member, unless the same is already known.
    pub(super) fn report_member(&mut self, now: Time, subject: NodeId, strength: Strength) {
        if !self.present.contains(&subject) || self.own.has_left() {
            return;
        }
        if strength == Strength::Weak && self.patience.is_exhausted(now) {
            self.counters.accusations_withheld += 1;
            return;
        }
        let Some(s) = self.state.node(subject) else { return };
        let (incarnation, version) = (s.incarnation(), s.header_version());
        let claim = Claim { observer: self.id, subject, incarnation, version, strength };
        let lost_since = |then: Time| {
            let mut others = self.member_states.iter().filter(|(id, _)| **id != subject);
            others.any(|(_, (state, at))| *state == MemberState::Failed && then < *at)
        };
        if self.liveness.assess(&claim) != EvidenceEffect::New
            || !self.prober.may_report(now, &claim, lost_since)
        {
            return;
        }
        let evidence = claim.sign(&self.identity, &self.config.cluster);
        self.counters.accusations_made += 1;
        self.record_evidence(now, evidence.clone(), now);
        self.publish_evidence(evidence);
    }

    pub(super) fn publish_evidence(&mut self, evidence: Evidence) {
        self.publish(&Gossip::Evidence(vec![evidence]));
    }

    pub(super) fn publish(&mut self, gossip: &Gossip) {
        // Without a subscribed peer the message is not published; anti-entropy delivers its content later.
        if self.connections.subscribed().next().is_some() {
            self.counters.gossip_published += 1;
            self.outputs.push_back(Output::Publish(wire::encode(gossip)));
        }
    }

    /// Applies evidence that arrived by gossip.
    pub(super) fn learn_evidence_list(
        &mut self,
        now: Time,
        evidence: Vec<Evidence>,
        from: NodeId,
    ) -> Judgement {
        let effects: Vec<Learned> =
            evidence.into_iter().map(|e| self.learn_evidence(now, e, from, now)).collect();
        if effects.contains(&Learned::Invalid) {
            Judgement::Reject
        } else if effects.contains(&Learned::New) {
            Judgement::Accept
        } else {
            Judgement::Ignore
        }
    }

    /// Applies one piece of evidence. `since`: start of the time to refute it.
    pub(super) fn learn_evidence(
        &mut self,
        now: Time,
        evidence: Evidence,
        from: NodeId,
        since: Time,
    ) -> Learned {
        let Claim { observer, subject, incarnation, version, .. } = evidence.claim;
        let about_me = subject == self.id;
        // Only members are accepted as observers: identities cost nothing, but the number of members is
        // bounded. The observer may have failed since, or be this node in an earlier life. This node refutes
        // a report on itself even if it does not know the observer, because other nodes may know it.
        if !about_me && !self.member_states.contains_key(&observer) {
            return Learned::Stale;
        }
        let current = self.own.incarnation() == incarnation && version == self.own_header_version();
        match about_me {
            true if !current && !self.key_clash.is_younger_life(incarnation) => return Learned::Stale,
            false if self.liveness.assess(&evidence.claim) != EvidenceEffect::New => return Learned::Stale,
            _ => (),
        }
        if !self.evidence_limit.has_token(now, observer) {
            self.counters.rate_limited += 1;
            return Learned::Deferred;
        }
        if !evidence.is_signed(&self.config.cluster) {
            self.counters.forged += 1;
            self.record_misbehaviour(now, from, "evidence");
            return Learned::Invalid;
        }
        self.evidence_limit.take_token(now, observer);
        self.counters.accusations_heard += 1;
        if about_me {
            match current {
                true => self.refute(now, observer),
                // The younger process under this key has stopped.
                false => self.reclaim(now, incarnation),
            }
            return Learned::New;
        }
        self.record_evidence(now, evidence, since);
        // A node that watches the subject or is connected to it probes the subject itself.
        let concerned = self.overlay.watched().contains(&subject) || self.connections.is_connected(subject);
        if concerned && self.member_state(subject) == Some(MemberState::Suspect) {
            self.prober.probe(now, subject);
        }
        Learned::New
    }

    fn record_evidence(&mut self, now: Time, evidence: Evidence, since: Time) {
        let Claim { observer: by, subject, strength, .. } = evidence.claim;
        if self.liveness.record(now, evidence, since) == EvidenceEffect::New {
            self.push_event(Event::Accused { by, subject, strength });
            let strong = strength == Strength::Strong;
            self.push_change(Change::Explained(subject, Explanation::Accused { by, strong }));
            self.judge(now, subject);
        }
    }

    /// Draws the verdict on a member from the current evidence.
    pub(super) fn judge(&mut self, now: Time, subject: NodeId) {
        let Some((before, since)) = self.member_states.get(&subject).copied() else { return };
        if before == MemberState::Left || subject == self.id {
            return;
        }
        if before == MemberState::Failed
            && since + FAILED_CONNECTION_TIMEOUT <= now
            && self.connections.is_connected(subject)
        {
            self.outputs.push_back(Output::Disconnect(subject));
        }
        let suspicion = self.suspicion(now, subject);
        let verdict = self.liveness.conclude(now, subject, &self.present, suspicion);
        let state = match verdict {
            Verdict::Clear => MemberState::Alive,
            Verdict::Failed => MemberState::Failed,
            Verdict::Suspect(at) => {
                // Without a second report the member remains a suspect, and other nodes soon replace it as a
                // watcher.
                let since = self.liveness.accused_since(subject).unwrap_or(now);
                let again = at.unwrap_or(since + suspicion);
                if again <= now {
                    self.unresolved_suspects.insert(subject);
                }
                self.deadlines.insert((if again > now { again } else { now + NOTIFY_INTERVAL }, subject));
                MemberState::Suspect
            }
        };
        if state != before {
            return self.set_member_state(now, subject, state);
        }
        self.update_overlay(now, subject, state);
    }

    /// Sends the evidence on suspects without a second report.
    ///
    /// Gossip may have been lost with a connection. In that case the suspect could not refute, another
    /// observer's report did not arrive, or this node's report did not reach others. So each connected
    /// suspect receives the evidence on itself. Also, one other neighbour in turn receives all evidence and
    /// floods the part that is new to it. The suspect alone does not suffice, because it may be silent. The
    /// neighbour gets one message for all suspects: if there are many, the nodes are already late.
    pub(super) fn notify_suspects(&mut self, now: Time) {
        if self.unresolved_suspects.is_empty() || now < self.next_notification {
            return;
        }
        self.next_notification = now + self.patience.stretch(now, NOTIFY_INTERVAL);
        let unresolved_suspects = std::mem::take(&mut self.unresolved_suspects);
        let suspects: Vec<NodeId> = unresolved_suspects
            .into_iter()
            .filter(|id| self.member_state(*id) == Some(MemberState::Suspect))
            .collect();
        let connected: Vec<NodeId> = self.connections.connected().collect();
        for suspect in suspects.iter().filter(|suspect| connected.contains(suspect)) {
            self.send_evidence(*suspect, &[*suspect]);
        }
        self.probe_watchers(now, &suspects);
        let of_state = |state: MemberState| -> Vec<NodeId> {
            connected.iter().copied().filter(|id| self.member_state(*id) == Some(state)).collect()
        };
        let alive = of_state(MemberState::Alive);
        let neighbours = if alive.is_empty() { of_state(MemberState::Suspect) } else { alive };
        let turn = self.notifications;
        self.notifications += 1;
        let in_turn = |of: usize| turn.checked_rem(of);
        let peer = in_turn(neighbours.len()).map(|i| neighbours[i]);
        // The next share is sent after each neighbour has received this one.
        let round = turn / neighbours.len().max(1);
        let shares = suspects.len().div_ceil(NOTIFIED_SUSPECTS_MAX);
        let share = round.checked_rem(shares).and_then(|i| suspects.chunks(NOTIFIED_SUSPECTS_MAX).nth(i));
        if let (Some(peer), Some(share)) = (peer, share) {
            self.send_evidence(peer, share);
            // The neighbour is probed, too. If it is silent, it becomes a suspect, and the next round uses
            // another one.
            self.prober.probe(now, peer);
        }
    }

    /// Probes watchers of suspects that have no second report: the watchers may be gone, too.
    ///
    /// If most members are lost at once, most watchers of a lost member are lost as well. Each survivor
    /// watches only a few members. Without this probe, the survivors would not notice the others.
    fn probe_watchers(&mut self, now: Time, suspects: &[NodeId]) {
        let is_doubtful = |id: &NodeId| {
            *id != self.id && !self.connections.is_connected(*id) && !self.liveness.is_accused(*id)
        };
        let watchers = suspects.iter().flat_map(|suspect| self.overlay.watchers_of(*suspect));
        let doubtful: std::collections::BTreeSet<NodeId> = watchers.filter(is_doubtful).collect();
        let begin = self.notifications.wrapping_mul(PROBED_WATCHERS_MAX);
        let begin = begin.checked_rem(doubtful.len()).unwrap_or(0);
        let count = doubtful.len().min(PROBED_WATCHERS_MAX);
        for watcher in doubtful.iter().cycle().skip(begin).take(count) {
            self.prober.probe(now, *watcher);
        }
    }

    /// Requests a newer header of a member that a neighbour holds present and this node has forgotten. The
    /// member was disconnected for longer than it is remembered, and this node refuses entries of that
    /// incarnation. The neighbour receives evidence, which the member refutes by a newer header.
    pub(super) fn request_newer_header(&mut self, now: Time, subject: NodeId, from: NodeId) {
        let Some((incarnation, version)) = self.state.forgotten(subject) else { return };
        if !self.reminder_limit.has_token(now, subject) {
            return;
        }
        self.reminder_limit.take_token(now, subject);
        let claim = Claim { observer: self.id, subject, incarnation, version, strength: Strength::Weak };
        let evidence = claim.sign(&self.identity, &self.config.cluster);
        let page = page_of_evidence(subject, incarnation, vec![evidence.clone()]);
        self.send_request(SyncRequest {
            peer: from,
            request_id: NO_SESSION,
            request: Request::Push(vec![page]),
        });
        self.publish_evidence(evidence);
    }

    fn send_evidence(&mut self, peer: NodeId, suspects: &[NodeId]) {
        let page = |node: NodeId| {
            let incarnation = self.state.node(node)?.incarnation();
            Some(page_of_evidence(node, incarnation, self.liveness.reports(node).cloned().collect()))
        };
        let pages = suspects.iter().copied().filter_map(page).collect();
        self.send_request(SyncRequest { peer, request_id: NO_SESSION, request: Request::Push(pages) });
    }

    /// When suspects next receive the evidence.
    pub(super) fn next_notification(&self) -> Option<Time> {
        (!self.unresolved_suspects.is_empty()).then_some(self.next_notification)
    }

    /// Sets a member's state, and publishes all changes that follow from it.
    pub(super) fn set_member_state(&mut self, now: Time, id: NodeId, state: MemberState) {
        let before = self.member_states.insert(id, (state, now)).map(|(state, _)| state);
        match (before, state) {
            (_, MemberState::Failed) => self.counters.verdicts_failed += 1,
            (Some(MemberState::Failed), MemberState::Alive | MemberState::Suspect) => {
                self.counters.verdicts_revoked += 1;
            }
            _ => (),
        }
        if state == MemberState::Failed {
            self.deadlines.insert((now + FAILED_CONNECTION_TIMEOUT, id));
        }
        if state.is_present() {
            self.present.insert(id);
        } else {
            self.present.remove(&id);
            self.prober.record_verdict(id);
        }
        if state == MemberState::Left {
            self.liveness.remove(id);
        }
        self.state.set_failed(id, state == MemberState::Failed);
        self.update_overlay(now, id, state);
        if state == MemberState::Failed
            && let Some(since) = self.liveness.silent_since(id)
        {
            self.push_change(Change::Silent { node: id, since });
        }
        self.publish_member(id);
        if before != Some(state) && id != self.id {
            let name = self.state.node(id).map(|s| s.header().name.clone()).unwrap_or_default();
            self.push_event(Event::Member(id, name, state));
            self.push_change(Change::Explained(id, Explanation::Became(state)));
        }
        if self.present.len() <= self.liveness.accused().len() + FEW_MEMBERS {
            let others = self.liveness.accused().filter(|other| **other != id);
            self.deadlines.extend(others.map(|other| (now, *other)));
        }
    }

    /// Time in which a member can refute.
    fn suspicion(&self, now: Time, subject: NodeId) -> std::time::Duration {
        self.patience.stretch(now, self.config.suspicion) + self.patience.extra_for(now, subject)
    }

    /// Updates a member's roles in the overlay: watched member and watcher.
    fn update_overlay(&mut self, now: Time, id: NodeId, state: MemberState) {
        let suspicion = self.suspicion(now, id);
        let reliable = state.is_present() && !self.liveness.is_unreliable_watcher(now, id, suspicion);
        self.overlay_changed |= self.overlay.set(id, true, reliable);
    }
}

/// Builds a page with evidence on a node and without entries.
fn page_of_evidence(node: NodeId, incarnation: Incarnation, evidence: Vec<Evidence>) -> Page {
    Page { node, incarnation, covers: VersionSet::default(), entries: Vec::new(), evidence }
}
