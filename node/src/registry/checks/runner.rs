//! [`CheckRunner`]: runs each check in a task of its own, which reports changes of status.
//!
//! The phase of a check is a hash of its id, so checks that are registered together do not run together.
//! Concurrent runs are bounded, and late runs are counted. A task ends when its [`RunningCheck`] is dropped.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use hearsay_protocol::{Health, NodeId};
use hearsay_services::network::{AddressPolicy, Forbidden};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc},
    task::AbortHandle,
    time::{Instant, sleep_until},
};
use tracing::error;

pub use super::state::{CheckEvent, CheckKey, CheckState};

use super::{
    alias::Alias,
    connect::Connector,
    http::HttpProbe,
    members::ClusterAddresses,
    metrics::CheckMetrics,
    outcome::Outcome,
    probe::{Plan, Probe},
    process,
    reporter::{Reporter, Shared},
    spec::{CheckKind, CheckSpec, DURATION_MAX, HttpCheck},
    ttl,
    watch::Watch,
};
use crate::{registry::address::Target, view::View};
use hearsay_services::now_ms;

/// Events queued for the registrar; checks wait while the queue is full.
const EVENTS_MAX: usize = 4096;
/// Concurrent runs. Guess: with 5,000 hanging checks with a timeout of 2 s, each still runs every 20 s.
const RUNS_MAX: usize = 512;
/// Concurrent connects of `watch` checks. A separate bound, so that hanging checks do not delay the detection
/// of a failure.
const WATCH_CONNECTS_MAX: usize = 512;
/// Concurrent runs of `udp` checks. A separate bound: a run without an answer lasts as long as its timeout.
/// Guess, as the bounds above: each has a socket, for which a node keeps some files.
const SLOW_RUNS_MAX: usize = 512;
/// Delay after which a run is counted as late.
const LATE_AFTER: Duration = Duration::from_secs(1);
/// Time over which the first runs of up to [`SPREAD_SHORT_MAX`] restored checks are spread.
const SPREAD_SHORT: Duration = Duration::from_secs(1);
/// With more restored checks, first runs are spread over an interval.
const SPREAD_SHORT_MAX: usize = 500;
/// The shortest interval, even if a shorter one is stored.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// The parts of the node that checks use.
#[derive(Clone, Debug)]
pub struct CheckContext {
    /// The provider table, for `alias` and the address policy.
    pub view: Arc<View>,
    /// This node's id.
    pub me: NodeId,
    /// This node's listeners (HTTP, swarm, gRPC). No check may connect to them, at any address of the
    /// machine.
    pub listeners: Vec<SocketAddr>,
    /// Whether `exec` checks run (`--allow-exec-checks`).
    pub allow_exec: bool,
    /// Metrics of checks.
    pub metrics: Arc<CheckMetrics>,
}

impl CheckContext {
    /// Returns a context without listeners and without `exec` checks.
    pub fn new(view: Arc<View>, me: NodeId) -> Self {
        Self { view, me, listeners: Vec::new(), allow_exec: false, metrics: Arc::default() }
    }
}

/// Starts checks and gives them their shared parts.
#[derive(Clone, Debug)]
pub struct CheckRunner {
    inner: Arc<Inner>,
    events: mpsc::Sender<CheckEvent>,
    runtime: Option<Handle>,
}

/// State shared by all tasks.
#[derive(Debug)]
struct Inner {
    context: CheckContext,
    policy: AddressPolicy,
    connector: Connector,
    runs: Semaphore,
    slow_runs: Semaphore,
    watch_connects: Semaphore,
}

/// Initial state of a check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Begin {
    /// New: with the initial status of the registration.
    Registered,
    /// Restored after a restart of the node, with the number of restored checks. A TTL restarts.
    Restored(CheckState, usize),
    /// Continued: its registration was replaced by one with the same check.
    Replaced(CheckState),
}

/// A running check; dropping it ends its task.
#[derive(Debug)]
pub struct RunningCheck {
    spec: Arc<CheckSpec>,
    shared: Arc<Shared>,
    metrics: Arc<CheckMetrics>,
    /// `None`: started without a runtime.
    task: Option<AbortHandle>,
}

