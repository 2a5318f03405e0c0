//! mDNS, as the driver keeps it: which nodes speak it, and which of what it announces is of use.

use hearsay_protocol::io::Input;
use libp2p::{Multiaddr, PeerId};

use super::Driver;
use crate::{
    presentation,
    swarm::{self, Family, node_of},
};

/// Nodes that mDNS keeps, at most. It keeps each for the time in its announcement, and walks over all of them at each poll.
pub(super) const ANNOUNCED_MAX: usize = 1024;

impl Driver {
    /// Turns mDNS on or off: few nodes of a large cluster speak it. A flood of announcements restarts it.
    pub(super) fn keep_mdns(&mut self) {
        let mdns = self.mdns_wanted && self.core.speaks_mdns();
        let behaviour = self.swarm.behaviour();
        let announced = [&behaviour.mdns, &behaviour.mdns6]
            .map(|mdns| mdns.as_ref().map_or(0, |mdns| mdns.discovered_nodes().len()));
        let flooded = announced.into_iter().any(|announced| announced > ANNOUNCED_MAX);
        if mdns != self.mdns_on || flooded {
            self.mdns_on = mdns;
            self.mdns_floods += u64::from(flooded);
            self.heard.clear();
            let id = *self.swarm.local_peer_id();
            let listening: Vec<Multiaddr> = self.swarm.listeners().cloned().collect();
            let behaviour = self.swarm.behaviour_mut();
            behaviour.mdns = swarm::speak_mdns(mdns, Family::Ipv4, id, &listening);
            behaviour.mdns6 = swarm::speak_mdns(mdns, Family::Ipv6, id, &listening);
        }
    }

    /// Nodes that multicast announced.
    pub(super) fn on_discovered(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        for (peer, address) in found {
            // An IPv6 link-local address cannot be dialled: it does not say by which interface.
            let is_useless = presentation::ip_of(&address).is_some_and(|ip| ip.is_ipv6())
                && presentation::is_link_local(&address);
            if let Some(node) = node_of(peer).filter(|_| !is_useless) {
                self.hear_of(node, &address);
                self.feed(Input::Hint(Some(node), address.to_string()));
            }
        }
    }
}
