//! [`Patience`]: the time by which this node extends its timeouts while its own timers or answers to it are
//! late.
//!
//! A node that is short of CPU, or whose network retransmits, receives every answer late. With fixed timeouts
//! it would accuse healthy members, the accusations would cause more work, and the cluster would collapse. A
//! prototype did: 1,200 false verdicts at 200 nodes. Lifeguard (Dadgar et al., 2018) counts such signs in a
//! small integer, the local health multiplier. Here they are a duration: the worst recent lateness of this
//! node's timers and of answers to its pings. Each timeout is its base plus a multiple of this duration. In a
//! calm network the extra time is negligible; at 20 % packet loss it grows to seconds.
//!
//! A single late answer may be the fault of its sender: a process that was frozen for five seconds answers
//! after five seconds. So the *second* worst subject counts for all subjects. Each subject's own lateness
//! extends only its own timeout, within a bound. Likewise a single late timer does not count. A process that
//! was suspended once is healthy afterwards; a process that is short of CPU is late again.

use std::{collections::BTreeMap, time::Duration};

use crate::{NodeId, Time};

/// Time after which a lateness counts half. Guess: longer than the periods in which machines are typically
/// late.
const HALF_LIFE: Duration = Duration::from_secs(20);
/// The worst lateness is multiplied by this, because the next lateness may be worse than any seen.
const FACTOR: u32 = 3;
/// Bound of the added time. A node that needs more cannot judge silence, and its subjects have two other
/// watchers.
const EXTRA_MAX: Duration = Duration::from_secs(8);
/// Bound of a subject's own lateness, which extends only its own timeouts. It suffices for a host that is
/// short of CPU. If a host froze once, its next freeze is detected later by up to a multiple of this.
const SUBJECT_LATENESS_MAX: Duration = Duration::from_millis(500);
/// Bound of one late timer. After such a delay the node also restarts its running timeouts.
const TIMER_LATE_MAX: Duration = Duration::from_secs(2);
/// Lateness that a new node assumes.
const FIRST_GUESS: Duration = Duration::from_millis(50);
/// Lateness below this is dropped.
const LATENESS_MIN: Duration = Duration::from_millis(1);

/// The worst recent lateness, which decays exponentially.
#[derive(Debug, Clone, Copy)]
struct DecayingMax {
    lateness: Duration,
    at: Time,
}

impl DecayingMax {
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

/// Recent lateness of this node's timers and of each subject's answers.
#[derive(Debug)]
pub(crate) struct Patience {
    /// The worst and the second worst lateness.
    timers: [DecayingMax; 2],
    answers: BTreeMap<NodeId, DecayingMax>,
}

impl Patience {
    /// Patience of a new node, which assumes [`FIRST_GUESS`].
    pub(crate) fn new(now: Time) -> Self {
        Self { timers: [DecayingMax { lateness: FIRST_GUESS, at: now }; 2], answers: BTreeMap::new() }
    }

    /// Records that one of this node's timers ran late.
    pub(crate) fn record_late_timer(&mut self, now: Time, by: Duration) {
        let by = by.min(TIMER_LATE_MAX);
        let [first, second] = &mut self.timers;
        if by >= first.now(now) {
            *second = *first;
            first.observe(now, by);
        } else {
            second.observe(now, by);
        }
    }

    /// Records the round trip of a ping.
    pub(crate) fn record_answer(&mut self, now: Time, subject: NodeId, after: Duration) {
        self.answers.entry(subject).or_insert(DecayingMax { lateness: after, at: now }).observe(now, after);
    }

    /// The worst recent lateness that more than one subject shows, decayed until now.
    pub(crate) fn worst(&self, now: Time) -> Duration {
        let (mut first, mut second) = (Duration::ZERO, Duration::ZERO);
        for lateness in self.answers.values().map(|w| w.now(now)) {
            second = second.max(lateness.min(first));
            first = first.max(lateness);
        }
        self.timers[1].now(now).max(second)
    }

    /// A base timeout, extended by the recent lateness.
    pub(crate) fn stretch(&self, now: Time, base: Duration) -> Duration {
        base + (self.worst(now) * FACTOR).min(EXTRA_MAX)
    }

    /// Whether the recent lateness is so large that silence proves nothing.
    pub(crate) fn is_exhausted(&self, now: Time) -> bool {
        self.worst(now) * FACTOR > EXTRA_MAX
    }

    /// Time to add for one subject that is later than the others.
    pub(crate) fn extra_for(&self, now: Time, subject: NodeId) -> Duration {
        let own = self.answers.get(&subject).map(|w| w.now(now)).unwrap_or_default();
        own.min(SUBJECT_LATENESS_MAX).saturating_sub(self.worst(now)) * FACTOR
    }

    /// Drops subjects whose lateness has decayed.
    pub(crate) fn prune(&mut self, now: Time) {
        self.answers.retain(|_, w| w.now(now) > LATENESS_MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(400);
    const SECOND: Duration = Duration::from_secs(1);

    fn id(n: u8) -> NodeId {
        NodeId::from_public_key([n; 32])
    }

    #[test]
    fn a_late_node_waits_longer_and_recovers() {
        let mut patience = Patience::new(Time::ZERO);
        let minute = Time::from_start(SECOND * 60);
        assert!(patience.stretch(minute, BASE) < BASE + Duration::from_millis(20));
        patience.record_late_timer(minute, SECOND / 5);
        assert!(patience.stretch(minute, BASE) < BASE + Duration::from_millis(20), "once is none");
        patience.record_late_timer(minute, SECOND / 5);
        assert_eq!(patience.stretch(minute, BASE), BASE + SECOND * 3 / 5);
        patience.record_late_timer(minute, Duration::from_millis(2));
        assert_eq!(
            patience.stretch(minute, BASE),
            BASE + SECOND * 3 / 5,
            "a good sample does not hide a bad one"
        );
        assert!(patience.stretch(minute + SECOND * 200, BASE) < BASE + Duration::from_millis(10));
    }

    #[test]
    fn one_that_froze_makes_nobody_patient_with_the_others() {
        let mut patience = Patience::new(Time::ZERO);
        let now = Time::from_start(SECOND * 600);
        patience.record_answer(now, id(1), SECOND * 5);
        patience.record_answer(now, id(2), Duration::from_millis(1));
        assert!(patience.stretch(now, BASE) < BASE + Duration::from_millis(10));
        assert!(patience.extra_for(now, id(1)) > SECOND && patience.extra_for(now, id(1)) < SECOND * 2);
        assert_eq!(patience.extra_for(now, id(2)), Duration::ZERO);
        patience.record_answer(now, id(3), SECOND);
        assert_eq!(patience.stretch(now, BASE), BASE + SECOND * 3, "two late ones are the network");
    }

    #[test]
    fn patience_has_an_end() {
        let mut patience = Patience::new(Time::ZERO);
        patience.record_late_timer(Time::ZERO, SECOND * 86_400);
        assert!(patience.stretch(Time::ZERO, BASE) <= BASE + TIMER_LATE_MAX * 3);
        (0..9).for_each(|n| patience.record_answer(Time::ZERO, id(n), SECOND * 86_400));
        assert!(patience.stretch(Time::ZERO, BASE) <= BASE + EXTRA_MAX);
        assert!(patience.is_exhausted(Time::ZERO));
        assert!(!patience.is_exhausted(Time::from_start(SECOND * 60)), "it is not for ever");
    }
}
