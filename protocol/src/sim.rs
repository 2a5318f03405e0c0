//! A seeded simulator: whole clusters in one loop, on virtual time.
//!
//! Real bugs of such protocols hide in orders of events that a test on a real network meets once a month. Here the order comes from a
//! seed: same seed, same trace. What is simulated is what the driver would provide: connections that open, close and
//! break, gossip that floods over them (each message once per node), requests and answers, pings, refused and unanswered dials.
//! The network delays and reorders (between pairs, never within a connection), loses what loss means over TCP
//! (a message is late by retransmissions, or the connection stalls), partitions (both ways or one way), and hosts crash, freeze and
//! restart. What is *not* simulated: the bytes of TCP, and the disk, which the core does not touch.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

use crate::{
    Core, Identity, Incarnation, NodeId, Restored, Time,
    config::Config,
    io::{Command, Event, GossipId, Input, Judgement, Output, Profile},
    liveness::{Claim, Strength},
    providers::{Change, Index, MemberState, ProviderTable},
    sync::Ticket,
    wire::{self, Gossip},
};

mod network;

pub use network::Weather;
use network::{Due, Link, Message, Stalled, What};

/// Counts the nodes of a simulation, from 0.
pub type NodeIndex = usize;

/// One simulated process.
#[derive(Debug)]
pub struct SimNode {
    seed: [u8; 32],
    id: NodeId,
    name: String,
    /// `None` while it is down.
    core: Option<Core>,
    table: ProviderTable,
    life: u64,
    incarnation: u64,
    frozen: bool,
    /// What came while it was frozen.
    backlog: Vec<What>,
    /// The connections to each peer. More than one where dials crossed; the first is used, all are listened to.
    links: BTreeMap<NodeIndex, Vec<Link>>,
    dialling: BTreeSet<NodeIndex>,
    subscribed: BTreeSet<NodeIndex>,
    /// When the last message on the way to each peer arrives, and over which connection.
    arrivals: BTreeMap<NodeIndex, (u64, Time)>,
    seen_gossip: BTreeSet<[u8; 32]>,
    waiting_gossip: BTreeMap<u64, (NodeIndex, Vec<u8>)>,
    waiting_requests: BTreeMap<u64, (NodeIndex, u64, u64)>,
    next_id: u64,
    woken_at: Time,
    inputs: u64,
    /// Its key ends with its process, or so it says.
    ephemeral: bool,
    /// The number of its host, if it states the address of one.
    host: Option<u8>,
    /// Members that an operator had forgotten, as its driver was told.
    pub forgotten_by_operator: Vec<NodeId>,
    /// When its driver stopped it, and why.
    pub fatal: Option<String>,
}

impl SimNode {
    /// Its id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// What its users see.
    pub fn table(&self) -> &ProviderTable {
        &self.table
    }

    /// Its core, unless it is down.
    pub fn core(&self) -> Option<&Core> {
        self.core.as_ref()
    }

    /// Whether it runs and is not frozen.
    pub fn is_up(&self) -> bool {
        self.core.is_some() && !self.frozen
    }

    /// Whether it is frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// How many inputs its core has been given, over all its lives.
    pub fn inputs(&self) -> u64 {
        self.inputs
    }

    /// Gossip and requests that the core was given and has not judged or answered. It must never keep one.
    pub fn unanswered(&self) -> usize {
        self.waiting_gossip.len() + self.waiting_requests.len()
    }
}

/// A verdict on a node that was up, and reachable from where it was believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FalseAlarm {
    /// When.
    pub at: Time,
    /// Who believed it.
    pub by: NodeIndex,
    /// Of whom.
    pub of: NodeIndex,
}

