//! The registrar: the one task that changes registrations.
//!
//! Changes are taken in batches, in the order in which they came: each is decided by what the ones before it leave behind, then all that must last are
//! written with one sync, then the effects of all are stated to the driver, and then all are answered. Changes of checks go on meanwhile.

mod decide;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hearsay_protocol::record::Instance;
use tokio::sync::{mpsc, oneshot};

use super::{
    Ending, Parts, Registered, RegistryError, Selector, State,
    checks::{
        CheckSpec,
        runner::{Begin, CheckEvent, CheckKey, CheckRunner, CheckState},
    },
    instance::{Surroundings, instance},
    record::{Held, HeldCheck, Maintenance, Owner, Row, StoredChecks},
    registration::Registration,
    scope::Scope,
    store::{Store, Stored, Write},
    subscribers::Subscriptions,
};
use crate::{driver::Order, timestamp::now_ms};

/// Changes taken together. More would keep the first of them waiting for longer than a sync.
const BATCH_MAX: usize = 512;
/// Changes of checks stated together.
const EVENTS_MAX: usize = 256;
/// How often statuses are written down, and the advertised address is looked at.
const TIDY_EVERY: Duration = Duration::from_millis(250);
/// Statuses written together. More would keep a client waiting for longer than a sync.
const STATUSES_MAX: usize = 256;
/// How long the driver has to state this node's own header before registrations are restored.
const HEADER_MAX: Duration = Duration::from_secs(10);
/// The setting under which the maintenance of the node is stored.
const NODE_MAINTENANCE: &str = "maintenance";
/// What comes before an instance's id in the setting of its maintenance.
const MAINTENANCE_OF: &str = "maintenance/";
/// What comes before an instance's id in the setting of what it has acknowledged of notifications.
const ACKNOWLEDGED_BY: &str = "acknowledged/";

type Answer<T> = oneshot::Sender<Result<T, RegistryError>>;

/// What is asked of the registrar.
#[derive(Debug)]
pub(super) enum Change {
    Register(Box<Registration>, Owner, Answer<Registered>),
    Deregister(Selector, Owner, Scope, Answer<Vec<String>>),
    /// The connection of a held registration closed.
    Release(Registered, u64, Duration),
    /// The grace of a held registration is over.
    EndGrace(Registered),
    Maintenance(String, Option<String>, Scope, Answer<()>),
    NodeMaintenance(Option<String>, Answer<()>),
    /// Answered when everything before it has been done.
    Barrier(oneshot::Sender<()>),
}

/// What is done once a batch is stored.
#[derive(Debug)]
enum Effect {
    Put(Box<Row>, Owner),
    Remove(String),
    Orphan(String),
    Maintain(String, Option<Maintenance>),
    MaintainNode(Option<Maintenance>),
}

/// Who is answered once a batch is done.
#[derive(Debug)]
enum Reply {
    Registered(String, Answer<Registered>),
    Removed(Vec<String>, Answer<Vec<String>>),
    Done(Answer<()>),
    Barrier(oneshot::Sender<()>),
}

/// A batch that has been decided.
#[derive(Debug, Default)]
struct Batch {
    effects: Vec<Effect>,
    writes: Vec<Write>,
    replies: Vec<Reply>,
    /// What the changes so far leave behind where it is not what is held: `None` for what is gone.
    planned: BTreeMap<String, Option<(Owner, Registration)>>,
}

/// The task.
pub(super) struct Registrar {
    parts: Parts,
    state: Arc<Mutex<State>>,
    store: Option<Store>,
    runner: CheckRunner,
    subscriptions: Subscriptions,
    generation: u64,
    /// The host that was advertised when instances were stated last.
    host: String,
    /// Registrations whose stored statuses are out of date.
    unstored: BTreeSet<String>,
    /// Registrations that a failed batch was about: what is on the disk of them is not known.
    uncertain: BTreeSet<String>,
    /// While registrations are restored, what their programs had acknowledged.
    acknowledged: BTreeMap<String, String>,
    /// To itself, when a grace is over.
    timers: (mpsc::UnboundedSender<Change>, mpsc::UnboundedReceiver<Change>),
}

