//! Part of [`Driver`]: turns mDNS on and off, and passes announced addresses to the core.

use hearsay_protocol::Input;
use libp2p::{Multiaddr, PeerId};

use super::state::Driver;
use crate::{
    presentation,
    swarm::{self, Family, node_of},
};

/// Maximum number of nodes announced at the same time; more make mDNS restart. libp2p keeps a node for the
/// time that its announcement states, and visits all nodes at each poll.
pub(super) const ANNOUNCED_MAX: usize = 1024;

impl Driver {
    /// Turns mDNS on or off, as the core decides: in a large cluster only few nodes use it. A flood of
    /// announcements makes mDNS restart.
    pub(super) fn update_mdns(&mut self) {
        let mdns = self.mdns_wanted && self.core.uses_mdns();
        let behaviour = self.swarm.behaviour();
        let announced = [&behaviour.mdns, &behaviour.mdns6]
            .map(|mdns| mdns.as_ref().map_or(0, |mdns| mdns.discovered_nodes().len()));
        let flooded = announced.into_iter().any(|announced| announced > ANNOUNCED_MAX);
        if mdns != self.mdns_on || flooded {
            self.mdns_on = mdns;
            self.mdns_floods += u64::from(flooded);
            self.announced.clear();
            let id = *self.swarm.local_peer_id();
            let listening: Vec<Multiaddr> = self.swarm.listeners().cloned().collect();
            let behaviour = self.swarm.behaviour_mut();
            behaviour.mdns = swarm::speak_mdns(mdns, Family::Ipv4, id, &listening);
            behaviour.mdns6 = swarm::speak_mdns(mdns, Family::Ipv6, id, &listening);
        }
    }

    /// Handles new announcements.
    pub(super) fn on_discovered(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        for (peer, address) in found {
            // An IPv6 link-local address cannot be dialled: it does not name the interface.
            let is_undialable = presentation::ip_of(&address).is_some_and(|ip| ip.is_ipv6())
                && presentation::is_link_local(&address);
            if let Some(node) = node_of(peer).filter(|_| !is_undialable) {
                self.add_announced(node, &address);
                self.handle_input(Input::Hint(Some(node), address.to_string()));
            }
        }
    }
}
