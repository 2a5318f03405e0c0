//! Part of [`Sim`]: simulates the network, which opens connections and delivers messages over them.
//!
//! The core cannot distinguish this network from TCP with libp2p. No message arrives before the handshake has
//! ended. Messages over a connection arrive in order or not at all. A message for an unknown connection is
//! answered with a reset. Two dials that cross make two connections. Any other second connection means that
//! the peer has restarted, so both connections are closed.

use std::{cmp::Reverse, time::Duration};

use super::{
    cluster::Sim,
    link::{Due, Link, LinkMessage, NodeIndex, PongState, Stalled, What},
};
use crate::{
    NodeId, Time,
    io::{GossipId, Input, Pong},
    sync::{RequestId, RootPrefix},
};

/// Time after which a dial or a message without an answer fails. Linux would try for longer, but the node's
/// transport does not.
const NO_ANSWER: Duration = Duration::from_secs(5);
/// First retransmission timeout of TCP on Linux (its minimum; RFC 6298 recommends 1 s).
const RTO: Duration = Duration::from_millis(200);
/// Consecutive losses after which a connection breaks.
const RETRANSMISSIONS_MAX: u32 = 6;
/// Age of a connection up to which a second one in the other direction counts as a crossing dial. The node's
/// driver has the same rule.
const CROSSING: Duration = Duration::from_secs(2);

impl Sim {
    fn link(&self, a: NodeIndex, b: NodeIndex) -> Option<u64> {
        self.nodes[a].links.get(&b).and_then(|links| links.first()).map(|link| link.id)
    }

    fn is_linked(&self, a: NodeIndex, b: NodeIndex, link: u64) -> bool {
        self.nodes[a].links.get(&b).is_some_and(|links| links.iter().any(|l| l.id == link))
    }

    pub(super) fn deliver(&mut self, to: NodeIndex, what: What) {
        match what {
            What::Wake => {
                if self.nodes[to].woken_at <= self.now {
                    self.pass_input(to, Input::Tick);
                }
            }
            What::Open { peer, their_life, link, dialled } => {
                self.nodes[to].dialling.remove(&peer);
                if self.nodes[peer].life == their_life {
                    self.open(to, peer, Link { id: link, dialled, since: self.now });
                } else if dialled {
                    // The peer's process ended during the handshake.
                    self.pass_input(to, Input::DialFailed { peer: self.nodes[peer].id, refused: true });
                }
            }
            What::Subscribe { peer, link } => {
                if self.is_linked(to, peer, link) && self.nodes[to].subscribed.insert(peer) {
                    self.pass_input(to, Input::Subscribed(self.nodes[peer].id));
                }
            }
            What::Refuse { peer, refused } => {
                self.nodes[to].dialling.remove(&peer);
                self.pass_input(to, Input::DialFailed { peer: self.nodes[peer].id, refused });
            }
            What::Unanswered { from, request_id } => {
                let from = self.nodes[from].id;
                self.pass_input(to, Input::Response { from, request_id: RequestId(request_id), bytes: None });
            }
            What::Carried { from, link, message } => {
                if self.is_linked(to, from, link) {
                    self.receive(to, from, link, message);
                } else {
                    self.reset(to, from, link, &message);
                }
            }
        }
    }

    /// Answers a message for an unknown connection with a reset.
    pub(super) fn reset(&mut self, to: NodeIndex, from: NodeIndex, link: u64, message: &LinkMessage) {
        if *message != LinkMessage::Close {
            self.send(to, from, link, LinkMessage::Close);
        }
    }

    fn open(&mut self, to: NodeIndex, peer: NodeIndex, link: Link) {
        let links = self.nodes[to].links.entry(peer).or_default();
        let first = links.first().copied();
        links.push(link);
        match first {
            None => self.pass_input(to, Input::Connected(self.nodes[peer].id)),
            Some(first) if first.dialled != link.dialled && self.now.since(first.since) <= CROSSING => (),
            Some(_) => self.part(to, peer),
        }
    }

