//! Request guard: decides before the body is read whether a request may pass.
//!
//! A node listens on every address and has no user accounts. So a web page in a visitor's browser can send it
//! requests as other clients do. These rules keep such pages, and unknown machines, from writing:
//!
//! 1. `Host` must name this node (see [`HostNames`]). Otherwise DNS rebinding could make the node part of the
//!    origin of a foreign page.
//! 2. A request that a browser marks as cross-site (`Sec-Fetch-Site`) passes only if it opens a page.
//!    Browsers mark requests to `localhost` and over https only, so rules 3 to 5 apply to writes without the
//!    mark. A GET that writes is a write.
//! 3. A write with an `Origin` must come from a page of this node.
//! 4. A write's body needs a content type that no HTML form can send: for such a type a browser first sends a
//!    CORS preflight, which is refused.
//! 5. A write needs a proof, by its class: see [`class`] and [`caller`]. With `--private` a read needs one,
//!    too.
//!
//! The forms of the node's own pages are exempt from rule 4: the paths in [`FORM_PATHS`] and those of
//! [`login`]. They have stricter rules instead: `Origin` is required, and the content type must be a form's.
//! A form that changes registrations must come from this machine or with a session, even with a valid token.
//!
//! JSON-RPC and MCP make [inner requests](crate::http::reentry), which pass this guard with the connection
//! and the credentials of their client. For them rules 1 to 4 apply twice, and rule 5 to the inner request.
//!
//! A plug-in may opt out of rule 4. Under `/v1`, PUT and DELETE may have any content type: no form can send
//! those methods, and Consul's clients use `curl -X PUT -d`.

pub(crate) mod access;
pub(crate) mod browser;
pub(crate) mod caller;
pub(crate) mod class;
pub(crate) mod host_names;
pub(crate) mod login;

use std::sync::Arc;

use axum::{
    body::HttpBody,
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts, uri::Authority},
    response::{IntoResponse, Response},
};
use hearsay_services::{
    Problem, Service,
    http::{Effect, Forwarded, UnsignedRequest},
};

use crate::{
    http::{
        guard::{
            browser::{
                RequestHead, authority, check_content_type, check_origin, check_own_form, check_site,
                is_host_and_port,
            },
            caller::Caller,
            class::{Class, Classes},
            host_names::HostNames,
        },
        reentry::{self, RoleElsewhere},
        server::connection::Connection,
        state::AppState,
        ui::parts::{DEREGISTER_PATH, MAINTENANCE_PATH},
    },
    signing::{BadSignature, Signed},
};

/// Target paths of the forms on the node's own pages. Compared as a whole, without the paths below them.
const FORM_PATHS: [&str; 2] = [DEREGISTER_PATH, MAINTENANCE_PATH];

/// The guard of one node and its plug-ins.
#[derive(Debug)]
pub(crate) struct Guard {
    state: Arc<AppState>,
    classes: Classes,
}

/// A refused request.
#[derive(Debug)]
struct GuardRefusal {
    /// Metric label of the broken rule.
    rule: &'static str,
    /// The error for the client.
    problem: Problem,
    /// Whether the same request may pass a moment later.
    is_transient: bool,
}