impl Registrar {
    pub(super) fn new(
        parts: Parts,
        state: Arc<Mutex<State>>,
        store: Option<Store>,
        runner: CheckRunner,
        subscriptions: Subscriptions,
    ) -> Self {
        Self {
            parts,
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

    /// Restores what was stored, and then goes on until the registry is gone.
    pub(super) async fn run(
        mut self,
        stored: Stored,
        mut changes: mpsc::Receiver<Change>,
        mut releases: mpsc::UnboundedReceiver<Change>,
        mut events: mpsc::Receiver<CheckEvent>,
    ) {
        self.restore(stored).await;
        let acknowledged = Arc::clone(&self.subscriptions.acknowledged);
        let mut tidy = tokio::time::interval(TIDY_EVERY);
        tidy.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => self.on_events(event, &mut events).await,
                Some(change) = releases.recv() => self.on_changes(change, &mut releases, &mut events).await,
                Some(change) = self.timers.1.recv() => self.on_batch(vec![change], &mut events).await,
                // Before registrations: a stream of them would put it off.
                () = acknowledged.notified() => self.store_acknowledged().await,
                change = changes.recv() => match change {
                    Some(change) => {
                        let mut batch = vec![change];
                        while batch.len() < BATCH_MAX && let Ok(change) = changes.try_recv() {
                            batch.push(change);
                        }
                        self.on_batch(batch, &mut events).await;
                    }
                    None => break,
                },
                _ = tidy.tick() => self.tidy().await,
            }
        }
        self.store_statuses().await;
        self.store_acknowledged().await;
    }

    async fn on_changes(
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
        self.on_batch(batch, events).await;
    }

    /// Waits for this node's own header, since it tells the advertised host; then states what was stored.
    async fn restore(&mut self, stored: Stored) {
        let mut newest = self.parts.view.subscribe();
        let listed = async {
            let is_expected = || self.advertised_host().is_none() && !self.parts.orders.is_closed();
            while is_expected() && newest.changed().await.is_ok() {}
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
            _ = self.parts.orders.send(Order::Maintenance(true)).await;
        }
        let (total, mut ids) =
            (stored.rows.iter().map(|(row, _)| row.registration.checks.len()).sum(), vec![]);
        for (row, checks) in stored.rows {
            ids.push(row.registration.id.clone());
            self.hold(row, Owner::Api, Some((&checks, total)));
        }
        self.acknowledged.clear();
        if !ids.is_empty() {
            tracing::info!(registrations = ids.len(), "restored");
        }
        self.state_to_driver(ids).await;
    }

    fn advertised_host(&self) -> Option<String> {
        let http = self.parts.view.read(|table| table.member(self.parts.me)?.http.clone())?;
        let (host, _) = http.rsplit_once(':')?;
        Some(host.trim_matches(['[', ']']).to_owned())
    }

    /// Decides, stores, states and answers a batch.
    async fn on_batch(&mut self, changes: Vec<Change>, events: &mut mpsc::Receiver<CheckEvent>) {
        let mut batch = Batch::default();
        for change in changes {
            self.decide(change, &mut batch);
        }
        if let Err(error) = self.store_batch(&mut batch, events).await {
            tracing::warn!(%error, "registrations are not stored");
            for write in &batch.writes {
                match write {
                    Write::Put(row) => _ = self.uncertain.insert(row.registration.id.clone()),
                    Write::Delete(id) => _ = self.uncertain.insert(id.clone()),
                    Write::Checks(..) | Write::Setting(..) => (),
                }
            }
            batch.replies.into_iter().for_each(|reply| reply.refuse(&error));
            return;
        }
        let mut touched = BTreeSet::new();
        for effect in batch.effects {
            self.carry_out(effect, &mut touched).await;
        }
        self.state_to_driver(touched).await;
        for reply in batch.replies {
            reply.tell(&self.lock());
        }
    }

