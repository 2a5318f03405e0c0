//! Time as an argument.
//!
//! Nothing in this crate reads a clock. The caller says what time it is, on a clock that starts at zero with the process and
//! never goes backwards; wall-clock time appears only where a person reads it or a restart must be told from its predecessor
//! ([`Incarnation`](crate::Incarnation)), and is handed in like everything else. So a clock that is set an hour back changes
//! no verdict, and the simulator can run a day in a second.

use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};

/// A moment on the process's own monotonic clock, in microseconds since the process began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// The start of the process.
    pub const ZERO: Self = Self(0);

    /// The moment this long after the start. Saturates after 584,000 years.
    pub fn from_start(elapsed: Duration) -> Self {
        Self(u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX))
    }

    /// How long after the start this is.
    pub fn since_start(self) -> Duration {
        Duration::from_micros(self.0)
    }

    /// How long ago `earlier` was; zero if it lies in the future.
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
