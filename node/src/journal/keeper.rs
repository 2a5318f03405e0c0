//! The thread of one topic: feeds the journal's machine, and does what it says on the disk.
//!
//! The order that the machine relies on: runs are put into one transaction; when nothing more has come, it is committed, which syncs; and only
//! then the machine is told that they are stored, and what depends on it leaves.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hearsay_protocol::{
    Identity, NodeId, Time,
    journal::{
        Config, DiskError, Durability, Input, Journal, LoadId, Output, Restored, WriteId,
        append::{Append, AppendError, AppendId, Appended},
        feed::{FeedId, Run, Seq},
        message::{Extent, JournalRequest, JournalResponse, address},
        replica_set::Generation,
    },
    sync::Ticket,
    wire::{self, Received},
};
#[cfg(feature = "broken")]
use hearsay_services::journal::Write;
use hearsay_services::journal::{Projection, Readers, Retention, is_damage};
use tokio::sync::{mpsc::Sender, oneshot, watch};

use super::{
    Shown, Told,
    mend::mend,
    read_only::has_room,
    retention::Schedule,
    scrub::Scrub,
    store::{Store, StoreError, disk_error},
    tell_of_damage,
};
use crate::{driver::Order, view::Clock};

/// What is taken from the queue before the disk is asked. More would only make the first wait.
const TAKE_MAX: usize = 4096;
/// The thread looks around at least so often.
const IDLE: Duration = Duration::from_secs(1);

/// How long a thread that has just synced looks for more before it sleeps, at most. To be woken takes tens of microseconds, twice for each answer; a
/// client that was just answered asks again sooner. It lets others go first meanwhile, and never looks for longer than the sync took.
const LINGER_MAX: Duration = Duration::from_micros(200);

/// A database is replaced at most so often: where each decays at once, another one helps as little.
const REPLACE_EVERY: Duration = Duration::from_secs(10);

/// The pause between two attempts to open a read-only file for writing.
pub(super) const REOPEN_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for reads under way to end, while new ones wait. Guess: most reads take milliseconds.
const DRAIN_MAX: Duration = Duration::from_millis(500);

/// What a keeper is made of.
pub(super) struct Parts {
    pub(super) projection: Arc<dyn Projection>,
    pub(super) retention: Retention,
    pub(super) me: Identity,
    pub(super) config: Config,
    pub(super) clock: Clock,
    pub(super) told: Receiver<Told>,
    pub(super) orders: Sender<Order>,
    pub(super) changed: watch::Sender<u64>,
    pub(super) waiting_bytes: Arc<AtomicUsize>,
    pub(super) shown: Arc<Shown>,
    pub(super) path: PathBuf,
    pub(super) readers: Arc<Readers>,
}

/// Keeps one topic.
pub(super) struct Keeper {
    store: Store,
    projection: Arc<dyn Projection>,
    retention: Schedule,
    machine: Journal,
    topic: String,
    clock: Clock,
    told: Receiver<Told>,
    orders: Sender<Order>,
    changed: watch::Sender<u64>,
    waiting_bytes: Arc<AtomicUsize>,
    shown: Arc<Shown>,
    path: PathBuf,
    readers: Arc<Readers>,
    #[cfg(feature = "broken")]
    broken: super::broken::Broken,
    /// In the open transaction.
    uncommitted: Vec<WriteId>,
    asked: BTreeMap<AppendId, oneshot::Sender<Result<Appended, AppendError>>>,
    next_append: u64,
    /// Runs that did not stand the check when they were read.
    damaged: Vec<(FeedId, Vec<Seq>)>,
    scrub: Scrub,
    /// Whether a majority may be counted of other replicas than are shown.
    replicas_changed: bool,
    /// Why the file as a whole cannot be used any more.
    ruined: Option<String>,
    replaced: Option<Instant>,
    /// When a read-only file was last tried to be opened for writing.
    reopen_tried: Instant,
    /// Why the last attempt failed.
    reopen_problem: String,
    /// How long to look for more before sleeping.
    linger: Duration,
}

