//! The journal: nothing acknowledged is lost.
//!
//! A topic is an append-only record that every node of a role keeps whole. Whoever is asked writes into a feed of its own, so there is no
//! leader to wait for and none to lose; the replicas exchange feeds, and as each feed has one writer, two replicas can never hold
//! different things under one number. What a set of entries means does not depend on the order they came in: that is the plug-in's promise.
//!
//! The rule that everything here serves: an entry is on the writer's disk, synced, before anybody hears of it, and nobody says "I have it"
//! before it is on their own. So the outputs are in order by construction: [`Output::Store`] goes to the disk, and what depends on it
//! (the push, the receipt, the answer) leaves only on [`Input::Stored`].
//!
//! A machine without I/O, one for each topic. Feed it with [`Journal::handle`], drain [`Journal::poll_output`] to `None` after each, and
//! feed [`Input::Tick`] when [`Journal::poll_timeout`] says so. Absent: reading. What is on the disk is read there.
//!
//! Repair is by version vectors with gaps ([`extents`]): every replica compares one hash with another on connecting and every few seconds,
//! lists what differs, and pulls what it lacks ([`repair`]).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{Identity, NodeId, Time, Version, seen::Seen, sync::Ticket};

pub mod append;
pub mod clock;
mod config;
mod counters;
pub mod disk;
pub mod extents;
pub mod feed;
mod membership;
pub mod message;
mod repair;
pub mod replica_set;
mod replicate;
#[cfg(test)]
mod tests;

use append::{Admitted, Append, AppendError, AppendId, Appended, Queue, Unconfirmed};
use clock::{HybridClock, Moment};
pub use config::{Config, EPOCH_BYTES_MAX, EpochFormat};
pub use counters::Counters;
use extents::Extents;
use feed::{ChainHash, Entry, EntryId, FeedId, Run, Seq};
use membership::SetExchange;
use message::{Extent, JournalRequest, JournalResponse};
use repair::Repair;
use replica_set::{Generation, ReplicaSet};

/// Runs pushed to one replica and not confirmed yet. What is over that waits on the disk until the replica has said what it has. Guess.
const PUSHES_MAX: usize = 16;
/// Runs of others at the disk at the same time; more are put off.
const FOREIGN_WRITES_MAX: usize = 64;
/// How often it is looked whether a deadline has passed.
const SWEEP_EVERY: Duration = Duration::from_millis(50);

/// Names a run on its way to the disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WriteId(pub u64);

/// Names something to be read from the disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LoadId(pub u64);

/// How a disk refuses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskError {
    /// No room. Nothing was stored, and later there may be room again.
    Full,
    /// It cannot be known whether it was stored. After this the journal writes nothing more.
    Failed,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// It is as late as was asked for, or later.
    Tick,
    /// Write this down, with whatever else is to be written: feed all that there is, and then [`Tick`](Self::Tick).
    Append(Append),
    /// The answer to [`Output::LookUp`].
    LookedUp(AppendId, Option<(EntryId, Entry)>),
    /// It cannot be said whether there is an entry with that key.
    NotLookedUp(AppendId),
    /// The run is on the disk, synced, and folded into the plug-in's tables.
    Stored(WriteId),
    /// It is not, and neither are those that follow it in its feed: the disk stores no run without those of its feed that it was given before.
    NotStored(WriteId, DiskError),
    /// The answer to [`Output::Load`].
    Loaded {
        /// Of which question.
        load: LoadId,
        /// Entries up to here are no longer kept.
        dropped: Seq,
        /// The earliest first.
        runs: Vec<Run>,
    },
    /// What of a feed is on the disk is only this: some of it was found damaged.
    Damaged(Extent),
    /// What of a feed is on the disk, or will never come, is this: the answer to [`Output::Forgo`], where it changed something.
    Forgone(Extent),
    /// The disk was found damaged and is replaced by one that has only this. Every write under way was answered with
    /// [`NotStored`](Self::NotStored) before.
    Replaced(Vec<Extent>),
    /// These live members, other than this node, keep the topic.
    Replicas(BTreeMap<NodeId, Durability>),
    /// An operator gave up a replica that is not alive: a majority is no longer counted of it.
    ForgetReplica(NodeId),
    /// A connection to a peer opened.
    Connected(NodeId),
    /// The last one closed.
    Disconnected(NodeId),
    /// A replica asks.
    Request {
        /// Who.
        from: NodeId,
        /// Comes back with the answer.
        ticket: Ticket,
        /// What.
        request: JournalRequest,
    },
    /// A replica answers; `None`: it will not.
    Response {
        /// Who.
        from: NodeId,
        /// Of the request.
        ticket: Ticket,
        /// The answer.
        response: Option<JournalResponse>,
    },
}

