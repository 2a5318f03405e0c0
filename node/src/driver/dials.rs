//! [`Dials`]: keeps track of dials: names being resolved, peers being dialled, addresses that earlier dials
//! reached, and addresses that `--join` names.

use std::collections::{BTreeMap, BTreeSet};

use hearsay_protocol::NodeId;
use libp2p::{Multiaddr, PeerId, core::ConnectedPoint, multiaddr::Protocol, swarm::ConnectionId};
use tokio::sync::mpsc;

/// Maximum number of dials whose names are being resolved. Further dials are dropped, and the core requests
/// them again.
const RESOLVING_MAX: usize = 64;
/// Maximum number of addresses remembered as reached, or as named by `--join`. A full set is emptied, so that
/// some addresses are dialled once too often.
const REMEMBERED_MAX: usize = 1024;

/// A resolved dial: the node, if it is known, and its addresses.
pub(super) type Resolved = (Option<NodeId>, Vec<Multiaddr>);

/// Dials under way, and the results of earlier ones.
pub(super) struct Dials {
    /// Dials whose DNS names are being resolved.
    pub(super) resolving: (mpsc::Sender<Resolved>, mpsc::Receiver<Resolved>),
    /// Peers being dialled: the addresses, and whether this is the second dial because the peer dropped the
    /// first connection.
    pub(super) under_way: BTreeMap<PeerId, (Vec<Multiaddr>, bool)>,
    /// Addresses at which unknown nodes are being dialled. None is dialled twice, because the second
    /// connection would have to be closed again.
    pub(super) strangers: BTreeMap<ConnectionId, Multiaddr>,
    /// Addresses at which a node was reached since this node last had no connection.
    pub(super) reached: BTreeSet<Multiaddr>,
    /// The addresses that `--join` names; their failures are logged.
    pub(super) wanted: BTreeSet<Multiaddr>,
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
    /// Waits for the next dial whose names are resolved.
    pub(super) async fn resolved(&mut self) -> Option<Resolved> {
        self.resolving.1.recv().await
    }

    /// Records that a connection opened.
    pub(super) fn record_opened(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        endpoint: &ConnectedPoint,
    ) {
        self.under_way.remove(&peer);
        self.strangers.remove(&connection);
        if let ConnectedPoint::Dialer { address, .. } = endpoint {
            remember(&mut self.reached, without_peer(address));
        }
    }

    /// Forgets the reached addresses, so that `--join` tries all of them again.
    pub(super) fn forget_reached(&mut self) {
        self.reached.clear();
    }
}

/// Adds an address to a bounded set.
pub(super) fn remember(set: &mut BTreeSet<Multiaddr>, address: Multiaddr) {
    if set.len() >= REMEMBERED_MAX {
        set.clear();
    }
    set.insert(address);
}

/// Returns an address without its expected peer (`/p2p/…`).
pub(super) fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}
