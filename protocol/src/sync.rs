//! Anti-entropy: two neighbours compare hashes and exchange the entries in which they differ.
//!
//! Gossip has no memory: a node that joins late, or was disconnected, misses earlier messages. So a node
//! compares root hashes with each new neighbour, and with a neighbour whose pongs carry another root hash
//! ([`roots`]). In the steady state pongs are the whole cost. In addition it compares with a random neighbour
//! every few minutes, and every 15 s with one whose pongs carry no root hash, because its version is older.
//! Equal hashes end the session. Otherwise the node that started the session requests
//! the other's digests page by page, pulls the entries that it lacks, and pushes those that the other lacks.
//! The answering node keeps no state (Demers et al., 1987). After a session that brought news, the node
//! compares with its other neighbours. So entries that cross a healed partition over one connection reach all
//! nodes within a few round trips.

mod roots;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    NodeId, Time,
    config::Config,
    membership::{
        liveness::Liveness,
        patience::Patience,
        state::{Hash, State},
    },
    record::Key,
    version_set::VersionSet,
    wire::{Digest, PAGE_BYTES, Page, Request, Response},
};

pub use roots::RootPrefix;
use roots::Roots;

/// Bytes of digests in one message. The estimate for a digest is cautious: about 70 bytes and its gaps, at
/// most 1.4 kB.
const DIGESTS_BYTES: usize = 200 * 1024;
/// Encoded size of a range of versions: two integers of at most nine bytes.
const RANGE_BYTES: usize = 18;
/// Timeouts after which a session ends, even if it still makes progress. A full table takes a few seconds.
const SESSION_TIMEOUTS_MAX: u32 = 8;
/// Nodes pulled in one request.
const PULL_MAX: usize = 128;
/// Concurrent sessions that this node starts. Further peers wait, because parallel transfers of full tables
/// gain nothing.
const SESSIONS_MAX: usize = 2;
/// Time in which gossip normally spreads news to all nodes. After a session brought news, the node waits this
/// long before it compares with its other neighbours, because gossip may have delivered the news to them by
/// then.
pub(crate) const SETTLE: Duration = Duration::from_millis(300);

/// Id of a request. The response carries the id, which leads to the session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// Id of requests for whose response no session waits.
pub(crate) const NO_SESSION: RequestId = RequestId(0);

/// A request to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SyncRequest {
    /// The peer that receives the request.
    pub peer: NodeId,
    /// Id that the response carries.
    pub request_id: RequestId,
    /// The message.
    pub request: Request,
}

#[derive(Debug)]
struct Session {
    request_id: RequestId,
    deadline: Time,
    /// Latest end of the session. Without it, a peer that always has more would keep this node from comparing
    /// with others.
    end: Time,
    /// Parts of the table that are being compared, one bit each.
    parts: u64,
    /// Whether further digests of these parts must be requested.
    unlisted: bool,
    /// The last node id among the digests received so far.
    after: Option<NodeId>,
    /// The peer's digests of nodes of which this node lacks entries.
    pull: BTreeMap<NodeId, Digest>,
    /// The peer's digests of nodes of which the peer lacks entries.
    push: BTreeMap<NodeId, Digest>,
    /// Digests in the last pull, by which the session detects a pull without effect.
    last_pull: Option<Vec<Digest>>,
}

/// Anti-entropy sessions that this node starts.
#[derive(Debug)]
pub(crate) struct Sync {
    sessions: BTreeMap<NodeId, Session>,
    /// Peers to compare with, and from which time on.
    queue: BTreeMap<NodeId, Time>,
    /// Root hashes of this node and of pongs.
    roots: Roots,
    /// When to compare with a neighbour whose difference pongs may not show.
    next_round: Time,
    /// When to compare with any neighbour.
    next_fallback: Time,
    next_request_id: u64,
    interval: Duration,
    fallback_interval: Duration,
    timeout: Duration,
    rng: fastrand::Rng,
    /// Gone members that a peer has forgotten. The core drains this list.
    pub forgotten: Vec<NodeId>,
    /// Comparisons started.
    pub rounds: u64,
    /// Comparisons started because a pong carried another root hash.
    pub by_pong: u64,
    /// Comparisons that found a difference.
    pub differences: u64,
    /// Sessions that compared both tables to the end.
    pub completed: u64,
    /// Sessions that ended without a response.
    pub timeouts: u64,
}

