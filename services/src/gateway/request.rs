//! What a request must be before it is passed on. Whatever the gateway and an instance could understand differently is refused here,
//! because the difference is what request smuggling lives on.
//!
//! hyper refuses by itself: a second, different `Content-Length`; one that is no number; a `Transfer-Encoding` that does not end in
//! `chunked`, or comes by HTTP/1.0; malformed chunks; whitespace before a colon, folded lines, control bytes; in HTTP/2, connection
//! headers and lengths that do not match. It accepts `Content-Length` beside `Transfer-Encoding` (and drops the former, so that only
//! [`super::framing`] sees it) and any encoding before `chunked`; those are refused here.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header, request::Parts, uri::PathAndQuery};

use super::{announced::host_of, counters::Reason, forward::Present};
use crate::Problem;

/// Why a request is not passed on, and how that is counted.
pub type Refusal = (Reason, Problem);

/// What was found out about a request that may be passed on.
#[derive(Debug)]
pub struct Admitted {
    /// Whom it is addressed to, with the port; `None` where HTTP/1.0 did not say.
    pub authority: Option<HeaderValue>,
    /// The protocol it wants to change to.
    pub upgrade: Option<HeaderValue>,
    /// Whether it is gRPC, which needs HTTP/2 all the way.
    pub is_grpc: bool,
}

impl Admitted {
    /// The host it is for, without the port.
    pub fn host(&self) -> &str {
        self.authority.as_ref().and_then(|a| a.to_str().ok()).map_or("", host_of)
    }
}

/// Examines the head of a request, which has these headers. `both_lengths`: it said both `Content-Length` and `Transfer-Encoding`; `via` is
/// this gateway's own name in that header.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn admit(
    head: &Parts,
    present: Present,
    has_body: bool,
    both_lengths: bool,
    via: &str,
) -> Result<Admitted, Refusal> {
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        let detail = format!("{} is not passed on by this gateway", head.method);
        return Err((Reason::Method, Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)));
    }
    check_framing(head, present, both_lengths).map_err(|detail| bad(Reason::Framing, detail))?;
    check_path(head.uri.path()).map_err(|detail| bad(Reason::Path, detail))?;
    let authority = authority(head).map_err(|detail| bad(Reason::Host, detail))?;
    if present.has(Present::VIA) && has_been_here(&head.headers, via) {
        let detail = format!(
            "this request has been here before: an instance leads back to this gateway (Via has {via})"
        );
        return Err((Reason::Loop, Problem::new(StatusCode::LOOP_DETECTED, detail)));
    }
    let is_grpc = head.version == Version::HTTP_2
        && head
            .headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let upgrade = if present.has(Present::UPGRADE) { upgrade(head, has_body) } else { None };
    Ok(Admitted { authority, upgrade, is_grpc })
}

fn bad(reason: Reason, detail: &str) -> Refusal {
    (reason, Problem::new(StatusCode::BAD_REQUEST, detail))
}

fn check_framing(head: &Parts, present: Present, both_lengths: bool) -> Result<(), &'static str> {
    if head.version >= Version::HTTP_2 || !present.has(Present::TRANSFER_ENCODING) {
        return Ok(());
    }
    let mut encodings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    match (encodings.next(), encodings.next()) {
        (None, _) => Ok(()),
        (Some(_), None) if both_lengths || head.headers.contains_key(header::CONTENT_LENGTH) => {
            Err("Content-Length and Transfer-Encoding contradict each other")
        }
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        (Some(_), None) => Err("Transfer-Encoding: only chunked is understood"),
        (Some(_), Some(_)) => Err("there is more than one Transfer-Encoding header"),
    }
}

/// A path that climbs means another thing to an instance than to the routes here; clients resolve such segments before they ask.
fn check_path(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("the target is no path");
    }
    // A glance comes first: hardly any path has a segment that begins with a dot.
    let (mut looks_dotted, mut before) = (false, 0);
    for byte in path.bytes() {
        match byte {
            b'\\' => return Err("the path contains a backslash"),
            b'%' => looks_dotted = true,
            b'.' => looks_dotted |= before == b'/',
            _ => (),
        }
        before = byte;
    }
    if looks_dotted && path.split('/').any(is_dots) {
        return Err("the path contains a segment . or ..; resolve it before asking");
    }
    Ok(())
}

