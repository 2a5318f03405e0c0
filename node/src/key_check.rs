//! Key check: finds another process with this node's key, which happens when its data directory was copied.
//!
//! The check runs before the node listens or states anything. Once a second process has stated a newer
//! incarnation under the key, all nodes take that process for the node. The original is not listed until the
//! copy has stopped. If a supervisor keeps restarting the copy, the original stays unlisted.
//!
//! 1. **Find.** The node asks peers for the header of its own key: peers that the data directory remembers,
//!    peers of `--join`, and peers that mDNS announces. It asks over a connection with a temporary key,
//!    because a second connection with the node's own key would close the original's. With `--allow` it uses
//!    its own key, because peers would refuse any other.
//! 2. **Prove.** The node dials the addresses in a header that its key has signed. A peer that completes the
//!    handshake with this key holds it. Statements of other peers do not count. So a peer that lies can name
//!    addresses, but cannot stop a node.
//!
//! A node that finds nothing within [`CHECK_MAX`] starts. If it is a copy after all, `core/clash.rs` of the
//! protocol tells it to stop.

use std::{collections::BTreeSet, time::Duration};

use futures::StreamExt as _;
use hearsay_protocol::{
    Header, Key, NodeId, Presence,
    wire::{self, Digest, Page, Received, Request, Response},
};
use libp2p::{
    Multiaddr, PeerId, Swarm,
    identity::Keypair,
    mdns,
    multiaddr::Protocol,
    request_response::{self, OutboundRequestId},
    swarm::{ConnectionId, DialError, SwarmEvent, dial_opts::DialOpts},
};
use tokio::{sync::mpsc, time::Instant};

use crate::{
    config::Join,
    discovery,
    swarm::{self, KeyCheckBehaviour, KeyCheckEvent, SwarmConfig, peer_of},
};

/// Longest duration of the check. It takes this long if a host is down.
const CHECK_MAX: Duration = Duration::from_secs(2);
/// Time for mDNS to announce peers, if no remembered or named peer has answered. The first query leaves at
/// once, and a response on the same network takes a few milliseconds.
const MDNS_MAX: Duration = Duration::from_millis(400);
/// Time for further peers after the first response. If the cluster's tables are equal, one response is
/// enough.
const GRACE: Duration = Duration::from_millis(300);
/// Maximum number of peers that are asked. A guess: one of them knows the cluster.
const ASKED_MAX: usize = 8;
/// Maximum number of addresses that are dialled.
const DIALS_MAX: usize = 48;

/// Another process runs under this node's key. Nothing was stated and nothing was written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "another process already runs under this node's key, at {address}: the data dir was copied. Stop one of the two, or give this one a data dir of its own (--data-dir) so that it gets its own key"
)]
pub(crate) struct KeyInUse {
    /// Address at which the other process answered.
    pub address: Multiaddr,
}

/// Where the check searches for the original process.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// Addresses of peers that the data directory remembers, and of other nodes on this machine.
    pub addresses: Vec<Multiaddr>,
    /// Values of `--join`.
    pub join: Vec<Join>,
    /// Whether the node with this data directory has met other nodes before.
    pub had_company: bool,
}

/// Checks that no other process runs under this key.
///
/// # Errors
/// [`KeyInUse`]. A check that cannot be set up logs a warning and passes.
pub(crate) async fn check(keypair: &Keypair, config: &SwarmConfig, search: Search) -> Result<(), KeyInUse> {
    let mut check = match KeyCheck::new(keypair, config, &search) {
        Ok(check) => check,
        Err(error) => {
            tracing::warn!(%error, "cannot check whether another process runs under this node's key");
            return Ok(());
        }
    };
    match check.run(search).await {
        Some(address) => Err(KeyInUse { address }),
        None => Ok(()),
    }
}

struct KeyCheck {
    node: NodeId,
    peer: PeerId,
    cluster: String,
    swarm: Swarm<KeyCheckBehaviour>,
    /// Channel for addresses from the resolver.
    resolved: (mpsc::Sender<Vec<Multiaddr>>, mpsc::Receiver<Vec<Multiaddr>>),
    resolving: usize,
    dialled: BTreeSet<Multiaddr>,
    /// Dials under way.
    dialling: BTreeSet<ConnectionId>,
    /// Dials to addresses of the original's header.
    proving: BTreeSet<ConnectionId>,
    asked: BTreeSet<PeerId>,
    unanswered: BTreeSet<OutboundRequestId>,
    first_answer: Option<Instant>,
    mdns_until: Instant,
}

impl KeyCheck {
    fn new(keypair: &Keypair, config: &SwarmConfig, search: &Search) -> anyhow::Result<Self> {
        let peer = keypair.public().to_peer_id();
        let node = swarm::node_of(peer).ok_or_else(|| anyhow::anyhow!("the key is of another kind"))?;
        // Peers with `--allow` answer only admitted keys.
        let dialling_key =
            if config.allowed.is_some() { keypair.clone() } else { Keypair::generate_ed25519() };
        let now = Instant::now();
        Ok(Self {
            node,
            peer,
            cluster: config.cluster.clone(),
            swarm: swarm::build_key_check(&dialling_key, config)?,
            resolved: mpsc::channel(ASKED_MAX),
            resolving: 0,
            dialled: BTreeSet::new(),
            dialling: BTreeSet::new(),
            proving: BTreeSet::new(),
            asked: BTreeSet::new(),
            unanswered: BTreeSet::new(),
            first_answer: None,
            // If the node never met another one, no table contains it, and a copy does no harm.
            mdns_until: if config.mdns && search.had_company { now + MDNS_MAX } else { now },
        })
    }

