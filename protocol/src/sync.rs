//! Anti-entropy: what gossip did not bring, two neighbours find out by comparing.
//!
//! Gossip has no memory: who joins late, or was cut off, hears nothing of the past. So on every new neighbour, and every 15 s with a
//! random one, the root hashes are compared. Equal hashes end it: that is the whole cost of the steady state. Otherwise the
//! asker gets the other's digests, page by page, pulls what it lacks and pushes what the other lacks. The one that answers keeps no
//! state. A session that brought news is followed by a comparison with the other neighbours, so that what crosses a healed
//! partition over one connection reaches everybody within a few round trips.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    NodeId, Time,
    config::Config,
    liveness::Evidence,
    record::Key,
    seen::Seen,
    state::State,
    wire::{Digest, PAGE_BYTES, Page, Request, Response},
};

/// Bytes of digests in one message, by a cautious estimate of each: about 70 plus its gaps, at most 1.4 kB.
const DIGESTS_BYTES: usize = 200 * 1024;
/// A range of versions: two integers of at most nine bytes.
const RANGE_BYTES: usize = 18;
/// A session ends after so many timeouts, however much it brings. A full table takes a few seconds.
const SESSION_TIMEOUTS_MAX: u32 = 8;
/// Nodes pulled in one request.
const PULL_MAX: usize = 128;
/// Sessions that this node conducts at the same time. The others wait: two full transfers at once gain nothing.
const SESSIONS_MAX: usize = 2;
/// How long gossip gets, where nothing is late, to bring the same news everywhere before the other neighbours are asked.
pub const SETTLE: Duration = Duration::from_millis(300);

/// Names a request, so that its answer finds its session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

/// A request to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ask {
    /// Whom.
    pub peer: NodeId,
    /// Comes back with the answer.
    pub ticket: Ticket,
    /// What.
    pub request: Request,
}

#[derive(Debug)]
struct Session {
    ticket: Ticket,
    deadline: Time,
    /// Whatever comes, it ends then: who has always more to tell would keep this node from comparing with others.
    end: Time,
    /// The parts of the table that are compared, a bit for each.
    parts: u64,
    /// Whether digests of them are still to be asked for.
    unlisted: bool,
    /// The last id of the digests received so far.
    after: Option<NodeId>,
    /// What the other has, of nodes on which we lack something.
    pull: BTreeMap<NodeId, Digest>,
    /// What the other has, of nodes on which it lacks something.
    push: BTreeMap<NodeId, Digest>,
    /// What the last pull asked for, to notice when it led nowhere.
    pulling: Option<Vec<Digest>>,
}

/// Comparisons with neighbours.
#[derive(Debug)]
pub struct Sync {
    sessions: BTreeMap<NodeId, Session>,
    /// Whom to compare with, from when on.
    queue: BTreeMap<NodeId, Time>,
    next_round: Time,
    next_ticket: u64,
    interval: Duration,
    timeout: Duration,
    rng: fastrand::Rng,
    /// Members that are gone here and forgotten elsewhere. Whoever reads this empties it.
    pub forgotten: Vec<NodeId>,
    /// Comparisons begun.
    pub rounds: u64,
    /// Comparisons that found a difference.
    pub differences: u64,
    /// Sessions that ended without an answer.
    pub timeouts: u64,
}

/// What to say against a node that the sender believes dead.
pub type EvidenceOf<'a> = &'a dyn Fn(NodeId) -> Vec<Evidence>;

