//! When entries are dropped, and by which clock.
//!
//! An entry is old by the wall clock, and a wall clock may be wrong by years: a machine that starts before it has asked for the time, a
//! hand that slips. Nothing that was dropped by it would come back when it is set right. So age counts only while that clock has gone along
//! with the monotonic one for a good while; each jump begins that while anew. Size needs no clock: the oldest go first, whatever time it is.

use std::time::Duration;

use hearsay_protocol::{Time, journal::clock::HybridTime};
use hearsay_services::journal::Retention;

use super::store::Bound;

/// Between two looks at what is too much: a fast writer fills a disk by tens of megabytes in that time.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks at what is too old, which looks at every feed. A short age is looked at more often, ten times within it.
const AGE_EVERY: Duration = Duration::from_secs(60);
const LOOKS_PER_AGE: u32 = 10;
/// How long the wall clock must have gone without a jump before it says what is old. Guess: by then whoever sets clocks has set it. For a short
/// age it is shorter, because there is less to lose.
const STEADY: Duration = Duration::from_secs(3600);
const STEADY_PER_AGE: u32 = 24;
/// More than this between two looks is a jump. Less is a clock that is being steered, or a late thread.
const JUMP_MS: u64 = 10_000;
/// Where there is too much, it is dropped until there is so much less, in percent: not a little with each append.
const SLACK_PERCENT: u64 = 5;
/// A pause between two transactions that drop, at least; and at least as long as the first one took, so that appends have half of the time.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// Says what to drop when.
#[derive(Debug)]
pub(super) struct Schedule {
    keep: Retention,
    /// When to look next, and when at the age.
    next: Time,
    next_age: Time,
    /// What the wall clock was ahead of the monotonic one at the last look, and since when it has been about that.
    clocks: Option<(u64, Time)>,
    /// There was too much, and there still is more than there should be.
    shrinking: bool,
}

impl Schedule {
    pub(super) fn new(keep: Retention, now: Time) -> Self {
        Self { keep, next: now, next_age: now, clocks: None, shrinking: false }
    }

    /// When to look.
    pub(super) fn next_due(&self) -> Time {
        self.next
    }

    /// What is over the bounds now, of a database that uses so many bytes.
    pub(super) fn bound(&mut self, now: Time, wall_ms: u64, used_bytes: u64) -> Bound {
        let steady_since = self.steady_since(now, wall_ms);
        let before = self.keep.age.filter(|_| self.next_age <= now).and_then(|age| {
            let steady = STEADY.min(age / STEADY_PER_AGE);
            let cutoff_ms = wall_ms.checked_sub(u64::try_from(age.as_millis()).ok()?)?;
            (now.since(steady_since) >= steady).then_some(HybridTime::from_wall(cutoff_ms))
        });
        let bytes = self.keep.bytes.and_then(|max| {
            let enough = max - max / 100 * SLACK_PERCENT;
            self.shrinking = used_bytes > if self.shrinking { enough } else { max };
            self.shrinking.then_some(enough)
        });
        Bound { before, bytes }
    }

    fn steady_since(&mut self, now: Time, wall_ms: u64) -> Time {
        let ahead = wall_ms.wrapping_sub(u64::try_from(now.since_start().as_millis()).unwrap_or(u64::MAX));
        let since = match self.clocks {
            Some((before, since)) if ahead.abs_diff(before) <= JUMP_MS => since,
            _ => now,
        };
        self.clocks = Some((ahead, since));
        since
    }

