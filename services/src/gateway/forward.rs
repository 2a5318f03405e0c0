//! Which headers go on, which stay here, and which are added.
//!
//! What concerns one connection alone stays (RFC 9110, section 7.6.1): `Connection` and everything it names, and those that are known
//! to. It is taken off first and what is ours is put in after, so that no client can name ours away.
//!
//! | header | what the instance gets |
//! | --- | --- |
//! | `Host` | what the client asked for; its own authority where it is a role, its tag says `host=dst`, or the client said nothing |
//! | `X-Forwarded-For` | what was there, and the address of whoever asked |
//! | `X-Forwarded-Proto`, `-Host`, `-Port`, `-Prefix` | what is true here; what a client claims is dropped |
//! | `X-Real-IP` | the address of the client |
//! | any name with `_` | nothing: CGI and WSGI read `X_Forwarded_For` and `X-Forwarded-For` as one |
//! | `Forwarded` | a role: what the gateway vouches for ([`super::vouch`]); a program: nothing. The client's own is dropped |
//! | `Via` | what was there, and this gateway |
//! | `traceparent` | see [`super::trace`] |

use std::net::IpAddr;

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};

use super::{request::tokens, trace};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const SIGNATURE: HeaderName = HeaderName::from_static(hearsay_protocol::signed_request::HEADER);

/// What concerns one connection, whether `Connection` names it or not.
static OF_ONE_CONNECTION: [HeaderName; 8] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
];

/// As many headers as [`add`] adds, and `Host`.
const ADDED_MAX: usize = 9;

/// What a client may not say to an instance. RFC 9110, section 10.1.1: the gateway itself says "continue" as soon as somebody takes the body.
static NOT_FOR_INSTANCES: [HeaderName; 5] = [header::EXPECT, header::FORWARDED, HOST, PREFIX, SIGNATURE];

/// Which headers a message has, of those that mean something to the gateway. They are looked for in one pass, because hardly ever is one
/// there, and to look each of them up costs as much as parsing the message. What is not in here is not there; what is may have been taken off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Present(u16);

impl Present {
    /// `Connection`.
    pub const CONNECTION: Self = Self(1);
    /// `Transfer-Encoding`.
    pub const TRANSFER_ENCODING: Self = Self(1 << 1);
    /// `TE`.
    pub const TE: Self = Self(1 << 2);
    /// `Upgrade`.
    pub const UPGRADE: Self = Self(1 << 3);
    /// `Via`.
    pub const VIA: Self = Self(1 << 4);
    /// `traceparent` or `tracestate`.
    pub const TRACE: Self = Self(1 << 5);
    /// `Cookie`.
    pub const COOKIE: Self = Self(1 << 6);
    /// `X-Forwarded-For`.
    const FOR: Self = Self(1 << 7);
    /// One of [`NOT_FOR_INSTANCES`].
    const NOT_FOR_INSTANCES: Self = Self(1 << 8);
    /// One of [`OF_ONE_CONNECTION`] that has no name here.
    const OTHER_OF_ONE_CONNECTION: Self = Self(1 << 9);
    /// A name with an underscore.
    const UNDERSCORE: Self = Self(1 << 10);
    /// One of [`OF_ONE_CONNECTION`].
    const OF_ONE_CONNECTION: Self =
        Self(Self::TRANSFER_ENCODING.0 | Self::TE.0 | Self::UPGRADE.0 | Self::OTHER_OF_ONE_CONNECTION.0);

    /// Those of a message.
    pub fn of(headers: &HeaderMap) -> Self {
        Self(headers.keys().fold(0, |all, name| all | Self::named(name.as_str()).0))
    }

    /// Whether one of these may be there.
    pub fn has(self, any: Self) -> bool {
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
                Self::NOT_FOR_INSTANCES
            }
            "keep-alive"
            | "proxy-connection"
            | "http2-settings"
            | "proxy-authorization"
            | "proxy-authenticate" => Self::OTHER_OF_ONE_CONNECTION,
            name if memchr::memchr(b'_', name.as_bytes()).is_some() => Self::UNDERSCORE,
            _ => Self(0),
        }
    }
}

/// What a connection adds to each of its requests.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its address.
    pub ip: IpAddr,
    /// The same, as `X-Forwarded-For` writes it.
    pub address: HeaderValue,
    /// The port of the gateway that it has connected to.
    pub port: HeaderValue,
}

