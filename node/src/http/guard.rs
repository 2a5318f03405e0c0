//! Who may ask what, decided before a body is read.
//!
//! A node listens on every address and has no users, so a web page in a visitor's browser is as close to it as its own clients
//! are. Four rules keep such pages, and strangers, from writing:
//!
//! 1. `Host` must name this node (see [`HostNames`](super::HostNames)); else a page could make the node part of its own origin.
//! 2. A write with an `Origin` must come from a page of this very node.
//! 3. A write's body needs a content type that no HTML form can send, so that a browser would first ask (and be refused).
//! 4. A write from another machine needs the node's token. What a proxy passes on comes from another machine.
//!
//! The forms of the node's own pages are the exception to rule 3, for the paths in [`FORM_PATHS`] alone, and under
//! stricter rules: `Origin` must be there, the type must be a form's, and the request must come from this machine,
//! whatever token it carries.
//!
//! Plug-in paths are for the network: rule 4 does not hold there, and rule 3 only where the plug-in leaves it standing. Under `/v1`,
//! PUT and DELETE may have any content type: no form can send those methods, and `curl -X PUT -d` is how Consul is used.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::HttpBody,
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header, uri::Authority},
    response::{IntoResponse, Response},
};
use hearsay_services::{Problem, Service, prefixes::covers};

use super::{accept::Connection, site::Site};
use crate::storage::Secret;

/// The content types that an HTML form, or a page's script without asking first, can send.
const FORM_TYPES: [&str; 3] = ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"];

/// The type that an HTML form sends where it does not say otherwise.
const FORM_TYPE: &str = FORM_TYPES[0];

/// The paths to which the forms of the node's own pages lead. Compared as a whole: what lies below them is not meant.
const FORM_PATHS: [&str; 2] = [super::ui::DEREGISTER_PATH, super::ui::MAINTENANCE_PATH];

/// The rules for one node and its plug-ins.
#[derive(Debug)]
pub(super) struct Guard {
    site: Arc<Site>,
    /// Each plug-in's prefix, and whether it takes the bodies of forms.
    plugins: Vec<(String, bool)>,
}

/// Whose path it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Area {
    Node,
    Consul,
    Plugin { takes_form_bodies: bool },
}

/// Which rule a request breaks, as a word for the metrics, and what to tell the client.
type Refusal = (&'static str, Problem);

impl Guard {
    pub(super) fn new(site: Arc<Site>, plugins: &[Arc<dyn Service>]) -> Self {
        let areas = plugins.iter().flat_map(|plugin| {
            let takes_form_bodies = plugin.takes_form_bodies();
            plugin.prefixes().iter().map(move |prefix| ((*prefix).to_owned(), takes_form_bodies))
        });
        Self { site, plugins: areas.collect() }
    }

    /// Lets a request pass.
    ///
    /// # Errors
    /// What to answer instead.
    pub(super) fn check(&self, request: &Request) -> Result<(), Box<Response>> {
        self.examine(request).map_err(|(reason, problem)| {
            self.site.metrics.http.refused(reason);
            let unauthorised = problem.status() == StatusCode::UNAUTHORIZED;
            let mut response = problem.into_response();
            if unauthorised {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Box::new(response)
        })
    }

    fn examine(&self, request: &Request) -> Result<(), Refusal> {
        let authority = authority(request).map_err(|problem| ("host", problem))?;
        if let Some(authority) = &authority
            && !self.site.names.accept(authority.host())
        {
            return Err(("host", foreign_host(&self.site.name, authority.host())));
        }
        // Nothing here changes anything on a safe method; one that a path does not take is refused by the router, with those it takes.
        if request.method().is_safe() {
            return Ok(());
        }
        check_origin(request.headers(), authority.as_ref()).map_err(|problem| ("origin", problem))?;
        let connection = request.extensions().get::<Connection>();
        if FORM_PATHS.contains(&request.uri().path()) {
            return check_form(request.method(), request.headers(), connection);
        }
        let area = self.area(request.uri().path());
        if !request.body().is_end_stream() {
            check_content_type(area, request.method(), request.headers())
                .map_err(|problem| ("content_type", problem))?;
        }
        if matches!(area, Area::Plugin { .. }) {
            return Ok(());
        }
        let writer = Writer {
            is_local: is_from_this_machine(connection, request.headers()),
            token: presented_token(request.headers(), area),
        };
        check_token(self.site.token.as_ref(), writer).map_err(|problem| ("token", problem))
    }

    fn area(&self, path: &str) -> Area {
        match self.plugins.iter().find(|(prefix, _)| covers(prefix, path)) {
            Some((_, takes_form_bodies)) => Area::Plugin { takes_form_bodies: *takes_form_bodies },
            None if covers("/v1", path) => Area::Consul,
            None => Area::Node,
        }
    }
}

/// Whom the request is addressed to. `None`: an HTTP/1.0 client that does not say, which no browser is.
fn authority(request: &Request) -> Result<Option<Authority>, Problem> {
    let bad = |detail: &str| Problem::new(StatusCode::BAD_REQUEST, detail);
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            let parsed = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
            Some(parsed.filter(is_host_and_port).ok_or_else(|| bad("the Host header names no host"))?)
        }
        (None, _) if request.version() < Version::HTTP_11 => None,
        (None, _) => return Err(bad("the Host header is missing")),
        (Some(_), Some(_)) => return Err(bad("there is more than one Host header")),
    };
    // RFC 9112, section 3.2.2: an absolute target outranks the header.
    Ok(request.uri().authority().cloned().or(host))
}

