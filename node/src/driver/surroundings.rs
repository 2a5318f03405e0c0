//! Part of [`Driver`]: records the nodes that mDNS announces, and outsiders (nodes that cannot be reached, or
//! use another key or cluster). Warns of another key or cluster, dials announced outsiders again, and
//! publishes both lists.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use hearsay_protocol::{Input, NodeId};
use libp2p::{
    Multiaddr, PeerId,
    swarm::{DialError, ListenError},
};

use super::{
    multicast::ANNOUNCED_MAX,
    outsiders::{Contact, ip_of},
    state::Driver,
};
use crate::{
    driver_command::{HEARD_MAX, Outsider, Reason},
    swarm::{self, Failure, node_of},
};

/// Maximum number of characters kept of another cluster's name.
const CLUSTER_CHARS_MAX: usize = 128;

impl Driver {
    /// Records that mDNS announces a node at an address.
    pub(super) fn add_announced(&mut self, node: NodeId, address: &Multiaddr) {
        if self.announced.len() < ANNOUNCED_MAX || self.announced.contains_key(&node) {
            self.announced.insert(node, address.clone());
        }
    }

    /// Records that mDNS no longer announces a node at an address.
    pub(super) fn remove_announced(&mut self, node: NodeId, address: &Multiaddr) {
        // The node may be announced at another address as well.
        if self.announced.get(&node) == Some(address) {
            self.announced.remove(&node);
        }
    }

    /// Records a failed dial to a node that was announced or named. The core handles failures of members.
    pub(super) fn note_unreached(&mut self, contact: Contact, address: &Multiaddr, error: &DialError) {
        let failure = swarm::failure(error);
        tracing::debug!(%address, ?failure, ?error, "cannot reach a node that was announced or named");
        if failure == Some(Failure::Handshake) {
            self.handshakes_failed += 1;
        }
        let is_member = |id: &NodeId| self.core.member_state(*id).is_some();
        if matches!(&contact, Contact::Announced(id) if is_member(id)) {
            return;
        }
        let reason = match failure {
            Some(Failure::Handshake) => Reason::AnotherKey,
            Some(Failure::NoAnswer) => Reason::NoAnswer,
            None => return,
        };
        self.note_outsider(contact, address, reason);
    }

    /// Records a failed handshake of an inbound connection. A member may have restarted during the handshake;
    /// any other host may be an outsider.
    pub(super) fn on_handshake_failed(&mut self, from: &Multiaddr, error: &ListenError) {
        if !matches!(error, ListenError::Transport(_)) {
            return;
        }
        self.handshakes_failed += 1;
        let Some(ip) = ip_of(from) else { return };
        // This node dials an announced node as well, and then knows its id and port.
        if self.announced.values().any(|address| ip_of(address) == Some(ip)) {
            return;
        }
        let is_at = |address: &String| address.parse().is_ok_and(|address| ip_of(&address) == Some(ip));
        let is_member =
            self.view.read(|table| table.members().any(|member| member.addresses.iter().any(is_at)));
        if !is_member && !ip.is_loopback() {
            self.note_outsider(Contact::Stray(ip), from, Reason::AnotherKey);
        }
    }

    /// Records that a peer belongs to another cluster.
    pub(super) fn note_other_cluster(&mut self, peer: PeerId, protocol: &str) {
        let (Some(node), Some(cluster)) =
            (node_of(peer), protocol.strip_prefix(&swarm::identify_protocol("")))
        else {
            return;
        };
        let cluster = cluster.chars().take(CLUSTER_CHARS_MAX).collect();
        let remote = self.connected.get(&peer).map(|first| first.remote.clone());
        if let Some(address) = self.announced.get(&node).cloned().or(remote) {
            // A node that connected without being announced is forgotten some time after it was disconnected.
            let contact = match self.announced.contains_key(&node) {
                true => Contact::Announced(node),
                false => Contact::Named(address.clone()),
            };
            self.note_outsider(contact, &address, Reason::OtherCluster(cluster));
        }
    }

    fn note_outsider(&mut self, contact: Contact, address: &Multiaddr, reason: Reason) {
        if let Some(outsider) = self.outsiders.record_failure(Instant::now(), contact, address, reason) {
            self.warn_of(&outsider);
        }
    }

    fn warn_of(&self, Outsider { id, address, reason }: &Outsider) {
        let id = id.map(|id| id.to_string()).unwrap_or_default();
        match reason {
            Reason::OtherCluster(theirs) => {
                let (theirs, ours) = (theirs.escape_debug().to_string(), &self.cluster);
                tracing::warn!(
                    id,
                    address,
                    theirs,
                    ours,
                    "a node on this network belongs to another cluster; if it should be in this one, start both with the same --cluster"
                );
            }
            Reason::AnotherKey => tracing::warn!(
                id,
                address,
                "a node on this network uses another cluster key or none; if it should be in this cluster, give both the same --key-file"
            ),
            Reason::NoAnswer => (),
        }
    }

    /// Dials announced outsiders again, and publishes the network around this node.
    pub(super) fn update_outsiders(&mut self, now: Instant) {
        let announced = &self.announced;
        for (node, address) in self.outsiders.remove_old(now, |node| announced.contains_key(&node)) {
            self.handle_input(Input::Hint(Some(node), address.to_string()));
        }
        let own: BTreeSet<IpAddr> = self.swarm.listeners().filter_map(ip_of).collect();
        let is_other = |ip: &IpAddr| !own.contains(ip) && !ip.is_loopback();
        let heard: BTreeSet<IpAddr> =
            self.announced.values().filter_map(ip_of).filter(is_other).take(HEARD_MAX).collect();
        let (mdns, outsiders) = (self.mdns_on, self.outsiders.list());
        self.neighbourhood.send_if_modified(|last| {
            let changed = last.mdns != mdns || last.heard != heard || last.outsiders != outsiders;
            (last.mdns, last.heard, last.outsiders) = (mdns, heard, outsiders);
            changed
        });
    }
}
