//! Who may ask what, decided before a body is read.
//!
//! A node listens on every address and has no users, so a web page in a visitor's browser is as close to it as its own clients
//! are. These rules keep such pages, and strangers, from writing:
//!
//! 1. `Host` must name this node (see [`HostNames`](super::HostNames)); else a page could make the node part of its own origin.
//! 2. A request that a browser marks as another site's (`Sec-Fetch-Site`) passes only if it opens a page. Browsers mark requests to `localhost`
//!    and over https alone, so rules 3 to 5 hold for writes without the mark, a GET that writes among them.
//! 3. A write with an `Origin` must come from a page of this very node.
//! 4. A write's body needs a content type that no HTML form can send, so that a browser would first ask (and be refused).
//! 5. A write needs proof of who asks, by its class: see [`class`](super::class) and [`caller`](super::caller).
//!
//! The forms of the node's own pages are the exception to rule 4, for the paths in [`FORM_PATHS`] alone, and under
//! stricter rules: `Origin` must be there, the type must be a form's, and the request must come from this machine,
//! whatever token it carries.
//!
//! Plug-ins may ask that rule 4 does not hold for them. Under `/v1`, PUT and DELETE may have any content type: no form can send those methods,
//! and `curl -X PUT -d` is how Consul is used.

use std::sync::Arc;

use axum::{
    body::HttpBody,
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header, uri::Authority},
    response::{IntoResponse, Response},
};
use hearsay_services::{Problem, Service, forwarded::Forwarded, signing::Unsigned};

use super::{
    accept::Connection,
    caller::{Caller, is_from_this_machine},
    class::{Area, Class, Classes},
    site::Site,
};
use crate::signing::{BadSignature, Signed};

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
    classes: Classes,
}

/// A request that breaks a rule.
#[derive(Debug)]
struct Refusal {
    /// The rule, as a word for the metrics.
    rule: &'static str,
    /// What to tell the client.
    problem: Problem,
    /// Whether the same request may pass in a moment.
    is_passing: bool,
}

