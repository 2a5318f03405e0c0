//! Part of [`Driver`]: dials nodes (DNS resolution, choice of addresses), and reports the evidence in failed
//! dials to the core.
//!
//! A member may list an address that belongs to another node in this node's network (a container's bridge is
//! 172.17.0.1 on every host). If another key answers there, that proves nothing about the member, and its
//! other addresses are dialled again. If a connection is accepted and dropped, the peer is dialled a second
//! time. By then the port of a dying process refuses connections. An overloaded process must not be reported
//! as gone.

use std::collections::BTreeSet;

use hearsay_protocol::{Input, NodeId};
use libp2p::{
    Multiaddr, PeerId,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::oneshot;

use super::{
    dials::{remember, without_peer},
    outsiders::Contact,
    state::Driver,
};
use crate::{
    discovery,
    swarm::{Proof, dial_problem, is_own_shortage, node_of, peer_of, proof},
};

/// Maximum number of addresses dialled for one DNS name without a known node. The name of a whole cluster has
/// many addresses, and one that answers is enough.
const STRANGERS_MAX: usize = 8;
impl Driver {
    /// Makes the core dial the addresses that `--join` names, unless one of them was reached or is a
    /// member's.
    pub(super) fn join(
        &mut self,
        addresses: Vec<(Option<NodeId>, Multiaddr)>,
        answer: oneshot::Sender<bool>,
    ) {
        let own: BTreeSet<Multiaddr> = self.swarm.listeners().cloned().collect();
        let me = self.swarm.local_peer_id();
        let members: BTreeSet<String> = self.view.read(|table| {
            let others = table.members().filter(|m| m.state.is_present() && peer_of(m.id) != Some(*me));
            others.flat_map(|member| member.addresses.iter().cloned()).collect()
        });
        let is_known = |address: &Multiaddr| {
            self.dials.reached.contains(address) || members.contains(&address.to_string())
        };
        let joined = addresses.iter().any(|(_, address)| is_known(address));
        if !joined {
            for (peer, address) in addresses.into_iter().filter(|(_, address)| !own.contains(address)) {
                remember(&mut self.dials.wanted, address.clone());
                self.handle_input(Input::Hint(peer, address.to_string()));
            }
        }
        // The caller may have stopped waiting.
        _ = answer.send(joined);
    }

    /// Dials a node at these addresses; `None`: any node there. DNS names are resolved first.
    pub(super) fn dial(&mut self, peer: Option<NodeId>, addresses: Vec<String>) {
        let addresses: Vec<Multiaddr> = addresses.iter().filter_map(|a| a.parse().ok()).collect();
        let (with_name, with_ip): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|a| discovery::dns_name(a).is_some());
        if with_name.is_empty() {
            return self.dial_resolved(peer, with_ip);
        }
        let Ok(permit) = self.dials.resolving.0.clone().try_reserve_owned() else { return };
        tokio::spawn(async move {
            let mut addresses = with_ip;
            for address in &with_name {
                // An unknown name adds no address.
                addresses.extend(discovery::resolve_all(address).await.unwrap_or_default());
            }
            permit.send((peer, addresses));
        });
    }

    /// Dials a node at these resolved addresses; `None`: any node there.
    pub(super) fn dial_resolved(&mut self, peer: Option<NodeId>, addresses: Vec<Multiaddr>) {
        match peer.map(|peer| (peer, peer_of(peer))) {
            // Without a valid address the member cannot be dialled, which is no evidence of failure.
            Some((peer, _)) if addresses.is_empty() => {
                self.handle_input(Input::DialFailed { peer, refused: false })
            }
            Some((_, Some(id))) => _ = self.dial_peer(id, addresses, false),
            Some((_, None)) => (),
            None => {
                for address in addresses.into_iter().take(STRANGERS_MAX) {
                    if self.dials.strangers.values().any(|other| *other == address) {
                        continue;
                    }
                    let options = DialOpts::unknown_peer_id().address(address.clone());
                    let options = options.allocate_new_port().build();
                    let connection = options.connection_id();
                    if self.start_dial(options) {
                        self.dials.strangers.insert(connection, address);
                    }
                }
            }
        }
    }

    /// Dials a peer. `is_retry`: the peer accepted and dropped a first connection.
    fn dial_peer(&mut self, id: PeerId, addresses: Vec<Multiaddr>, is_retry: bool) -> bool {
        if addresses.is_empty() {
            return false;
        }
        let options = DialOpts::peer_id(id).condition(PeerCondition::DisconnectedAndNotDialing);
        let begun = self.start_dial(options.addresses(addresses.clone()).allocate_new_port().build());
        if begun {
            self.dials.under_way.insert(id, (addresses, is_retry));
        }
        begun
    }

    /// Starts a dial; an event reports its result. `false`: the dial was not started.
    fn start_dial(&mut self, options: DialOpts) -> bool {
        let begun = self.swarm.dial(options);
        if let Err(error) = &begun {
            tracing::debug!(%error, "dial");
        }
        begun.is_ok()
    }

    /// Handles a failed dial: retries if the failure proves nothing, else reports it to the core.
    pub(super) fn on_dial_failed(
        &mut self,
        peer: Option<PeerId>,
        connection: ConnectionId,
        error: &DialError,
    ) {
        if let Some(address) = self.dials.strangers.remove(&connection) {
            self.warn_of_failed_join(&address, error);
            if self.dials.wanted.contains(&address) {
                self.note_unreached(Contact::Named(address.clone()), &address, error);
            }
        }
        let Some(peer) = peer else { return };
        // A dial that did not reach the network proves nothing.
        if matches!(
            error,
            DialError::DialPeerConditionFalse(_) | DialError::Aborted | DialError::Denied { .. }
        ) || is_own_shortage(error)
        {
            return;
        }
        let (mut addresses, is_retry) = self.dials.under_way.remove(&peer).unwrap_or_default();
        let proof = proof(error);
        let under_way = match error {
            DialError::WrongPeerId { address, .. } => {
                let wrong = without_peer(address);
                addresses.retain(|address| without_peer(address) != wrong);
                self.dial_peer(peer, addresses, is_retry)
            }
            _ => proof == Proof::Dropped && !is_retry && self.dial_peer(peer, addresses, true),
        };
        if under_way {
            return;
        }
        if let Some(peer) = node_of(peer) {
            if let Some(address) = self.announced.get(&peer).cloned() {
                self.note_unreached(Contact::Announced(peer), &address, error);
            }
            self.handle_input(Input::DialFailed { peer, refused: proof == Proof::Absent });
        }
    }

    /// Warns of a failed dial to an address that `--join` names.
    fn warn_of_failed_join(&self, address: &Multiaddr, error: &DialError) {
        if !self.dials.wanted.contains(address) {
            return;
        }
        // In these cases `--join` names this node itself.
        if matches!(error, DialError::LocalPeerId { .. } | DialError::Aborted) {
            return;
        }
        let problem = dial_problem(error);
        tracing::warn!(
            join = %address,
            problem,
            "cannot reach the address of --join; trying again. Is it the swarm's port (7600) and not HTTP's, is a firewall between, \
             do both have the same --key-file?"
        );
    }
}