/// Knowledge of this node: its replicated state, and the evidence on members.
#[derive(Clone, Copy)]
pub(crate) struct Knowledge<'a> {
    pub(crate) state: &'a State,
    pub(crate) liveness: &'a Liveness,
}

impl Sync {
    /// Anti-entropy without sessions.
    pub(crate) fn new(config: &Config, seed: u64, now: Time) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            sessions: BTreeMap::new(),
            queue: BTreeMap::new(),
            roots: Roots::new(),
            next_round: now + config.sync_interval.mul_f64(rng.f64()),
            next_fallback: now + config.sync_fallback_interval.mul_f64(rng.f64()),
            next_request_id: 0,
            interval: config.sync_interval,
            fallback_interval: config.sync_fallback_interval,
            timeout: config.sync_timeout,
            rng,
            forgotten: Vec::new(),
            rounds: 0,
            by_pong: 0,
            differences: 0,
            completed: 0,
            timeouts: 0,
        }
    }

    /// Schedules a comparison with a neighbour as soon as a session is free.
    pub(crate) fn schedule(&mut self, now: Time, peer: NodeId) {
        let due = self.queue.entry(peer).or_insert(now);
        *due = (*due).min(now);
    }

    /// Schedules comparisons with all other neighbours at `at`, after a session or a push brought news.
    pub(crate) fn schedule_others(
        &mut self,
        at: Time,
        from: NodeId,
        neighbours: impl Iterator<Item = NodeId>,
    ) {
        for peer in neighbours.filter(|peer| *peer != from) {
            self.queue.entry(peer).or_insert(at);
        }
    }

    /// Removes a peer that is no longer connected.
    pub(crate) fn remove_peer(&mut self, peer: NodeId) {
        self.sessions.remove(&peer);
        self.queue.remove(&peer);
        self.roots.remove_peer(peer);
    }

    /// Records this node's root hash after a change.
    pub(crate) fn record_own_root(&mut self, now: Time, root: Hash) {
        self.roots.record_own(now, RootPrefix::of(root));
    }

    /// Records the root hash in the pong of a connected peer; `None`: the pong carried none.
    pub(crate) fn record_pong(
        &mut self,
        now: Time,
        peer: NodeId,
        root: Option<RootPrefix>,
        patience: &Patience,
    ) {
        self.roots.record_pong(now, peer, root, patience);
    }

    /// Starts the sessions that are due. `has_user_events`: this node holds user events, which root hashes do
    /// not cover.
    pub(crate) fn due(
        &mut self,
        now: Time,
        state: &State,
        has_user_events: bool,
        neighbours: impl Fn() -> Vec<NodeId>,
    ) -> Vec<SyncRequest> {
        let before = self.sessions.len();
        self.sessions.retain(|_, session| session.deadline > now);
        self.timeouts += (before - self.sessions.len()) as u64;
        if self.next_round <= now {
            self.next_round = now + self.interval.mul_f64(0.75 + self.rng.f64() / 2.0);
            let mut peers = neighbours();
            peers.retain(|peer| has_user_events || self.roots.is_rootless(*peer));
            if let Some(peer) = self.rng.choice(peers) {
                self.schedule(now, peer);
            }
        }
        if self.next_fallback <= now {
            self.next_fallback = now + self.fallback_interval.mul_f64(0.75 + self.rng.f64() / 2.0);
            if let Some(peer) = self.rng.choice(neighbours()) {
                self.schedule(now, peer);
            }
        }
        if let Some(peer) = self.roots.due(now) {
            self.by_pong += 1;
            self.schedule(now, peer);
        }
        let mut requests = Vec::new();
        while self.sessions.len() < SESSIONS_MAX {
            let ready =
                self.queue.iter().filter(|(peer, at)| **at <= now && !self.sessions.contains_key(peer));
            let Some(peer) = ready.min_by_key(|(_, at)| **at).map(|(peer, _)| *peer) else { break };
            self.queue.remove(&peer);
            self.rounds += 1;
            let request_id = self.request_id();
            self.sessions.insert(peer, Session::new(request_id, now, self.timeout));
            requests.push(SyncRequest { peer, request_id, request: Request::Compare { root: state.root() } });
        }
        requests
    }

    fn request_id(&mut self) -> RequestId {
        self.next_request_id += 1;
        RequestId(self.next_request_id)
    }

    /// Whether a response belongs to a session that still waits for it.
    pub(crate) fn expects(&self, peer: NodeId, request_id: RequestId) -> bool {
        self.sessions.get(&peer).is_some_and(|s| s.request_id == request_id)
    }

    /// Handles a response. The caller has applied the response's pages to `state`. Returns the next request,
    /// or `None` when the session is over.
    pub(crate) fn handle_response(
        &mut self,
        now: Time,
        peer: NodeId,
        response: Response,
        known: Knowledge<'_>,
    ) -> Option<SyncRequest> {
        let state = known.state;
        let session = self.sessions.get_mut(&peer)?;
        session.deadline = session.end.min(now + self.timeout);
        match response {
            Response::Same => (),
            // Only once in a session: otherwise a peer that always answers with hashes would keep the session
            // going without end.
            Response::Parts(theirs) if session.parts == 0 => {
                self.differences += 1;
                session.parts = state.differing_parts(&theirs);
                session.unlisted = true;
            }
            Response::Digests { digests, more } => {
                self.forgotten.extend(session.compare(state, digests, more));
            }
            Response::Pages { .. } => {
                session.pull.retain(|id, theirs| State::lacks(&state.digest(*id), theirs))
            }
            Response::Parts(_) | Response::Done | Response::UserEvents { .. } => (),
        }
        let request = session.next(known);
        match request {
            Some(request) => {
                let request_id = self.request_id();
                if let Some(session) = self.sessions.get_mut(&peer) {
                    session.request_id = request_id;
                }
                Some(SyncRequest { peer, request_id, request })
            }
            None => {
                self.sessions.remove(&peer);
                self.completed += 1;
                None
            }
        }
    }

    /// Ends the session of a request that could not be sent or was not answered.
    pub(crate) fn fail_session(&mut self, peer: NodeId, request_id: RequestId) {
        if self.expects(peer, request_id) {
            self.sessions.remove(&peer);
            self.timeouts += 1;
        }
    }

    /// When [`due`](Self::due) next has an action.
    pub(crate) fn next_due(&self) -> Time {
        let full = self.sessions.len() >= SESSIONS_MAX;
        let queue = self
            .queue
            .iter()
            .filter(|(peer, _)| !full && !self.sessions.contains_key(peer))
            .map(|(_, at)| *at);
        let deadlines = self.sessions.values().map(|s| s.deadline);
        let rounds = self.next_round.min(self.next_fallback);
        queue.chain(deadlines).chain(self.roots.next_due()).fold(rounds, Time::min)
    }
}