    /// A look has ended that took so long. `more`: there is still something to drop.
    pub(super) fn looked(&mut self, now: Time, took: Duration, more: bool) {
        let age_every =
            self.keep.age.map_or(AGE_EVERY, |age| (age / LOOKS_PER_AGE).clamp(LOOK_EVERY, AGE_EVERY));
        let every = if self.keep.bytes.is_some() { LOOK_EVERY } else { age_every };
        self.next = now + if more { took.max(PAUSE_MIN) } else { every };
        if !more && self.next_age <= now {
            self.next_age = now + age_every;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const DAY_MS: u64 = 24 * 3600 * 1000;
    const WALL_MS: u64 = 1_800_000_000_000;

    /// Looks at these minutes of a node's life, with a clock that is so many milliseconds off, and says whether age counted.
    fn counts(schedule: &mut Schedule, minutes: std::ops::Range<u64>, off_ms: u64) -> bool {
        let mut counts = false;
        for minute in minutes {
            let now = Time::from_start(Duration::from_secs(60 * minute));
            let wall_ms = WALL_MS + 60_000 * minute + off_ms;
            let bound = schedule.bound(now, wall_ms, 0);
            counts = bound.before.is_some();
            assert!(bound.before.is_none_or(|before| before.wall_ms() == wall_ms - 30 * DAY_MS));
        }
        counts
    }

    #[test]
    fn age_counts_when_the_clock_has_not_jumped_for_an_hour() {
        let keep = Retention { age: Some(30 * DAY), bytes: None };
        let mut schedule = Schedule::new(keep, Time::ZERO);
        assert!(!counts(&mut schedule, 0..60, 0));
        assert!(counts(&mut schedule, 60..100, 0));
        // A year ahead, and back.
        assert!(!counts(&mut schedule, 100..130, 365 * DAY_MS));
        assert!(!counts(&mut schedule, 130..190, 0));
        assert!(counts(&mut schedule, 190..200, 0));
        // Steered, not set.
        assert!(counts(&mut schedule, 200..201, 400));
    }

    #[test]
    fn a_short_age_counts_soon_and_is_looked_at_often() {
        let keep = Retention { age: Some(Duration::from_secs(60)), bytes: Some(1) };
        let mut schedule = Schedule::new(keep, Time::ZERO);
        assert_eq!(schedule.bound(Time::ZERO, WALL_MS, 0), Bound::default());
        schedule.looked(Time::ZERO, Duration::ZERO, false);
        let mut looks = Vec::new();
        for _ in 0..12 {
            let (now, ms) = (schedule.next_due(), 1000 * looks.len() as u64 + 1000);
            assert_eq!(now.since_start().as_millis(), u128::from(ms));
            let before = schedule.bound(now, WALL_MS + ms, 0).before;
            assert!(before.is_none_or(|before| before.wall_ms() == WALL_MS + ms - 60_000));
            looks.push(before.is_some());
            schedule.looked(now, Duration::ZERO, false);
        }
        let at: Vec<usize> = (1..).zip(&looks).filter(|(_, looked)| **looked).map(|(at, _)| at).collect();
        assert_eq!(at, [6, 12], "in seconds");
    }

    #[test]
    fn while_there_is_more_it_goes_on_soon_and_leaves_as_much_time_as_it_takes() {
        let keep = Retention { age: Some(Duration::from_secs(60)), bytes: None };
        let mut schedule = Schedule::new(keep, Time::ZERO);
        schedule.bound(Time::ZERO, WALL_MS, 0);
        let now = Time::from_start(Duration::from_secs(100));
        assert!(schedule.bound(now, WALL_MS + 100_000, 0).before.is_some());
        let took = Duration::from_millis(30);
        schedule.looked(now, took, true);
        assert_eq!(schedule.next_due(), now + took);
        assert!(schedule.bound(now + took, WALL_MS + 100_030, 0).before.is_some());
    }

    #[test]
    fn what_is_too_much_is_dropped_until_there_is_some_room() {
        let keep = Retention { age: None, bytes: Some(1000) };
        let mut schedule = Schedule::new(keep, Time::ZERO);
        let mut bytes = |used| schedule.bound(Time::ZERO, WALL_MS, used).bytes;
        assert_eq!(
            [bytes(1000), bytes(1001), bytes(960), bytes(950), bytes(960)],
            [None, Some(950), Some(950), None, None]
        );
    }

    #[test]
    fn where_everything_is_kept_nothing_is_over() {
        let mut schedule = Schedule::new(Retention::default(), Time::ZERO);
        let later = Time::from_start(30 * DAY);
        assert_eq!(schedule.bound(later, WALL_MS, u64::MAX), Bound::default());
    }
}