/// Whether what a replica stores survives its process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// It keeps its database.
    Durable,
    /// Its database goes with its process.
    Ephemeral,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Look for an entry of the topic with this key.
    LookUp(AppendId, String),
    /// Store this run, whose entries have these hashes. Entries of it that are there already stay as they are.
    Store(WriteId, Arc<Run>, Vec<ChainHash>),
    /// Read runs of this feed that hold what `seen` lacks, the earliest first, as many as fit into a message.
    Load(LoadId, Extent),
    /// A replica says that it no longer keeps entries of this feed up to here. Those of them that come before everything that is here are not
    /// waited for any longer: remember that, and say so with [`Input::Forgone`]. Whatever is here stays until it is dropped here.
    Forgo(FeedId, Seq),
    /// Keep the generation of a replica: the next start restores it.
    KeepReplica(Generation),
    /// Ask a connected replica.
    Request(NodeId, Ticket, JournalRequest),
    /// Answer.
    Respond(NodeId, Ticket, JournalResponse),
    /// What became of an append.
    Answer(AppendId, Result<Appended, AppendError>),
    /// A peer sent what is forged or breaks a bound.
    Misbehaved(NodeId, &'static str),
}

/// Another node that keeps the topic.
#[derive(Debug, Default)]
struct Replica {
    connected: bool,
    /// What it said to have on its disk: of the feed written here, and of those that an append waits for.
    receipts: BTreeMap<FeedId, Seen>,
    /// Runs on their way to it.
    pushes: BTreeSet<Ticket>,
    /// It is being asked what it has, and when it was last.
    asking: Option<Ticket>,
    asked: Option<Time>,
    /// Whether it is being told the replica set, has it, or is told next at this time.
    set_exchange: SetExchange,
}

/// Why a run is on its way to the disk.
#[derive(Debug)]
enum Purpose {
    Own,
    Pushed { from: NodeId, ticket: Ticket },
    Pulled,
}

/// For whom something is read from the disk.
#[derive(Debug)]
enum Reader {
    /// It was asked for.
    Asker(NodeId, Ticket),
    /// It lacks this of the feed written here.
    Laggard(NodeId),
}

#[derive(Debug)]
struct Write {
    purpose: Purpose,
    feed: FeedId,
    start: Seq,
    end: Seq,
}

/// What is on the disk when a journal begins.
#[derive(Debug, Default)]
pub struct Restored {
    /// Of each feed.
    pub extents: Vec<Extent>,
    /// The latest moment of all entries.
    pub latest: Moment,
    /// The replica set.
    pub replicas: Vec<Generation>,
}

/// The journal of one topic on one node.
#[derive(Debug)]
pub struct Journal {
    me: Identity,
    config: Config,
    rng: fastrand::Rng,
    clock: HybridClock,
    /// The feed written here, the number of its next entry and the hash before it.
    own: (EntryId, ChainHash),
    extents: Extents,
    queue: Queue,
    unconfirmed: BTreeMap<EntryId, Vec<Unconfirmed>>,
    replicas: BTreeMap<NodeId, Replica>,
    replica_set: ReplicaSet,
    /// The number that a majority is counted of.
    replicas_counted: usize,
    connected: BTreeSet<NodeId>,
    writes: BTreeMap<WriteId, Write>,
    /// What was just written here, or pushed to here while not all replicas are connected, and goes out when it is on the disk.
    unpushed: BTreeMap<WriteId, Arc<Run>>,
    loads: BTreeMap<LoadId, Reader>,
    repair: Repair,
    next_id: u64,
    next_sweep: Option<Time>,
    failed: bool,
    counters: Counters,
    out: VecDeque<Output>,
}