    /// Runs the check and returns the address at which the original answered.
    async fn run(&mut self, search: Search) -> Option<Multiaddr> {
        let end = Instant::now() + CHECK_MAX;
        for join in search.join.into_iter().take(ASKED_MAX) {
            self.resolve(async move { discovery::resolve(&join).await.unwrap_or_default() });
        }
        for address in search.addresses {
            self.dial(address, false);
        }
        while !self.is_done() {
            let wake = self.wake_at().map_or(end, |at| at.min(end));
            tokio::select! {
                event = self.swarm.select_next_some() => {
                    if let Some(address) = self.on_event(event) {
                        return Some(address);
                    }
                }
                Some(addresses) = self.resolved.1.recv() => {
                    self.resolving -= 1;
                    addresses.into_iter().for_each(|address| self.dial(address, false));
                }
                () = tokio::time::sleep_until(wake) => {
                    if Instant::now() >= end {
                        return None;
                    }
                }
            }
        }
        None
    }

    fn is_done(&self) -> bool {
        let now = Instant::now();
        let idle = self.resolving == 0 && self.dialling.is_empty() && self.unanswered.is_empty();
        match self.first_answer {
            Some(at) => idle || now >= at + GRACE && self.proving.is_empty(),
            None => idle && now >= self.mdns_until,
        }
    }

    /// Returns the time at which [`is_done`](Self::is_done) may change without an event.
    fn wake_at(&self) -> Option<Instant> {
        let at = self.first_answer.map_or(self.mdns_until, |at| at + GRACE);
        (at > Instant::now()).then_some(at)
    }

    fn resolve(&mut self, names: impl Future<Output = Vec<(Option<NodeId>, Multiaddr)>> + Send + 'static) {
        let resolved = self.resolved.0.clone();
        self.resolving += 1;
        tokio::spawn(async move {
            // The check may have ended.
            _ = resolved.send(names.await.into_iter().map(|(_, address)| address).collect()).await;
        });
    }

    fn dial(&mut self, address: Multiaddr, proving: bool) {
        let address: Multiaddr = address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect();
        if discovery::dns_name(&address).is_some() {
            if self.resolving < ASKED_MAX {
                self.resolve(async move {
                    let found = discovery::resolve_all(&address).await.unwrap_or_default();
                    found.into_iter().map(|address| (None, address)).collect()
                });
            }
            return;
        }
        if self.dialled.len() >= DIALS_MAX || !self.dialled.insert(address.clone()) {
            return;
        }
        let options = DialOpts::unknown_peer_id().address(address).allocate_new_port().build();
        let connection = options.connection_id();
        if self.swarm.dial(options).is_ok() {
            self.dialling.insert(connection);
            if proving {
                self.proving.insert(connection);
            }
        }
    }

    fn on_event(&mut self, event: SwarmEvent<KeyCheckEvent>) -> Option<Multiaddr> {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.remove_dial(connection_id);
                if peer_id == self.peer {
                    return Some(endpoint.get_remote_address().clone());
                }
                self.ask(peer_id);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                self.remove_dial(connection_id);
                if let DialError::LocalPeerId { address } = error
                    && *self.swarm.local_peer_id() == self.peer
                {
                    return Some(address);
                }
            }
            SwarmEvent::Behaviour(KeyCheckEvent::Mdns(mdns::Event::Discovered(found))) => {
                for (peer, address) in found {
                    self.dial(address, peer == self.peer);
                }
            }
            SwarmEvent::Behaviour(KeyCheckEvent::Sync(event)) => self.on_answer(event),
            _ => (),
        }
        None
    }

    /// Removes a dial that has ended.
    fn remove_dial(&mut self, connection: ConnectionId) {
        self.dialling.remove(&connection);
        self.proving.remove(&connection);
    }

    fn ask(&mut self, peer: PeerId) {
        if self.asked.len() < ASKED_MAX && self.asked.insert(peer) {
            let request = Request::Pull(vec![Digest::of_nothing(self.node)]);
            let id = self.swarm.behaviour_mut().sync.send_request(&peer, wire::encode(&request));
            self.unanswered.insert(id);
        }
    }

    fn on_answer(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        use request_response::{Event, Message};
        let (request, bytes) = match event {
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                (request_id, Some(response))
            }
            Event::OutboundFailure { request_id, .. } => (request_id, None),
            _ => return,
        };
        if !self.unanswered.remove(&request) {
            return;
        }
        // A peer of another cluster or version has no information about this node.
        let Some(Ok(Received::Known(Response::Pages { pages, .. }))) = bytes.as_deref().map(wire::decode)
        else {
            return;
        };
        self.first_answer.get_or_insert_with(Instant::now);
        let headers = pages.iter().filter_map(|page| running_header(page, self.node, &self.cluster));
        let addresses: Vec<Multiaddr> =
            headers.flat_map(|header| header.addresses).filter_map(|address| address.parse().ok()).collect();
        addresses.into_iter().for_each(|address| self.dial(address, true));
    }
}

/// Returns the header on a page if this node has signed it and has not left.
fn running_header(page: &Page, node: NodeId, cluster: &str) -> Option<Header> {
    let entry = page.entries.iter().find(|entry| entry.fact.key == Key::Header && entry.fact.node == node)?;
    entry.check(cluster).ok()?;
    let header = Header::decode(entry.fact.value.as_deref()?).ok()?;
    (header.presence == Presence::Running).then_some(header)
}

/// Returns the addresses of remembered peers, best first.
pub(crate) fn remembered_addresses(remembered: &[(NodeId, String)], me: NodeId) -> Vec<Multiaddr> {
    let others = remembered.iter().filter(|(id, _)| *id != me && peer_of(*id).is_some());
    // About two addresses for each peer that is asked.
    others.filter_map(|(_, address)| address.parse().ok()).take(2 * ASKED_MAX).collect()
}
