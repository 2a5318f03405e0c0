//! The registry: programs of this machine, and of machines without a node, that this node speaks for.
//!
//! A program registers with its nearest node. The node stores the registration, runs its health checks and states an
//! [`Instance`](hearsay_protocol::record::Instance) for it, which every node of the cluster then lists.
//!
//! | file | what |
//! | --- | --- |
//! | `input` | reads registrations and checks out of JSON, in three dialects |
//! | `address` | reads the addresses in them |
//! | `registration`, `record` | a registration that has been read; the same as this node holds and stores it |
//! | `scope` | what a caller may change that has not shown who it is |
//! | `registrar` | the one task that changes registrations: owners, limits, order, what is stored and stated |
//! | `store` | the registrations on disk, by group commit |
//! | `instance` | what is stated to the cluster for a registration |
//! | `files` | registrations in files of a directory |
//! | `subscribers` | notifications of dependencies |
//! | `checks` | health checks: what they are, and their runs |
//!
//! **An answer comes after its effect**: a registration is synced to disk and listed by this node before its client gets the answer. A refused
//! change has had no effect.

mod address;
pub mod checks;
pub mod files;
pub mod input;
mod instance;
pub mod record;
mod registrar;
pub mod registration;
mod scope;
mod store;
pub mod subscribers;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hearsay_protocol::{
    NodeId,
    record::{Health, Invalid},
    wire::{self, checks::CheckReport},
};
use hearsay_services::{address_policy::AddressPolicy, service::MetricKind};
use tokio::sync::{mpsc, oneshot};

pub use instance::{MAINTENANCE_CHECK, NODE_MAINTENANCE_CHECK};
pub use scope::Scope;
pub use store::StoreError;

use self::{
    checks::{
        metrics::{CheckMetric, CheckMetrics},
        runner::{CheckContext, CheckRunner},
    },
    files::Files,
    record::{Held, HeldCheck, Maintenance, Owner, RegistrationView},
    registrar::{Change, Registrar},
    registration::Registration,
    store::Store,
    subscribers::{NotificationCounters, Subscriptions},
};
use crate::{driver::order::Order, view};

/// The most instances that a node states, its roles included. Design, section 3.
pub const INSTANCES_MAX: usize = 10_000;
/// The most instances of a cluster. Design, section 3.
pub const INSTANCES_OF_CLUSTER_MAX: usize = 100_000;
/// Changes that wait for the registrar. Each is a request that is being answered.
const CHANGES_MAX: usize = 1024;

/// How long another node has to answer with the reports of its checks. Design, section 9.3.
const REPORTS_ANSWER_MAX: Duration = Duration::from_secs(1);

/// Why a registration was not changed. Nothing has happened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// A field breaks a bound.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// This node holds no such registration.
    #[error("{0}")]
    NotFound(String),
    /// Another node holds it.
    #[error("this node does not hold {id:?}; the node {node:?} does: ask that one, or add node={node}")]
    HeldElsewhere {
        /// What was asked for.
        id: String,
        /// The name of the node that holds it.
        node: String,
    },
    /// The caller has shown no more than its address, and this is not its own.
    #[error("{0}")]
    Forbidden(Invalid),
    /// It belongs to a file, or another registration is in the way.
    #[error("{0}")]
    Conflict(String),
    /// A limit of the node or the cluster is reached.
    #[error("{0}")]
    Limit(String),
    /// It cannot be stored.
    #[error("the registrations cannot be written to disk, so nothing was changed: {0}")]
    Store(#[from] StoreError),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

/// Which registrations are meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Selector {
    /// The one with this id.
    Id(String),
    /// The one with this id, if it is of this service.
    ServiceAndId(String, String),
    /// Those at this URL, as it was registered; without a path: at its origin.
    Url(String),
    /// The one that a registration like this one would replace.
    Like(Box<Registration>),
}

/// The result of a registration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registered {
    /// Its id.
    pub id: String,
    /// Which registration under this id.
    pub generation: u64,
}

/// The parts of the node that the registry works with.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The node.
    pub me: NodeId,
    /// Its table.
    pub view: Arc<view::View>,
    /// The way to the driver.
    pub orders: mpsc::Sender<Order>,
    /// How many instances the node states for its roles.
    pub roles: usize,
    /// Where the node listens: nothing on behalf of a program is sent there.
    pub listeners: Vec<SocketAddr>,
    /// Whether checks may run commands.
    pub allow_exec: bool,
}

/// The registrations of this node.
#[derive(Debug)]
pub struct Registry {
    state: Arc<Mutex<State>>,
    changes: mpsc::Sender<Change>,
    /// Connections that closed. Each was a held registration, so there are no more of them than connections.
    released: mpsc::UnboundedSender<Change>,
    connections: AtomicU64,
    suffix: String,
    orders: mpsc::Sender<Order>,
    runner: CheckRunner,
    check_metrics: Arc<CheckMetrics>,
    notifications: Arc<NotificationCounters>,
    files: Files,
}

