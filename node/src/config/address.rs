//! Types of addresses in options, and their parsing: [`Listen`], [`Advertise`], [`HostPort`] and [`Join`].

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use libp2p::Multiaddr;

/// First port of the swarm's ladder, and the default port of `--join`.
pub const SWARM_PORT: u16 = 7600;
/// Number of ports in a ladder; equal to the number of data directory slots
/// ([`crate::storage::SLOTS_MAX`]).
pub const LADDER_RUNGS: u16 = 1024;

/// Address of a listener. `[::]` is all addresses, IPv4 included; `0.0.0.0` is all IPv4 addresses. See
/// [`crate::system::ports`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listen {
    /// Exactly this address; if the port is in use, the node does not start. Port 0: chosen by the system.
    Exactly(SocketAddr),
    /// The first free port of the [`LADDER_RUNGS`] ports from this one upwards.
    Ladder(SocketAddr),
}

impl Listen {
    /// Returns the addresses to try, in order.
    pub fn candidates(self) -> impl Iterator<Item = SocketAddr> {
        let (first, rungs) = match self {
            Self::Exactly(address) => (address, 1),
            Self::Ladder(address) => (address, LADDER_RUNGS),
        };
        (0..rungs).map_while(move |rung| Some(SocketAddr::new(first.ip(), first.port().checked_add(rung)?)))
    }

    /// Parses `IP:PORT`, `:PORT` or `PORT` (with the default IP), or `IP` (a ladder from the default port).
    pub(super) fn parse(text: &str, default: SocketAddr) -> Result<Self, String> {
        if let Ok(port) = text.strip_prefix(':').unwrap_or(text).parse() {
            return Ok(Self::Exactly(SocketAddr::new(default.ip(), port)));
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Exactly(address));
        }
        if let Ok(ip) = text.trim_matches(['[', ']']).parse() {
            return Ok(Self::Ladder(SocketAddr::new(ip, default.port())));
        }
        let at_localhost = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
        match at_localhost {
            Some(port) => Ok(Self::Exactly((Ipv4Addr::LOCALHOST, port).into())),
            None => Err(format!(
                "{text:?} is not an address to listen at; give IP:PORT, :PORT, PORT or IP, such as {default}"
            )),
        }
    }
}

/// A host in an option.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Host {
    /// An IP address.
    Ip(IpAddr),
    /// A host name, in lower case.
    Name(String),
}

impl Host {
    /// Refuses addresses that other hosts cannot use: unspecified, multicast and link-local.
    fn usable_by_others(self) -> Result<Self, String> {
        match &self {
            Self::Ip(ip) if ip.is_unspecified() => Err(format!(
                "{ip} is not an address that others can reach; give one that is, or leave the option out"
            )),
            Self::Ip(ip) if ip.is_multicast() => {
                Err(format!("{ip} is a multicast address; give the address of a host"))
            }
            Self::Ip(IpAddr::V6(ip)) if ip.is_unicast_link_local() => {
                Err(format!("{ip} is link-local and not valid on other hosts; give another address"))
            }
            _ => Ok(self),
        }
    }
}

impl FromStr for Host {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text).parse() {
            return Ok(Self::Ip(ip));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        // RFC 1123, section 2.1, and underscores, as in names of containers.
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        // A last label of only digits is a mistyped IP address; no top-level domain is numeric.
        let is_number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        if name.len() <= 253 && name.split('.').all(is_label) && !is_number {
            return Ok(Self::Name(name.to_ascii_lowercase()));
        }
        Err(format!("{text:?} is neither an IP address nor a host name"))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Advertised address of the swarm (`--advertise`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Advertise {
    /// A host, and its port; `None`: the port of the swarm.
    Host(Host, Option<u16>),
    /// All current addresses of a network interface, and the port; `None`: the port of the swarm.
    Interface(String, Option<u16>),
}

impl Advertise {
    /// Parses `HOST`, `HOST:PORT`, `INTERFACE` or `INTERFACE:PORT`. `interfaces` are the interface names of
    /// this machine.
    pub(super) fn parse(text: &str, interfaces: &BTreeSet<String>) -> Result<Self, String> {
        if interfaces.contains(text) {
            return Ok(Self::Interface(text.to_owned(), None));
        }
        if let Some((name, port)) = text.rsplit_once(':')
            && interfaces.contains(name)
        {
            return Ok(Self::Interface(name.to_owned(), Some(parse_port(port)?)));
        }
        let (host, port) = host_and_port(text).map_err(|problem| {
            format!("{problem}; the network interfaces of this machine are: {}", list_interfaces(interfaces))
        })?;
        Ok(Self::Host(host.usable_by_others()?, port))
    }
}

impl fmt::Display for Advertise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = match self {
            Self::Host(host, port) => {
                write!(f, "{host}")?;
                port
            }
            Self::Interface(name, port) => {
                f.write_str(name)?;
                port
            }
        };
        port.iter().try_for_each(|port| write!(f, ":{port}"))
    }
}

