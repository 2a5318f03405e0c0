//! [`Registrar`]: the only task that changes registrations. It decides requested changes, stores them, starts
//! and stops checks, and announces the instances to the driver.
//!
//! It processes changes in batches, in order of arrival. First it decides each change on the result of the
//! earlier ones, and writes the durable part with one sync (group commit). Then it announces all effects to
//! the driver, and answers all callers. Changes of check status are processed during the sync.

mod begin;
mod check_edits;
mod decide;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hearsay_protocol::Instance;
use tokio::sync::{mpsc, oneshot};

use begin::{Stated, restored_state, state_after};

use super::{
    change::{Answer, Change, Registered, Selector},
    checks::runner::{Begin, CheckEvent, CheckKey, CheckRunner},
    context::RegistryContext,
    error::RegistryError,
    instance::{NodeState, instance},
    record::{ActiveCheck, ActiveRegistration, Maintenance, Owner, Row, StoredChecks},
    registration::Registration,
    scope::Scope,
    state::{Ending, State},
    store::{Store, Stored, Write},
    subscribers::Subscriptions,
};
use crate::driver_command::DriverCommand;

/// Changes per batch. Guess: the decisions of a larger batch take longer than its sync.
const BATCH_MAX: usize = 512;
/// Check events announced together.
const EVENTS_MAX: usize = 256;
/// Interval at which statuses are written and the advertised address is read.
const HOUSEKEEPING_EVERY: Duration = Duration::from_millis(250);
/// Statuses per write. Guess: a larger write delays clients by more than a sync.
const STATUSES_MAX: usize = 256;
/// Time limit for this node's own header to appear in the table before registrations are restored.
const HEADER_MAX: Duration = Duration::from_secs(10);
/// Name of the setting that stores the node's maintenance.
const NODE_MAINTENANCE: &str = "maintenance";
/// Prefix of settings that store the maintenance of an instance.
const MAINTENANCE_OF: &str = "maintenance/";
/// Prefix of settings that store which notifications an instance has acknowledged.
const ACKNOWLEDGED_BY: &str = "acknowledged/";

/// A change in memory, applied after the batch is stored.
#[derive(Debug)]
enum Effect {
    Activate(Box<Row>, Owner, Stated),
    Remove(String),
    Orphan(String),
    Maintain(String, Option<Maintenance>),
    MaintainNode(Option<Maintenance>),
}

/// An answer, sent after the batch is announced.
#[derive(Debug)]
enum Reply {
    Registered(String, Answer<Registered>),
    Removed(Vec<String>, Answer<Vec<String>>),
    Done(Answer<()>),
    Barrier(oneshot::Sender<()>),
}

/// A decided batch: its writes to disk, its changes in memory and its answers.
#[derive(Debug, Default)]
struct Batch {
    effects: Vec<Effect>,
    writes: Vec<Write>,
    replies: Vec<Reply>,
    /// Registrations after the changes so far, where they differ from the state; `None`: removed.
    planned: BTreeMap<String, Option<(Owner, Registration)>>,
}

/// State of the registrar's task.
pub(super) struct Registrar {
    context: RegistryContext,
    state: Arc<Mutex<State>>,
    store: Option<Store>,
    runner: CheckRunner,
    subscriptions: Subscriptions,
    generation: u64,
    /// The advertised host in the last announcement.
    host: String,
    /// Ids of registrations whose stored statuses are out of date.
    unstored: BTreeSet<String>,
    /// Ids of registrations in a failed batch: their content on disk is unknown.
    uncertain: BTreeSet<String>,
    /// Acknowledgements from before the restart of the node, until the restore ends.
    acknowledged: BTreeMap<String, String>,
    /// Changes that the registrar sends to itself, such as the end of a grace period.
    timers: (mpsc::UnboundedSender<Change>, mpsc::UnboundedReceiver<Change>),
}

