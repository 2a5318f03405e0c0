//! [`Outlier`]: outlier ejection as in Envoy, by which an endpoint that fails repeatedly gets no requests for
//! a while.
//!
//! All threads write the values that every request reads, so these are independent atomics.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Weighted failures in a row that cause an ejection; Envoy's default of `consecutive_5xx`.
const FAILURES_MAX: u32 = 5;
/// Weight of a 5xx response.
pub(crate) const BAD_RESPONSE: u32 = 1;
/// Weight of a refused, broken or silent connection: three cause an ejection.
pub(crate) const BROKEN: u32 = 2;
/// Length of the first ejection. Each further one is twice as long.
const EJECTION: Duration = Duration::from_secs(1);
/// Longest ejection. By then a health check, or the node's failure, should have removed the instance.
const EJECTION_MAX: Duration = Duration::from_secs(60);
/// After this time without an ejection the next one starts from [`EJECTION`] again.
const FORGIVEN: Duration = Duration::from_secs(60);

/// Failures and ejections of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Outlier {
    failures: AtomicU32,
    ejection: Mutex<Ejection>,
    /// End of the ejection in milliseconds since the gateway's start; 0 for none. Read without the lock.
    ejected_until_ms: AtomicU64,
}

#[derive(Clone, Copy, Default, Debug)]
struct Ejection {
    count: u32,
    until_ms: u64,
}

impl Outlier {
    /// Resets the failures after a good response.
    pub(crate) fn clear_failures(&self) {
        // Reading first avoids a write to memory that all threads share.
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
    }

    /// Adds a failure. Returns whether the endpoint should be ejected with [`Self::eject`].
    #[must_use]
    pub(crate) fn record_failure(&self, weight: u32, now_ms: u64) -> bool {
        let before = self.failures.fetch_add(weight, Relaxed);
        before.saturating_add(weight) >= FAILURES_MAX && !self.is_ejected(now_ms)
    }

    /// Ejects the endpoint and returns for how long. After the ejection, one failure causes the next.
    pub(crate) fn eject(&self, now_ms: u64) -> Duration {
        let mut ejection = self.ejection.lock().unwrap_or_else(PoisonError::into_inner);
        if ejection.until_ms > now_ms {
            return Duration::from_millis(ejection.until_ms - now_ms);
        }
        if Duration::from_millis(now_ms - ejection.until_ms) > FORGIVEN {
            ejection.count = 0;
        }
        let length = EJECTION.saturating_mul(1 << ejection.count.min(16)).min(EJECTION_MAX);
        // Jitter: endpoints that were ejected together return at different times.
        let length = length.mul_f32(0.9 + 0.2 * fastrand::f32());
        ejection.count += 1;
        ejection.until_ms = now_ms + u64::try_from(length.as_millis()).unwrap_or(0).max(1);
        self.ejected_until_ms.store(ejection.until_ms, Relaxed);
        self.failures.store(FAILURES_MAX - 1, Relaxed);
        length
    }

    /// Whether the endpoint is ejected.
    pub(crate) fn is_ejected(&self, now_ms: u64) -> bool {
        self.ejected_until_ms.load(Relaxed) > now_ms
    }

    /// Returns the time until the ejection ends; zero for none.
    pub(crate) fn ejected_for(&self, now_ms: u64) -> Duration {
        Duration::from_millis(self.ejected_until_ms.load(Relaxed).saturating_sub(now_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_broken_connections_or_five_bad_responses_cause_an_ejection() {
        let broken = Outlier::default();
        assert_eq!([1, 2, 3].map(|ms| broken.record_failure(BROKEN, ms)), [false, false, true]);
        let bad = Outlier::default();
        let due: Vec<_> = (0..5).map(|ms| bad.record_failure(BAD_RESPONSE, ms)).collect();
        assert_eq!(due, [false, false, false, false, true]);
        let cleared = Outlier::default();
        assert!((0..4).all(|ms| !cleared.record_failure(BAD_RESPONSE, ms)));
        cleared.clear_failures();
        assert!(!cleared.record_failure(BAD_RESPONSE, 9));
    }

    #[test]
    fn an_ejection_ends_and_the_next_one_is_longer_and_comes_sooner() {
        let outlier = Outlier::default();
        let first = outlier.eject(1_000);
        assert!(outlier.is_ejected(1_001) && !outlier.is_ejected(1_000 + 1_101));
        assert!((0.9..=1.1).contains(&first.as_secs_f32()), "{first:?}");
        assert!(outlier.record_failure(BROKEN, 2_200), "one failure is enough after an ejection");
        let second = outlier.eject(2_200);
        assert!((1.8..=2.2).contains(&second.as_secs_f32()), "{second:?}");
        assert!(!outlier.record_failure(BROKEN, 2_300), "it is ejected already");
        let mut now = 2_200;
        for _ in 0..20 {
            now += u64::try_from(outlier.eject(now).as_millis()).unwrap() + 1;
        }
        let longest = outlier.eject(now);
        assert!((54.0..=66.0).contains(&longest.as_secs_f32()), "{longest:?}");
        let later = now + 66_000 + 61_000;
        assert!(outlier.eject(later) < Duration::from_secs(2), "the count restarts after a good minute");
    }
}
