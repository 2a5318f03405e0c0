//! [`Thresholds`]: hysteresis of a check, which counts consecutive outcomes before the status changes.
//!
//! - A failure counts towards `failures_before_warning` and `failures_before_critical`; it never improves the
//!   status.
//! - A success counts towards `successes_before_passing`.
//! - A warning (HTTP 429, exit code 1) becomes the status at once and resets both counts.

use hearsay_protocol::Health;

use super::spec::CheckSpec;

/// Thresholds of a check, and the consecutive outcomes so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Thresholds {
    failures_before_warning: Option<u32>,
    failures_before_critical: u32,
    successes_before_passing: u32,
    failures: u32,
    successes: u32,
}

impl Thresholds {
    /// The thresholds of a check, before its first outcome.
    pub(super) fn new(spec: &CheckSpec) -> Self {
        Self {
            failures_before_warning: spec.failures_before_warning,
            failures_before_critical: spec.failures_before_critical,
            successes_before_passing: spec.successes_before_passing,
            failures: 0,
            successes: 0,
        }
    }

    /// Counts an outcome. Returns the new status if it differs from `status`.
    pub(super) fn apply(&mut self, status: Health, outcome: Health) -> Option<Health> {
        let new = match outcome {
            Health::Passing => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                if self.successes >= self.successes_before_passing { Health::Passing } else { status }
            }
            Health::Warning => {
                (self.failures, self.successes) = (0, 0);
                Health::Warning
            }
            Health::Critical => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                if self.failures >= self.failures_before_critical {
                    Health::Critical
                } else if self.failures_before_warning.is_some_and(|n| self.failures >= n) {
                    status.max(Health::Warning)
                } else {
                    status
                }
            }
        };
        (new != status).then_some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Health::{Critical, Passing, Warning};

    fn thresholds(warning: Option<u32>, critical: u32, passing: u32) -> Thresholds {
        Thresholds {
            failures_before_warning: warning,
            failures_before_critical: critical,
            successes_before_passing: passing,
            failures: 0,
            successes: 0,
        }
    }

    /// The status after each of these outcomes.
    fn course(mut thresholds: Thresholds, mut status: Health, outcomes: &[Health]) -> Vec<Health> {
        let step = |outcome: &Health| {
            let new = thresholds.apply(status, *outcome);
            assert_ne!(new, Some(status));
            status = new.unwrap_or(status);
            status
        };
        outcomes.iter().map(step).collect()
    }

    #[test]
    fn by_default_each_outcome_is_the_status() {
        let outcomes = [Passing, Critical, Warning, Critical, Passing, Warning, Passing];
        assert_eq!(course(thresholds(None, 1, 1), Critical, &outcomes), outcomes);
    }

    #[test]
    fn failures_in_a_row_warn_first_and_are_critical_then() {
        let course = course(thresholds(Some(2), 4, 1), Passing, &[Critical; 5]);
        assert_eq!(course, [Passing, Warning, Warning, Critical, Critical]);
    }

    #[test]
    fn a_success_ends_the_row_of_failures() {
        let outcomes = [Critical, Critical, Passing, Critical, Critical, Critical];
        let course = course(thresholds(None, 3, 1), Passing, &outcomes);
        assert_eq!(course, [Passing, Passing, Passing, Passing, Passing, Critical]);
    }

    #[test]
    fn successes_in_a_row_make_it_pass_and_a_failure_ends_the_row() {
        let outcomes = [Passing, Passing, Critical, Passing, Passing, Passing];
        let course = course(thresholds(None, 1, 3), Critical, &outcomes);
        assert_eq!(course, [Critical, Critical, Critical, Critical, Critical, Passing]);
    }

    #[test]
    fn a_failure_below_the_threshold_makes_a_critical_check_no_better() {
        let outcomes = [Passing, Critical, Critical, Critical];
        assert_eq!(course(thresholds(Some(1), 3, 2), Critical, &outcomes), [Critical; 4]);
    }

    #[test]
    fn a_warning_is_the_status_at_once_and_ends_both_rows() {
        let outcomes = [Critical, Warning, Critical, Passing, Warning, Passing, Passing];
        let course = course(thresholds(None, 2, 2), Passing, &outcomes);
        assert_eq!(course, [Passing, Warning, Warning, Warning, Warning, Warning, Passing]);
    }
}
