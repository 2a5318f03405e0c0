//! The one loop: feeds the core what the swarm, the timer and the user bring, and carries out what it says.
//!
//! It runs on a thread of its own with a runtime of its own, so that neither a flood of HTTP requests nor a slow disk makes this node late
//! at answering pings. Nothing here concludes anything.

mod check_reports;
mod dial;
mod housekeeping;
mod multicast;
mod operator;
pub(crate) mod order;
mod outsiders;
mod peer_clocks;
mod replicas;
mod surroundings;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use hearsay_protocol::{
    Core, NodeId,
    io::{Command, Fatal, GossipId, Input, Judgement, Output},
    record::Health,
    sync::Ticket,
};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::ConnectedPoint,
    gossipsub::{self, IdentTopic, MessageAcceptance, MessageId},
    identify, mdns,
    request_response::{self, OutboundRequestId, ResponseChannel},
    swarm::SwarmEvent,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    events, interfaces,
    journal::Journals,
    metrics::Metrics,
    presentation::{self, Presentation},
    registry::Holdings,
    swarm::{self, Behaviour, BehaviourEvent, node_of, peer_of},
    view::View,
    warnings::Warnings,
};
use check_reports::AskedReports;
use dial::Dials;
use operator::Outcome;
pub use order::{HEARD_MAX, Neighbourhood, Order, Reloaded};
use outsiders::Outsiders;
pub use outsiders::{Outsider, Reason};
use peer_clocks::PeerClocks;
use replicas::Replication;

/// A second connection to the same process, the other way round than the first, is a crossing dial while the first is younger than this.
/// Any other means that the peer lost the first and this node has not noticed.
const CROSSING: Duration = Duration::from_secs(2);
/// How long both connections of a peer that came back, or of two processes under one key, are left open, so that what either has to say
/// is heard before both are closed.
const HEAR_BOTH: Duration = Duration::from_secs(1);
/// How long the connection to a node of another cluster stays open after this node has seen which cluster it is, so that the peer sees it as
/// well: identify speaks in both directions, and the peer's direction may be the slower one. Streams and topics bear the cluster's name, so
/// nothing else is exchanged.
const HEAR_OTHER_CLUSTER: Duration = Duration::from_secs(1);
/// How long a node of another cluster is not talked to.
const BLOCK_FOR: Duration = Duration::from_secs(60);
/// Nodes of other clusters remembered. Beyond it the block list is emptied and fills again.
const BLOCKED_MAX: usize = 1024;
/// How often counters are copied for `/metrics`, and what is slow to change is looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How long a goodbye waits for the neighbours to have it.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

/// The connection to a peer, of perhaps two the first.
#[derive(Debug)]
struct First {
    since: Instant,
    /// This node dialled.
    dialled: bool,
    /// This end of it, where it is known: of a dial it is not.
    here: Option<Multiaddr>,
    /// The other end, as this machine sees it.
    there: Multiaddr,
    /// Which process the peer is, once it has said so. A peer that restarted is another, and so is a second one under its key.
    process: Option<String>,
}

/// The driver's state.
pub struct Driver {
    core: Core,
    swarm: Swarm<Behaviour>,
    topic: IdentTopic,
    cluster: String,
    view: Arc<View>,
    metrics: Arc<Metrics>,
    presentation: Presentation,
    warnings: Arc<Warnings>,
    peer_clocks: PeerClocks,
    orders: mpsc::Receiver<Order>,
    neighbourhood: watch::Sender<Neighbourhood>,
    mdns_wanted: bool,
    mdns_on: bool,
    next_id: u64,
    judging: BTreeMap<GossipId, (MessageId, PeerId)>,
    answering: BTreeMap<Ticket, ResponseChannel<Vec<u8>>>,
    asked: BTreeMap<OutboundRequestId, Ticket>,
    connected: BTreeMap<PeerId, First>,
    /// From whom to part when.
    parting: BTreeMap<PeerId, Instant>,
    /// When to block which peer of another cluster.
    blocking: BTreeMap<PeerId, Instant>,
    blocked_until: BTreeMap<PeerId, Instant>,
    farewell: Option<(oneshot::Sender<()>, Instant)>,
    /// What orders came to, told once readers can see it.
    outcomes: Vec<Outcome>,
    /// Where mDNS says that nodes are.
    heard: BTreeMap<NodeId, Multiaddr>,
    outsiders: Outsiders,
    handshakes_failed: u64,
    next_housekeeping: Instant,
    gossip_undelivered: u64,
    strangers: u64,
    mdns_floods: u64,
    dials: Dials,
    replication: Replication,
    holdings: Holdings,
    asked_reports: AskedReports,
}

