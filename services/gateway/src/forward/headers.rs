//! Headers of requests and responses: which are forwarded, which are removed, and which the gateway adds.
//!
//! Hop-by-hop headers are removed (RFC 9110, section 7.6.1): `Connection`, every header that it names, and a
//! fixed list. The gateway adds its own headers afterwards, so a client cannot remove them by `Connection`.
//!
//! | header | value that an instance gets |
//! | --- | --- |
//! | `Host` | the client's; the instance's own authority for a role, for the tag option `host=dst`, and if the client sent none |
//! | `X-Forwarded-For` | the client's value, followed by the client's address |
//! | `X-Forwarded-Proto`, `-Host`, `-Port`, `-Prefix` | the gateway's; the client's are removed |
//! | `X-Real-IP` | the client's address |
//! | any name with `_` | removed: CGI and WSGI read `X_Forwarded_For` as `X-Forwarded-For` |
//! | `Forwarded` | for a role the gateway's ([`super::forwarded`]), else none; the client's is removed |
//! | `Via` | the client's value, followed by this gateway |
//! | `traceparent` | see [`crate::observe::trace`] |

use std::net::IpAddr;

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};

use crate::observe::trace;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const SIGNATURE: HeaderName = HeaderName::from_static(hearsay_protocol::SIGNATURE_HEADER);

/// Hop-by-hop headers, whether `Connection` names them or not.
static HOP_BY_HOP: [HeaderName; 8] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
];

/// Maximum number of headers that an attempt adds: those of [`add`], `Host` and `Forwarded`.
const ADDED_MAX: usize = 9;

/// Headers of a client that no instance gets. `Expect` is among them because the gateway answers it (RFC
/// 9110, section 10.1.1).
static CLIENT_ONLY: [HeaderName; 5] = [header::EXPECT, header::FORWARDED, HOST, PREFIX, SIGNATURE];

/// Set of the headers of a message that the gateway treats in a special way, found in one pass. Most messages
/// have none of them, and a lookup of each would cost as much as parsing the message. A header in the set may
/// have been removed from the message since.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HeaderSet(u16);

impl HeaderSet {
    /// `Connection`.
    pub(crate) const CONNECTION: Self = Self(1);
    /// `Transfer-Encoding`.
    pub(crate) const TRANSFER_ENCODING: Self = Self(1 << 1);
    /// `TE`.
    pub(crate) const TE: Self = Self(1 << 2);
    /// `Upgrade`.
    pub(crate) const UPGRADE: Self = Self(1 << 3);
    /// `Via`.
    pub(crate) const VIA: Self = Self(1 << 4);
    /// `traceparent` or `tracestate`.
    pub(crate) const TRACE: Self = Self(1 << 5);
    /// `Cookie`.
    pub(crate) const COOKIE: Self = Self(1 << 6);
    /// `X-Forwarded-For`.
    const FOR: Self = Self(1 << 7);
    /// One of [`CLIENT_ONLY`].
    const CLIENT_ONLY: Self = Self(1 << 8);
    /// One of [`HOP_BY_HOP`] that has no constant of its own.
    const OTHER_HOP_BY_HOP: Self = Self(1 << 9);
    /// A name with an underscore.
    const UNDERSCORE: Self = Self(1 << 10);
    /// One of [`HOP_BY_HOP`].
    const HOP_BY_HOP: Self =
        Self(Self::TRANSFER_ENCODING.0 | Self::TE.0 | Self::UPGRADE.0 | Self::OTHER_HOP_BY_HOP.0);

    /// Returns the set for the headers of a message.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        Self(headers.keys().fold(0, |all, name| all | Self::named(name.as_str()).0))
    }

    /// Whether the message may have one of the headers `any`.
    pub(crate) fn has(self, any: Self) -> bool {
        self.0 & any.0 != 0
    }

    fn named(name: &str) -> Self {
        match name {
            "connection" => Self::CONNECTION,
            "transfer-encoding" => Self::TRANSFER_ENCODING,
            "te" => Self::TE,
            "upgrade" => Self::UPGRADE,
            "via" => Self::VIA,
            "traceparent" | "tracestate" => Self::TRACE,
            "cookie" => Self::COOKIE,
            "x-forwarded-for" => Self::FOR,
            "expect" | "forwarded" | "x-forwarded-host" | "x-forwarded-prefix" | "hearsay-signature" => {
                Self::CLIENT_ONLY
            }
            "keep-alive"
            | "proxy-connection"
            | "http2-settings"
            | "proxy-authorization"
            | "proxy-authenticate" => Self::OTHER_HOP_BY_HOP,
            name if memchr::memchr(b'_', name.as_bytes()).is_some() => Self::UNDERSCORE,
            _ => Self(0),
        }
    }
}

