//! Browser rules of the [guard](crate::http::guard): `Host`, `Origin`, `Sec-Fetch-Site` and content type.
//!
//! The rules distinguish requests of web pages from those of programs, and the node's own pages from others.

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header, uri::Authority};
use hearsay_services::Problem;

use crate::http::guard::class::Area;

/// Content types that an HTML form, or a script without a CORS preflight, can send (Fetch standard).
const FORM_TYPES: [&str; 3] = ["application/x-www-form-urlencoded", "multipart/form-data", "text/plain"];

/// Default content type of an HTML form.
const FORM_TYPE: &str = FORM_TYPES[0];

/// The parts of a request's head that the rules use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestHead<'a> {
    pub(crate) uri: &'a Uri,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) version: Version,
}

/// Refuses a request that a browser marks as cross-site, unless it opens a page.
///
/// # Errors
/// 403.
pub(crate) fn check_site(method: &Method, headers: &HeaderMap, is_write: bool) -> Result<(), Problem> {
    let value_of = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
    if !matches!(value_of("sec-fetch-site"), Some(b"cross-site" | b"same-site")) {
        return Ok(());
    }
    let opens_a_page =
        value_of("sec-fetch-mode") == Some(b"navigate") && value_of("sec-fetch-dest") == Some(b"document");
    if opens_a_page && method.is_safe() && !is_write {
        return Ok(());
    }
    let detail = "a page of another site may only open the pages of this node";
    Err(Problem::new(StatusCode::FORBIDDEN, detail))
}

/// Returns the authority that a request is addressed to. `None`: an HTTP/1.0 client without `Host`, which is
/// no browser.
///
/// # Errors
/// 400: `Host` is missing, repeated or malformed.
pub(crate) fn authority(head: &RequestHead<'_>) -> Result<Option<Authority>, Problem> {
    let bad = |detail: &str| Problem::new(StatusCode::BAD_REQUEST, detail);
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            let parsed = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
            Some(parsed.filter(is_host_and_port).ok_or_else(|| bad("the Host header names no host"))?)
        }
        (None, _) if head.version < Version::HTTP_11 => None,
        (None, _) => return Err(bad("the Host header is missing")),
        (Some(_), Some(_)) => return Err(bad("there is more than one Host header")),
    };
    // RFC 9112, section 3.2.2: an absolute target takes precedence over the header.
    match head.uri.authority() {
        // RFC 9110, section 4.2.4: user information is treated as an error.
        Some(target) if !is_host_and_port(target) => Err(bad("the request target names no host")),
        Some(target) => Ok(Some(target.clone())),
        None => Ok(host),
    }
}

/// Whether an authority is a host with an optional port. `Authority` also accepts user information and any
/// text as a port.
pub(crate) fn is_host_and_port(authority: &Authority) -> bool {
    let is_port = |port: &str| port.is_empty() || port.parse::<u16>().is_ok();
    let rest = authority.as_str().strip_prefix(authority.host());
    rest.is_some_and(|rest| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port))
}

/// Refuses a write from a page of another origin.
///
/// # Errors
/// 403.
pub(crate) fn check_origin(headers: &HeaderMap, authority: Option<&Authority>) -> Result<(), Problem> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let origin = match (origins.next(), origins.next()) {
        (None, _) => return Ok(()),
        (origin, None) => origin.and_then(|origin| origin.to_str().ok()),
        // Browsers send at most one `Origin`, so several count as a foreign one.
        (_, Some(_)) => None,
    };
    if let (Some(origin), Some(authority)) = (origin, authority)
        && is_own_origin(origin, authority)
    {
        return Ok(());
    }
    Err(Problem::new(StatusCode::FORBIDDEN, "a page of another origin may not write here"))
}

/// Whether an origin is the authority that the request is addressed to. A missing port is the default of the
/// origin's scheme on both sides, because a proxy in front of this node may terminate https. Such a proxy may
/// also remove the port from `Host` (nginx's `$host`): for an https page and a `Host` without port, ports are
/// not compared.
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

