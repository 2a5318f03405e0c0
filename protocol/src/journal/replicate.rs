//! Part of [`Journal`]: pushes stored runs, answers requests of other replicas, records receipts, and fetches
//! missing entries.

use std::sync::Arc;

use super::{
    clock::{Moment, is_far_ahead},
    feed::{EntryId, FeedId, JournalEntry, Run, Seq},
    io::{JournalOutput, LoadId, WriteId},
    machine::{Exchange, Journal, Purpose, Reader, Replica},
    message::{Extent, JournalRequest, JournalResponse},
    repair::Next,
};
use crate::{NodeId, Time, sync::RequestId, version_set::VersionSet};

/// Maximum number of unanswered pushes to one replica (a guess). Runs beyond that are not pushed; once a
/// receipt shows that the replica lacks them, they are read from the disk.
const PUSHES_MAX: usize = 16;
/// Concurrent writes of runs from other nodes. Further runs are refused for now.
const FOREIGN_WRITES_MAX: usize = 64;
/// Concurrent reads for other replicas. Guess: each read is a message of up to 128 KiB.
const LOADS_MAX: usize = 32;
/// Shortest interval of receipt requests to one replica for which an append waits.
const RECEIPT_REQUEST_INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);

impl Replica {
    pub(super) fn has(&self, id: EntryId) -> bool {
        self.receipts.get(&id.feed).is_some_and(|seen| seen.contains(id.seq))
    }
}

impl Journal {
    /// Pushes a stored run to all connected replicas except the one that it came from.
    pub(super) fn push(&mut self, run: &Run, from: Option<NodeId>) {
        let others = self.replicas.iter().filter(|(id, replica)| replica.connected && Some(**id) != from);
        let peers: Vec<NodeId> = others.map(|(id, _)| *id).collect();
        peers.into_iter().for_each(|peer| self.push_to(peer, run));
    }

    /// Pushes a run to one replica, unless it has too many unanswered pushes. In that case the run is read
    /// from the disk later.
    fn push_to(&mut self, peer: NodeId, run: &Run) {
        let request_id = RequestId(self.next());
        let Some(replica) = self.replicas.get_mut(&peer) else { return };
        if replica.connected && replica.pushes.len() < PUSHES_MAX {
            replica.pushes.insert(request_id);
            self.out.push_back(JournalOutput::Request(peer, request_id, JournalRequest::Push(run.clone())));
        }
    }

    /// Records a receipt, which states the replica's extent of a feed.
    fn record_receipt(&mut self, from: NodeId, extent: &Extent) {
        let own_feed = self.own_feed.0.feed;
        let awaited = extent.feed == own_feed || self.unconfirmed.keys().any(|id| id.feed == extent.feed);
        if !awaited || !extent.seen.is_well_formed() {
            return;
        }
        let Some(replica) = self.replicas.get_mut(&from) else { return };
        self.counters.receipts += 1;
        // The latest receipt replaces earlier ones, because the replica's disk may have lost entries since.
        replica.receipts.insert(extent.feed, extent.seen.clone());
        let lags = extent.feed == own_feed && !extent.seen.contains_all(&self.extents.of(own_feed).seen);
        let reading = self.loads.values().any(|reader| matches!(reader, Reader::Laggard(id) if *id == from));
        if lags && replica.pushes.is_empty() && !reading && self.loads.len() < LOADS_MAX {
            let load = LoadId(self.next());
            self.loads.insert(load, Reader::Laggard(from));
            self.out.push_back(JournalOutput::Load(load, extent.clone()));
        }
    }

    /// Requests missing receipts, in case a push or its response was lost.
    pub(super) fn request_receipts(&mut self, now: Time) {
        let own_feed = self.own_feed.0.feed;
        let awaited: std::collections::BTreeSet<FeedId> = self.unconfirmed.keys().map(|id| id.feed).collect();
        let mut requests = Vec::new();
        for (peer, replica) in &mut self.replicas {
            replica.receipts.retain(|feed, _| *feed == own_feed || awaited.contains(feed));
            let recently = replica.requested_at.is_some_and(|at| now < at + RECEIPT_REQUEST_INTERVAL);
            if !replica.connected
                || !replica.pushes.is_empty()
                || replica.receipt_request.is_some()
                || recently
            {
                continue;
            }
            if let Some(id) = self.unconfirmed.keys().find(|id| !replica.has(**id)) {
                replica.requested_at = Some(now);
                requests.push((*peer, id.feed));
            }
        }
        for (peer, feed) in requests {
            let request_id = RequestId(self.next());
            if let Some(replica) = self.replicas.get_mut(&peer) {
                replica.receipt_request = Some(request_id);
            }
            self.out.push_back(JournalOutput::Request(peer, request_id, JournalRequest::Confirm(feed)));
        }
    }

