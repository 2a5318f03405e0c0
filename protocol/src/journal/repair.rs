//! Fetching what is missing: one session at a time, with one replica, in steps of one request each.
//!
//! Compare the root hashes; where they differ list the other's extents; pull, feed by feed, what is missing, and store it before asking for
//! more, so that a slow disk slows down who asks and nobody else. Each side only pulls. Who is asked and sees that the hashes differ compares
//! in turn.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{
    Config,
    extents::{Extents, FEEDS_MAX},
    feed::FeedId,
    message::{Extent, JournalRequest},
};
use crate::{NodeId, Time, sync::Ticket};

/// Two comparisons with the same replica are at least so far apart, whatever asks for them, unless the first one helped.
const APART: Duration = Duration::from_millis(500);

/// So many connected replicas share the interval of one; with more each node asks more seldom, and what is quiet costs no more for being large.
const PEERS_PER_ROUND: usize = 2;

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Ask(NodeId, JournalRequest),
    Nothing,
}

#[derive(Debug)]
struct Session {
    peer: NodeId,
    /// The hash that it was asked to compare with.
    root: [u8; 16],
    /// `None`: it is this node's turn.
    waits: Option<Ticket>,
    deadline: Time,
    /// Runs on their way to the disk.
    storing: usize,
    wanted: VecDeque<Extent>,
    /// Where the last page of extents ended.
    after: Option<FeedId>,
    /// Whether there are more after it, still to be asked for.
    more: bool,
    /// What was here when the feed was last asked for.
    pulled: Option<Extent>,
    helped: bool,
}

/// Comparing with other replicas.
#[derive(Debug)]
pub(super) struct Repair {
    session: Option<Session>,
    /// Whom to compare with, and when.
    queue: BTreeMap<NodeId, Time>,
    /// Until when to leave whom alone.
    tried: BTreeMap<NodeId, Time>,
    next_round: Time,
    interval: Duration,
    timeout: Duration,
    rng: fastrand::Rng,
}

impl Repair {
    pub(super) fn new(config: &Config, seed: u64) -> Self {
        Self {
            session: None,
            queue: BTreeMap::new(),
            tried: BTreeMap::new(),
            next_round: Time::ZERO,
            interval: config.repair_interval,
            timeout: config.answer_timeout,
            rng: fastrand::Rng::with_seed(seed),
        }
    }

    /// Compares with somebody as soon as possible.
    pub(super) fn soon(&mut self, now: Time) {
        self.next_round = now;
    }

    /// Compares with this replica as soon as possible.
    pub(super) fn soon_with(&mut self, now: Time, peer: NodeId) {
        self.queue.insert(peer, now);
        self.tried.remove(&peer);
    }

    /// This replica has something else than is here.
    pub(super) fn differs(&mut self, now: Time, peer: NodeId) {
        self.queue.entry(peer).or_insert(now);
    }

    /// It is not connected any more.
    pub(super) fn forget(&mut self, peer: NodeId) {
        self.queue.remove(&peer);
        self.tried.remove(&peer);
        self.session.take_if(|session| session.peer == peer);
    }

    /// Whether this answers what was asked last.
    pub(super) fn expects(&self, peer: NodeId, ticket: Ticket) -> bool {
        self.session.as_ref().is_some_and(|s| s.peer == peer && s.waits == Some(ticket))
    }

    pub(super) fn asking(&mut self, now: Time, ticket: Ticket) {
        if let Some(session) = &mut self.session {
            session.waits = Some(ticket);
            session.deadline = now + self.timeout;
        }
    }

    /// Whether this is the hash that was to be compared.
    pub(super) fn compared(&self, root: [u8; 16]) -> bool {
        self.session.as_ref().is_some_and(|session| session.root == root)
    }

    /// The feed whose runs were asked for.
    pub(super) fn pulling(&self) -> Option<FeedId> {
        self.session.as_ref()?.pulled.as_ref().map(|extent| extent.feed)
    }