impl Client {
    /// The port that the client has asked, which may be mapped to the gateway's: that of the authority, or
    /// that of the scheme.
    fn port_of(&self, authority: &HeaderValue) -> HeaderValue {
        let authority = authority.as_bytes();
        let after_host = authority.iter().rposition(|byte| *byte == b']').unwrap_or(0);
        match memchr::memrchr(b':', &authority[after_host..]).map(|at| &authority[after_host + at + 1..]) {
            Some(port) if port == self.port.as_bytes() => self.port.clone(),
            // Mapped, which is rare enough to be written each time.
            Some(port) if !port.is_empty() => {
                HeaderValue::from_bytes(port).unwrap_or_else(|_| self.port.clone())
            }
            _ => HeaderValue::from_static("80"),
        }
    }
}

/// This gateway in `Via`, for each version of the protocol a request can come by.
#[derive(Clone, Debug)]
pub struct Pseudonym {
    /// The name alone.
    pub name: String,
    by_http10: HeaderValue,
    by_http11: HeaderValue,
    by_http2: HeaderValue,
}

impl Pseudonym {
    /// A gateway of this name, which must be a token (letters, digits, dashes).
    pub fn new(name: &str) -> Self {
        let by = |version: &str| {
            HeaderValue::from_str(&format!("{version} {name}"))
                .unwrap_or_else(|_| HeaderValue::from_static("1.1 hearsay"))
        };
        Self { name: name.to_owned(), by_http10: by("1.0"), by_http11: by("1.1"), by_http2: by("2.0") }
    }

    fn by(&self, version: Version) -> &HeaderValue {
        match version {
            Version::HTTP_10 => &self.by_http10,
            Version::HTTP_2 => &self.by_http2,
            _ => &self.by_http11,
        }
    }
}

/// Takes off what concerns the connection alone.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, present: Present) {
    if present.has(Present::CONNECTION) {
        // These two name no header that is not taken off anyway.
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
    if present.has(Present::OF_ONE_CONNECTION) {
        remove_all(headers, &OF_ONE_CONNECTION);
    }
}

fn remove_all(headers: &mut HeaderMap, names: &[HeaderName]) {
    names.iter().for_each(|name| _ = headers.remove(name));
}

/// What a request is beside its headers.
#[derive(Debug)]
pub struct Origin<'a> {
    /// Who asked.
    pub client: &'a Client,
    /// By which version.
    pub version: Version,
    /// For which authority.
    pub authority: Option<&'a HeaderValue>,
    /// What was taken off its path.
    pub prefix: Option<&'a HeaderValue>,
}