impl CheckRunner {
    /// Returns a runner and the receiver of its checks' events. Checks run on the tokio runtime of this
    /// caller; if it has none, on that of the caller of [`start`](Self::start).
    pub fn new(context: CheckContext) -> (Self, mpsc::Receiver<CheckEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let members = ClusterAddresses::new(context.me, Arc::clone(&context.view), context.listeners.clone());
        let policy = AddressPolicy::new(Arc::new(members));
        let inner = Inner {
            context,
            // Registrations of this node may be at loopback addresses.
            connector: Connector::new(policy.clone().with_loopback(true)),
            policy,
            runs: Semaphore::new(RUNS_MAX),
            slow_runs: Semaphore::new(SLOW_RUNS_MAX),
            watch_connects: Semaphore::new(WATCH_CONNECTS_MAX),
        };
        (Self { inner: Arc::new(inner), events, runtime: Handle::try_current().ok() }, receiver)
    }

    /// The address policy for instances of all nodes.
    pub fn address_policy(&self) -> &AddressPolicy {
        &self.inner.policy
    }

    /// Returns a sender of requests under the same policy.
    pub fn caller(&self) -> Caller {
        Caller(Arc::clone(&self.inner))
    }

    /// Returns the rule that refuses the target of a check, if its address is known without name resolution.
    pub fn forbids(&self, kind: &CheckKind) -> Option<Forbidden> {
        let address = match kind {
            CheckKind::Http(http) => return self.forbids_url(&http.url),
            CheckKind::Tcp { address, .. }
            | CheckKind::Udp { address }
            | CheckKind::H2ping { address, .. }
            | CheckKind::Grpc { address, .. }
            | CheckKind::Watch { address } => address,
            CheckKind::Ttl { .. }
            | CheckKind::Alias { .. }
            | CheckKind::Process(_)
            | CheckKind::Exec { .. } => {
                return None;
            }
        };
        self.inner.connector.forbids(&Target::parse("address", address).ok()?)
    }

    /// Same as [`forbids`](Self::forbids), for a URL.
    pub fn forbids_url(&self, url: &str) -> Option<Forbidden> {
        let request = HttpCheck { url: url.to_owned(), ..HttpCheck::default() };
        self.inner.connector.forbids(HttpProbe::new(&request).ok()?.target())
    }

    /// Starts a check. With an invalid spec (see [`CheckSpec::validate`]) it is critical, and its output has
    /// the reason.
    pub fn start(&self, key: CheckKey, spec: CheckSpec, begin: Begin) -> RunningCheck {
        let first_run = FirstRun::new(&key, &spec, &begin);
        let state = match begin {
            Begin::Registered => {
                CheckState { status: spec.initial_status, since_ms: now_ms(), ..CheckState::default() }
            }
            Begin::Restored(state, _) | Begin::Replaced(state) => state,
        };
        let spec = Arc::new(spec);
        let shared = Arc::new(Shared::new(&spec, state));
        let metrics = Arc::clone(&self.inner.context.metrics);
        let reporter = Reporter::new(
            key,
            Arc::clone(&spec),
            Arc::clone(&shared),
            self.events.clone(),
            Arc::clone(&metrics),
        );
        let task = CheckTask { inner: Arc::clone(&self.inner), spec: Arc::clone(&spec), reporter, first_run };
        let runtime = self.runtime.clone().or_else(|| Handle::try_current().ok());
        let task = runtime.map(|runtime| runtime.spawn(task.run()).abort_handle());
        if task.is_none() {
            error!("the check {} does not run, because there is no tokio runtime", spec.id);
        }
        RunningCheck { spec, shared, metrics, task }
    }
}

/// Sends requests on behalf of registered programs, under the address policy.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Inner>);

impl Caller {
    /// Sends one request. 2xx is success.
    ///
    /// # Errors
    /// Describes the answer or the failure.
    pub async fn call(&self, request: &HttpCheck, timeout: Duration) -> Result<(), String> {
        let probe = HttpProbe::new(request).map_err(|error| error.to_string())?;
        match tokio::time::timeout(timeout, Box::pin(probe.run(&self.0.connector))).await {
            Ok(outcome) if outcome.health == Health::Passing => Ok(()),
            Ok(outcome) => Err(outcome.output),
            Err(_) => Err(format!("no answer within {timeout:?}")),
        }
    }
}

