//! [`LogLimit`]: rate limit of log lines that clients can cause. Log lines are shipped to the central log, in
//! which a flood would push out other records.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Limit of one line per period.
#[derive(Debug)]
pub struct LogLimit {
    period: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    passed: Option<Instant>,
    left_out: u64,
}

impl LogLimit {
    /// A limit with this period.
    pub const fn each(period: Duration) -> Self {
        Self { period, state: Mutex::new(State { passed: None, left_out: 0 }) }
    }

    /// Returns `Some` if a line may be written now, with the number of lines suppressed since the last one.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.passed.is_some_and(|passed| now.saturating_duration_since(passed) < self.period) {
            state.left_out += 1;
            return None;
        }
        state.passed = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_passes_each_period_and_tells_how_many_did_not() {
        let limit = LogLimit::each(Duration::from_secs(60));
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        assert_eq!([0, 1, 59, 60, 61].map(|secs| limit.pass(at(secs))), [Some(0), None, None, Some(2), None]);
    }
}