impl Registrar {
    pub(super) fn new(
        context: RegistryContext,
        state: Arc<Mutex<State>>,
        store: Option<Store>,
        runner: CheckRunner,
        subscriptions: Subscriptions,
    ) -> Self {
        Self {
            context,
            state,
            store,
            runner,
            subscriptions,
            generation: 0,
            host: String::new(),
            unstored: BTreeSet::new(),
            uncertain: BTreeSet::new(),
            acknowledged: BTreeMap::new(),
            timers: mpsc::unbounded_channel(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Restores the stored registrations, then processes changes until the handle is dropped.
    pub(super) async fn run(
        mut self,
        stored: Stored,
        mut changes: mpsc::Receiver<Change>,
        mut releases: mpsc::UnboundedReceiver<Change>,
        mut events: mpsc::Receiver<CheckEvent>,
    ) {
        self.restore(stored).await;
        let acknowledged = Arc::clone(&self.subscriptions.acknowledged);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING_EVERY);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => self.apply_events(event, &mut events).await,
                Some(change) = releases.recv() => self.apply_releases(change, &mut releases, &mut events).await,
                Some(change) = self.timers.1.recv() => self.apply_batch(vec![change], &mut events).await,
                // Polled before `changes`, so that many changes cannot starve it.
                () = acknowledged.notified() => self.store_acknowledged().await,
                change = changes.recv() => match change {
                    Some(change) => {
                        let mut batch = vec![change];
                        while batch.len() < BATCH_MAX && let Ok(change) = changes.try_recv() {
                            batch.push(change);
                        }
                        self.apply_batch(batch, &mut events).await;
                    }
                    None => break,
                },
                _ = housekeeping.tick() => self.run_housekeeping().await,
            }
        }
        self.store_statuses().await;
        self.store_acknowledged().await;
    }

    async fn apply_releases(
        &mut self,
        first: Change,
        rest: &mut mpsc::UnboundedReceiver<Change>,
        events: &mut mpsc::Receiver<CheckEvent>,
    ) {
        let mut batch = vec![first];
        while batch.len() < BATCH_MAX
            && let Ok(change) = rest.try_recv()
        {
            batch.push(change);
        }
        self.apply_batch(batch, events).await;
    }

    /// Waits for this node's own header, which has the advertised host, and then restores registrations.
    async fn restore(&mut self, stored: Stored) {
        let mut newest = self.context.view.subscribe();
        let listed = async {
            let is_missing = || self.advertised_host().is_none() && !self.context.driver.is_closed();
            while is_missing() && newest.changed().await.is_ok() {}
        };
        _ = tokio::time::timeout(HEADER_MAX, listed).await;
        self.host = self.advertised_host().unwrap_or_else(|| "127.0.0.1".into());
        for (name, value) in stored.settings {
            if let Some(id) = name.strip_prefix(ACKNOWLEDGED_BY) {
                self.acknowledged.insert(id.to_owned(), value);
                continue;
            }
            let Ok(maintenance) = serde_json::from_str::<Maintenance>(&value) else { continue };
            match name.strip_prefix(MAINTENANCE_OF) {
                Some(id) => _ = self.lock().maintenance.insert(id.to_owned(), maintenance),
                None if name == NODE_MAINTENANCE => self.lock().node_maintenance = Some(maintenance),
                None => (),
            }
        }
        if self.lock().node_maintenance.is_some() {
            _ = self.context.driver.send(DriverCommand::Maintenance(true)).await;
        }
        let (total, mut ids) =
            (stored.rows.iter().map(|(row, _)| row.registration.checks.len()).sum(), vec![]);
        for (row, checks) in stored.rows {
            ids.push(row.registration.id.clone());
            self.activate(row, Owner::Api, Some((&checks, total)), &Stated::All);
        }
        self.acknowledged.clear();
        if !ids.is_empty() {
            tracing::info!(registrations = ids.len(), "restored the stored registrations");
        }
        self.announce(ids).await;
    }

    fn advertised_host(&self) -> Option<String> {
        let http = self.context.view.read(|table| table.member(self.context.node_id)?.http.clone())?;
        let (host, _) = http.rsplit_once(':')?;
        Some(host.trim_matches(['[', ']']).to_owned())
    }

