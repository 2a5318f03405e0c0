//! [`Registry`]: handle to this node's own registrations. Reads come from memory; changes are sent to the
//! registrar task. Used by HTTP handlers, registration files (`--services-dir`) and metrics.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hearsay_protocol::{
    Health, Invalid, NodeId,
    wire::{self, CheckReport},
};
use hearsay_services::{MetricKind, network::AddressPolicy};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    change::{AddedCheck, Change, Registered, Selector},
    checks::{
        metrics::{CheckMetric, CheckMetrics},
        runner::{CheckContext, CheckRunner},
    },
    context::RegistryContext,
    error::{RegistryError, forbidden_id},
    files::Files,
    input,
    record::{Maintenance, Owner, RegistrationView},
    registrar::Registrar,
    registration::Registration,
    scope::Scope,
    state::{CheckReportReader, Ending, State},
    store::{RegistryStoreError, Store, Stored},
    subscribers::{NotificationCounters, Subscriptions},
};
use crate::driver_command::DriverCommand;

/// Changes queued for the registrar. Each belongs to a request in progress; senders wait when it is full.
const CHANGES_MAX: usize = 1024;
/// Time limit for another node's answer with the reports of its checks.
const REPORTS_ANSWER_MAX: Duration = Duration::from_secs(1);

/// Handle to the registrations of this node. Reads come from memory; changes go to the registrar.
#[derive(Debug)]
pub struct Registry {
    state: Arc<Mutex<State>>,
    changes: mpsc::Sender<Change>,
    /// Releases of held registrations, sent when their connections close. One for each held connection, so
    /// the queue needs no bound.
    releases: mpsc::UnboundedSender<Change>,
    connections: AtomicU64,
    suffix: String,
    driver: mpsc::Sender<DriverCommand>,
    runner: CheckRunner,
    check_metrics: Arc<CheckMetrics>,
    notifications: Arc<NotificationCounters>,
    files: Files,
}