/// Whether it is a host and perhaps a port. The library also takes a user, and anything at all for a port.
fn is_host_and_port(authority: &Authority) -> bool {
    let is_port = |port: &str| port.is_empty() || port.parse::<u16>().is_ok();
    let rest = authority.as_str().strip_prefix(authority.host());
    rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
}

fn foreign_host(node: &str, host: &str) -> Problem {
    let host: String = host.chars().take(128).collect();
    let detail = format!(
        "the node {node} does not go by the name {host:?}; use its address or localhost, or start it with --allow-host {host} \
         (behind a gateway, every node whose roles are reached by that name)"
    );
    Problem::new(StatusCode::MISDIRECTED_REQUEST, detail)
}

fn check_origin(headers: &HeaderMap, authority: Option<&Authority>) -> Result<(), Problem> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    if let (Ok(origin), Some(authority)) = (origin.to_str(), authority)
        && is_own_origin(origin, authority)
    {
        return Ok(());
    }
    Err(Problem::new(StatusCode::FORBIDDEN, "a page of another origin may not write here"))
}

/// Whether the page that asks was served by whom it asks. A port that is not written is the scheme's own, on both sides: a
/// proxy before this node may speak https.
fn is_own_origin(origin: &str, authority: &Authority) -> bool {
    let (origin, port) = match origin.split_once("://") {
        Some(("http", origin)) => (origin, 80),
        Some(("https", origin)) => (origin, 443),
        _ => return false,
    };
    let Ok(origin) = origin.parse::<Authority>() else { return false };
    origin.host().eq_ignore_ascii_case(authority.host())
        && origin.port_u16().unwrap_or(port) == authority.port_u16().unwrap_or(port)
}

/// Checks a form of the node's own pages, after the rules for `Host` and `Origin`. Browsers send `Origin` with every
/// form, so a request without it is refused. The token does not count: a form cannot carry it.
fn check_form(method: &Method, headers: &HeaderMap, connection: Option<&Connection>) -> Result<(), Refusal> {
    if method != Method::POST {
        // The router names the methods that the path takes.
        return Ok(());
    }
    let is_same_origin = |value: &HeaderValue| value.as_bytes() == b"same-origin";
    if !headers.contains_key(header::ORIGIN) || !headers.get("sec-fetch-site").is_none_or(is_same_origin) {
        let detail = "this path takes the forms of this node's own pages, and this request comes from none of them; programs \
                      write to /services";
        return Err(("origin", Problem::new(StatusCode::FORBIDDEN, detail)));
    }
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let essence = match (types.next().and_then(|value| value.to_str().ok()), types.next()) {
        (Some(value), None) => value.split(';').next().unwrap_or_default().trim(),
        _ => "",
    };
    if !essence.eq_ignore_ascii_case(FORM_TYPE) {
        let detail = format!("this path takes the forms of this node's own pages: {FORM_TYPE}");
        return Err(("content_type", Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)));
    }
    if !is_from_this_machine(connection, headers) {
        let detail = "the pages change registrations only from the node's own machine; open the page there, or use the paths under \
                      /services with the node's token";
        return Err(("token", Problem::new(StatusCode::FORBIDDEN, detail)));
    }
    Ok(())
}

fn check_content_type(area: Area, method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence =
        content_type.map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    let is_form = essence.as_deref().is_some_and(|essence| FORM_TYPES.contains(&essence));
    let is_allowed = match area {
        Area::Plugin { takes_form_bodies: true } => true,
        Area::Consul => !is_form || method != Method::POST,
        // A URL as plain text is what DELETE /services takes, and no form can send a DELETE.
        _ if method == Method::DELETE => essence.as_deref() != Some(FORM_TYPES[0]),
        // A body without a type is something that a script can send without asking.
        _ => essence.is_some() && !is_form,
    };
    if is_allowed {
        return Ok(());
    }
    let given = content_type.map_or_else(|| "none".to_owned(), |value| value.chars().take(128).collect());
    let detail = format!(
        "writes need a content type that no form can send, such as application/json; this has {given}"
    );
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
}

