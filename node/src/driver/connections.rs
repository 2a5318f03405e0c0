//! Part of [`Driver`]: handles opened and closed connections to peers, closes stale ones and those to other
//! clusters, and updates the addresses that this node publishes.

use std::time::{Duration, Instant};

use hearsay_protocol::Input;
use libp2p::{Multiaddr, PeerId, core::ConnectedPoint};

use super::state::{Driver, PeerConnection};
use crate::{
    presentation,
    swarm::{self, node_of},
    system::interfaces,
};

/// Age of a peer's first connection up to which a second one in the other direction is a crossing dial: both
/// nodes dialled at once. An older first connection is one that the peer has lost without this node noticing.
const CROSSING: Duration = Duration::from_secs(2);
/// Time after which all connections to a restarted peer, or to two processes under one key, are closed. Until
/// then messages are received on all of them.
const HEAR_BOTH: Duration = Duration::from_secs(1);
/// How long the connection to a node of another cluster stays open after this node has recognised the other
/// cluster. The peer must recognise it, too: identify runs in both directions, and the peer's may be slower.
/// Streams and topics carry the cluster's name, so nothing else is exchanged.
const HEAR_OTHER_CLUSTER: Duration = Duration::from_secs(1);

impl Driver {
    /// Handles a new connection to a peer, which has `connections` connections now.
    pub(super) fn on_established(&mut self, peer: PeerId, endpoint: &ConnectedPoint, connections: u32) {
        let Some(node) = node_of(peer) else {
            _ = self.swarm.disconnect_peer_id(peer);
            return;
        };
        let is_dialled = endpoint.is_dialer();
        let remote = endpoint.get_remote_address();
        if let Some(ip) = presentation::ip_of(remote) {
            self.view.set_connected(node, ip);
        }
        if connections == 1 {
            let local = match endpoint {
                ConnectedPoint::Listener { local_addr, .. } => Some(local_addr.clone()),
                ConnectedPoint::Dialer { .. } => None,
            };
            let (since, remote) = (Instant::now(), remote.clone());
            self.connected.insert(peer, PeerConnection { since, is_dialled, local, remote, process: None });
            self.publish_neighbours();
            self.replication.journals.set_connected(node, true);
            return self.handle_input(Input::Connected(node));
        }
        let is_crossing = |first: &PeerConnection| {
            connections == 2 && first.is_dialled != is_dialled && first.since.elapsed() <= CROSSING
        };
        if !self.connected.get(&peer).is_some_and(is_crossing) {
            self.reconnect(peer);
        }
    }

    /// Handles the end of the last connection to a peer.
    pub(super) fn on_disconnected(&mut self, peer: PeerId) {
        self.connected.remove(&peer);
        self.peer_clocks.remove(peer);
        self.disconnect_at.remove(&peer);
        self.publish_neighbours();
        if let Some(node) = node_of(peer) {
            self.replication.journals.set_connected(node, false);
            self.handle_input(Input::Disconnected(node));
        }
    }

    /// Handles identify's message, which names the peer's process.
    pub(super) fn on_identified(&mut self, peer: PeerId, process: &str) {
        let Some(first) = self.connected.get_mut(&peer) else { return };
        if let Some(node) = node_of(peer) {
            self.outsiders.remove_reached(node, first.is_dialled.then_some(&first.remote));
        }
        if first.process.get_or_insert_with(|| process.to_owned()) != process {
            self.reconnect(peer);
        }
    }

    /// Closes all connections to a peer soon; the core then dials at once. gossipsub sends its subscriptions
    /// only on the first connection to a peer. So a restarted peer, or a second process under its key, would
    /// never receive them.
    fn reconnect(&mut self, peer: PeerId) {
        let at = Instant::now() + HEAR_BOTH;
        self.disconnect_at.entry(peer).or_insert(at);
        self.next_housekeeping = self.next_housekeeping.min(at);
    }

    /// Closes the connections from an address that this host has lost, which TCP would notice minutes later.
    /// The local address of dialled connections is unknown, so all dialled connections of the address's
    /// family are closed. Opening them again costs a round trip.
    pub(super) fn disconnect_lost_address(&mut self, address: &Multiaddr) {
        if swarm::is_loopback(address) || presentation::is_link_local(address) {
            return;
        }
        let is_ipv6 = |address: &Multiaddr| presentation::ip_of(address).map(|ip| ip.is_ipv6());
        let is_lost = |first: &PeerConnection| match &first.local {
            Some(local) => local == address,
            None => is_ipv6(&first.remote) == is_ipv6(address),
        };
        let lost: Vec<PeerId> =
            self.connected.iter().filter(|(_, first)| is_lost(first)).map(|(peer, _)| *peer).collect();
        for peer in lost {
            _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    /// Publishes which nodes this node is connected to.
    fn publish_neighbours(&mut self) {
        if self.connected.is_empty() {
            self.dials.forget_reached();
        }
        let neighbours = self.connected.keys().copied().filter_map(node_of).collect();
        self.neighbourhood.send_modify(|neighbourhood| neighbourhood.neighbours = neighbours);
    }

    /// States the node's current addresses in its header and in every instance.
    pub(super) fn present_addresses(&mut self) {
        let listening: Vec<Multiaddr> = self.swarm.listeners().cloned().collect();
        self.view.set_subnets(interfaces::subnets());
        for command in self.presentation.at(&listening, &interfaces::addresses()) {
            self.handle_input(Input::Command(command));
        }
    }

    /// Handles identify's message of a peer of another cluster: notes the peer, and blocks it after it had
    /// time to recognise this cluster as another one.
    pub(super) fn on_other_cluster(&mut self, peer: PeerId, protocol: &str) {
        if self.block_at.contains_key(&peer) {
            return;
        }
        self.strangers += 1;
        tracing::debug!(%peer, protocol = protocol.escape_debug().to_string(), "disconnecting from a node of another cluster");
        self.note_other_cluster(peer, protocol);
        let at = Instant::now() + HEAR_OTHER_CLUSTER;
        self.block_at.insert(peer, at);
        self.next_housekeeping = self.next_housekeeping.min(at);
    }
}
