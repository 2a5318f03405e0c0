//! The runs of checks: one task for each check, which tells of changes of its status.
//!
//! The phase of a check is a hash of its id, so checks that were registered together do not run together.
//! Runs at once are bounded; a run that begins late is counted. The task ends when its [`RunningCheck`] is
//! dropped.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use hearsay_protocol::{NodeId, record::Health};
use hearsay_services::address_policy::{AddressPolicy, Forbidden};
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
use crate::{registry::address::Target, timestamp::now_ms, view::View};

/// Events of checks that wait for the registry.
const EVENTS_MAX: usize = 4096;
/// Runs at once. Guess: at 5,000 checks with a timeout of 2 s that all hang, each still runs every 20 s.
const RUNS_MAX: usize = 512;
/// Connects of `watch` checks at once. They have their own bound, so that checks that hang do not delay the
/// news of a death.
const WATCH_CONNECTS_MAX: usize = 512;
/// A run that begins later than this after it was due is counted.
const LATE_AFTER: Duration = Duration::from_secs(1);
/// The first runs of restored checks are spread over this, up to [`SPREAD_SHORT_MAX`] checks.
const SPREAD_SHORT: Duration = Duration::from_secs(1);
/// Above this many restored checks, first runs are spread over an interval.
const SPREAD_SHORT_MAX: usize = 500;
/// The shortest interval that is kept to, whatever is stored.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// What runs of checks need.
#[derive(Clone, Debug)]
pub struct CheckContext {
    /// For `alias`, and for the addresses that no check may call.
    pub view: Arc<View>,
    /// This node.
    pub me: NodeId,
    /// Where this node listens (HTTP, swarm, gRPC): no check may call it there, under any address of the
    /// machine.
    pub listeners: Vec<SocketAddr>,
    /// Whether `exec` checks run: `--allow-exec-checks`.
    pub allow_exec: bool,
    /// What checks count.
    pub metrics: Arc<CheckMetrics>,
}

impl CheckContext {
    /// A context of a node that has no listeners yet and runs no `exec` checks.
    pub fn new(view: Arc<View>, me: NodeId) -> Self {
        Self { view, me, listeners: Vec::new(), allow_exec: false, metrics: Arc::default() }
    }
}

/// Starts checks.
#[derive(Clone, Debug)]
pub struct CheckRunner {
    inner: Arc<Inner>,
    events: mpsc::Sender<CheckEvent>,
    runtime: Option<Handle>,
}

/// What all tasks share.
#[derive(Debug)]
struct Inner {
    context: CheckContext,
    policy: AddressPolicy,
    connector: Connector,
    runs: Semaphore,
    watch_connects: Semaphore,
}

/// How a check begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Begin {
    /// With the status that its registration says.
    Registered,
    /// As it was before the node restarted, with how many other checks. A TTL has one whole TTL from now on.
    Restored(CheckState, usize),
    /// As it was before its registration was replaced by one with the same check.
    Replaced(CheckState),
}

/// A check that runs until this is dropped.
#[derive(Debug)]
pub struct RunningCheck {
    spec: Arc<CheckSpec>,
    shared: Arc<Shared>,
    metrics: Arc<CheckMetrics>,
    /// `None` where there is no runtime to run it.
    task: Option<AbortHandle>,
}

impl CheckRunner {
    /// A runner, and what its checks tell. Its checks run on the tokio runtime of the caller, or else of the
    /// caller of [`start`](Self::start).
    pub fn new(context: CheckContext) -> (Self, mpsc::Receiver<CheckEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let members = ClusterAddresses::new(context.me, Arc::clone(&context.view), context.listeners.clone());
        let policy = AddressPolicy::new(Arc::new(members));
        let inner = Inner {
            context,
            // Checks are of this node's own registrations, which may be at its loopback addresses.
            connector: Connector::new(policy.clone().with_loopback(true)),
            policy,
            runs: Semaphore::new(RUNS_MAX),
            watch_connects: Semaphore::new(WATCH_CONNECTS_MAX),
        };
        (Self { inner: Arc::new(inner), events, runtime: Handle::try_current().ok() }, receiver)
    }

    /// The policy for instances of all nodes.
    pub fn address_policy(&self) -> &AddressPolicy {
        &self.inner.policy
    }

    /// A caller by the same policy.
    pub fn caller(&self) -> Caller {
        Caller(Arc::clone(&self.inner))
    }

