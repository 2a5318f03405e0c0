//! `ttl` check: passes while the program reports within the TTL.
//!
//! A report sets the status in [`Shared`](super::reporter::Shared) directly, so that the report is answered
//! at once. This task announces changes and expires the TTL. A report without a change wakes no task: the
//! timer finds the later deadline when it fires.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::{reporter::Reporter, spec::DURATION_MAX};

/// Runs the check.
pub(super) async fn run(reporter: &Reporter, ttl: Duration) {
    let ttl = ttl.min(DURATION_MAX);
    let mut status = reporter.shared().subscribe();
    let mut announced = reporter.initial_status();
    reporter.shared().start_ttl(ttl);
    loop {
        announced = reporter.announce(announced).await;
        // An expired TTL has no deadline until the next report.
        let deadline = reporter.shared().deadline().unwrap_or_else(|| Instant::now() + ttl);
        tokio::select! {
            () = sleep_until(deadline) => reporter.shared().expire_ttl(Instant::now()),
            changed = status.changed() => if changed.is_err() { return },
        }
    }
}