/// The client of a connection, as header values.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// The IP address.
    pub(crate) ip: IpAddr,
    /// The IP address as a header value.
    pub(crate) address: HeaderValue,
    /// The port of the gateway to which the client connected.
    pub(crate) port: HeaderValue,
}

impl Client {
    /// Returns the port of an authority, or 80 if the authority names none. Behind a port mapping this is not
    /// the gateway's own port.
    fn port_of(&self, authority: &HeaderValue) -> HeaderValue {
        let authority = authority.as_bytes();
        let after_host = authority.iter().rposition(|byte| *byte == b']').unwrap_or(0);
        match memchr::memrchr(b':', &authority[after_host..]).map(|at| &authority[after_host + at + 1..]) {
            Some(port) if port == self.port.as_bytes() => self.port.clone(),
            Some(port) if !port.is_empty() => {
                HeaderValue::from_bytes(port).unwrap_or_else(|_| self.port.clone())
            }
            _ => HeaderValue::from_static("80"),
        }
    }
}

/// The name of this gateway in `Via`, for each HTTP version.
#[derive(Clone, Debug)]
pub(crate) struct ViaName {
    /// The name without a version.
    pub(crate) name: String,
    by_http10: HeaderValue,
    by_http11: HeaderValue,
    by_http2: HeaderValue,
}

impl ViaName {
    /// Returns the values for a name, which must be a token (letters, digits, dashes).
    pub(crate) fn new(name: &str) -> Self {
        let by = |version: &str| {
            HeaderValue::from_str(&format!("{version} {name}"))
                .unwrap_or_else(|_| HeaderValue::from_static("1.1 hearsay"))
        };
        Self { name: name.to_owned(), by_http10: by("1.0"), by_http11: by("1.1"), by_http2: by("2.0") }
    }

    fn value(&self, version: Version) -> &HeaderValue {
        match version {
            Version::HTTP_10 => &self.by_http10,
            Version::HTTP_2 => &self.by_http2,
            _ => &self.by_http11,
        }
    }
}

/// Removes hop-by-hop headers.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap, present: HeaderSet) {
    if present.has(HeaderSet::CONNECTION) {
        // `keep-alive` and `close` are options of the connection; they name no header to be removed.
        let is_name =
            |token: &&str| !["keep-alive", "close"].iter().any(|word| token.eq_ignore_ascii_case(word));
        let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
            .filter(is_name)
            .filter_map(|token| token.parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    if present.has(HeaderSet::HOP_BY_HOP) {
        remove_all(headers, &HOP_BY_HOP);
    }
}

fn remove_all(headers: &mut HeaderMap, names: &[HeaderName]) {
    names.iter().for_each(|name| _ = headers.remove(name));
}

/// The facts about a request from which [`add`] makes its headers.
#[derive(Debug)]
pub(crate) struct RequestOrigin<'a> {
    /// The client.
    pub(crate) client: &'a Client,
    /// The HTTP version of the client's request.
    pub(crate) version: Version,
    /// The authority of the request.
    pub(crate) authority: Option<&'a HeaderValue>,
    /// The prefix that was removed from the path.
    pub(crate) prefix: Option<&'a HeaderValue>,
}