/// Makes of the headers of a request what an instance gets of them, whichever it is. The rest is done for each that is asked; see [`add`].
pub fn prepare(headers: &mut HeaderMap, present: Present, version: Version) {
    let takes_trailers = present.has(Present::TE)
        && tokens(headers, &header::TE).any(|te| te.eq_ignore_ascii_case("trailers"));
    strip_hop_by_hop(headers, present);
    if present.has(Present::NOT_FOR_INSTANCES) {
        remove_all(headers, &NOT_FOR_INSTANCES);
    }
    if present.has(Present::UNDERSCORE) {
        let names: Vec<_> = headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
        remove_all(headers, &names);
    }
    trace::ensure(headers, present.has(Present::TRACE));
    // gRPC wants to see it. It concerns the connection, but to an instance asked by HTTP/2 the gateway can promise it, too.
    if takes_trailers && version == Version::HTTP_2 {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// A copy, with room for what is added. To add first would have each addition made once more by the copy, and the map grow on the way.
pub fn copy(headers: &HeaderMap) -> HeaderMap {
    let mut copy = HeaderMap::with_capacity(headers.len() + ADDED_MAX);
    copy.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    copy
}

/// Adds what the gateway says of a request, once.
pub fn add(headers: &mut HeaderMap, present: Present, origin: &Origin<'_>, me: &Pseudonym) {
    append(headers, FOR, &origin.client.address, present.has(Present::FOR));
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
    append(headers, header::VIA, me.by(origin.version), present.has(Present::VIA));
}

/// Names what was taken off the path of this attempt, and nothing else. For headers that an attempt at
/// another instance has given back.
pub fn set_prefix(headers: &mut HeaderMap, prefix: Option<&HeaderValue>) {
    match prefix {
        Some(prefix) => _ = headers.insert(PREFIX, prefix.clone()),
        None => _ = headers.remove(PREFIX),
    }
    headers.remove(header::FORWARDED);
}

/// Makes the last difference between the versions by which an instance may be asked.
pub fn address(headers: &mut HeaderMap, present: Present, to: Version, host: &HeaderValue) {
    if to == Version::HTTP_2 {
        headers.remove(header::HOST);
        return;
    }
    headers.insert(header::HOST, host.clone());
    if present.has(Present::TE) {
        headers.remove(header::TE);
    }
    // RFC 9113, section 8.2.3: HTTP/2 may cut it into several.
    if present.has(Present::COOKIE) && headers.get_all(header::COOKIE).iter().nth(1).is_some() {
        let cookies: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        let whole = HeaderValue::from_bytes(&cookies.join(&b"; "[..]));
        headers.remove(header::COOKIE);
        if let Ok(whole) = whole {
            headers.insert(header::COOKIE, whole);
        }
    }
}

/// Adds an element to a list, in one line.
fn append(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue, may_be_there: bool) {
    if !may_be_there || !headers.contains_key(&name) {
        headers.insert(name, value.clone());
        return;
    }
    let mut list = BytesMut::new();
    for line in headers.get_all(&name) {
        list.put_slice(line.as_bytes());
        list.put_slice(b", ");
    }
    list.put_slice(value.as_bytes());
    // Parts of valid values, put together.
    if let Ok(list) = HeaderValue::from_maybe_shared(list.freeze()) {
        headers.insert(name, list);
    }
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
        let origin = Origin {
            client: &client,
            version: Version::HTTP_11,
            authority: Some(&authority),
            prefix: Some(&prefix),
        };
        let present = Present::of(&headers);
        prepare(&mut headers, present, origin.version);
        let mut headers = copy(&headers);
        add(&mut headers, present, &origin, &Pseudonym::new("hearsay-abc"));
        headers
    }

    #[test]
    fn what_concerns_the_connection_stays_here_with_everything_it_names() {
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
        let present = Present::of(&headers);
        strip_hop_by_hop(&mut headers, present);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["accept", "trailer"]);
    }

    #[test]
    fn nothing_that_is_looked_for_is_overlooked() {
        for name in OF_ONE_CONNECTION.iter() {
            assert!(Present::named(name.as_str()).has(Present::OF_ONE_CONNECTION), "{name}");
        }
        for name in NOT_FOR_INSTANCES.iter() {
            assert_eq!(Present::named(name.as_str()), Present::NOT_FOR_INSTANCES, "{name}");
        }
        for (name, present) in [
            (header::CONNECTION, Present::CONNECTION),
            (header::VIA, Present::VIA),
            (header::COOKIE, Present::COOKIE),
            (FOR, Present::FOR),
        ] {
            assert_eq!(Present::named(name.as_str()), present, "{name}");
        }
        assert_eq!(Present::named("x_forwarded_for"), Present::UNDERSCORE);
        assert_eq!(Present::named("accept"), Present(0));
    }

    #[test]
    fn names_with_an_underscore_are_dropped_and_what_backends_trust_is_ours() {
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
        assert_eq!(headers["x-original-url"], "/admin", "what it means is the instance's to know");
    }

    #[test]
    fn the_port_is_the_one_that_the_client_asks() {
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
    fn claims_are_appended_to_or_replaced() {
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
    fn an_attempt_names_only_what_is_taken_off_for_it() {
        let mut headers = map(&[("x-forwarded-prefix", "/first")]);
        set_prefix(&mut headers, Some(&HeaderValue::from_static("/second")));
        assert_eq!(headers[PREFIX], "/second");
        set_prefix(&mut headers, None);
        assert!(!headers.contains_key(PREFIX));
    }

    #[test]
    fn a_client_cannot_name_our_headers_away() {
        let headers = prepared(&[("connection", "x-forwarded-for, via, traceparent, x-forwarded-proto")]);
        for name in ["x-forwarded-for", "via", "traceparent", "x-forwarded-proto"] {
            assert!(headers.contains_key(name), "{name}");
        }
    }

    #[test]
    fn an_instance_is_asked_as_its_version_wants() {
        let host = HeaderValue::from_static("a");
        let mut one = map(&[("te", "trailers"), ("cookie", "a=1"), ("cookie", "b=2")]);
        let mut two = one.clone();
        let present = Present::of(&one);
        address(&mut one, present, Version::HTTP_11, &host);
        assert_eq!(
            (&one[header::HOST], &one[header::COOKIE]),
            (&host, &HeaderValue::from_static("a=1; b=2"))
        );
        assert!(!one.contains_key(header::TE));
        two.insert(header::HOST, host.clone());
        address(&mut two, present, Version::HTTP_2, &host);
        assert!(!two.contains_key(header::HOST) && two[header::TE] == "trailers");
    }
}