    /// Decides, stores, announces and answers a batch.
    async fn apply_batch(&mut self, changes: Vec<Change>, events: &mut mpsc::Receiver<CheckEvent>) {
        let mut batch = Batch::default();
        for change in changes {
            self.decide(change, &mut batch);
        }
        if let Err(error) = self.store_batch(&mut batch, events).await {
            tracing::warn!(%error, "registrations cannot be stored; the changes were refused");
            for write in &batch.writes {
                match write {
                    Write::Upsert(row) => _ = self.uncertain.insert(row.registration.id.clone()),
                    Write::Delete(id) => _ = self.uncertain.insert(id.clone()),
                    Write::Checks(..) | Write::Setting(..) => (),
                }
            }
            batch.replies.into_iter().for_each(|reply| reply.fail(&error));
            return;
        }
        let mut touched = BTreeSet::new();
        for effect in batch.effects {
            self.apply_effect(effect, &mut touched).await;
        }
        self.announce(touched).await;
        self.lock().changes.send_modify(|count| *count += 1);
        for reply in batch.replies {
            reply.succeed(&self.lock());
        }
    }

    /// Writes the durable part of a batch. Check events are processed meanwhile, so a slow disk hides no
    /// failure.
    async fn store_batch(
        &mut self,
        batch: &mut Batch,
        events: &mut mpsc::Receiver<CheckEvent>,
    ) -> Result<(), RegistryError> {
        let Some(store) = self.store.clone() else { return Ok(()) };
        if batch.writes.is_empty() {
            return Ok(());
        }
        let mut writes = self.rewrite_uncertain();
        let (ids, statuses) = self.status_writes();
        writes.extend(statuses);
        // The batch comes after the statuses: its upserts keep the statuses of their rows.
        writes.extend(batch.writes.iter().cloned());
        let mut pending = store.write(writes, true);
        loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => self.apply_events(event, events).await,
                stored = pending.done() => {
                    stored?;
                    self.uncertain.clear();
                    ids.iter().for_each(|id| _ = self.unstored.remove(id));
                    return Ok(());
                }
            }
        }
    }

    /// Returns writes that restore what a failed batch may have changed on disk.
    fn rewrite_uncertain(&self) -> Vec<Write> {
        let state = self.lock();
        let write = |id: &String| match state.registrations.get(id).filter(|active| active.is_durable()) {
            Some(active) => Write::Upsert(Box::new(active.row.clone())),
            None => Write::Delete(id.clone()),
        };
        self.uncertain.iter().map(write).collect()
    }

    async fn apply_effect(&mut self, effect: Effect, touched: &mut BTreeSet<String>) {
        match effect {
            Effect::Activate(row, owner, stated) => {
                touched.insert(row.registration.id.clone());
                self.activate(*row, owner, None, &stated);
            }
            Effect::Remove(id) => {
                let mut state = self.lock();
                state.maintenance.remove(&id);
                if let Some(active) = state.registrations.remove(&id) {
                    state.detach(&active, Ending::Deregistered);
                }
                drop(state);
                self.unstored.remove(&id);
                touched.insert(id);
            }
            Effect::Orphan(id) => {
                if let Some(active) = self.lock().registrations.get_mut(&id) {
                    active.is_orphaned = true;
                }
                touched.insert(id);
            }
            Effect::Maintain(id, maintenance) => {
                match maintenance {
                    Some(maintenance) => _ = self.lock().maintenance.insert(id.clone(), maintenance),
                    None => _ = self.lock().maintenance.remove(&id),
                }
                touched.insert(id);
            }
            Effect::MaintainNode(maintenance) => {
                let enable = maintenance.is_some();
                self.lock().node_maintenance = maintenance;
                // The driver is gone only when the node stops.
                _ = self.context.driver.send(DriverCommand::Maintenance(enable)).await;
                touched.extend(self.lock().registrations.keys().cloned());
            }
        }
    }

    /// Puts a registration into effect. Its checks start; a check that the replaced registration had, too,
    /// goes on.
    fn activate(
        &mut self,
        row: Row,
        owner: Owner,
        restored: Option<(&StoredChecks, usize)>,
        stated: &Stated,
    ) {
        self.generation += 1;
        let (generation, id) = (self.generation, row.registration.id.clone());
        let before = {
            let mut state = self.lock();
            let before = state.registrations.remove(&id);
            before.iter().for_each(|active| state.detach(active, Ending::Replaced));
            before
        };
        let mut checks = Vec::new();
        for spec in &row.registration.checks {
            let begin = match (restored, &before) {
                (Some((stored, total)), _) => restored_state(stored.get(&spec.id), total),
                (None, Some(before)) => state_after(before, &row.registration, spec, stated),
                (None, None) => Begin::Registered,
            };
            let key = CheckKey { instance: id.clone(), generation, check: spec.id.clone() };
            let running = self.runner.start(key, spec.clone(), begin);
            let stated = running.state();
            checks.push(ActiveCheck { running, stated });
        }
        // A repeated registration keeps its age.
        let since_ms = before.as_ref().map_or(row.since_ms, |active| active.row.since_ms);
        let acknowledged = self.acknowledged.remove(&id).filter(|_| restored.is_some());
        let subscription = self.subscriptions.start(&row.registration, acknowledged.as_deref());
        let row = Row { since_ms, ..row };
        let active = ActiveRegistration {
            row,
            owner,
            generation,
            checks,
            is_orphaned: false,
            _subscription: subscription,
        };
        let mut state = self.lock();
        for check in &active.checks {
            state.instance_of_check.insert(check.running.spec().id.clone(), id.clone());
        }
        let has_checks = !active.checks.is_empty();
        state.registrations.insert(id.clone(), active);
        drop(state);
        if has_checks {
            self.unstored.insert(id);
        }
    }

    /// Announces the current state of registrations, removals included, to the driver. Returns once the
    /// provider table has it.
    async fn announce(&self, ids: impl IntoIterator<Item = String>) {
        let instances: Vec<(String, Option<Box<Instance>>)> = {
            let state = self.lock();
            let node =
                NodeState { advertised_host: &self.host, maintenance: state.node_maintenance.as_ref() };
            let stated = |id: String| {
                let active = state.registrations.get(&id);
                let instance =
                    active.map(|active| Box::new(instance(active, state.maintenance.get(&id), node)));
                (id, instance)
            };
            ids.into_iter().map(stated).collect()
        };
        if instances.is_empty() {
            return;
        }
        let (done, announced) = oneshot::channel();
        // The driver is gone only when the node stops.
        if self.context.driver.send(DriverCommand::SetInstances(instances, done)).await.is_ok() {
            _ = announced.await;
        }
    }

    /// Processes the queued check events.
    async fn apply_events(&mut self, first: CheckEvent, events: &mut mpsc::Receiver<CheckEvent>) {
        let mut touched = BTreeSet::new();
        self.apply_event(first, &mut touched);
        let mut taken = 1;
        while taken < EVENTS_MAX
            && let Ok(event) = events.try_recv()
        {
            self.apply_event(event, &mut touched);
            taken += 1;
        }
        self.unstored.extend(touched.iter().cloned());
        self.announce(touched).await;
    }

    fn apply_event(&mut self, event: CheckEvent, touched: &mut BTreeSet<String>) {
        match event {
            CheckEvent::Changed(key, changed) => {
                let mut state = self.lock();
                let active = state
                    .registrations
                    .get_mut(&key.instance)
                    .filter(|active| active.generation == key.generation);
                let checks = active.into_iter().flat_map(|active| &mut active.checks);
                if let Some(check) = checks.into_iter().find(|check| check.running.spec().id == key.check) {
                    check.stated = changed;
                    touched.insert(key.instance);
                }
            }
            CheckEvent::Expired(key) => {
                let registered = Registered { id: key.instance, generation: key.generation };
                tracing::info!(
                    id = registered.id,
                    check = key.check,
                    "deregistering an instance that was critical for longer than deregister_after"
                );
                let is_current = self
                    .lock()
                    .registrations
                    .get(&registered.id)
                    .is_some_and(|h| h.generation == registered.generation);
                if is_current {
                    let (answer, _) = oneshot::channel();
                    let by = self.lock().registrations.get(&registered.id).map(|active| active.owner.clone());
                    let change = Change::Deregister(
                        Selector::Id(registered.id),
                        by.unwrap_or_default(),
                        Scope::All,
                        answer,
                    );
                    // The change goes through the queue, so that it is decided in order.
                    _ = self.timers.0.send(change);
                }
            }
        }
    }

    async fn run_housekeeping(&mut self) {
        self.store_statuses().await;
        let host = self.advertised_host();
        if let Some(host) = host.filter(|host| *host != self.host) {
            self.host = host;
            let moved: Vec<String> = {
                let state = self.lock();
                let moved =
                    state.registrations.iter().filter(|(_, active)| active.row.registration.host.is_none());
                moved.map(|(id, _)| id.clone()).collect()
            };
            self.announce(moved).await;
        }
    }

    /// Writes changed statuses, without a sync.
    async fn store_statuses(&mut self) {
        let Some(store) = self.store.clone() else { return };
        while !self.unstored.is_empty() {
            let (ids, writes) = self.status_writes();
            // After an error the statuses stay in `unstored`, and the next housekeeping tries again.
            if !writes.is_empty() && store.write(writes, false).done().await.is_err() {
                return;
            }
            ids.iter().for_each(|id| _ = self.unstored.remove(id));
        }
    }

    /// Writes acknowledged notifications at once, without a sync. If the node is killed before the write, an
    /// instance that vanishes during the restart causes no removal.
    async fn store_acknowledged(&self) {
        let Some(store) = self.store.clone() else { return };
        let acknowledged = self.subscriptions.take_unstored();
        let writes: Vec<Write> = {
            let state = self.lock();
            let is_kept =
                |id: &String| state.registrations.get(id).is_some_and(ActiveRegistration::is_durable);
            let kept = acknowledged.into_iter().filter(|(id, _)| is_kept(id));
            kept.map(|(id, known)| Write::Setting(format!("{ACKNOWLEDGED_BY}{id}"), Some(known))).collect()
        };
        if !writes.is_empty() {
            // After an error, the program's next acknowledgement writes them again.
            _ = store.write(writes, false).done().await;
        }
    }

    /// Returns ids and writes of the next statuses to store.
    fn status_writes(&self) -> (Vec<String>, Vec<Write>) {
        let state = self.lock();
        let ids: Vec<String> = self.unstored.iter().take(STATUSES_MAX).cloned().collect();
        let stored = |id: &String| {
            let active = state.registrations.get(id).filter(|active| active.is_durable())?;
            Some(Write::Checks(id.clone(), active.stored_checks()))
        };
        let writes = ids.iter().filter_map(stored).collect();
        (ids, writes)
    }
}

impl Reply {
    fn fail(self, error: &RegistryError) {
        // A send error means that the client is gone.
        match self {
            Self::Registered(_, answer) => _ = answer.send(Err(error.clone())),
            Self::Removed(_, answer) => _ = answer.send(Err(error.clone())),
            Self::Done(answer) => _ = answer.send(Err(error.clone())),
            Self::Barrier(answer) => _ = answer.send(()),
        }
    }

    fn succeed(self, state: &State) {
        match self {
            Self::Registered(id, answer) => {
                let generation = state.registrations.get(&id).map_or(0, |active| active.generation);
                _ = answer.send(Ok(Registered { id, generation }));
            }
            Self::Removed(ids, answer) => _ = answer.send(Ok(ids)),
            Self::Done(answer) => _ = answer.send(Ok(())),
            Self::Barrier(answer) => _ = answer.send(()),
        }
    }
}
