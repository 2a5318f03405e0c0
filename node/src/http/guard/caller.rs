//! [`Caller`]: determines the address of a request's client and its proofs (this machine, token, session,
//! member's signature), and checks which classes of writes they permit.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header},
};
use hearsay_protocol::NodeId;
use hearsay_services::{
    Problem,
    http::{Effect, covers},
};

use crate::{
    http::{
        guard::{access::Access, class::Class},
        server::connection::Connection,
    },
    sessions,
    signing::Signed,
};

/// Header in which Consul's clients send their token.
const CONSUL_TOKEN: &str = "x-consul-token";

/// The token of a request, compared with the node's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    None,
    Wrong,
    Ours,
}

impl Token {
    fn of(headers: &HeaderMap, is_consul: bool, access: &Access) -> Self {
        match (&access.token, presented_token(headers, is_consul)) {
            (_, None) => Self::None,
            (Some(ours), Some(presented)) if ours.matches(presented) => Self::Ours,
            (_, Some(_)) => Self::Wrong,
        }
    }
}

/// Removes this node's token and sessions from a request that a gateway forwards. Any other `Authorization`
/// is for the instance.
pub(crate) fn strip_credentials(headers: &mut HeaderMap, access: &Access) {
    if Token::of(headers, false, access) == Token::Ours {
        headers.remove(header::AUTHORIZATION);
    }
    let is_ours = |value: &HeaderValue| {
        let presented = value.to_str().ok();
        access.token.as_ref().zip(presented).is_some_and(|(ours, presented)| ours.matches(presented))
    };
    if headers.get(CONSUL_TOKEN).is_some_and(is_ours) {
        headers.remove(CONSUL_TOKEN);
    }
    sessions::strip(headers);
}

/// The caller of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Caller {
    /// Whether the request came over the Unix socket, or over loopback where that is a proof, and not from a
    /// proxy.
    is_local: bool,
    /// Address of the client. `None` over the Unix socket and behind a proxy that is not trusted.
    ip: Option<IpAddr>,
    token: Token,
    /// Whether the request has a session of this node. It permits reads, and writes if there is an `Origin`.
    has_session: bool,
    has_origin: bool,
    signer: Option<NodeId>,
}

impl Caller {
    /// Determines the caller of a request.
    pub(crate) fn of(
        request: &Request,
        connection: Option<&Connection>,
        signed: Option<Signed>,
        access: &Access,
    ) -> Self {
        let headers = request.headers();
        let is_direct = !is_forwarded(headers);
        Self {
            is_local: is_direct && connection.is_some_and(|connection| is_local(connection, access)),
            ip: connection
                .and_then(|connection| connection.peer)
                .and_then(|peer| origin(peer.ip(), headers, access)),
            token: Token::of(headers, covers("/v1", request.uri().path()), access),
            has_session: access.sessions.find(headers, Instant::now()).is_some(),
            has_origin: headers.contains_key(header::ORIGIN),
            signer: signed.map(|signed| signed.by),
        }
    }

    /// Determines the caller of a request that came over a plug-in's own listener.
    pub(crate) fn of_listener(ip: IpAddr, headers: &HeaderMap, access: &Access) -> Self {
        let is_direct = !is_forwarded(headers);
        Self {
            is_local: is_direct && !access.loopback_needs_token && ip.to_canonical().is_loopback(),
            ip: origin(ip, headers, access),
            token: Token::of(headers, false, access),
            has_session: access.sessions.find(headers, Instant::now()).is_some(),
            has_origin: headers.contains_key(header::ORIGIN),
            signer: None,
        }
    }

    /// Whether the caller has a proof, and may therefore register programs of other hosts than its own.
    pub(crate) fn is_proven(&self) -> bool {
        self.is_local || self.token == Token::Ours || self.writes_by_session() || self.signer.is_some()
    }

    /// Whether the request has the node's API token.
    pub(crate) fn has_token(&self) -> bool {
        self.token == Token::Ours
    }

    /// Whether the request has a session of this node.
    pub(crate) fn has_session(&self) -> bool {
        self.has_session
    }

