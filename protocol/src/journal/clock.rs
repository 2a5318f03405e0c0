//! Time that everybody can sort by: a hybrid logical clock.
//!
//! Wall clocks disagree, jump and stand still; a plain counter says nothing to a person. A hybrid clock (Kulkarni et al., "Logical
//! Physical Clocks", 2014) is the wall clock where that suffices, and counts on where it does not: what a node writes is later than
//! all it wrote or read before, whatever its clock does meanwhile, and never far from what a clock on the wall shows.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Bits below the milliseconds: 65,536 entries in a millisecond before the clock runs ahead of the wall.
const COUNTER_BITS: u32 = 16;

/// How far ahead of the own wall clock a peer's entry may pull this clock. A peer whose clock is off by more still writes, and sorts where
/// it says; but it does not drag everybody along. Guess: longer than any mistake about time zones.
pub const AHEAD_MAX: Duration = Duration::from_secs(24 * 3600);

/// A moment on the hybrid clock: milliseconds since 1970 in the upper 48 bits, a counter below.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct HybridTime(pub u64);

impl HybridTime {
    /// The first moment of this millisecond since 1970. Saturates in the year 10889.
    pub fn from_wall(ms: u64) -> Self {
        Self(ms.min(u64::MAX >> COUNTER_BITS) << COUNTER_BITS)
    }

    /// Milliseconds since 1970, for people to read.
    pub fn wall_ms(self) -> u64 {
        self.0 >> COUNTER_BITS
    }
}

impl fmt::Debug for HybridTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.wall_ms(), self.0 & ((1 << COUNTER_BITS) - 1))
    }
}

/// The clock of one node.
#[derive(Debug)]
pub struct HybridClock(HybridTime);

impl HybridClock {
    /// A clock that goes on after `last`, the latest time on disk.
    pub fn after(last: HybridTime) -> Self {
        Self(last)
    }

    /// The time of a new entry: later than all before.
    pub fn tick(&mut self, wall_ms: u64) -> HybridTime {
        self.0 = HybridTime::from_wall(wall_ms).max(HybridTime(self.0.0.saturating_add(1)));
        self.0
    }

    /// An entry of somebody else was read: what is written from now on is later.
    pub fn observe(&mut self, wall_ms: u64, theirs: HybridTime) {
        let ahead_ms = u64::try_from(AHEAD_MAX.as_millis()).unwrap_or(u64::MAX);
        if theirs <= HybridTime::from_wall(wall_ms.saturating_add(ahead_ms)) {
            self.0 = self.0.max(theirs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_shows_the_wall_and_never_goes_back_with_it() {
        let mut clock = HybridClock::after(HybridTime::default());
        let first = clock.tick(1_000);
        assert_eq!(first.wall_ms(), 1_000);
        let second = clock.tick(1_000);
        assert!(second > first);
        let after_a_jump_back = clock.tick(10);
        assert!(after_a_jump_back > second);
        assert_eq!(after_a_jump_back.wall_ms(), 1_000);
        assert_eq!(clock.tick(2_000).wall_ms(), 2_000);
    }

    #[test]
    fn what_is_written_after_reading_is_later_unless_the_other_clock_is_absurd() {
        let mut clock = HybridClock::after(HybridTime::default());
        let hour_ms = 3_600_000;
        let read = HybridTime::from_wall(hour_ms);
        clock.observe(0, read);
        assert!(clock.tick(0) > read);
        clock.observe(0, HybridTime::from_wall(25 * hour_ms));
        assert_eq!(clock.tick(0).wall_ms(), hour_ms);
    }
}
