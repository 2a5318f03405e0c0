//! [`HybridClock`]: hybrid logical clock with epochs, whose [`Moment`]s order the entries of a topic.
//!
//! Wall clocks disagree, jump and stand still, and a plain counter does not show when something happened. A
//! hybrid clock (Kulkarni et al., "Logical Physical Clocks", 2014) shows wall time where that keeps the
//! order, and counts otherwise. The moment of a new entry is later than that of every entry that its writer
//! has received or written.
//!
//! A hybrid clock alone can fail in two ways. If it follows a time far in the future, every later entry
//! carries that time, and at the highest number the clock stops. If it does not follow, an entry is ordered
//! before the entry that it replaces. Epochs solve both. A [`Moment`] is an epoch and a time, compared in
//! that order. A clock that receives a time more than [`AHEAD_MAX`] ahead of its wall clock opens the next
//! epoch, in which it shows its wall time. So moments obey causality even if clocks are wrong, and times
//! remain close to the wall clocks of their writers. While no clock is off by more than [`AHEAD_MAX`], the
//! epoch is 0 and is not sent.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Bits of the counter below the milliseconds. After 65,536 entries in one millisecond the clock runs ahead
/// of the wall clock.
const COUNTER_BITS: u32 = 16;

/// Greatest distance by which a clock follows the times of other writers ahead of its own wall clock. Guess:
/// longer than any mistake about time zones.
pub const AHEAD_MAX: Duration = Duration::from_secs(24 * 3600);

/// First protocol version that reads epochs. Older versions order rows by time alone.
pub const PROTOCOL_WITH_EPOCHS: u16 = 2;

/// Greatest distance by which a replica accepts epochs ahead of its own. A clock opens at most one epoch for
/// an entry, so honest replicas are never this far apart. A writer that lies about epochs needs 2^32 signed
/// runs to exhaust the numbers.
pub(crate) const EPOCHS_AHEAD_MAX: u64 = 1 << 32;

/// A time on the hybrid clock: milliseconds since 1970 in the upper 48 bits, a counter below.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct HybridTime(pub u64);

impl HybridTime {
    /// First time of this millisecond since 1970. Saturates in the year 10889.
    pub fn from_wall(ms: u64) -> Self {
        Self(ms.min(u64::MAX >> COUNTER_BITS) << COUNTER_BITS)
    }

    /// Milliseconds since 1970, for display.
    pub fn wall_ms(self) -> u64 {
        self.0 >> COUNTER_BITS
    }
}

impl fmt::Debug for HybridTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.wall_ms(), self.0 & ((1 << COUNTER_BITS) - 1))
    }
}

/// Position of an entry in the causal order of its topic. Within an epoch, concurrent entries are ordered by
/// wall time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Moment {
    /// Compared first.
    pub epoch: u64,
    /// Compared second.
    pub time: HybridTime,
}

/// The clock of one writer in one topic.
#[derive(Debug)]
pub(crate) struct HybridClock {
    /// Latest moment received or written.
    latest: Moment,
    epochs_opened: u64,
}

impl HybridClock {
    /// Clock that continues after `latest`, the latest moment on disk.
    pub(crate) fn after(latest: Moment) -> Self {
        Self { latest, epochs_opened: 0 }
    }

    /// Moment of a new entry, later than all moments before.
    pub(crate) fn tick(&mut self, wall_ms: u64) -> Moment {
        let wall = HybridTime::from_wall(wall_ms);
        let follow = self.latest.time.0.checked_add(1).map(HybridTime);
        self.latest = match follow.filter(|next| *next <= horizon(wall_ms)) {
            Some(next) => Moment { time: wall.max(next), ..self.latest },
            None => {
                self.epochs_opened += 1;
                Moment { epoch: self.latest.epoch.saturating_add(1), time: wall }
            }
        };
        self.latest
    }

    /// Records the moment of another writer's entry, so that the next moment of this clock is later.
    pub(crate) fn observe(&mut self, theirs: Moment) {
        self.latest = self.latest.max(theirs);
    }

    /// Records the time of an entry in a topic without epochs, where times are for display only. A time too
    /// far ahead is ignored.
    pub(crate) fn observe_time(&mut self, wall_ms: u64, theirs: HybridTime) {
        if theirs <= horizon(wall_ms) {
            self.latest.time = self.latest.time.max(theirs);
        }
    }

    /// Whether entries of this epoch are accepted.
    pub(crate) fn accepts(&self, epoch: u64) -> bool {
        epoch <= self.latest.epoch.saturating_add(EPOCHS_AHEAD_MAX)
    }

