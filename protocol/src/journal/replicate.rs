//! Between replicas: pushing what was just synced, answering what others ask, fetching what is missing.

use std::sync::Arc;

use super::{
    FOREIGN_WRITES_MAX, Journal, LoadId, Output, PUSHES_MAX, Purpose, Reader, Replica, WriteId,
    clock::Moment,
    feed::{EntryId, FeedId, Run, Seq},
    message::{Extent, JournalRequest, JournalResponse},
    repair::Next,
};
use crate::{NodeId, Time, seen::Seen, sync::Ticket};

/// Reads for others under way at the same time. Guess: each is a message of up to 128 KiB.
const LOADS_MAX: usize = 32;
/// How soon a replica is asked again what it has, while an append waits for it.
const ASK_EVERY: std::time::Duration = std::time::Duration::from_millis(500);

impl Replica {
    pub(super) fn has(&self, id: EntryId) -> bool {
        self.receipts.get(&id.feed).is_some_and(|seen| seen.contains(id.seq))
    }
}

impl Journal {
    /// What was just synced goes to all at once, but for whom it came from.
    pub(super) fn push(&mut self, run: &Run, from: Option<NodeId>) {
        let others = self.replicas.iter().filter(|(id, replica)| replica.connected && Some(**id) != from);
        let peers: Vec<NodeId> = others.map(|(id, _)| *id).collect();
        peers.into_iter().for_each(|peer| self.push_to(peer, run));
    }

    /// What is too much now is read from the disk again once the replica has said what it has.
    fn push_to(&mut self, peer: NodeId, run: &Run) {
        let ticket = Ticket(self.next());
        let Some(replica) = self.replicas.get_mut(&peer) else { return };
        if replica.connected && replica.pushes.len() < PUSHES_MAX {
            replica.pushes.insert(ticket);
            self.out.push_back(Output::Request(peer, ticket, JournalRequest::Push(run.clone())));
        }
    }

    /// A replica has this of a feed.
    fn receipt(&mut self, from: NodeId, extent: &Extent) {
        let own = self.own.0.feed;
        let awaited = extent.feed == own || self.unconfirmed.keys().any(|id| id.feed == extent.feed);
        if !awaited || !extent.seen.is_well_formed() {
            return;
        }
        let Some(replica) = self.replicas.get_mut(&from) else { return };
        self.counters.receipts += 1;
        // What it says now counts, not what it said before: a disk may have lost something.
        replica.receipts.insert(extent.feed, extent.seen.clone());
        let lags = extent.feed == own && !extent.seen.contains_all(&self.extents.of(own).seen);
        let reading = self.loads.values().any(|reader| matches!(reader, Reader::Laggard(id) if *id == from));
        if lags && replica.pushes.is_empty() && !reading && self.loads.len() < LOADS_MAX {
            let load = LoadId(self.next());
            self.loads.insert(load, Reader::Laggard(from));
            self.out.push_back(Output::Load(load, extent.clone()));
        }
    }

    /// Asks those from whom a receipt is missing, in case a push or its answer was lost.
    pub(super) fn ask_laggards(&mut self, now: Time) {
        let own = self.own.0.feed;
        let awaited: std::collections::BTreeSet<FeedId> = self.unconfirmed.keys().map(|id| id.feed).collect();
        let mut asks = Vec::new();
        for (peer, replica) in &mut self.replicas {
            replica.receipts.retain(|feed, _| *feed == own || awaited.contains(feed));
            let recently = replica.asked.is_some_and(|at| now < at + ASK_EVERY);
            if !replica.connected || !replica.pushes.is_empty() || replica.asking.is_some() || recently {
                continue;
            }
            if let Some(id) = self.unconfirmed.keys().find(|id| !replica.has(**id)) {
                replica.asked = Some(now);
                asks.push((*peer, id.feed));
            }
        }
        for (peer, feed) in asks {
            let ticket = Ticket(self.next());
            if let Some(replica) = self.replicas.get_mut(&peer) {
                replica.asking = Some(ticket);
            }
            self.out.push_back(Output::Request(peer, ticket, JournalRequest::Confirm(feed)));
        }
    }

