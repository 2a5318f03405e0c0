//! Ports that climb: the next free one is taken and printed, and the rungs below it are where neighbours are.
//!
//! libp2p binds with `SO_REUSEPORT`, so two nodes of one user that start at the same moment would both get the same port, without an
//! error, and the kernel would share out their visitors. So a swarm port is claimed first: by an abstract Unix socket named after
//! it, which has the same scope as the port (the network namespace) and vanishes with the process; and by a plain bind, which
//! notices every other program.
//!
//! `[::]` is every address of the machine, of both families: HTTP takes both on one socket (RFC 3493, section
//! 5.3), and libp2p, which restricts its IPv6 sockets to IPv6, listens twice. A port is free only if it is
//! free for both. On a machine without IPv6, `[::]` is `0.0.0.0`.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddress, UnixListener},
    },
};

use libp2p::{Multiaddr, multiaddr::Protocol};
use socket2::{Domain, Socket, Type};

use crate::config::{LADDER_RUNGS, Listen, SWARM_PORT};

/// How many occupied rungs below this node's are dialled at the start: one neighbour is enough, and some may belong to others.
const RUNGS_BELOW: u16 = 3;
/// Connections that wait to be accepted. The kernel's own default bound since Linux 5.4.
const BACKLOG: i32 = 4096;
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

impl SwarmPort {
    /// Where the swarm listens: twice for both families.
    pub fn listen_on(&self) -> Vec<Multiaddr> {
        let ips: &[IpAddr] = match self.address.ip() {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
                &[Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
            }
            ip => &[ip],
        };
        ips.iter().map(|ip| Multiaddr::from(*ip).with(Protocol::Tcp(self.address.port()))).collect()
    }
}

/// Binds a listener. `[::]` takes IPv4 as well, whatever the system's default is (`net.ipv6.bindv6only`).
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        return TcpListener::bind(address);
    }
    match bind_both(address) {
        Err(error) if lacks_ipv6(&error) => TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())),
        bound => bound,
    }
}

fn bind_both(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    // As the standard library does: a port whose last connections are still closing is free.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether a machine has no IPv6: the kernel was built or started without it, or it is disabled for all
/// interfaces.
fn lacks_ipv6(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT) || error.kind() == io::ErrorKind::AddrNotAvailable
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
        let listener = bind(address)?;
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
        let probe = bind(address)?;
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
    fn a_listener_at_every_address_takes_both_families_and_a_port_taken_by_either_is_taken() {
        let everywhere = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = listen("http", Listen::Exactly(everywhere(0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        if listener.local_addr().unwrap().is_ipv6() {
            std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
        }
        let again = listen("http", Listen::Exactly(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))));
        assert!(matches!(again, Err(PortError::Taken { .. })), "{again:?}");
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv4Addr::UNSPECIFIED.into()] {
            let taken = TcpListener::bind((ip, 0)).unwrap();
            let port = taken.local_addr().unwrap().port();
            let claim = claim_swarm(Listen::Exactly(everywhere(port)));
            assert!(matches!(claim, Err(PortError::Taken { .. })), "{ip}: {claim:?}");
        }
    }

    #[test]
    fn a_swarm_at_every_address_listens_once_for_each_family() {
        let at = |address: &str| {
            let claim = claim_swarm(Listen::Exactly(address.parse().unwrap())).unwrap();
            let port = claim.address.port();
            let listen_on = claim.listen_on().into_iter();
            listen_on.map(|a| a.to_string().replace(&port.to_string(), "PORT")).collect::<Vec<_>>()
        };
        assert_eq!(at("0.0.0.0:0"), ["/ip4/0.0.0.0/tcp/PORT"]);
        assert_eq!(at("127.0.0.1:0"), ["/ip4/127.0.0.1/tcp/PORT"]);
        let both = at("[::]:0");
        assert!(
            both == ["/ip4/0.0.0.0/tcp/PORT", "/ip6/::/tcp/PORT"] || both == ["/ip4/0.0.0.0/tcp/PORT"],
            "{both:?}"
        );
    }

    #[test]
    fn a_machine_without_ipv6_is_told_from_a_taken_port() {
        assert!(lacks_ipv6(&io::Error::from_raw_os_error(libc::EAFNOSUPPORT)));
        assert!(lacks_ipv6(&io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)));
        assert!(!lacks_ipv6(&io::Error::from_raw_os_error(libc::EADDRINUSE)));
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
