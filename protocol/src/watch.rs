//! What this node itself sees of others: pings over the connections to those it watches, and probes where there is doubt.
//!
//! A closed connection is not a death, and neither is a late answer. So a lost connection is followed by a dial at once: *refused* is
//! strong evidence, *authenticated* is life, *no answer* is weak. A ping that stays unanswered is weak. On hearing
//! somebody else's accusation the watchers look for themselves instead of repeating it.
//!
//! Before it accuses anybody of silence, a node pings others: if they do not answer either, it is more likely this node that cannot be
//! heard, or a machine that is busy with something else. In a calm network that takes a round trip, and a burst of work that delays
//! everything delays the question as well.
//!
//! The same thing is not said twice: after a report about one header only a stronger one follows; and once the subject has refuted, an
//! observer that still cannot reach it keeps quiet for a minute ([`HOLD`]), because then the fault is between the two of them. Where other members have
//! been lost since, it need not be, and the observer speaks again.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, collections::BTreeSet, time::Duration};

use crate::{Incarnation, NodeId, Time, Version, config::Config, health::Health, liveness::Strength};

/// How long an observer is silent about a subject that refuted it and that it still cannot reach. LAB: at most one change per pair and
/// minute when a partition is one-way.
const HOLD: Duration = Duration::from_secs(60);
/// The least time between two reports about one subject, however often it is lost and found.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);
/// Neighbours that do not watch the lost one give its watchers this long to settle the case, then look for themselves.
const BYSTANDER_DELAY: Duration = Duration::from_millis(60);
/// How many others are asked before an accusation.
const CONTROLS: usize = 2;
/// How many timeouts longer silence is borne while none of them answers.
const CONTROL_PATIENCE: u32 = 2;
/// If this node was itself asleep for this long, unanswered pings say nothing.
pub const OVERSLEPT: Duration = Duration::from_millis(200);

/// What the core has to do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    /// Send a ping over the connection.
    Ping(NodeId),
    /// Dial it now; the outcome is evidence.
    Dial(NodeId),
    /// Tell the others.
    Report(NodeId, Strength),
}

#[derive(Debug)]
struct Subject {
    /// This node is one of its watchers.
    watched: bool,
    connected: bool,
    /// When the next ping is due. Only while watched and connected.
    next_ping: Time,
    /// When the unanswered ping was sent.
    unanswered: Option<Time>,
    /// That ping only serves to find out whether this node is heard: nobody asked about the subject.
    as_control: bool,
    /// Others were asked, because that ping stayed unanswered for too long.
    checked: bool,
    /// Ping it now, watched or not: somebody says that it is not there.
    doubted: bool,
    /// When its silence was last reported; repeated every ping interval, because the header to which the report referred may be
    /// superseded. [`Watch::may_say`] keeps the same thing from being said twice.
    reported: Option<Time>,
    /// A dial to make, for evidence.
    dial_at: Option<Time>,
    /// A dial that was made for evidence and has no outcome yet.
    dialled: Option<Time>,
    /// Since when there is no connection, while watched.
    unreached: Option<Time>,
    /// The last proof of life.
    heard: Time,
    said: Option<Said>,
    /// A verdict was reached since it was last heard of.
    convicted: bool,
}

#[derive(Debug, Clone, Copy)]
struct Said {
    at: Time,
    incarnation: Incarnation,
    version: Version,
    strength: Strength,
}

impl Subject {
    fn ping(&mut self, now: Time) {
        self.unanswered = Some(now);
        self.as_control = false;
        self.checked = false;
    }

    /// Whether there is anything to remember of it. Strangers come and go, and each would be looked at with every input.
    fn matters(&self) -> bool {
        self.watched
            || self.connected
            || self.dial_at.is_some()
            || self.dialled.is_some()
            || self.said.is_some()
    }

    /// When its silence begins to mean something, if it is silent.
    fn silent_at(&self, patience: Duration) -> Option<Time> {
        self.unanswered.filter(|_| !self.as_control).map(|sent| sent + patience)
    }
}

/// What decides whether silence is believed.
#[derive(Debug, Clone, Copy)]
struct Belief {
    patience: Duration,
    /// When the latest of all pings that were answered had been sent.
    proof: Time,
    /// Nobody else could be asked.
    alone: bool,
}

impl Belief {
    /// When somebody who has been silent since then may be accused, as far as is known.
    fn accusable_at(self, silent: Time) -> Time {
        if self.alone || self.proof >= silent { silent } else { silent + self.patience * CONTROL_PATIENCE }
    }
}

/// This node's own observations.
#[derive(Debug)]
pub struct Watch {
    subjects: BTreeMap<NodeId, Subject>,
    ping_interval: Duration,
    ping_timeout: Duration,
    unreached: Duration,
    /// When the latest of all pings that were answered had been sent.
    proof: Time,
    rng: fastrand::Rng,
}

