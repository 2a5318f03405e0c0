//! The network around the node: nodes that mDNS announces, and nodes that cannot be talked to.

use std::{collections::BTreeSet, net::IpAddr, time::Instant};

use hearsay_protocol::{NodeId, io::Input};
use libp2p::{
    Multiaddr, PeerId,
    swarm::{DialError, ListenError},
};

use super::{
    Driver, HEARD_MAX,
    multicast::ANNOUNCED_MAX,
    outsiders::{Contact, Outsider, Reason, ip_of},
};
use crate::swarm::{self, Failure, node_of};

/// Characters kept of the name that a stranger gives its cluster.
const CLUSTER_CHARS_MAX: usize = 128;

impl Driver {
    /// mDNS announces a node at an address.
    pub(super) fn hear_of(&mut self, node: NodeId, address: &Multiaddr) {
        if self.heard.len() < ANNOUNCED_MAX || self.heard.contains_key(&node) {
            self.heard.insert(node, address.clone());
        }
    }

    /// mDNS has not heard of it there for as long as it said that it would be there.
    pub(super) fn hear_no_more_of(&mut self, node: NodeId, address: &Multiaddr) {
        // It may be announced at another address as well.
        if self.heard.get(&node) == Some(address) {
            self.heard.remove(&node);
        }
    }

    /// A node that was announced or named was dialled in vain. A member that fails is the core's business.
    pub(super) fn note_unreached(&mut self, contact: Contact, address: &Multiaddr, error: &DialError) {
        let failure = swarm::failure(error);
        tracing::debug!(%address, ?failure, ?error, "a node that was announced or named is not reached");
        if failure == Some(Failure::Handshake) {
            self.handshakes_failed += 1;
        }
        let is_member = |id: &NodeId| self.core.concluded(*id).is_some();
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

    /// Something connected and failed in the handshake. Members restart in the middle of one; other hosts do not belong to this cluster.
    pub(super) fn on_handshake_failed(&mut self, from: &Multiaddr, error: &ListenError) {
        if !matches!(error, ListenError::Transport(_)) {
            return;
        }
        self.handshakes_failed += 1;
        let Some(ip) = ip_of(from) else { return };
        // It is dialled as well, and that says more: its id, and its port.
        if self.heard.values().any(|address| ip_of(address) == Some(ip)) {
            return;
        }
        let of_member = |address: &String| address.parse().is_ok_and(|address| ip_of(&address) == Some(ip));
        let is_members =
            self.view.read(|table| table.members().any(|member| member.addresses.iter().any(of_member)));
        if !is_members && !ip.is_loopback() {
            self.note_outsider(Contact::Stray(ip), from, Reason::AnotherKey);
        }
    }

    /// A peer has said that it belongs to another cluster.
    pub(super) fn note_other_cluster(&mut self, peer: PeerId, protocol: &str) {
        let (Some(node), Some(cluster)) =
            (node_of(peer), protocol.strip_prefix(&swarm::identify_protocol("")))
        else {
            return;
        };
        let cluster = cluster.chars().take(CLUSTER_CHARS_MAX).collect();
        let there = self.connected.get(&peer).map(|first| first.there.clone());
        if let Some(address) = self.heard.get(&node).cloned().or(there) {
            // One that only connected is no longer there once it has been parted from.
            let contact = match self.heard.contains_key(&node) {
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

    /// Tries announced nodes again that could not be talked to, and tells what the network around this node looks like.
    pub(super) fn keep_outsiders(&mut self, now: Instant) {
        let heard = &self.heard;
        for (node, address) in self.outsiders.tidy(now, |node| heard.contains_key(&node)) {
            self.feed(Input::Hint(Some(node), address.to_string()));
        }
        let own: BTreeSet<IpAddr> = self.swarm.listeners().filter_map(ip_of).collect();
        let is_other = |ip: &IpAddr| !own.contains(ip) && !ip.is_loopback();
        let heard: BTreeSet<IpAddr> =
            self.heard.values().filter_map(ip_of).filter(is_other).take(HEARD_MAX).collect();
        let (mdns, outsiders) = (self.mdns_on, self.outsiders.list());
        self.neighbourhood.send_if_modified(|told| {
            let changed = told.mdns != mdns || told.heard != heard || told.outsiders != outsiders;
            (told.mdns, told.heard, told.outsiders) = (mdns, heard, outsiders);
            changed
        });
    }
}
