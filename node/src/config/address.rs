//! The ways to write an address, each understood once.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use libp2p::Multiaddr;

use super::SWARM_PORT;

/// How many ports a ladder has. As many as there are slots for nodes on one machine ([`crate::storage::SLOTS_MAX`]).
pub const LADDER_RUNGS: u16 = 1024;

/// Where to listen.
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
        // An IPv6 address without brackets is all colons and has no port.
        if let Ok(host) = text.parse() {
            return Ok(Self::Host(host, SWARM_PORT));
        }
        let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
        match (host.parse(), port.parse()) {
            (Ok(host), Ok(port)) if port != 0 => Ok(Self::Host(host, port)),
            _ => Err(format!("{text:?} is nothing to join; write host, host:port or a multiaddr")),
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
    use super::*;

    fn listen(text: &str) -> Result<Listen, String> {
        Listen::parse(text, SocketAddr::from(([0, 0, 0, 0], 7500)))
    }

    #[test]
    fn a_port_is_understood_in_every_form_people_write() {
        for (text, expected) in [
            ("7501", "0.0.0.0:7501"),
            (":7501", "0.0.0.0:7501"),
            ("0", "0.0.0.0:0"),
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
