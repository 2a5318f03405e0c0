//! How far a node can trust its own impatience.
//!
//! A node that is starved of CPU, or whose network retransmits, sees everybody answer late. If it went by fixed timeouts it would accuse
//! the healthy, the accusations would make more work, and the cluster would melt (a prototype did: 1,200 false verdicts at 200
//! nodes). Lifeguard (Dadgar et al., 2018) counts such signs in a small integer; here they are measured in the unit that the
//! timeouts have: the worst lateness lately seen, of this node's own timers and of the answers to its pings. Every timeout is
//! its base plus a multiple of that. In a calm network the sum is the base; at 20 % loss it grows to seconds by itself.
//!
//! One late answer may be the fault of the one that answers: a process that was frozen for five seconds answers after five seconds, and that
//! must not make anybody patient with the others. So of the subjects the *second* worst counts, and each one's own lateness only for
//! itself, and not without bound. For the same reason one oversleeping of this node is none: whoever was stopped and goes on is as healthy
//! as before, and whoever is starved oversleeps again.

use std::{collections::BTreeMap, time::Duration};

use crate::{NodeId, Time};

/// The worst lateness counts half after this long. Guess: longer than the bursts in which machines are late.
const HALF_LIFE: Duration = Duration::from_secs(20);
/// How many times the worst lateness is waited on top of the base. The next one may be worse than any seen.
const FACTOR: u32 = 3;
/// Patience is never stretched beyond this. A node that would have to be is no use as a witness of silence, and its subjects have two more.
const EXTRA_MAX: Duration = Duration::from_secs(8);
/// What a subject's own lateness counts at most, for itself. Covers a starved host; a host that froze is noticed that much later the next time.
const OWN_FAULT_MAX: Duration = Duration::from_millis(500);
/// What an oversleeping counts at most: each time the node also forgives what it missed.
const TIMER_LATE_MAX: Duration = Duration::from_secs(2);
/// What a node that has seen nothing yet expects.
const FIRST_GUESS: Duration = Duration::from_millis(50);
/// Lateness that has faded to this is not worth remembering.
const FORGOTTEN: Duration = Duration::from_millis(1);

/// The worst lateness lately seen, fading.
#[derive(Debug, Clone, Copy)]
struct Worst {
    lateness: Duration,
    at: Time,
}

impl Worst {
    fn observe(&mut self, now: Time, lateness: Duration) {
        if lateness >= self.now(now) {
            *self = Self { lateness: lateness.min(EXTRA_MAX), at: now };
        }
    }

    fn now(self, now: Time) -> Duration {
        let half_lives = now.since(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.lateness.mul_f64((-half_lives).exp2())
    }
}

/// How late things have lately been.
#[derive(Debug)]
pub struct Health {
    /// The worst and the second worst.
    timers: [Worst; 2],
    answers: BTreeMap<NodeId, Worst>,
}

impl Health {
    /// A node that has seen nothing yet expects the network to be a little late.
    pub fn new(now: Time) -> Self {
        Self { timers: [Worst { lateness: FIRST_GUESS, at: now }; 2], answers: BTreeMap::new() }
    }

    /// One of this node's timers ran so late.
    pub fn timer_late(&mut self, now: Time, by: Duration) {
        let by = by.min(TIMER_LATE_MAX);
        let [first, second] = &mut self.timers;
        if by >= first.now(now) {
            *second = *first;
            first.observe(now, by);
        } else {
            second.observe(now, by);
        }
    }

    /// A ping was answered after this long.
    pub fn answered(&mut self, now: Time, subject: NodeId, after: Duration) {
        self.answers.entry(subject).or_insert(Worst { lateness: after, at: now }).observe(now, after);
    }

    /// The worst lateness that is not one subject's alone, faded since it was seen.
    pub fn worst(&self, now: Time) -> Duration {
        let (mut first, mut second) = (Duration::ZERO, Duration::ZERO);
        for lateness in self.answers.values().map(|w| w.now(now)) {
            second = second.max(lateness.min(first));
            first = first.max(lateness);
        }
        self.timers[1].now(now).max(second)
    }

    /// A base timeout, stretched by what this node has lately seen.
    pub fn stretch(&self, now: Time, base: Duration) -> Duration {
        base + (self.worst(now) * FACTOR).min(EXTRA_MAX)
    }

    /// Whether things have lately been so late that silence says nothing at all.
    pub fn is_beyond_patience(&self, now: Time) -> bool {
        self.worst(now) * FACTOR > EXTRA_MAX
    }

    /// What is to be added for one subject that is later than the others.
    pub fn extra(&self, now: Time, subject: NodeId) -> Duration {
        let own = self.answers.get(&subject).map(|w| w.now(now)).unwrap_or_default();
        own.min(OWN_FAULT_MAX).saturating_sub(self.worst(now)) * FACTOR
    }

    /// Drops what has faded.
    pub fn tidy(&mut self, now: Time) {
        self.answers.retain(|_, w| w.now(now) > FORGOTTEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(400);
    const SECOND: Duration = Duration::from_secs(1);

    fn who(n: u8) -> NodeId {
        NodeId::from_public_key([n; 32])
    }

    #[test]
    fn a_late_node_waits_longer_and_recovers() {
        let mut health = Health::new(Time::ZERO);
        let minute = Time::from_start(SECOND * 60);
        assert!(health.stretch(minute, BASE) < BASE + Duration::from_millis(20));
        health.timer_late(minute, SECOND / 5);
        assert!(health.stretch(minute, BASE) < BASE + Duration::from_millis(20), "once is none");
        health.timer_late(minute, SECOND / 5);
        assert_eq!(health.stretch(minute, BASE), BASE + SECOND * 3 / 5);
        health.timer_late(minute, Duration::from_millis(2));
        assert_eq!(
            health.stretch(minute, BASE),
            BASE + SECOND * 3 / 5,
            "a good sample does not hide a bad one"
        );
        assert!(health.stretch(minute + SECOND * 200, BASE) < BASE + Duration::from_millis(10));
    }

    #[test]
    fn one_that_froze_makes_nobody_patient_with_the_others() {
        let mut health = Health::new(Time::ZERO);
        let now = Time::from_start(SECOND * 600);
        health.answered(now, who(1), SECOND * 5);
        health.answered(now, who(2), Duration::from_millis(1));
        assert!(health.stretch(now, BASE) < BASE + Duration::from_millis(10));
        assert!(health.extra(now, who(1)) > SECOND && health.extra(now, who(1)) < SECOND * 2);
        assert_eq!(health.extra(now, who(2)), Duration::ZERO);
        health.answered(now, who(3), SECOND);
        assert_eq!(health.stretch(now, BASE), BASE + SECOND * 3, "two late ones are the network");
    }

    #[test]
    fn patience_has_an_end() {
        let mut health = Health::new(Time::ZERO);
        health.timer_late(Time::ZERO, SECOND * 86_400);
        assert!(health.stretch(Time::ZERO, BASE) <= BASE + TIMER_LATE_MAX * 3);
        (0..9).for_each(|n| health.answered(Time::ZERO, who(n), SECOND * 86_400));
        assert!(health.stretch(Time::ZERO, BASE) <= BASE + EXTRA_MAX);
        assert!(health.is_beyond_patience(Time::ZERO));
        assert!(!health.is_beyond_patience(Time::from_start(SECOND * 60)), "it is not for ever");
    }
}