    /// A page of what the other has.
    pub(super) fn listed(&mut self, now: Time, extents: Vec<Extent>, more: bool, ours: &Extents) {
        let Some(session) = &mut self.session else { return };
        session.waits = None;
        session.deadline = now + self.timeout;
        let last = extents.last().map(|extent| extent.feed);
        // What does not go on would go on for ever.
        session.more = more && last > session.after;
        session.after = last;
        let missing = extents.into_iter().filter(|e| e.seen.is_well_formed() && !ours.covers(e));
        let room = FEEDS_MAX - session.wanted.len().min(FEEDS_MAX);
        session.wanted.extend(missing.take(room));
    }

    /// So many of the runs that came go to the disk.
    pub(super) fn storing(&mut self, now: Time, runs: usize) {
        let Some(session) = &mut self.session else { return };
        session.waits = None;
        session.deadline = now + self.timeout;
        session.storing = runs;
    }

    /// One of them is there.
    pub(super) fn stored(&mut self, now: Time) {
        let Some(session) = &mut self.session else { return };
        session.storing = session.storing.saturating_sub(1);
        session.deadline = now + self.timeout;
        session.helped = true;
    }

    /// The hashes are equal: nothing to do.
    pub(super) fn end(&mut self, now: Time) {
        if let Some(session) = self.session.take() {
            self.tried.insert(session.peer, now + APART);
        }
    }

    /// It goes no further.
    pub(super) fn give_up(&mut self, now: Time) {
        if let Some(session) = self.session.take() {
            self.tried.insert(session.peer, now + self.interval);
        }
    }

    /// What to do now. After [`Next::Ask`] comes [`asking`](Self::asking).
    pub(super) fn next(&mut self, now: Time, extents: &Extents, peers: &[NodeId]) -> Next {
        if self.session.as_ref().is_some_and(|session| session.deadline <= now) {
            self.give_up(now);
        }
        if let Some(session) = &mut self.session {
            if session.waits.is_some() || session.storing > 0 {
                return Next::Nothing;
            }
            if let Some(request) = session.next(extents) {
                return Next::Ask(session.peer, request);
            }
            let (peer, helped) = (session.peer, session.helped);
            self.end(now);
            if helped {
                // Until the hashes are equal: more may have come meanwhile.
                self.soon_with(now, peer);
            }
        }
        if self.next_round <= now {
            // Where many are connected, each is compared with by many others.
            let others = peers.len().div_ceil(PEERS_PER_ROUND).max(1);
            self.next_round = now + self.interval.mul_f64(others as f64 * (0.75 + self.rng.f64() / 2.0));
            if let Some(peer) = self.rng.choice(peers) {
                self.queue.entry(*peer).or_insert(now);
            }
        }
        self.tried.retain(|_, until| *until > now);
        self.queue.retain(|peer, _| peers.contains(peer));
        let ready = self.queue.iter().filter(|(peer, at)| **at <= now && !self.tried.contains_key(peer));
        let Some(peer) = ready.min_by_key(|(_, at)| **at).map(|(peer, _)| *peer) else {
            return Next::Nothing;
        };
        self.queue.remove(&peer);
        let root = extents.root();
        self.session = Some(Session {
            peer,
            root,
            waits: None,
            deadline: now + self.timeout,
            storing: 0,
            wanted: VecDeque::new(),
            after: None,
            more: false,
            pulled: None,
            helped: false,
        });
        Next::Ask(peer, JournalRequest::Compare { root })
    }

    /// When [`next`](Self::next) may have something to do.
    pub(super) fn next_due(&self) -> Option<Time> {
        if let Some(session) = &self.session {
            return Some(session.deadline);
        }
        let ready =
            |(peer, at): (&NodeId, &Time)| self.tried.get(peer).map_or(*at, |until| (*at).max(*until));
        self.queue.iter().map(ready).chain([self.next_round]).min()
    }
}

impl Session {
    fn next(&mut self, extents: &Extents) -> Option<JournalRequest> {
        while let Some(theirs) = self.wanted.front() {
            let ours = extents.of(theirs.feed);
            // What a pull did not change, another would not change either: they do not have what they say, or it is refused here.
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