/// A cluster on virtual time.
#[derive(Debug)]
pub struct Sim {
    now: Time,
    nodes: Vec<SimNode>,
    by_id: BTreeMap<NodeId, NodeIndex>,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,
    next_link: u64,
    rng: fastrand::Rng,
    config: Config,
    /// What the network does from now on.
    pub weather: Weather,
    /// From whom to whom nothing passes.
    blocked: BTreeSet<(NodeIndex, NodeIndex)>,
    /// What TCP keeps retransmitting meanwhile.
    stalled: Vec<Stalled>,
    /// Verdicts of death on the living, since the last time they were taken.
    pub false_alarms: Vec<FalseAlarm>,
    trace: blake3::Hasher,
    /// Messages delivered so far.
    pub delivered: u64,
    /// Bytes of messages delivered so far, without what the transport adds.
    pub bytes: u64,
    /// Set to print every event as it is handled.
    pub verbose: bool,
}

impl Sim {
    /// An empty cluster.
    pub fn new(seed: u64, config: Config) -> Self {
        Self {
            now: Time::ZERO,
            nodes: Vec::new(),
            by_id: BTreeMap::new(),
            queue: BinaryHeap::new(),
            order: 0,
            next_link: 0,
            rng: fastrand::Rng::with_seed(seed),
            config,
            weather: Weather::default(),
            blocked: BTreeSet::new(),
            stalled: Vec::new(),
            false_alarms: Vec::new(),
            trace: blake3::Hasher::new(),
            delivered: 0,
            bytes: 0,
            verbose: false,
        }
    }

    /// The time now.
    pub fn now(&self) -> Time {
        self.now
    }

    /// All nodes, the dead included.
    pub fn nodes(&self) -> &[SimNode] {
        &self.nodes
    }

    /// A hash over everything that was handled: equal for equal seeds.
    pub fn trace(&self) -> String {
        self.trace.finalize().to_hex().to_string()
    }

    /// Picks a number below `n`, from the simulation's seed.
    pub fn pick(&mut self, n: usize) -> usize {
        self.rng.usize(..n)
    }

    /// Adds a node that joins through `contact`.
    pub fn add(&mut self, contact: Option<NodeIndex>) -> NodeIndex {
        let index = self.create();
        self.start(index, contact);
        index
    }

    /// Adds a node that joins through `contact` and says that its key ends with its process.
    pub fn add_ephemeral(&mut self, contact: Option<NodeIndex>) -> NodeIndex {
        let index = self.create();
        self.nodes[index].ephemeral = true;
        self.start(index, contact);
        index
    }

    /// Adds a node that joins through `contact` and states the address of the host with this number.
    pub fn add_on(&mut self, host: u8, contact: Option<NodeIndex>) -> NodeIndex {
        let index = self.create();
        self.nodes[index].host = Some(host);
        self.start(index, contact);
        index
    }

    fn create(&mut self) -> NodeIndex {
        let index = self.nodes.len();
        let mut seed = [0; 32];
        self.rng.fill(&mut seed);
        let id = Identity::from_seed(&seed).id();
        self.by_id.insert(id, index);
        self.nodes.push(SimNode {
            seed,
            id,
            name: format!("n{index}"),
            core: None,
            table: ProviderTable::new(Index(0)),
            life: 0,
            incarnation: 0,
            frozen: false,
            backlog: Vec::new(),
            links: BTreeMap::new(),
            dialling: BTreeSet::new(),
            subscribed: BTreeSet::new(),
            arrivals: BTreeMap::new(),
            seen_gossip: BTreeSet::new(),
            waiting_gossip: BTreeMap::new(),
            waiting_requests: BTreeMap::new(),
            next_id: 0,
            woken_at: Time::ZERO,
            inputs: 0,
            ephemeral: false,
            host: None,
            forgotten_by_operator: Vec::new(),
            fatal: None,
        });
        index
    }