impl Session {
    fn new(request_id: RequestId, now: Time, timeout: Duration) -> Self {
        Self {
            request_id,
            deadline: now + timeout,
            end: now + timeout * SESSION_TIMEOUTS_MAX,
            parts: 0,
            unlisted: false,
            after: None,
            pull: BTreeMap::new(),
            push: BTreeMap::new(),
            last_pull: None,
        }
    }

    /// Records the entries that either side lacks. Returns the members to forget.
    fn compare(&mut self, state: &State, digests: Vec<Digest>, more: bool) -> Vec<NodeId> {
        let mut forgotten = Vec::new();
        let last = digests.last().map(|d| d.node);
        let listed: BTreeSet<NodeId> = digests.iter().map(|d| d.node).collect();
        for theirs in digests.into_iter().filter(|d| d.seen.is_well_formed()) {
            let ours = state.digest(theirs.node);
            let gone = state.is_gone(theirs.node);
            if theirs.is_of_forgotten() && (gone || state.node(theirs.node).is_none()) {
                if gone && theirs.incarnation >= ours.incarnation {
                    forgotten.push(theirs.node);
                }
                continue;
            }
            if State::lacks(&theirs, &ours) {
                let mut to = theirs.clone();
                if theirs.incarnation == ours.incarnation && theirs.seen == ours.seen {
                    // The entries differ although the versions are the same, so all entries are sent, page
                    // after page.
                    to.seen = VersionSet::default();
                }
                self.push.insert(theirs.node, to);
            }
            if State::lacks(&ours, &theirs) {
                self.pull.insert(theirs.node, theirs);
            }
        }
        // Nodes that the peer does not know, within the range of this page of digests.
        let within = |id: &NodeId| !more || last.is_some_and(|last| *id <= last);
        for id in state.nodes_in(self.parts, self.after).filter(|id| within(id) && !listed.contains(id)) {
            self.push.insert(id, Digest::of_nothing(id));
        }
        // If the page did not advance, a further request would loop.
        self.unlisted = more && last > self.after;
        self.after = last;
        forgotten
    }

