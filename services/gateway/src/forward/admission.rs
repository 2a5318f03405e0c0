//! Admission of a request: decides whether it is forwarded. The gateway refuses a request that an instance
//! could interpret differently, because request smuggling relies on such differences.
//!
//! hyper itself refuses: a second, different `Content-Length`; a `Content-Length` that is not a number; a
//! `Transfer-Encoding` that does not end in `chunked`, or is sent over HTTP/1.0; malformed chunks; whitespace
//! before a colon, folded lines, control bytes; in HTTP/2, hop-by-hop headers and lengths that do not match.
//!
//! hyper accepts two things that are refused here: other encodings before `chunked`, and a request with both
//! lengths. In the second case hyper removes `Content-Length`, so [`crate::server::framing`] has to detect it
//! (`has_both_lengths`).

use std::borrow::Cow;

use hearsay_services::Problem;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header, request::Parts, uri::PathAndQuery};

use super::headers::{HeaderSet, tokens};
use crate::{
    refusal::{Reason, Refusal},
    routing::route_tags::host_of,
};

/// The properties of an admitted request that forwarding needs.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// The authority that the client named; `None` for HTTP/1.0 without `Host`.
    pub(crate) authority: Option<HeaderValue>,
    /// The protocols that the client wants to upgrade to.
    pub(crate) upgrade: Option<HeaderValue>,
    /// Whether the request is gRPC, which needs HTTP/2 from end to end.
    pub(crate) is_grpc: bool,
}

impl Admitted {
    /// Returns the host without the port.
    pub(crate) fn host(&self) -> &str {
        self.authority.as_ref().and_then(|a| a.to_str().ok()).map_or("", host_of)
    }
}

/// Checks the head of a request. `has_both_lengths`: the request has both `Content-Length` and
/// `Transfer-Encoding`. `via` is the name of this gateway in `Via`.
///
/// # Errors
/// The first fault of the request.
pub(crate) fn admit(
    head: &Parts,
    present: HeaderSet,
    has_body: bool,
    has_both_lengths: bool,
    via: &str,
) -> Result<Admitted, Refusal> {
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        let detail = format!("this gateway does not forward {}", head.method);
        return Err((Reason::Method, Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)));
    }
    check_framing(head, present, has_both_lengths).map_err(|detail| bad(Reason::Framing, detail))?;
    check_path(head.uri.path()).map_err(|detail| bad(Reason::Path, detail))?;
    let authority = authority(head).map_err(|detail| bad(Reason::Host, detail))?;
    if present.has(HeaderSet::VIA) && has_passed(&head.headers, via) {
        let detail = format!(
            "this request has passed this gateway before: an instance leads back to it (Via contains {via})"
        );
        return Err((Reason::Loop, Problem::new(StatusCode::LOOP_DETECTED, detail)));
    }
    let content_type = head.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let is_grpc = head.version == Version::HTTP_2
        && content_type.is_some_and(|value| value.starts_with(b"application/grpc"));
    let upgrade = if present.has(HeaderSet::UPGRADE) { upgrade(head, has_body) } else { None };
    Ok(Admitted { authority, upgrade, is_grpc })
}

fn bad(reason: Reason, detail: &str) -> Refusal {
    (reason, Problem::new(StatusCode::BAD_REQUEST, detail))
}

fn check_framing(head: &Parts, present: HeaderSet, has_both_lengths: bool) -> Result<(), &'static str> {
    if head.version >= Version::HTTP_2 || !present.has(HeaderSet::TRANSFER_ENCODING) {
        return Ok(());
    }
    let mut encodings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    match (encodings.next(), encodings.next()) {
        (None, _) => Ok(()),
        (Some(_), None) if has_both_lengths || head.headers.contains_key(header::CONTENT_LENGTH) => {
            Err("Content-Length and Transfer-Encoding contradict each other")
        }
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        (Some(_), None) => Err("Transfer-Encoding: only chunked is understood"),
        (Some(_), Some(_)) => Err("there is more than one Transfer-Encoding header"),
    }
}

/// Refuses dot segments: an instance could resolve them, and the route was chosen for the unresolved path.
/// Clients resolve dot segments before they send a request (RFC 3986, section 5.2.4).
fn check_path(path: &str) -> Result<(), &'static str> {
    if !path.starts_with('/') {
        return Err("the target is not a path");
    }
    // Few paths have a percent sign, or a dot after a slash, so one pass suffices for most.
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
        return Err("the path contains a segment . or ..; resolve it first");
    }
    Ok(())
}

/// Whether a segment is `.` or `..`, percent-encoded or not. Parameters after it (`..;a`) do not matter,
/// because some servers remove them.
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
    // `:authority` and `Host` must match in HTTP/2 (RFC 9113, section 8.3.1). In HTTP/1.1 an absolute target
    // outranks `Host` (RFC 9112, section 3.2.2).
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