    /// Starts a node that is down, under a new incarnation.
    pub fn start(&mut self, index: NodeIndex, contact: Option<NodeIndex>) {
        let seed = self.rng.u64(..);
        let now_ms = u64::try_from(self.now.since_start().as_millis()).unwrap_or(u64::MAX);
        let hint = contact.map(|c| (self.nodes[c].id, address(c)));
        let node = &mut self.nodes[index];
        node.life += 1;
        node.incarnation = (now_ms + 1).max(node.incarnation + 1);
        node.frozen = false;
        node.table = ProviderTable::new(Index(node.incarnation * 1000));
        node.seen_gossip.clear();
        node.fatal = None;
        let of_host = node.host.map(|host| format!("/ip4/10.77.0.{host}/tcp/7600"));
        let profile = Profile {
            name: node.name.clone(),
            addresses: std::iter::once(address(index)).chain(of_host).collect(),
            http: None,
            roles: vec!["grading".into()],
            zone: None,
            software: "sim".into(),
            ephemeral: node.ephemeral,
        };
        let restored =
            Restored { incarnation: Incarnation(node.incarnation), remembered: hint.into_iter().collect() };
        let me = Identity::from_seed(&node.seed);
        node.core = Some(Core::new(me, self.config.clone(), profile, restored, seed, self.now));
        let instance = crate::record::Instance {
            service: "grading".into(),
            address: "10.77.0.1".into(),
            port: 7500,
            url: "http://10.77.0.1:7500".into(),
            tags: vec![],
            meta: BTreeMap::new(),
            health: crate::record::Health::Passing,
            since_ms: 0,
            ..Default::default()
        };
        self.command(index, Command::SetInstance("grading".into(), Box::new(instance)));
    }

    /// Gives a node a command.
    pub fn command(&mut self, index: NodeIndex, command: Command) {
        self.feed(index, Input::Command(command));
    }

    /// Lets a node know of another, as mDNS would.
    pub fn hint(&mut self, index: NodeIndex, of: NodeIndex) {
        let (id, at) = (self.nodes[of].id, address(of));
        self.feed(index, Input::Hint(Some(id), at));
    }

    /// Lets one node alone hear that `observer` misses `subject`: all who would have passed it on are gone that moment.
    pub fn whisper(&mut self, observer: NodeIndex, subject: NodeIndex, to: NodeIndex) {
        let of = self.nodes[subject].id;
        let Some(s) = self.nodes[to].core().and_then(|core| core.state().node(of)) else { return };
        let (incarnation, version, strength) = (s.incarnation(), s.header_version(), Strength::Weak);
        let by = self.identity(observer);
        let claim = Claim { observer: by.id(), subject: of, incarnation, version, strength };
        let bytes = wire::encode(&Gossip::Evidence(vec![claim.sign(&by, &self.config.cluster)]));
        self.overhear(to, by.id(), bytes);
    }

    /// Gives a node a message as if a neighbour had passed it on by gossip.
    pub fn overhear(&mut self, index: NodeIndex, from: NodeId, bytes: Vec<u8>) {
        self.feed(index, Input::Gossip { id: GossipId(0), from, bytes });
    }

    /// The key of a node, for messages that it never sent.
    pub fn identity(&self, index: NodeIndex) -> Identity {
        Identity::from_seed(&self.nodes[index].seed)
    }

    /// Ends a process: its connections are reset at once.
    pub fn crash(&mut self, index: NodeIndex) {
        self.nodes[index].core = None;
        self.nodes[index].life += 1;
        self.nodes[index].backlog.clear();
        self.nodes[index].waiting_gossip.clear();
        self.nodes[index].waiting_requests.clear();
        self.nodes[index].dialling.clear();
        let links = std::mem::take(&mut self.nodes[index].links);
        self.nodes[index].subscribed.clear();
        for (peer, link) in
            links.into_iter().flat_map(|(peer, links)| links.into_iter().map(move |l| (peer, l)))
        {
            self.send(index, peer, link.id, Message::Close);
        }
    }

    /// Stops a process from running, without ending it.
    pub fn freeze(&mut self, index: NodeIndex) {
        self.nodes[index].frozen = true;
    }

    /// Lets it run again.
    pub fn thaw(&mut self, index: NodeIndex) {
        self.nodes[index].frozen = false;
        let backlog = std::mem::take(&mut self.nodes[index].backlog);
        // The late timer comes first, as it would in the driver.
        self.feed(index, Input::Tick);
        for what in backlog {
            if self.nodes[index].core.is_some() {
                self.deliver(index, what);
            }
        }
    }