impl Watch {
    /// Watches nobody yet.
    pub fn new(config: &Config, seed: u64) -> Self {
        Self {
            subjects: BTreeMap::new(),
            ping_interval: config.ping_interval,
            ping_timeout: config.ping_timeout,
            unreached: config.unreached,
            proof: Time::ZERO,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    fn subject(&mut self, now: Time, id: NodeId) -> &mut Subject {
        self.subjects.entry(id).or_insert_with(|| Subject {
            watched: false,
            connected: false,
            next_ping: now,
            unanswered: None,
            as_control: false,
            checked: false,
            doubted: false,
            reported: None,
            dial_at: None,
            dialled: None,
            unreached: None,
            heard: Time::ZERO,
            said: None,
            convicted: false,
        })
    }

    /// Says whom this node watches from now on. `doubted` says who is under accusation, so that a new watcher looks at once.
    pub fn set_watched(&mut self, now: Time, watched: &BTreeSet<NodeId>, doubted: impl Fn(NodeId) -> bool) {
        for (id, subject) in &mut self.subjects {
            if subject.watched && !watched.contains(id) {
                subject.watched = false;
                subject.unreached = None;
            }
        }
        for id in watched {
            let phase = self.ping_interval.mul_f64(self.rng.f64());
            let subject = self.subject(now, *id);
            if !subject.watched {
                subject.watched = true;
                // Watchers that start together must not ping together: the earliest of them notices a freeze.
                subject.next_ping = now + phase;
                subject.unreached = (!subject.connected).then_some(now);
                if doubted(*id) {
                    self.probe(now, *id);
                }
            }
        }
        self.subjects.retain(|_, subject| subject.matters());
    }

    /// An authenticated connection: proof of life.
    pub fn connected(&mut self, now: Time, id: NodeId) {
        let phase = self.ping_interval.mul_f64(self.rng.f64());
        let subject = self.subject(now, id);
        subject.connected = true;
        subject.heard = now;
        subject.next_ping = now + phase;
        subject.unanswered = None;
        subject.reported = None;
        subject.dial_at = None;
        subject.dialled = None;
        subject.unreached = None;
        subject.convicted = false;
    }

    /// The connection closed. `neighbour`: it was one that both sides want, so its end means something.
    pub fn disconnected(&mut self, now: Time, id: NodeId, neighbour: bool) {
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
        if !subject.matters() {
            self.subjects.remove(&id);
        }
    }

    /// Looks whether it is there, because somebody says that it is not.
    pub fn probe(&mut self, now: Time, id: NodeId) {
        let timeout = self.ping_timeout;
        let subject = self.subject(now, id);
        if subject.connected {
            // A control that did not answer was not accused for that. Now it is the one in doubt: from its next ping on, unless the answer to
            // this one may still come.
            if subject.as_control && subject.unanswered.is_some_and(|sent| sent + timeout <= now) {
                subject.unanswered = None;
            }
            subject.as_control = false;
            subject.doubted = subject.unanswered.is_none();
        } else if subject.dialled.is_none() && subject.dial_at.is_none() {
            subject.dial_at = Some(now);
        }
    }

    /// A verdict was reached, or it left: nothing more to find out.
    pub fn settled(&mut self, id: NodeId) {
        if let Some(subject) = self.subjects.get_mut(&id) {
            subject.dial_at = None;
            subject.dialled = None;
            subject.convicted = true;
        }
    }

    /// It is remembered no longer.
    pub fn forget(&mut self, id: NodeId) {
        self.subjects.remove(&id);
    }

    /// A ping was answered. Returns how long this node waited for it, as far as that tells anything about the network: not what it overslept
    /// itself, and not while all agreed that the subject was gone, for then it is the subject that was late.
    pub fn pong(&mut self, now: Time, id: NodeId) -> Option<Duration> {
        let subject = self.subjects.get_mut(&id)?;
        subject.heard = now;
        subject.reported = None;
        let sent = subject.unanswered.take();
        self.proof = self.proof.max(sent.unwrap_or(Time::ZERO));
        let convicted = std::mem::take(&mut subject.convicted);
        sent.filter(|_| !convicted).map(|sent| now.since(sent))
    }

    /// A dial came to nothing. Whoever dialled it and why: the outcome is evidence all the same.
    pub fn dial_failed(&mut self, id: NodeId, refused: bool) -> Option<Act> {
        let subject = self.subjects.get_mut(&id)?;
        let asked = subject.dialled.take().is_some() || subject.watched;
        if subject.connected || !asked {
            return None;
        }
        Some(Act::Report(id, if refused { Strength::Strong } else { Strength::Weak }))
    }

    /// This node overslept: what it has not heard meanwhile says nothing about the others.
    pub fn forgive(&mut self, now: Time) {
        for subject in self.subjects.values_mut() {
            if let Some(sent) = &mut subject.unanswered {
                *sent = now;
                subject.checked = false;
            }
            if let Some(dialled) = &mut subject.dialled {
                *dialled = now;
            }
            if let Some(since) = &mut subject.unreached {
                *since = now;
            }
        }
    }

    /// Whether a report should go out, and if so notes that it did. `lost_since` says whether another member was lost since then, and still is.
    pub fn may_say(
        &mut self,
        now: Time,
        id: NodeId,
        incarnation: Incarnation,
        version: Version,
        strength: Strength,
        lost_since: impl FnOnce(Time) -> bool,
    ) -> bool {
        let subject = self.subject(now, id);
        if let Some(said) = subject.said {
            if (said.incarnation, said.version) >= (incarnation, version) {
                if said.strength >= strength {
                    return false;
                }
            } else if said.incarnation == incarnation {
                if now < said.at + REPORT_INTERVAL {
                    return false;
                }
                // It refuted. Whoever has heard of it directly since then speaks of a new silence.
                let is_new = said.at < subject.heard || strength == Strength::Strong;
                if !is_new && now < said.at + HOLD && !lost_since(said.at) {
                    return false;
                }
            }
        }
        subject.said = Some(Said { at: now, incarnation, version, strength });
        true
    }

    /// What is due now.
    pub fn due(&mut self, now: Time, health: &Health) -> Vec<Act> {
        let mut acts = Vec::new();
        let (belief, interval) = (self.belief(now, health), self.ping_interval);
        let patience = belief.patience;
        let mut in_doubt = false;
        for (id, s) in &mut self.subjects {
            if s.connected {
                let ping_due = s.watched && s.next_ping <= now;
                if ping_due || s.doubted {
                    s.as_control = false;
                    // One that stays unanswered is repeated: it may have been lost with one of two connections. What counts is the first.
                    if ping_due || s.unanswered.is_none() {
                        acts.push(Act::Ping(*id));
                    }
                    if s.unanswered.is_none() {
                        s.ping(now);
                    }
                }
                s.doubted = false;
                if ping_due {
                    s.next_ping = now + interval;
                }
                if let Some(silent) = s.silent_at(patience + health.extra(now, *id))
                    && silent <= now
                {
                    in_doubt |= !std::mem::replace(&mut s.checked, true);
                    if belief.accusable_at(silent) <= now && s.reported.is_none_or(|at| at + interval <= now)
                    {
                        s.reported = Some(now);
                        acts.push(Act::Report(*id, Strength::Weak));
                    }
                }
                continue;
            }
            if s.dial_at.is_some_and(|at| at <= now) {
                s.dial_at = None;
                s.dialled = Some(now);
                acts.push(Act::Dial(*id));
            }
            // A handshake takes several round trips where a ping takes one.
            if s.dialled.is_some_and(|at| at + patience * 2 <= now) {
                s.dialled = None;
                acts.push(Act::Report(*id, Strength::Weak));
            }
            if s.unreached.is_some_and(|since| since + self.unreached.max(patience) <= now) {
                s.unreached = Some(now);
                acts.push(Act::Report(*id, Strength::Weak));
            }
        }
        if in_doubt {
            acts.extend(self.ask_others(now));
        }
        acts
    }

    /// Pings those of whom it heard last.
    fn ask_others(&mut self, now: Time) -> Vec<Act> {
        let mut others: Vec<(Time, NodeId)> = self
            .subjects
            .iter()
            .filter(|(_, s)| s.connected && s.unanswered.is_none())
            .map(|(id, s)| (s.heard, *id))
            .collect();
        others.sort_unstable_by(|a, b| b.cmp(a));
        others.truncate(CONTROLS);
        for (_, id) in &others {
            if let Some(s) = self.subjects.get_mut(id) {
                s.ping(now);
                s.as_control = !s.watched;
            }
        }
        others.into_iter().map(|(_, id)| Act::Ping(id)).collect()
    }

    fn belief(&self, now: Time, health: &Health) -> Belief {
        Belief {
            patience: health.stretch(now, self.ping_timeout),
            proof: self.proof,
            alone: self.subjects.values().filter(|s| s.connected).count() < 2,
        }
    }

    /// When something will be due. Never in the past of `now`.
    pub fn next_due(&self, now: Time, health: &Health) -> Option<Time> {
        let belief = self.belief(now, health);
        let patience = belief.patience;
        let due = |(id, s): (&NodeId, &Subject)| {
            if s.connected {
                let ping = s.watched.then_some(s.next_ping);
                let doubt = s.doubted.then_some(now);
                let repeat = s.reported.map_or(Time::ZERO, |at| at + self.ping_interval);
                let silence = s
                    .silent_at(patience + health.extra(now, *id))
                    .map(|silent| if s.checked { repeat.max(belief.accusable_at(silent)) } else { silent });
                ping.into_iter().chain(doubt).chain(silence).min()
            } else {
                let dial = s.dialled.map(|at| at + patience * 2);
                let unreached = s.unreached.map(|since| since + self.unreached.max(patience));
                s.dial_at.into_iter().chain(dial).chain(unreached).min()
            }
        };
        self.subjects.iter().filter_map(due).min()
    }
}