/// Removes the headers of a request that no instance gets, and ensures a trace context. [`add`] adds the
/// other headers for each attempt.
pub(crate) fn prepare(headers: &mut HeaderMap, present: HeaderSet, version: Version) {
    let accepts_trailers = present.has(HeaderSet::TE)
        && tokens(headers, &header::TE).any(|te| te.eq_ignore_ascii_case("trailers"));
    strip_hop_by_hop(headers, present);
    if present.has(HeaderSet::CLIENT_ONLY) {
        remove_all(headers, &CLIENT_ONLY);
    }
    if present.has(HeaderSet::UNDERSCORE) {
        let names: Vec<_> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
        remove_all(headers, &names);
    }
    trace::ensure(headers, present.has(HeaderSet::TRACE));
    // gRPC requires `TE: trailers`. `TE` is a hop-by-hop header, but over HTTP/2 the gateway forwards
    // trailers.
    if accepts_trailers && version == Version::HTTP_2 {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Copies headers, with room for those that [`add`] adds.
pub(crate) fn copy(headers: &HeaderMap) -> HeaderMap {
    let mut copy = HeaderMap::with_capacity(headers.len() + ADDED_MAX);
    copy.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    copy
}

/// Adds the headers by which the gateway describes a request.
pub(crate) fn add(headers: &mut HeaderMap, present: HeaderSet, origin: &RequestOrigin<'_>, me: &ViaName) {
    append(headers, FOR, &origin.client.address, present.has(HeaderSet::FOR));
    headers.insert(PROTO, HeaderValue::from_static("http"));
    headers.insert(REAL_IP, origin.client.address.clone());
    match origin.authority {
        Some(authority) => {
            headers.insert(PORT, origin.client.port_of(authority));
            headers.insert(HOST, authority.clone());
        }
        None => _ = headers.insert(PORT, origin.client.port.clone()),
    }
    if let Some(prefix) = origin.prefix {
        headers.insert(PREFIX, prefix.clone());
    }
    append(headers, header::VIA, me.value(origin.version), present.has(HeaderSet::VIA));
}

/// Resets the headers that depend on the endpoint, after a failed attempt has set them.
pub(crate) fn reset_prefix(headers: &mut HeaderMap, prefix: Option<&HeaderValue>) {
    match prefix {
        Some(prefix) => _ = headers.insert(PREFIX, prefix.clone()),
        None => _ = headers.remove(PREFIX),
    }
    headers.remove(header::FORWARDED);
}

/// Adapts headers to the HTTP version of the endpoint.
pub(crate) fn adapt(headers: &mut HeaderMap, present: HeaderSet, to: Version, host: &HeaderValue) {
    if to == Version::HTTP_2 {
        headers.remove(header::HOST);
        return;
    }
    headers.insert(header::HOST, host.clone());
    if present.has(HeaderSet::TE) {
        headers.remove(header::TE);
    }
    // HTTP/2 may split `Cookie` into several lines (RFC 9113, section 8.2.3).
    if present.has(HeaderSet::COOKIE) && headers.get_all(header::COOKIE).iter().nth(1).is_some() {
        let cookies: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        let whole = HeaderValue::from_bytes(&cookies.join(&b"; "[..]));
        headers.remove(header::COOKIE);
        if let Ok(whole) = whole {
            headers.insert(header::COOKIE, whole);
        }
    }
}

/// Appends an element to a header that is a list, and joins its lines.
fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue, may_exist: bool) {
    if !may_exist || !headers.contains_key(&name) {
        headers.insert(name, value.clone());
        return;
    }
    let mut list = BytesMut::new();
    for line in headers.get_all(&name) {
        list.put_slice(line.as_bytes());
        list.put_slice(b", ");
    }
    list.put_slice(value.as_bytes());
    // Valid values joined by commas are a valid value.
    if let Ok(list) = HeaderValue::from_maybe_shared(list.freeze()) {
        headers.insert(name, list);
    }
}

/// Returns the elements of a header that is a list of words.
pub(crate) fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn prepared(headers: &[(&str, &str)]) -> HeaderMap {
        let mut headers = map(headers);
        let client = Client {
            ip: [10, 0, 0, 7].into(),
            address: HeaderValue::from_static("10.0.0.7"),
            port: HeaderValue::from_static("8080"),
        };
        let authority = HeaderValue::from_static("shop:8080");
        let prefix = HeaderValue::from_static("/shop");
        let origin = RequestOrigin {
            client: &client,
            version: Version::HTTP_11,
            authority: Some(&authority),
            prefix: Some(&prefix),
        };
        let present = HeaderSet::of(&headers);
        prepare(&mut headers, present, origin.version);
        let mut headers = copy(&headers);
        add(&mut headers, present, &origin, &ViaName::new("hearsay-abc"));
        headers
    }

    #[test]
    fn hop_by_hop_headers_are_removed_with_all_that_connection_names() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("connection", "another"),
            ("x-secret", "1"),
            ("another", "2"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("proxy-authorization", "x"),
            ("accept", "*/*"),
            ("trailer", "grpc-status"),
        ]);
        let present = HeaderSet::of(&headers);
        strip_hop_by_hop(&mut headers, present);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["accept", "trailer"]);
    }

    #[test]
    fn every_special_header_has_its_bit() {
        for name in HOP_BY_HOP.iter() {
            assert!(HeaderSet::named(name.as_str()).has(HeaderSet::HOP_BY_HOP), "{name}");
        }
        for name in CLIENT_ONLY.iter() {
            assert_eq!(HeaderSet::named(name.as_str()), HeaderSet::CLIENT_ONLY, "{name}");
        }
        for (name, present) in [
            (header::CONNECTION, HeaderSet::CONNECTION),
            (header::VIA, HeaderSet::VIA),
            (header::COOKIE, HeaderSet::COOKIE),
            (FOR, HeaderSet::FOR),
        ] {
            assert_eq!(HeaderSet::named(name.as_str()), present, "{name}");
        }
        assert_eq!(HeaderSet::named("x_forwarded_for"), HeaderSet::UNDERSCORE);
        assert_eq!(HeaderSet::named("accept"), HeaderSet(0));
    }

    #[test]
    fn names_with_an_underscore_are_removed_and_trusted_headers_are_the_gateways() {
        let headers = prepared(&[
            ("x_forwarded_for", "127.0.0.1"),
            ("transfer_encoding", "chunked"),
            ("x-real_ip", "127.0.0.1"),
            ("x-real-ip", "127.0.0.1"),
            ("x-forwarded-port", "22"),
            ("x-original-url", "/admin"),
        ]);
        assert!(headers.keys().all(|name| !name.as_str().contains('_')), "{headers:?}");
        assert_eq!((headers[REAL_IP].as_bytes(), headers[PORT].as_bytes()), (&b"10.0.0.7"[..], &b"8080"[..]));
        assert_eq!(headers.get_all(REAL_IP).iter().count(), 1);
        assert_eq!(headers["x-original-url"], "/admin", "the gateway gives it no meaning");
    }

    #[test]
    fn the_port_is_that_of_the_authority() {
        let client = Client {
            ip: [10, 0, 0, 7].into(),
            address: HeaderValue::from_static("10.0.0.7"),
            port: HeaderValue::from_static("8080"),
        };
        for (authority, port) in [
            ("a:8080", "8080"),
            ("a:8443", "8443"),
            ("a", "80"),
            ("[::1]", "80"),
            ("[::1]:81", "81"),
            ("a:", "80"),
        ] {
            assert_eq!(client.port_of(&HeaderValue::from_static(authority)), port, "{authority}");
        }
    }

    #[test]
    fn claims_of_a_client_are_extended_or_replaced() {
        let headers = prepared(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-for", "5.6.7.8"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-prefix", "/evil"),
            ("forwarded", "for=127.0.0.1"),
            ("via", "1.0 first"),
            ("expect", "100-continue"),
        ]);
        assert_eq!(headers[FOR], "1.2.3.4, 5.6.7.8, 10.0.0.7");
        assert_eq!(
            (&headers[PROTO], &headers[HOST], &headers[PREFIX]),
            (
                &HeaderValue::from_static("http"),
                &HeaderValue::from_static("shop:8080"),
                &HeaderValue::from_static("/shop"),
            )
        );
        assert_eq!(headers[header::VIA], "1.0 first, 1.1 hearsay-abc");
        assert!(!headers.contains_key(header::FORWARDED) && !headers.contains_key(header::EXPECT));
        assert_eq!(headers["traceparent"].len(), 55);
    }

    #[test]
    fn an_attempt_states_only_its_own_prefix() {
        let mut headers = map(&[("x-forwarded-prefix", "/first")]);
        reset_prefix(&mut headers, Some(&HeaderValue::from_static("/second")));
        assert_eq!(headers[PREFIX], "/second");
        reset_prefix(&mut headers, None);
        assert!(!headers.contains_key(PREFIX));
    }

    #[test]
    fn connection_cannot_name_the_gateways_headers() {
        let headers = prepared(&[("connection", "x-forwarded-for, via, traceparent, x-forwarded-proto")]);
        for name in ["x-forwarded-for", "via", "traceparent", "x-forwarded-proto"] {
            assert!(headers.contains_key(name), "{name}");
        }
    }

    #[test]
    fn headers_fit_the_version_of_the_endpoint() {
        let host = HeaderValue::from_static("a");
        let mut http1 = map(&[("te", "trailers"), ("cookie", "a=1"), ("cookie", "b=2")]);
        let mut http2 = http1.clone();
        let present = HeaderSet::of(&http1);
        adapt(&mut http1, present, Version::HTTP_11, &host);
        assert_eq!(
            (&http1[header::HOST], &http1[header::COOKIE]),
            (&host, &HeaderValue::from_static("a=1; b=2"))
        );
        assert!(!http1.contains_key(header::TE));
        http2.insert(header::HOST, host.clone());
        adapt(&mut http2, present, Version::HTTP_2, &host);
        assert!(!http2.contains_key(header::HOST) && http2[header::TE] == "trailers");
    }
}
