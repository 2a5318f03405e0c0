//! [`TopicWorker`]: the thread that drives a topic's state machine and owns the topic's database.
//!
//! Order of durability: runs are added to one transaction. When no further command is queued, the transaction
//! is committed, which syncs. Only then is the machine told that the runs are stored, and only then are the
//! messages sent that promise it.
//!
//! Background work is in `upkeep`: retention, scrubbing, and recovery from damage and from a full disk.

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
    Identity, NodeId, RequestId,
    journal::{
        Append, AppendError, AppendId, Appended, DiskError, Durability, Extent, FeedId, Generation, Journal,
        JournalConfig, JournalInput, JournalOutput, JournalRequest, JournalResponse, LoadId, RestoredJournal,
        Run, Seq, WriteId, address_request,
    },
    wire::{self, Received},
};
use hearsay_services::journal::{Projection, Readers, Retention, Write, is_damage};
use tokio::sync::{mpsc::Sender, oneshot, watch};

use super::{
    integrity::scrub::Scrub,
    retention::Schedule,
    store::{
        database::Store,
        error::disk_error,
        topic_store::{TopicStore, WrapStore},
    },
    topic_command::TopicCommand,
    topic_metrics::TopicMetrics,
};
use crate::{driver_command::DriverCommand, view::Clock};

mod upkeep;

/// Maximum number of commands handled before a commit. More would only delay the answer to the first.
const COMMANDS_PER_COMMIT_MAX: usize = 4096;
/// Longest sleep of the worker. Background work is due at least this often.
const IDLE: Duration = Duration::from_secs(1);
/// Longest time that the worker polls for the next command after a sync, before it sleeps. A sleeping worker
/// takes tens of microseconds to wake, and so does the task that it answers. A client that has just been
/// answered often writes again within that time. The worker yields to other threads meanwhile, and polls no
/// longer than the sync took.
const LINGER_MAX: Duration = Duration::from_micros(200);

/// Parts from which a topic's worker is made.
pub(super) struct WorkerParts {
    pub(super) projection: Arc<dyn Projection>,
    pub(super) retention: Retention,
    pub(super) me: Identity,
    pub(super) config: JournalConfig,
    pub(super) clock: Clock,
    pub(super) commands: Receiver<TopicCommand>,
    pub(super) driver: Sender<DriverCommand>,
    pub(super) changed: watch::Sender<u64>,
    pub(super) queued_bytes: Arc<AtomicUsize>,
    pub(super) metrics: Arc<TopicMetrics>,
    pub(super) path: PathBuf,
    pub(super) readers: Arc<Readers>,
    pub(super) wrap_store: WrapStore,
}

/// State of a topic's worker thread: state machine, database, appends that wait for an answer, and background
/// work.
pub(super) struct TopicWorker {
    store: Box<dyn TopicStore>,
    wrap_store: WrapStore,
    me: NodeId,
    projection: Arc<dyn Projection>,
    retention: Schedule,
    machine: Journal,
    topic: String,
    clock: Clock,
    commands: Receiver<TopicCommand>,
    driver: Sender<DriverCommand>,
    changed: watch::Sender<u64>,
    queued_bytes: Arc<AtomicUsize>,
    metrics: Arc<TopicMetrics>,
    path: PathBuf,
    readers: Arc<Readers>,
    /// Writes in the open transaction.
    uncommitted: Vec<WriteId>,
    pending_appends: BTreeMap<AppendId, oneshot::Sender<Result<Appended, AppendError>>>,
    next_append: u64,
    /// Runs that failed verification when they were read, as the numbers of their first entries.
    damaged_runs: Vec<(FeedId, Vec<Seq>)>,
    scrub: Scrub,
    /// Whether the metrics may show an old replica set.
    replicas_changed: bool,
    /// Why the database must be replaced; `None`: no damage is known.
    damage: Option<String>,
    replaced_at: Option<Instant>,
    /// Time of the last attempt to open a read-only database for writing.
    reopen_tried_at: Instant,
    /// The last logged error of such an attempt.
    reopen_problem: String,
    /// How long to poll for the next command before sleeping.
    linger: Duration,
}