/// Checks a form of the node's own pages, after `Host` and `Origin` were checked. Browsers send `Origin` with
/// every form, so it is required.
///
/// # Errors
/// The metric label of the broken rule, and the error for the client.
pub(crate) fn check_own_form(headers: &HeaderMap) -> Result<(), (&'static str, Problem)> {
    let is_same_origin = |value: &HeaderValue| value.as_bytes() == b"same-origin";
    if !headers.contains_key(header::ORIGIN) || !headers.get("sec-fetch-site").is_none_or(is_same_origin) {
        let detail = "this path accepts only the forms of this node's own pages; programs write to /services";
        return Err(("origin", Problem::new(StatusCode::FORBIDDEN, detail)));
    }
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let essence = match (types.next().and_then(|value| value.to_str().ok()), types.next()) {
        (Some(value), None) => value.split(';').next().unwrap_or_default().trim(),
        _ => "",
    };
    if !essence.eq_ignore_ascii_case(FORM_TYPE) {
        let detail = format!(
            "this path accepts only the forms of this node's own pages; their content type is {FORM_TYPE}"
        );
        return Err(("content_type", Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)));
    }
    Ok(())
}

/// Refuses a write whose content type an HTML form can send.
///
/// # Errors
/// 415.
pub(crate) fn check_content_type(area: Area, method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence =
        content_type.map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    let is_form = essence.as_deref().is_some_and(|essence| FORM_TYPES.contains(&essence));
    let is_allowed = match area {
        Area::Plugin { takes_form_bodies: true } => true,
        Area::Consul { takes_text: true } if essence.as_deref() == Some("text/plain") => true,
        Area::Consul { .. } => !is_form || method != Method::POST,
        // DELETE /services accepts a URL as plain text, and no form can send a DELETE.
        _ if method == Method::DELETE => essence.as_deref() != Some(FORM_TYPES[0]),
        // A script can send a body without a content type, and the browser sends no CORS preflight for it.
        _ => essence.is_some() && !is_form,
    };
    if is_allowed {
        return Ok(());
    }
    let given = content_type.map_or_else(|| "none".to_owned(), |value| value.chars().take(128).collect());
    let detail = format!(
        "the content type is {given}; writes need one that no HTML form can send, such as application/json"
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
        let [consul, fire] = [false, true].map(|takes_text| Area::Consul { takes_text });
        assert!(allowed(consul, Method::PUT, form) && !allowed(consul, Method::POST, form));
        let text = Some("text/plain;charset=UTF-8");
        assert!(allowed(fire, Method::POST, text) && !allowed(consul, Method::POST, text));
        assert!(!allowed(fire, Method::POST, form));
        assert!(
            allowed(Area::Node, Method::DELETE, Some("text/plain"))
                && !allowed(Area::Node, Method::DELETE, form)
        );
    }

    #[test]
    fn an_own_form_has_an_origin_and_the_type_of_a_form() {
        const OWN: [(&str, &str); 2] =
            [("origin", "http://localhost:7500"), ("content-type", "application/x-www-form-urlencoded")];
        let refused = |pairs: &[(&'static str, &'static str)]| {
            let refusal = check_own_form(&headers(pairs)).err();
            refusal.map(|(reason, problem)| (reason, problem.status().as_u16()))
        };
        assert_eq!(refused(&OWN), None);
        assert_eq!(refused(&[OWN[0], OWN[1], ("sec-fetch-site", "same-origin")]), None);
        let (origin, content_type) = (Some(("origin", 403)), Some(("content_type", 415)));
        assert_eq!(refused(&[OWN[1]]), origin, "no Origin");
        for site in ["cross-site", "same-site", "none", ""] {
            assert_eq!(refused(&[OWN[0], OWN[1], ("sec-fetch-site", site)]), origin, "{site}");
        }
        for other in
            ["application/json", "text/plain", "multipart/form-data", "application/x-www-form-urlencodedx"]
        {
            assert_eq!(refused(&[OWN[0], ("content-type", other)]), content_type, "{other}");
        }
        assert_eq!(refused(&OWN[..1]), content_type, "no type");
    }
}