    /// Writes what must last. Checks go on meanwhile: a disk that takes its time hides no crash.
    async fn store_batch(
        &mut self,
        batch: &mut Batch,
        events: &mut mpsc::Receiver<CheckEvent>,
    ) -> Result<(), RegistryError> {
        let Some(store) = self.store.clone() else { return Ok(()) };
        if batch.writes.is_empty() {
            return Ok(());
        }
        let mut writes = self.reassert();
        let (ids, statuses) = self.status_writes();
        writes.extend(statuses);
        // After the statuses, because a row that is put in the place of another keeps them.
        writes.extend(batch.writes.iter().cloned());
        let mut pending = store.write(writes, true);
        loop {
            tokio::select! {
                biased;
                Some(event) = events.recv() => self.on_events(event, events).await,
                stored = pending.done() => {
                    stored?;
                    self.uncertain.clear();
                    ids.iter().for_each(|id| _ = self.unstored.remove(id));
                    return Ok(());
                }
            }
        }
    }

    /// Writes again what a failed batch may have changed on the disk.
    fn reassert(&self) -> Vec<Write> {
        let state = self.lock();
        let write = |id: &String| match state.held.get(id).filter(|held| held.is_durable()) {
            Some(held) => Write::Put(Box::new(held.row.clone())),
            None => Write::Delete(id.clone()),
        };
        self.uncertain.iter().map(write).collect()
    }