/// Whether a request was made on this machine, and no proxy passes it on.
pub(super) fn is_from_this_machine(connection: Option<&Connection>, headers: &HeaderMap) -> bool {
    connection.is_some_and(is_of_this_machine) && !is_forwarded(headers)
}

/// Whether the other end is on this machine: by loopback, or by the Unix socket.
fn is_of_this_machine(connection: &Connection) -> bool {
    let is_loopback = |peer: SocketAddr| peer.ip().to_canonical().is_loopback();
    connection.socket.is_some() || connection.peer.is_some_and(is_loopback)
}

/// Whether a proxy passes the request on: `Via` (RFC 9110, section 7.6.3), `Forwarded` (RFC 7239), or any `X-Forwarded-*`.
fn is_forwarded(headers: &HeaderMap) -> bool {
    let marks = |name: &str| matches!(name, "via" | "forwarded") || name.starts_with("x-forwarded-");
    headers.keys().any(|name| marks(name.as_str()))
}

fn presented_token(headers: &HeaderMap, area: Area) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let consul = || headers.get("x-consul-token").and_then(|value| value.to_str().ok());
    bearer.or_else(|| if area == Area::Consul { consul() } else { None })
}

/// Who wants to write.
#[derive(Clone, Copy, Debug)]
struct Writer<'a> {
    is_local: bool,
    token: Option<&'a str>,
}