/// Whether the request has passed the gateway of this name before.
fn has_passed(headers: &HeaderMap, via: &str) -> bool {
    let hops = headers.get_all(header::VIA).iter().filter_map(|value| value.to_str().ok());
    hops.flat_map(|value| value.split(',')).any(|hop| hop.split_ascii_whitespace().nth(1) == Some(via))
}

/// Returns the protocols that the client wants to upgrade to. An upgrade to HTTP/2 is ignored: the tunnel
/// would carry requests that the gateway cannot examine.
fn upgrade(head: &Parts, has_body: bool) -> Option<HeaderValue> {
    if head.version != Version::HTTP_11 || has_body {
        return None;
    }
    let mut upgrades = head.headers.get_all(header::UPGRADE).iter();
    let (Some(upgrade), None) = (upgrades.next(), upgrades.next()) else { return None };
    let is_hop = tokens(&head.headers, &header::CONNECTION).any(|t| t.eq_ignore_ascii_case("upgrade"));
    let protocols = upgrade.to_str().ok()?;
    let is_http2 = |protocol: &str| {
        let name = protocol.trim().split('/').next().unwrap_or_default();
        ["h2c", "h2", "http", "tls"].iter().any(|word| name.eq_ignore_ascii_case(word))
    };
    (is_hop && !protocols.split(',').any(is_http2)).then(|| upgrade.clone())
}

/// Removes the first `stripped` bytes of a path and query.
///
/// # Errors
/// The rest is not a path.
pub(crate) fn strip_prefix(whole: &PathAndQuery, stripped: usize) -> Result<PathAndQuery, Refusal> {
    if stripped == 0 {
        return Ok(whole.clone());
    }
    let rest = whole.as_str().get(stripped..).ok_or_else(not_a_path)?;
    let rest = if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") };
    PathAndQuery::try_from(rest).map_err(|_| not_a_path())
}

/// Returns the refusal of a target that is not a path.
pub(crate) fn not_a_path() -> Refusal {
    bad(Reason::Path, "the target is not a path")
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const VIA: &str = "hearsay-abc";

    fn head(target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn admitted(head: &Parts, has_body: bool, both_lengths: bool) -> Result<Admitted, Refusal> {
        admit(head, HeaderSet::of(&head.headers), has_body, both_lengths, VIA)
    }

    fn refused(head: &Parts) -> (Reason, u16) {
        let (reason, problem) = admitted(head, false, false).unwrap_err();
        (reason, problem.status().as_u16())
    }

    const HOST: (&str, &str) = ("host", "a");

    #[test]
    fn an_ambiguous_length_is_refused() {
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
        assert!(admitted(&chunked, true, false).is_ok());
        assert_eq!(
            admitted(&chunked, true, true).unwrap_err().0,
            Reason::Framing,
            "hyper removes the length, the observer sees it"
        );
    }

    #[test]
    fn a_path_with_dot_segments_is_refused_in_every_spelling() {
        for path in ["/a/../b", "/..", "/a/./b", "/a/%2e%2E/b", "/a/.%2e", "/a/..;x/b", "/a\\..\\b", "*"] {
            assert_eq!(refused(&head(path, &[HOST])), (Reason::Path, 400), "{path}");
        }
        for path in ["/.well-known/x", "/a..b", "/...", "/a%20b", "/a?x=/../y", "/%2e%2e%2e", "/"] {
            assert!(admitted(&head(path, &[HOST]), false, false).is_ok(), "{path}");
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
        let absolute = admitted(&head("http://b:81/", &[HOST]), false, false).unwrap();
        assert_eq!((absolute.host(), absolute.authority.as_ref().unwrap().to_str().unwrap()), ("b", "b:81"));
        let mut old = head("/", &[]);
        old.version = Version::HTTP_10;
        assert_eq!(admitted(&old, false, false).unwrap().authority, None);
        let mut http2 = head("http://b/", &[HOST]);
        http2.version = Version::HTTP_2;
        assert_eq!(refused(&http2), (Reason::Host, 400));
        let ip6 = admitted(&head("/", &[("host", "[::1]:80")]), false, false).unwrap();
        assert_eq!(ip6.host(), "[::1]");
    }

    #[test]
    fn a_request_that_returns_is_refused() {
        for via in ["1.1 hearsay-abc", "1.0 other, 2.0 hearsay-abc (x)"] {
            assert_eq!(refused(&head("/", &[HOST, ("via", via)])), (Reason::Loop, 508), "{via}");
        }
        let other = head("/", &[HOST, ("via", "1.1 hearsay-abcd, 1.1 x")]);
        assert!(admitted(&other, false, false).is_ok());
    }

    #[test]
    fn only_upgrades_to_other_protocols_than_http_are_forwarded() {
        let wanted = |headers: &[(&str, &str)], has_body| {
            let mut all = vec![HOST];
            all.extend(headers);
            admitted(&head("/", &all), has_body, false).unwrap().upgrade
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
    fn connect_and_trace_are_not_forwarded() {
        for method in [Method::CONNECT, Method::TRACE] {
            let mut head = head("/", &[HOST]);
            head.method = method;
            assert_eq!(refused(&head), (Reason::Method, 405));
        }
    }
}
