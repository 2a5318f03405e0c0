//! [`Schedule`]: when a topic's worker drops entries next, and by which bounds of age and size.
//!
//! Age is measured by the wall clock, which may be wrong by years: before a host has synchronised its clock,
//! or after a typing error. Dropped entries do not come back when the clock is corrected. So age counts only
//! after the wall clock has advanced with the monotonic clock for a period; each jump restarts the period.
//! Size needs no clock.

use std::time::Duration;

use hearsay_protocol::{Time, journal::HybridTime};
use hearsay_services::journal::Retention;

use super::store::retention::Bound;

/// Interval of size checks. A fast writer writes tens of megabytes within one interval.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// Longest interval of age checks, which visit every feed.
const AGE_EVERY: Duration = Duration::from_secs(60);
/// Age checks within the age itself, if the age is short.
const CHECKS_PER_AGE: u32 = 10;
/// How long the wall clock must advance without a jump before entries are dropped by age. A guess: by then
/// NTP has set the clock.
const STEADY: Duration = Duration::from_secs(3600);
/// An age below a day requires only this fraction of itself: a wrong clock then loses less.
const STEADY_PER_AGE: u32 = 24;
/// Change between two checks above which the wall clock has jumped. NTP's slewing or a late thread causes
/// smaller changes.
const JUMP_MS: u64 = 10_000;
/// Hysteresis: dropping by size continues until the size is this many percent below the bound, so that not
/// every append drops a little.
const SLACK_PERCENT: u64 = 5;
/// Shortest pause between two transactions that drop runs. A pause lasts at least as long as the transaction
/// before it, so that appends get half of the time.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// The schedule of one topic.
#[derive(Debug)]
pub(super) struct Schedule {
    keep: Retention,
    /// Time of the next check.
    next: Time,
    /// Time of the next check of age.
    next_age: Time,
    /// At the last check: by how many milliseconds the wall clock was ahead of the monotonic clock, and the
    /// time since which it has not jumped.
    clocks: Option<(u64, Time)>,
    /// Whether dropping by size is under way.
    shrinking: bool,
}

impl Schedule {
    pub(super) fn new(keep: Retention, now: Time) -> Self {
        Self { keep, next: now, next_age: now, clocks: None, shrinking: false }
    }

    /// Returns the time of the next check.
    pub(super) fn next_due(&self) -> Time {
        self.next
    }

    /// Returns the bounds that apply now to a database of this size.
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

    /// Records a check and how long it took. `more`: entries remain to be dropped.
    pub(super) fn record_check(&mut self, now: Time, took: Duration, more: bool) {
        let age_every =
            self.keep.age.map_or(AGE_EVERY, |age| (age / CHECKS_PER_AGE).clamp(CHECK_EVERY, AGE_EVERY));
        let every = if self.keep.bytes.is_some() { CHECK_EVERY } else { age_every };
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

    /// Runs a check at each of these minutes of a node's life, with a wall clock that is wrong by `off_ms`.
    /// Returns whether the last check would drop by age.
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
        // The clock jumps a year ahead, then back.
        assert!(!counts(&mut schedule, 100..130, 365 * DAY_MS));
        assert!(!counts(&mut schedule, 130..190, 0));
        assert!(counts(&mut schedule, 190..200, 0));
        // NTP slews the clock by 0.4 s, which is no jump.
        assert!(counts(&mut schedule, 200..201, 400));
    }

    #[test]
    fn a_short_age_counts_soon_and_is_looked_at_often() {
        let keep = Retention { age: Some(Duration::from_secs(60)), bytes: Some(1) };
        let mut schedule = Schedule::new(keep, Time::ZERO);
        assert_eq!(schedule.bound(Time::ZERO, WALL_MS, 0), Bound::default());
        schedule.record_check(Time::ZERO, Duration::ZERO, false);
        let mut looks = Vec::new();
        for _ in 0..12 {
            let (now, ms) = (schedule.next_due(), 1000 * looks.len() as u64 + 1000);
            assert_eq!(now.since_start().as_millis(), u128::from(ms));
            let before = schedule.bound(now, WALL_MS + ms, 0).before;
            assert!(before.is_none_or(|before| before.wall_ms() == WALL_MS + ms - 60_000));
            looks.push(before.is_some());
            schedule.record_check(now, Duration::ZERO, false);
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
        schedule.record_check(now, took, true);
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
