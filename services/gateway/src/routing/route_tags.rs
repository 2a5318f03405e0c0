//! Route tags: the tags by which instances announce routes, in the format of Fabio:
//! `urlprefix-[host]/path [option=value …]`.
//!
//! | option | meaning |
//! | --- | --- |
//! | `strip=/path` | this prefix is stripped from the path |
//! | `host=dst` | `Host` is the instance's own authority instead of the client's |
//! | `proto=http`, `proto=h2c`, `proto=grpc` | the latter two: over HTTP/2 |
//!
//! Unknown options are ignored (Fabio has more). A `proto` that the gateway does not speak makes the tag
//! invalid.

use hearsay_protocol::WebOrigin;
use hearsay_services::http::covers;

const TAG: &str = "urlprefix-";

/// A route that a tag announces.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct RouteTag {
    /// The host of the route, in lower case and without a port; `None` for any.
    pub(crate) host: Option<String>,
    /// The prefix of the path, without a slash at the end: empty for all paths.
    pub(crate) prefix: String,
    /// The prefix that is stripped from the path.
    pub(crate) strip: Option<String>,
    /// Whether `Host` is the instance's own authority.
    pub(crate) own_host: bool,
    /// Whether the instance gets HTTP/2.
    pub(crate) http2: bool,
}

impl RouteTag {
    /// Parses a tag. `None`: it is not a route tag.
    ///
    /// # Errors
    /// What is wrong with the route.
    pub(crate) fn parse(tag: &str) -> Option<Result<Self, &'static str>> {
        tag.strip_prefix(TAG).map(Self::parse_route)
    }

    fn parse_route(text: &str) -> Result<Self, &'static str> {
        let mut words = text.split_ascii_whitespace();
        let (host, prefix) = match words.next().and_then(|text| text.find('/').map(|at| text.split_at(at))) {
            Some(parts) => parts,
            None => return Err("it has no path; write urlprefix-/path or urlprefix-host/path"),
        };
        if !is_prefix(prefix) {
            return Err(
                "its path has empty segments, dot segments, or characters that are invalid in a path",
            );
        }
        let host = host_of(host);
        if !host.is_empty() && !is_host(host) {
            return Err("its host is invalid; wildcards are not supported");
        }
        let mut route = Self {
            host: (!host.is_empty()).then(|| host.to_ascii_lowercase()),
            prefix: prefix.trim_end_matches('/').to_owned(),
            strip: None,
            own_host: false,
            http2: false,
        };
        for option in words {
            match option.split_once('=') {
                Some(("strip", path)) if is_prefix(path) => {
                    let path = path.trim_end_matches('/');
                    // Otherwise it could not be stripped from every path of the route.
                    if !covers(path, &route.prefix) {
                        return Err("strip= is not a prefix of its path");
                    }
                    route.strip = (!path.is_empty()).then(|| path.to_owned());
                }
                Some(("strip", _)) => return Err("strip= is not a path"),
                Some(("host", "dst")) => route.own_host = true,
                Some(("proto", "h2c" | "grpc")) => route.http2 = true,
                Some(("proto", "http")) => (),
                Some(("proto", _)) => return Err("proto= is none of http, h2c and grpc"),
                _ => (),
            }
        }
        Ok(route)
    }
}

/// Returns the host of an authority, without its port.
pub(crate) fn host_of(authority: &str) -> &str {
    match authority.rfind(':') {
        // A colon in brackets belongs to an IPv6 address.
        Some(at) if !authority[at..].contains(']') => &authority[..at],
        _ => authority,
    }
}

/// Whether a text can be the host of a request: a host name or an IP address, IPv6 in brackets.
fn is_host(text: &str) -> bool {
    WebOrigin::parse(&format!("http://{text}")).is_some_and(|origin| origin.port.is_none())
}

fn is_prefix(path: &str) -> bool {
    let segments = path.strip_prefix('/').unwrap_or("//");
    let segments = segments.strip_suffix('/').unwrap_or(segments);
    let is_segment = |s: &str| !matches!(s, "" | "." | "..") && s.bytes().all(is_path_byte);
    segments.is_empty() && path == "/" || segments.split('/').all(is_segment)
}

/// Whether a byte may be in a segment of a path (RFC 3986, `pchar`).
fn is_path_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(tag: &str) -> RouteTag {
        RouteTag::parse(tag).unwrap().unwrap()
    }

    #[test]
    fn tags_are_parsed_as_fabio_does() {
        let plain = route("urlprefix-/students");
        assert_eq!((plain.host.clone(), plain.prefix.as_str()), (None, "/students"));
        assert_eq!(plain, route("urlprefix-/students/"), "a slash at the end changes nothing");
        let full =
            route("urlprefix-WWW.Example.com:80/a/b strip=/a host=dst proto=h2c weight=0.5 register=x");
        assert_eq!(full.host.as_deref(), Some("www.example.com"));
        assert_eq!((full.prefix.as_str(), full.strip.as_deref()), ("/a/b", Some("/a")));
        assert!(full.own_host && full.http2);
        assert_eq!(route("urlprefix-/").prefix, "");
        assert_eq!(route("urlprefix-[::1]:80/").host.as_deref(), Some("[::1]"));
        assert_eq!(RouteTag::parse("v2"), None);
    }

    #[test]
    fn an_invalid_route_says_why() {
        for (tag, word) in [
            ("urlprefix-", "no path"),
            ("urlprefix-host", "no path"),
            ("urlprefix-:3306 proto=tcp", "no path"),
            ("urlprefix-//a", "segments"),
            ("urlprefix-/a/../b", "segments"),
            ("urlprefix-/{id}", "segments"),
            ("urlprefix-*.example.com/", "wildcards"),
            ("urlprefix-a:b:c/", "host"),
            ("urlprefix-[::1/", "host"),
            ("urlprefix-[a]/", "host"),
            ("urlprefix-/a strip=/b", "strip="),
            ("urlprefix-/a strip=b", "strip="),
            ("urlprefix-/a proto=https", "proto="),
        ] {
            let error = RouteTag::parse(tag).unwrap().unwrap_err();
            assert!(error.contains(word), "{tag}: {error}");
        }
    }
}
