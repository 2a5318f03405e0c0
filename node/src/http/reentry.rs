//! Re-entry: inner requests, by which a handler enters this node's own router again for its client.
//!
//! JSON-RPC and MCP translate a message into requests to the paths of the HTTP API. Each of them passes the
//! guard again, with the connection of the outer request and its credentials. So write classes, address
//! policy, limits and `--private` hold for an inner request as for the same request over HTTP. The outer
//! request has the class [`Inner`](crate::http::guard::class::Class::Inner) and no effect of its own.
//!
//! A signature covers one request, so it is no proof for an inner one. An inner request for a role that this
//! node lacks is forwarded to a node that has it; as at a gateway, this node checks the client and signs.

use std::fmt::Write as _;

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use hearsay_services::Problem;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tower::ServiceExt as _;

use crate::{
    escape::percent_encoded,
    http::server::{connection::Connection, response_budget::Unkept},
};

/// Headers by which the guard judges a request; `x-forwarded-*` too. The signature is not among them.
const JUDGED: [HeaderName; 7] = [
    header::HOST,
    header::AUTHORIZATION,
    header::COOKIE,
    header::ORIGIN,
    header::FORWARDED,
    header::VIA,
    HeaderName::from_static("sec-fetch-site"),
];

/// Mark of an inner request. No client can set an extension.
#[derive(Clone, Copy, Debug)]
struct Inner;

/// The built-in role of an inner request to a node that lacks the role. The guard sets it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoleElsewhere(pub(crate) &'static str);

/// Whether a request is an inner one.
pub(crate) fn is_inner(request: &Request) -> bool {
    request.extensions().get::<Inner>().is_some()
}

/// The router for inner requests: an extension of the requests to paths that make some.
#[derive(Clone, Debug)]
pub(crate) struct Reentry(Router);

impl Reentry {
    /// `router` passes each request through the guard.
    pub(crate) fn new(router: Router) -> Self {
        Self(router)
    }
}

/// The client for which a handler makes inner requests.
#[derive(Clone, Debug)]
pub(crate) struct InnerClient {
    router: Router,
    /// `None` only if the outer request was made inside the process.
    connection: Option<Connection>,
    /// Those of the outer request that the guard judges.
    headers: HeaderMap,
}

/// A request to a path of the HTTP API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct InnerRequest {
    pub(crate) method: Method,
    /// Path and query, percent-encoded.
    pub(crate) target: String,
    /// Further headers, such as `Idempotency-Key`.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// Body in JSON; empty: none.
    pub(crate) body: Bytes,
}

/// Returns a text as one segment of a path. Its first byte is always encoded, so that it equals no fixed
/// segment: the service `watch` is not the event stream `/services/watch`.
///
/// # Errors
/// The text is empty, and no path has an empty segment.
pub(crate) fn path_segment(text: &str) -> Result<String, &'static str> {
    let mut rest = text.chars();
    let first = rest.next().ok_or("is empty")?;
    let mut segment = String::with_capacity(text.len() + 8);
    for byte in first.encode_utf8(&mut [0; 4]).bytes() {
        // Writing to a String cannot fail.
        _ = write!(segment, "%{byte:02X}");
    }
    segment.push_str(&percent_encoded(rest.as_str()));
    Ok(segment)
}

/// A response that was read to its end.
#[derive(Debug)]
pub(crate) struct InnerReply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl InnerRequest {
    /// Returns a request without a body.
    pub(crate) fn new(method: Method, target: impl Into<String>) -> Self {
        Self { method, target: target.into(), headers: Vec::new(), body: Bytes::new() }
    }

    /// Adds a body in JSON.
    #[must_use]
    pub(crate) fn json(self, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..self }
    }
}

impl InnerClient {
    /// Returns the client of a request, by its head; `None` on a path that makes no inner requests.
    pub(crate) fn of(head: &Parts) -> Option<Self> {
        let Reentry(router) = head.extensions.get()?;
        let is_judged =
            |name: &HeaderName| JUDGED.contains(name) || name.as_str().starts_with("x-forwarded-");
        let mut headers: HeaderMap = HeaderMap::new();
        for (name, value) in head.headers.iter().filter(|(name, _)| is_judged(name)) {
            headers.append(name, value.clone());
        }
        // An absolute target takes precedence over the header, and a client of HTTP/1.0 may send neither.
        let host = head.uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok());
        let default = || (!headers.contains_key(header::HOST)).then(|| HeaderValue::from_static("localhost"));
        if let Some(host) = host.or_else(default) {
            headers.insert(header::HOST, host);
        }
        Some(Self { router: router.clone(), connection: head.extensions.get().cloned(), headers })
    }

    /// Returns the client of a connection that carries no HTTP and so no credentials.
    pub(crate) fn of_connection(router: Router, connection: Connection) -> Self {
        let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("localhost"))]);
        Self { router, connection: Some(connection), headers }
    }

    /// Sends a request and returns the response, whose body may be a stream without an end.
    pub(crate) async fn send(&self, inner: InnerRequest) -> Response {
        let Ok(uri) = inner.target.parse::<Uri>() else {
            let detail = "the names in the request make a path that is too long; at most 65534 bytes";
            return Problem::new(StatusCode::URI_TOO_LONG, detail).into_response();
        };
        let has_body = !inner.body.is_empty();
        let mut request = Request::new(Body::from(inner.body));
        (*request.method_mut(), *request.uri_mut()) = (inner.method, uri);
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().extend(inner.headers);
        if has_body {
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(header::CONTENT_TYPE, json);
        }
        if let Some(connection) = &self.connection {
            request.extensions_mut().insert(connection.clone());
        }
        request.extensions_mut().insert(Inner);
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    /// Sends a request and reads the response.
    ///
    /// # Errors
    /// The response is lost. 507: the body has more than `bytes_max` bytes, or a write has found no memory
    /// for it; 502: the body broke off. The problem says whether a write was carried out.
    pub(crate) async fn ask(&self, inner: InnerRequest, bytes_max: usize) -> Result<InnerReply, Problem> {
        let is_write = inner.method != Method::GET;
        let (head, body) = self.send(inner).await.into_parts();
        if let Some(Unkept(status)) = head.extensions.get()
            && is_write
        {
            let reason = "this node has no memory left for large responses";
            return Err(lost(StatusCode::INSUFFICIENT_STORAGE, Some(*status), reason));
        }
        let written = is_write.then_some(head.status);
        match Limited::new(body, bytes_max).collect().await {
            Ok(body) => Ok(InnerReply { status: head.status, headers: head.headers, body: body.to_bytes() }),
            Err(error) if error.is::<LengthLimitError>() => {
                let hint = if is_write { "" } else { "; ask for less" };
                let reason = format!("the answer is larger than {bytes_max} bytes, the limit{hint}");
                Err(lost(StatusCode::INSUFFICIENT_STORAGE, written, &reason))
            }
            Err(error) => {
                Err(lost(StatusCode::BAD_GATEWAY, written, &format!("the answer broke off: {error}")))
            }
        }
    }
}

