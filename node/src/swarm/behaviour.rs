//! [`Behaviour`]: libp2p protocols of a node, in the order in which they see a connection; those that deny
//! connections come first. [`KeyCheckBehaviour`]: protocols of the check before a start that finds another
//! process with the node's key.

use libp2p::{
    allow_block_list::{self, AllowedPeers, BlockedPeers},
    connection_limits, identify, mdns, request_response,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};

use super::{codec::MessageCodec, gossip::Gossip, pending::HandshakeShares, pulse::Pulse};

/// The protocols of a node.
#[derive(NetworkBehaviour)]
pub struct Behaviour {
    /// The nodes of `--allow`.
    pub allowed: Toggle<allow_block_list::Behaviour<AllowedPeers>>,
    /// Blocked nodes of other clusters.
    pub blocked: allow_block_list::Behaviour<BlockedPeers>,
    /// Bounds on connections.
    pub limits: connection_limits::Behaviour,
    /// Handshakes under way, limited for each host.
    pub pending: HandshakeShares,
    /// Gossip.
    pub gossip: Gossip,
    /// Anti-entropy.
    pub sync: request_response::Behaviour<MessageCodec>,
    /// Requests between replicas of a topic.
    pub journal: request_response::Behaviour<MessageCodec>,
    /// Requests for check reports.
    pub checks: request_response::Behaviour<MessageCodec>,
    /// Pings.
    pub pulse: Pulse,
    /// Names the cluster and process of a peer.
    pub identify: identify::Behaviour,
    /// Multicast over IPv4.
    pub mdns: Toggle<mdns::tokio::Behaviour>,
    /// Multicast over IPv6; one behaviour handles one family.
    pub mdns6: Toggle<mdns::tokio::Behaviour>,
}

/// The protocols of the key check, which only sends requests.
#[derive(NetworkBehaviour)]
#[behaviour(to_swarm = "KeyCheckEvent")]
pub struct KeyCheckBehaviour {
    /// Anti-entropy.
    pub sync: request_response::Behaviour<MessageCodec>,
    /// Multicast over IPv4.
    pub mdns: Toggle<mdns::tokio::Behaviour>,
    /// Multicast over IPv6.
    pub mdns6: Toggle<mdns::tokio::Behaviour>,
}

/// Events of the key check.
#[derive(Debug)]
pub enum KeyCheckEvent {
    /// A response, or a failure.
    Sync(request_response::Event<Vec<u8>, Vec<u8>>),
    /// Peers that announced themselves.
    Mdns(mdns::Event),
}

impl From<request_response::Event<Vec<u8>, Vec<u8>>> for KeyCheckEvent {
    fn from(event: request_response::Event<Vec<u8>, Vec<u8>>) -> Self {
        Self::Sync(event)
    }
}

impl From<mdns::Event> for KeyCheckEvent {
    fn from(event: mdns::Event) -> Self {
        Self::Mdns(event)
    }
}