/// Whether a segment is `.` or `..`, in whatever spelling, or with parameters behind it (`..;a`), which some servers take off.
fn is_dots(segment: &str) -> bool {
    let segment = if segment.contains('%') {
        Cow::Owned(segment.to_ascii_lowercase().replace("%2e", "."))
    } else {
        Cow::Borrowed(segment)
    };
    matches!(segment.split(';').next(), Some("." | ".."))
}

fn authority(head: &Parts) -> Result<Option<HeaderValue>, &'static str> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (host, None) => host,
        (_, Some(_)) => return Err("there is more than one Host header"),
    };
    if host.is_some_and(|host| !is_authority(host.as_bytes())) {
        return Err("the Host header names no host");
    }
    let Some(target) = head.uri.authority() else {
        return match host {
            Some(host) => Ok(Some(host.clone())),
            None if head.version < Version::HTTP_11 => Ok(None),
            None => Err("the Host header is missing"),
        };
    };
    let target = target.as_str();
    if !is_authority(target.as_bytes()) {
        return Err("the target names no host");
    }
    // RFC 9113, section 8.3.1. In HTTP/1.1 an absolute target outranks the header (RFC 9112, section 3.2.2).
    if head.version >= Version::HTTP_2
        && host.is_some_and(|host| !host.as_bytes().eq_ignore_ascii_case(target.as_bytes()))
    {
        return Err(":authority and Host name different hosts");
    }
    HeaderValue::from_str(target).map(Some).map_err(|_| "the target names no host")
}

fn is_authority(bytes: &[u8]) -> bool {
    let is_allowed = |b: &u8| {
        b.is_ascii_alphanumeric()
            || matches!(b, b'-' | b'.' | b'_' | b'~' | b'[' | b']' | b':' | b'%' | b'!' | b'$' | b'&' | b'\'')
            || matches!(b, b'(' | b')' | b'*' | b'+' | b';' | b'=')
    };
    !bytes.is_empty() && bytes.iter().all(is_allowed)
}

/// Whether this gateway is among those that passed it on. Pseudonyms are compared as a whole.
fn has_been_here(headers: &HeaderMap, me: &str) -> bool {
    let passed = headers.get_all(header::VIA).iter().filter_map(|value| value.to_str().ok());
    passed.flat_map(|value| value.split(',')).any(|hop| hop.split_ascii_whitespace().nth(1) == Some(me))
}

/// What the client wants to change to. Not to HTTP/2: a tunnel would then carry requests that nobody here has looked at.
fn upgrade(head: &Parts, has_body: bool) -> Option<HeaderValue> {
    if head.version != Version::HTTP_11 || has_body {
        return None;
    }
    let mut upgrades = head.headers.get_all(header::UPGRADE).iter();
    let (Some(upgrade), None) = (upgrades.next(), upgrades.next()) else { return None };
    let is_asked = tokens(&head.headers, &header::CONNECTION).any(|t| t.eq_ignore_ascii_case("upgrade"));
    let protocols = upgrade.to_str().ok()?;
    let is_http2 = |protocol: &str| {
        let name = protocol.trim().split('/').next().unwrap_or_default();
        ["h2c", "h2", "http", "tls"].iter().any(|word| name.eq_ignore_ascii_case(word))
    };
    (is_asked && !protocols.split(',').any(is_http2)).then(|| upgrade.clone())
}

/// The path and query behind what is taken off.
///
/// # Errors
/// What is left is no path.
pub fn rest_of(whole: &PathAndQuery, stripped: usize) -> Result<PathAndQuery, Refusal> {
    if stripped == 0 {
        return Ok(whole.clone());
    }
    let rest = whole.as_str().get(stripped..).ok_or_else(no_path)?;
    let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    PathAndQuery::try_from(rest).map_err(|_| no_path())
}

/// The target of the request is no path.
pub fn no_path() -> Refusal {
    bad(Reason::Path, "the target is no path")
}

