//! What instances announce by tags, in the form that Fabio made common: `urlprefix-[host]/path [option=value …]`.
//!
//! | option | meaning |
//! | --- | --- |
//! | `strip=/path` | this beginning is taken off the path before it is passed on |
//! | `host=dst` | the instance is asked under its own name instead of the client's |
//! | `proto=http`, `proto=h2c`, `proto=grpc` | the latter two: over HTTP/2 |
//!
//! Options that are not known here (Fabio has more) change nothing; a `proto` that the gateway does not speak makes the tag void.

use crate::prefixes::covers;

const TAG: &str = "urlprefix-";

/// One tag, understood.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Announced {
    /// The host that must be asked for, in lower case and without a port; `None` for any.
    pub host: Option<String>,
    /// The beginning of the path, without a slash at the end: empty for all paths.
    pub prefix: String,
    /// How much of the path is taken off: all of this, where the path begins with it.
    pub strip: Option<String>,
    /// Whether the instance is asked under its own name.
    pub own_host: bool,
    /// Whether the instance is asked over HTTP/2.
    pub http2: bool,
}

impl Announced {
    /// Understands a tag. `None`: it announces no prefix at all.
    ///
    /// # Errors
    /// It means to, and cannot be understood: why.
    pub fn read(tag: &str) -> Option<Result<Self, &'static str>> {
        tag.strip_prefix(TAG).map(Self::understand)
    }

    fn understand(text: &str) -> Result<Self, &'static str> {
        let mut words = text.split_ascii_whitespace();
        let (host, prefix) = match words.next().and_then(|route| route.find('/').map(|at| route.split_at(at)))
        {
            Some(route) => route,
            None => return Err("it has no path; write urlprefix-/path or urlprefix-host/path"),
        };
        if !is_prefix(prefix) {
            return Err("its path has empty segments, dots, or characters that no path has");
        }
        let host = host_of(host);
        if !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b)) {
            return Err("its host is none; wildcards are not understood");
        }
        let mut announced = Self {
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
                    // What is not part of the prefix could not be taken off every path.
                    if !covers(path, &announced.prefix) {
                        return Err("strip= is no beginning of its path");
                    }
                    announced.strip = (!path.is_empty()).then(|| path.to_owned());
                }
                Some(("strip", _)) => return Err("strip= is no path"),
                Some(("host", "dst")) => announced.own_host = true,
                Some(("proto", "h2c" | "grpc")) => announced.http2 = true,
                Some(("proto", "http")) => (),
                Some(("proto", _)) => return Err("proto= is none of http, h2c and grpc"),
                _ => (),
            }
        }
        Ok(announced)
    }
}

/// A host without its port.
pub fn host_of(authority: &str) -> &str {
    match authority.rfind(':') {
        // In brackets, colons belong to the address.
        Some(at) if !authority[at..].contains(']') => &authority[..at],
        _ => authority,
    }
}

fn is_prefix(path: &str) -> bool {
    let segments = path.strip_prefix('/').unwrap_or("//");
    let segments = segments.strip_suffix('/').unwrap_or(segments);
    let is_segment = |s: &str| !matches!(s, "" | "." | "..") && s.bytes().all(is_path_byte);
    segments.is_empty() && path == "/" || segments.split('/').all(is_segment)
}

/// RFC 3986, `pchar`.
fn is_path_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(tag: &str) -> Announced {
        Announced::read(tag).unwrap().unwrap()
    }

    #[test]
    fn tags_are_understood_as_fabio_does() {
        let plain = read("urlprefix-/students");
        assert_eq!((plain.host.clone(), plain.prefix.as_str()), (None, "/students"));
        assert_eq!(plain, read("urlprefix-/students/"), "a slash at the end changes nothing");
        let full = read("urlprefix-WWW.Example.com:80/a/b strip=/a host=dst proto=h2c weight=0.5 register=x");
        assert_eq!(full.host.as_deref(), Some("www.example.com"));
        assert_eq!((full.prefix.as_str(), full.strip.as_deref()), ("/a/b", Some("/a")));
        assert!(full.own_host && full.http2);
        assert_eq!(read("urlprefix-/").prefix, "");
        assert_eq!(read("urlprefix-[::1]:80/").host.as_deref(), Some("[::1]"));
        assert_eq!(Announced::read("v2"), None);
    }

    #[test]
    fn what_cannot_be_routed_says_why() {
        for (tag, word) in [
            ("urlprefix-", "no path"),
            ("urlprefix-host", "no path"),
            ("urlprefix-:3306 proto=tcp", "no path"),
            ("urlprefix-//a", "segments"),
            ("urlprefix-/a/../b", "segments"),
            ("urlprefix-/{id}", "segments"),
            ("urlprefix-*.example.com/", "wildcards"),
            ("urlprefix-/a strip=/b", "strip="),
            ("urlprefix-/a strip=b", "strip="),
            ("urlprefix-/a proto=https", "proto="),
        ] {
            let error = Announced::read(tag).unwrap().unwrap_err();
            assert!(error.contains(word), "{tag}: {error}");
        }
    }
}