    fn next(&mut self, known: Knowledge<'_>) -> Option<Request> {
        let state = known.state;
        if !self.pull.is_empty() {
            let digests: Vec<Digest> = self.pull.keys().take(PULL_MAX).map(|id| state.digest(*id)).collect();
            if self.last_pull.as_ref() != Some(&digests) {
                self.last_pull = Some(digests.clone());
                return Some(Request::Pull(digests));
            }
            // The last pull changed nothing: this node refuses the entries, or the peer does not have the
            // entries that its digest lists.
            self.pull.clear();
        }
        self.last_pull = None;
        let (pages, unfinished) = pages(known, self.push.values());
        let reached: Vec<NodeId> = pages.iter().map(|p| p.node).collect();
        let mut stuck = BTreeSet::new();
        for page in &pages {
            if let Some(theirs) = self.push.get_mut(&page.node) {
                let before = theirs.seen.clone();
                if theirs.incarnation != page.incarnation {
                    theirs.seen = VersionSet::default();
                }
                theirs.incarnation = page.incarnation;
                theirs.seen.insert_all(&page.covers);
                if theirs.seen == before {
                    // The covered versions did not grow, so the next page would be the same.
                    stuck.insert(page.node);
                }
            }
        }
        self.push.retain(|id, _| !stuck.contains(id));
        self.push.retain(|id, _| Some(*id) == unfinished || unfinished.is_some() && !reached.contains(id));
        if !pages.is_empty() {
            return Some(Request::Push(pages));
        }
        std::mem::take(&mut self.unlisted).then_some(Request::List { parts: self.parts, after: self.after })
    }
}

/// Pages with the entries that the senders of these digests lack, up to one message. Also returns the node at
/// which the message was full, if it was.
fn pages<'a>(known: Knowledge<'_>, theirs: impl Iterator<Item = &'a Digest>) -> (Vec<Page>, Option<NodeId>) {
    let state = known.state;
    let mut budget = PAGE_BYTES;
    let mut pages = Vec::new();
    for digest in theirs {
        if budget < 1024 {
            return (pages, Some(digest.node));
        }
        let Some((mut page, more)) = state.sign_in_url(digest, budget) else { continue };
        // The peer may consider the node failed because of an older incarnation or header. The newer header
        // in this page would clear the failure.
        let clears = page.entries.first().is_some_and(|entry| entry.fact.key == Key::Header);
        if state.digest(digest.node).failed && (!digest.failed || clears) {
            page.evidence = known.liveness.reports(digest.node).cloned().collect();
        }
        let bytes: usize = page.entries.iter().map(crate::record::Entry::encoded_len).sum();
        budget = budget
            .saturating_sub(bytes + 100 + RANGE_BYTES * page.covers.ranges() + 180 * page.evidence.len());
        let node = page.node;
        pages.push(page);
        if more {
            return (pages, Some(node));
        }
    }
    (pages, None)
}

