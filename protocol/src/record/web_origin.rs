//! [`WebOrigin`]: parses the scheme, host and port (the origin) of an instance's URL, and refuses a URL with
//! more than these.
//!
//! Programs build requests from this URL. A path, query or user in it would redirect them: with
//! `http://127.0.0.1:7500/v1/agent/leave?` as the URL, every request would call that path.

use std::{fmt, net::Ipv6Addr};

use super::bounds::Invalid;

/// Origin (RFC 6454). Borrows the URL from which it was parsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WebOrigin<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Host name or IP address, without brackets.
    pub host: &'a str,
    /// Port, if the URL has one.
    pub port: Option<u16>,
    text: &'a str,
}

impl<'a> WebOrigin<'a> {
    /// Splits a URL into its origin and the rest. `None`: the URL does not begin with an origin.
    pub fn split(url: &'a str) -> Option<(Self, &'a str)> {
        let (scheme, rest) = url.split_once("://")?;
        if !matches!(scheme, "http" | "https") {
            return None;
        }
        let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at_checked(end)?;
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, port) = inner.split_once(']')?;
                host.parse::<Ipv6Addr>().ok()?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !authority.starts_with('[') && (host.is_empty() || !host.bytes().all(is_of_name)) {
            return None;
        }
        let port = match port {
            // `parse` would accept a sign.
            Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => Some(port.parse().ok()?),
            Some(_) => return None,
            None => None,
        };
        let text = url.get(..scheme.len() + "://".len() + authority.len())?;
        Some((Self { scheme, host, port, text }, rest))
    }

    /// Parses a URL that is an origin and has nothing after it.
    pub fn parse(url: &'a str) -> Option<Self> {
        Self::split(url).filter(|(_, rest)| rest.is_empty()).map(|(origin, _)| origin)
    }

    /// Host and port, as the URL spells them.
    pub fn authority(&self) -> &'a str {
        self.text.get(self.scheme.len() + "://".len()..).unwrap_or_default()
    }

    /// The origin, without a trailing slash.
    pub fn as_str(&self) -> &'a str {
        self.text
    }

    /// The port of the URL, or else the default port of its scheme.
    pub fn port_or_default(&self) -> u16 {
        self.port.unwrap_or(if self.scheme == "https" { 443 } else { 80 })
    }
}

impl fmt::Display for WebOrigin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

/// Checks that an instance's URL is an origin.
pub(super) fn check_origin(url: &str) -> Result<(), Invalid> {
    if WebOrigin::parse(url).is_some() {
        return Ok(());
    }
    let problem = format!(
        "{url:?} is no origin; give scheme, host and port alone, such as http://10.0.0.1:8080 (a path belongs in meta.path)"
    );
    Err(Invalid { field: "url", problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_read_with_its_parts() {
        for (url, scheme, host, port, default) in [
            ("http://10.0.0.1:8080", "http", "10.0.0.1", Some(8080), 8080),
            ("https://db-1.example_x.", "https", "db-1.example_x.", None, 443),
            ("http://[fd77::1]", "http", "fd77::1", None, 80),
            ("http://[::1]:81", "http", "::1", Some(81), 81),
        ] {
            let origin = WebOrigin::parse(url).unwrap();
            assert_eq!((origin.scheme, origin.host, origin.port), (scheme, host, port), "{url}");
            assert_eq!((origin.port_or_default(), origin.as_str()), (default, url));
            assert_eq!(format!("{scheme}://{}", origin.authority()), url);
        }
    }

    #[test]
    fn what_follows_an_origin_is_told_apart_from_it() {
        for rest in ["/", "/v1/agent/leave?", "?x", "#x", "\\x", "/a@b"] {
            let url = format!("http://127.0.0.1:7500{rest}");
            let (origin, after) = WebOrigin::split(&url).unwrap();
            assert_eq!((origin.as_str(), after), ("http://127.0.0.1:7500", rest));
            assert!(WebOrigin::parse(&url).is_none());
            assert!(check_origin(&url).unwrap_err().problem.contains("no origin"));
        }
    }

    #[test]
    fn what_does_not_begin_with_an_origin_is_refused() {
        for url in [
            "",
            "http://",
            "http:///x",
            "10.0.0.1:80",
            "ftp://10.0.0.1",
            "HTTP://10.0.0.1",
            "http://user@10.0.0.1",
            "http://user:secret@10.0.0.1",
            "http://10.0.0.1:",
            "http://10.0.0.1:+80",
            "http://10.0.0.1:65536",
            "http://10.0.0.1:80:80",
            "http://a b",
            "http://[::1",
            "http://[::1]x",
            "http://[::1]:",
            "http://[fe80::1%eth0]",
            "http://[10.0.0.1]",
            "http://::1",
            "http://a%2fb",
            "http://ä",
        ] {
            assert!(WebOrigin::split(url).is_none(), "{url}");
        }
    }
}