fn check_token(ours: Option<&Secret<String>>, writer: Writer<'_>) -> Result<(), Problem> {
    if writer.is_local {
        return Ok(());
    }
    match (ours, writer.token) {
        (Some(ours), Some(presented)) if ours.matches(presented) => Ok(()),
        (Some(_), presented) => {
            let what = if presented.is_some() {
                "this is not the node's token"
            } else {
                "the node's token is missing"
            };
            let detail = format!(
                "{what}: writes from other machines need it as 'Authorization: Bearer …' (X-Consul-Token under /v1); \
                 it stands in the node's data directory"
            );
            Err(Problem::new(StatusCode::UNAUTHORIZED, detail))
        }
        (None, _) => {
            let detail = "this node has no token, so it takes writes only from its own machine; give it one, or write there";
            Err(Problem::new(StatusCode::FORBIDDEN, detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::listeners::PeerCredentials;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (header::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn only_this_machine_writes_without_the_token() {
        let ours = Secret::new("abc".to_owned());
        let status = |ours: Option<&Secret<String>>, peer: &str, pairs: &[(&'static str, &'static str)]| {
            let (headers, connection) =
                (headers(pairs), Connection { peer: peer.parse().ok(), ..Connection::default() });
            let is_local = is_of_this_machine(&connection) && !is_forwarded(&headers);
            let writer = Writer { is_local, token: presented_token(&headers, Area::Consul) };
            check_token(ours, writer).map_err(|problem| problem.status().as_u16())
        };
        for peer in ["127.0.0.1:9", "127.8.0.1:9", "[::1]:9", "[::ffff:127.0.0.1]:9"] {
            assert_eq!(status(Some(&ours), peer, &[]), Ok(()), "{peer}");
        }
        for peer in ["10.0.0.1:9", "[::ffff:10.0.0.1]:9", "[fe80::1]:9", "unknown"] {
            assert_eq!(status(Some(&ours), peer, &[]), Err(401), "{peer}");
            assert_eq!(status(Some(&ours), peer, &[("authorization", "Bearer abd")]), Err(401));
            assert_eq!(status(Some(&ours), peer, &[("authorization", "bearer abc")]), Ok(()));
            assert_eq!(status(Some(&ours), peer, &[("x-consul-token", "abc")]), Ok(()));
            assert_eq!(status(None, peer, &[("authorization", "Bearer abc")]), Err(403));
        }
    }

    #[test]
    fn what_a_proxy_passes_on_is_not_local_whichever_header_tells() {
        let by_loopback = Connection { peer: "127.0.0.1:9".parse().ok(), ..Connection::default() };
        let credentials = PeerCredentials { uid: 1000, gid: 1000, pid: Some(1) };
        let by_socket = Connection { socket: Some(credentials), ..Connection::default() };
        for connection in [by_loopback, by_socket] {
            assert!(is_of_this_machine(&connection));
        }
        assert!(!is_of_this_machine(&Connection::default()));
        for name in ["via", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-whatever"] {
            assert!(is_forwarded(&headers(&[(name, "x")])), "{name}");
        }
        assert!(!is_forwarded(&headers(&[("x-forward", "x"), ("host", "localhost"), ("viaduct", "x")])));
    }

    #[test]
    fn consuls_header_counts_only_on_consuls_paths() {
        assert_eq!(presented_token(&headers(&[("x-consul-token", "abc")]), Area::Node), None);
    }

    #[test]
    fn a_page_is_at_home_only_where_it_came_from() {
        let own = |origin: &str, host: &str| is_own_origin(origin, &host.parse().unwrap());
        assert!(own("http://n1:7500", "N1:7500"));
        assert!(own("http://n1", "n1:80") && own("https://n1", "n1"));
        for origin in [
            "null",
            "http://n1:7501",
            "http://evil.example:7500",
            "https://n1:80",
            "n1:7500",
            "ftp://n1:7500",
        ] {
            assert!(!own(origin, "n1:7500"), "{origin}");
        }
    }

    #[test]
    fn a_form_is_taken_only_from_a_page_of_this_node_on_this_machine() {
        const OWN: [(&str, &str); 2] =
            [("origin", "http://localhost:7500"), ("content-type", "application/x-www-form-urlencoded")];
        let refused = |peer: &str, pairs: &[(&'static str, &'static str)]| {
            let connection = Connection { peer: peer.parse().ok(), ..Connection::default() };
            let refusal = check_form(&Method::POST, &headers(pairs), Some(&connection)).err();
            refusal.map(|(reason, problem)| (reason, problem.status().as_u16()))
        };
        for peer in ["127.0.0.1:9", "[::1]:9"] {
            assert_eq!(refused(peer, &OWN), None);
            assert_eq!(refused(peer, &[OWN[0], OWN[1], ("sec-fetch-site", "same-origin")]), None);
        }
        let (origin, content_type) = (Some(("origin", 403)), Some(("content_type", 415)));
        assert_eq!(refused("127.0.0.1:9", &[OWN[1]]), origin, "no Origin");
        for site in ["cross-site", "same-site", "none", ""] {
            assert_eq!(refused("127.0.0.1:9", &[OWN[0], OWN[1], ("sec-fetch-site", site)]), origin, "{site}");
        }
        for other in
            ["application/json", "text/plain", "multipart/form-data", "application/x-www-form-urlencodedx"]
        {
            assert_eq!(refused("127.0.0.1:9", &[OWN[0], ("content-type", other)]), content_type, "{other}");
        }
        assert_eq!(refused("127.0.0.1:9", &OWN[..1]), content_type, "no type");
        let elsewhere = Some(("token", 403));
        for peer in ["10.0.0.1:9", "[fe80::1]:9", "unknown"] {
            assert_eq!(refused(peer, &OWN), elsewhere, "{peer}");
            assert_eq!(
                refused(peer, &[OWN[0], OWN[1], ("authorization", "Bearer abc")]),
                elsewhere,
                "{peer}"
            );
        }
        for name in ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"] {
            assert_eq!(refused("127.0.0.1:9", &[OWN[0], OWN[1], (name, "10.0.0.1")]), elsewhere, "{name}");
        }
    }

    #[test]
    fn a_body_needs_a_type_that_no_form_can_send() {
        let allowed = |area, method: Method, content_type: Option<&'static str>| {
            let headers = content_type.map(|value| headers(&[("content-type", value)])).unwrap_or_default();
            check_content_type(area, &method, &headers).is_ok()
        };
        let plugin = |takes_form_bodies| Area::Plugin { takes_form_bodies };
        let form = Some("Application/X-www-form-urlencoded; charset=utf-8");
        assert!(allowed(Area::Node, Method::POST, Some("application/json")));
        for area in [Area::Node, plugin(false)] {
            for content_type in [form, Some("text/plain"), Some("multipart/form-data; boundary=x"), None] {
                assert!(!allowed(area, Method::POST, content_type), "{area:?} {content_type:?}");
                assert!(!allowed(area, Method::PUT, content_type), "{area:?} {content_type:?}");
            }
        }
        assert!(allowed(plugin(true), Method::POST, form));
        assert!(allowed(Area::Consul, Method::PUT, form) && !allowed(Area::Consul, Method::POST, form));
        assert!(
            allowed(Area::Node, Method::DELETE, Some("text/plain"))
                && !allowed(Area::Node, Method::DELETE, form)
        );
    }
}