    /// Whether the address policy refuses what a check calls, as far as that is known without resolving a name.
    pub fn forbids(&self, kind: &CheckKind) -> Option<Forbidden> {
        let address = match kind {
            CheckKind::Http(http) => return self.forbids_url(&http.url),
            CheckKind::Tcp { address } | CheckKind::Grpc { address, .. } | CheckKind::Watch { address } => {
                address
            }
            CheckKind::Ttl { .. }
            | CheckKind::Alias { .. }
            | CheckKind::Process(_)
            | CheckKind::Exec { .. } => {
                return None;
            }
        };
        self.inner.connector.forbids(&Target::parse("address", address).ok()?)
    }

    /// The same for a URL.
    pub fn forbids_url(&self, url: &str) -> Option<Forbidden> {
        let request = HttpCheck { url: url.to_owned(), ..HttpCheck::default() };
        self.inner.connector.forbids(HttpProbe::new(&request).ok()?.target())
    }

    /// Starts a check. One whose spec cannot be used is critical, and its output says why: see
    /// [`CheckSpec::validate`].
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
            error!("check {} does not run: there is no runtime", spec.id);
        }
        RunningCheck { spec, shared, metrics, task }
    }
}

/// Sends requests on behalf of registered programs, by the address policy.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Inner>);

impl Caller {
    /// Sends one request. 2xx is success.
    ///
    /// # Errors
    /// What came instead, in words.
    pub async fn call(&self, request: &HttpCheck, timeout: Duration) -> Result<(), String> {
        let probe = HttpProbe::new(request).map_err(|error| error.to_string())?;
        match tokio::time::timeout(timeout, Box::pin(probe.run(&self.0.connector))).await {
            Ok(outcome) if outcome.health == Health::Passing => Ok(()),
            Ok(outcome) => Err(outcome.output),
            Err(_) => Err(format!("no answer within {timeout:?}")),
        }
    }
}

/// When a check runs first, and when it runs from then on.
#[derive(Clone, Copy, Debug)]
struct FirstRun {
    /// How long the first run waits.
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
        // Other bits of the hash than those of the delay.
        let phase = share(interval, hash.rotate_left(32)).max(Duration::from_millis(1));
        Self { delay, phase, is_restored: matches!(begin, Begin::Restored(..)) }
    }
}

/// The interval of a check, within bounds that hold whatever is stored.
fn interval_of(spec: &CheckSpec) -> Duration {
    spec.interval.clamp(INTERVAL_MIN, DURATION_MAX)
}

/// The share of a duration that a hash chooses.
fn share(whole: Duration, hash: u64) -> Duration {
    let bits = u32::try_from(hash >> 32).unwrap_or(u32::MAX);
    whole.mul_f64(f64::from(bits) / f64::from(u32::MAX))
}

/// The task of one check.
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

    /// Runs for as long as the check exists.
    async fn run_kind(&self) {
        match Plan::new(&self.spec.kind) {
            Ok(plan) => self.follow(plan).await,
            Err(invalid) => self.reporter.set_if_new(Outcome::critical(invalid.to_string())).await,
        }
        // Nothing more will be found out, and the expiry is still to be watched.
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
            // Never closed.
            let permit = self.inner.runs.acquire().await;
            let started = Instant::now();
            if started.duration_since(due) > LATE_AFTER {
                self.inner.context.metrics.count_late();
            }
            let in_flight = self.inner.context.metrics.begin_run();
            // Boxed, so that a check that waits takes little memory.
            let outcome = Box::pin(probe.run(&self.inner.connector, self.spec.timeout)).await;
            drop((permit, in_flight));
            let at_interval = next_due(due + step, interval, Instant::now());
            step = interval;
            // A failure that has not made the check critical is followed by a retry.
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

/// The first moment after now that is a whole number of intervals from `due`.
fn next_due(due: Instant, interval: Duration, now: Instant) -> Instant {
    let behind = now.saturating_duration_since(due);
    if behind.is_zero() {
        return due;
    }
    let missed = behind.as_nanos() / interval.as_nanos().max(1) + 1;
    due + interval.saturating_mul(u32::try_from(missed).unwrap_or(u32::MAX))
}

impl RunningCheck {
    /// What it was started with.
    pub fn spec(&self) -> &CheckSpec {
        &self.spec
    }

    /// What is known of it now.
    pub fn state(&self) -> CheckState {
        self.shared.state()
    }

    /// Takes a report of the program, for a `ttl` check.
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

/// Only a `ttl` check takes reports.
#[derive(Debug, thiserror::Error)]
#[error("only a ttl check takes reports")]
pub struct NotTtl;

#[cfg(test)]
mod tests {
    use super::*;

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
        let spec = super::super::tests::spec(CheckKind::Tcp { address: "127.0.0.1:1".into() });
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