impl Keeper {
    pub(super) fn new(parts: Parts, (store, restored): (Store, Restored)) -> anyhow::Result<Self> {
        let mut seed = [0; 8];
        getrandom::fill(&mut seed)
            .map_err(|e| anyhow::anyhow!("this system gives no random numbers: {e}"))?;
        let topic = parts.config.topic.clone();
        let seed = u64::from_le_bytes(seed);
        #[cfg(feature = "broken")]
        let broken = super::broken::Broken::from_env(parts.me.id());
        #[cfg(feature = "broken")]
        let seed = broken.seed(seed);
        #[cfg(feature = "broken")]
        broken.weaken(store.connection())?;
        parts.shown.read_only.store(u64::from(store.is_read_only()), Ordering::Relaxed);
        Ok(Self {
            #[cfg(feature = "broken")]
            broken,
            machine: Journal::new(parts.me, parts.config, restored, seed),
            store,
            projection: parts.projection,
            retention: Schedule::new(parts.retention, parts.clock.now()),
            topic,
            clock: parts.clock,
            told: parts.told,
            orders: parts.orders,
            changed: parts.changed,
            waiting_bytes: parts.waiting_bytes,
            shown: parts.shown,
            path: parts.path,
            readers: parts.readers,
            uncommitted: Vec::new(),
            asked: BTreeMap::new(),
            next_append: 0,
            damaged: Vec::new(),
            scrub: Scrub::default(),
            replicas_changed: true,
            ruined: None,
            replaced: None,
            reopen_tried: Instant::now(),
            reopen_problem: String::new(),
            linger: Duration::ZERO,
        })
    }

    /// Sets which replicas are alive and which peers are connected, as of before there was a keeper.
    pub(super) fn set_peers(&mut self, replicas: BTreeMap<NodeId, Durability>, connected: BTreeSet<NodeId>) {
        self.feed(Input::Replicas(replicas));
        connected.into_iter().for_each(|peer| self.feed(Input::Connected(peer)));
    }

