//! Failure detector, first half: [`Prober`] pings the members that this node watches, and probes members that
//! are in doubt.
//!
//! A closed connection does not prove a death, and neither does a late answer. So this node dials at once
//! after it lost a connection. If the dial is *refused*, that is strong evidence; if the peer
//! *authenticates*, it is alive; *no answer* is weak evidence. An unanswered ping is weak evidence. A watcher
//! that receives another node's accusation probes the subject itself instead of repeating the report.
//!
//! Before this node reports silence, it pings control peers. If they do not answer either, the fault is
//! probably local, or a machine is busy. In a calm network this takes one round trip. A burst of work that
//! delays all answers delays those of the control peers, too. SWIM (Das et al., 2002) asks peers to ping the
//! subject for the same purpose.
//!
//! The watchers of a member take turns, so that the longest time without a ping is short although each pings
//! rarely. A pong carries the time since the previous ping of any watcher. With k watchers that ping every
//! interval, this gap should be a k-th of the interval. A watcher whose gap is longer pings earlier the next
//! time, by three quarters of the excess. So excess moves on from watcher to watcher until a short gap takes
//! it up. DESYNC (Degesys et al., 2007) moves both ways, but then a lying pong could delay a ping beyond the
//! interval. A ping whose pong carries no gap, or that has no pong, is followed by the next one after the
//! ping interval.
//!
//! Reports are not repeated. After a report on one header, this node sends only a stronger one. Suppose that
//! the subject has refuted, but this node still cannot reach it. Then the fault is between these two nodes,
//! and this node reports nothing for a minute ([`REFUTED_SILENCE`]). If another member was lost since, the
//! fault may be a new one, and this node reports again.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use crate::{
    Incarnation, NodeId, Time, Version,
    config::Config,
    membership::{
        evidence::{Claim, Strength},
        patience::Patience,
    },
};

/// Time in which this node does not report a subject that refuted but is still unreachable. So a one-way
/// partition changes the table at most once a minute for each pair.
const REFUTED_SILENCE: Duration = Duration::from_secs(60);
/// Shortest interval of two reports on one subject, even if its connection breaks repeatedly.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Delay after which a neighbour that is not a watcher probes a lost member. The watchers usually decide
/// sooner.
const BYSTANDER_DELAY: Duration = Duration::from_millis(60);
/// Control peers pinged before a report of silence.
const CONTROL_PEERS: usize = 2;
/// A silent subject is reported after this many further timeouts if no control peer answers.
const CONTROL_PATIENCE: u32 = 2;
/// After a suspension of this node for this long, unanswered pings prove nothing.
pub(crate) const SUSPENDED_MIN: Duration = Duration::from_millis(200);

/// Action that the core must carry out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ProbeAction {
    /// Send a ping over the connection.
    Ping(NodeId),
    /// Dial the member now; the outcome is evidence.
    Dial(NodeId),
    /// Report the member to all others.
    Report(NodeId, Strength),
}

#[derive(Debug)]
struct Subject {
    /// Whether this node is a watcher of the subject.
    watched: bool,
    /// Number of the subject's watchers, this node included.
    watchers: u32,
    connected: bool,
    /// When the next ping is due, if the subject is watched and connected.
    next_ping: Time,
    /// When this node's last turn to ping was, until a pong tells the gap before that ping.
    turn: Option<Time>,
    /// When the first unanswered ping was sent.
    unanswered: Option<Time>,
    /// Whether that ping was only a control: it tests whether this node's pings are answered at all.
    is_control: bool,
    /// Whether control peers were pinged because that ping remained unanswered.
    controls_pinged: bool,
    /// Whether to ping at once, even if not watched, because another node reports the subject.
    doubted: bool,
    /// When the subject's silence was last reported. Reported again each ping interval, because the subject's
    /// header may have changed. [`Prober::may_report`] suppresses reports that add nothing.
    reported: Option<Time>,
    /// When to dial the subject to obtain evidence.
    dial_at: Option<Time>,
    /// When a dial for evidence was made that has no outcome yet.
    dialled: Option<Time>,
    /// Since when the subject is watched but not connected.
    unreached: Option<Time>,
    /// When the subject last proved that it is alive.
    last_heard: Time,
    last_report: Option<SentReport>,
    /// Whether the subject was declared failed or left since then.
    declared_gone: bool,
}

#[derive(Debug, Clone, Copy)]
struct SentReport {
    at: Time,
    incarnation: Incarnation,
    version: Version,
    strength: Strength,
}

impl Subject {
    fn ping(&mut self, now: Time) {
        self.unanswered = Some(now);
        self.is_control = false;
        self.controls_pinged = false;
    }

