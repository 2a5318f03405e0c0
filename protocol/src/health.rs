//! How far a node can trust its own impatience.
//!
//! A node that is starved of CPU, or whose network retransmits, sees everybody answer late. If it went by fixed timeouts it would accuse
//! the healthy, the accusations would make more work, and the cluster would melt (a prototype did: 1,200 false verdicts at 200
//! nodes). Lifeguard (Dadgar et al., 2018) counts such signs in a small integer; here they are measured in the unit that the
//! timeouts have: the worst lateness lately seen, of this node's own timers and of the answers to its pings. Every timeout is
//! its base plus a multiple of that. In a calm network the sum is the base; at 20 % loss it grows to seconds by itself.

use std::time::Duration;

use crate::Time;

/// The worst lateness counts half after this long. Guess: longer than the bursts in which machines are late.
const HALF_LIFE: Duration = Duration::from_secs(20);
/// How many times the worst lateness is waited on top of the base. The next one may be worse than any seen.
const FACTOR: u32 = 3;
/// Patience is never stretched beyond this: a node this slow is no use as a witness, and its subjects have two more.
const EXTRA_MAX: Duration = Duration::from_secs(8);

/// The worst lateness lately seen, fading.
#[derive(Debug)]
pub struct Health {
    worst: Duration,
    at: Time,
}

impl Health {
    /// A node that has seen nothing yet expects the network to be a little late.
    pub fn new(now: Time) -> Self {
        Self { worst: Duration::from_millis(50), at: now }
    }

    /// Something took this long that should have taken no time: a round trip, or a timer's delay.
    pub fn observe(&mut self, now: Time, lateness: Duration) {
        if lateness >= self.worst(now) {
            self.worst = lateness.min(EXTRA_MAX);
            self.at = now;
        }
    }

    /// The worst lateness, faded since it was seen.
    pub fn worst(&self, now: Time) -> Duration {
        let half_lives = now.since(self.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.worst.mul_f64((-half_lives).exp2())
    }

    /// A base timeout, stretched by what this node has lately seen.
    pub fn stretch(&self, now: Time, base: Duration) -> Duration {
        base + (self.worst(now) * FACTOR).min(EXTRA_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(400);

    #[test]
    fn a_late_node_waits_longer_and_recovers() {
        let mut health = Health::new(Time::ZERO);
        let minute = Time::from_start(Duration::from_secs(60));
        assert!(health.stretch(minute, BASE) < BASE + Duration::from_millis(20));
        health.observe(minute, Duration::from_secs(1));
        assert_eq!(health.stretch(minute, BASE), BASE + Duration::from_secs(3));
        health.observe(minute, Duration::from_millis(2));
        assert_eq!(
            health.stretch(minute, BASE),
            BASE + Duration::from_secs(3),
            "a good sample does not hide a bad one"
        );
        assert!(health.stretch(minute + Duration::from_secs(200), BASE) < BASE + Duration::from_millis(10));
    }

    #[test]
    fn patience_has_an_end() {
        let mut health = Health::new(Time::ZERO);
        health.observe(Time::ZERO, Duration::from_secs(86_400));
        assert!(health.stretch(Time::ZERO, BASE) <= BASE + EXTRA_MAX);
    }
}