impl Sync {
    /// No sessions yet.
    pub fn new(config: &Config, seed: u64, now: Time) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            sessions: BTreeMap::new(),
            queue: BTreeMap::new(),
            next_round: now + config.sync_interval.mul_f64(rng.f64()),
            next_ticket: 0,
            interval: config.sync_interval,
            timeout: config.sync_timeout,
            rng,
            forgotten: Vec::new(),
            rounds: 0,
            differences: 0,
            timeouts: 0,
        }
    }

    /// Compares with this neighbour as soon as there is room.
    pub fn soon(&mut self, now: Time, peer: NodeId) {
        let due = self.queue.entry(peer).or_insert(now);
        *due = (*due).min(now);
    }

    /// A session or a push brought news: compares with the others too, once gossip has had its chance, `at`.
    pub fn spread(&mut self, at: Time, from: NodeId, neighbours: impl Iterator<Item = NodeId>) {
        for peer in neighbours.filter(|peer| *peer != from) {
            self.queue.entry(peer).or_insert(at);
        }
    }

    /// The connection is gone.
    pub fn forget(&mut self, peer: NodeId) {
        self.sessions.remove(&peer);
        self.queue.remove(&peer);
    }

    /// Begins what is due.
    pub fn due(&mut self, now: Time, state: &State, neighbours: impl Fn() -> Vec<NodeId>) -> Vec<Ask> {
        let before = self.sessions.len();
        self.sessions.retain(|_, session| session.deadline > now);
        self.timeouts += (before - self.sessions.len()) as u64;
        if self.next_round <= now {
            self.next_round = now + self.interval.mul_f64(0.75 + self.rng.f64() / 2.0);
            if let Some(peer) = self.rng.choice(neighbours()) {
                self.soon(now, peer);
            }
        }
        let mut asks = Vec::new();
        while self.sessions.len() < SESSIONS_MAX {
            let ready =
                self.queue.iter().filter(|(peer, at)| **at <= now && !self.sessions.contains_key(peer));
            let Some(peer) = ready.min_by_key(|(_, at)| **at).map(|(peer, _)| *peer) else { break };
            self.queue.remove(&peer);
            self.rounds += 1;
            let ticket = self.ticket();
            self.sessions.insert(peer, Session::new(ticket, now, self.timeout));
            asks.push(Ask { peer, ticket, request: Request::Compare { root: state.root() } });
        }
        asks
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    /// Whether an answer belongs to a session that still waits for it.
    pub fn expects(&self, peer: NodeId, ticket: Ticket) -> bool {
        self.sessions.get(&peer).is_some_and(|s| s.ticket == ticket)
    }

    /// An answer came; pages in it have been applied to `state` already. Returns the next request, or `None` when the session is over.
    pub fn answered(
        &mut self,
        now: Time,
        peer: NodeId,
        response: Response,
        state: &State,
        evidence: EvidenceOf<'_>,
    ) -> Option<Ask> {
        let session = self.sessions.get_mut(&peer)?;
        session.deadline = session.end.min(now + self.timeout);
        match response {
            Response::Same => (),
            // Once: who is asked for digests and tells hashes again would be asked for ever.
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
            Response::Parts(_) | Response::Done => (),
        }
        let request = session.next(state, evidence);
        match request {
            Some(request) => {
                let ticket = self.ticket();
                if let Some(session) = self.sessions.get_mut(&peer) {
                    session.ticket = ticket;
                }
                Some(Ask { peer, ticket, request })
            }
            None => {
                self.sessions.remove(&peer);
                None
            }
        }
    }

    /// A request could not be sent or was not answered.
    pub fn failed(&mut self, peer: NodeId, ticket: Ticket) {
        if self.expects(peer, ticket) {
            self.sessions.remove(&peer);
            self.timeouts += 1;
        }
    }

    /// When something will be due.
    pub fn next_due(&self) -> Time {
        let full = self.sessions.len() >= SESSIONS_MAX;
        let queue = self
            .queue
            .iter()
            .filter(|(peer, _)| !full && !self.sessions.contains_key(peer))
            .map(|(_, at)| *at);
        let deadlines = self.sessions.values().map(|s| s.deadline);
        queue.chain(deadlines).min().map_or(self.next_round, |at| at.min(self.next_round))
    }
}

impl Session {
    fn new(ticket: Ticket, now: Time, timeout: Duration) -> Self {
        Self {
            ticket,
            deadline: now + timeout,
            end: now + timeout * SESSION_TIMEOUTS_MAX,
            parts: 0,
            unlisted: false,
            after: None,
            pull: BTreeMap::new(),
            push: BTreeMap::new(),
            pulling: None,
        }
    }

