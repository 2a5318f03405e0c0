//! The ways to write an address, each understood once.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use libp2p::Multiaddr;

/// The first rung of the swarm's ladder, and the port to join at where none is given.
pub const SWARM_PORT: u16 = 7600;
/// How many ports a ladder has. As many as there are slots for nodes on one machine ([`crate::storage::SLOTS_MAX`]).
pub const LADDER_RUNGS: u16 = 1024;

/// Where to listen. `[::]` is every address, those of IPv4 too; `0.0.0.0` is every IPv4 address. See
/// [`crate::ports`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listen {
    /// Here and nowhere else: a port that somebody asked for and that is taken is an error. Port 0 lets the system choose.
    Exactly(SocketAddr),
    /// On the first free port from here on upwards, at most [`LADDER_RUNGS`] of them.
    Ladder(SocketAddr),
}

impl Listen {
    /// The addresses to try, in this order.
    pub fn candidates(self) -> impl Iterator<Item = SocketAddr> {
        let (first, rungs) = match self {
            Self::Exactly(address) => (address, 1),
            Self::Ladder(address) => (address, LADDER_RUNGS),
        };
        (0..rungs).map_while(move |rung| Some(SocketAddr::new(first.ip(), first.port().checked_add(rung)?)))
    }

    /// Reads `IP:PORT`, `:PORT`, `PORT` (the interface stays the default's), or `IP` (the ladder, there).
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
                "{text:?} is no address to listen on; write IP:PORT, :PORT, PORT or IP, such as {default}"
            )),
        }
    }
}

/// A machine, as others can name it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Host {
    /// By its address.
    Ip(IpAddr),
    /// By its DNS name, in lower case.
    Name(String),
}

impl Host {
    /// Refuses addresses that lead every other host to itself, or nowhere.
    fn usable_by_others(self) -> Result<Self, String> {
        match &self {
            Self::Ip(ip) if ip.is_unspecified() => {
                Err(format!("{ip} is no address that others can reach; name one, or leave the option out"))
            }
            Self::Ip(ip) if ip.is_multicast() => Err(format!("{ip} is a multicast address; name a host")),
            Self::Ip(IpAddr::V6(ip)) if ip.is_unicast_link_local() => {
                Err(format!("{ip} is link-local: it means nothing on another host; name another address"))
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
        // RFC 1123, section 2.1, and underscores, which container runtimes put into names.
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        // A last label of digits alone would be a mistyped IP address: no top-level domain is one.
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

/// What `--advertise` names: where other nodes reach this one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Advertise {
    /// This host, at this port; `None` is the port at which the swarm listens.
    Host(Host, Option<u16>),
    /// Every address of this network interface, whichever it has at the time, at this port.
    Interface(String, Option<u16>),
}

impl Advertise {
    /// Reads `HOST`, `HOST:PORT`, `INTERFACE` or `INTERFACE:PORT`. `interfaces` are the names of this
    /// machine's.
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
            format!("{problem}; the network interfaces of this machine are: {}", listed(interfaces))
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

/// Where other machines reach this node's HTTP: `--advertise-http`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostPort {
    /// The host.
    pub host: Host,
    /// Its port.
    pub port: u16,
}

impl HostPort {
    /// Reads `HOST:PORT`. An interface is refused: which of its addresses leads here is for the user to say.
    pub(super) fn parse(text: &str, interfaces: &BTreeSet<String>) -> Result<Self, String> {
        if text.rsplit_once(':').is_some_and(|(name, _)| interfaces.contains(name))
            || interfaces.contains(text)
        {
            return Err(format!(
                "{text:?} names a network interface; write the address and the port, such as 10.0.0.1:7500"
            ));
        }
        match host_and_port(text)? {
            (host, Some(port)) => Ok(Self { host: host.usable_by_others()?, port }),
            (host, None) => Err(format!("{host} is without a port; write HOST:PORT, such as {host}:7500")),
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Reads `HOST` or `HOST:PORT`. An IPv6 address with a port is in brackets; without brackets it is all colons
/// and has no port.
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
        _ => Err(format!("{text:?} is no port; write a number from 1 to 65535")),
    }
}

/// The interfaces that a user may mean, as the end of a sentence.
pub(crate) fn listed(interfaces: &BTreeSet<String>) -> String {
    let names: Vec<&str> = interfaces.iter().map(String::as_str).filter(|name| *name != "lo").collect();
    if names.is_empty() { "none but loopback".to_owned() } else { names.join(", ") }
}

/// Somebody to dial.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Join {
    /// All addresses of this host, at this port.
    Host(Host, u16),
    /// Exactly this address.
    Multiaddr(Multiaddr),
}

impl FromStr for Join {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return text.parse().map(Self::Multiaddr).map_err(|error| {
                format!("{text:?} is no multiaddr such as /ip4/10.0.0.1/tcp/{SWARM_PORT}: {error}")
            });
        }
        if text.contains("://") {
            return Err(format!(
                "{text:?} is a URL; to join takes the host and its swarm port, host:{SWARM_PORT}"
            ));
        }
        match host_and_port(text) {
            Ok((host, port)) => Ok(Self::Host(host, port.unwrap_or(SWARM_PORT))),
            Err(_) => Err(format!("{text:?} is nothing to join; write host, host:port or a multiaddr")),
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