impl Journal {
    /// A journal that goes on where a disk left off, with a feed of its own. `seed` must be random and never used before: the feed's number
    /// comes from it.
    pub fn new(me: Identity, config: Config, restored: Restored, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let own = begin_feed(&me, &config, &mut rng);
        let mut journal = Self {
            repair: Repair::new(&config, rng.u64(..)),
            replica_set: ReplicaSet::restored(restored.replicas),
            replicas_counted: 0,
            me,
            config,
            rng,
            clock: HybridClock::after(restored.latest),
            own,
            extents: Extents::restored(restored.extents),
            queue: Queue::default(),
            unconfirmed: BTreeMap::new(),
            replicas: BTreeMap::new(),
            connected: BTreeSet::new(),
            writes: BTreeMap::new(),
            unpushed: BTreeMap::new(),
            loads: BTreeMap::new(),
            next_id: 0,
            next_sweep: None,
            failed: false,
            counters: Counters::default(),
            out: VecDeque::new(),
        };
        journal.join_replica_set();
        journal
    }

    /// What is on the disk.
    pub fn extents(&self) -> &Extents {
        &self.extents
    }

    /// What was counted.
    pub fn counters(&self) -> Counters {
        Counters {
            epochs_opened: self.clock.epochs_opened(),
            replicas_refused: self.replica_set.refused(),
            ..self.counters
        }
    }