    /// Schedules the next ping, one turn after the last one, from the gap in a pong.
    fn schedule_turn(&mut self, since_ping: Option<Duration>, ping_interval: Duration) {
        if let (Some(turn), Some(gap)) = (self.turn.take(), since_ping) {
            let interval = ping_interval * (self.watchers + 1) / 2;
            // The next ping is never later than the interval and never earlier than half of it, whatever the
            // gap. Three quarters of the excess settle within ten seconds. The whole excess would never
            // settle while one of three watchers is lost, and half of it takes twice as long.
            let excess = gap.saturating_sub(interval / self.watchers).min(interval * 2 / 3);
            self.next_ping = turn + interval - excess * 3 / 4;
        }
    }

    /// Whether the subject must be kept. Peers that are not members come and go, and every input scans all
    /// subjects.
    fn is_relevant(&self) -> bool {
        self.watched
            || self.connected
            || self.dial_at.is_some()
            || self.dialled.is_some()
            || self.last_report.is_some()
    }

    /// When the subject's silence becomes evidence, if no answer comes.
    fn silent_at(&self, timeout: Duration) -> Option<Time> {
        self.unanswered.filter(|_| !self.is_control).map(|sent| sent + timeout)
    }
}

/// Conditions under which silence counts as evidence.
#[derive(Debug, Clone, Copy)]
struct SilenceRule {
    timeout: Duration,
    /// When the newest of the answered pings was sent.
    last_answered_ping: Time,
    /// Whether no control peer exists.
    without_controls: bool,
}

impl SilenceRule {
    /// When a subject that is silent since `silent` may be reported, unless another answer changes that.
    fn reportable_at(self, silent: Time) -> Time {
        if self.without_controls || self.last_answered_ping >= silent {
            silent
        } else {
            silent + self.timeout * CONTROL_PATIENCE
        }
    }
}

/// This node's own observations of other nodes.
#[derive(Debug)]
pub(crate) struct Prober {
    subjects: BTreeMap<NodeId, Subject>,
    ping_interval: Duration,
    ping_timeout: Duration,
    unreached: Duration,
    /// When the newest of the answered pings was sent.
    last_answered_ping: Time,
    rng: fastrand::Rng,
}