/// Returns the problem of a response that is lost. `written`: the status of the response to a write.
fn lost(status: StatusCode, written: Option<StatusCode>, reason: &str) -> Problem {
    let detail = match written {
        None => reason.to_owned(),
        Some(done) if done.is_success() => {
            format!("the write was carried out; its answer is lost: {reason}")
        }
        Some(failed) => format!("the write failed with {failed}; its answer is lost: {reason}"),
    };
    Problem::new(status, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_decoded_to_its_text_and_equals_no_fixed_one() {
        for (text, expected) in
            [("watch", Ok("%77atch")), ("ü/..", Ok("%C3%BC%2F..")), (".", Ok("%2E")), ("", Err("is empty"))]
        {
            assert_eq!(path_segment(text).as_deref(), expected.as_deref(), "{text}");
        }
    }

    #[test]
    fn an_inner_request_has_the_credentials_of_the_outer_one_but_no_signature() {
        let mut outer = axum::http::Request::post("http://n1:7500/rpc").body(()).unwrap();
        for (name, value) in [
            ("authorization", "Bearer a"),
            ("cookie", "c=1"),
            ("cookie", "d=2"),
            ("x-forwarded-for", "192.0.2.1"),
            (hearsay_protocol::SIGNATURE_HEADER, "node=1"),
            ("content-length", "7"),
            ("idempotency-key", "k"),
        ] {
            outer.headers_mut().append(name, HeaderValue::from_static(value));
        }
        let (mut head, ()) = outer.into_parts();
        assert!(InnerClient::of(&head).is_none(), "a path that makes no inner requests");
        head.extensions.insert(Reentry::new(Router::new()));
        let client = InnerClient::of(&head).unwrap();
        let mut names: Vec<&str> = client.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "cookie", "host", "x-forwarded-for"]);
        assert_eq!(client.headers.get_all("cookie").iter().count(), 2);
        assert_eq!(client.headers["host"], "n1:7500", "an absolute target takes precedence");
    }

    #[tokio::test]
    async fn an_answer_that_is_lost_says_whether_the_write_was_carried_out() {
        use futures::stream;
        let answers = Router::new()
            .route("/large", axum::routing::any(|| async { "a".repeat(11) }))
            .route("/failed", axum::routing::any(|| async { (StatusCode::CONFLICT, "a".repeat(11)) }))
            .route(
                "/broken",
                axum::routing::any(|| async {
                    Body::from_stream(stream::iter([Ok("a"), Err(std::io::Error::other("gone"))]))
                }),
            )
            .route(
                "/unkept",
                axum::routing::any(|| async {
                    (
                        StatusCode::SERVICE_UNAVAILABLE,
                        axum::Extension(Unkept(StatusCode::CREATED)),
                        "no memory",
                    )
                }),
            );
        let client = InnerClient { router: answers, connection: None, headers: HeaderMap::new() };
        let ask = async |method, path: &str| {
            let problem = client.ask(InnerRequest::new(method, path), 10).await.unwrap_err();
            (problem.status().as_u16(), problem.detail().to_owned())
        };
        let carried_out = "the write was carried out; its answer is lost: ";
        let large = "the answer is larger than 10 bytes, the limit";
        assert_eq!(ask(Method::GET, "/large").await, (507, format!("{large}; ask for less")));
        assert_eq!(ask(Method::POST, "/large").await, (507, format!("{carried_out}{large}")));
        let (status, detail) = ask(Method::POST, "/failed").await;
        assert_eq!((status, detail.starts_with("the write failed with 409")), (507, true), "{detail}");
        let (status, detail) = ask(Method::GET, "/broken").await;
        assert_eq!((status, detail.starts_with("the answer broke off")), (502, true), "{detail}");
        assert!(ask(Method::PUT, "/broken").await.1.starts_with(carried_out));
        let (status, detail) = ask(Method::POST, "/unkept").await;
        assert_eq!((status, detail.starts_with(carried_out)), (507, true), "{detail}");
        let kept = client.ask(InnerRequest::new(Method::GET, "/unkept"), 10).await;
        assert_eq!(kept.unwrap().status, 503, "a read is only refused");
    }
}