    /// Whether a write of this caller is accepted as sent by a form of this node's pages: it comes from this
    /// machine, or has a session and an `Origin`.
    pub(crate) fn may_submit_forms(&self) -> bool {
        self.is_local || self.writes_by_session()
    }

    /// Whether pages show forms to this caller, so that [its writes are accepted](Self::may_submit_forms). A
    /// GET has no `Origin`, so a session suffices here.
    pub(crate) fn shows_forms(&self) -> bool {
        self.is_local || self.has_session
    }

    fn writes_by_session(&self) -> bool {
        self.has_session && self.has_origin
    }

    /// Address of the client, if known.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    /// Whether the request has a member's signature.
    pub(crate) fn is_signed(&self) -> bool {
        self.signer.is_some()
    }

    /// Address of a caller without proof.
    pub(crate) fn unproven_ip(&self) -> Option<IpAddr> {
        self.ip.filter(|_| !self.is_proven())
    }

    /// Checks whether the caller may make a request of this class and effect.
    ///
    /// # Errors
    /// 401: a proof is missing or wrong. 403: the node has no token, so other machines have no way to prove
    /// themselves.
    pub(crate) fn check(&self, class: Class, effect: Effect, access: &Access) -> Result<(), Problem> {
        let is_free = effect == Effect::Read && !access.reads_need_proof
            || matches!(class, Class::Session | Class::Inner);
        if is_free || self.is_local || self.token == Token::Ours {
            return Ok(());
        }
        let has_session = if effect == Effect::Read { self.has_session } else { self.writes_by_session() };
        // Any web page can make a browser send a GET (for example as an image), so a private address proves
        // nothing for writes by GET.
        let is_private = !access.is_keyed && effect != Effect::WriteByGet && self.ip.is_some_and(is_private);
        let is_member = self.signer.is_some() || has_session;
        let is_allowed = match class {
            Class::Admin => false,
            Class::Kv => is_member,
            Class::Registry => is_member || is_private,
            Class::Role => is_member || is_private || access.is_open,
            Class::Session | Class::Inner => true,
        };
        if is_allowed { Ok(()) } else { Err(self.refusal(class, effect, access)) }
    }

    fn refusal(&self, class: Class, effect: Effect, access: &Access) -> Problem {
        if access.token.is_none() {
            let detail = match effect {
                Effect::Read => {
                    "this node is private and has no token, so it answers only its own machine; give it a token"
                }
                _ => {
                    "this node has no token, so it accepts writes only from its own machine; give it a token, or write there"
                }
            };
            return Problem::new(StatusCode::FORBIDDEN, detail);
        }
        let what = match self.token {
            Token::Wrong => "this is not the node's token",
            _ => "the node's token is missing",
        };
        let rule = match class {
            _ if effect == Effect::Read => "this node is private, and reads from other machines need it",
            Class::Admin if access.loopback_needs_token => {
                "writes to this path, from this machine too, need it"
            }
            Class::Admin => "writes to this path from other machines need it",
            Class::Kv => "writes of keys and user events from other machines need it",
            Class::Registry | Class::Role if access.is_keyed => "writes from other machines need it",
            Class::Registry | Class::Role | Class::Session | Class::Inner => {
                "writes from public addresses, and those that a proxy forwards, need it"
            }
        };
        let detail = format!(
            "{what}: {rule} as 'Authorization: Bearer …' (X-Consul-Token under /v1; browsers sign in at /login); it is in the file api-token of the node's data directory"
        );
        Problem::new(StatusCode::UNAUTHORIZED, detail).with("class", class.as_str())
    }
}

/// Whether an address is private: RFC 1918, unique local (RFC 4193) or link-local IPv6 (RFC 4291).
fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_private(),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
    }
}

/// Whether the client is on this machine: over the Unix socket, or over loopback where that is a proof.
fn is_local(connection: &Connection, access: &Access) -> bool {
    let is_loopback = |peer: SocketAddr| peer.ip().to_canonical().is_loopback();
    connection.socket.is_some() || !access.loopback_needs_token && connection.peer.is_some_and(is_loopback)
}