impl Prober {
    /// Prober without subjects.
    pub(crate) fn new(config: &Config, seed: u64) -> Self {
        Self {
            subjects: BTreeMap::new(),
            ping_interval: config.ping_interval,
            ping_timeout: config.ping_timeout,
            unreached: config.unreached,
            last_answered_ping: Time::ZERO,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    fn subject(&mut self, now: Time, id: NodeId) -> &mut Subject {
        self.subjects.entry(id).or_insert_with(|| Subject {
            watched: false,
            watchers: 1,
            connected: false,
            next_ping: now,
            turn: None,
            unanswered: None,
            is_control: false,
            controls_pinged: false,
            doubted: false,
            reported: None,
            dial_at: None,
            dialled: None,
            unreached: None,
            last_heard: Time::ZERO,
            last_report: None,
            declared_gone: false,
        })
    }

    /// Sets the members that this node watches, each with the number of its watchers. `doubted` says whether
    /// a member is accused; a new watcher probes such a member at once.
    pub(crate) fn set_watched(
        &mut self,
        now: Time,
        watched: &BTreeMap<NodeId, u32>,
        doubted: impl Fn(NodeId) -> bool,
    ) {
        for (id, subject) in &mut self.subjects {
            if subject.watched && !watched.contains_key(id) {
                subject.watched = false;
                subject.unreached = None;
            }
        }
        for (id, watchers) in watched {
            let phase = self.ping_interval.mul_f64(self.rng.f64());
            let subject = self.subject(now, *id);
            subject.watchers = (*watchers).max(1);
            if !subject.watched {
                subject.watched = true;
                // Watchers that start together must not ping at the same time: with different phases, one of
                // them detects a freeze early.
                subject.next_ping = now + phase;
                subject.unreached = (!subject.connected).then_some(now);
                if doubted(*id) {
                    self.probe(now, *id);
                }
            }
        }
        self.subjects.retain(|_, subject| subject.is_relevant());
    }

    /// Records an authenticated connection, which proves that the peer is alive.
    pub(crate) fn record_connected(&mut self, now: Time, id: NodeId) {
        let phase = self.ping_interval.mul_f64(self.rng.f64());
        let subject = self.subject(now, id);
        subject.connected = true;
        subject.last_heard = now;
        subject.next_ping = now + phase;
        subject.turn = None;
        subject.unanswered = None;
        subject.reported = None;
        subject.dial_at = None;
        subject.dialled = None;
        subject.unreached = None;
        subject.declared_gone = false;
    }

    /// Records a closed connection. `neighbour`: both ends wanted the connection, so its end is suspicious.
    pub(crate) fn record_disconnected(&mut self, now: Time, id: NodeId, neighbour: bool) {
        let subject = self.subject(now, id);
        subject.connected = false;
        subject.unanswered = None;
        subject.reported = None;
        subject.unreached = subject.watched.then_some(now);
        if subject.watched {
            subject.dial_at = Some(now);
        } else if neighbour {
            subject.dial_at = Some(now + BYSTANDER_DELAY);
        }
        if !subject.is_relevant() {
            self.subjects.remove(&id);
        }
    }

    /// Probes a member because another node reports it.
    pub(crate) fn probe(&mut self, now: Time, id: NodeId) {
        let timeout = self.ping_timeout;
        let subject = self.subject(now, id);
        if subject.connected {
            // A control peer is not accused if it did not answer. Once it is in doubt, its next ping counts,
            // or the current one if the answer may still come.
            if subject.is_control && subject.unanswered.is_some_and(|sent| sent + timeout <= now) {
                subject.unanswered = None;
            }
            subject.is_control = false;
            subject.doubted = subject.unanswered.is_none();
        } else if subject.dialled.is_none() && subject.dial_at.is_none() {
            subject.dial_at = Some(now);
        }
    }

    /// Records that a member was declared failed or left, so that no dial for evidence is needed.
    pub(crate) fn record_verdict(&mut self, id: NodeId) {
        if let Some(subject) = self.subjects.get_mut(&id) {
            subject.dial_at = None;
            subject.dialled = None;
            subject.declared_gone = true;
        }
    }

    /// Removes a member that is forgotten.
    pub(crate) fn forget(&mut self, id: NodeId) {
        self.subjects.remove(&id);
    }

    /// Records the answer to a ping. `since_ping` is the subject's time between this ping and the previous
    /// one of any node; `None` if the subject does not state it. Returns the time that this node waited for
    /// the answer, as a measure of the network's lateness. `None` if the subject was declared failed: then
    /// the subject was late, not the network.
    pub(crate) fn record_pong(
        &mut self,
        now: Time,
        id: NodeId,
        since_ping: Option<Duration>,
    ) -> Option<Duration> {
        let subject = self.subjects.get_mut(&id)?;
        subject.schedule_turn(since_ping, self.ping_interval);
        subject.last_heard = now;
        subject.reported = None;
        let sent = subject.unanswered.take();
        self.last_answered_ping = self.last_answered_ping.max(sent.unwrap_or(Time::ZERO));
        let declared_gone = std::mem::take(&mut subject.declared_gone);
        sent.filter(|_| !declared_gone).map(|sent| now.since(sent))
    }

    /// Records a failed dial. Its outcome is evidence, whatever its purpose was.
    pub(crate) fn record_failed_dial(&mut self, id: NodeId, refused: bool) -> Option<ProbeAction> {
        let subject = self.subjects.get_mut(&id)?;
        let relevant = subject.dialled.take().is_some() || subject.watched;
        if subject.connected || !relevant {
            return None;
        }
        Some(ProbeAction::Report(id, if refused { Strength::Strong } else { Strength::Weak }))
    }

    /// Restarts all timeouts, after this node was suspended.
    pub(crate) fn restart_timeouts(&mut self, now: Time) {
        for subject in self.subjects.values_mut() {
            if let Some(sent) = &mut subject.unanswered {
                *sent = now;
                subject.controls_pinged = false;
            }
            if let Some(dialled) = &mut subject.dialled {
                *dialled = now;
            }
            if let Some(since) = &mut subject.unreached {
                *since = now;
            }
        }
    }

    /// Whether to send a report, and records the report as sent. `lost_since` says whether another member
    /// failed after the given time and is still failed.
    pub(crate) fn may_report(
        &mut self,
        now: Time,
        claim: &Claim,
        lost_since: impl FnOnce(Time) -> bool,
    ) -> bool {
        let Claim { incarnation, version, strength, .. } = *claim;
        let subject = self.subject(now, claim.subject);
        if let Some(last_report) = subject.last_report {
            if (last_report.incarnation, last_report.version) >= (incarnation, version) {
                if last_report.strength >= strength {
                    return false;
                }
            } else if last_report.incarnation == incarnation {
                if now < last_report.at + REPORT_INTERVAL {
                    return false;
                }
                // The subject refuted. If this node received an answer from it since, the silence is new and
                // reported again.
                let is_new = last_report.at < subject.last_heard || strength == Strength::Strong;
                if !is_new && now < last_report.at + REFUTED_SILENCE && !lost_since(last_report.at) {
                    return false;
                }
            }
        }
        subject.last_report = Some(SentReport { at: now, incarnation, version, strength });
        true
    }

    /// Actions that are due.
    pub(crate) fn due(&mut self, now: Time, patience: &Patience) -> Vec<ProbeAction> {
        let mut actions = Vec::new();
        let (silence_rule, interval) = (self.silence_rule(now, patience), self.ping_interval);
        let timeout = silence_rule.timeout;
        let mut in_doubt = false;
        for (id, subject) in &mut self.subjects {
            if subject.connected {
                let ping_due = subject.watched && subject.next_ping <= now;
                if ping_due || subject.doubted {
                    subject.is_control = false;
                    // A ping that remains unanswered is repeated, because it may have been lost with one of
                    // two connections. The time of the first ping counts.
                    if ping_due || subject.unanswered.is_none() {
                        actions.push(ProbeAction::Ping(*id));
                    }
                    if subject.unanswered.is_none() {
                        subject.ping(now);
                    }
                }
                subject.doubted = false;
                if ping_due {
                    subject.next_ping = now + interval;
                    subject.turn = Some(now);
                }
                if let Some(silent) = subject.silent_at(timeout + patience.extra_for(now, *id))
                    && silent <= now
                {
                    in_doubt |= !std::mem::replace(&mut subject.controls_pinged, true);
                    if silence_rule.reportable_at(silent) <= now
                        && subject.reported.is_none_or(|at| at + interval <= now)
                    {
                        subject.reported = Some(now);
                        actions.push(ProbeAction::Report(*id, Strength::Weak));
                    }
                }
                continue;
            }
            if subject.dial_at.is_some_and(|at| at <= now) {
                subject.dial_at = None;
                subject.dialled = Some(now);
                actions.push(ProbeAction::Dial(*id));
            }
            // A ping takes one round trip, but a handshake takes several.
            if subject.dialled.is_some_and(|at| at + timeout * 2 <= now) {
                subject.dialled = None;
                actions.push(ProbeAction::Report(*id, Strength::Weak));
            }
            if subject.unreached.is_some_and(|since| since + self.unreached.max(timeout) <= now) {
                subject.unreached = Some(now);
                actions.push(ProbeAction::Report(*id, Strength::Weak));
            }
        }
        if in_doubt {
            actions.extend(self.ping_controls(now));
        }
        actions
    }

    /// Pings the peers from which this node received an answer most recently.
    fn ping_controls(&mut self, now: Time) -> Vec<ProbeAction> {
        let mut others: Vec<(Time, NodeId)> = self
            .subjects
            .iter()
            .filter(|(_, subject)| subject.connected && subject.unanswered.is_none())
            .map(|(id, subject)| (subject.last_heard, *id))
            .collect();
        others.sort_unstable_by(|a, b| b.cmp(a));
        others.truncate(CONTROL_PEERS);
        for (_, id) in &others {
            if let Some(subject) = self.subjects.get_mut(id) {
                subject.ping(now);
                subject.is_control = !subject.watched;
            }
        }
        others.into_iter().map(|(_, id)| ProbeAction::Ping(id)).collect()
    }

    fn silence_rule(&self, now: Time, patience: &Patience) -> SilenceRule {
        SilenceRule {
            timeout: patience.stretch(now, self.ping_timeout),
            last_answered_ping: self.last_answered_ping,
            without_controls: self.subjects.values().filter(|subject| subject.connected).count() < 2,
        }
    }

    /// When [`due`](Self::due) next has an action, but never before `now`.
    pub(crate) fn next_due(&self, now: Time, patience: &Patience) -> Option<Time> {
        let silence_rule = self.silence_rule(now, patience);
        let timeout = silence_rule.timeout;
        let due = |(id, subject): (&NodeId, &Subject)| {
            if subject.connected {
                let ping = subject.watched.then_some(subject.next_ping);
                let doubt = subject.doubted.then_some(now);
                let repeat = subject.reported.map_or(Time::ZERO, |at| at + self.ping_interval);
                let silence = subject.silent_at(timeout + patience.extra_for(now, *id)).map(|silent| {
                    if subject.controls_pinged {
                        repeat.max(silence_rule.reportable_at(silent))
                    } else {
                        silent
                    }
                });
                ping.into_iter().chain(doubt).chain(silence).min()
            } else {
                let dial = subject.dialled.map(|at| at + timeout * 2);
                let unreached = subject.unreached.map(|since| since + self.unreached.max(timeout));
                subject.dial_at.into_iter().chain(dial).chain(unreached).min()
            }
        };
        self.subjects.iter().filter_map(due).min()
    }
}