    /// Handles a request from another replica.
    pub(super) fn handle_request(
        &mut self,
        now: Time,
        wall_ms: u64,
        exchange: Exchange,
        request: JournalRequest,
    ) {
        let Exchange { peer: from, request_id } = exchange;
        let response = match request {
            request if self.refuses_stranger(from, &request) => JournalResponse::Unable,
            JournalRequest::Push(run) => {
                let purpose = Purpose::Pushed(exchange);
                match self.accept_run(wall_ms, from, run, purpose) {
                    Accepted::Storing => return,
                    Accepted::Known(feed) => JournalResponse::Receipt(self.extents.of(feed)),
                    Accepted::Refused => JournalResponse::Unable,
                }
            }
            JournalRequest::Compare { root } if root == self.extents.root() => {
                self.record_equal_root(from);
                JournalResponse::Same
            }
            JournalRequest::Compare { .. } => {
                if self.replicas.contains_key(&from) {
                    self.repair.schedule_if_absent(now, from);
                }
                self.list(None)
            }
            JournalRequest::List { after } => self.list(Some(after)),
            JournalRequest::Pull(extent) if !extent.seen.is_well_formed() => {
                self.misbehaved(from, "malformed extent");
                JournalResponse::Unable
            }
            JournalRequest::Pull(_) if self.loads.len() >= LOADS_MAX => JournalResponse::Unable,
            JournalRequest::Pull(extent) => {
                let load = LoadId(self.next());
                self.loads.insert(load, Reader::Puller(exchange));
                self.out.push_back(JournalOutput::Load(load, extent));
                return;
            }
            JournalRequest::Confirm(feed) => JournalResponse::Receipt(self.extents.of(feed)),
            JournalRequest::Replicas(theirs) => self.merge_replica_set(now, from, theirs),
        };
        self.out.push_back(JournalOutput::Respond(from, request_id, response));
    }

    fn list(&self, after: Option<FeedId>) -> JournalResponse {
        let (extents, more) = self.extents.page(after);
        JournalResponse::Extents { extents, more }
    }

    /// Records receipts for a replica whose root hash equals that of this node.
    fn record_equal_root(&mut self, peer: NodeId) {
        let own_feed = self.extents.of(self.own_feed.0.feed);
        let others: Vec<FeedId> = self.unconfirmed.keys().map(|id| id.feed).collect();
        let extents: Vec<Extent> = others.into_iter().map(|feed| self.extents.of(feed)).collect();
        self.record_receipt(peer, &own_feed);
        extents.iter().for_each(|extent| self.record_receipt(peer, extent));
    }

    fn misbehaved(&mut self, peer: NodeId, how: &'static str) {
        self.counters.refused += 1;
        self.out.push_back(JournalOutput::Misbehaved(peer, how));
    }

    /// Whether all entries of a run are synced to the disk, or were and have been dropped since.
    fn is_here(&self, run: &Run) -> bool {
        let mut range = VersionSet::default();
        range.insert_range(run.start, run.end());
        self.extents.covers(&Extent { feed: run.feed, seen: range })
    }

    /// Checks a run of another feed, and stores it if it is valid and new.
    fn accept_run(&mut self, wall_ms: u64, from: NodeId, run: Run, purpose: Purpose) -> Accepted {
        // Replicas that relay runs send this node's runs back to it, too.
        if self.is_here(&run) {
            return Accepted::Known(run.feed);
        }
        if run.feed == self.own_feed.0.feed {
            self.misbehaved(from, "run of the own feed");
            return Accepted::Refused;
        }
        if self.failed || self.writes.len() >= FOREIGN_WRITES_MAX {
            self.counters.put_off += 1;
            return Accepted::Refused;
        }
        if !self.has_room(run.feed) {
            self.counters.feeds_refused += 1;
            return Accepted::Refused;
        }
        match run.check(&self.config.cluster, &self.config.topic) {
            Ok(_) if !run.entries.iter().all(|entry| self.clock.accepts(self.config.epoch_of(entry))) => {
                self.misbehaved(from, "epoch");
                Accepted::Refused
            }
            Ok(hashes) => {
                let is_ahead = |entry: &&JournalEntry| is_far_ahead(wall_ms, entry.time);
                self.counters.times_ahead += run.entries.iter().filter(is_ahead).count() as u64;
                for entry in &run.entries {
                    match self.config.epochs {
                        Some(_) => {
                            let epoch = self.config.epoch_of(entry);
                            self.clock.observe(Moment { epoch, time: entry.time });
                        }
                        None => self.clock.observe_time(wall_ms, entry.time),
                    }
                }
                let pushed = matches!(purpose, Purpose::Pushed(_));
                let write = WriteId(self.next());
                let run = Arc::new(run);
                // A replica that is not connected to this node may not be connected to the writer either, so
                // the run is pushed on.
                if pushed && self.replicas.values().any(|replica| !replica.connected) {
                    self.unpushed.insert(write, Arc::clone(&run));
                }
                self.store(write, purpose, run, hashes);
                Accepted::Storing
            }
            Err(_) => {
                self.misbehaved(from, "run");
                Accepted::Refused
            }
        }
    }