    /// Nothing passes from one to the other any more.
    pub fn block(&mut self, from: NodeIndex, to: NodeIndex) {
        self.blocked.insert((from, to));
    }

    /// Between these, everything passes again from the first to the second.
    pub fn unblock(&mut self, pairs: impl IntoIterator<Item = (NodeIndex, NodeIndex)>) {
        for pair in pairs {
            self.blocked.remove(&pair);
        }
        self.release();
    }

    /// Everything passes again.
    pub fn heal(&mut self) {
        self.blocked.clear();
        self.release();
    }

    /// Cuts the cluster in two: those below `at` and the others.
    pub fn partition(&mut self, at: NodeIndex) {
        for a in 0..at {
            for b in at..self.nodes.len() {
                self.block(a, b);
                self.block(b, a);
            }
        }
    }

    /// Runs until this moment.
    pub fn run_until(&mut self, until: Time) {
        while self.step(until) {}
        self.now = self.now.max(until);
    }

    /// Runs for this long.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// Runs until something is true; `None` if it is not within `bound`. Returns how long it took.
    pub fn run_while(&mut self, bound: Duration, mut until: impl FnMut(&Self) -> bool) -> Option<Duration> {
        let (start, end) = (self.now, self.now + bound);
        loop {
            if until(self) {
                return Some(self.now.since(start));
            }
            if !self.step(end) {
                self.now = end;
                return until(self).then(|| self.now.since(start));
            }
        }
    }

    fn step(&mut self, until: Time) -> bool {
        if self.queue.peek().is_none_or(|Reverse(due)| due.at > until) {
            return false;
        }
        let Some(Reverse(due)) = self.queue.pop() else { return false };
        self.now = self.now.max(due.at);
        let node = &mut self.nodes[due.to];
        match &due.what {
            // The host of a process that is gone still answers for it.
            What::Carried { from, link, message } if node.core.is_none() => {
                self.reset(due.to, *from, *link, message);
            }
            What::Carried { .. } => self.hand_over(due.to, due.what),
            _ if node.core.is_some() && node.life == due.life => self.hand_over(due.to, due.what),
            _ => (),
        }
        true
    }

    fn hand_over(&mut self, to: NodeIndex, what: What) {
        let node = &mut self.nodes[to];
        if !node.frozen {
            self.deliver(to, what);
        } else if what != What::Wake {
            node.backlog.push(what);
        }
    }

    fn note(&mut self, text: impl Fn() -> String) {
        let line = text();
        if self.verbose {
            println!("{:?} {line}", self.now);
        }
        self.trace.update(line.as_bytes());
        self.trace.update(&u64::try_from(self.now.since_start().as_micros()).unwrap_or(0).to_le_bytes());
    }

    fn feed(&mut self, to: NodeIndex, input: Input) {
        let now = self.now;
        self.note(|| format!("{to} <- {}", brief(&input)));
        self.nodes[to].inputs += 1;
        let Some(core) = self.nodes[to].core.as_mut() else { return };
        core.handle(now, input);
        self.nodes[to].table.expire(now);
        while let Some(output) = self.nodes[to].core.as_mut().and_then(Core::poll_output) {
            self.carry_out(to, output);
        }
        if let Some(core) = &self.nodes[to].core {
            let node = &self.nodes[to];
            let table = node.table.poll_timeout();
            let at = table.into_iter().fold(core.poll_timeout(now), Time::min).max(now);
            self.nodes[to].woken_at = at;
            self.push(at, to, What::Wake);
        }
    }

