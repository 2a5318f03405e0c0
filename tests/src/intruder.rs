//! [`Intruder`]: malicious peer that speaks the transport like a node, joins open clusters, and sends
//! arbitrary messages. Also sends forged mDNS announcements ([`spoof_mdns`]).

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures::StreamExt as _;
use hearsay_node::{Behaviour, BehaviourEvent, SwarmConfig, build_swarm};
use hearsay_protocol::{
    Entry, Identity,
    wire::{self, Digest, Gossip, Received, Request, Response},
};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    gossipsub::{self, IdentTopic},
    identity::Keypair,
    multiaddr::Protocol,
    request_response::{self, OutboundRequestId},
    swarm::SwarmEvent,
};
use tokio::runtime::Runtime;

/// Limit of every operation.
const PATIENCE: Duration = Duration::from_secs(5);

/// Malicious peer that is connected to one node.
pub struct Intruder {
    runtime: Runtime,
    swarm: Swarm<Behaviour>,
    topic: IdentTopic,
    victim: PeerId,
    /// Identity with which the peer signs entries and evidence.
    pub identity: Identity,
}

impl Intruder {
    /// Connects to a node and joins its gossip.
    ///
    /// # Errors
    /// The node does not answer, or refuses the connection.
    pub fn connect(seed: [u8; 32], cluster: &str, to: SocketAddr) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let inside = runtime.enter();
        let config = SwarmConfig {
            cluster: cluster.into(),
            cluster_key: None,
            allowed: None,
            mdns: false,
            exempt: Default::default(),
        };
        let (mut swarm, topic) = build_swarm(&Keypair::ed25519_from_bytes(seed)?, &config)?;
        swarm.dial(Multiaddr::from(to.ip()).with(Protocol::Tcp(to.port())))?;
        drop(inside);
        let identity = Identity::from_seed(&seed);
        let mut intruder = Self { runtime, swarm, topic, victim: PeerId::random(), identity };
        let subscribed = intruder.wait(|event| match event {
            SwarmEvent::Behaviour(BehaviourEvent::Gossip(gossipsub::Event::Subscribed {
                peer_id, ..
            })) => Some(peer_id),
            _ => None,
        })?;
        intruder.victim = subscribed;
        Ok(intruder)
    }

    /// Accepts connections from other nodes, like a member, at this port of each address.
    ///
    /// # Errors
    /// The peer cannot listen there.
    pub fn listen(&mut self, port: u16) -> anyhow::Result<()> {
        let _inside = self.runtime.enter();
        self.swarm.listen_on(Multiaddr::from(Ipv4Addr::UNSPECIFIED).with(Protocol::Tcp(port)))?;
        Ok(())
    }

    fn wait<T>(
        &mut self,
        mut found: impl FnMut(SwarmEvent<BehaviourEvent>) -> Option<T>,
    ) -> anyhow::Result<T> {
        let swarm = &mut self.swarm;
        self.runtime
            .block_on(async {
                tokio::time::timeout(PATIENCE, async {
                    loop {
                        if let Some(found) = found(swarm.select_next_some().await) {
                            return found;
                        }
                    }
                })
                .await
            })
            .context("it did not happen")
    }

    /// Runs the transport for this time.
    pub fn let_pass(&mut self, time: Duration) {
        let swarm = &mut self.swarm;
        self.runtime.block_on(async {
            // Events are ignored until the time is up.
            _ = tokio::time::timeout(time, async {
                loop {
                    swarm.select_next_some().await;
                }
            })
            .await;
        });
    }

    /// Sends bytes by gossip. The other nodes decide whether they accept them.
    pub fn gossip(&mut self, bytes: Vec<u8>) {
        // The local swarm refuses messages that are too large or repeated; the error is ignored.
        _ = self.swarm.behaviour_mut().gossip.publish(self.topic.clone(), bytes);
        self.let_pass(Duration::from_millis(1));
    }

    /// Sends entries by gossip.
    pub fn gossip_entries(&mut self, entries: Vec<Entry>) {
        self.gossip(wire::encode(&Gossip::Entries(entries)));
    }

    /// Sends a request to the node and waits for the answer; `None` without an answer.
    pub fn ask(&mut self, bytes: Vec<u8>) -> Option<Vec<u8>> {
        let victim = self.victim;
        let id: OutboundRequestId = self.swarm.behaviour_mut().sync.send_request(&victim, bytes);
        let answer = self.wait(|event| match event {
            SwarmEvent::Behaviour(BehaviourEvent::Sync(request_response::Event::Message {
                message: request_response::Message::Response { request_id, response },
                ..
            })) if request_id == id => Some(Some(response)),
            SwarmEvent::Behaviour(BehaviourEvent::Sync(request_response::Event::OutboundFailure {
                request_id,
                ..
            })) if request_id == id => Some(None),
            _ => None,
        });
        answer.ok().flatten()
    }

    /// Fetches all entries that the node has, as a new node does.
    ///
    /// # Errors
    /// The node sends an unexpected answer.
    pub fn everything(&mut self) -> anyhow::Result<Vec<Entry>> {
        let list = Request::List { parts: u64::MAX, after: None };
        let Some(Ok(Received::Known(Response::Digests { digests, .. }))) =
            self.ask(wire::encode(&list)).map(|b| wire::decode::<Response>(&b))
        else {
            bail!("no digests");
        };
        let pull = Request::Pull(digests.iter().map(|d| Digest::of_nothing(d.node)).collect());
        match self.ask(wire::encode(&pull)).map(|b| wire::decode::<Response>(&b)) {
            Some(Ok(Received::Known(Response::Pages { pages, .. }))) => {
                Ok(pages.into_iter().flat_map(|page| page.entries).collect())
            }
            other => bail!("no pages: {other:?}"),
        }
    }
}

/// Multicasts an unsolicited answer to libp2p's mDNS question, with this peer and address.
///
/// # Errors
/// The socket cannot be used.
pub fn spoof_mdns(from: Ipv4Addr, peer: &str, address: &str) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.set_multicast_ttl_v4(255)?;
    let instance = "spoofedspoofedspoofedspoofedspoofed";
    let text = format!("dnsaddr={address}/p2p/{peer}");
    let name = |labels: &[&str]| -> Vec<u8> {
        let mut bytes = Vec::new();
        for label in labels {
            bytes.push(label.len() as u8);
            bytes.extend(label.as_bytes());
        }
        bytes.push(0);
        bytes
    };
    // RFC 1035, section 4.1: header, then one answer (PTR) and one additional record (TXT).
    let mut packet = vec![0, 0, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 1];
    let mut record = |owner: Vec<u8>, kind: u8, data: Vec<u8>| {
        packet.extend(owner);
        packet.extend([0, kind, 0, 1, 0, 0, 0, 120]);
        packet.extend((data.len() as u16).to_be_bytes());
        packet.extend(data);
    };
    record(name(&["_p2p", "_udp", "local"]), 12, name(&[instance]));
    let mut txt = vec![text.len() as u8];
    txt.extend(text.as_bytes());
    record(name(&[instance]), 16, txt);
    socket.send_to(&packet, (Ipv4Addr::new(224, 0, 0, 251), 5353))?;
    // Also sends bytes that are not DNS packets.
    for length in [0, 1, 11, 12, 13, 500] {
        socket.send_to(&vec![0xc0; length], (Ipv4Addr::new(224, 0, 0, 251), 5353))?;
    }
    Ok(())
}
