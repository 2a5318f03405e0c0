//! [`Reporter`]: records the runs of a check in its [`Shared`] state, and sends changes of status to the
//! registrar.
//!
//! The state changes with each run. Only a change of status is an event, because other nodes see nothing
//! else.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hearsay_protocol::Health;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep},
};

use super::{
    metrics::CheckMetrics,
    outcome::{Outcome, bound_output},
    spec::{CheckSpec, DURATION_MAX},
    state::{CheckEvent, CheckKey, CheckState},
    thresholds::Thresholds,
};
use hearsay_services::now_ms;

/// The state of a check, shared by its task and its readers.
#[derive(Debug)]
pub(super) struct Shared {
    progress: Mutex<Progress>,
    status: watch::Sender<Health>,
}

#[derive(Debug)]
struct Progress {
    state: CheckState,
    thresholds: Thresholds,
    /// Expiry of the TTL; `None` after it expired.
    deadline: Option<Instant>,
}

impl Shared {
    /// Returns the initial state of a check.
    pub(super) fn new(spec: &CheckSpec, state: CheckState) -> Self {
        let status = watch::Sender::new(state.status);
        Self {
            progress: Mutex::new(Progress { state, thresholds: Thresholds::new(spec), deadline: None }),
            status,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current state.
    pub(super) fn state(&self) -> CheckState {
        self.lock().state.clone()
    }

    /// Returns the current status.
    pub(super) fn status(&self) -> Health {
        self.lock().state.status
    }

    /// Whether the current status is passing.
    pub(super) fn is_passing(&self) -> bool {
        self.status() == Health::Passing
    }

    /// Returns a receiver that yields at each change of status.
    pub(super) fn subscribe(&self) -> watch::Receiver<Health> {
        self.status.subscribe()
    }

    /// Applies a change. If the status differs afterwards, wakes subscribers and returns the new state.
    fn change(&self, change: impl FnOnce(&mut Progress)) -> Option<CheckState> {
        let mut progress = self.lock();
        let before = progress.state.status;
        change(&mut progress);
        let status = progress.state.status;
        if status == before {
            return None;
        }
        progress.state.since_ms = now_ms();
        self.status.send_replace(status);
        Some(progress.state.clone())
    }

    /// Records a report of the program and restarts the TTL.
    pub(super) fn report(&self, status: Health, output: &str, ttl: Duration) {
        self.change(|progress| {
            progress.state.status = status;
            progress.state.output = bound_output(output);
            progress.state.last_run_ms = Some(now_ms());
            progress.deadline = Some(Instant::now() + ttl.min(DURATION_MAX));
        });
    }

    /// Starts the TTL unless a report has started it.
    pub(super) fn start_ttl(&self, ttl: Duration) {
        self.lock().deadline.get_or_insert(Instant::now() + ttl);
    }

    /// Returns the expiry of the TTL.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.lock().deadline
    }

    /// Makes the check critical if its TTL has expired by now.
    pub(super) fn expire_ttl(&self, now: Instant) {
        self.change(|progress| {
            if progress.deadline.is_none_or(|deadline| deadline > now) {
                return;
            }
            progress.deadline = None;
            progress.state.status = Health::Critical;
            progress.state.output = match progress.state.output.as_str() {
                "" => "TTL expired".into(),
                last => bound_output(&format!("TTL expired (last output before it follows): {last}")),
            };
        });
    }
}

/// Records the runs of one check and sends its events.
#[derive(Debug)]
pub(super) struct Reporter {
    key: CheckKey,
    spec: Arc<CheckSpec>,
    shared: Arc<Shared>,
    events: mpsc::Sender<CheckEvent>,
    metrics: Arc<CheckMetrics>,
    /// The status at the start, known to the registrar without an event.
    initial_status: Health,
}

impl Reporter {
    /// Returns a reporter for this check.
    pub(super) fn new(
        key: CheckKey,
        spec: Arc<CheckSpec>,
        shared: Arc<Shared>,
        events: mpsc::Sender<CheckEvent>,
        metrics: Arc<CheckMetrics>,
    ) -> Self {
        let initial_status = shared.status();
        Self { key, spec, shared, events, metrics, initial_status }
    }

