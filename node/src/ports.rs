//! Ports that climb: the next free one is taken and printed, and the rungs below it are where neighbours are.
//!
//! libp2p binds with `SO_REUSEPORT`, so two nodes of one user that start at the same moment would both get the same port, without an
//! error, and the kernel would share out their visitors. So a swarm port is claimed first: by an abstract Unix socket named after
//! it, which has the same scope as the port (the network namespace) and vanishes with the process; and by a plain bind, which
//! notices every other program.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddress, UnixListener},
    },
};

use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::config::{LADDER_RUNGS, Listen, SWARM_PORT};

/// How many occupied rungs below this node's are dialled at the start: one neighbour is enough, and some may belong to others.
const RUNGS_BELOW: u16 = 3;
/// How many above: nodes that climbed past a rung which was freed since.
const RUNGS_ABOVE: u16 = 2;

/// Why there is no port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Somebody has the one that was asked for.
    #[error(
        "--{option} {address}: the port is taken. Choose another one, or leave --{option} out to get the next free one"
    )]
    Taken {
        /// The option that asked for it.
        option: &'static str,
        /// What it asked for.
        address: SocketAddr,
    },
    /// All of the ladder's ports are taken.
    #[error("--{option}: all ports from {from} on are taken; name a free one")]
    NoneFree {
        /// The option whose default is a ladder.
        option: &'static str,
        /// The first rung.
        from: SocketAddr,
    },
    /// The address is not one to listen on.
    #[error("--{option} {address}: {source}")]
    Unusable {
        /// The option.
        option: &'static str,
        /// What it asked for.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// A claimed swarm port, for as long as this lives.
#[derive(Debug)]
pub struct SwarmPort {
    /// Where to listen.
    pub address: SocketAddr,
    _claim: UnixListener,
}

/// Climbs until `bind` succeeds.
fn climb<T>(
    option: &'static str,
    listen: Listen,
    bind: impl Fn(SocketAddr) -> io::Result<T>,
) -> Result<T, PortError> {
    for address in listen.candidates() {
        match bind(address) {
            Ok(bound) => return Ok(bound),
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
                if let Listen::Exactly(address) = listen {
                    return Err(PortError::Taken { option, address });
                }
            }
            Err(source) => return Err(PortError::Unusable { option, address, source }),
        }
    }
    let (Listen::Exactly(from) | Listen::Ladder(from)) = listen;
    Err(PortError::NoneFree { option, from })
}

/// Listens where `listen` says.
///
/// # Errors
/// See [`PortError`].
pub fn listen(option: &'static str, listen: Listen) -> Result<TcpListener, PortError> {
    climb(option, listen, |address| {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })
}

/// Claims a port for the swarm.
///
/// # Errors
/// See [`PortError`].
pub fn claim_swarm(listen: Listen) -> Result<SwarmPort, PortError> {
    climb("swarm", listen, |address| {
        // Held until the claim is made, so that port 0 becomes a number that is still free.
        let probe = TcpListener::bind(address)?;
        let address = probe.local_addr()?;
        let name = UnixAddress::from_abstract_name(format!("hearsay/swarm/{}", address.port()))?;
        let claim = UnixListener::bind_addr(&name)?;
        Ok(SwarmPort { address, _claim: claim })
    })
}

/// Where other nodes on this machine may listen: the rungs around this node's own. Empty for a port outside of the ladder.
pub fn rungs_around(mine: SocketAddr) -> Vec<Multiaddr> {
    let ladder = SWARM_PORT..=SWARM_PORT.saturating_add(LADDER_RUNGS - 1);
    if !ladder.contains(&mine.port()) {
        return Vec::new();
    }
    let ip = if mine.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { mine.ip() };
    let below = (1..=RUNGS_BELOW).map(|n| mine.port() - n);
    let above = (1..=RUNGS_ABOVE).map(|n| mine.port() + n);
    // The first rung too: whoever started when the ladder was empty.
    let ports = below.chain(above).chain([SWARM_PORT]).filter(|p| ladder.contains(p) && *p != mine.port());
    let ports: BTreeSet<u16> = ports.collect();
    ports.into_iter().map(|port| Multiaddr::from(ip).with(Protocol::Tcp(port))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback(port: u16) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    #[test]
    fn two_claims_of_one_port_are_told_apart_even_before_anybody_listens() {
        let first = claim_swarm(Listen::Exactly(loopback(0))).unwrap();
        let again = claim_swarm(Listen::Exactly(first.address));
        assert!(matches!(again, Err(PortError::Taken { option: "swarm", .. })), "{again:?}");
        let next = claim_swarm(Listen::Ladder(first.address)).unwrap();
        assert!(next.address.port() > first.address.port());
    }

    #[test]
    fn a_taken_port_is_an_error_if_it_was_asked_for_and_a_rung_otherwise() {
        let taken = TcpListener::bind(loopback(0)).unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen("http", Listen::Exactly(address)).unwrap_err().to_string();
        assert!(error.contains("--http") && error.contains(&address.to_string()), "{error}");
        assert!(listen("http", Listen::Ladder(address)).is_ok());
    }

    #[test]
    fn the_rungs_around_a_node_are_those_below_and_a_few_above() {
        let ports = |port| {
            let rungs = rungs_around(loopback(port)).into_iter();
            rungs
                .map(|a| a.to_string().rsplit('/').next().unwrap().parse::<u16>().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(ports(7600), [7601, 7602]);
        assert_eq!(ports(7602), [7600, 7601, 7603, 7604]);
        assert_eq!(ports(7650), [7600, 7647, 7648, 7649, 7651, 7652]);
        assert_eq!(ports(17_600), [0u16; 0]);
    }
}