impl Registry {
    /// Restores the stored registrations and starts the registrar. Without a directory nothing is stored.
    ///
    /// # Errors
    /// The stored registrations cannot be read.
    pub fn open(dir: Option<&Path>, context: RegistryContext) -> Result<Arc<Self>, RegistryStoreError> {
        let (store, stored) = match dir {
            Some(dir) => open_store(dir)?,
            None => (None, Stored::default()),
        };
        let state = Arc::<Mutex<State>>::default();
        let suffix = context.node_id.short();
        let driver = context.driver.clone();
        let (changes, change_receiver) = mpsc::channel(CHANGES_MAX);
        let (releases, release_receiver) = mpsc::unbounded_channel();
        let check_metrics = Arc::<CheckMetrics>::default();
        let (runner, check_events) = CheckRunner::new(CheckContext {
            listeners: context.listeners.clone(),
            allow_exec: context.allow_exec,
            metrics: Arc::clone(&check_metrics),
            ..CheckContext::new(Arc::clone(&context.view), context.node_id)
        });
        let notifications = Arc::<NotificationCounters>::default();
        let subscriptions = Subscriptions {
            view: Arc::clone(&context.view),
            caller: runner.caller(),
            counters: Arc::clone(&notifications),
            unstored: Arc::default(),
            acknowledged: Arc::default(),
        };
        let registrar = Registrar::new(context, Arc::clone(&state), store, runner.clone(), subscriptions);
        tokio::spawn(registrar.run(stored, change_receiver, release_receiver, check_events));
        Ok(Arc::new(Self {
            state,
            changes,
            releases,
            connections: AtomicU64::new(0),
            suffix,
            driver,
            runner,
            check_metrics,
            notifications,
            files: Files::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The states of the files of `--services-dir`.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The short form of this node's id, with which derived instance ids end.
    pub fn suffix(&self) -> &str {
        &self.suffix
    }

    /// Returns a number for a connection that will hold a registration. The receiver yields if the
    /// registration ends before the connection.
    pub fn begin_connection(&self) -> (u64, oneshot::Receiver<Ending>) {
        let connection = self.connections.fetch_add(1, Relaxed);
        let (sender, ending) = oneshot::channel();
        self.lock().endings.insert(connection, sender);
        (connection, ending)
    }

    /// Forgets a connection that closed before it held a registration.
    pub fn end_connection(&self, connection: u64) {
        self.lock().endings.remove(&connection);
    }

    /// Waits until the restored registrations are in the provider table.
    pub async fn await_restored(&self) {
        let (answer, done) = oneshot::channel();
        if self.changes.send(Change::Barrier(answer)).await.is_ok() {
            _ = done.await;
        }
    }

    /// Registers, or replaces the registration with the same id. On return the registration is stored, and
    /// its instance is in the provider table.
    ///
    /// # Errors
    /// No registration was changed.
    pub async fn register(
        &self,
        mut registration: Registration,
        owner: Owner,
        scope: Scope,
    ) -> Result<Registered, RegistryError> {
        scope.check(&registration).map_err(RegistryError::Forbidden)?;
        registration.registered_from = scope.address();
        self.check_addresses(&registration)?;
        self.send_change(|answer| Change::Register(Box::new(registration), owner, answer)).await
    }

    /// Registers, and keeps the checks of the replaced registration that the new one does not list.
    ///
    /// # Errors
    /// No registration was changed.
    pub async fn register_keeping_checks(
        &self,
        mut registration: Registration,
        scope: Scope,
    ) -> Result<Registered, RegistryError> {
        scope.check(&registration).map_err(RegistryError::Forbidden)?;
        registration.registered_from = scope.address();
        self.check_addresses(&registration)?;
        self.send_change(|answer| Change::RegisterKeepingChecks(Box::new(registration), answer)).await
    }

    /// Adds a check to a registration, or replaces the check with the same id.
    ///
    /// # Errors
    /// No registration was changed.
    pub async fn add_check(&self, added: AddedCheck, scope: Scope) -> Result<(), RegistryError> {
        if let Some(rule) = self.runner.forbids(&added.spec.kind) {
            let field = added.spec.kind.as_str();
            return Err(RegistryError::Invalid(Invalid { field, problem: rule.to_string() }));
        }
        self.send_change(|answer| Change::AddCheck(Box::new(added), scope, answer)).await
    }

    /// Removes a check from its registration.
    ///
    /// # Errors
    /// No registration was changed.
    pub async fn remove_check(&self, id: &str, scope: Scope) -> Result<(), RegistryError> {
        self.send_change(|answer| Change::RemoveCheck(id.to_owned(), scope, answer)).await
    }

    /// Returns whether a registration of this node has a check with this id.
    pub fn has_check(&self, id: &str) -> bool {
        self.lock().instance_of_check.contains_key(id)
    }

    /// Refuses IP addresses that the address policy forbids. Host names are judged at each connect, after
    /// they are resolved.
    fn check_addresses(&self, registration: &Registration) -> Result<(), Invalid> {
        for check in &registration.checks {
            if let Some(rule) = self.runner.forbids(&check.kind) {
                let field = input::check_field(check, registration);
                return Err(Invalid { field, problem: rule.to_string() });
            }
        }
        let updates = registration.updates.as_deref();
        match updates.and_then(|url| self.runner.forbids_url(url)) {
            Some(rule) => {
                Err(Invalid { field: input::updates_field(registration), problem: rule.to_string() })
            }
            None => Ok(()),
        }
    }

    /// The address policy for connections to instances. It reads the members from this node's table.
    pub fn address_policy(&self) -> &AddressPolicy {
        self.runner.address_policy()
    }

    /// Returns the metrics of registrations, checks, notifications and the address policy.
    pub fn metrics(&self) -> Vec<CheckMetric> {
        let single = |name, help, kind, value| CheckMetric { name, help, kind, labels: Vec::new(), value };
        let active = u64::try_from(self.len()).unwrap_or(u64::MAX);
        let notifications = &self.notifications;
        let failing = u64::try_from(self.files.failing()).unwrap_or(u64::MAX);
        let mut all = vec![
            single("registrations", "Programs registered with this node", MetricKind::Gauge, active),
            single(
                "registration_files_failing",
                "Files of --services-dir whose newest version is not in effect",
                MetricKind::Gauge,
                failing,
            ),
            single(
                "notifications_delivered",
                "Notifications of dependencies that a program acknowledged",
                MetricKind::Counter,
                notifications.delivered.load(Relaxed),
            ),
            single(
                "notifications_failed",
                "Attempts at notifications that failed",
                MetricKind::Counter,
                notifications.failed.load(Relaxed),
            ),
            single(
                "notifications_given_up",
                "Notifications given up after an hour of attempts",
                MetricKind::Counter,
                notifications.given_up.load(Relaxed),
            ),
        ];
        all.extend(self.check_metrics.list());
        let refusals = self.address_policy().refusals().filter(|(_, count)| *count > 0);
        all.extend(refusals.map(|(rule, value)| CheckMetric {
            name: "instances_refused",
            help: "Instances and connections to them that gateway, portal or log shipping refused, by rule of the address policy",
            kind: MetricKind::Counter,
            labels: vec![("rule", rule)],
            value,
        }));
        all
    }

    /// Deregisters the selected registrations and returns their ids. On return the change is stored and the
    /// instances are no longer in the provider table.
    ///
    /// # Errors
    /// No registration was changed.
    pub async fn deregister(
        &self,
        selector: Selector,
        by: Owner,
        scope: Scope,
    ) -> Result<Vec<String>, RegistryError> {
        self.send_change(|answer| Change::Deregister(selector, by, scope, answer)).await
    }

    /// Releases a held registration after its connection closed. With a `grace` the instance stays, critical,
    /// for that long.
    pub fn release(&self, registered: &Registered, connection: u64, grace: Duration) {
        self.end_connection(connection);
        // The registrar is gone only when the node stops.
        _ = self.releases.send(Change::Release(registered.clone(), connection, grace));
    }

    /// Starts maintenance of an instance, or ends it if `reason` is `None`. The state survives restarts.
    ///
    /// # Errors
    /// No registration was changed.
    pub async fn set_maintenance(
        &self,
        id: &str,
        reason: Option<String>,
        scope: Scope,
    ) -> Result<(), RegistryError> {
        self.send_change(|answer| Change::Maintenance(id.to_owned(), reason, scope, answer)).await
    }

    /// Starts maintenance of the node and all its instances, or ends it. The state survives restarts.
    ///
    /// # Errors
    /// No registration was changed.
    pub async fn set_node_maintenance(&self, reason: Option<String>) -> Result<(), RegistryError> {
        self.send_change(|answer| Change::NodeMaintenance(reason, answer)).await
    }

    /// The maintenance of the node, if it is in maintenance.
    pub fn node_maintenance(&self) -> Option<Maintenance> {
        self.lock().node_maintenance.clone()
    }

    /// Records a status that a program reports for its `ttl` check.
    ///
    /// # Errors
    /// This node has no such check, the check takes no reports, or the caller may not change it.
    pub fn report(
        &self,
        check: &str,
        status: Health,
        output: String,
        scope: Scope,
    ) -> Result<(), RegistryError> {
        let state = self.lock();
        let found = state.instance_of_check.get(check).and_then(|instance| state.registrations.get(instance));
        if let Some(active) = found.filter(|active| !scope.includes(&active.row.registration)) {
            return Err(forbidden_id(&active.row.registration.id));
        }
        let found = found.and_then(|active| active.checks.iter().find(|c| c.running.spec().id == check));
        let found = found.ok_or_else(|| {
            RegistryError::NotFound(format!("this node has no check with the id {check:?}"))
        })?;
        let kind = found.running.spec().kind.as_str();
        found.running.report(status, output).map_err(|_| {
            RegistryError::Conflict(format!(
                "the check {check:?} is of the kind {kind}; only ttl takes reports"
            ))
        })
    }

    /// Returns all registrations of this node, sorted by id.
    pub fn list(&self) -> Vec<RegistrationView> {
        let state = self.lock();
        state.registrations.values().map(|active| state.view_of(active)).collect()
    }

    /// Returns the registration with this id.
    pub fn get(&self, id: &str) -> Option<RegistrationView> {
        let state = self.lock();
        state.registrations.get(id).map(|active| state.view_of(active))
    }

    /// Returns a receiver that yields after each change of registrations. It also yields for fields that
    /// other nodes do not see, which change nothing in the provider table.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.lock().changes.subscribe()
    }

    /// Returns a reader of check reports that does not keep the registry alive.
    pub fn report_reader(&self) -> CheckReportReader {
        CheckReportReader(Arc::clone(&self.state))
    }

    /// Requests the reports of an instance's checks from its holder. `None`: no answer in time.
    pub async fn reports_of(&self, holder: NodeId, id: &str) -> Option<Vec<CheckReport>> {
        let (sender, answer) = oneshot::channel();
        self.driver.send(DriverCommand::FetchReports(holder, id.to_owned(), sender)).await.ok()?;
        let answer = tokio::time::timeout(REPORTS_ANSWER_MAX, answer).await.ok()?.ok()?;
        wire::decode_check_reports(&answer).ok()
    }

    /// The number of registrations.
    pub fn len(&self) -> usize {
        self.lock().registrations.len()
    }

    /// Whether there is no registration.
    pub fn is_empty(&self) -> bool {
        self.lock().registrations.is_empty()
    }

    async fn send_change<T>(
        &self,
        change: impl FnOnce(oneshot::Sender<Result<T, RegistryError>>) -> Change,
    ) -> Result<T, RegistryError> {
        let (answer, answered) = oneshot::channel();
        self.changes.send(change(answer)).await.map_err(|_| RegistryError::Stopping)?;
        answered.await.unwrap_or(Err(RegistryError::Stopping))
    }
}

/// Opens the store and logs damage. The node starts without damaged data.
fn open_store(dir: &Path) -> Result<(Option<Store>, Stored), RegistryStoreError> {
    let (store, stored, damaged) = Store::open(dir)?;
    if let Some(damaged) = damaged {
        tracing::error!(
            moved_to = %damaged.display(),
            "the database of registrations is damaged; a new one was created, so programs must register again"
        );
    }
    for (id, problem) in &stored.unreadable {
        tracing::error!(id, problem, "a stored registration cannot be read; its program must register again");
    }
    Ok((Some(store), stored))
}