/// The elements of a header that is a list of words.
pub fn tokens<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const ME: &str = "hearsay-abc";

    fn head(target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn tried(head: &Parts, has_body: bool, both_lengths: bool) -> Result<Admitted, Refusal> {
        admit(head, Present::of(&head.headers), has_body, both_lengths, ME)
    }

    fn refused(head: &Parts) -> (Reason, u16) {
        let (reason, problem) = tried(head, false, false).unwrap_err();
        (reason, problem.status().as_u16())
    }

    const HOST: (&str, &str) = ("host", "a");

    #[test]
    fn an_uncertain_length_is_refused() {
        for headers in [
            &[HOST, ("transfer-encoding", "chunked"), ("content-length", "5")][..],
            &[HOST, ("transfer-encoding", "gzip, chunked")],
            &[HOST, ("transfer-encoding", "chunked, chunked")],
            &[HOST, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[HOST, ("transfer-encoding", "xchunked")],
        ] {
            assert_eq!(refused(&head("/", headers)), (Reason::Framing, 400), "{headers:?}");
        }
        let chunked = head("/", &[HOST, ("transfer-encoding", "Chunked")]);
        assert!(tried(&chunked, true, false).is_ok());
        assert_eq!(
            tried(&chunked, true, true).unwrap_err().0,
            Reason::Framing,
            "dropped by hyper, seen below it"
        );
    }

    #[test]
    fn a_path_that_climbs_is_refused_in_every_spelling() {
        for path in ["/a/../b", "/..", "/a/./b", "/a/%2e%2E/b", "/a/.%2e", "/a/..;x/b", "/a\\..\\b", "*"] {
            assert_eq!(refused(&head(path, &[HOST])), (Reason::Path, 400), "{path}");
        }
        for path in ["/.well-known/x", "/a..b", "/...", "/a%20b", "/a?x=/../y", "/%2e%2e%2e", "/"] {
            assert!(tried(&head(path, &[HOST]), false, false).is_ok(), "{path}");
        }
    }

    #[test]
    fn there_is_one_host_and_an_absolute_target_outranks_it() {
        for headers in [
            &[][..],
            &[HOST, HOST],
            &[("host", "")],
            &[("host", "u@a")],
            &[("host", "a/b")],
            &[("host", "a,b")],
        ] {
            assert_eq!(refused(&head("/", headers)), (Reason::Host, 400), "{headers:?}");
        }
        let absolute = tried(&head("http://b:81/", &[HOST]), false, false).unwrap();
        assert_eq!((absolute.host(), absolute.authority.as_ref().unwrap().to_str().unwrap()), ("b", "b:81"));
        let mut old = head("/", &[]);
        old.version = Version::HTTP_10;
        assert_eq!(tried(&old, false, false).unwrap().authority, None);
        let mut two = head("http://b/", &[HOST]);
        two.version = Version::HTTP_2;
        assert_eq!(refused(&two), (Reason::Host, 400));
        let ip6 = tried(&head("/", &[("host", "[::1]:80")]), false, false).unwrap();
        assert_eq!(ip6.host(), "[::1]");
    }

    #[test]
    fn a_request_that_comes_back_is_refused() {
        for via in ["1.1 hearsay-abc", "1.0 other, 2.0 hearsay-abc (x)"] {
            assert_eq!(refused(&head("/", &[HOST, ("via", via)])), (Reason::Loop, 508), "{via}");
        }
        let other = head("/", &[HOST, ("via", "1.1 hearsay-abcd, 1.1 x")]);
        assert!(tried(&other, false, false).is_ok());
    }

    #[test]
    fn only_upgrades_away_from_http_are_passed_on() {
        let wanted = |headers: &[(&str, &str)], has_body| {
            let mut all = vec![HOST];
            all.extend(headers);
            tried(&head("/", &all), has_body, false).unwrap().upgrade
        };
        let connection = ("connection", "keep-alive, Upgrade");
        assert!(wanted(&[connection, ("upgrade", "websocket")], false).is_some());
        assert!(wanted(&[("upgrade", "websocket")], false).is_none(), "not asked by Connection");
        assert!(wanted(&[connection, ("upgrade", "websocket")], true).is_none(), "with a body");
        for protocol in ["h2c", "websocket, H2C", "HTTP/2.0", "TLS/1.0"] {
            assert!(wanted(&[connection, ("upgrade", protocol)], false).is_none(), "{protocol}");
        }
    }

    #[test]
    fn connect_and_trace_are_not_passed_on() {
        for method in [Method::CONNECT, Method::TRACE] {
            let mut head = head("/", &[HOST]);
            head.method = method;
            assert_eq!(refused(&head), (Reason::Method, 405));
        }
    }
}
