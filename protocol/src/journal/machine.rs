//! [`Journal`]: the struct with the state of one topic on one node, and the dispatch of inputs.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use super::{
    append::{Append, AppendError},
    append_queue::{Queue, Unconfirmed},
    clock::HybridClock,
    config::JournalConfig,
    counters::JournalCounters,
    extents::Extents,
    feed::{ChainHash, EntryId, FeedId, Run, Seq},
    io::{JournalInput, JournalOutput, LoadId, RestoredJournal, WriteId},
    repair::Repair,
    replica_set::{ReplicaSet, SetExchange},
};
use crate::{Identity, NodeId, Time, Version, sync::RequestId, version_set::VersionSet};

/// Another node that keeps the topic.
#[derive(Debug, Default)]
pub(super) struct Replica {
    pub(super) connected: bool,
    /// Extents from the replica's receipts: of this node's feed, and of feeds for which an append waits.
    pub(super) receipts: BTreeMap<FeedId, VersionSet>,
    /// Pushes that have no response yet.
    pub(super) pushes: BTreeSet<RequestId>,
    /// Request for a receipt that has no response yet.
    pub(super) receipt_request: Option<RequestId>,
    pub(super) requested_at: Option<Time>,
    /// State of the exchange of replica sets with the replica.
    pub(super) set_exchange: SetExchange,
}

/// A peer, and the id of a request that it sent or must answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Exchange {
    pub(super) peer: NodeId,
    pub(super) request_id: RequestId,
}

/// Reason for which a run is being stored.
#[derive(Debug)]
pub(super) enum Purpose {
    Own,
    Pushed(Exchange),
    Pulled,
}

/// Reason for which runs are read from the disk.
#[derive(Debug)]
pub(super) enum Reader {
    /// A replica pulls the runs.
    Puller(Exchange),
    /// A replica lacks entries of this node's feed.
    Laggard(NodeId),
}

#[derive(Debug)]
pub(super) struct Write {
    pub(super) purpose: Purpose,
    pub(super) feed: FeedId,
    pub(super) start: Seq,
    pub(super) end: Seq,
}

/// The journal of one topic on one node.
#[derive(Debug)]
pub struct Journal {
    pub(super) identity: Identity,
    pub(super) config: JournalConfig,
    pub(super) rng: fastrand::Rng,
    pub(super) clock: HybridClock,
    /// This node's feed with the number of the next entry, and the hash before that entry.
    pub(super) own_feed: (EntryId, ChainHash),
    pub(super) extents: Extents,
    pub(super) queue: Queue,
    pub(super) unconfirmed: BTreeMap<EntryId, Vec<Unconfirmed>>,
    pub(super) replicas: BTreeMap<NodeId, Replica>,
    pub(super) replica_set: ReplicaSet,
    /// Number of replicas of which more than half are a majority.
    pub(super) replicas_counted: usize,
    pub(super) connected: BTreeSet<NodeId>,
    pub(super) writes: BTreeMap<WriteId, Write>,
    /// Runs to push once they are stored: those of this node, and those that were pushed to this node while
    /// one of the replicas is not connected to it.
    pub(super) unpushed: BTreeMap<WriteId, Arc<Run>>,
    pub(super) loads: BTreeMap<LoadId, Reader>,
    pub(super) repair: Repair,
    pub(super) next_id: u64,
    pub(super) next_expiry: Option<Time>,
    pub(super) failed: bool,
    pub(super) counters: JournalCounters,
    pub(super) out: VecDeque<JournalOutput>,
}

impl Journal {
    /// Continues from the state on a disk, with a new feed. `seed` must be random and never used before,
    /// because the feed's number is derived from it.
    pub fn new(me: Identity, config: JournalConfig, restored: RestoredJournal, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let own_feed = begin_feed(&me, &config, &mut rng);
        let mut journal = Self {
            repair: Repair::new(&config, rng.u64(..)),
            replica_set: ReplicaSet::restored(restored.replicas),
            replicas_counted: 0,
            identity: me,
            config,
            rng,
            clock: HybridClock::after(restored.latest),
            own_feed,
            extents: Extents::restored(restored.extents),
            queue: Queue::default(),
            unconfirmed: BTreeMap::new(),
            replicas: BTreeMap::new(),
            connected: BTreeSet::new(),
            writes: BTreeMap::new(),
            unpushed: BTreeMap::new(),
            loads: BTreeMap::new(),
            next_id: 0,
            next_expiry: None,
            failed: false,
            counters: JournalCounters::default(),
            out: VecDeque::new(),
        };
        journal.join_replica_set();
        journal
    }

    /// Extents of the feeds on this disk.
    pub fn extents(&self) -> &Extents {
        &self.extents
    }

