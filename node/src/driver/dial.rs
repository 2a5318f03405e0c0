//! Dialling: names into numbers, one address after another, and what a failure proves.
//!
//! A member may list an address that means something else where this node stands (a container's bridge is 172.17.0.1 on every host), so
//! somebody else answering there proves nothing about it while it lists others: those are dialled again without that one. And a connection
//! that was taken and dropped is tried once more: the port of a process that was dying refuses then, and one that is merely overloaded may
//! not be reported for gone.

use std::collections::{BTreeMap, BTreeSet};

use hearsay_protocol::{NodeId, io::Input};
use libp2p::{
    Multiaddr, PeerId,
    core::ConnectedPoint,
    multiaddr::Protocol,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use tokio::sync::{mpsc, oneshot};

use super::{Driver, outsiders::Contact};
use crate::{
    seek,
    swarm::{Proof, dial_problem, is_own_shortage, node_of, peer_of, proof},
};

/// Names being resolved at the same time; a dial beyond it is made when the core asks again.
const RESOLVING_MAX: usize = 64;
/// Addresses of strangers that are dialled for one name. A name of a whole cluster has many, and one that answers is enough.
const STRANGERS_MAX: usize = 8;
/// Addresses remembered to have been reached, or to be what `--join` names. Beyond it they are forgotten, and dialled once too often.
const REMEMBERED_MAX: usize = 1024;

/// Whom to dial where.
type Resolved = (Option<NodeId>, Vec<Multiaddr>);

/// Dials under way, and what came of earlier ones.
pub(super) struct Dials {
    /// Addresses of members that are known by name, on their way back from the resolver.
    resolving: (mpsc::Sender<Resolved>, mpsc::Receiver<Resolved>),
    /// The addresses at which a peer is being dialled, and whether for the second time, because it dropped the first connection.
    under_way: BTreeMap<PeerId, (Vec<Multiaddr>, bool)>,
    /// The addresses at which strangers are being dialled. Two connections to one would have to be closed again.
    strangers: BTreeMap<ConnectionId, Multiaddr>,
    /// Addresses at which somebody was reached since this node was last alone.
    reached: BTreeSet<Multiaddr>,
    /// What `--join` names: where it fails, somebody wants to know.
    wanted: BTreeSet<Multiaddr>,
}

impl Default for Dials {
    fn default() -> Self {
        Self {
            resolving: mpsc::channel(RESOLVING_MAX),
            under_way: BTreeMap::new(),
            strangers: BTreeMap::new(),
            reached: BTreeSet::new(),
            wanted: BTreeSet::new(),
        }
    }
}

impl Dials {
    /// The next name that became numbers.
    pub(super) async fn resolved(&mut self) -> Option<Resolved> {
        self.resolving.1.recv().await
    }

    /// A connection opened.
    pub(super) fn opened(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        self.under_way.remove(&peer);
        self.strangers.remove(&connection);
        if let ConnectedPoint::Dialer { address, .. } = endpoint {
            remember(&mut self.reached, bare(address));
        }
    }

    /// The last connection closed: everything is to be tried again.
    pub(super) fn alone(&mut self) {
        self.reached.clear();
    }
}

fn remember(set: &mut BTreeSet<Multiaddr>, address: Multiaddr) {
    if set.len() >= REMEMBERED_MAX {
        set.clear();
    }
    set.insert(address);
}

/// An address without the peer that is expected there.
fn bare(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}

impl Driver {
    /// Hints at what `--join` names, unless somebody there was reached, or is a member.
    pub(super) fn join(&mut self, addresses: Vec<(Option<NodeId>, Multiaddr)>, tell: oneshot::Sender<bool>) {
        let own: BTreeSet<Multiaddr> = self.swarm.listeners().cloned().collect();
        let me = self.swarm.local_peer_id();
        let members: BTreeSet<String> = self.view.read(|table| {
            let others = table.members().filter(|m| m.state.is_present() && peer_of(m.id) != Some(*me));
            others.flat_map(|member| member.addresses.iter().cloned()).collect()
        });
        let known = |address: &Multiaddr| {
            self.dials.reached.contains(address) || members.contains(&address.to_string())
        };
        let joined = addresses.iter().any(|(_, address)| known(address));
        if !joined {
            for (peer, address) in addresses.into_iter().filter(|(_, address)| !own.contains(address)) {
                remember(&mut self.dials.wanted, address.clone());
                self.feed(Input::Hint(peer, address.to_string()));
            }
        }
        // Nobody may wait for it any more.
        _ = tell.send(joined);
    }

    pub(super) fn dial(&mut self, peer: Option<NodeId>, addresses: Vec<String>) {
        let addresses: Vec<Multiaddr> = addresses.iter().filter_map(|a| a.parse().ok()).collect();
        let (named, numbered): (Vec<_>, Vec<_>) =
            addresses.into_iter().partition(|a| seek::dns_name(a).is_some());
        if named.is_empty() {
            return self.dial_now(peer, numbered);
        }
        let Ok(permit) = self.dials.resolving.0.clone().try_reserve_owned() else { return };
        tokio::spawn(async move {
            let mut addresses = numbered;
            for address in &named {
                // An unknown name is an address less.
                addresses.extend(seek::resolve_all(address).await.unwrap_or_default());
            }
            permit.send((peer, addresses));
        });
    }

    pub(super) fn dial_now(&mut self, peer: Option<NodeId>, addresses: Vec<Multiaddr>) {
        match peer.map(|peer| (peer, peer_of(peer))) {
            // A member whose addresses make no sense cannot be dialled, which is not evidence of anything.
            Some((peer, _)) if addresses.is_empty() => self.feed(Input::DialFailed { peer, refused: false }),
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
                    if self.begin(options) {
                        self.dials.strangers.insert(connection, address);
                    }
                }
            }
        }
    }

    /// `again`: because it dropped the connection that was made first.
    fn dial_peer(&mut self, id: PeerId, addresses: Vec<Multiaddr>, again: bool) -> bool {
        if addresses.is_empty() {
            return false;
        }
        let options = DialOpts::peer_id(id).condition(PeerCondition::DisconnectedAndNotDialing);
        let begun = self.begin(options.addresses(addresses.clone()).allocate_new_port().build());
        if begun {
            self.dials.under_way.insert(id, (addresses, again));
        }
        begun
    }

    /// What it comes to is told by an event, except that it was not made at all.
    fn begin(&mut self, options: DialOpts) -> bool {
        let begun = self.swarm.dial(options);
        if let Err(error) = &begun {
            tracing::debug!(%error, "dial");
        }
        begun.is_ok()
    }

    pub(super) fn on_dial_failed(
        &mut self,
        peer: Option<PeerId>,
        connection: ConnectionId,
        error: &DialError,
    ) {
        if let Some(address) = self.dials.strangers.remove(&connection) {
            self.tell_of_stranger(&address, error);
            if self.dials.wanted.contains(&address) {
                self.note_unreached(Contact::Named(address.clone()), &address, error);
            }
        }
        let Some(peer) = peer else { return };
        // A dial that was not made proves nothing.
        if matches!(
            error,
            DialError::DialPeerConditionFalse(_) | DialError::Aborted | DialError::Denied { .. }
        ) || is_own_shortage(error)
        {
            return;
        }
        let (mut addresses, again) = self.dials.under_way.remove(&peer).unwrap_or_default();
        let proof = proof(error);
        let under_way = match error {
            DialError::WrongPeerId { address, .. } => {
                let wrong = bare(address);
                addresses.retain(|address| bare(address) != wrong);
                self.dial_peer(peer, addresses, again)
            }
            _ => proof == Proof::Dropped && !again && self.dial_peer(peer, addresses, true),
        };
        if under_way {
            return;
        }
        if let Some(peer) = node_of(peer) {
            if let Some(address) = self.heard.get(&peer).cloned() {
                self.note_unreached(Contact::Announced(peer), &address, error);
            }
            self.feed(Input::DialFailed { peer, refused: proof == Proof::Absent });
        }
    }

    /// Nobody in particular was dialled. If the user named the address, the user is told.
    fn tell_of_stranger(&self, address: &Multiaddr, error: &DialError) {
        if !self.dials.wanted.contains(address) {
            return;
        }
        // It was this node that was named.
        if matches!(error, DialError::LocalPeerId { .. } | DialError::Aborted) {
            return;
        }
        let problem = dial_problem(error);
        tracing::warn!(
            join = %address,
            problem,
            "cannot reach what --join names; trying again. Is it the swarm's port (7600) and not HTTP's, is a firewall between, \
             do both have the same --key-file?"
        );
    }
}