    /// The current epoch. Above 0 where some clock was off by more than [`clock::AHEAD_MAX`]: versions that know no epochs then order rows
    /// differently.
    pub fn epoch(&self) -> u64 {
        self.clock.epoch()
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When to feed [`Input::Tick`]: at once after appends, when no more of them are there.
    pub fn poll_timeout(&self) -> Option<Time> {
        let at_once = self.may_write().then_some(Time::ZERO);
        let due = [self.next_sweep, self.repair.next_due(), self.next_exchange()];
        at_once.into_iter().chain(due.into_iter().flatten()).min()
    }

    /// Something happened. `wall_ms` is what the clock on the wall shows, in milliseconds since 1970; it may jump.
    ///
    /// Appends are only taken in, and become runs at the next [`Input::Tick`]: of many that are there, none is signed and synced alone.
    pub fn handle(&mut self, now: Time, wall_ms: u64, input: Input) {
        match input {
            Input::Tick => self.write(wall_ms),
            Input::Append(append) => return self.append(append),
            Input::LookedUp(id, None) => return self.queue.unknown_key(id),
            Input::LookedUp(id, Some((entry_id, entry))) => {
                let appends: Vec<Append> = self.queue.known_key(id).collect();
                appends.into_iter().for_each(|append| self.repeated(append, entry_id, &entry));
            }
            Input::NotLookedUp(id) => {
                // Writing it might write it twice.
                let appends: Vec<Append> = self.queue.known_key(id).collect();
                self.refuse(appends, &AppendError::DiskFailed);
            }
            Input::Stored(write) => self.stored(now, write),
            Input::NotStored(write, error) => self.not_stored(now, write, error),
            Input::Loaded { load, dropped, runs } => self.loaded(load, dropped, runs),
            Input::Damaged(left) => {
                self.counters.damaged += 1;
                self.extents.replace(left.feed, left.seen);
                self.repair.soon(now);
            }
            Input::Forgone(extent) => self.extents.replace(extent.feed, extent.seen),
            Input::Replaced(left) => {
                self.counters.damaged += 1;
                self.extents = Extents::restored(left);
                // What of the old feed others have comes back; its numbers are not used again.
                self.own = begin_feed(&self.me, &self.config, &mut self.rng);
                self.failed = false;
                let replica_set = self.replica_set.generations();
                self.out.extend(replica_set.into_iter().map(Output::KeepReplica));
                self.repair.soon(now);
            }
            Input::Replicas(alive) => self.set_replicas(now, alive),
            Input::ForgetReplica(replica) => self.forget_replica(now, replica),
            Input::Connected(peer) => {
                self.connected.insert(peer);
                if let Some(replica) = self.replicas.get_mut(&peer) {
                    replica.connected = true;
                    self.repair.soon_with(now, peer);
                }
            }
            Input::Disconnected(peer) => {
                self.connected.remove(&peer);
                if let Some(replica) = self.replicas.get_mut(&peer) {
                    replica.connected = false;
                    replica.pushes.clear();
                    replica.asking = None;
                    replica.set_exchange = SetExchange::default();
                }
                self.repair.forget(peer);
            }
            Input::Request { from, ticket, request } => self.asked(now, wall_ms, from, ticket, request),
            Input::Response { from, ticket, response } => self.answered(now, wall_ms, from, ticket, response),
        }
        self.confirm();
        self.sweep(now);
        self.continue_repair(now);
        self.exchange_replica_sets(now);
    }

    // Writing.

    fn append(&mut self, append: Append) {
        let id = append.id;
        if self.failed {
            return self.out.push_back(Output::Answer(id, Err(AppendError::DiskFailed)));
        }
        let body_bytes_max = self.config.body_bytes_max();
        if append.body.len() > body_bytes_max {
            let too_large = AppendError::BodyTooLarge(append.body.len(), body_bytes_max);
            return self.out.push_back(Output::Answer(id, Err(too_large)));
        }
        match self.queue.admit(append, self.config.queue_bytes_max) {
            Ok(Admitted::Queued) => (),
            Ok(Admitted::LookUp(id, key)) => self.out.push_back(Output::LookUp(id, key)),
            Err(error) => self.out.push_back(Output::Answer(id, Err(error))),
        }
    }

    /// The entry with this append's key is on the disk: it is this write, or another.
    fn repeated(&mut self, append: Append, id: EntryId, entry: &Entry) {
        let body = EpochFormat::write_if_any(self.config.epochs, &append.body, self.config.epoch_of(entry));
        if body != entry.body {
            return self.out.push_back(Output::Answer(append.id, Err(AppendError::KeyTaken(id))));
        }
        self.unconfirmed.entry(id).or_default().push(Unconfirmed::new(&append, entry.time, true));
    }

    /// Whether there is something to write, and room for it at the disk.
    fn may_write(&self) -> bool {
        !self.failed && self.queue.has_run()
    }

    /// Gives the disk the next runs of the own feed.
    fn write(&mut self, wall_ms: u64) {
        while self.may_write() {
            let id = WriteId(self.next());
            let (clock, epochs) = (&mut self.clock, self.config.epochs);
            let entry = |append: &Append| {
                let Moment { epoch, time } = clock.tick(wall_ms);
                let body = EpochFormat::write_if_any(epochs, &append.body, epoch);
                Entry { time, key: append.key.clone(), body }
            };
            let entries = self.queue.take_run(id).map(entry).collect();
            let (run, hashes) =
                Run::sign(&self.me, &self.config.cluster, &self.config.topic, self.own, entries);
            let end = hashes.last().copied().unwrap_or(run.before);
            self.own = (EntryId { feed: run.feed, seq: run.end().next() }, end);
            let run = Arc::new(run);
            self.unpushed.insert(id, Arc::clone(&run));
            self.store(id, Purpose::Own, run, hashes);
        }
    }

    /// Gives the disk a run.
    fn store(&mut self, id: WriteId, purpose: Purpose, run: Arc<Run>, hashes: Vec<ChainHash>) {
        self.writes.insert(id, Write { purpose, feed: run.feed, start: run.start, end: run.end() });
        self.out.push_back(Output::Store(id, run, hashes));
    }

    fn next(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn stored(&mut self, now: Time, id: WriteId) {
        let Some(Write { purpose, feed, start, end }) = self.writes.remove(&id) else { return };
        self.extents.insert(feed, start, end);
        let count = end.0 - start.0 + 1;
        match purpose {
            Purpose::Own => {
                self.counters.appended += count;
                let Some(run) = self.unpushed.remove(&id) else { return };
                for (index, (appends, entry)) in
                    self.queue.written(id).into_iter().zip(&run.entries).enumerate()
                {
                    let id = EntryId { feed, seq: Version(start.0 + index as u64) };
                    let mut appends = appends.into_iter();
                    let first = appends.next().map(|append| Unconfirmed::new(&append, entry.time, false));
                    self.unconfirmed.entry(id).or_default().extend(first);
                    appends.for_each(|append| self.repeated(append, id, entry));
                }
                self.push(&run, None);
            }
            Purpose::Pushed { from, ticket } => {
                self.counters.replicated += count;
                let receipt = JournalResponse::Receipt(self.extents.of(feed));
                self.out.push_back(Output::Respond(from, ticket, receipt));
                if let Some(run) = self.unpushed.remove(&id) {
                    self.push(&run, Some(from));
                }
            }
            Purpose::Pulled => {
                self.counters.replicated += count;
                self.repair.stored(now);
            }
        }
    }

    fn not_stored(&mut self, now: Time, id: WriteId, error: DiskError) {
        let Some(Write { purpose, feed, .. }) = self.writes.remove(&id) else { return };
        let answer = match error {
            DiskError::Full => AppendError::DiskFull,
            DiskError::Failed => AppendError::DiskFailed,
        };
        match purpose {
            Purpose::Own => {
                // Whether these numbers are taken is not known for sure, so they are never used again.
                if feed == self.own.0.feed {
                    self.own = begin_feed(&self.me, &self.config, &mut self.rng);
                }
                self.give_up(id, &answer);
                // What follows in the feed does without it, or not at all.
                let follows = |(later, write): (&WriteId, &Write)| {
                    (*later > id && write.feed == feed).then_some(*later)
                };
                let lost: BTreeSet<WriteId> = self.writes.iter().filter_map(follows).collect();
                self.out.retain(|output| !matches!(output, Output::Store(id, ..) if lost.contains(id)));
                for id in lost {
                    self.writes.remove(&id);
                    self.give_up(id, &answer);
                }
            }
            Purpose::Pushed { from, ticket } => {
                self.unpushed.remove(&id);
                self.out.push_back(Output::Respond(from, ticket, JournalResponse::Unable));
            }
            Purpose::Pulled => self.repair.give_up(now),
        }
        if error == DiskError::Failed {
            self.failed = true;
            let waiting = self.queue.clear();
            self.refuse(waiting, &answer);
        }
    }

    /// A run of the own feed was not stored.
    fn give_up(&mut self, id: WriteId, why: &AppendError) {
        self.unpushed.remove(&id);
        let lost = self.queue.written(id);
        self.refuse(lost.into_iter().flatten(), why);
    }

    fn refuse(&mut self, appends: impl IntoIterator<Item = Append>, why: &AppendError) {
        let answers = appends.into_iter().map(|append| Output::Answer(append.id, Err(why.clone())));
        self.out.extend(answers);
    }

    // Confirming.

    fn set_replicas(&mut self, now: Time, alive: BTreeMap<NodeId, Durability>) {
        let me = self.me.id();
        self.replicas.retain(|id, _| alive.contains_key(id));
        for (id, durability) in alive.into_iter().filter(|(id, _)| *id != me) {
            if durability == Durability::Durable {
                self.add_to_replica_set(now, id);
            }
            let connected = self.connected.contains(&id);
            let new = !self.replicas.contains_key(&id);
            self.replicas.entry(id).or_default().connected = connected;
            if new && connected {
                self.repair.soon_with(now, id);
            }
        }
        self.recount();
    }

    /// Answers the appends that have reached their level.
    fn confirm(&mut self) {
        if self.unconfirmed.is_empty() {
            return;
        }
        let alive = self.replicas.len();
        let expected = self.replicas_counted();
        let (extents, replicas, out) = (&self.extents, &self.replicas, &mut self.out);
        self.unconfirmed.retain(|id, appends| {
            // Found under its key in a run that is still being stored.
            if !extents.has(*id) {
                return true;
            }
            let others = replicas.values().filter(|replica| replica.has(*id)).count();
            appends.retain(|append| {
                let Some(level) = append.reached(others, alive, expected) else { return true };
                let done = Appended { id: *id, time: append.time, level, repeated: append.repeated };
                out.push_back(Output::Answer(append.append, Ok(done)));
                false
            });
            !appends.is_empty()
        });
    }

    /// Answers those whose deadline has passed.
    fn sweep(&mut self, now: Time) {
        if self.next_sweep.is_none_or(|at| at <= now) {
            let late = self.queue.late(now);
            self.refuse(late, &AppendError::Late);
            let counted = self.replicas_counted();
            let out = &mut self.out;
            self.unconfirmed.retain(|id, appends| {
                appends.retain(|append| {
                    let waits = append.deadline > now;
                    if !waits {
                        out.push_back(Output::Answer(
                            append.append,
                            Err(AppendError::Indeterminate(*id, counted)),
                        ));
                    }
                    waits
                });
                !appends.is_empty()
            });
            self.ask_laggards(now);
            self.next_sweep = None;
        }
        let idle = self.queue.is_empty() && self.unconfirmed.is_empty();
        self.next_sweep = if idle { None } else { self.next_sweep.or(Some(now + SWEEP_EVERY)) };
    }
}

/// A new feed: its first number, and where its chain begins.
fn begin_feed(me: &Identity, config: &Config, rng: &mut fastrand::Rng) -> (EntryId, ChainHash) {
    let feed = FeedId { writer: me.id(), boot: rng.u64(..) };
    let root = ChainHash::root(&config.cluster, &config.topic, feed);
    (EntryId { feed, seq: Version(1) }, root)
}
