//! Passes requests for the sign-in pages (`/login`, `/logout`) to the gateway's own node, because a browser's
//! session is valid at one node.
//!
//! Under the names of the node, no program gets these paths: a page there that asks for the token must be the
//! node's. A program gets them under other names, and at a host that the operator has given to its service
//! (`--gateway-routes`).

use axum::body::{Body, to_bytes};
use hearsay_services::{Host, http::is_sign_in};
use http::{HeaderValue, Request, Response, header, request::Parts};
use hyper::body::{Body as _, Incoming};

use crate::{
    forward::response_body::ResponseBody, refusal::Refusal, routing::routes::Routes,
    server::connection::Connection, shared::Shared,
};

/// Whether a request for this host and path is for the node's sign-in pages.
pub(crate) fn is_for(host: &dyn Host, routes: &Routes, name: &str, path: &str) -> bool {
    is_sign_in(path) && host.accepts_host(name) && !routes.is_given_by_operator(name, path)
}

/// Returns the node's response.
///
/// # Errors
/// The body is too large, too slow or malformed.
pub(crate) async fn respond(
    shared: &Shared,
    connection: &Connection,
    mut head: Parts,
    authority: Option<&HeaderValue>,
    body: Incoming,
) -> Result<Response<ResponseBody>, Refusal> {
    let has_body = !body.is_end_stream();
    let body = shared.role_auth.buffer(body).await;
    if has_body {
        connection.end_body();
    }
    // HTTP/2 has the authority in the target, not in `Host`.
    if let Some(authority) = authority {
        head.headers.insert(header::HOST, authority.clone());
    }
    let request = Request::from_parts(head, Body::from(body?.bytes));
    let (head, body) = shared.role_auth.host().sign_in(connection.client.ip, request).await.into_parts();
    // The node's response is in memory already.
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    Ok(Response::from_parts(head, ResponseBody::Own(body)))
}