/// Answers a neighbour's `Compare`, `List` or `Pull`. Changes no state.
pub(crate) fn answer(known: Knowledge<'_>, request: &Request) -> Option<Response> {
    let state = known.state;
    match request {
        Request::Compare { root } if *root == state.root() => Some(Response::Same),
        Request::Compare { .. } => Some(Response::Parts(state.parts().to_vec())),
        Request::List { parts, after } => {
            let (mut digests, mut bytes) = (Vec::new(), 0);
            let mut nodes = state.listed_in(*parts, *after);
            while let Some(digest) = nodes.next().map(|id| state.digest(id)) {
                bytes += 75 + 20 * digest.seen.ranges();
                if bytes > DIGESTS_BYTES {
                    return Some(Response::Digests { digests, more: true });
                }
                digests.push(digest);
            }
            Some(Response::Digests { digests, more: false })
        }
        Request::Pull(digests) => {
            let well_formed = digests.iter().filter(|d| d.seen.is_well_formed()).take(PULL_MAX);
            let (pages, unfinished) = pages(known, well_formed);
            Some(Response::Pages { pages, more: unfinished.is_some() })
        }
        Request::Push(_)
        | Request::Unneeded
        | Request::Clash(_)
        | Request::Forget(_)
        | Request::UserEvents { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Identity, Incarnation, Version,
        record::{Entry, Fact, Header, Key},
    };

    /// Adds a node with more entries than fit into one page.
    fn large() -> (NodeId, State) {
        let me = Identity::from_seed(&[1; 32]);
        let header = Header { name: "n".into(), software: "test".into(), ..Header::default() };
        let mut state = State::new(&Config::default());
        let state_entry = |version, key, value| -> Entry {
            let fact =
                Fact { node: me.id(), incarnation: Incarnation(1), version: Version(version), key, value };
            fact.sign(&me, "default").unwrap()
        };
        state.apply(state_entry(1, Key::Header, Some(header.encode())));
        for version in 2..60 {
            state.apply(state_entry(version, Key::Kv(format!("k{version}")), Some(vec![0; 8000])));
        }
        (me.id(), state)
    }

    #[test]
    fn a_peer_that_never_advances_is_not_asked_without_end() {
        let (peer, state) = large();
        let digest = state.digest(peer);
        for answer in [
            Response::Parts(vec![1; 64]),
            Response::Parts(Vec::new()),
            Response::Digests { digests: vec![digest], more: true },
            Response::Digests { digests: Vec::new(), more: true },
        ] {
            let mut sync = Sync::new(&Config::default(), 1, Time::ZERO);
            sync.schedule(Time::ZERO, peer);
            assert_eq!(sync.due(Time::ZERO, &state, false, Vec::new).len(), 1);
            let known = Knowledge { state: &state, liveness: &Liveness::default() };
            let requests = (0..10)
                .take_while(|_| sync.handle_response(Time::ZERO, peer, answer.clone(), known).is_some());
            assert!(requests.count() < 4, "{answer:?}");
        }
    }

    #[test]
    fn a_contradiction_larger_than_a_page_is_pushed_once() {
        let (id, state) = large();
        let theirs = Digest { hash: [7; 16], ..state.digest(id) };
        let mut session = Session::new(NO_SESSION, Time::ZERO, Duration::from_secs(15));
        session.compare(&state, vec![theirs], false);
        session.pull.clear();
        let mut entries = 0;
        for _ in 0..10 {
            match session.next(Knowledge { state: &state, liveness: &Liveness::default() }) {
                Some(Request::Push(pages)) => entries += pages.iter().map(|p| p.entries.len()).sum::<usize>(),
                end => {
                    assert_eq!(end, None);
                    assert_eq!(entries, 59);
                    return;
                }
            }
        }
        panic!("the push does not end");
    }
}