    fn carry_out(&mut self, from: NodeIndex, output: Output) {
        match output {
            Output::Publish(bytes) => {
                let node = &mut self.nodes[from];
                node.seen_gossip.insert(*blake3::hash(&bytes).as_bytes());
                self.flood(from, None, &bytes);
            }
            Output::Judge(GossipId(id), judgement) => {
                if let Some((relay, bytes)) = self.nodes[from].waiting_gossip.remove(&id)
                    && judgement == Judgement::Accept
                {
                    self.flood(from, Some(relay), &bytes);
                }
            }
            Output::Dial(peer, _) => {
                if let Some(to) = self.by_id.get(&peer).copied() {
                    self.dial(from, to);
                }
            }
            Output::DialAddress(_, address) => {
                if let Some(to) = address.parse().ok().filter(|i| *i < self.nodes.len()) {
                    self.dial(from, to);
                }
            }
            Output::Disconnect(peer) => {
                if let Some(peer) = self.by_id.get(&peer).copied() {
                    self.part(from, peer);
                }
            }
            Output::Ping(peer) => _ = self.over_link(from, peer, Message::Ping(self.now)),
            Output::Request(peer, Ticket(ticket), bytes) => {
                let asked = self.over_link(from, peer, Message::Request(ticket, bytes));
                if !asked && let Some(peer) = self.by_id.get(&peer).copied() {
                    self.push(self.now, from, What::Unanswered { from: peer, ticket });
                }
            }
            Output::Respond(Ticket(id), bytes) => self.respond(from, id, bytes),
            Output::Change(change) => {
                self.look_for_false_alarm(from, &change);
                let now = self.now;
                self.nodes[from].table.apply(now, change);
            }
            Output::ForgottenByOperator(id) => self.nodes[from].forgotten_by_operator.push(id),
            Output::Event(event) => self.note(|| format!("{from}: {}", brief_event(&event))),
            Output::Fatal(fatal) => {
                self.nodes[from].fatal = Some(fatal.to_string());
                self.crash(from);
            }
        }
    }

    fn look_for_false_alarm(&mut self, by: NodeIndex, change: &Change) {
        if let Change::Member(member) = change
            && member.state == MemberState::Failed
            && let Some(of) = self.by_id.get(&member.id).copied()
            && self.nodes[of].is_up()
            && self.nodes[of].incarnation == member.incarnation.0
            && self.nodes[by].table.member(member.id).is_none_or(|m| m.state != MemberState::Failed)
        {
            self.false_alarms.push(FalseAlarm { at: self.now, by, of });
        }
    }

    /// Whether all nodes that are up agree on everything, and see each other alive.
    pub fn has_converged(&self) -> bool {
        let up: Vec<&SimNode> = self.nodes.iter().filter(|n| n.is_up()).collect();
        let Some(first) = up.first().and_then(|n| n.core()) else { return true };
        let root = first.state().root();
        up.iter().all(|node| {
            node.core().is_some_and(|core| {
                core.state().root() == root
                    && up.iter().all(|other| core.concluded(other.id) == Some(MemberState::Alive))
            }) && node.table.providers("grading").count() == up.len()
        })
    }

    /// Whether every node that is up believes this of `of`.
    pub fn all_believe(&self, of: NodeIndex, state: MemberState) -> bool {
        let id = self.nodes[of].id;
        let mut others = self.nodes.iter().enumerate().filter(|(i, n)| *i != of && n.is_up());
        others.all(|(_, n)| n.core().and_then(|c| c.concluded(id)) == Some(state))
    }
}

fn address(index: NodeIndex) -> String {
    index.to_string()
}

fn brief(input: &Input) -> String {
    match input {
        Input::Gossip { id, from, bytes } => {
            format!("Gossip {id:?} {from:?} {}", blake3::hash(bytes).to_hex())
        }
        Input::Request { from, bytes, .. } => format!("Request {from:?} {}", blake3::hash(bytes).to_hex()),
        Input::Response { from, bytes, .. } => {
            format!("Response {from:?} {:?}", bytes.as_ref().map(|b| blake3::hash(b).to_hex()))
        }
        Input::Command(_) => "Command".into(),
        other => format!("{other:?}"),
    }
}

fn brief_event(event: &Event) -> String {
    format!("{event:?}")
}
