//! [`Repair`]: fetches missing entries, in one session at a time with one replica, one request after the
//! other.
//!
//! A session compares root hashes. If they differ, it lists the other replica's extents, pulls the missing
//! runs feed by feed, and stores them before it requests more. So a slow disk slows down only the replica
//! that pulls. Each side only pulls: if the answering replica finds a difference, it starts its own session.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{
    config::JournalConfig,
    extents::Extents,
    feed::FeedId,
    message::{Extent, JournalRequest},
};
use crate::{NodeId, Time, sync::RequestId};

/// Shortest interval of two comparisons with the same replica, unless the first comparison brought entries.
const COMPARE_INTERVAL_MIN: Duration = Duration::from_millis(500);

/// Connected replicas at which the interval of comparisons begins to grow. With more of them each node
/// compares less often, so that the cost of a quiet topic does not grow with its replicas.
const PEERS_PER_ROUND: usize = 2;

/// Feeds that a session fetches, at most. A further session fetches the rest.
const WANTED_MAX: usize = 16 * 1024;

/// The next step of repair.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Ask(NodeId, JournalRequest),
    Nothing,
}

#[derive(Debug)]
struct Session {
    peer: NodeId,
    /// Root hash that was sent to the replica for comparison.
    root: [u8; 16],
    /// The request that has no response yet. `None`: the next step is this node's.
    pending: Option<RequestId>,
    deadline: Time,
    /// Number of pulled runs that are being written.
    storing: usize,
    wanted: VecDeque<Extent>,
    /// Last feed of the last page of extents.
    after: Option<FeedId>,
    /// Whether further pages follow.
    more: bool,
    /// This node's extent of the feed at its last pull.
    pulled: Option<Extent>,
    brought_entries: bool,
}

/// Repair sessions and their schedule.
#[derive(Debug)]
pub(super) struct Repair {
    session: Option<Session>,
    /// Replicas to compare with, and when.
    queue: BTreeMap<NodeId, Time>,
    /// Replicas with which not to compare, and until when.
    paused_until: BTreeMap<NodeId, Time>,
    next_round: Time,
    interval: Duration,
    timeout: Duration,
    rng: fastrand::Rng,
}