impl From<(&'static str, Problem)> for GuardRefusal {
    fn from((rule, problem): (&'static str, Problem)) -> Self {
        Self { rule, problem, is_transient: false }
    }
}

impl From<BadSignature> for GuardRefusal {
    fn from(bad: BadSignature) -> Self {
        let problem = Problem::new(StatusCode::UNAUTHORIZED, bad.to_string());
        Self { rule: "signature", problem, is_transient: bad.is_transient() }
    }
}

impl IntoResponse for GuardRefusal {
    fn into_response(self) -> Response {
        let unauthorised = self.problem.status() == StatusCode::UNAUTHORIZED;
        let mut response = self.problem.into_response();
        if unauthorised {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.is_transient {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl Guard {
    /// Creates the guard. `writes` are the node's own paths that write: method in lower case, path and class.
    pub(crate) fn new(
        state: Arc<AppState>,
        plugins: &[Arc<dyn Service>],
        writes: &[(&'static str, &'static str, Class)],
    ) -> Self {
        Self { state, classes: Classes::new(plugins, writes) }
    }

    /// Checks a request. A write that passes gets the extension [`Caller`], and a signed request [`Signed`].
    ///
    /// # Errors
    /// The response to a refused request.
    pub(crate) fn check(&self, request: &mut Request) -> Result<(), Box<Response>> {
        self.examine(request).map_err(|refusal| Box::new(self.refuse(refusal)))
    }

    fn refuse(&self, refusal: GuardRefusal) -> Response {
        self.state.metrics.http.refused(refusal.rule);
        refusal.into_response()
    }

    fn examine(&self, request: &mut Request) -> Result<(), GuardRefusal> {
        let access = &self.state.access;
        let head = RequestHead { uri: request.uri(), headers: request.headers(), version: request.version() };
        let authority = own_authority(&head, &self.state.names)?;
        let (method, path) = (request.method(), request.uri().path());
        let effect = Effect::of(method, path);
        let elsewhere = reentry::is_inner(request).then(|| self.classes.role_elsewhere(path)).flatten();
        check_site(method, request.headers(), effect.is_write()).map_err(|problem| ("site", problem))?;
        let needs_proof = effect.is_write() || access.reads_need_proof && !self.classes.is_public(path);
        let signed = match self.check_signature(request, authority.as_ref()) {
            // A public read needs no valid signature.
            Err(_) if !needs_proof => None,
            signed => signed?,
        };
        if let Some(signed) = signed {
            request.extensions_mut().insert(signed);
        }
        if let Some(role) = elsewhere {
            request.extensions_mut().insert(RoleElsewhere(role));
        }
        if !needs_proof {
            return Ok(());
        }
        if effect.is_write() {
            // A page that a gateway served has the gateway's name as its origin. The gateway has signed that
            // name.
            let published = signed.and_then(|_| published_authority(request.headers()));
            check_origin(request.headers(), published.or(authority).as_ref())
                .map_err(|problem| ("origin", problem))?;
        }
        let (method, path) = (request.method(), request.uri().path());
        let class = match (effect, elsewhere) {
            (Effect::Read, None) => self.classes.class_of_read(path),
            (Effect::Read, Some(_)) => Class::of_plugin_read(path),
            (_, None) => self.classes.class(method, path),
            (_, Some(_)) => Class::of_plugin(path),
        };
        let connection = request.extensions().get::<Connection>();
        let caller = Caller::of(request, connection, signed, access);
        // A trailing slash does not change the path.
        let is_form = FORM_PATHS.contains(&path.strip_suffix('/').unwrap_or(path)) || class == Class::Session;
        if is_form {
            // For other methods the router answers 405.
            if *method == Method::POST {
                self.check_form(request, class, &caller)?;
            }
        } else if effect.is_write() && !request.body().is_end_stream() {
            let area = self.classes.area(path);
            check_content_type(area, method, request.headers())
                .map_err(|problem| ("content_type", problem))?;
        }
        caller
            .check(class, effect, access)
            .map_err(|problem| self.missing_proof(request, &caller, problem))?;
        // An inner request has a caller of its own.
        if effect.is_write() && class != Class::Inner {
            request.extensions_mut().insert(caller);
        }
        Ok(())
    }

    /// Checks a form of the node's own pages. A form cannot carry the token, so one that changes
    /// registrations must come from this machine or with a session.
    fn check_form(&self, request: &Request, class: Class, caller: &Caller) -> Result<(), GuardRefusal> {
        check_own_form(request.headers())?;
        if class == Class::Session || caller.may_submit_forms() {
            return Ok(());
        }
        let detail = "the pages change registrations only from the node's own machine or after sign-in at /login; programs use \
                      the paths under /services with the node's token";
        Err(self.missing_proof(request, caller, Problem::new(StatusCode::FORBIDDEN, detail)))
    }

    /// Returns the refusal for a missing proof. For a browser that is not signed in, it leads to the sign-in
    /// page.
    fn missing_proof(&self, request: &Request, caller: &Caller, problem: Problem) -> GuardRefusal {
        let head = RequestHead { uri: request.uri(), headers: request.headers(), version: request.version() };
        let can_sign_in = self.state.access.token.is_some() && !caller.has_session();
        let page = can_sign_in.then(|| login::sign_in_url(&head, request.method())).flatten();
        ("token", problem.with_page(page)).into()
    }

    /// Checks the signature of the request, if there is one.
    fn check_signature(
        &self,
        request: &Request,
        authority: Option<&Authority>,
    ) -> Result<Option<Signed>, BadSignature> {
        self.state.signing.check(&UnsignedRequest {
            method: request.method(),
            authority: authority.map_or("", Authority::as_str),
            target: request.uri().path_and_query().map_or("", |target| target.as_str()),
            headers: request.headers(),
        })
    }
}

/// Returns the authority that a request is addressed to.
///
/// # Errors
/// The authority is malformed, or names another host.
fn own_authority(
    head: &RequestHead<'_>,
    names: &HostNames,
) -> Result<Option<Authority>, (&'static str, Problem)> {
    let authority = authority(head).map_err(|problem| ("host", problem))?;
    match &authority {
        Some(authority) if !names.accept(authority.host()) => Err(("host", foreign_host(authority.host()))),
        _ => Ok(authority),
    }
}

/// Checks a request for the sign-in pages that came over a listener of a plug-in.
///
/// # Errors
/// The metric label of the broken rule, and the error for the client.
pub(crate) fn check_sign_in(head: &Parts, names: &HostNames) -> Result<(), (&'static str, Problem)> {
    let Parts { method, uri, headers, version, .. } = head;
    let authority = own_authority(&RequestHead { uri, headers, version: *version }, names)?;
    check_site(method, headers, !method.is_safe()).map_err(|problem| ("site", problem))?;
    if method.is_safe() {
        return Ok(());
    }
    check_origin(headers, authority.as_ref()).map_err(|problem| ("origin", problem))?;
    check_own_form(headers)
}

/// Returns the name under which a client addressed the gateway, from `Forwarded`.
fn published_authority(headers: &HeaderMap) -> Option<Authority> {
    let forwarded = Forwarded::parse(headers.get(header::FORWARDED)?.to_str().ok()?)?;
    forwarded.host.parse().ok().filter(is_host_and_port)
}

/// Returns 421 for another host. The response contains nothing about the node, because a page with DNS
/// rebinding could read it.
fn foreign_host(host: &str) -> Problem {
    let host: String = host.chars().take(128).collect();
    let detail = format!(
        "the host {host:?} is no name of this node; use its address or localhost, or start it with --allow-host {host} \
         (behind a gateway: every node whose roles are reached by that name)"
    );
    Problem::new(StatusCode::MISDIRECTED_REQUEST, detail)
}
