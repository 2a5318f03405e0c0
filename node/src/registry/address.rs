//! Types of addresses in registrations and checks ([`Target`], [`HttpUrl`]), and their parsing.
//!
//! Registrations and checks share this parser, so a check can connect to every address that was accepted.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use hearsay_protocol::Invalid;
use http::{Uri, uri::PathAndQuery};
use serde::{Deserialize, Serialize};

/// The longest URL.
const URL_BYTES_MAX: usize = 2048;
/// The longest name of a host (RFC 1035, section 2.3.4).
const HOST_BYTES_MAX: usize = 253;
/// The longest label of a name.
const LABEL_BYTES_MAX: usize = 63;

/// The scheme of an instance's origin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// `http`
    #[default]
    Http,
    /// `https`
    Https,
}

impl Scheme {
    /// The port of a URL without one.
    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

/// The host of an address, without brackets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Host {
    /// An IP address.
    Ip(IpAddr),
    /// A host name, resolved at each connect.
    Name(String),
}

impl Host {
    /// Parses a host without a port: an IP address, or a host name.
    pub(super) fn parse(field: &'static str, text: &str) -> Result<Self, Invalid> {
        if let Ok(ip) = text.parse() {
            return Ok(Self::Ip(ip));
        }
        // RFC 1123, section 2.1, and underscores, as in names of containers. The final dot is the DNS root.
        let is_label = |label: &str| {
            (1..=LABEL_BYTES_MAX).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let labels = text.strip_suffix('.').unwrap_or(text);
        if text.len() > HOST_BYTES_MAX || !labels.split('.').all(is_label) {
            return Err(Invalid::new(
                field,
                format!(
                    "{text:?} is neither an IP address nor a host name of at most {HOST_BYTES_MAX} characters"
                ),
            ));
        }
        Ok(Self::Name(text.to_owned()))
    }

    /// Parses a host in front of a port: an IPv6 address is in brackets. `None`: the brackets are missing or
    /// contain something else.
    fn parse_before_port(field: &'static str, text: &str) -> Option<Result<Self, Invalid>> {
        match text.strip_prefix('[') {
            Some(inner) => {
                let ip: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
                Some(Ok(Self::Ip(ip.into())))
            }
            None => (!text.contains(':')).then(|| Self::parse(field, text)),
        }
    }

    /// Refuses an unspecified or multicast IP address.
    pub(super) fn check_single(&self, field: &'static str) -> Result<(), Invalid> {
        match self {
            Self::Ip(ip) if ip.to_canonical().is_unspecified() || ip.to_canonical().is_multicast() => Err(
                Invalid::new(field, format!("{ip} is not the address of one host; give a unicast address")),
            ),
            Self::Ip(_) | Self::Name(_) => Ok(()),
        }
    }

    /// Whether it is the loopback address or a name for it (RFC 6761, section 6.3).
    pub(super) fn is_loopback(&self) -> bool {
        match self {
            Self::Ip(ip) => ip.to_canonical().is_loopback(),
            Self::Name(name) => {
                let name = name.trim_end_matches('.').to_ascii_lowercase();
                name == "localhost" || name.ends_with(".localhost")
            }
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A host and a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub(super) host: Host,
    pub(super) port: u16,
}

impl Target {
    /// Parses `host:port`, `a.b.c.d:port` or `[v6]:port`. Surrounding spaces are ignored.
    pub(super) fn parse(field: &'static str, text: &str) -> Result<Self, Invalid> {
        match split_address(field, text)? {
            (Some(host), port) => Ok(Self { host, port }),
            (None, _) => Err(Invalid::new(field, format!("{text:?} has no host; give host:port"))),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&authority(&self.host.to_string(), self.port))
    }
}

/// Splits `host:port`. The host may be missing, as in `:8080`.
pub(super) fn split_address(field: &'static str, text: &str) -> Result<(Option<Host>, u16), Invalid> {
    let text = text.trim();
    let wrong =
        || Invalid::new(field, format!("{text:?} is not an address; give host:port, such as 127.0.0.1:8080"));
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = parse_port(field, port)?;
    if host.is_empty() {
        return Ok((None, port));
    }
    Ok((Some(Host::parse_before_port(field, host).ok_or_else(wrong)??), port))
}

fn parse_port(field: &'static str, text: &str) -> Result<u16, Invalid> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| Invalid::new(field, format!("{text:?} is not a port; give a number from 1 to 65535")))
}

/// Returns `host:port`, with brackets around an IPv6 address.
pub(super) fn authority(host: &str, port: u16) -> String {
    format!("{}:{port}", bracketed(host))
}

/// Returns the host as in a URL: an IPv6 address is in brackets.
pub(super) fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// An HTTP URL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct HttpUrl {
    pub(super) scheme: Scheme,
    pub(super) target: Target,
    /// Host and port as written.
    pub(super) authority: String,
    /// Path and query.
    pub(super) path: PathAndQuery,
}

impl HttpUrl {
    /// Path and query, unless they are `/`.
    pub(super) fn path_beyond_root(&self) -> Option<&str> {
        Some(self.path.as_str()).filter(|path| *path != "/")
    }

    /// Parses `http://host[:port][/path]`, or the same with `https`. Surrounding spaces are ignored.
    pub(super) fn parse(field: &'static str, text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        if text.len() > URL_BYTES_MAX {
            return Err(Invalid::new(
                field,
                format!("has {} bytes; at most {URL_BYTES_MAX} are allowed", text.len()),
            ));
        }
        let wrong =
            || Invalid::new(field, format!("{text:?} is not a URL; give one such as http://host:port/path"));
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().ok_or_else(wrong)?;
        if authority.as_str().contains('@') {
            let problem = "contains a user or a password, which the whole cluster could read; leave it out, or send it in a header of a check";
            return Err(Invalid::new(field, problem));
        }
        let host = Host::parse_before_port(field, authority.host()).ok_or_else(wrong)??;
        let port = match authority.as_str().strip_prefix(authority.host()).unwrap_or_default() {
            "" => scheme.default_port(),
            rest => parse_port(field, rest.strip_prefix(':').ok_or_else(wrong)?)?,
        };
        // A query directly after the authority belongs to the path `/` (RFC 9112, section 3.2.1). The `http`
        // crate leaves the path empty, and the request line would begin with the query.
        let path = match uri.path_and_query() {
            Some(path) if path.as_str().starts_with('/') => path.clone(),
            path => format!("/{}", path.map_or("", PathAndQuery::as_str)).parse().map_err(|_| wrong())?,
        };
        let authority = authority.as_str().to_owned();
        Ok(Self { scheme, target: Target { host, port }, authority, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_host_and_port() {
        for text in ["127.0.0.1:80", "[::1]:80", "localhost:80", "db_1.example.org:5432", " a:1 "] {
            assert_eq!(Target::parse("tcp", text).unwrap().to_string(), text.trim());
        }
        for text in [
            "", "a", "a:", ":80", "a:0", "a:65536", "::1:80", "[::1]", "[a]:80", "a b:80", "a/b:80", "u@h:80",
        ] {
            assert!(Target::parse("tcp", text).is_err(), "{text}");
        }
        assert_eq!(split_address("tcp", ":80"), Ok((None, 80)));
    }

    #[test]
    fn a_url_has_a_host_and_a_port_that_follows_from_its_scheme() {
        for (text, target, path) in [
            ("http://a", "a:80", "/"),
            (" https://a/b?c=d ", "a:443", "/b?c=d"),
            ("http://[::1]:8080/", "[::1]:8080", "/"),
            ("http://a?b", "a:80", "/?b"),
            ("HTTP://10.0.0.1:1", "10.0.0.1:1", "/"),
        ] {
            let url = HttpUrl::parse("url", text).unwrap();
            assert_eq!((url.target.to_string().as_str(), url.path.as_str()), (target, path), "{text}");
        }
        for text in
            ["", "/a", "a:80", "ftp://a", "http://", "http://a:0", "http://a:", "http://u@a", "http://[a]"]
        {
            assert!(HttpUrl::parse("url", text).is_err(), "{text}");
        }
    }
}
