//! Opens listening ports (a given one, or the first free one of a ladder), and claims swarm ports.
//!
//! Without a configured port, a node takes the first free port of a fixed range (the ladder; each port is a
//! rung) that starts at the default. Other nodes of this host are looked for on neighbouring rungs.
//!
//! libp2p binds with `SO_REUSEPORT`. So two nodes of one user that start at the same moment could bind the
//! same port without an error, and the kernel would distribute connections among them. To prevent this, a
//! swarm port is claimed first. The claim is an abstract Unix socket named after the port: it has the same
//! scope (the network namespace) and ends with the process. Ports that other programs hold are detected by an
//! ordinary bind, without `SO_REUSEPORT`.
//!
//! Any user can bind any abstract name. So a claim counts only if the kernel reports this node's user
//! (`SO_PEERCRED`, unix(7)); only sockets of the same user share a port. Names that other users hold are
//! skipped. If another user holds all [`CLAIMS_MAX`] names, the node still starts; only the protection
//! between two nodes that start at the same moment is lost. A lock file would need a directory shared by all
//! containers of a network namespace.
//!
//! `[::]` is every address of the host, of both families. HTTP accepts both on one socket (RFC 3493, section
//! 5.3); libp2p restricts its IPv6 sockets to IPv6 and listens twice. A port is free only if it is free for
//! both. On a host without IPv6, `[::]` is `0.0.0.0`.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr as UnixAddress, UnixListener},
        },
    },
    path::Path,
    time::Duration,
};

use libp2p::{Multiaddr, multiaddr::Protocol};
use rustix::{net::sockopt::socket_peercred, process::geteuid};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::{LADDER_RUNGS, Listen, SWARM_PORT};

/// Number of rungs below this node's that are dialled at the start. One neighbour is enough, and other
/// programs may have some of the ports.
const RUNGS_BELOW: u16 = 3;
/// Maximum number of connections that wait to be accepted: the kernel's default bound since Linux 5.4.
const BACKLOG: i32 = 4096;
/// Number of rungs above this node's that are dialled. Nodes may listen there because this node's rung was
/// taken when they started.
const RUNGS_ABOVE: u16 = 2;

/// Why no port could be opened.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Another process has the configured port.
    #[error(
        "--{option} {address}: the port is taken{}. Choose another one, or leave --{option} out to get the next free one",
        by(*holder)
    )]
    Taken {
        /// The option that names the port.
        option: &'static str,
        /// The configured address.
        address: SocketAddr,
        /// The process that has the port, as far as the kernel reports it.
        holder: Option<Holder>,
    },
    /// All ports of the ladder are in use.
    #[error("--{option}: all ports from {from} on are taken; name a free one")]
    NoneFree {
        /// The option whose default is a ladder.
        option: &'static str,
        /// The first rung.
        from: SocketAddr,
    },
    /// The system refused to listen at the address.
    #[error("--{option} {address}: {source}")]
    Unusable {
        /// The option.
        option: &'static str,
        /// The configured address.
        address: SocketAddr,
        /// The error of the system.
        source: io::Error,
    },
}

/// A claimed swarm port. The claim ends when this value is dropped.
#[derive(Debug)]
pub struct SwarmPort {
    /// The address at which to listen.
    pub address: SocketAddr,
    _claim: Option<UnixListener>,
}

impl SwarmPort {
    /// Returns the addresses at which the swarm listens: one for each family.
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

/// Binds a listener. `[::]` accepts IPv4 as well, regardless of `net.ipv6.bindv6only`.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let is_everywhere = address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match bind_at(address, is_everywhere) {
        Err(error) if is_everywhere && lacks_ipv6(&error) => {
            bind_at((Ipv4Addr::UNSPECIFIED, address.port()).into(), false)
        }
        bound => bound,
    }
}

/// Binds with a long queue. One host can fill the standard library's queue of 128 connections between two
/// accepts.
fn bind_at(address: SocketAddr, both_families: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if both_families {
        socket.set_only_v6(false)?;
    }
    // As the standard library does: a port with closing connections (TIME_WAIT) is free.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Binds a datagram socket. `[::]` receives IPv4 as well, regardless of `net.ipv6.bindv6only`.
fn bind_datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Whether an error means that the host has no IPv6: it is missing in the kernel, or disabled on all
/// interfaces.
fn lacks_ipv6(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT) || error.kind() == io::ErrorKind::AddrNotAvailable
}

/// Tries the candidates in order until `bind` succeeds.
fn bind_first_free<T>(
    option: &'static str,
    listen: Listen,
    bind: impl Fn(SocketAddr) -> Result<T, BindError>,
) -> Result<T, PortError> {
    for address in listen.candidates() {
        match bind(address).map_err(|error| error.with_holder(address.port())) {
            Ok(bound) => return Ok(bound),
            Err(BindError::Taken(holder)) => {
                if let Listen::Exactly(address) = listen {
                    return Err(PortError::Taken { option, address, holder });
                }
            }
            Err(BindError::Other(source)) => return Err(PortError::Unusable { option, address, source }),
        }
    }
    let (Listen::Exactly(from) | Listen::Ladder(from)) = listen;
    Err(PortError::NoneFree { option, from })
}

