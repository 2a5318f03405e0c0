//! [`Time`]: monotonic time since the process started. Callers pass it in; no code of this crate reads a
//! clock.
//!
//! Wall-clock time is an argument, too. It serves for display, and to distinguish a restarted node from its
//! predecessor ([`Incarnation`](crate::Incarnation)). So setting a clock back changes no verdict, and the
//! simulator runs a day in a second.

use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};

/// Time on the process's monotonic clock, in microseconds since the start of the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// Start of the process.
    pub const ZERO: Self = Self(0);

    /// Time at which this duration has passed since the start. Saturates after 584,000 years.
    pub fn from_start(elapsed: Duration) -> Self {
        Self(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
    }

    /// Duration since the start.
    pub fn since_start(self) -> Duration {
        Duration::from_micros(self.0)
    }

    /// Duration since `earlier`; zero if `earlier` is the later one.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Self;
    fn sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}