    /// Closes all connections between two nodes, from the end of `from`.
    pub(super) fn part(&mut self, from: NodeIndex, peer: NodeIndex) {
        for link in self.nodes[from].links.get(&peer).cloned().unwrap_or_default() {
            self.push(
                self.now,
                from,
                What::Carried { from: peer, link: link.id, message: LinkMessage::Close },
            );
            self.send(from, peer, link.id, LinkMessage::Close);
        }
    }

    fn receive(&mut self, to: NodeIndex, from: NodeIndex, link: u64, message: LinkMessage) {
        let peer = self.nodes[from].id;
        if let LinkMessage::Gossip(bytes) | LinkMessage::Request(_, bytes) | LinkMessage::Response(_, bytes) =
            &message
        {
            self.delivered += 1;
            self.bytes += bytes.len() as u64;
        }
        let node = &mut self.nodes[to];
        match message {
            LinkMessage::Close => {
                let Some(links) = node.links.get_mut(&from) else { return };
                links.retain(|l| l.id != link);
                if links.is_empty() {
                    node.links.remove(&from);
                    node.subscribed.remove(&from);
                    self.pass_input(to, Input::Disconnected(peer));
                }
            }
            LinkMessage::Gossip(bytes) => {
                if !node.is_deaf && node.seen_gossip.insert(*blake3::hash(&bytes).as_bytes()) {
                    node.next_id += 1;
                    let id = node.next_id;
                    node.waiting_gossip.insert(id, (from, bytes.clone()));
                    self.pass_input(to, Input::Gossip { id: GossipId(id), from: peer, bytes });
                }
            }
            LinkMessage::Ping(sent) => {
                self.pings += 1;
                let since_ping = self.now.since(std::mem::replace(&mut node.last_ping, self.now));
                let core = node.core.as_ref().filter(|_| !node.is_older);
                let root = core.map(|core| RootPrefix::of(core.state().root()).0);
                let state = root.map(|root| PongState { root, since_ping });
                self.send(to, from, link, LinkMessage::Pong(sent, state));
            }
            LinkMessage::Pong(sent, state) => {
                let state = state.filter(|_| !node.is_older);
                let pong = Pong {
                    rtt: self.now.since(sent),
                    root: state.map(|state| RootPrefix(state.root)),
                    since_ping: state.map(|state| state.since_ping),
                };
                self.pass_input(to, Input::Pong(peer, pong));
            }
            LinkMessage::Request(request_id, bytes) => {
                node.next_id += 1;
                let id = node.next_id;
                node.waiting_requests.insert(id, (from, link, request_id));
                self.pass_input(to, Input::Request { from: peer, request_id: RequestId(id), bytes });
            }
            LinkMessage::Response(request_id, bytes) => {
                self.pass_input(
                    to,
                    Input::Response { from: peer, request_id: RequestId(request_id), bytes: Some(bytes) },
                );
            }
        }
    }

    pub(super) fn push(&mut self, at: Time, to: NodeIndex, what: What) {
        self.order += 1;
        let life = self.nodes[to].life;
        self.queue.push(Reverse(Due { at, order: self.order, to, life, what }));
    }

    /// Sends a message over a connection, in order and with delay and loss.
    pub(super) fn send(&mut self, from: NodeIndex, to: NodeIndex, link: u64, message: LinkMessage) {
        if self.blocked.contains(&(from, to)) {
            return self.stalled.push(Stalled { from, to, link, message });
        }
        let Some(delay) = self.delay() else {
            // Too many packets are lost, so the connection breaks, and both ends detect it.
            let close = || LinkMessage::Close;
            self.push(self.now + NO_ANSWER, from, What::Carried { from: to, link, message: close() });
            self.push(self.now + NO_ANSWER, to, What::Carried { from, link, message: close() });
            return;
        };
        let at = self.in_order(from, to, link, self.now + delay);
        self.push(at, to, What::Carried { from, link, message });
    }

    /// Sends the stalled messages of pairs that are no longer blocked.
    pub(super) fn release(&mut self) {
        let blocked = &self.blocked;
        let free: Vec<Stalled> =
            self.stalled.extract_if(.., |s| !blocked.contains(&(s.from, s.to))).collect();
        for Stalled { from, to, link, message } in free {
            self.send(from, to, link, message);
        }
    }