/// Opens a listener.
///
/// # Errors
/// See [`PortError`].
pub fn listen(option: &'static str, listen: Listen) -> Result<TcpListener, PortError> {
    bind_first_free(option, listen, |address| {
        let listener = bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    })
}

/// Opens the sockets of DNS: a datagram socket and a listener at one address.
///
/// # Errors
/// See [`PortError`].
pub fn listen_dns(listen: Listen) -> Result<DnsSockets, PortError> {
    bind_first_free("dns", listen, |address| {
        let tcp = bind(address)?;
        // At the listener's address: the system may have chosen the port, and IPv4 on a host without IPv6.
        let udp = bind_datagrams(tcp.local_addr()?)?;
        tcp.set_nonblocking(true)?;
        udp.set_nonblocking(true)?;
        Ok(DnsSockets { udp, tcp })
    })
}

/// The sockets of DNS, at one address.
#[derive(Debug)]
pub struct DnsSockets {
    /// For datagrams.
    pub udp: UdpSocket,
    /// For connections.
    pub tcp: TcpListener,
}

/// Why one port could not be bound.
enum BindError {
    Taken(Option<Holder>),
    Other(io::Error),
}

impl From<io::Error> for BindError {
    fn from(error: io::Error) -> Self {
        Self::Other(error)
    }
}

impl BindError {
    /// Adds the user whose program listens at the port, if it is in use.
    fn with_holder(self, port: u16) -> Self {
        match self {
            Self::Other(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Self::Taken(listener_of(port).map(|uid| Holder { uid, pid: None }))
            }
            error => error,
        }
    }
}

/// The process that has a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The user of the process.
    pub uid: u32,
    /// The id of the process; `None` if the kernel reports only the user.
    pub pid: Option<i32>,
}

/// Formats the holder for an error message.
fn by(holder: Option<Holder>) -> String {
    match holder {
        Some(Holder { uid, pid: Some(pid) }) => format!(" by process {pid} of user {uid}"),
        Some(Holder { uid, pid: None }) => format!(" by a program of user {uid}"),
        None => String::new(),
    }
}

/// Returns the user whose program listens at a TCP port of this network namespace.
fn listener_of(port: u16) -> Option<u32> {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    tables.iter().find_map(|table| listening_user(BufReader::new(File::open(table).ok()?), port))
}

/// Returns the user of the listener at a port in one of the kernel's tables (proc_pid_net(5)). A table lists
/// listeners first, so only they are read.
fn listening_user(table: impl BufRead, port: u16) -> Option<u32> {
    /// The state `TCP_LISTEN`.
    const LISTEN: &str = "0A";
    let lines = table.lines().skip(1).map_while(Result::ok);
    let entries = lines.map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let mut listeners = entries.take_while(|entry| entry.get(3).is_some_and(|state| state == LISTEN));
    let entry = listeners.find(|entry| {
        let hex = entry.get(1).and_then(|local| local.rsplit(':').next());
        hex.and_then(|hex| u16::from_str_radix(hex, 16).ok()) == Some(port)
    })?;
    entry.get(7)?.parse().ok()
}

/// Number of names under which a port can be claimed. The further ones are for when another user holds the
/// first.
pub const CLAIMS_MAX: u32 = 8;

/// Returns the `n`th name, counted from 0. Earlier versions use only name 0.
fn claim_name(port: u16, n: u32) -> io::Result<UnixAddress> {
    let name = if n == 0 { format!("hearsay/swarm/{port}") } else { format!("hearsay/swarm/{port}/{n}") };
    UnixAddress::from_abstract_name(name)
}

/// Claims a port among the nodes of this user; `None` if another user has all names.
fn claim(port: u16) -> Result<Option<UnixListener>, BindError> {
    let user = geteuid().as_raw();
    for n in 0..CLAIMS_MAX {
        let name = claim_name(port, n)?;
        match UnixListener::bind_addr(&name) {
            Ok(claim) => return Ok(Some(claim)),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => return Err(error.into()),
            Err(_) => match claimant(&name) {
                Some(holder) if holder.uid == user => return Err(BindError::Taken(Some(holder))),
                Some(holder) => {
                    tracing::warn!(
                        port,
                        user = holder.uid,
                        "ignoring the claim of another user to this swarm port"
                    );
                }
                None => tracing::warn!(port, "ignoring a claim to this swarm port whose user is unknown"),
            },
        }
    }
    Ok(None)
}

/// Number of attempts to find the holder of a claim. Its process may have bound the name and not listen yet.
const CLAIMANT_TRIES: u32 = 5;
/// The pause between two attempts.
const CLAIMANT_PAUSE: Duration = Duration::from_millis(2);