impl TopicWorker {
    /// Creates the worker of a topic from its open database.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub(super) fn new(
        parts: WorkerParts,
        (store, restored): (Store, RestoredJournal),
    ) -> anyhow::Result<Self> {
        let me = parts.me.id();
        let topic = parts.config.topic.clone();
        let store = (parts.wrap_store)(store, me);
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|e| anyhow::anyhow!("this system gives no random numbers: {e}"))?;
        let seed = store.feed_seed(u64::from_le_bytes(random));
        parts.metrics.read_only.store(u64::from(store.inner().is_read_only()), Ordering::Relaxed);
        Ok(Self {
            machine: Journal::new(parts.me, parts.config, restored, seed),
            store,
            wrap_store: parts.wrap_store,
            me,
            projection: parts.projection,
            retention: Schedule::new(parts.retention, parts.clock.now()),
            topic,
            clock: parts.clock,
            commands: parts.commands,
            driver: parts.driver,
            changed: parts.changed,
            queued_bytes: parts.queued_bytes,
            metrics: parts.metrics,
            path: parts.path,
            readers: parts.readers,
            uncommitted: Vec::new(),
            pending_appends: BTreeMap::new(),
            next_append: 0,
            damaged_runs: Vec::new(),
            scrub: Scrub::default(),
            replicas_changed: true,
            damage: None,
            replaced_at: None,
            reopen_tried_at: Instant::now(),
            reopen_problem: String::new(),
            linger: Duration::ZERO,
        })
    }

    /// Hands over the replicas and connections that were reported before the worker started.
    pub(super) fn set_peers(&mut self, replicas: BTreeMap<NodeId, Durability>, connected: BTreeSet<NodeId>) {
        self.handle_input(JournalInput::Replicas(replicas));
        connected.into_iter().for_each(|peer| self.handle_input(JournalInput::Connected(peer)));
    }

    /// Runs until all senders of commands are gone.
    pub(super) fn run(mut self) {
        loop {
            let now = self.clock.now();
            // A read-only database cannot drop entries, so retention is not due.
            let is_read_only = self.store.inner().is_read_only();
            let retention_due = if is_read_only { now + IDLE } else { self.retention.next_due() };
            let due = self.machine.poll_timeout().map_or(retention_due, |at| at.min(retention_due));
            match self.next_command(due.since(now).min(IDLE)) {
                Ok(command) => self.handle_command(command),
                Err(RecvTimeoutError::Timeout) => (),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.apply_outputs();
            // Group commit: commands that were queued during the last sync share the next one.
            for _ in 0..COMMANDS_PER_COMMIT_MAX {
                let Ok(command) = self.commands.try_recv() else { break };
                self.handle_command(command);
                self.apply_outputs();
            }
            self.handle_input(JournalInput::Tick);
            self.apply_outputs();
            self.commit();
            self.maintain();
            self.publish_metrics();
        }
    }

    /// Waits for a command. After a sync, polls for a moment first.
    fn next_command(&mut self, wait: Duration) -> Result<TopicCommand, RecvTimeoutError> {
        let until = Instant::now() + std::mem::take(&mut self.linger).min(wait);
        while Instant::now() < until {
            match self.commands.try_recv() {
                Ok(command) => return Ok(command),
                Err(TryRecvError::Empty) => std::thread::yield_now(),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
            }
        }
        self.commands.recv_timeout(wait)
    }

    fn handle_command(&mut self, command: TopicCommand) {
        self.queued_bytes.fetch_sub(command.bytes(), Ordering::Relaxed);
        match command {
            TopicCommand::Append(Write { key, body, .. }, level, deadline, answer) => {
                self.next_append += 1;
                let id = AppendId(self.next_append);
                self.pending_appends.insert(id, answer);
                let deadline = self.clock.now() + deadline.saturating_duration_since(Instant::now());
                let key = self.store.write_key(key);
                self.handle_input(JournalInput::Append(Append { id, key, body, level, deadline }));
            }
            TopicCommand::Damaged(file) => {
                if file == self.readers.file() && self.damage.is_none() {
                    self.damage = Some("a reader found it damaged".into());
                }
            }
            TopicCommand::Replicas(replicas) => {
                self.replicas_changed = true;
                self.handle_input(JournalInput::Replicas(replicas));
            }
            TopicCommand::ForgetReplica(replica) => self.handle_input(JournalInput::ForgetReplica(replica)),
            TopicCommand::Connected(peer) => self.handle_input(JournalInput::Connected(peer)),
            TopicCommand::Disconnected(peer) => self.handle_input(JournalInput::Disconnected(peer)),
            TopicCommand::Request(from, id, bytes) => self.on_request(from, id, &bytes),
            TopicCommand::Response(from, id, bytes) => self.on_response(from, id, bytes.as_deref()),
        }
    }

    fn on_request(&mut self, from: NodeId, request_id: RequestId, bytes: &[u8]) {
        match wire::decode::<JournalRequest>(bytes) {
            Ok(Received::Known(request)) => {
                self.handle_input(JournalInput::Request { from, request_id, request })
            }
            Ok(Received::Unknown) => self.respond(request_id, &JournalResponse::Unable),
            Err(_) => {
                self.send_to_driver(DriverCommand::Misbehaved(from, "journal request"));
                self.respond(request_id, &JournalResponse::Unable);
            }
        }
    }

    fn on_response(&mut self, from: NodeId, request_id: RequestId, bytes: Option<&[u8]>) {
        let response = match bytes.map(wire::decode::<JournalResponse>) {
            Some(Ok(Received::Known(response))) => Some(response),
            Some(Err(_)) => {
                self.send_to_driver(DriverCommand::Misbehaved(from, "journal response"));
                None
            }
            Some(Ok(Received::Unknown)) | None => None,
        };
        self.handle_input(JournalInput::Response { from, request_id, response });
    }

    fn handle_input(&mut self, input: JournalInput) {
        self.machine.handle(self.clock.now(), wall_ms(), input);
    }

    /// Carries out the machine's outputs until there are none.
    fn apply_outputs(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                JournalOutput::LookUp(id, key) => match self.store.inner().find_key(&key) {
                    Ok(found) => self.handle_input(JournalInput::LookedUp(id, found)),
                    Err(error) => {
                        self.record_error(&error, "looking for a key");
                        self.handle_input(JournalInput::NotLookedUp(id));
                    }
                },
                JournalOutput::Store(id, run, _) => self.append_run(id, &run),
                JournalOutput::Load(id, wanted) => self.load(id, &wanted),
                JournalOutput::Forgo(feed, up_to) => {
                    match self.store.inner_mut().forgo(feed, up_to, self.projection.as_ref()) {
                        Ok(Some(extent)) => self.handle_input(JournalInput::Forgone(extent)),
                        Ok(None) => (),
                        Err(error) => self.fail_transaction(&error),
                    }
                }
                JournalOutput::KeepReplica(generation) => {
                    self.replicas_changed = true;
                    self.keep_replica(generation);
                }
                JournalOutput::Request(peer, request_id, request) => {
                    let bytes = address_request(&self.topic, &request);
                    self.send_to_driver(DriverCommand::SendReplicaRequest(
                        peer,
                        self.topic.clone(),
                        request_id,
                        bytes,
                    ));
                }
                JournalOutput::Respond(_, request_id, response) => self.respond(request_id, &response),
                JournalOutput::Answer(id, answer) => self.answer(id, answer),
                JournalOutput::Misbehaved(peer, how) => {
                    self.send_to_driver(DriverCommand::Misbehaved(peer, how))
                }
            }
        }
    }

    /// Adds a run to the open transaction.
    fn append_run(&mut self, id: WriteId, run: &Run) {
        if self.store.inner().is_read_only() {
            self.metrics.disk_errors.fetch_add(1, Ordering::Relaxed);
            return self.handle_input(JournalInput::NotStored(id, DiskError::Full));
        }
        if self.damage.is_some() {
            // The database is about to be replaced, and the new one may lack runs that are written now.
            return self.handle_input(JournalInput::NotStored(id, DiskError::Failed));
        }
        self.uncommitted.push(id);
        if let Err(error) = self.store.append_run(run, self.projection.as_ref()) {
            self.fail_transaction(&error);
        }
    }

    /// Loads runs that another replica lacks.
    fn load(&mut self, id: LoadId, wanted: &Extent) {
        match self.store.inner().load(wanted) {
            Ok(loaded) => {
                if !loaded.damaged.is_empty() {
                    self.damaged_runs.push((wanted.feed, loaded.damaged));
                }
                self.handle_input(JournalInput::Loaded {
                    load: id,
                    dropped: loaded.dropped,
                    runs: loaded.runs,
                });
            }
            Err(error) => {
                self.record_error(&error, "reading for a replica");
                self.handle_input(JournalInput::Loaded {
                    load: id,
                    dropped: Default::default(),
                    runs: Vec::new(),
                });
            }
        }
    }

    /// Stores the generation of a replica. Does nothing while the database is read-only: reopening it stores
    /// all generations.
    fn keep_replica(&mut self, generation: Generation) {
        if self.store.inner().is_read_only() {
            return;
        }
        if let Err(error) = self.store.inner_mut().keep_replica(generation) {
            // The other replicas send the generation again after the next start.
            self.fail_transaction(&error);
        }
    }

    /// Commits until no further output opens a transaction.
    fn commit(&mut self) {
        while self.store.is_dirty() {
            let begun = Instant::now();
            match self.store.commit() {
                Ok(()) => {
                    self.linger = begun.elapsed().min(LINGER_MAX);
                    self.metrics.commits.fetch_add(1, Ordering::Relaxed);
                    // Wakes readers, which now find the entries.
                    self.notify_readers();
                    let stored = std::mem::take(&mut self.uncommitted);
                    stored.into_iter().for_each(|id| self.handle_input(JournalInput::Stored(id)));
                }
                Err(error) => self.fail_transaction(&error),
            }
            self.apply_outputs();
        }
        self.discard_damaged_runs();
    }

    /// Rolls back after an error, and reports all writes as not stored. After a failed commit they may be on
    /// the disk nevertheless.
    fn fail_transaction(&mut self, error: &rusqlite::Error) {
        self.record_error(error, "writing");
        self.roll_back(disk_error(error));
    }

    fn roll_back(&mut self, error: DiskError) {
        self.store.inner_mut().roll_back();
        let lost = std::mem::take(&mut self.uncommitted);
        lost.into_iter().for_each(|id| self.handle_input(JournalInput::NotStored(id, error)));
    }

    /// Counts and logs an error of the database. Damage makes the worker replace the database.
    fn record_error(&mut self, error: &rusqlite::Error, doing: &'static str) {
        self.metrics.disk_errors.fetch_add(1, Ordering::Relaxed);
        if is_damage(error) {
            self.damage = Some(error.to_string());
        }
        tracing::error!(topic = self.topic, %error, doing, "the journal's disk");
    }

    fn respond(&self, request_id: RequestId, response: &JournalResponse) {
        self.send_to_driver(DriverCommand::SendReplicaResponse(request_id, wire::encode(response)));
    }

    fn send_to_driver(&self, command: DriverCommand) {
        // An error: the driver has ended, and the node with it.
        _ = self.driver.blocking_send(command);
    }

    fn answer(&mut self, id: AppendId, answer: Result<Appended, AppendError>) {
        self.metrics.record_answer(&answer);
        if let Some(pending) = self.pending_appends.remove(&id) {
            // The client may have gone.
            _ = pending.send(answer);
        }
    }

    fn notify_readers(&self) {
        self.changed.send_modify(|changes| *changes += 1);
    }

    fn publish_metrics(&mut self) {
        if std::mem::take(&mut self.replicas_changed) {
            self.publish_replicas();
        }
        self.metrics.epoch.store(self.machine.epoch(), Ordering::Relaxed);
        self.metrics.read_only.store(u64::from(self.store.inner().is_read_only()), Ordering::Relaxed);
        *self.metrics.counters.lock().unwrap_or_else(PoisonError::into_inner) = self.machine.counters();
    }

    /// Publishes and logs the replicas that count towards a majority.
    fn publish_replicas(&self) {
        self.metrics.replicas_counted.store(self.machine.replicas_counted() as u64, Ordering::Relaxed);
        let mut published = self.metrics.replicas.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = self.machine.counted();
        if counted != *published {
            *published = counted;
            let replicas: Vec<String> = published.iter().map(ToString::to_string).collect();
            tracing::info!(
                topic = self.topic,
                replicas = replicas.join(" "),
                "a majority is counted of {} replicas",
                published.len()
            );
        }
    }
}

/// Wall-clock time in milliseconds since 1970.
fn wall_ms() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}