    /// The current epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.latest.epoch
    }

    /// Number of epochs opened because a time was too far ahead of this node's wall clock.
    pub(crate) fn epochs_opened(&self) -> u64 {
        self.epochs_opened
    }
}

/// Whether a time is too far ahead of this wall time for a clock to follow it.
pub(crate) fn is_far_ahead(wall_ms: u64, time: HybridTime) -> bool {
    time > horizon(wall_ms)
}

/// Latest time that a clock with this wall time follows.
fn horizon(wall_ms: u64) -> HybridTime {
    let ahead_ms = u64::try_from(AHEAD_MAX.as_millis()).unwrap_or(u64::MAX);
    HybridTime::from_wall(wall_ms.saturating_add(ahead_ms))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR_MS: u64 = 3_600_000;
    const YEAR_MS: u64 = 365 * 24 * HOUR_MS;

    fn new() -> HybridClock {
        HybridClock::after(Moment::default())
    }

    #[test]
    fn it_shows_the_wall_and_does_not_go_back_with_it() {
        let mut clock = new();
        let first = clock.tick(1_000);
        assert_eq!(first, Moment { epoch: 0, time: HybridTime::from_wall(1_000) });
        let second = clock.tick(1_000);
        assert!(second > first);
        let after_a_jump_back = clock.tick(10);
        assert!(after_a_jump_back > second);
        assert_eq!(after_a_jump_back.time.wall_ms(), 1_000);
        assert_eq!(clock.tick(2_000).time.wall_ms(), 2_000);
        assert_eq!(clock.epochs_opened(), 0);
    }

    #[test]
    fn an_entry_is_ordered_after_what_its_writer_has_read_though_its_clock_is_days_behind() {
        let mut behind = new();
        let read = Moment { epoch: 0, time: HybridTime::from_wall(48 * HOUR_MS) };
        behind.observe(read);
        let written = behind.tick(HOUR_MS);
        assert!(written > read, "{written:?} is before {read:?}");
        assert_eq!(written.time.wall_ms(), HOUR_MS, "wall time is for people");
    }

    #[test]
    fn a_time_far_ahead_is_superseded_at_once_and_not_followed() {
        for far in [HybridTime::from_wall(10 * YEAR_MS), HybridTime(u64::MAX - 1), HybridTime(u64::MAX)] {
            let mut clock = HybridClock::after(Moment { epoch: 0, time: far });
            let mut last = Moment { epoch: 0, time: far };
            for _ in 0..100_000 {
                let next = clock.tick(HOUR_MS);
                assert!(next > last, "{next:?} is not after {last:?}");
                last = next;
            }
            assert_eq!(last.epoch, 1, "one epoch serves until the next time far ahead");
            assert!(last.time.wall_ms() <= HOUR_MS + 2);
        }
    }

    #[test]
    fn a_clock_at_the_highest_time_does_not_stop() {
        let mut clock = new();
        let mut last = Moment::default();
        for _ in 0..200_000 {
            let next = clock.tick(u64::MAX);
            assert!(next > last);
            last = next;
        }
    }

    #[test]
    fn where_no_epochs_are_carried_a_time_far_ahead_is_left_alone() {
        let mut clock = new();
        clock.observe_time(0, HybridTime::from_wall(HOUR_MS));
        assert_eq!(clock.tick(0).time.wall_ms(), HOUR_MS);
        clock.observe_time(0, HybridTime::from_wall(25 * HOUR_MS));
        assert_eq!(clock.tick(0).time.wall_ms(), HOUR_MS);
    }

    #[test]
    fn an_epoch_that_no_honest_writer_can_have_reached_is_not_accepted() {
        let clock = HybridClock::after(Moment { epoch: 3, time: HybridTime::default() });
        assert!(clock.accepts(0) && clock.accepts(3 + EPOCHS_AHEAD_MAX));
        assert!(!clock.accepts(4 + EPOCHS_AHEAD_MAX) && !clock.accepts(u64::MAX));
    }

    proptest! {
        /// Every new moment is later than all moments before it, for all wall clocks and all received
        /// moments.
        #[test]
        fn every_moment_is_after_all_that_was_seen(steps in prop::collection::vec((any::<bool>(), any::<u64>(), 0u64..5), 1..200)) {
            let mut clock = new();
            let mut latest = Moment::default();
            for (is_own, number, epoch) in steps {
                if is_own {
                    let next = clock.tick(number >> COUNTER_BITS);
                    prop_assert!(next > latest);
                    latest = next;
                } else {
                    let theirs = Moment { epoch, time: HybridTime(number) };
                    clock.observe(theirs);
                    latest = latest.max(theirs);
                }
            }
        }
    }
}
