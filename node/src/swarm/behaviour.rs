//! Which protocols a node speaks, in the order in which they see a connection: those that deny come first.

use libp2p::{
    allow_block_list::{self, AllowedPeers, BlockedPeers},
    connection_limits, identify, mdns, request_response,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};

/// The protocols of a node.
#[derive(NetworkBehaviour)]
pub struct Behaviour {
    /// `--allow`.
    pub allowed: Toggle<allow_block_list::Behaviour<AllowedPeers>>,
    /// Nodes of other clusters.
    pub blocked: allow_block_list::Behaviour<BlockedPeers>,
    /// Bounds on connections.
    pub limits: connection_limits::Behaviour,
    /// Shares of the handshakes.
    pub pending: super::pending::Behaviour,
    /// Floods.
    pub gossip: super::Gossip,
    /// Anti-entropy.
    pub sync: request_response::Behaviour<super::Bytes>,
    /// What the replicas of a journal ask of each other.
    pub journal: request_response::Behaviour<super::Bytes>,
    /// The newest outputs of checks.
    pub checks: request_response::Behaviour<super::Bytes>,
    /// Pings.
    pub pulse: super::pulse::Behaviour,
    /// Tells nodes of other clusters apart.
    pub identify: identify::Behaviour,
    /// Multicast over IPv4.
    pub mdns: Toggle<mdns::tokio::Behaviour>,
    /// Multicast over IPv6: one behaviour speaks one family.
    pub mdns6: Toggle<mdns::tokio::Behaviour>,
}

/// The protocols of the key check, which only asks.
#[derive(NetworkBehaviour)]
#[behaviour(to_swarm = "KeyCheckEvent")]
pub struct KeyCheckBehaviour {
    /// Anti-entropy.
    pub sync: request_response::Behaviour<super::Bytes>,
    /// Multicast over IPv4.
    pub mdns: Toggle<mdns::tokio::Behaviour>,
    /// Multicast over IPv6.
    pub mdns6: Toggle<mdns::tokio::Behaviour>,
}

/// What the key check hears.
#[derive(Debug)]
pub enum KeyCheckEvent {
    /// An answer, or that there is none.
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