    /// Until nobody can tell it anything any more.
    pub(super) fn run(mut self) {
        loop {
            let now = self.clock.now();
            // Where nothing can be written, nothing is dropped either.
            let retention = if self.store.is_read_only() { now + IDLE } else { self.retention.next_due() };
            let due = self.machine.poll_timeout().map_or(retention, |at| at.min(retention));
            let wait = due.since(now).min(IDLE);
            match self.next(wait) {
                Ok(told) => self.take(told),
                Err(RecvTimeoutError::Timeout) => (),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.carry_out();
            // What came while the disk was syncing shares the next sync.
            for _ in 0..TAKE_MAX {
                let Ok(told) = self.told.try_recv() else { break };
                self.take(told);
                self.carry_out();
            }
            self.feed(Input::Tick);
            self.carry_out();
            self.commit();
            if self.store.is_read_only() {
                self.reopen_if_there_is_room();
            } else {
                self.drop_oldest();
                if self.scrub.look(self.store.connection(), &self.shown) {
                    self.ruined = Some("a page does not prove itself".into());
                }
                self.replace_if_ruined();
            }
            if std::mem::take(&mut self.replicas_changed) {
                self.show_replicas();
            }
            self.shown.epoch.store(self.machine.epoch(), Ordering::Relaxed);
            self.shown.read_only.store(u64::from(self.store.is_read_only()), Ordering::Relaxed);
            *self.shown.counters.lock().unwrap_or_else(PoisonError::into_inner) = self.machine.counters();
        }
    }

    /// Keeps the generation of a replica; on a full disk, once there is room.
    fn keep_replica(&mut self, generation: Generation) {
        if self.store.is_read_only() {
            return;
        }
        if let Err(error) = self.store.keep_replica(generation) {
            // The other replicas tell it again after the next start.
            self.give_up(&error);
        }
    }

    /// Shows which replicas a majority is counted of.
    fn show_replicas(&self) {
        self.shown.replicas_counted.store(self.machine.replicas_counted() as u64, Ordering::Relaxed);
        let mut shown = self.shown.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = self.machine.counted();
        if counted != *shown {
            *shown = counted;
            let replicas: Vec<String> = shown.iter().map(ToString::to_string).collect();
            tracing::info!(
                topic = self.topic,
                replicas = replicas.join(" "),
                "a majority is counted of {} replicas",
                shown.len()
            );
        }
    }

    /// Waits for something to be told.
    fn next(&mut self, wait: Duration) -> Result<Told, RecvTimeoutError> {
        let until = Instant::now() + std::mem::take(&mut self.linger).min(wait);
        while Instant::now() < until {
            match self.told.try_recv() {
                Ok(told) => return Ok(told),
                Err(TryRecvError::Empty) => std::thread::yield_now(),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
            }
        }
        self.told.recv_timeout(wait)
    }

    /// Drops some of what is not kept any longer, when it is time. Whoever has asked for something meanwhile comes first.
    fn drop_oldest(&mut self) {
        let now = self.clock.now();
        if self.store.is_dirty() || self.retention.next_due() > now {
            return;
        }
        let dropped = self.store.used_bytes().and_then(|used| {
            let bound = self.retention.bound(now, wall_ms(), used);
            self.store.drop_oldest(bound, self.projection.as_ref())
        });
        let more = match dropped {
            Ok(dropped) => {
                self.shown.dropped_runs.fetch_add(dropped.runs, Ordering::Relaxed);
                self.shown.dropped_entries.fetch_add(dropped.entries, Ordering::Relaxed);
                dropped.more
            }
            Err(error) => {
                self.complain(&error, "dropping what is old");
                self.store.roll_back();
                false
            }
        };
        // What cannot be asked is shown by what fails.
        let used = self.store.used_bytes().unwrap_or(0);
        self.shown.used_bytes.store(used, Ordering::Relaxed);
        let ended = self.clock.now();
        self.retention.looked(ended, ended.since(now), more);
    }

    fn take(&mut self, told: Told) {
        self.waiting_bytes.fetch_sub(told.bytes(), Ordering::Relaxed);
        match told {
            Told::Append(write, level, deadline, answer) => {
                #[cfg(feature = "broken")]
                let write = if self.broken.forgets_keys() { Write { key: None, ..write } } else { write };
                self.next_append += 1;
                let id = AppendId(self.next_append);
                self.asked.insert(id, answer);
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                let deadline = self.clock.now() + left;
                self.feed(Input::Append(Append { id, key: write.key, body: write.body, level, deadline }));
            }
            Told::Damaged(file) => {
                if file == self.readers.file() && self.ruined.is_none() {
                    self.ruined = Some("a reader found it damaged".into());
                }
            }
            Told::Replicas(replicas) => {
                self.replicas_changed = true;
                self.feed(Input::Replicas(replicas));
            }
            Told::ForgetReplica(replica) => self.feed(Input::ForgetReplica(replica)),
            Told::Connected(peer) => self.feed(Input::Connected(peer)),
            Told::Disconnected(peer) => self.feed(Input::Disconnected(peer)),
            Told::Request(from, ticket, bytes) => match wire::decode::<JournalRequest>(&bytes) {
                Ok(Received::Known(request)) => self.feed(Input::Request { from, ticket, request }),
                Ok(Received::Unknown) => self.respond(ticket, &JournalResponse::Unable),
                Err(_) => {
                    self.order(Order::Misbehaved(from, "journal request"));
                    self.respond(ticket, &JournalResponse::Unable);
                }
            },
            Told::Response(from, ticket, bytes) => {
                let response = match bytes.as_deref().map(wire::decode::<JournalResponse>) {
                    Some(Ok(Received::Known(response))) => Some(response),
                    Some(Err(_)) => {
                        self.order(Order::Misbehaved(from, "journal response"));
                        None
                    }
                    Some(Ok(Received::Unknown)) | None => None,
                };
                self.feed(Input::Response { from, ticket, response });
            }
        }
    }

    fn feed(&mut self, input: Input) {
        let now: Time = self.clock.now();
        self.machine.handle(now, wall_ms(), input);
    }

    /// Does what the machine says, until it says nothing more.
    fn carry_out(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::LookUp(id, key) => match self.store.with_key(&key) {
                    Ok(found) => self.feed(Input::LookedUp(id, found)),
                    Err(error) => {
                        self.complain(&error, "looking for a key");
                        self.feed(Input::NotLookedUp(id));
                    }
                },
                Output::Store(id, run, _) => self.put(id, &run),
                Output::Load(id, wanted) => self.load(id, &wanted),
                Output::Forgo(feed, up_to) => match self.store.forgo(feed, up_to, self.projection.as_ref()) {
                    Ok(Some(extent)) => self.feed(Input::Forgone(extent)),
                    Ok(None) => (),
                    Err(error) => self.give_up(&error),
                },
                Output::KeepReplica(generation) => {
                    self.replicas_changed = true;
                    self.keep_replica(generation);
                }
                Output::Request(peer, ticket, request) => {
                    let bytes = address(&self.topic, &request);
                    self.order(Order::AskReplica(peer, self.topic.clone(), ticket, bytes));
                }
                Output::Respond(_, ticket, response) => self.respond(ticket, &response),
                Output::Answer(id, answer) => self.answer(id, answer),
                Output::Misbehaved(peer, how) => self.order(Order::Misbehaved(peer, how)),
            }
        }
    }

    fn put(&mut self, id: WriteId, run: &Run) {
        if self.store.is_read_only() {
            self.shown.disk_errors.fetch_add(1, Ordering::Relaxed);
            return self.feed(Input::NotStored(id, DiskError::Full));
        }
        if self.ruined.is_some() {
            // It is about to be replaced, and what is written now might be in neither.
            return self.feed(Input::NotStored(id, DiskError::Failed));
        }
        #[cfg(feature = "broken")]
        if self.broken.drops(run) {
            return self.feed(Input::Stored(id));
        }
        let put = self.store.put(run, self.projection.as_ref());
        #[cfg(feature = "broken")]
        if self.broken.tells_early() && put.is_ok() {
            return self.feed(Input::Stored(id));
        }
        self.uncommitted.push(id);
        if let Err(error) = put {
            self.give_up(&error);
        }
    }

    fn load(&mut self, id: LoadId, wanted: &Extent) {
        match self.store.load(wanted) {
            Ok(loaded) => {
                if !loaded.damaged.is_empty() {
                    self.damaged.push((wanted.feed, loaded.damaged));
                }
                self.feed(Input::Loaded { load: id, dropped: loaded.dropped, runs: loaded.runs });
            }
            Err(error) => {
                self.complain(&error, "reading for a replica");
                self.feed(Input::Loaded { load: id, dropped: Default::default(), runs: Vec::new() });
            }
        }
    }

    /// Syncs what was put, until nothing more follows from it.
    fn commit(&mut self) {
        while self.store.is_dirty() {
            #[cfg(feature = "broken")]
            if self.broken.puts_off() {
                return;
            }
            let begun = Instant::now();
            match self.store.commit() {
                Ok(()) => {
                    self.linger = begun.elapsed().min(LINGER_MAX);
                    self.shown.commits.fetch_add(1, Ordering::Relaxed);
                    // Readers that wake up find it.
                    self.changed.send_modify(|changes| *changes += 1);
                    let stored = std::mem::take(&mut self.uncommitted);
                    stored.into_iter().for_each(|id| self.feed(Input::Stored(id)));
                }
                Err(error) => self.give_up(&error),
            }
            self.carry_out();
        }
        self.mend();
    }

    /// Nothing of the open transaction is on the disk, or nobody knows.
    fn give_up(&mut self, error: &rusqlite::Error) {
        self.complain(error, "writing");
        self.store.roll_back();
        let how = disk_error(error);
        let lost = std::mem::take(&mut self.uncommitted);
        lost.into_iter().for_each(|id| self.feed(Input::NotStored(id, how)));
    }

    /// Takes out what was found damaged; it comes back from another replica.
    fn mend(&mut self) {
        for (feed, starts) in std::mem::take(&mut self.damaged) {
            tracing::error!(
                topic = self.topic,
                writer = %feed.writer,
                boot = feed.boot,
                runs = starts.len(),
                "entries on the disk are damaged; fetching them from another replica"
            );
            match self.store.discard(feed, &starts, self.projection.as_ref()) {
                Ok(left) => self.feed(Input::Damaged(left)),
                Err(error) => {
                    self.shown.disk_errors.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(topic = self.topic, %error, "cannot take out what is damaged");
                    if matches!(error, StoreError::Damaged(_)) {
                        self.ruined = Some(error.to_string());
                    }
                    self.store.roll_back();
                }
            }
            self.changed.send_modify(|changes| *changes += 1);
            self.carry_out();
        }
    }

    /// Opens a read-only file for writing once its disk has room.
    fn reopen_if_there_is_room(&mut self) {
        if self.reopen_tried.elapsed() < REOPEN_EVERY {
            return;
        }
        self.reopen_tried = Instant::now();
        if !has_room(&self.path) {
            return;
        }
        let readers = Arc::clone(&self.readers);
        // One slow reader must not keep all others waiting. The next attempt may find it gone.
        let Some(drained) = readers.drain(DRAIN_MAX) else { return };
        match self.reopen() {
            Ok(mended) => {
                self.readers.set_opener(None);
                drop(drained);
                tracing::info!(
                    topic = self.topic,
                    "there is room on the disk again: the topic is written to"
                );
                if let Some(left) = mended {
                    self.ruined = None;
                    self.feed(Input::Replaced(left));
                }
                self.machine.replica_set().into_iter().for_each(|generation| self.keep_replica(generation));
                self.changed.send_modify(|changes| *changes += 1);
                self.carry_out();
                self.commit();
            }
            Err(error) => {
                // Once, and not every second.
                if self.reopen_problem != error.to_string() {
                    tracing::error!(topic = self.topic, %error, "the topic still cannot be opened for writing");
                    self.reopen_problem = error.to_string();
                }
                self.shown.disk_errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Opens the file for writing. No other thread may have it open. Returns its extents if they are not
    /// those of before.
    fn reopen(&mut self) -> anyhow::Result<Option<Vec<Extent>>> {
        // An attempt before may have left nothing open.
        let before = self.store.restored().ok().map(|restored| restored.extents);
        let (cluster, topic) = self.store.owner();
        let (cluster, topic) = (cluster.to_owned(), topic.to_owned());
        self.store.close_file()?;
        match super::open(&self.path, &topic, self.projection.as_ref(), &cluster) {
            Ok((store, restored)) => {
                self.store = store;
                self.scrub = Scrub::default();
                Ok((before.as_ref() != Some(&restored.extents)).then_some(restored.extents))
            }
            Err(error) => {
                self.store = Store::open_read_only(&self.path, &cluster, &topic, self.projection.as_ref())?;
                Err(error.into())
            }
        }
    }

    /// Begins anew with what of a ruined file proves itself.
    fn replace_if_ruined(&mut self) {
        if self.ruined.is_none() || self.replaced.is_some_and(|at| at.elapsed() < REPLACE_EVERY) {
            return;
        }
        let Some(why) = self.ruined.take() else { return };
        self.replaced = Some(Instant::now());
        self.store.roll_back();
        let lost = std::mem::take(&mut self.uncommitted);
        lost.into_iter().for_each(|id| self.feed(Input::NotStored(id, DiskError::Failed)));
        match self.replace(&why) {
            Ok(left) => self.feed(Input::Replaced(left)),
            Err(error) => {
                tracing::error!(topic = self.topic, %error, "cannot replace a damaged database");
                self.ruined = Some(why);
            }
        }
        self.changed.send_modify(|changes| *changes += 1);
        self.carry_out();
        self.commit();
    }

    fn replace(&mut self, why: &str) -> anyhow::Result<Vec<Extent>> {
        let (cluster, topic) = self.store.owner();
        let mended = mend(&self.path, cluster, topic, self.projection.as_ref())?;
        let store = Store::open(&self.path, cluster, topic, self.projection.as_ref())?;
        let restored = store.restored()?;
        // SQLite leaves a file that was moved, and its log, as they are when it closes them.
        self.store = store;
        self.scrub = Scrub::default();
        // From here on, nobody reads what is damaged.
        self.readers.forget();
        self.shown.replaced.fetch_add(1, Ordering::Relaxed);
        tell_of_damage(&self.topic, why, &mended);
        Ok(restored.extents)
    }

    fn complain(&mut self, error: &rusqlite::Error, doing: &'static str) {
        self.shown.disk_errors.fetch_add(1, Ordering::Relaxed);
        if is_damage(error) {
            self.ruined = Some(error.to_string());
        }
        tracing::error!(topic = self.topic, %error, doing, "the journal's disk");
    }

    fn respond(&self, ticket: Ticket, response: &JournalResponse) {
        self.order(Order::AnswerReplica(ticket, wire::encode(response)));
    }

    fn order(&self, order: Order) {
        // The driver is gone: so is the node.
        _ = self.orders.blocking_send(order);
    }

    fn answer(&mut self, id: AppendId, answer: Result<Appended, AppendError>) {
        self.shown.answered(&answer);
        if let Some(asked) = self.asked.remove(&id) {
            // Whoever asked may have gone.
            _ = asked.send(answer);
        }
    }
}

/// What the clock on the wall shows, in milliseconds since 1970.
fn wall_ms() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}