impl Repair {
    pub(super) fn new(config: &JournalConfig, seed: u64) -> Self {
        Self {
            session: None,
            queue: BTreeMap::new(),
            paused_until: BTreeMap::new(),
            next_round: Time::ZERO,
            interval: config.repair_interval,
            timeout: config.answer_timeout,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    /// Schedules a comparison with a random replica as soon as possible.
    pub(super) fn schedule_any(&mut self, now: Time) {
        self.next_round = now;
    }

    /// Schedules a comparison with this replica as soon as possible.
    pub(super) fn schedule(&mut self, now: Time, peer: NodeId) {
        self.queue.insert(peer, now);
        self.paused_until.remove(&peer);
    }

    /// Schedules a comparison with a replica whose root hash differs.
    pub(super) fn schedule_if_absent(&mut self, now: Time, peer: NodeId) {
        self.queue.entry(peer).or_insert(now);
    }

    /// Removes a replica that is no longer connected.
    pub(super) fn remove_peer(&mut self, peer: NodeId) {
        self.queue.remove(&peer);
        self.paused_until.remove(&peer);
        self.session.take_if(|session| session.peer == peer);
    }

    /// Whether a response answers the session's last request.
    pub(super) fn expects(&self, peer: NodeId, request_id: RequestId) -> bool {
        self.session.as_ref().is_some_and(|s| s.peer == peer && s.pending == Some(request_id))
    }

    pub(super) fn record_request(&mut self, now: Time, request_id: RequestId) {
        if let Some(session) = &mut self.session {
            session.pending = Some(request_id);
            session.deadline = now + self.timeout;
        }
    }

    /// Whether this node's root hash is still the one that was compared.
    pub(super) fn is_compared_root(&self, root: [u8; 16]) -> bool {
        self.session.as_ref().is_some_and(|session| session.root == root)
    }

    /// The feed of the last pull.
    pub(super) fn pulled_feed(&self) -> Option<FeedId> {
        self.session.as_ref()?.pulled.as_ref().map(|extent| extent.feed)
    }

    /// Handles a page of the replica's extents: its last feed, whether more pages follow, and the extents to
    /// fetch.
    pub(super) fn record_extents(
        &mut self,
        now: Time,
        (last, more): (Option<FeedId>, bool),
        missing: Vec<Extent>,
    ) {
        let Some(session) = &mut self.session else { return };
        session.pending = None;
        session.deadline = now + self.timeout;
        // If the page did not advance, a further request would loop.
        session.more = more && last > session.after;
        session.after = last;
        let room = WANTED_MAX - session.wanted.len().min(WANTED_MAX);
        session.wanted.extend(missing.into_iter().take(room));
    }

    /// Records the number of pulled runs that are being written.
    pub(super) fn storing(&mut self, now: Time, runs: usize) {
        let Some(session) = &mut self.session else { return };
        session.pending = None;
        session.deadline = now + self.timeout;
        session.storing = runs;
    }

    /// Records that one of the pulled runs is stored.
    pub(super) fn record_stored(&mut self, now: Time) {
        let Some(session) = &mut self.session else { return };
        session.storing = session.storing.saturating_sub(1);
        session.deadline = now + self.timeout;
        session.brought_entries = true;
    }

    /// Ends the session after equal root hashes.
    pub(super) fn end_session(&mut self, now: Time) {
        if let Some(session) = self.session.take() {
            self.paused_until.insert(session.peer, now + COMPARE_INTERVAL_MIN);
        }
    }

    /// Ends a session that failed.
    pub(super) fn fail_session(&mut self, now: Time) {
        if let Some(session) = self.session.take() {
            self.paused_until.insert(session.peer, now + self.interval);
        }
    }

    /// Returns the next step. After [`Next::Ask`], call [`record_request`](Self::record_request).
    pub(super) fn next(&mut self, now: Time, extents: &Extents, peers: &[NodeId]) -> Next {
        if self.session.as_ref().is_some_and(|session| session.deadline <= now) {
            self.fail_session(now);
        }
        if let Some(session) = &mut self.session {
            if session.pending.is_some() || session.storing > 0 {
                return Next::Nothing;
            }
            if let Some(request) = session.next(extents) {
                return Next::Ask(session.peer, request);
            }
            let (peer, brought_entries) = (session.peer, session.brought_entries);
            self.end_session(now);
            if brought_entries {
                // The comparison is repeated until the hashes are equal, because further entries may have
                // arrived.
                self.schedule(now, peer);
            }
        }
        if self.next_round <= now {
            // If many replicas are connected, many others compare with each of them.
            let others = peers.len().div_ceil(PEERS_PER_ROUND).max(1);
            self.next_round = now + self.interval.mul_f64(others as f64 * (0.75 + self.rng.f64() / 2.0));
            if let Some(peer) = self.rng.choice(peers) {
                self.queue.entry(*peer).or_insert(now);
            }
        }
        self.paused_until.retain(|_, until| *until > now);
        self.queue.retain(|peer, _| peers.contains(peer));
        let ready =
            self.queue.iter().filter(|(peer, at)| **at <= now && !self.paused_until.contains_key(peer));
        let Some(peer) = ready.min_by_key(|(_, at)| **at).map(|(peer, _)| *peer) else {
            return Next::Nothing;
        };
        self.queue.remove(&peer);
        let root = extents.root();
        self.session = Some(Session {
            peer,
            root,
            pending: None,
            deadline: now + self.timeout,
            storing: 0,
            wanted: VecDeque::new(),
            after: None,
            more: false,
            pulled: None,
            brought_entries: false,
        });
        Next::Ask(peer, JournalRequest::Compare { root })
    }

    /// When [`next`](Self::next) may next have an action.
    pub(super) fn next_due(&self) -> Option<Time> {
        if let Some(session) = &self.session {
            return Some(session.deadline);
        }
        let ready =
            |(peer, at): (&NodeId, &Time)| self.paused_until.get(peer).map_or(*at, |until| (*at).max(*until));
        self.queue.iter().map(ready).chain([self.next_round]).min()
    }
}

impl Session {
    fn next(&mut self, extents: &Extents) -> Option<JournalRequest> {
        while let Some(theirs) = self.wanted.front() {
            let ours = extents.of(theirs.feed);
            // A pull without effect is not repeated: the replica does not have the entries that its extent
            // lists, or this node refuses them.
            if extents.covers(theirs) || self.pulled.as_ref() == Some(&ours) {
                self.wanted.pop_front();
                continue;
            }
            self.pulled = Some(ours.clone());
            return Some(JournalRequest::Pull(ours));
        }
        self.pulled = None;
        let after = self.after.filter(|_| std::mem::take(&mut self.more))?;
        Some(JournalRequest::List { after })
    }
}