/// Schedule of the first and second run.
#[derive(Clone, Copy, Debug)]
struct FirstRun {
    /// Delay of the first run.
    delay: Duration,
    /// From the first run to the second one.
    phase: Duration,
    is_restored: bool,
}

impl FirstRun {
    fn new(key: &CheckKey, spec: &CheckSpec, begin: &Begin) -> Self {
        let mut hasher = DefaultHasher::new();
        (&key.instance, &key.check).hash(&mut hasher);
        let hash = hasher.finish();
        let interval = interval_of(spec);
        let delay = match begin {
            Begin::Registered | Begin::Replaced(_) => Duration::ZERO,
            Begin::Restored(_, others) if *others < SPREAD_SHORT_MAX => share(SPREAD_SHORT, hash),
            Begin::Restored(..) => share(interval, hash),
        };
        // The phase uses other bits of the hash than the delay, so they are independent.
        let phase = share(interval, hash.rotate_left(32)).max(Duration::from_millis(1));
        Self { delay, phase, is_restored: matches!(begin, Begin::Restored(..)) }
    }
}

/// Returns the interval of a check, clamped to the bounds.
fn interval_of(spec: &CheckSpec) -> Duration {
    spec.interval.clamp(INTERVAL_MIN, DURATION_MAX)
}

/// Returns a fraction of a duration, chosen by a hash.
fn share(whole: Duration, hash: u64) -> Duration {
    let bits = u32::try_from(hash >> 32).unwrap_or(u32::MAX);
    whole.mul_f64(f64::from(bits) / f64::from(u32::MAX))
}

/// The task that runs one check until its `RunningCheck` is dropped.
#[derive(Debug)]
struct CheckTask {
    inner: Arc<Inner>,
    spec: Arc<CheckSpec>,
    reporter: Reporter,
    first_run: FirstRun,
}

impl CheckTask {
    async fn run(self) {
        let _counted = self.inner.context.metrics.begin_check();
        tokio::select! {
            () = self.run_kind() => (),
            () = self.reporter.watch_expiry() => (),
        }
    }

    /// Runs the check. Never returns.
    async fn run_kind(&self) {
        match Plan::new(&self.spec.kind) {
            Ok(plan) => self.follow(plan).await,
            Err(invalid) => self.reporter.set_if_new(Outcome::critical(invalid.to_string())).await,
        }
        // The status is final, but the expiry is still watched.
        std::future::pending().await
    }

    async fn follow(&self, plan: Plan) {
        let context = &self.inner.context;
        let start = Instant::now() + self.first_run.delay;
        match plan {
            Plan::Probe(probe) if matches!(*probe, Probe::Exec(_)) && !context.allow_exec => {
                let words = "not run: exec checks are off. Start the node with --allow-exec-checks";
                self.reporter.set_if_new(Outcome::critical(words)).await;
            }
            Plan::Probe(probe) => self.run_at_intervals(&probe, start).await,
            Plan::Ttl(ttl) => ttl::run(&self.reporter, ttl).await,
            Plan::Alias { instance, service } => {
                let alias = Alias {
                    reporter: &self.reporter,
                    view: &context.view,
                    me: context.me,
                    instance: instance.as_deref(),
                    service: service.as_deref(),
                };
                alias.run(self.first_run.is_restored).await;
            }
            Plan::Watch(target) => {
                sleep_until(start).await;
                let (connector, connects) = (&self.inner.connector, &self.inner.watch_connects);
                let watch = Watch::new(&self.reporter, connector, connects, target);
                watch.run(interval_of(&self.spec), self.spec.timeout).await;
            }
            Plan::Process(identity) => {
                process::run(&self.reporter, &identity, interval_of(&self.spec)).await;
            }
        }
    }