/// Whether a proxy forwards the request: `Via` (RFC 9110, section 7.6.3), `Forwarded` (RFC 7239), or any
/// `X-Forwarded-*`.
fn is_forwarded(headers: &HeaderMap) -> bool {
    let marks = |name: &str| matches!(name, "via" | "forwarded") || name.starts_with("x-forwarded-");
    headers.keys().any(|name| marks(name.as_str()))
}

/// Returns the client's address: the peer's, or the address that a trusted proxy states. `None` behind
/// another proxy.
fn origin(peer: IpAddr, headers: &HeaderMap, access: &Access) -> Option<IpAddr> {
    if !is_forwarded(headers) {
        return Some(peer);
    }
    let is_trusted = access.trusted_proxies.iter().any(|proxies| proxies.contains(peer));
    is_trusted.then(|| forwarded_client(headers)).flatten()
}

/// Returns the client that the last proxy states: the last element of `Forwarded` or of `X-Forwarded-For`. A
/// proxy may write one of them and keep the client's own value of the other, so if both are there, they must
/// agree.
fn forwarded_client(headers: &HeaderMap) -> Option<IpAddr> {
    let last = |name: &str| {
        let value = headers.get_all(name).iter().next_back()?.to_str().ok()?;
        value.rsplit(',').next().map(str::trim)
    };
    let simple = last("x-forwarded-for").map(|ip| ip.parse::<IpAddr>().ok());
    let standard = last("forwarded").map(|element| {
        let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
        let (_, node) = pairs.find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
        let node = node.trim_matches('"');
        match node.strip_prefix('[') {
            Some(rest) => rest.split(']').next()?.parse().ok(),
            None => node.split(':').next()?.parse().ok(),
        }
    });
    match (simple, standard) {
        (Some(simple), Some(standard)) => simple.filter(|ip| Some(*ip) == standard),
        (simple, standard) => simple.or(standard).flatten(),
    }
}