    /// Handles runs that were read from the disk.
    pub(super) fn handle_loaded(&mut self, load: LoadId, dropped: Seq, mut runs: Vec<Run>) {
        // The read may include runs that are not synced yet, which are not sent.
        runs.retain(|run| self.is_here(run));
        match self.loads.remove(&load) {
            Some(Reader::Puller(Exchange { peer, request_id })) => {
                self.out.push_back(JournalOutput::Respond(
                    peer,
                    request_id,
                    JournalResponse::Runs { dropped, runs },
                ));
            }
            Some(Reader::Laggard(peer)) => runs.iter().for_each(|run| self.push_to(peer, run)),
            None => (),
        }
    }

    /// Handles a response from another replica.
    pub(super) fn handle_response(
        &mut self,
        now: Time,
        wall_ms: u64,
        Exchange { peer: from, request_id }: Exchange,
        response: Option<JournalResponse>,
    ) {
        if self.replica_set_answered(now, from, request_id, response.as_ref()) {
            return;
        }
        if let Some(replica) = self.replicas.get_mut(&from) {
            let is_push = replica.pushes.remove(&request_id);
            let is_receipt = replica.receipt_request == Some(request_id);
            if is_receipt {
                replica.receipt_request = None;
            }
            if is_push || is_receipt {
                if let Some(JournalResponse::Receipt(extent)) = response {
                    self.record_receipt(from, &extent);
                }
                return;
            }
        }
        if !self.repair.expects(from, request_id) {
            return;
        }
        match response {
            Some(JournalResponse::Same) => {
                // The replica has everything that this node had when it sent the request. If this node stored
                // more since, the receipts would claim too much.
                if self.repair.is_compared_root(self.extents.root()) {
                    self.record_equal_root(from);
                }
                self.repair.end_session(now);
            }
            Some(JournalResponse::Extents { extents, more }) => {
                self.counters.differences += 1;
                let last = extents.last().map(|extent| extent.feed);
                let missing = self.missing(extents);
                self.repair.record_extents(now, (last, more), missing);
            }
            Some(JournalResponse::Runs { dropped, runs }) => {
                let Some(feed) = self.repair.pulled_feed() else { return };
                let is_news = dropped > self.extents.of(feed).seen.watermark();
                // Only the writer of a feed decides which of its entries exist.
                if self.config.drops && is_news && feed != self.own_feed.0.feed {
                    self.out.push_back(JournalOutput::Forgo(feed, dropped));
                }
                let mut storing = 0;
                for run in runs.into_iter().filter(|run| run.feed == feed) {
                    storing += usize::from(
                        self.accept_run(wall_ms, from, run, Purpose::Pulled) == Accepted::Storing,
                    );
                }
                self.repair.storing(now, storing);
            }
            // The replica has too many reads pending, or does not know yet that this node is a replica.
            Some(JournalResponse::Unable) => self.repair.end_session(now),
            Some(JournalResponse::Receipt(_) | JournalResponse::Replicas(_)) | None => {
                self.repair.fail_session(now);
            }
        }
    }

    /// Extents of a replica with entries that this disk lacks and has room for.
    fn missing(&mut self, mut theirs: Vec<Extent>) -> Vec<Extent> {
        theirs.retain(|extent| extent.seen.is_well_formed() && !self.extents.covers(extent));
        let lacking = theirs.len();
        theirs.retain(|extent| self.has_room(extent.feed));
        self.counters.feeds_refused += (lacking - theirs.len()) as u64;
        theirs
    }

    /// Continues the repair session, or starts one that is due.
    pub(super) fn continue_repair(&mut self, now: Time) {
        let connected = |(id, replica): (&NodeId, &Replica)| replica.connected.then_some(*id);
        let peers: Vec<NodeId> = self.replicas.iter().filter_map(connected).collect();
        if let Next::Ask(peer, request) = self.repair.next(now, &self.extents, &peers) {
            let request_id = RequestId(self.next());
            self.repair.record_request(now, request_id);
            self.counters.comparisons += u64::from(matches!(request, JournalRequest::Compare { .. }));
            self.out.push_back(JournalOutput::Request(peer, request_id, request));
        }
    }
}

/// Effect of a received run.
#[derive(PartialEq, Eq)]
enum Accepted {
    Storing,
    /// All entries of the run are synced to this disk.
    Known(FeedId),
    Refused,
}
