//! [`Sim`]: simulated cluster with its nodes, the event loop, and the faults that a test injects.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    time::Duration,
};

use crate::{
    Core, Identity, Incarnation, NodeId, Startup, Time,
    config::Config,
    io::{Command, Event, GossipId, Input, Judgement, Output, Profile},
    membership::evidence::{Claim, Strength},
    providers::{Change, Index, MemberState, ProviderTable},
    sync::RequestId,
    wire::{self, Gossip, UserEvent},
};

use super::link::{Due, Link, LinkMessage, NodeIndex, Stalled, Weather, What};

/// A simulated process.
#[derive(Debug)]
pub struct SimNode {
    pub(super) seed: [u8; 32],
    pub(super) id: NodeId,
    pub(super) name: String,
    /// `None` while the process is down.
    pub(super) core: Option<Core>,
    pub(super) table: ProviderTable,
    pub(super) life: u64,
    pub(super) incarnation: u64,
    pub(super) frozen: bool,
    /// Events that arrived while the process was frozen.
    pub(super) backlog: Vec<What>,
    /// Connections to each peer. After crossing dials there are two: the first one sends, and both receive.
    pub(super) links: BTreeMap<NodeIndex, Vec<Link>>,
    pub(super) dialling: BTreeSet<NodeIndex>,
    pub(super) subscribed: BTreeSet<NodeIndex>,
    /// For each peer, the arrival of the last message and the connection that it took.
    pub(super) arrivals: BTreeMap<NodeIndex, (u64, Time)>,
    pub(super) seen_gossip: BTreeSet<[u8; 32]>,
    pub(super) waiting_gossip: BTreeMap<u64, (NodeIndex, Vec<u8>)>,
    pub(super) waiting_requests: BTreeMap<u64, (NodeIndex, u64, u64)>,
    pub(super) next_id: u64,
    pub(super) woken_at: Time,
    pub(super) inputs: u64,
    /// Whether the node announces itself as ephemeral: its key is lost when its process ends.
    pub(super) ephemeral: bool,
    pub(super) last_ping: Time,
    /// Whether gossip to this node is lost.
    pub(super) is_deaf: bool,
    /// Whether the node poses as one of protocol version 3: pongs from and to it carry the clock alone.
    pub(super) is_older: bool,
    /// Number of the node's host, if the node states the address of a host.
    pub(super) host: Option<u8>,
    /// Members that were removed by order of an operator, by the core's outputs.
    pub forgotten_by_operator: Vec<NodeId>,
    /// User events in this life, by the core's outputs.
    pub user_events: Vec<UserEvent>,
    /// Message of the [`Output::Fatal`](crate::Output::Fatal) that stopped the core.
    pub fatal: Option<String>,
}

impl SimNode {
    /// Id of the node.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The node's provider table, as users see it.
    pub fn table(&self) -> &ProviderTable {
        &self.table
    }

    /// The node's core; `None` while the process is down.
    pub fn core(&self) -> Option<&Core> {
        self.core.as_ref()
    }

    /// Whether the process runs and is not frozen.
    pub fn is_up(&self) -> bool {
        self.core.is_some() && !self.frozen
    }

    /// Whether the process is frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Number of inputs that the node handled, over all its lives.
    pub fn inputs(&self) -> u64 {
        self.inputs
    }

    /// Number of gossip messages and requests that the core has neither judged nor answered. After each input
    /// it must be 0.
    pub fn unanswered(&self) -> usize {
        self.waiting_gossip.len() + self.waiting_requests.len()
    }
}

/// A false alarm: a verdict on a node that was up and reachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FalseAlarm {
    /// Time of the verdict.
    pub at: Time,
    /// The node that drew the verdict.
    pub by: NodeIndex,
    /// The node on which the verdict was drawn.
    pub of: NodeIndex,
}

/// A simulated cluster with virtual time.
#[derive(Debug)]
pub struct Sim {
    pub(super) now: Time,
    pub(super) nodes: Vec<SimNode>,
    pub(super) by_id: BTreeMap<NodeId, NodeIndex>,
    pub(super) queue: BinaryHeap<Reverse<Due>>,
    pub(super) order: u64,
    pub(super) next_link: u64,
    pub(super) rng: fastrand::Rng,
    pub(super) config: Config,
    /// Delays and losses of the network from now on.
    pub weather: Weather,
    /// Pairs of sender and receiver between which no message passes.
    pub(super) blocked: BTreeSet<(NodeIndex, NodeIndex)>,
    /// Messages over blocked pairs, which TCP retransmits.
    pub(super) stalled: Vec<Stalled>,
    /// False alarms so far. A test may clear them.
    pub false_alarms: Vec<FalseAlarm>,
    pub(super) trace: blake3::Hasher,
    /// Messages delivered so far.
    pub delivered: u64,
    /// Bytes of messages delivered so far, without the transport's overhead.
    pub bytes: u64,
    /// Pings delivered so far. `bytes` does not include them.
    pub pings: u64,
    /// Prints every event when set.
    pub verbose: bool,
}

