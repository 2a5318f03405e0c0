//! The network between simulated nodes: connections, what travels over them, and what becomes of it.
//!
//! As close to TCP below libp2p as the core can tell. Nothing overtakes the handshake; what is sent over a connection arrives in order
//! or not at all; whoever gets something for a connection that it does not have answers with a reset; two dials that cross make
//! two connections, and any other second connection means that the peer began anew, so both are closed.

use std::{cmp::Reverse, time::Duration};

use super::{NodeIndex, Sim};
use crate::{
    NodeId, Time,
    io::{GossipId, Input},
    sync::Ticket,
};

/// What the network does to messages.
#[derive(Clone, Debug)]
pub struct Weather {
    /// The least time a message takes.
    pub delay_min: Duration,
    /// The most, without loss.
    pub delay_max: Duration,
    /// How many of a hundred packets are lost. Over TCP: the message comes later, by a retransmission of 200 ms, then 400, …
    pub loss_percent: u8,
}

impl Default for Weather {
    fn default() -> Self {
        Self { delay_min: Duration::from_micros(50), delay_max: Duration::from_millis(2), loss_percent: 0 }
    }
}

/// How long a dial or a message to where nothing answers takes to give up. Linux would try for longer; the node's transport does not.
const NO_ANSWER: Duration = Duration::from_secs(5);
/// TCP's first retransmission timeout on Linux (RFC 6298 says 1 s, Linux has 200 ms as its least).
const RTO: Duration = Duration::from_millis(200);
/// After this many losses in a row the connection breaks.
const RETRANSMISSIONS_MAX: u32 = 6;
/// A second connection the other way round is a crossing dial while the first is younger than this. As in the node's driver.
const CROSSING: Duration = Duration::from_secs(2);

/// One end of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub(super) id: u64,
    /// This end dialled.
    dialled: bool,
    since: Time,
}

/// What comes to a node, over a connection or from its own host.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum What {
    Wake,
    Open { peer: NodeIndex, their_life: u64, link: u64, dialled: bool },
    Subscribe { peer: NodeIndex, link: u64 },
    Refuse { peer: NodeIndex, refused: bool },
    Unanswered { from: NodeIndex, ticket: u64 },
    Carried { from: NodeIndex, link: u64, message: Message },
}

/// What is carried over a connection.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Message {
    Close,
    Gossip(Vec<u8>),
    Ping(Time),
    Pong(Time),
    Request(u64, Vec<u8>),
    Response(u64, Vec<u8>),
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    pub(super) at: Time,
    order: u64,
    pub(super) to: NodeIndex,
    /// Which life of the receiver it is for. What is carried over a connection reaches its host in any case.
    pub(super) life: u64,
    pub(super) what: What,
}

