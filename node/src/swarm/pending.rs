//! [`HandshakeShares`]: limit on inbound handshakes under way, in all and for each host.
//!
//! A host that connects and sends nothing occupies a place until the handshake's timeout. Without shares
//! ([`hearsay_services::network::Shares`]) it could occupy all places, and a joining node would wait. A
//! handshake is never idle, so none is aborted to make room for another.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::IpAddr,
    sync::Arc,
    task::{Context, Poll},
};

use hearsay_services::network::{Exempt, Holder, Share, ShareRefusal, Shares};
use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, ListenFailure, NetworkBehaviour, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
    },
};

/// Why a connection was closed before its handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
enum Denied {
    #[error("this host has its share of the handshakes under way")]
    Share,
    #[error("too many handshakes are under way")]
    Full,
}

/// Behaviour that admits inbound connections by the shares of their hosts.
#[derive(Debug)]
pub struct HandshakeShares {
    shares: Arc<Shares>,
    exempt: Exempt,
    /// A share for each handshake under way.
    pending: HashMap<ConnectionId, Share>,
    denied: u64,
}

impl HandshakeShares {
    /// Creates the limit for `pending_max` handshakes.
    pub fn new(pending_max: usize, exempt: Exempt) -> Self {
        Self { shares: Shares::new(pending_max), exempt, pending: HashMap::new(), denied: 0 }
    }

    /// Returns the number of connections closed before their handshake.
    pub fn denied(&self) -> u64 {
        self.denied
    }

    fn admit(&mut self, connection: ConnectionId, from: &Multiaddr) -> Result<(), Denied> {
        let ip = from.iter().find_map(|part| match part {
            Protocol::Ip4(ip) => Some(IpAddr::from(ip)),
            Protocol::Ip6(ip) => Some(ip.into()),
            _ => None,
        });
        // A transport within this process has no address.
        let holder = ip.map_or(Holder::Exempt, |ip| self.exempt.holder(ip));
        match self.shares.take(holder, None) {
            Ok(share) => {
                self.pending.insert(connection, share);
                Ok(())
            }
            Err(refusal) => {
                self.denied += 1;
                Err(match refusal {
                    ShareRefusal::Share => Denied::Share,
                    ShareRefusal::Full => Denied::Full,
                })
            }
        }
    }
}

impl NetworkBehaviour for HandshakeShares {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: &Multiaddr,
        from: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.admit(connection, from).map_err(ConnectionDenied::new)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pending.remove(&connection);
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        // This event also comes if a later behaviour denies the connection.
        if let FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) = event {
            self.pending.remove(&connection_id);
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use libp2p::swarm::ListenError;

    use super::*;

    #[test]
    fn a_host_that_says_nothing_leaves_room_for_others_until_its_handshakes_are_given_up() {
        let mut behaviour = HandshakeShares::new(256, Exempt::default());
        let here: Multiaddr = "/ip4/10.0.0.1/tcp/7600".parse().unwrap();
        let connect = |behaviour: &mut HandshakeShares, n: usize, from: &str| {
            let from: Multiaddr = from.parse().unwrap();
            behaviour.handle_pending_inbound_connection(ConnectionId::new_unchecked(n), &here, &from).is_ok()
        };
        let silent = (0..600).filter(|n| connect(&mut behaviour, *n, "/ip4/10.0.0.2/tcp/40000")).count();
        assert_eq!((silent, behaviour.denied()), (192, 408));
        let joining = (600..620).filter(|n| connect(&mut behaviour, *n, "/ip4/10.0.0.3/tcp/40000")).count();
        assert_eq!(joining, 20);
        assert!(connect(&mut behaviour, 700, "/ip4/127.0.0.1/tcp/40000"));
        for n in 0..192 {
            let from: Multiaddr = "/ip4/10.0.0.2/tcp/40000".parse().unwrap();
            behaviour.on_swarm_event(FromSwarm::ListenFailure(ListenFailure {
                local_addr: &here,
                send_back_addr: &from,
                error: &ListenError::Aborted,
                connection_id: ConnectionId::new_unchecked(n),
                peer_id: None,
            }));
        }
        assert_eq!((behaviour.pending.len(), behaviour.shares.taken()), (21, 21));
        let peer = PeerId::random();
        let from: Multiaddr = "/ip4/10.0.0.3/tcp/40000".parse().unwrap();
        _ = behaviour.handle_established_inbound_connection(
            ConnectionId::new_unchecked(600),
            peer,
            &here,
            &from,
        );
        assert_eq!(behaviour.pending.len(), 20, "one that is established is no handshake");
    }
}