    /// Counters since the start of the process.
    pub fn counters(&self) -> JournalCounters {
        JournalCounters {
            epochs_opened: self.clock.epochs_opened(),
            replicas_refused: self.replica_set.refused(),
            ..self.counters
        }
    }

    /// Current epoch. Above 0 if a clock was off by more than [`AHEAD_MAX`](super::AHEAD_MAX); versions
    /// without epochs then order rows differently.
    pub fn epoch(&self) -> u64 {
        self.clock.epoch()
    }

    /// Next output; `None` when no output is left.
    pub fn poll_output(&mut self) -> Option<JournalOutput> {
        self.out.pop_front()
    }

    /// When to pass [`JournalInput::Tick`]. If appends wait, that is at once after the last of them.
    pub fn poll_timeout(&self) -> Option<Time> {
        let at_once = self.may_write().then_some(Time::ZERO);
        let due = [self.next_expiry, self.repair.next_due(), self.next_exchange()];
        at_once.into_iter().chain(due.into_iter().flatten()).min()
    }

    /// Handles one input. `wall_ms` is the wall clock in milliseconds since 1970; it may jump.
    ///
    /// Appends are only queued. They become runs at the next [`JournalInput::Tick`], so that several share a
    /// signature and a sync.
    pub fn handle(&mut self, now: Time, wall_ms: u64, input: JournalInput) {
        match input {
            JournalInput::Tick => self.write(wall_ms),
            JournalInput::Append(append) => return self.append(append),
            JournalInput::LookedUp(id, None) => return self.queue.queue_unknown_key(id),
            JournalInput::LookedUp(id, Some((entry_id, entry))) => {
                let appends: Vec<Append> = self.queue.take_known_key(id).collect();
                appends.into_iter().for_each(|append| self.answer_repeated(append, entry_id, &entry));
            }
            JournalInput::NotLookedUp(id) => {
                // An entry with the key may exist, so writing the append could write it twice.
                let appends: Vec<Append> = self.queue.take_known_key(id).collect();
                self.refuse(appends, &AppendError::DiskFailed);
            }
            JournalInput::Stored(write) => self.handle_stored(now, write),
            JournalInput::NotStored(write, error) => self.handle_not_stored(now, write, error),
            JournalInput::Loaded { load, dropped, runs } => self.handle_loaded(load, dropped, runs),
            JournalInput::Damaged(left) => {
                self.counters.damaged += 1;
                self.extents.replace(left.feed, left.seen);
                self.repair.schedule_any(now);
            }
            JournalInput::Forgone(extent) => self.extents.replace(extent.feed, extent.seen),
            JournalInput::Replaced(left) => {
                self.counters.damaged += 1;
                self.extents = Extents::restored(left);
                // Other replicas send the entries of the old feed back. Its numbers are never used again.
                self.own_feed = begin_feed(&self.identity, &self.config, &mut self.rng);
                self.failed = false;
                let replica_set = self.replica_set.generations();
                self.out.extend(replica_set.into_iter().map(JournalOutput::KeepReplica));
                self.repair.schedule_any(now);
            }
            JournalInput::Replicas(alive) => self.set_replicas(now, alive),
            JournalInput::ForgetReplica(replica) => self.forget_replica(now, replica),
            JournalInput::Connected(peer) => {
                self.connected.insert(peer);
                if let Some(replica) = self.replicas.get_mut(&peer) {
                    replica.connected = true;
                    self.repair.schedule(now, peer);
                }
            }
            JournalInput::Disconnected(peer) => {
                self.connected.remove(&peer);
                if let Some(replica) = self.replicas.get_mut(&peer) {
                    replica.connected = false;
                    replica.pushes.clear();
                    replica.receipt_request = None;
                    replica.set_exchange = SetExchange::default();
                }
                self.repair.remove_peer(peer);
            }
            JournalInput::Request { from, request_id, request } => {
                self.handle_request(now, wall_ms, Exchange { peer: from, request_id }, request)
            }
            JournalInput::Response { from, request_id, response } => {
                self.handle_response(now, wall_ms, Exchange { peer: from, request_id }, response)
            }
        }
        self.confirm();
        self.expire_deadlines(now);
        self.continue_repair(now);
        self.exchange_replica_sets(now);
    }
    pub(super) fn next(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

/// Begins a new feed: the id of its first entry, and the hash before that entry.
pub(super) fn begin_feed(
    me: &Identity,
    config: &JournalConfig,
    rng: &mut fastrand::Rng,
) -> (EntryId, ChainHash) {
    let feed = FeedId { writer: me.id(), boot: rng.u64(..) };
    let root = ChainHash::root(&config.cluster, &config.topic, feed);
    (EntryId { feed, seq: Version(1) }, root)
}