/// Advertised address of HTTP (`--advertise-http`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// Its port.
    pub port: u16,
}

impl HostPort {
    /// Parses `HOST:PORT`. Refuses an interface, because it may have several addresses.
    pub(super) fn parse(text: &str, interfaces: &BTreeSet<String>) -> Result<Self, String> {
        if text.rsplit_once(':').is_some_and(|(name, _)| interfaces.contains(name))
            || interfaces.contains(text)
        {
            return Err(format!(
                "{text:?} is a network interface; give an address and a port, such as 10.0.0.1:7500"
            ));
        }
        match host_and_port(text)? {
            (host, Some(port)) => Ok(Self { host: host.usable_by_others()?, port }),
            (host, None) => Err(format!("{host} has no port; give HOST:PORT, such as {host}:7500")),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Parses `HOST` or `HOST:PORT`. An IPv6 address with a port must be in brackets.
fn host_and_port(text: &str) -> Result<(Host, Option<u16>), String> {
    let alone = match text.parse() {
        Ok(host) => return Ok((host, None)),
        Err(problem) => problem,
    };
    match text.rsplit_once(':') {
        Some((host, port)) => Ok((host.parse()?, Some(parse_port(port)?))),
        None => Err(alone),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(format!("{text:?} is not a port; give a number from 1 to 65535")),
    }
}

/// Lists interfaces, without loopback, for an error message.
pub(crate) fn list_interfaces(interfaces: &BTreeSet<String>) -> String {
    let names: Vec<&str> = interfaces.iter().map(String::as_str).filter(|name| *name != "lo").collect();
    if names.is_empty() { "none but loopback".to_owned() } else { names.join(", ") }
}

/// A node to join (`--join`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Join {
    /// A host and a port; all addresses of the host are tried.
    Host(Host, u16),
    /// Exactly this multiaddr.
    Multiaddr(Multiaddr),
}

impl FromStr for Join {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return text.parse().map(Self::Multiaddr).map_err(|error| {
                format!(
                    "{text:?} is not a multiaddr ({error}); give one such as /ip4/10.0.0.1/tcp/{SWARM_PORT}"
                )
            });
        }
        if text.contains("://") {
            return Err(format!("{text:?} is a URL; give the host and its swarm port, host:{SWARM_PORT}"));
        }
        match host_and_port(text) {
            Ok((host, port)) => Ok(Self::Host(host, port.unwrap_or(SWARM_PORT))),
            Err(_) => {
                Err(format!("{text:?} is not the address of a node; give host, host:port or a multiaddr"))
            }
        }
    }
}