/// Returns the token that a request presents.
fn presented_token(headers: &HeaderMap, is_consul: bool) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let consul = || headers.get(CONSUL_TOKEN).and_then(|value| value.to_str().ok());
    bearer.or_else(|| if is_consul { consul() } else { None })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use hearsay_protocol::BodyHash;

    use super::*;
    use crate::{http::server::listeners::PeerCredentials, storage::Secret};

    const ALL: [Class; 3] = [Class::Admin, Class::Registry, Class::Role];

    fn access() -> Access {
        Access { token: Some(Secret::new("abc".to_owned())), ..Access::default() }
    }

    fn keyed() -> Access {
        Access { is_keyed: true, ..access() }
    }

    fn by(peer: &str) -> Connection {
        Connection { peer: peer.parse().ok(), ..Connection::default() }
    }

    fn by_socket() -> Connection {
        let credentials = PeerCredentials { uid: 1000, gid: 1000, pid: Some(1) };
        Connection { socket: Some(credentials), ..Connection::default() }
    }

    fn request(path: &str, headers: &[(&'static str, &'static str)]) -> Request {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = path.parse().unwrap();
        headers.iter().for_each(|(name, value)| {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        });
        request
    }

    /// The statuses that a write of each class gets: 0 for one that passes.
    fn statuses(
        access: &Access,
        connection: &Connection,
        headers: &[(&'static str, &'static str)],
    ) -> [u16; 3] {
        let caller = Caller::of(&request("/v1/x", headers), Some(connection), None, access);
        ALL.map(|class| {
            caller.check(class, Effect::Write, access).err().map_or(0, |problem| problem.status().as_u16())
        })
    }

    #[test]
    fn this_machine_and_the_token_write_everywhere() {
        for peer in ["127.0.0.1:9", "127.8.0.1:9", "[::1]:9", "[::ffff:127.0.0.1]:9"] {
            assert_eq!(statuses(&keyed(), &by(peer), &[]), [0; 3], "{peer}");
        }
        assert_eq!(statuses(&keyed(), &by_socket(), &[]), [0; 3]);
        for peer in ["10.0.0.1:9", "[::ffff:10.0.0.1]:9", "[fe80::1]:9", "8.8.8.8:9", "unknown"] {
            assert_eq!(statuses(&keyed(), &by(peer), &[]), [401; 3], "{peer}");
            assert_eq!(statuses(&keyed(), &by(peer), &[("authorization", "Bearer abd")]), [401; 3]);
            assert_eq!(statuses(&keyed(), &by(peer), &[("authorization", "bearer abc")]), [0; 3]);
            assert_eq!(statuses(&keyed(), &by(peer), &[("x-consul-token", "abc")]), [0; 3]);
            let without = Access { token: None, ..keyed() };
            assert_eq!(statuses(&without, &by(peer), &[("authorization", "Bearer abc")]), [403; 3]);
        }
    }

    #[test]
    fn the_nodes_own_pages_are_on_this_machine_or_bear_a_session() {
        let access = keyed();
        let cookie = access.sessions.begin(false, Instant::now()).unwrap();
        let cookie = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
        let caller = |connection: &Connection, pairs: &[(&'static str, &'static str)], has_cookie: bool| {
            let mut request = request("/ui/registrations/deregister", pairs);
            if has_cookie {
                request.headers_mut().insert("cookie", HeaderValue::try_from(&cookie).unwrap());
            }
            Caller::of(&request, Some(connection), None, &access)
        };
        assert!(caller(&by("127.0.0.1:9"), &[], false).may_submit_forms());
        let token = ("authorization", "Bearer abc");
        for peer in ["10.0.0.1:9", "[fe80::1]:9", "unknown"] {
            assert!(!caller(&by(peer), &[token], false).may_submit_forms(), "{peer}");
            assert!(!caller(&by(peer), &[], true).may_submit_forms(), "without Origin: {peer}");
            assert!(caller(&by(peer), &[("origin", "http://n1")], true).may_submit_forms(), "{peer}");
            assert!(
                caller(&by(peer), &[], true).shows_forms() && !caller(&by(peer), &[], false).shows_forms()
            );
        }
        for name in ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"] {
            assert!(!caller(&by("127.0.0.1:9"), &[(name, "10.0.0.1")], false).may_submit_forms(), "{name}");
        }
    }

    #[test]
    fn in_an_open_cluster_private_addresses_write_to_registry_and_roles() {
        for peer in [
            "10.0.0.1:9",
            "172.16.0.1:9",
            "192.168.1.1:9",
            "[::ffff:10.0.0.1]:9",
            "[fe80::1]:9",
            "[fd00::1]:9",
        ] {
            assert_eq!(statuses(&access(), &by(peer), &[]), [401, 0, 0], "{peer}");
        }
        for peer in ["8.8.8.8:9", "[2001:db8::1]:9", "100.64.0.1:9", "unknown"] {
            assert_eq!(statuses(&access(), &by(peer), &[]), [401; 3], "{peer}");
        }
        let caller = Caller::of(&request("/visits/hit", &[]), Some(&by("10.0.0.1:9")), None, &access());
        assert!(
            caller.check(Class::Role, Effect::WriteByGet, &access()).is_err(),
            "a browser makes a GET of any image"
        );
        assert_eq!((caller.is_proven(), caller.unproven_ip()), (false, Some([10, 0, 0, 1].into())));
    }

    #[test]
    fn options_open_the_roles_and_close_loopback() {
        let open = Access { is_open: true, ..keyed() };
        assert_eq!(statuses(&open, &by("8.8.8.8:9"), &[("via", "1.1 x")]), [401, 401, 0]);
        for access in [
            Access { loopback_needs_token: true, ..keyed() },
            Access { loopback_needs_token: true, ..access() },
        ] {
            assert_eq!(statuses(&access, &by("127.0.0.1:9"), &[]), [401; 3]);
            assert_eq!(statuses(&access, &by("127.0.0.1:9"), &[("authorization", "Bearer abc")]), [0; 3]);
            assert_eq!(statuses(&access, &by_socket(), &[]), [0; 3]);
        }
    }

    #[test]
    fn a_member_writes_to_registry_and_roles_and_not_to_the_node() {
        let signed = Signed { by: NodeId::from_public_key([7; 32]), body: BodyHash::of(b"") };
        for headers in [&[][..], &[("via", "1.1 gateway"), ("forwarded", "for=8.8.8.8")]] {
            let caller = Caller::of(&request("/x", headers), Some(&by("8.8.8.8:9")), Some(signed), &keyed());
            let passes = ALL.map(|class| caller.check(class, Effect::WriteByGet, &keyed()).is_ok());
            assert_eq!(passes, [false, true, true]);
            assert!(caller.is_proven() && caller.unproven_ip().is_none());
        }
    }

    #[test]
    fn what_a_proxy_passes_on_is_neither_local_nor_private_whichever_header_tells() {
        for name in ["via", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-whatever"] {
            for connection in [by("127.0.0.1:9"), by("10.0.0.1:9"), by_socket()] {
                assert_eq!(statuses(&access(), &connection, &[(name, "x")]), [401; 3], "{name}");
            }
        }
        let other = [("x-forward", "x"), ("host", "localhost"), ("viaduct", "x")];
        assert_eq!(statuses(&access(), &by("127.0.0.1:9"), &other), [0; 3]);
    }

    #[test]
    fn a_trusted_proxy_is_believed_for_whom_it_asks() {
        let access = || Access { trusted_proxies: vec!["10.9.0.0/16".parse().unwrap()], ..access() };
        let by_proxy =
            |headers: &[(&'static str, &'static str)]| statuses(&access(), &by("10.9.0.1:9"), headers);
        let private = [401, 0, 0];
        for headers in [
            &[("x-forwarded-for", "8.8.8.8, 10.0.0.7")][..],
            &[
                ("x-forwarded-for", "8.8.8.8"),
                ("x-forwarded-for", "10.0.0.7"),
                ("x-forwarded-proto", "https"),
            ],
            &[("forwarded", "for=8.8.8.8, for=10.0.0.7:4711;proto=https")],
            &[("forwarded", "proto=https; for=\"[fd00::7]:4711\"")],
            &[("forwarded", "for=10.0.0.7"), ("x-forwarded-for", "10.0.0.7")],
        ] {
            assert_eq!(by_proxy(headers), private, "{headers:?}");
            assert_eq!(statuses(&access(), &by("10.8.0.1:9"), headers), [401; 3], "another proxy");
        }
        for headers in [
            &[("x-forwarded-for", "10.0.0.7, 8.8.8.8")][..],
            &[("x-forwarded-for", "127.0.0.1")],
            &[("x-forwarded-for", "unknown")],
            &[("forwarded", "for=10.0.0.7"), ("x-forwarded-for", "8.8.8.8")],
            &[("forwarded", "for=8.8.8.8"), ("x-forwarded-for", "10.0.0.7")],
            &[("forwarded", "for=_hidden")],
            &[("via", "1.1 proxy")],
        ] {
            assert_eq!(by_proxy(headers), [401; 3], "{headers:?}");
        }
        assert_eq!(by_proxy(&[]), private, "it asks for itself");
    }

    #[test]
    fn consuls_header_counts_only_on_consuls_paths() {
        let token = |path: &str| {
            let request = request(path, &[("x-consul-token", "abc")]);
            Caller::of(&request, Some(&by("8.8.8.8:9")), None, &keyed()).token
        };
        assert_eq!((token("/services"), token("/v1/agent/leave")), (Token::None, Token::Ours));
    }

    #[test]
    fn a_token_goes_no_further_than_to_its_node() {
        let left = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = request("/", pairs).headers().clone();
            strip_credentials(&mut headers, &access());
            headers.keys().map(|name| name.as_str().to_owned()).collect::<Vec<_>>()
        };
        assert!(left(&[("authorization", "Bearer abc"), ("x-consul-token", "abc")]).is_empty());
        let others = [("authorization", "Bearer of-the-instance"), ("x-consul-token", "other")];
        assert_eq!(left(&others), ["authorization", "x-consul-token"]);
    }
}