    /// Another replica wants something.
    pub(super) fn asked(
        &mut self,
        now: Time,
        wall_ms: u64,
        from: NodeId,
        ticket: Ticket,
        request: JournalRequest,
    ) {
        let response = match request {
            JournalRequest::Push(run) => {
                let purpose = Purpose::Pushed { from, ticket };
                match self.take(wall_ms, from, run, purpose) {
                    Taken::Storing => return,
                    Taken::Known(feed) => JournalResponse::Receipt(self.extents.of(feed)),
                    Taken::Refused => JournalResponse::Unable,
                }
            }
            JournalRequest::Compare { root } if root == self.extents.root() => {
                self.has_everything(from);
                JournalResponse::Same
            }
            JournalRequest::Compare { .. } => {
                if self.replicas.contains_key(&from) {
                    self.repair.differs(now, from);
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
                self.loads.insert(load, Reader::Asker(from, ticket));
                self.out.push_back(Output::Load(load, extent));
                return;
            }
            JournalRequest::Confirm(feed) => JournalResponse::Receipt(self.extents.of(feed)),
            JournalRequest::Replicas(theirs) => self.merge_replica_set(now, from, theirs),
        };
        self.out.push_back(Output::Respond(from, ticket, response));
    }

    fn list(&self, after: Option<FeedId>) -> JournalResponse {
        let (extents, more) = self.extents.page(after);
        JournalResponse::Extents { extents, more }
    }

    /// Its root hash is ours.
    fn has_everything(&mut self, peer: NodeId) {
        let own = self.extents.of(self.own.0.feed);
        let others: Vec<FeedId> = self.unconfirmed.keys().map(|id| id.feed).collect();
        let extents: Vec<Extent> = others.into_iter().map(|feed| self.extents.of(feed)).collect();
        self.receipt(peer, &own);
        extents.iter().for_each(|extent| self.receipt(peer, extent));
    }

    fn misbehaved(&mut self, peer: NodeId, how: &'static str) {
        self.counters.refused += 1;
        self.out.push_back(Output::Misbehaved(peer, how));
    }

    /// Whether all of a run is on the disk, synced, or was.
    fn is_here(&self, run: &Run) -> bool {
        let mut range = Seen::default();
        range.insert_range(run.start, run.end());
        self.extents.covers(&Extent { feed: run.feed, seen: range })
    }

    /// A run of somebody else's, on its way to the disk if it is sound and new.
    fn take(&mut self, wall_ms: u64, from: NodeId, run: Run, purpose: Purpose) -> Taken {
        // What was written here comes back from those that pass it on.
        if self.is_here(&run) {
            return Taken::Known(run.feed);
        }
        if run.feed == self.own.0.feed {
            self.misbehaved(from, "run of the own feed");
            return Taken::Refused;
        }
        if self.failed || self.writes.len() >= FOREIGN_WRITES_MAX || !self.extents.has_room(run.feed) {
            self.counters.put_off += 1;
            return Taken::Refused;
        }
        match run.check(&self.config.cluster, &self.config.topic) {
            Ok(_) if !run.entries.iter().all(|entry| self.clock.accepts(self.config.epoch_of(entry))) => {
                self.misbehaved(from, "epoch");
                Taken::Refused
            }
            Ok(hashes) => {
                for entry in &run.entries {
                    match self.config.epochs {
                        Some(_) => {
                            let epoch = self.config.epoch_of(entry);
                            self.clock.observe(Moment { epoch, time: entry.time });
                        }
                        None => self.clock.observe_time(wall_ms, entry.time),
                    }
                }
                let pushed = matches!(purpose, Purpose::Pushed { .. });
                let write = WriteId(self.next());
                let run = Arc::new(run);
                // Whoever is not connected here may not be connected to the writer either.
                if pushed && self.replicas.values().any(|replica| !replica.connected) {
                    self.unpushed.insert(write, Arc::clone(&run));
                }
                self.store(write, purpose, run, hashes);
                Taken::Storing
            }
            Err(_) => {
                self.misbehaved(from, "run");
                Taken::Refused
            }
        }
    }

    /// The disk gave what was to be read.
    pub(super) fn loaded(&mut self, load: LoadId, dropped: Seq, mut runs: Vec<Run>) {
        // Among what was read may be what is not synced yet, and of that nobody hears.
        runs.retain(|run| self.is_here(run));
        match self.loads.remove(&load) {
            Some(Reader::Asker(peer, ticket)) => {
                self.out.push_back(Output::Respond(peer, ticket, JournalResponse::Runs { dropped, runs }));
            }
            Some(Reader::Laggard(peer)) => runs.iter().for_each(|run| self.push_to(peer, run)),
            None => (),
        }
    }

    /// A replica answers, or will not.
    pub(super) fn answered(
        &mut self,
        now: Time,
        wall_ms: u64,
        from: NodeId,
        ticket: Ticket,
        response: Option<JournalResponse>,
    ) {
        if self.replica_set_answered(now, from, ticket, response.as_ref()) {
            return;
        }
        if let Some(replica) = self.replicas.get_mut(&from) {
            let push = replica.pushes.remove(&ticket);
            let ask = replica.asking == Some(ticket);
            if ask {
                replica.asking = None;
            }
            if push || ask {
                if let Some(JournalResponse::Receipt(extent)) = response {
                    self.receipt(from, &extent);
                }
                return;
            }
        }
        if !self.repair.expects(from, ticket) {
            return;
        }
        match response {
            Some(JournalResponse::Same) => {
                // It has what was here when it was asked, which may be less than what is here now.
                if self.repair.compared(self.extents.root()) {
                    self.has_everything(from);
                }
                self.repair.end(now);
            }
            Some(JournalResponse::Extents { extents, more }) => {
                self.counters.differences += 1;
                self.repair.listed(now, extents, more, &self.extents);
            }
            Some(JournalResponse::Runs { dropped, runs }) => {
                let Some(feed) = self.repair.pulling() else { return };
                let is_news = dropped > self.extents.of(feed).seen.watermark();
                // Nobody else decides what of its own feed a node has written.
                if self.config.drops && is_news && feed != self.own.0.feed {
                    self.out.push_back(Output::Forgo(feed, dropped));
                }
                let mut storing = 0;
                for run in runs.into_iter().filter(|run| run.feed == feed) {
                    storing += usize::from(self.take(wall_ms, from, run, Purpose::Pulled) == Taken::Storing);
                }
                self.repair.storing(now, storing);
            }
            Some(JournalResponse::Receipt(_) | JournalResponse::Unable | JournalResponse::Replicas(_))
            | None => self.repair.give_up(now),
        }
    }

    /// Goes on with the session, or begins one if it is time.
    pub(super) fn continue_repair(&mut self, now: Time) {
        let connected = |(id, replica): (&NodeId, &Replica)| replica.connected.then_some(*id);
        let peers: Vec<NodeId> = self.replicas.iter().filter_map(connected).collect();
        if let Next::Ask(peer, request) = self.repair.next(now, &self.extents, &peers) {
            let ticket = Ticket(self.next());
            self.repair.asking(now, ticket);
            self.counters.comparisons += u64::from(matches!(request, JournalRequest::Compare { .. }));
            self.out.push_back(Output::Request(peer, ticket, request));
        }
    }
}

/// What becomes of a run.
#[derive(PartialEq, Eq)]
enum Taken {
    Storing,
    /// All of it is here.
    Known(FeedId),
    Refused,
}