    /// The key of the check.
    pub(super) fn key(&self) -> &CheckKey {
        &self.key
    }

    /// The status before the task started. A report may have changed it since.
    pub(super) fn initial_status(&self) -> Health {
        self.initial_status
    }

    /// The state shared with readers.
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Records a run. Hysteresis decides whether the status changes.
    pub(super) async fn record(&self, outcome: Outcome, took: Duration, next: Option<Instant>) {
        self.record_and_plan(outcome, took, |_| next).await;
    }

    /// Records a run. `next_after` returns the time of the next run for the resulting status.
    pub(super) async fn record_and_plan(
        &self,
        outcome: Outcome,
        took: Duration,
        next_after: impl FnOnce(Health) -> Option<Instant>,
    ) {
        self.metrics.count_run(&self.spec.kind, outcome.health, outcome.refused_by);
        let changed = self.shared.change(|progress| {
            let status = progress.state.status;
            progress.state.status = progress.thresholds.apply(status, outcome.health).unwrap_or(status);
            progress.state.output = outcome.output;
            progress.state.last_run_ms = Some(now_ms());
            let next = next_after(progress.state.status);
            progress.state.next_run_ms =
                next.map(|next| now_ms() + millis(next.duration_since(Instant::now())));
            progress.state.took_ms = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
        });
        self.send_changed(changed).await;
    }

    /// Sets the status without hysteresis, for outcomes that are certain, such as the end of a process. An
    /// outcome with unchanged status and output is ignored.
    pub(super) async fn set_if_new(&self, outcome: Outcome) {
        let state = self.shared.state();
        let is_first = state.last_run_ms.is_none();
        if !is_first && (state.status, &state.output) == (outcome.health, &outcome.output) {
            return;
        }
        self.metrics.count_run(&self.spec.kind, outcome.health, None);
        let changed = self.shared.change(|progress| {
            progress.state.status = outcome.health;
            progress.state.output = outcome.output;
            progress.state.last_run_ms = Some(now_ms());
            progress.state.next_run_ms = None;
        });
        self.send_changed(changed).await;
    }

    /// Sends the status if it differs from `announced`. Returns the status.
    pub(super) async fn announce(&self, announced: Health) -> Health {
        let state = self.shared.state();
        let status = state.status;
        if status != announced {
            self.send_changed(Some(state)).await;
        }
        status
    }

    async fn send_changed(&self, changed: Option<CheckState>) {
        if let Some(state) = changed {
            self.send(CheckEvent::Changed(self.key.clone(), state)).await;
        }
    }

    async fn send(&self, event: CheckEvent) {
        // Waits for room: a lost event would leave a wrong status until the next change. An error means that
        // the node is stopping.
        let _ = self.events.send(event).await;
    }

    /// Sends an event when the check has been critical for `deregister_after`. Each start of the
    /// task begins this time again, so that a restored check runs before it expires.
    pub(super) async fn watch_expiry(&self) {
        let Some(after) = self.spec.deregister_after else { return std::future::pending().await };
        let mut status = self.shared.subscribe();
        loop {
            await_status(&mut status, |status| status == Health::Critical).await;
            tokio::select! {
                () = sleep(after) => {
                    self.send(CheckEvent::Expired(self.key.clone())).await;
                    await_status(&mut status, |status| status != Health::Critical).await;
                }
                () = await_status(&mut status, |status| status != Health::Critical) => (),
            }
        }
    }
}

/// Waits for a status. The sender outlives the waiting task.
async fn await_status(status: &mut watch::Receiver<Health>, matches: impl Fn(Health) -> bool) {
    if status.wait_for(|status| matches(*status)).await.is_err() {
        std::future::pending().await
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
