//! How many retries there may be. Where everything fails, every request would be repeated, and the load on what is left would be a
//! multiple of the clients' (a retry storm). So retries are paid for: each request pays in a fifth of one, time pays in a few, and
//! what has gathered is bounded. After Finagle's `RetryBudget`.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

/// One retry, in the unit that is counted.
const RETRY: i64 = 1000;
/// What each request pays in: with 200, at most 20 % of the requests are repeated.
const PER_REQUEST: i64 = 200;
/// What each millisecond pays in: ten retries a second, so that a gateway with few requests can retry at all.
const PER_MS: u64 = 10;
/// What can gather, and is there at the start: enough for all requests in flight on one instance that dies.
const GATHERED_MAX: i64 = 256 * RETRY;

/// The budget, shared by all threads.
#[derive(Debug)]
pub struct Budget {
    tokens: AtomicI64,
    /// When time last paid in, in milliseconds since the start.
    paid_ms: AtomicU64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { tokens: AtomicI64::new(GATHERED_MAX), paid_ms: AtomicU64::new(0) }
    }
}

impl Budget {
    /// A request came.
    pub fn pay_in(&self) {
        // Looking first keeps the line of memory shared between threads while the budget is full, as it nearly always is.
        if self.tokens.load(Relaxed) < GATHERED_MAX {
            self.add(PER_REQUEST);
        }
    }

    /// Whether a request may be repeated now; that is paid then.
    pub fn withdraw(&self, now_ms: u64) -> bool {
        let since = now_ms.saturating_sub(self.paid_ms.fetch_max(now_ms, Relaxed));
        self.add(i64::try_from(since.saturating_mul(PER_MS)).unwrap_or(GATHERED_MAX).min(GATHERED_MAX));
        self.tokens.fetch_update(Relaxed, Relaxed, |tokens| (tokens >= RETRY).then(|| tokens - RETRY)).is_ok()
    }

    fn add(&self, amount: i64) {
        // Always `Some`, so never an error.
        let _ = self
            .tokens
            .fetch_update(Relaxed, Relaxed, |tokens| Some(tokens.saturating_add(amount).min(GATHERED_MAX)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty(now_ms: u64) -> Budget {
        let budget = Budget::default();
        while budget.withdraw(now_ms) {}
        budget
    }

    #[test]
    fn a_burst_is_covered_and_then_a_fifth_of_the_requests() {
        let budget = Budget::default();
        let burst = (0..1000).filter(|_| budget.withdraw(0)).count();
        assert_eq!(burst, 256);
        let retried = (0..1000).filter(|_| {
            budget.pay_in();
            budget.withdraw(0)
        });
        assert_eq!(retried.count(), 200);
    }

    #[test]
    fn without_requests_time_allows_ten_a_second() {
        let budget = empty(5_000);
        let retried = (5_000..15_000).filter(|ms| budget.withdraw(*ms)).count();
        assert!((99..=100).contains(&retried), "{retried}");
    }

    #[test]
    fn what_gathers_is_bounded_however_long_it_is_quiet() {
        let budget = empty(0);
        (0..1_000_000).for_each(|_| budget.pay_in());
        assert_eq!((0..1000).filter(|_| budget.withdraw(u64::MAX / 2)).count(), 256);
    }
}