    /// Arrival of a message whose own delay ends at `at`: not before earlier messages of the same connection.
    fn in_order(&mut self, from: NodeIndex, to: NodeIndex, link: u64, at: Time) -> Time {
        let last = self.nodes[from].arrivals.entry(to).or_insert((link, Time::ZERO));
        // Connections are numbered in order. Messages of a new connection do not wait for those of an old
        // one.
        let at = if last.0 < link { at } else { at.max(last.1) };
        *last = (link.max(last.0), at);
        at
    }

    /// Delay of a message; `None`: the connection breaks because of losses.
    fn delay(&mut self) -> Option<Duration> {
        let (least, most) = (self.weather.delay_min, self.weather.delay_max);
        let mut delay = least + most.saturating_sub(least).mul_f64(self.rng.f64());
        let mut timeout = RTO;
        for lost in 0.. {
            if lost >= RETRANSMISSIONS_MAX {
                return None;
            }
            if self.rng.u8(..100) >= self.weather.loss_percent {
                break;
            }
            delay += timeout;
            timeout *= 2;
        }
        Some(delay)
    }

    pub(super) fn over_link(&mut self, from: NodeIndex, peer: NodeId, message: LinkMessage) -> bool {
        let Some(peer) = self.by_id.get(&peer).copied() else { return false };
        let Some(link) = self.link(from, peer) else { return false };
        self.send(from, peer, link, message);
        true
    }

    pub(super) fn respond(&mut self, from: NodeIndex, id: u64, bytes: Vec<u8>) {
        if let Some((peer, link, request_id)) = self.nodes[from].waiting_requests.remove(&id)
            && self.is_linked(from, peer, link)
        {
            self.send(from, peer, link, LinkMessage::Response(request_id, bytes));
        }
    }

    pub(super) fn flood(&mut self, from: NodeIndex, except: Option<NodeIndex>, bytes: &[u8]) {
        let peers: Vec<NodeIndex> = self.nodes[from].subscribed.iter().copied().collect();
        for peer in peers.into_iter().filter(|peer| Some(*peer) != except) {
            if let Some(link) = self.link(from, peer) {
                self.send(from, peer, link, LinkMessage::Gossip(bytes.to_vec()));
            }
        }
    }

    pub(super) fn dial(&mut self, from: NodeIndex, to: NodeIndex) {
        if to == from || self.nodes[from].links.contains_key(&to) || !self.nodes[from].dialling.insert(to) {
            return;
        }
        let cut = self.blocked.contains(&(from, to)) || self.blocked.contains(&(to, from));
        let (Some(there), Some(back), false) = (self.delay(), self.delay(), cut) else {
            return self.push(self.now + NO_ANSWER, from, What::Refuse { peer: to, refused: false });
        };
        if self.nodes[to].core.is_none() {
            return self.push(self.now + there + back, from, What::Refuse { peer: to, refused: true });
        }
        if self.nodes[to].frozen {
            // The kernel accepts the connection, but the process does not answer.
            return self.push(self.now + NO_ANSWER, from, What::Refuse { peer: to, refused: false });
        }
        self.next_link += 1;
        let link = self.next_link;
        // TCP takes one round trip, and Noise one and a half. The dialling end completes the handshake half a
        // round trip earlier.
        let here = self.in_order(to, from, link, self.now + (there + back) * 2);
        let over_there = self.in_order(from, to, link, here + there);
        let (life, their_life) = (self.nodes[from].life, self.nodes[to].life);
        self.push(here, from, What::Open { peer: to, their_life, link, dialled: true });
        self.push(over_there, to, What::Open { peer: from, their_life: life, link, dialled: false });
        let greeted = self.in_order(to, from, link, over_there + back);
        self.push(greeted, from, What::Subscribe { peer: to, link });
        let greeting = self.in_order(from, to, link, over_there);
        self.push(greeting, to, What::Subscribe { peer: from, link });
    }
}