impl Sim {
    /// Creates a cluster without nodes.
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
            pings: 0,
            verbose: false,
        }
    }

    /// Current time.
    pub fn now(&self) -> Time {
        self.now
    }

    /// All nodes, including those that are down.
    pub fn nodes(&self) -> &[SimNode] {
        &self.nodes
    }

    /// Hash over all handled events. Equal seeds give equal hashes.
    pub fn trace(&self) -> String {
        self.trace.finalize().to_hex().to_string()
    }

    /// Random number below `n`, from the simulation's seed.
    pub fn pick(&mut self, n: usize) -> usize {
        self.rng.usize(..n)
    }

    /// Adds a node that joins through `contact`.
    pub fn add(&mut self, contact: Option<NodeIndex>) -> NodeIndex {
        let index = self.create();
        self.start(index, contact);
        index
    }

    /// Adds an ephemeral node that joins through `contact`.
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

    pub(super) fn create(&mut self) -> NodeIndex {
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
            last_ping: Time::ZERO,
            is_deaf: false,
            is_older: false,
            host: None,
            forgotten_by_operator: Vec::new(),
            user_events: Vec::new(),
            fatal: None,
        });
        index
    }

    /// Starts a node that is down, in a new incarnation.
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
        node.user_events.clear();
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
            grpc: None,
        };
        let startup = Startup {
            incarnation: Incarnation(node.incarnation),
            remembered: hint.into_iter().collect(),
            known: Vec::new(),
            profile,
            seed,
        };
        let me = Identity::from_seed(&node.seed);
        node.core = Some(Core::new(me, self.config.clone(), startup, self.now));
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

    /// Passes a command to a node.
    pub fn command(&mut self, index: NodeIndex, command: Command) {
        self.pass_input(index, Input::Command(command));
    }

    /// Gives a node the address of another one, as mDNS would.
    pub fn hint(&mut self, index: NodeIndex, of: NodeIndex) {
        let (id, at) = (self.nodes[of].id, address(of));
        self.pass_input(index, Input::Hint(Some(id), at));
    }

    /// Delivers a report of `observer` on `subject` to a single node, as if all other receivers had crashed.
    pub fn whisper(&mut self, observer: NodeIndex, subject: NodeIndex, to: NodeIndex) {
        let of = self.nodes[subject].id;
        let Some(s) = self.nodes[to].core().and_then(|core| core.state().node(of)) else { return };
        let (incarnation, version, strength) = (s.incarnation(), s.header_version(), Strength::Weak);
        let by = self.identity(observer);
        let claim = Claim { observer: by.id(), subject: of, incarnation, version, strength };
        let bytes = wire::encode(&Gossip::Evidence(vec![claim.sign(&by, &self.config.cluster)]));
        self.overhear(to, by.id(), bytes);
    }

    /// Delivers a message as gossip from a neighbour.
    pub fn overhear(&mut self, index: NodeIndex, from: NodeId, bytes: Vec<u8>) {
        self.pass_input(index, Input::Gossip { id: GossipId(0), from, bytes });
    }

    /// Key of a node, with which a test signs messages that the node never sent.
    pub fn identity(&self, index: NodeIndex) -> Identity {
        Identity::from_seed(&self.nodes[index].seed)
    }

    /// Ends a process and resets its connections.
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
            self.send(index, peer, link.id, LinkMessage::Close);
        }
    }

    /// Suspends a process without ending it.
    pub fn freeze(&mut self, index: NodeIndex) {
        self.nodes[index].frozen = true;
    }

    /// Continues a frozen process.
    pub fn thaw(&mut self, index: NodeIndex) {
        self.nodes[index].frozen = false;
        let backlog = std::mem::take(&mut self.nodes[index].backlog);
        // The late timer is handled first, as in the driver.
        self.pass_input(index, Input::Tick);
        for what in backlog {
            if self.nodes[index].core.is_some() {
                self.deliver(index, what);
            }
        }
    }

    /// Sets whether gossip to a node is lost.
    pub fn set_deaf(&mut self, index: NodeIndex, is_deaf: bool) {
        self.nodes[index].is_deaf = is_deaf;
    }

    /// Makes a node ping and answer pings as a node of the version before root hashes in pongs.
    pub fn set_older(&mut self, index: NodeIndex) {
        self.nodes[index].is_older = true;
    }

    /// Blocks all messages from one node to another.
    pub fn block(&mut self, from: NodeIndex, to: NodeIndex) {
        self.blocked.insert((from, to));
    }

    /// Unblocks these pairs of sender and receiver.
    pub fn unblock(&mut self, pairs: impl IntoIterator<Item = (NodeIndex, NodeIndex)>) {
        for pair in pairs {
            self.blocked.remove(&pair);
        }
        self.release();
    }

    /// Unblocks all pairs.
    pub fn heal(&mut self) {
        self.blocked.clear();
        self.release();
    }

    /// Partitions the cluster into the nodes below `at` and the others.
    pub fn partition(&mut self, at: NodeIndex) {
        for a in 0..at {
            for b in at..self.nodes.len() {
                self.block(a, b);
                self.block(b, a);
            }
        }
    }

    /// Runs until this time.
    pub fn run_until(&mut self, until: Time) {
        while self.step(until) {}
        self.now = self.now.max(until);
    }

    /// Runs for this long.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    /// Runs until a condition holds. Returns the time that it took; `None` if the condition does not hold
    /// within `bound`.
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

    pub(super) fn step(&mut self, until: Time) -> bool {
        if self.queue.peek().is_none_or(|Reverse(due)| due.at > until) {
            return false;
        }
        let Some(Reverse(due)) = self.queue.pop() else { return false };
        self.now = self.now.max(due.at);
        let node = &mut self.nodes[due.to];
        match &due.what {
            // The process has ended, but its host's TCP still answers with a reset.
            What::Carried { from, link, message } if node.core.is_none() => {
                self.reset(due.to, *from, *link, message);
            }
            What::Carried { .. } => self.hand_over(due.to, due.what),
            _ if node.core.is_some() && node.life == due.life => self.hand_over(due.to, due.what),
            _ => (),
        }
        true
    }

    pub(super) fn hand_over(&mut self, to: NodeIndex, what: What) {
        let node = &mut self.nodes[to];
        if !node.frozen {
            self.deliver(to, what);
        } else if what != What::Wake {
            node.backlog.push(what);
        }
    }

    pub(super) fn note(&mut self, text: impl Fn() -> String) {
        let line = text();
        if self.verbose {
            println!("{:?} {line}", self.now);
        }
        self.trace.update(line.as_bytes());
        self.trace.update(&u64::try_from(self.now.since_start().as_micros()).unwrap_or(0).to_le_bytes());
    }

    pub(super) fn pass_input(&mut self, to: NodeIndex, input: Input) {
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

    pub(super) fn carry_out(&mut self, from: NodeIndex, output: Output) {
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
            Output::Ping(peer) => _ = self.over_link(from, peer, LinkMessage::Ping(self.now)),
            Output::Request(peer, RequestId(request_id), bytes) => {
                let asked = self.over_link(from, peer, LinkMessage::Request(request_id, bytes));
                if !asked && let Some(peer) = self.by_id.get(&peer).copied() {
                    self.push(self.now, from, What::Unanswered { from: peer, request_id });
                }
            }
            Output::Respond(RequestId(id), bytes) => self.respond(from, id, bytes),
            Output::Change(change) => {
                self.look_for_false_alarm(from, &change);
                let now = self.now;
                self.nodes[from].table.apply(now, change);
            }
            Output::ForgottenByOperator(id) => self.nodes[from].forgotten_by_operator.push(id),
            Output::UserEvent(event) => self.nodes[from].user_events.push(*event),
            Output::Fired(_, fired) => self.note(|| format!("{from}: fired {}", fired.is_ok())),
            Output::Event(event) => self.note(|| format!("{from}: {}", brief_event(&event))),
            Output::Fatal(fatal) => {
                self.nodes[from].fatal = Some(fatal.to_string());
                self.crash(from);
            }
        }
    }

    pub(super) fn look_for_false_alarm(&mut self, by: NodeIndex, change: &Change) {
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

    /// Whether all nodes that are up have the same root hash.
    pub fn has_equal_roots(&self) -> bool {
        let mut roots =
            self.nodes.iter().filter(|n| n.is_up()).filter_map(|n| n.core().map(|c| c.state().root()));
        let first = roots.next();
        roots.all(|root| Some(root) == first)
    }

    /// Whether all nodes that are up have the same root hash, and list each other alive.
    pub fn has_converged(&self) -> bool {
        let up: Vec<&SimNode> = self.nodes.iter().filter(|n| n.is_up()).collect();
        let Some(first) = up.first().and_then(|n| n.core()) else { return true };
        let root = first.state().root();
        up.iter().all(|node| {
            node.core().is_some_and(|core| {
                core.state().root() == root
                    && up.iter().all(|other| core.member_state(other.id) == Some(MemberState::Alive))
            }) && node.table.providers("grading").count() == up.len()
        })
    }

    /// Whether every node that is up holds `of` in this state.
    pub fn all_believe(&self, of: NodeIndex, state: MemberState) -> bool {
        let id = self.nodes[of].id;
        let mut others = self.nodes.iter().enumerate().filter(|(i, n)| *i != of && n.is_up());
        others.all(|(_, n)| n.core().and_then(|c| c.member_state(id)) == Some(state))
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