/// What a driver is made of.
pub struct Parts {
    /// The mind.
    pub core: Core,
    /// The voice, listening already.
    pub swarm: Swarm<Behaviour>,
    /// What it gossips on.
    pub topic: IdentTopic,
    /// The cluster's name.
    pub cluster: String,
    /// What readers see.
    pub view: Arc<View>,
    /// Where to count.
    pub metrics: Arc<Metrics>,
    /// How the node presents itself.
    pub presentation: Presentation,
    /// Where to warn a person.
    pub warnings: Arc<Warnings>,
    /// What others ask.
    pub orders: mpsc::Receiver<Order>,
    /// Where to tell how many neighbours there are.
    pub neighbourhood: watch::Sender<Neighbourhood>,
    /// Whether multicast may be used.
    pub mdns: bool,
    /// The journals that this node keeps.
    pub journals: Arc<Journals>,
    /// The programs that this node speaks for.
    pub holdings: Holdings,
}

impl Driver {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        Self {
            mdns_on: parts.swarm.behaviour().mdns.is_enabled(),
            core: parts.core,
            swarm: parts.swarm,
            topic: parts.topic,
            cluster: parts.cluster,
            view: parts.view,
            metrics: parts.metrics,
            presentation: parts.presentation,
            warnings: parts.warnings,
            peer_clocks: PeerClocks::default(),
            orders: parts.orders,
            neighbourhood: parts.neighbourhood,
            mdns_wanted: parts.mdns,
            next_id: 0,
            judging: BTreeMap::new(),
            answering: BTreeMap::new(),
            asked: BTreeMap::new(),
            connected: BTreeMap::new(),
            parting: BTreeMap::new(),
            blocking: BTreeMap::new(),
            blocked_until: BTreeMap::new(),
            farewell: None,
            outcomes: Vec::new(),
            heard: BTreeMap::new(),
            outsiders: Outsiders::default(),
            handshakes_failed: 0,
            next_housekeeping: Instant::now(),
            gossip_undelivered: 0,
            strangers: 0,
            mdns_floods: 0,
            dials: Dials::default(),
            replication: Replication::new(parts.journals),
            holdings: parts.holdings,
            asked_reports: AskedReports::default(),
        }
    }

    /// Runs until all senders of orders are gone, or the node must not go on.
    ///
    /// # Errors
    /// Why it must not go on. If it still could, it has said goodbye.
    pub async fn run(mut self) -> Result<(), Fatal> {
        let ended = self.live().await;
        // Under a key that is another's, the goodbye would be the other's as well.
        if let Err(Fatal::NameTaken { .. }) = &ended {
            self.part().await;
        }
        ended
    }

    /// Says goodbye and sees it off.
    async fn part(&mut self) {
        self.feed(Input::Command(Command::Leave));
        let until = tokio::time::Instant::now() + FAREWELL_MAX;
        // Nothing but the goodbye counts now.
        while self.carry_out().is_ok() && !self.asked.is_empty() {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_swarm(event),
                () = tokio::time::sleep_until(until) => return,
            }
        }
    }

    async fn live(&mut self) -> Result<(), Fatal> {
        self.carry_out()?;
        loop {
            let clock = self.view.clock();
            self.view.expire(clock.now());
            let due =
                self.view.poll_timeout().into_iter().fold(self.core.poll_timeout(clock.now()), Ord::min);
            let due = clock.instant(due).min(self.next_housekeeping);
            tokio::select! {
                biased;
                event = self.swarm.select_next_some() => self.on_swarm(event),
                order = self.orders.recv() => match order {
                    Some(order) => self.on_order(order),
                    None => return Ok(()),
                },
                Some((peer, addresses)) = self.dials.resolved() => self.dial_now(peer, addresses),
                () = tokio::time::sleep_until(due.into()) => self.feed(Input::Tick),
            }
            self.carry_out()?;
            self.outcomes.drain(..).for_each(Outcome::tell);
            if self.next_housekeeping <= Instant::now() {
                self.keep_house();
            }
        }
    }

    fn feed(&mut self, input: Input) {
        self.core.handle(self.view.clock().now(), input);
    }

    fn on_order(&mut self, order: Order) {
        match order {
            Order::Command(command) => self.feed(Input::Command(command)),
            Order::SetInstances(instances, tell) => {
                for (id, instance) in instances {
                    self.feed(Input::Command(match instance {
                        Some(instance) => Command::SetInstance(id, instance),
                        None => Command::RemoveInstance(id),
                    }));
                }
                self.outcomes.push(Outcome::Stated(tell));
            }
            Order::AskForReports(holder, instance, tell) => self.ask_for_reports(holder, instance, tell),
            Order::Hint(peer, address) => self.feed(Input::Hint(peer, address.to_string())),
            Order::Join(addresses, tell) => self.join(addresses, tell),
            Order::AskReplica(peer, topic, ticket, bytes) => self.ask_replica(peer, topic, ticket, bytes),
            Order::AnswerReplica(ticket, bytes) => self.answer_replica(ticket, bytes),
            Order::Misbehaved(peer, how) => self.feed(Input::Misbehaved(peer, how)),
            Order::Maintenance(enable) => {
                self.presentation.health = if enable { Health::Critical } else { Health::Passing };
                self.present_addresses();
            }
            Order::Reload(reloaded, tell) => {
                // The node may be stopping.
                _ = tell.send(self.reload(reloaded));
            }
            Order::Forget(id, tell) => {
                let outcome = self.forget(id);
                self.outcomes.push(Outcome::Forgotten(tell, outcome));
            }
            Order::Alive(answer) => {
                // Whoever asked may have given up.
                _ = answer.send(());
            }
            Order::Leave(done) => {
                self.feed(Input::Command(Command::Leave));
                self.farewell = Some((done, Instant::now() + FAREWELL_MAX));
                // Once its farewell is out; at once if there is nobody to tell.
                self.next_housekeeping = Instant::now();
            }
        }
    }

    fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished {
                peer_id, connection_id, endpoint, num_established, ..
            } => {
                self.dials.opened(peer_id, connection_id, &endpoint);
                self.on_established(peer_id, &endpoint, num_established.get());
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                self.connected.remove(&peer_id);
                self.peer_clocks.remove(peer_id);
                // What it opens next is a new beginning.
                self.parting.remove(&peer_id);
                self.tell_neighbourhood();
                if let Some(node) = node_of(peer_id) {
                    self.replication.journals.connected(node, false);
                    self.feed(Input::Disconnected(node));
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id, connection_id, error } => {
                self.on_dial_failed(peer_id, connection_id, &error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                self.on_handshake_failed(&send_back_addr, &error);
            }
            SwarmEvent::NewListenAddr { .. } => self.present_addresses(),
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.present_addresses();
                self.part_from(&address);
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listening for nodes"),
            _ => (),
        }
    }

    fn on_established(&mut self, peer: PeerId, endpoint: &ConnectedPoint, connections: u32) {
        let Some(node) = node_of(peer) else {
            _ = self.swarm.disconnect_peer_id(peer);
            return;
        };
        let dialled = endpoint.is_dialer();
        let there = endpoint.get_remote_address();
        if let Some(ip) = presentation::ip_of(there) {
            self.view.set_connected(node, ip);
        }
        if connections == 1 {
            let here = match endpoint {
                ConnectedPoint::Listener { local_addr, .. } => Some(local_addr.clone()),
                ConnectedPoint::Dialer { .. } => None,
            };
            let there = there.clone();
            self.connected.insert(peer, First { since: Instant::now(), dialled, here, there, process: None });
            self.tell_neighbourhood();
            self.replication.journals.connected(node, true);
            return self.feed(Input::Connected(node));
        }
        let crossing =
            |first: &First| connections == 2 && first.dialled != dialled && first.since.elapsed() <= CROSSING;
        if !self.connected.get(&peer).is_some_and(crossing) {
            self.begin_anew(peer);
        }
    }

    /// A peer has said which process it is.
    fn on_identified(&mut self, peer: PeerId, process: &str) {
        let Some(first) = self.connected.get_mut(&peer) else { return };
        if let Some(node) = node_of(peer) {
            self.outsiders.talked_to(node, first.dialled.then_some(&first.there));
        }
        if first.process.get_or_insert_with(|| process.to_owned()) != process {
            self.begin_anew(peer);
        }
    }

    /// gossipsub greets only on a first connection: a peer that restarted, or a second process under its key, would never be told
    /// what we listen to. So part from it wholly; the core dials at once to see what happened.
    fn begin_anew(&mut self, peer: PeerId) {
        let at = Instant::now() + HEAR_BOTH;
        self.parting.entry(peer).or_insert(at);
        self.next_housekeeping = self.next_housekeeping.min(at);
    }

    /// This machine has lost an address, and with it the connections from there, which TCP would not notice for minutes. Of those this
    /// node dialled nobody knows from where: those of the same family are made anew as well, which costs a
    /// round trip.
    fn part_from(&mut self, address: &Multiaddr) {
        if swarm::is_loopback(address) || presentation::is_link_local(address) {
            return;
        }
        let family = |address: &Multiaddr| presentation::ip_of(address).map(|ip| ip.is_ipv6());
        let gone = |first: &First| match &first.here {
            Some(here) => here == address,
            None => family(&first.there) == family(address),
        };
        let lost: Vec<PeerId> =
            self.connected.iter().filter(|(_, first)| gone(first)).map(|(peer, _)| *peer).collect();
        for peer in lost {
            _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    fn tell_neighbourhood(&mut self) {
        if self.connected.is_empty() {
            self.dials.alone();
        }
        let neighbours = self.connected.keys().copied().filter_map(node_of).collect();
        self.neighbourhood.send_modify(|neighbourhood| neighbourhood.neighbours = neighbours);
    }

    /// The interfaces changed: say so in the header and in every instance.
    fn present_addresses(&mut self) {
        let listening: Vec<Multiaddr> = self.swarm.listeners().cloned().collect();
        self.view.set_subnets(interfaces::subnets());
        for command in self.presentation.at(&listening, &interfaces::addresses()) {
            self.feed(Input::Command(command));
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Pulse(pong) => {
                if let Some(node) = node_of(pong.peer) {
                    self.feed(Input::Pong(node, pong.round_trip.rtt));
                    if let Some(offset_ms) = pong.round_trip.offset_ms {
                        self.peer_clocks.record(pong.peer, offset_ms);
                    }
                }
            }
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Sync(event) => self.on_sync(event),
            BehaviourEvent::Journal(event) => self.on_replica(event),
            BehaviourEvent::Checks(event) => self.on_reports(event),
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                if info.protocol_version != swarm::identify_protocol(&self.cluster) {
                    self.on_other_cluster(peer_id, &info.protocol_version);
                } else {
                    self.on_identified(peer_id, &info.agent_version);
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found))
            | BehaviourEvent::Mdns6(mdns::Event::Discovered(found)) => self.on_discovered(found),
            // Expired mDNS records never mean death.
            BehaviourEvent::Mdns(mdns::Event::Expired(gone))
            | BehaviourEvent::Mdns6(mdns::Event::Expired(gone)) => {
                for (peer, address) in gone {
                    if let Some(node) = node_of(peer) {
                        self.hear_no_more_of(node, &address);
                    }
                }
            }
            BehaviourEvent::Identify(_) => (),
        }
    }

    /// A peer has said that it belongs to another cluster: notes it, and blocks it once the peer has had the time to see the same.
    fn on_other_cluster(&mut self, peer: PeerId, protocol: &str) {
        if self.blocking.contains_key(&peer) {
            return;
        }
        self.strangers += 1;
        tracing::debug!(%peer, protocol = protocol.escape_debug().to_string(), "parting from a node of another cluster");
        self.note_other_cluster(peer, protocol);
        let at = Instant::now() + HEAR_OTHER_CLUSTER;
        self.blocking.insert(peer, at);
        self.next_housekeeping = self.next_housekeeping.min(at);
    }

    fn on_gossip(&mut self, event: gossipsub::Event) {
        match event {
            gossipsub::Event::Message { propagation_source, message_id, message } => {
                self.next_id += 1;
                let id = GossipId(self.next_id);
                self.judging.insert(id, (message_id, propagation_source));
                if let Some(from) = node_of(propagation_source) {
                    self.feed(Input::Gossip { id, from, bytes: message.data });
                }
            }
            gossipsub::Event::Subscribed { peer_id, topic } if topic == self.topic.hash() => {
                if let Some(node) = node_of(peer_id) {
                    self.feed(Input::Subscribed(node));
                }
            }
            gossipsub::Event::SlowPeer { .. } => self.gossip_undelivered += 1,
            _ => (),
        }
    }

    fn on_sync(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        use request_response::Message;
        let (peer, request_id, bytes) = match event {
            request_response::Event::Message {
                peer,
                message: Message::Request { request, channel, .. },
                ..
            } => {
                self.next_id += 1;
                let ticket = Ticket(self.next_id);
                self.answering.insert(ticket, channel);
                if let Some(from) = node_of(peer) {
                    self.feed(Input::Request { from, ticket, bytes: request });
                }
                return;
            }
            request_response::Event::Message {
                peer,
                message: Message::Response { request_id, response },
                ..
            } => (peer, request_id, Some(response)),
            request_response::Event::OutboundFailure { peer, request_id, .. } => (peer, request_id, None),
            request_response::Event::InboundFailure { .. } | request_response::Event::ResponseSent { .. } => {
                return;
            }
        };
        if let (Some(ticket), Some(from)) = (self.asked.remove(&request_id), node_of(peer)) {
            self.feed(Input::Response { from, ticket, bytes });
        }
        self.conclude_farewell();
    }

    /// Carries out everything the core has said, in order.
    fn carry_out(&mut self) -> Result<(), Fatal> {
        let mut changes = Vec::new();
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Change(change) => changes.push(change),
                Output::Publish(bytes) => {
                    // No peer, or a queue that is full: anti-entropy repairs it.
                    if self.swarm.behaviour_mut().gossip.publish(self.topic.clone(), bytes).is_err() {
                        self.gossip_undelivered += 1;
                    }
                }
                Output::Judge(id, judgement) => self.judge(id, judgement),
                Output::Dial(peer, addresses) => self.dial(Some(peer), addresses),
                Output::DialAddress(peer, address) => self.dial(peer, vec![address]),
                Output::Disconnect(peer) => {
                    if let Some(peer) = peer_of(peer) {
                        _ = self.swarm.disconnect_peer_id(peer);
                    }
                }
                Output::Ping(peer) => {
                    if let Some(peer) = peer_of(peer) {
                        self.swarm.behaviour_mut().pulse.ping(peer);
                    }
                }
                Output::Request(peer, ticket, bytes) => {
                    if let Some(peer) = peer_of(peer) {
                        let id = self.swarm.behaviour_mut().sync.send_request(&peer, bytes);
                        self.asked.insert(id, ticket);
                    }
                }
                Output::Respond(ticket, bytes) => {
                    if let Some(channel) = self.answering.remove(&ticket) {
                        // The asker may be gone.
                        _ = self.swarm.behaviour_mut().sync.send_response(channel, bytes);
                    }
                }
                // The hook for what counts on members that are expected back. The log has its event.
                Output::ForgottenByOperator(id) => self.replication.journals.forget_replica(id),
                Output::Event(event) => events::log(&event),
                Output::Fatal(fatal) => {
                    self.view.apply(self.view.clock().now(), changes);
                    return Err(fatal);
                }
            }
        }
        if !changes.is_empty() {
            let moved = changes.iter().any(replicas::may_move);
            self.view.apply(self.view.clock().now(), changes);
            if moved && self.tell_replicas() {
                // What the core says to that is carried out like everything else.
                return self.carry_out();
            }
        }
        Ok(())
    }

    fn judge(&mut self, id: GossipId, judgement: Judgement) {
        let acceptance = match judgement {
            Judgement::Accept => MessageAcceptance::Accept,
            Judgement::Ignore => MessageAcceptance::Ignore,
            Judgement::Reject => MessageAcceptance::Reject,
        };
        if let Some((message, source)) = self.judging.remove(&id) {
            // False: gossipsub has forgotten the message meanwhile.
            _ = self
                .swarm
                .behaviour_mut()
                .gossip
                .report_message_validation_result(&message, &source, acceptance);
        }
    }
}