    async fn carry_out(&mut self, effect: Effect, touched: &mut BTreeSet<String>) {
        match effect {
            Effect::Put(row, owner) => {
                touched.insert(row.registration.id.clone());
                self.hold(*row, owner, None);
            }
            Effect::Remove(id) => {
                let mut state = self.lock();
                state.maintenance.remove(&id);
                if let Some(held) = state.held.remove(&id) {
                    state.let_go(&held, Ending::Deregistered);
                }
                drop(state);
                self.unstored.remove(&id);
                touched.insert(id);
            }
            Effect::Orphan(id) => {
                if let Some(held) = self.lock().held.get_mut(&id) {
                    held.is_orphaned = true;
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
                _ = self.parts.orders.send(Order::Maintenance(enable)).await;
                touched.extend(self.lock().held.keys().cloned());
            }
        }
    }

    /// Holds a registration from now on: its checks begin, or go on where the one that it replaces had the same.
    fn hold(&mut self, row: Row, owner: Owner, restored: Option<(&StoredChecks, usize)>) {
        self.generation += 1;
        let (generation, id) = (self.generation, row.registration.id.clone());
        let before = {
            let mut state = self.lock();
            let before = state.held.remove(&id);
            before.iter().for_each(|held| state.let_go(held, Ending::Replaced));
            before
        };
        let mut checks = Vec::new();
        for spec in &row.registration.checks {
            let same = before.iter().flat_map(|held| &held.checks).find(|c| c.running.spec() == spec);
            let changed = before.as_ref().and_then(|held| state_before(held, &row.registration, spec));
            let begin = match (same, restored) {
                (Some(same), _) => Begin::Replaced(same.running.state()),
                (None, None) if changed.is_some() => Begin::Restored(changed.unwrap_or_default(), 1),
                (None, Some((stored, total))) => match stored.get(&spec.id) {
                    Some(stored) => Begin::Restored(
                        CheckState {
                            status: stored.status,
                            since_ms: stored.since_ms,
                            output: stored.output.clone(),
                            ..CheckState::default()
                        },
                        total,
                    ),
                    None => Begin::Registered,
                },
                (None, None) => Begin::Registered,
            };
            let key = CheckKey { instance: id.clone(), generation, check: spec.id.clone() };
            let running = self.runner.start(key, spec.clone(), begin);
            let stated = running.state();
            checks.push(HeldCheck { running, stated });
        }
        // Registered again, it is as old as it was.
        let since_ms = before.as_ref().map_or(row.since_ms, |held| held.row.since_ms);
        let acknowledged = self.acknowledged.remove(&id).filter(|_| restored.is_some());
        let subscription = self.subscriptions.start(&row.registration, acknowledged.as_deref());
        let row = Row { since_ms, ..row };
        let held = Held { row, owner, generation, checks, is_orphaned: false, _subscription: subscription };
        let mut state = self.lock();
        for check in &held.checks {
            state.of_check.insert(check.running.spec().id.clone(), id.clone());
        }
        let has_checks = !held.checks.is_empty();
        state.held.insert(id.clone(), held);
        drop(state);
        if has_checks {
            self.unstored.insert(id);
        }
    }

    /// States registrations to the driver as they are now, or that they are gone. Returns once the table shows it.
    async fn state_to_driver(&self, ids: impl IntoIterator<Item = String>) {
        let instances: Vec<(String, Option<Box<Instance>>)> = {
            let state = self.lock();
            let around = Surroundings { host: &self.host, node_maintenance: state.node_maintenance.as_ref() };
            let stated = |id: String| {
                let held = state.held.get(&id);
                let instance = held.map(|held| Box::new(instance(held, state.maintenance.get(&id), around)));
                (id, instance)
            };
            ids.into_iter().map(stated).collect()
        };
        if instances.is_empty() {
            return;
        }
        let (tell, told) = oneshot::channel();
        // The driver is gone only when the node stops.
        if self.parts.orders.send(Order::SetInstances(instances, tell)).await.is_ok() {
            _ = told.await;
        }
    }

    /// Takes changes of checks, as many as are there.
    async fn on_events(&mut self, first: CheckEvent, events: &mut mpsc::Receiver<CheckEvent>) {
        let mut touched = BTreeSet::new();
        self.on_event(first, &mut touched);
        let mut taken = 1;
        while taken < EVENTS_MAX
            && let Ok(event) = events.try_recv()
        {
            self.on_event(event, &mut touched);
            taken += 1;
        }
        self.unstored.extend(touched.iter().cloned());
        self.state_to_driver(touched).await;
    }

    fn on_event(&mut self, event: CheckEvent, touched: &mut BTreeSet<String>) {
        match event {
            CheckEvent::Changed(key, changed) => {
                let mut state = self.lock();
                let held = state.held.get_mut(&key.instance).filter(|held| held.generation == key.generation);
                let checks = held.into_iter().flat_map(|held| &mut held.checks);
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
                    "deregistering an instance that has been critical for too long"
                );
                let is_there = self
                    .lock()
                    .held
                    .get(&registered.id)
                    .is_some_and(|h| h.generation == registered.generation);
                if is_there {
                    let (answer, _) = oneshot::channel();
                    let by = self.lock().held.get(&registered.id).map(|held| held.owner.clone());
                    let change = Change::Deregister(
                        Selector::Id(registered.id),
                        by.unwrap_or_default(),
                        Scope::All,
                        answer,
                    );
                    // To itself, so that it takes its turn.
                    _ = self.timers.0.send(change);
                }
            }
        }
    }

    async fn tidy(&mut self) {
        self.store_statuses().await;
        let host = self.advertised_host();
        if let Some(host) = host.filter(|host| *host != self.host) {
            self.host = host;
            let moved: Vec<String> = {
                let state = self.lock();
                let moved = state.held.iter().filter(|(_, held)| held.row.registration.host.is_none());
                moved.map(|(id, _)| id.clone()).collect()
            };
            self.state_to_driver(moved).await;
        }
    }

    /// Writes statuses down, without a sync.
    async fn store_statuses(&mut self) {
        let Some(store) = self.store.clone() else { return };
        while !self.unstored.is_empty() {
            let (ids, writes) = self.status_writes();
            // What fails is written with the next change.
            if !writes.is_empty() && store.write(writes, false).done().await.is_err() {
                return;
            }
            ids.iter().for_each(|id| _ = self.unstored.remove(id));
        }
    }