    async fn run_at_intervals(&self, probe: &Probe, start: Instant) {
        let interval = interval_of(&self.spec);
        let mut due = start;
        let mut step = self.first_run.phase;
        loop {
            sleep_until(due).await;
            let runs = if probe.is_slow() { &self.inner.slow_runs } else { &self.inner.runs };
            // The semaphore is never closed.
            let permit = runs.acquire().await;
            let started = Instant::now();
            if started.duration_since(due) > LATE_AFTER {
                self.inner.context.metrics.count_late();
            }
            let in_flight = self.inner.context.metrics.begin_run();
            // The run is boxed to keep the task of a waiting check small.
            let outcome = Box::pin(probe.run(&self.inner.connector, self.spec.timeout)).await;
            drop((permit, in_flight));
            let at_interval = next_due(due + step, interval, Instant::now());
            step = interval;
            // A failure before the check is critical causes a retry.
            let is_failure = outcome.health != Health::Passing;
            let retry = self.spec.retry_interval.filter(|_| is_failure);
            let next_after = |status| match retry {
                Some(retry) if status != Health::Critical => {
                    at_interval.min(started + retry.max(INTERVAL_MIN))
                }
                _ => at_interval,
            };
            self.reporter
                .record_and_plan(outcome, started.elapsed(), |status| Some(next_after(status)))
                .await;
            due = next_after(self.reporter.shared().status());
        }
    }
}

/// Returns the first time after `now` that is a whole number of intervals after `due`.
fn next_due(due: Instant, interval: Duration, now: Instant) -> Instant {
    let behind = now.saturating_duration_since(due);
    if behind.is_zero() {
        return due;
    }
    let missed = behind.as_nanos() / interval.as_nanos().max(1) + 1;
    due + interval.saturating_mul(u32::try_from(missed).unwrap_or(u32::MAX))
}

impl RunningCheck {
    /// The spec of the check.
    pub fn spec(&self) -> &CheckSpec {
        &self.spec
    }

    /// Returns the current state.
    pub fn state(&self) -> CheckState {
        self.shared.state()
    }

    /// Records a report of the program for a `ttl` check.
    ///
    /// # Errors
    /// The check is of another kind.
    pub fn report(&self, status: Health, output: String) -> Result<(), NotTtl> {
        let CheckKind::Ttl { ttl } = self.spec.kind else { return Err(NotTtl) };
        self.metrics.count_run(&self.spec.kind, status, None);
        self.shared.report(status, &output, ttl);
        Ok(())
    }
}

impl Drop for RunningCheck {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The check is of a kind other than `ttl`.
#[derive(Debug, thiserror::Error)]
#[error("only a ttl check takes reports")]
pub struct NotTtl;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::checks::CheckTls;

    #[test]
    fn the_next_run_keeps_the_phase_and_is_never_in_the_past() {
        let interval = Duration::from_secs(10);
        let due = Instant::now();
        assert_eq!(next_due(due + interval, interval, due), due + interval);
        let now = due + Duration::from_secs(35);
        assert_eq!(next_due(due + interval, interval, now), due + interval * 4);
    }

    #[test]
    fn first_runs_are_at_once_or_spread() {
        let key = |n: usize| CheckKey { instance: format!("web-{n}"), generation: 1, check: format!("c{n}") };
        let spec = super::super::tests::spec(CheckKind::Tcp {
            address: "127.0.0.1:1".into(),
            tls: CheckTls::default(),
        });
        let first = |n, begin: &Begin| FirstRun::new(&key(n), &spec, begin);
        let state = CheckState::default();
        for n in 0..100 {
            let registered = first(n, &Begin::Registered);
            assert!(registered.delay.is_zero() && registered.phase <= spec.interval);
            assert!(first(n, &Begin::Restored(state.clone(), 499)).delay <= SPREAD_SHORT);
        }
        let delays: Vec<_> =
            (0..1000).map(|n| first(n, &Begin::Restored(state.clone(), 1000)).delay).collect();
        for tenth in 0..10 {
            let (from, to) = (spec.interval / 10 * tenth, spec.interval / 10 * (tenth + 1));
            let within = delays.iter().filter(|delay| (from..to).contains(*delay)).count();
            assert!((50..150).contains(&within), "{within} of 1000 runs in tenth {tenth}");
        }
    }
}