/// The registrations as readers see them and the registrar changes them.
#[derive(Debug, Default)]
pub(crate) struct State {
    held: BTreeMap<String, Held>,
    /// Which registration has the check of an id.
    of_check: BTreeMap<String, String>,
    /// Maintenance of instances, by their ids.
    maintenance: BTreeMap<String, Maintenance>,
    node_maintenance: Option<Maintenance>,
    /// Connections that hold a registration, and those that are about to.
    endings: BTreeMap<u64, oneshot::Sender<Ending>>,
}

/// How a held registration ends before its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It was deregistered.
    Deregistered,
    /// A newer owner has taken its id over.
    Replaced,
}

/// The refusal of a change to what somebody else registered.
fn not_its_own(id: &str) -> RegistryError {
    let problem = format!(
        "{id:?} was not registered from this address; without the node's token only its own may be changed: use the token, or `node deregister` on the node's machine"
    );
    RegistryError::Forbidden(Invalid { field: "id", problem })
}

impl Registry {
    /// Reads the registrations of the last life, and starts the registrar. They are stated and checked from then on. Without a directory nothing is
    /// stored: the node keeps nothing.
    ///
    /// # Errors
    /// The registrations of the last life cannot be read.
    pub fn open(dir: Option<&Path>, parts: Parts) -> Result<Arc<Self>, StoreError> {
        let (store, stored) = match dir.map(Store::open).transpose()? {
            None => (None, store::Stored::default()),
            Some((store, stored, aside)) => {
                if let Some(aside) = aside {
                    tracing::error!(
                        put_aside = %aside.display(),
                        "the database of registrations is damaged and was put aside; programs have to register again"
                    );
                }
                for (id, problem) in &stored.unreadable {
                    tracing::error!(
                        id,
                        problem,
                        "a stored registration cannot be read; the program has to register again"
                    );
                }
                (Some(store), stored)
            }
        };
        let state = Arc::<Mutex<State>>::default();
        let suffix = parts.me.short();
        let (changes, receiver) = mpsc::channel(CHANGES_MAX);
        let (released, releases) = mpsc::unbounded_channel();
        let check_metrics = Arc::<CheckMetrics>::default();
        let context = CheckContext {
            listeners: parts.listeners.clone(),
            allow_exec: parts.allow_exec,
            metrics: Arc::clone(&check_metrics),
            ..CheckContext::new(Arc::clone(&parts.view), parts.me)
        };
        let (runner, events) = CheckRunner::new(context);
        let notifications = Arc::<NotificationCounters>::default();
        let subscriptions = Subscriptions {
            view: Arc::clone(&parts.view),
            caller: runner.caller(),
            counters: Arc::clone(&notifications),
            unstored: Arc::default(),
            acknowledged: Arc::default(),
        };
        let orders = parts.orders.clone();
        let registrar = Registrar::new(parts, Arc::clone(&state), store, runner.clone(), subscriptions);
        tokio::spawn(registrar.run(stored, receiver, releases, events));
        Ok(Arc::new(Self {
            state,
            changes,
            released,
            connections: AtomicU64::new(0),
            suffix,
            orders,
            runner,
            check_metrics,
            notifications,
            files: Files::default(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files that register some of them.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The end of this node's id, which derived ids end with.
    pub fn suffix(&self) -> &str {
        &self.suffix
    }

    /// Returns a number for a connection that will hold a registration, and a receiver of the registration's end, should that come first.
    pub fn begin_connection(&self) -> (u64, oneshot::Receiver<Ending>) {
        let connection = self.connections.fetch_add(1, Relaxed);
        let (sender, ending) = oneshot::channel();
        self.lock().endings.insert(connection, sender);
        (connection, ending)
    }

    /// The connection is closed without having held anything.
    pub fn end_connection(&self, connection: u64) {
        self.lock().endings.remove(&connection);
    }

    /// Waits until the registrations of the last life are listed by this node.
    pub async fn await_restored(&self) {
        let (answer, done) = oneshot::channel();
        if self.changes.send(Change::Barrier(answer)).await.is_ok() {
            _ = done.await;
        }
    }

    /// Registers, or replaces the registration with the same id. When this returns it is stored and listed.
    ///
    /// # Errors
    /// Nothing was changed.
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

    /// Refuses what the address policy forbids, as far as that is known now; names are judged at each connect.
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

    /// The policy for connections to instances. The members that it knows are those of this node's table.
    pub fn address_policy(&self) -> &AddressPolicy {
        self.runner.address_policy()
    }

    /// Returns the metrics of the registry, its checks and its notifications, and of connections to
    /// instances.
    pub fn metrics(&self) -> Vec<CheckMetric> {
        let single = |name, help, kind, value| CheckMetric { name, help, kind, labels: Vec::new(), value };
        let held = u64::try_from(self.len()).unwrap_or(u64::MAX);
        let notifications = &self.notifications;
        let failing = u64::try_from(self.files.failing()).unwrap_or(u64::MAX);
        let mut all = vec![
            single("registrations", "Programs that this node speaks for", MetricKind::Gauge, held),
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

    /// Deregisters, and returns the ids. When this returns, the change is stored and the instances are no longer listed.
    ///
    /// # Errors
    /// Nothing was changed.
    pub async fn deregister(
        &self,
        which: Selector,
        by: Owner,
        scope: Scope,
    ) -> Result<Vec<String>, RegistryError> {
        self.send_change(|answer| Change::Deregister(which, by, scope, answer)).await
    }

    /// The connection that holds a registration has closed. It ends at once, or is kept as critical for `grace`.
    pub fn release(&self, registered: &Registered, connection: u64, grace: Duration) {
        self.end_connection(connection);
        // The registrar is gone only when the node stops.
        _ = self.released.send(Change::Release(registered.clone(), connection, grace));
    }

    /// Takes an instance out of service, or back in where there is no reason. Kept over restarts.
    ///
    /// # Errors
    /// Nothing was changed.
    pub async fn set_maintenance(
        &self,
        id: &str,
        reason: Option<String>,
        scope: Scope,
    ) -> Result<(), RegistryError> {
        self.send_change(|answer| Change::Maintenance(id.to_owned(), reason, scope, answer)).await
    }

    /// Takes the node and all its instances out of service, or back in. Kept over restarts.
    ///
    /// # Errors
    /// Nothing was changed.
    pub async fn set_node_maintenance(&self, reason: Option<String>) -> Result<(), RegistryError> {
        self.send_change(|answer| Change::NodeMaintenance(reason, answer)).await
    }

    /// The node's own maintenance.
    pub fn node_maintenance(&self) -> Option<Maintenance> {
        self.lock().node_maintenance.clone()
    }

    /// Records the report of a program for a `ttl` check.
    ///
    /// # Errors
    /// There is no such check, or it takes no reports.
    pub fn report(
        &self,
        check: &str,
        status: Health,
        output: String,
        scope: Scope,
    ) -> Result<(), RegistryError> {
        let state = self.lock();
        let found = state.of_check.get(check).and_then(|instance| state.held.get(instance));
        if let Some(held) = found.filter(|held| !scope.includes(&held.row.registration)) {
            return Err(not_its_own(&held.row.registration.id));
        }
        let found = found.and_then(|held| held.checks.iter().find(|c| c.running.spec().id == check));
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

    /// All registrations of this node, by id.
    pub fn list(&self) -> Vec<RegistrationView> {
        let state = self.lock();
        state.held.values().map(|held| state.view_of(held)).collect()
    }

    /// The registration with this id.
    pub fn get(&self, id: &str) -> Option<RegistrationView> {
        let state = self.lock();
        state.held.get(id).map(|held| state.view_of(held))
    }

    /// Returns the registrations for the driver, without the way back to the driver.
    pub fn holdings(&self) -> Holdings {
        Holdings(Arc::clone(&self.state))
    }

    /// Asks the holder of an instance for the reports of its checks. `None`: it does not answer.
    pub async fn reports_of(&self, holder: NodeId, id: &str) -> Option<Vec<CheckReport>> {
        let (sender, answer) = oneshot::channel();
        self.orders.send(Order::AskForReports(holder, id.to_owned(), sender)).await.ok()?;
        let answer = tokio::time::timeout(REPORTS_ANSWER_MAX, answer).await.ok()?.ok()?;
        wire::checks::decode(&answer).ok()
    }

    /// The number of registrations.
    pub fn len(&self) -> usize {
        self.lock().held.len()
    }

    /// Whether there is no registration.
    pub fn is_empty(&self) -> bool {
        self.lock().held.is_empty()
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

/// The registrations of this node, for readers that must not keep the registry alive.
#[derive(Clone, Debug, Default)]
pub struct Holdings(Arc<Mutex<State>>);

impl Holdings {
    /// Encodes the reports of an instance's checks for another node; empty where this node does not hold it.
    pub fn reports(&self, id: &str) -> Vec<u8> {
        let view = {
            let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.held.get(id).map(|held| state.view_of(held))
        };
        view.map(|view| wire::checks::encode(&view.checks)).unwrap_or_default()
    }
}

impl State {
    fn view_of(&self, held: &Held) -> RegistrationView {
        let checks: Vec<CheckReport> = held.checks.iter().map(HeldCheck::report).collect();
        let maintenance = self.maintenance.get(&held.row.registration.id).cloned();
        let is_out = maintenance.is_some() || held.is_orphaned || self.node_maintenance.is_some();
        let health = match is_out {
            true => Health::Critical,
            false => checks.iter().map(|check| check.status).max().unwrap_or_default(),
        };
        RegistrationView { row: held.row.clone(), owner: held.owner.clone(), health, maintenance, checks }
    }
}