/// What TCP keeps retransmitting until the way is free.
#[derive(Debug)]
pub(super) struct Stalled {
    pub(super) from: NodeIndex,
    pub(super) to: NodeIndex,
    link: u64,
    message: Message,
}

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
                    self.feed(to, Input::Tick);
                }
            }
            What::Open { peer, their_life, link, dialled } => {
                self.nodes[to].dialling.remove(&peer);
                if self.nodes[peer].life == their_life {
                    self.open(to, peer, Link { id: link, dialled, since: self.now });
                } else if dialled {
                    // It ended during the handshake.
                    self.feed(to, Input::DialFailed { peer: self.nodes[peer].id, refused: true });
                }
            }
            What::Subscribe { peer, link } => {
                if self.is_linked(to, peer, link) && self.nodes[to].subscribed.insert(peer) {
                    self.feed(to, Input::Subscribed(self.nodes[peer].id));
                }
            }
            What::Refuse { peer, refused } => {
                self.nodes[to].dialling.remove(&peer);
                self.feed(to, Input::DialFailed { peer: self.nodes[peer].id, refused });
            }
            What::Unanswered { from, ticket } => {
                let from = self.nodes[from].id;
                self.feed(to, Input::Response { from, ticket: Ticket(ticket), bytes: None });
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

    /// Something came for a connection that this end does not have (any more).
    pub(super) fn reset(&mut self, to: NodeIndex, from: NodeIndex, link: u64, message: &Message) {
        if *message != Message::Close {
            self.send(to, from, link, Message::Close);
        }
    }

    fn open(&mut self, to: NodeIndex, peer: NodeIndex, link: Link) {
        let links = self.nodes[to].links.entry(peer).or_default();
        let first = links.first().copied();
        links.push(link);
        match first {
            None => self.feed(to, Input::Connected(self.nodes[peer].id)),
            Some(first) if first.dialled != link.dialled && self.now.since(first.since) <= CROSSING => (),
            Some(_) => self.part(to, peer),
        }
    }

    /// Closes all connections between two nodes, from one end.
    pub(super) fn part(&mut self, from: NodeIndex, peer: NodeIndex) {
        for link in self.nodes[from].links.get(&peer).cloned().unwrap_or_default() {
            self.push(self.now, from, What::Carried { from: peer, link: link.id, message: Message::Close });
            self.send(from, peer, link.id, Message::Close);
        }
    }

    fn receive(&mut self, to: NodeIndex, from: NodeIndex, link: u64, message: Message) {
        let peer = self.nodes[from].id;
        if let Message::Gossip(bytes) | Message::Request(_, bytes) | Message::Response(_, bytes) = &message {
            self.delivered += 1;
            self.bytes += bytes.len() as u64;
        }
        let node = &mut self.nodes[to];
        match message {
            Message::Close => {
                let Some(links) = node.links.get_mut(&from) else { return };
                links.retain(|l| l.id != link);
                if links.is_empty() {
                    node.links.remove(&from);
                    node.subscribed.remove(&from);
                    self.feed(to, Input::Disconnected(peer));
                }
            }
            Message::Gossip(bytes) => {
                if node.seen_gossip.insert(*blake3::hash(&bytes).as_bytes()) {
                    node.next_id += 1;
                    let id = node.next_id;
                    node.waiting_gossip.insert(id, (from, bytes.clone()));
                    self.feed(to, Input::Gossip { id: GossipId(id), from: peer, bytes });
                }
            }
            Message::Ping(sent) => self.send(to, from, link, Message::Pong(sent)),
            Message::Pong(sent) => self.feed(to, Input::Pong(peer, self.now.since(sent))),
            Message::Request(ticket, bytes) => {
                node.next_id += 1;
                let id = node.next_id;
                node.waiting_requests.insert(id, (from, link, ticket));
                self.feed(to, Input::Request { from: peer, ticket: Ticket(id), bytes });
            }
            Message::Response(ticket, bytes) => {
                self.feed(to, Input::Response { from: peer, ticket: Ticket(ticket), bytes: Some(bytes) });
            }
        }
    }

    pub(super) fn push(&mut self, at: Time, to: NodeIndex, what: What) {
        self.order += 1;
        let life = self.nodes[to].life;
        self.queue.push(Reverse(Due { at, order: self.order, to, life, what }));
    }

    /// Sends over a connection: in order, delayed, lossy as TCP is.
    pub(super) fn send(&mut self, from: NodeIndex, to: NodeIndex, link: u64, message: Message) {
        if self.blocked.contains(&(from, to)) {
            return self.stalled.push(Stalled { from, to, link, message });
        }
        let Some(delay) = self.delay() else {
            // So much was lost that the connection broke; both sides find out.
            let close = || Message::Close;
            self.push(self.now + NO_ANSWER, from, What::Carried { from: to, link, message: close() });
            self.push(self.now + NO_ANSWER, to, What::Carried { from, link, message: close() });
            return;
        };
        let at = self.in_order(from, to, link, self.now + delay);
        self.push(at, to, What::Carried { from, link, message });
    }

    /// What was stalled sets out again where the way is free.
    pub(super) fn release(&mut self) {
        let blocked = &self.blocked;
        let free: Vec<Stalled> =
            self.stalled.extract_if(.., |s| !blocked.contains(&(s.from, s.to))).collect();
        for Stalled { from, to, link, message } in free {
            self.send(from, to, link, message);
        }
    }

    /// When something arrives that would arrive at `at` on its own: not before what was sent earlier over the same connection.
    fn in_order(&mut self, from: NodeIndex, to: NodeIndex, link: u64, at: Time) -> Time {
        let last = self.nodes[from].arrivals.entry(to).or_insert((link, Time::ZERO));
        // Connections are numbered in the order in which they were made, and a new one waits for no old one.
        let at = if last.0 < link { at } else { at.max(last.1) };
        *last = (link.max(last.0), at);
        at
    }

    /// How long a message takes; `None`: so much of it was lost that its connection breaks.
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

    pub(super) fn over_link(&mut self, from: NodeIndex, peer: NodeId, message: Message) -> bool {
        let Some(peer) = self.by_id.get(&peer).copied() else { return false };
        let Some(link) = self.link(from, peer) else { return false };
        self.send(from, peer, link, message);
        true
    }

    pub(super) fn respond(&mut self, from: NodeIndex, id: u64, bytes: Vec<u8>) {
        if let Some((peer, link, ticket)) = self.nodes[from].waiting_requests.remove(&id)
            && self.is_linked(from, peer, link)
        {
            self.send(from, peer, link, Message::Response(ticket, bytes));
        }
    }

    pub(super) fn flood(&mut self, from: NodeIndex, except: Option<NodeIndex>, bytes: &[u8]) {
        let peers: Vec<NodeIndex> = self.nodes[from].subscribed.iter().copied().collect();
        for peer in peers.into_iter().filter(|peer| Some(*peer) != except) {
            if let Some(link) = self.link(from, peer) {
                self.send(from, peer, link, Message::Gossip(bytes.to_vec()));
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
            // The kernel accepts, nobody answers.
            return self.push(self.now + NO_ANSWER, from, What::Refuse { peer: to, refused: false });
        }
        self.next_link += 1;
        let link = self.next_link;
        // TCP takes a round trip, noise one and a half; the dialler is done half a round trip before the other.
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