/// Returns the process that listens under an abstract name. `None`: no process listens, or its queue is full.
/// Neither is the case for a node.
fn claimant(name: &UnixAddress) -> Option<Holder> {
    let name =
        SockAddr::unix(Path::new(OsStr::from_bytes(&[b"\0", name.as_abstract_name()?].concat()))).ok()?;
    for _ in 0..CLAIMANT_TRIES {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).ok()?;
        // A full queue must not delay the start.
        socket.set_nonblocking(true).ok()?;
        if socket.connect(&name).is_ok() {
            let found = socket_peercred(&socket).ok()?;
            let pid = Some(found.pid.as_raw_nonzero().get());
            return Some(Holder { uid: found.uid.as_raw(), pid });
        }
        std::thread::sleep(CLAIMANT_PAUSE);
    }
    None
}

/// Claims a port for the swarm.
///
/// # Errors
/// See [`PortError`].
pub fn claim_swarm(listen: Listen) -> Result<SwarmPort, PortError> {
    bind_first_free("swarm", listen, |address| {
        // The probe stays bound until the port is claimed, so that a number chosen for port 0 stays free.
        let probe = bind(address)?;
        let address = probe.local_addr()?;
        let claim = claim(address.port())?;
        Ok(SwarmPort { address, _claim: claim })
    })
}

/// Returns the addresses at which other nodes of this host may listen: the rungs around this node's. Empty if
/// this node's port is outside of the ladder.
pub fn rungs_around(mine: SocketAddr) -> Vec<Multiaddr> {
    let ladder = SWARM_PORT..=SWARM_PORT.saturating_add(LADDER_RUNGS - 1);
    if !ladder.contains(&mine.port()) {
        return Vec::new();
    }
    let ip = if mine.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { mine.ip() };
    let below = (1..=RUNGS_BELOW).map(|n| mine.port() - n);
    let above = (1..=RUNGS_ABOVE).map(|n| mine.port() + n);
    // The first rung, too: the node that started first has it.
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
    fn two_claims_of_one_port_are_told_apart_even_before_either_listens() {
        let first = claim_swarm(Listen::Exactly(loopback(0))).unwrap();
        let again = claim_swarm(Listen::Exactly(first.address)).unwrap_err();
        assert!(matches!(again, PortError::Taken { option: "swarm", .. }), "{again:?}");
        let user = geteuid().as_raw();
        let holder = format!("by process {} of user {user}", std::process::id());
        assert!(again.to_string().contains(&holder), "{again}");
        let next = claim_swarm(Listen::Ladder(first.address)).unwrap();
        assert!(next.address.port() > first.address.port());
    }

    #[test]
    fn a_port_in_use_is_an_error_if_it_was_configured_and_skipped_otherwise() {
        let taken = TcpListener::bind(loopback(0)).unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen("http", Listen::Exactly(address)).unwrap_err().to_string();
        assert!(error.contains("--http") && error.contains(&address.to_string()), "{error}");
        assert!(error.contains(&format!("by a program of user {}.", geteuid().as_raw())), "{error}");
        assert!(listen("http", Listen::Ladder(address)).is_ok());
    }

    #[test]
    fn the_user_of_a_listener_is_read_from_the_kernels_table_and_no_connection_is_taken_for_one() {
        let line = |port: &str, state: &str, user: u32| {
            format!(
                "   0: 0100007F:{port} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {user} 0 1 1\n"
            )
        };
        let table =
            ["head\n".to_owned(), line("1DB0", "0A", 7), line("1F90", "0A", 8), line("1DB1", "01", 9)];
        let user = |port| listening_user(table.concat().as_bytes(), port);
        assert_eq!((user(7600), user(8080), user(7601), user(1)), (Some(7), Some(8), None, None));
        assert_eq!(listening_user(&b"head\nnonsense\n"[..], 7600), None);
    }

    #[test]
    fn a_claim_whose_user_is_unknown_is_ignored() {
        let port = claim_swarm(Listen::Exactly(loopback(0))).unwrap().address.port();
        // The socket is bound and does not listen; no node does this.
        let bound = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        let name = format!("\0hearsay/swarm/{port}");
        bound.bind(&SockAddr::unix(Path::new(&name)).unwrap()).unwrap();
        let first = claim_swarm(Listen::Exactly(loopback(port))).unwrap();
        let again = claim_swarm(Listen::Exactly(first.address));
        assert!(matches!(again, Err(PortError::Taken { holder: Some(_), .. })), "{again:?}");
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
    fn dns_has_both_sockets_at_one_address_and_everywhere_includes_ipv4() {
        let at = |ip: IpAddr| listen_dns(Listen::Exactly(SocketAddr::new(ip, 0))).unwrap();
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::UNSPECIFIED.into()] {
            let DnsSockets { udp, tcp } = at(ip);
            assert_eq!(udp.local_addr().unwrap(), tcp.local_addr().unwrap());
            udp.set_nonblocking(false).unwrap();
            udp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let client = UdpSocket::bind(loopback(0)).unwrap();
            client.send_to(b"dns", loopback(udp.local_addr().unwrap().port())).unwrap();
            assert_eq!(udp.recv_from(&mut [0; 8]).unwrap().0, 3);
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