    /// Notes what either side lacks. Returns whom to forget.
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
                    // Different things under the same versions: all of it goes, page after page.
                    to.seen = Seen::default();
                }
                self.push.insert(theirs.node, to);
            }
            if State::lacks(&ours, &theirs) {
                self.pull.insert(theirs.node, theirs);
            }
        }
        // Of whom they know nothing at all, within the range that this page of digests covers.
        let within = |id: &NodeId| !more || last.is_some_and(|last| *id <= last);
        for id in state.nodes_in(self.parts, self.after).filter(|id| within(id) && !listed.contains(id)) {
            self.push.insert(id, Digest::of_nothing(id));
        }
        // What does not go on would go on for ever.
        self.unlisted = more && last > self.after;
        self.after = last;
        forgotten
    }

    fn next(&mut self, state: &State, evidence: EvidenceOf<'_>) -> Option<Request> {
        if !self.pull.is_empty() {
            let digests: Vec<Digest> = self.pull.keys().take(PULL_MAX).map(|id| state.digest(*id)).collect();
            if self.pulling.as_ref() != Some(&digests) {
                self.pulling = Some(digests.clone());
                return Some(Request::Pull(digests));
            }
            // The last pull changed nothing: what they offer is refused here, or they do not keep their word.
            self.pull.clear();
        }
        self.pulling = None;
        let (pages, unfinished) = pages(state, self.push.values(), evidence);
        let reached: Vec<NodeId> = pages.iter().map(|p| p.node).collect();
        let mut stuck = BTreeSet::new();
        for page in &pages {
            if let Some(theirs) = self.push.get_mut(&page.node) {
                let before = theirs.seen.clone();
                if theirs.incarnation != page.incarnation {
                    theirs.seen = Seen::default();
                }
                theirs.incarnation = page.incarnation;
                theirs.seen.insert_all(&page.covers);
                if theirs.seen == before {
                    // We do not count what we hold as seen ourselves: the next page would be the same.
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

/// Pages of what the holders of these digests lack, as much as fits into one message, and the node at which it ended, if it did.
fn pages<'a>(
    state: &State,
    theirs: impl Iterator<Item = &'a Digest>,
    evidence: EvidenceOf<'_>,
) -> (Vec<Page>, Option<NodeId>) {
    let mut budget = PAGE_BYTES;
    let mut pages = Vec::new();
    for digest in theirs {
        if budget < 1024 {
            return (pages, Some(digest.node));
        }
        let Some((mut page, more)) = state.delta(digest, budget) else { continue };
        // They may believe it dead of an older life or header, and a newer one clears it.
        let clears = page.entries.first().is_some_and(|entry| entry.fact.key == Key::Header);
        if state.digest(digest.node).failed && (!digest.failed || clears) {
            page.evidence = evidence(digest.node);
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

/// Answers a neighbour's `Compare`, `List` or `Pull`. Reads only.
pub fn answer(state: &State, request: &Request, evidence: EvidenceOf<'_>) -> Option<Response> {
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
            let (pages, unfinished) = pages(state, well_formed, evidence);
            Some(Response::Pages { pages, more: unfinished.is_some() })
        }
        Request::Push(_) | Request::Unneeded | Request::Clash(_) | Request::Forget(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Identity, Incarnation, Version,
        record::{Entry, Fact, Header, Key},
    };

    /// More of one node than fits into one page.
    fn large() -> (NodeId, State) {
        let me = Identity::from_seed(&[1; 32]);
        let header = Header { name: "n".into(), software: "test".into(), ..Header::default() };
        let mut state = State::new(&Config::default());
        let say = |version, key, value| -> Entry {
            let fact =
                Fact { node: me.id(), incarnation: Incarnation(1), version: Version(version), key, value };
            fact.sign(&me, "default").unwrap()
        };
        state.apply(say(1, Key::Header, Some(header.encode())));
        for version in 2..60 {
            state.apply(say(version, Key::Kv(format!("k{version}")), Some(vec![0; 8000])));
        }
        (me.id(), state)
    }

    #[test]
    fn who_never_gets_to_the_point_is_not_asked_for_ever() {
        let (peer, state) = large();
        let digest = state.digest(peer);
        for answer in [
            Response::Parts(vec![1; 64]),
            Response::Parts(Vec::new()),
            Response::Digests { digests: vec![digest], more: true },
            Response::Digests { digests: Vec::new(), more: true },
        ] {
            let mut sync = Sync::new(&Config::default(), 1, Time::ZERO);
            sync.soon(Time::ZERO, peer);
            assert_eq!(sync.due(Time::ZERO, &state, Vec::new).len(), 1);
            let answered = (0..10).take_while(|_| {
                sync.answered(Time::ZERO, peer, answer.clone(), &state, &|_| Vec::new()).is_some()
            });
            assert!(answered.count() < 4, "{answer:?}");
        }
    }

    #[test]
    fn a_contradiction_larger_than_a_page_is_pushed_once() {
        let (id, state) = large();
        let theirs = Digest { hash: [7; 16], ..state.digest(id) };
        let mut session = Session::new(Ticket(0), Time::ZERO, Duration::from_secs(15));
        session.compare(&state, vec![theirs], false);
        session.pull.clear();
        let mut entries = 0;
        for _ in 0..10 {
            match session.next(&state, &|_| Vec::new()) {
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