impl fmt::Display for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host, port) => write!(f, "{host}:{port}"),
            Self::Multiaddr(address) => write!(f, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn listen(text: &str) -> Result<Listen, String> {
        Listen::parse(text, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 7500)))
    }

    #[test]
    fn a_port_is_understood_in_every_form_people_write() {
        for (text, expected) in [
            ("7501", "[::]:7501"),
            (":7501", "[::]:7501"),
            ("0.0.0.0:7501", "0.0.0.0:7501"),
            ("0", "[::]:0"),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("localhost:80", "127.0.0.1:80"),
        ] {
            assert_eq!(listen(text), Ok(Listen::Exactly(expected.parse().unwrap())), "{text}");
        }
        assert_eq!(listen("10.0.0.1"), Ok(Listen::Ladder("10.0.0.1:7500".parse().unwrap())));
        assert_eq!(listen("::1"), Ok(Listen::Ladder("[::1]:7500".parse().unwrap())));
        for wrong in ["", ":", "x", "70000", "1.2.3:80", "example.com:80", "-1"] {
            let error = listen(wrong).unwrap_err();
            assert!(error.contains("IP:PORT"), "{error}");
        }
    }

    #[test]
    fn a_ladder_climbs_and_an_explicit_port_stays() {
        let rungs: Vec<_> = listen("10.0.0.1").unwrap().candidates().take(2).map(|a| a.port()).collect();
        assert_eq!(rungs, [7500, 7501]);
        assert_eq!(listen("80").unwrap().candidates().count(), 1);
        let end = Listen::Ladder(SocketAddr::from(([127, 0, 0, 1], 65_534)));
        assert_eq!(end.candidates().count(), 2);
    }

    #[test]
    fn what_is_advertised_is_a_host_or_an_interface_with_or_without_a_port() {
        let interfaces = BTreeSet::from(["lo", "eth0", "eth0.100"].map(str::to_owned));
        let parse = |text: &str| Advertise::parse(text, &interfaces);
        for text in [
            "db.example",
            "db.example:17600",
            "10.0.0.1",
            "10.0.0.1:1",
            "[fd77::1]:7600",
            "eth0",
            "eth0:17600",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        assert_eq!(parse("fd77::1"), Ok(Advertise::Host("fd77::1".parse().unwrap(), None)));
        assert_eq!(parse("[::1]:7600"), Ok(Advertise::Host("::1".parse().unwrap(), Some(7600))));
        assert_eq!(parse("eth0.100:1"), Ok(Advertise::Interface("eth0.100".into(), Some(1))));
        for (wrong, part) in [
            ("0.0.0.0", "others can reach"),
            ("[::]:7600", "others can reach"),
            ("224.0.0.251", "multicast"),
            ("fe80::1", "link-local"),
            ("db:0", "from 1 to 65535"),
            ("db:x", "from 1 to 65535"),
            ("eth0:0", "from 1 to 65535"),
            ("eth1.100", "eth0, eth0.100"),
            ("http://db", "eth0"),
            ("", "eth0"),
        ] {
            let problem = parse(wrong).unwrap_err();
            assert!(problem.contains(part), "{wrong}: {problem}");
        }
    }

    #[test]
    fn http_is_advertised_with_a_host_and_a_port() {
        let interfaces = BTreeSet::from(["eth0".to_owned()]);
        let parse = |text: &str| HostPort::parse(text, &interfaces).map(|http| http.to_string());
        for text in ["db.example:17500", "10.0.0.1:80", "[fd77::1]:7500"] {
            assert_eq!(parse(text), Ok(text.to_owned()));
        }
        for (wrong, part) in [
            ("db.example", "db.example:7500"),
            ("fd77::1", "[fd77::1]:7500"),
            ("0.0.0.0:80", "others can reach"),
            ("db:0", "65535"),
            ("eth0:80", "interface"),
            ("", "host name"),
        ] {
            let problem = parse(wrong).unwrap_err();
            assert!(problem.contains(part), "{wrong}: {problem}");
        }
    }

    #[test]
    fn joining_takes_a_host_a_port_or_a_multiaddr() {
        for (text, expected) in [
            ("db", "db:7600"),
            ("DB.example.:7000", "db.example:7000"),
            ("10.0.0.1", "10.0.0.1:7600"),
            ("10.0.0.1:7601", "10.0.0.1:7601"),
            ("fe80::1", "[fe80::1]:7600"),
            ("[fe80::1]:7601", "[fe80::1]:7601"),
            ("node_1", "node_1:7600"),
            ("/ip4/10.0.0.1/tcp/7600", "/ip4/10.0.0.1/tcp/7600"),
        ] {
            assert_eq!(text.parse::<Join>().map(|j| j.to_string()), Ok(expected.to_owned()));
        }
        for wrong in ["", "a b", "http://db:7500", "db:", "db:0", "10.0.0", "/ip4/nowhere", "-x", ":7600"] {
            assert!(wrong.parse::<Join>().is_err(), "{wrong}");
        }
    }
}