    /// Writes down what programs have acknowledged of notifications, without a sync. At once: what is not stored when the node is killed could
    /// vanish meanwhile without a removal.
    async fn store_acknowledged(&self) {
        let Some(store) = self.store.clone() else { return };
        let acknowledged = self.subscriptions.take_unstored();
        let writes: Vec<Write> = {
            let state = self.lock();
            let is_kept = |id: &String| state.held.get(id).is_some_and(Held::is_durable);
            let kept = acknowledged.into_iter().filter(|(id, _)| is_kept(id));
            kept.map(|(id, known)| Write::Setting(format!("{ACKNOWLEDGED_BY}{id}"), Some(known))).collect()
        };
        if !writes.is_empty() {
            // What fails is written with the next acknowledgement.
            _ = store.write(writes, false).done().await;
        }
    }

    /// Some of the statuses that are to be stored, and whose they are.
    fn status_writes(&self) -> (Vec<String>, Vec<Write>) {
        let state = self.lock();
        let ids: Vec<String> = self.unstored.iter().take(STATUSES_MAX).cloned().collect();
        let stored = |id: &String| {
            let held = state.held.get(id).filter(|held| held.is_durable())?;
            Some(Write::Checks(id.clone(), held.stored_checks()))
        };
        let writes = ids.iter().filter_map(stored).collect();
        (ids, writes)
    }
}

/// How a check begins that its registration did not have as it is now: a registration that replaces another of the same program does so
/// without a flap. A check of the same id and kind keeps its status, and any other has that of the instance, until the first run. `None`: it is
/// another program.
fn state_before(before: &Held, registration: &Registration, spec: &CheckSpec) -> Option<CheckState> {
    let old = &before.row.registration;
    let place = |registration: &Registration| (registration.local_host.clone(), registration.port);
    if before.is_orphaned || place(old) != place(registration) {
        return None;
    }
    let is_kin = |check: &&HeldCheck| {
        let known = check.running.spec();
        known.id == spec.id && known.kind.as_str() == spec.kind.as_str()
    };
    let kin = before.checks.iter().find(is_kin).map(|check| check.running.state());
    let status = before.checks.iter().map(|check| check.running.state().status).max().unwrap_or_default();
    let of_instance = || CheckState {
        status,
        since_ms: now_ms(),
        output: "not run yet; the instance was so before it was registered again".into(),
        ..CheckState::default()
    };
    Some(kin.unwrap_or_else(of_instance))
}

impl State {
    /// A registration is held no longer: its checks are unknown, and its connection is told why.
    fn let_go(&mut self, held: &Held, ending: Ending) {
        if let Owner::Connection(connection) = held.owner
            && let Some(tell) = self.endings.remove(&connection)
        {
            // The connection may be closing.
            _ = tell.send(ending);
        }
        for check in &held.checks {
            let id = &check.running.spec().id;
            if self.of_check.get(id) == Some(&held.row.registration.id) {
                self.of_check.remove(id);
            }
        }
    }
}

impl Reply {
    fn refuse(self, error: &RegistryError) {
        // The client may be gone.
        match self {
            Self::Registered(_, answer) => _ = answer.send(Err(error.clone())),
            Self::Removed(_, answer) => _ = answer.send(Err(error.clone())),
            Self::Done(answer) => _ = answer.send(Err(error.clone())),
            Self::Barrier(answer) => _ = answer.send(()),
        }
    }

    fn tell(self, state: &State) {
        match self {
            Self::Registered(id, answer) => {
                let generation = state.held.get(&id).map_or(0, |held| held.generation);
                _ = answer.send(Ok(Registered { id, generation }));
            }
            Self::Removed(ids, answer) => _ = answer.send(Ok(ids)),
            Self::Done(answer) => _ = answer.send(Ok(())),
            Self::Barrier(answer) => _ = answer.send(()),
        }
    }
}