impl From<(&'static str, Problem)> for Refusal {
    fn from((rule, problem): (&'static str, Problem)) -> Self {
        Self { rule, problem, is_passing: false }
    }
}

impl From<BadSignature> for Refusal {
    fn from(bad: BadSignature) -> Self {
        let problem = Problem::new(StatusCode::UNAUTHORIZED, bad.to_string());
        Self { rule: "signature", problem, is_passing: bad.is_passing() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let unauthorised = self.problem.status() == StatusCode::UNAUTHORIZED;
        let mut response = self.problem.into_response();
        if unauthorised {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.is_passing {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl Guard {
    /// `writes` are the node's own paths that change something.
    pub(super) fn new(
        site: Arc<Site>,
        plugins: &[Arc<dyn Service>],
        writes: &[(&'static str, &'static str, Class)],
    ) -> Self {
        Self { site, classes: Classes::new(plugins, writes) }
    }

    /// Lets a request pass. A write that passes carries who makes it ([`Caller`]), and a signed request who signed it ([`Signed`]), as extensions.
    ///
    /// # Errors
    /// What to answer instead.
    pub(super) fn check(&self, request: &mut Request) -> Result<(), Box<Response>> {
        self.examine(request).map_err(|refusal| Box::new(self.refuse(refusal)))
    }

    fn refuse(&self, refusal: Refusal) -> Response {
        self.site.metrics.http.refused(refusal.rule);
        refusal.into_response()
    }

    fn examine(&self, request: &mut Request) -> Result<(), Refusal> {
        let authority = authority(request).map_err(|problem| ("host", problem))?;
        if let Some(authority) = &authority
            && !self.site.names.accept(authority.host())
        {
            return Err(("host", foreign_host(&self.site.name, authority.host())).into());
        }
        let (method, path) = (request.method(), request.uri().path());
        let is_write = self.classes.is_write(method, path);
        check_site(method, request.headers(), is_write).map_err(|problem| ("site", problem))?;
        let signed = match self.signed(request, authority.as_ref()) {
            // What a read shows needs no proof.
            Err(_) if !is_write => None,
            signed => signed?,
        };
        if let Some(signed) = signed {
            request.extensions_mut().insert(signed);
        }
        // One that a path does not take is refused by the router, with those it takes.
        if !is_write {
            return Ok(());
        }
        // A page that was served through a gateway has the gateway's name, which the gateway has signed.
        let published = signed.and_then(|_| published_authority(request.headers()));
        check_origin(request.headers(), published.or(authority).as_ref())
            .map_err(|problem| ("origin", problem))?;
        let connection = request.extensions().get::<Connection>();
        let path = request.uri().path();
        // With a slash at its end it is the same path.
        if FORM_PATHS.contains(&path.strip_suffix('/').unwrap_or(path)) {
            check_form(request.method(), request.headers(), connection)?;
            let caller = Caller::of(request, connection, signed, &self.site.access);
            return Ok(caller
                .check(Class::Registry, false, &self.site.access)
                .map_err(|problem| ("token", problem))?);
        }
        let area = self.classes.area(request.uri().path());
        if !request.body().is_end_stream() {
            check_content_type(area, request.method(), request.headers())
                .map_err(|problem| ("content_type", problem))?;
        }
        let caller = Caller::of(request, connection, signed, &self.site.access);
        let class = self.classes.class(request.method(), request.uri().path());
        let by_get = request.method().is_safe();
        caller.check(class, by_get, &self.site.access).map_err(|problem| ("token", problem))?;
        request.extensions_mut().insert(caller);
        Ok(())
    }

    /// The signature of the request, if it bears one.
    fn signed(
        &self,
        request: &Request,
        authority: Option<&Authority>,
    ) -> Result<Option<Signed>, BadSignature> {
        self.site.signing.check(&Unsigned {
            method: request.method(),
            authority: authority.map_or("", Authority::as_str),
            target: request.uri().path_and_query().map_or("", |target| target.as_str()),
            headers: request.headers(),
        })
    }
}

/// Refuses what a browser marks as a request of another site, but for one that opens a page.
fn check_site(method: &Method, headers: &HeaderMap, is_write: bool) -> Result<(), Problem> {
    let said = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    if !matches!(said("sec-fetch-site"), Some(b"cross-site" | b"same-site")) {
        return Ok(());
    }
    let opens_a_page =
        said("sec-fetch-mode") == Some(b"navigate") && said("sec-fetch-dest") == Some(b"document");
    if opens_a_page && method.is_safe() && !is_write {
        return Ok(());
    }
    let detail = "a page of another site may open the pages here and nothing else";
    Err(Problem::new(StatusCode::FORBIDDEN, detail))
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

/// The name under which a gateway was asked, where it says so.
fn published_authority(headers: &HeaderMap) -> Option<Authority> {
    let forwarded = Forwarded::parse(headers.get(header::FORWARDED)?.to_str().ok()?)?;
    forwarded.host.parse().ok().filter(is_host_and_port)
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
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let origin = match (origins.next(), origins.next()) {
        (None, _) => return Ok(()),
        (origin, None) => origin.and_then(|origin| origin.to_str().ok()),
        // No browser sends several.
        (_, Some(_)) => None,
    };
    if let (Some(origin), Some(authority)) = (origin, authority)
        && is_own_origin(origin, authority)
    {
        return Ok(());
    }
    Err(Problem::new(StatusCode::FORBIDDEN, "a page of another origin may not write here"))
}

/// Whether the page that asks was served by whom it asks. A port that is not written is the scheme's own, on both sides: a
/// proxy before this node may speak https. Such a proxy may also leave the port out of `Host` (nginx's `$host`), so where the page was served by
/// https and `Host` has no port, that of the page does not count.
fn is_own_origin(origin: &str, authority: &Authority) -> bool {
    let (origin, port) = match origin.split_once("://") {
        Some(("http", origin)) => (origin, 80),
        Some(("https", origin)) => (origin, 443),
        _ => return false,
    };
    let Some(origin) = origin.parse::<Authority>().ok().filter(is_host_and_port) else { return false };
    let is_same_port = origin.port_u16().unwrap_or(port) == authority.port_u16().unwrap_or(port);
    origin.host().eq_ignore_ascii_case(authority.host())
        && (is_same_port || port == 443 && authority.port().is_none())
}

/// Checks a form of the node's own pages, after the rules for `Host` and `Origin`. Browsers send `Origin` with every
/// form, so a request without it is refused. The token does not count: a form cannot carry it.
fn check_form(
    method: &Method,
    headers: &HeaderMap,
    connection: Option<&Connection>,
) -> Result<(), (&'static str, Problem)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (header::HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_page_is_at_home_only_where_it_came_from() {
        let own = |origin: &str, host: &str| is_own_origin(origin, &host.parse().unwrap());
        assert!(own("http://n1:7500", "N1:7500"));
        assert!(own("http://n1", "n1:80") && own("https://n1", "n1"));
        assert!(own("https://n1:8443", "n1"), "a proxy that speaks https and leaves the port out of Host");
        assert!(!own("https://n1:8443", "n1:80") && !own("http://n1:8080", "n1"));
        assert!(!own("http://evil@n1:7500", "n1:7500"), "no browser sends a user");
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
    fn of_another_site_only_the_opening_of_a_page_passes() {
        let passes = |method: Method, site, mode, dest, is_write| {
            let headers =
                headers(&[("sec-fetch-site", site), ("sec-fetch-mode", mode), ("sec-fetch-dest", dest)]);
            check_site(&method, &headers, is_write).is_ok()
        };
        for site in ["cross-site", "same-site"] {
            assert!(passes(Method::GET, site, "navigate", "document", false), "a link to a page");
            assert!(!passes(Method::GET, site, "navigate", "document", true), "a link that writes");
            assert!(!passes(Method::POST, site, "navigate", "document", true), "a form");
            for (mode, dest) in [
                ("no-cors", "image"),
                ("cors", "empty"),
                ("no-cors", "script"),
                ("navigate", "iframe"),
                ("websocket", "websocket"),
            ] {
                assert!(!passes(Method::GET, site, mode, dest, false), "{mode} {dest}");
            }
        }
        for site in ["same-origin", "none"] {
            assert!(passes(Method::GET, site, "cors", "empty", false), "{site}");
            assert!(passes(Method::POST, site, "cors", "empty", true), "{site}");
        }
        assert!(check_site(&Method::POST, &HeaderMap::new(), true).is_ok(), "no browser");
    }

    #[test]
    fn there_is_one_origin_or_none() {
        let n1 = "n1:7500".parse::<Authority>().unwrap();
        let mut two = headers(&[("origin", "http://n1:7500")]);
        assert!(check_origin(&two, Some(&n1)).is_ok());
        two.append("origin", HeaderValue::from_static("http://n1:7500"));
        assert_eq!(check_origin(&two, Some(&n1)).unwrap_err().status(), 403);
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
