//! [`Plugins`]: passes requests to plug-ins by path prefix, and removes trailing slashes.
//!
//! The routers of plug-ins are not merged into the node's: a plug-in gets all paths below its prefixes and no
//! others, and no parameters of a route above it. Its event streams count towards the node's stream limit and
//! end when the node leaves.
//!
//! A path with a trailing slash is answered like the path without the slash, also for the node's own paths. A
//! redirect would cost a round trip, and programs that do not follow redirects would fail. No path has
//! another meaning with the slash.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Uri, header},
    response::{IntoResponse, Response},
};
use futures::StreamExt as _;
use hearsay_services::{
    Host, Service,
    http::{ConnectionHost, covers},
};
use tower::ServiceExt;

use crate::http::{
    plugins::source::source,
    server::{
        connection::Connection,
        response::{Route, unknown_path},
    },
    state::AppState,
};

/// Routers of all plug-ins by prefix.
#[derive(Clone)]
pub(crate) struct Plugins {
    state: Arc<AppState>,
    routers: Arc<[(Arc<str>, Router)]>,
}

impl Plugins {
    /// Collects the routers. The prefixes have been checked.
    pub(crate) fn new(state: Arc<AppState>, plugins: &[Arc<dyn Service>], host: &Arc<dyn Host>) -> Self {
        let routed = plugins.iter().flat_map(|plugin| {
            let router = plugin.router(Arc::clone(host));
            plugin.prefixes().iter().map(move |prefix| (Arc::from(*prefix), router.clone()))
        });
        Self { state, routers: routed.collect() }
    }

    /// Passes a request to the plug-in of its path. `own` is the router of the node, for its own paths with a
    /// trailing slash.
    pub(crate) async fn answer(self, own: Router, mut request: Request) -> Response {
        let trimmed = trim_slash(request.uri());
        let has_slash = trimmed.is_some();
        if let Some(trimmed) = trimmed {
            *request.uri_mut() = trimmed;
        }
        let path = request.uri().path();
        let Some((prefix, router)) = self.routers.iter().find(|(prefix, _)| covers(prefix, path)) else {
            if !has_slash {
                return unknown_path(request.uri()).into_response();
            }
            return match own.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            };
        };
        let source = source(&request);
        request.extensions_mut().insert(source);
        let peer = request.extensions().get::<Connection>().and_then(|connection| connection.peer);
        if let Some(peer) = peer {
            request.extensions_mut().insert(ConnectionHost(peer.ip().into()));
        }
        let mut response = match router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if is_event_stream(&response) {
            response = self.admit_stream(response);
        }
        response.extensions_mut().insert(Route(Arc::clone(prefix)));
        response
    }

    /// Admits an event stream, which ends when the node leaves.
    fn admit_stream(&self, response: Response) -> Response {
        let permit = match self.state.admit_stream() {
            Ok(permit) => permit,
            Err(problem) => return problem.into_response(),
        };
        let (head, body) = response.into_parts();
        let state = Arc::clone(&self.state);
        let until = async move {
            let _permit = permit;
            state.leaving().await;
        };
        Response::from_parts(head, Body::from_stream(body.into_data_stream().take_until(Box::pin(until))))
    }
}

/// Returns the URI without the trailing slash of its path; `None` without one, and for `/`.
fn trim_slash(uri: &Uri) -> Option<Uri> {
    let path = uri.path().strip_suffix('/').filter(|path| !path.is_empty())?;
    let path_and_query = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(path_and_query.parse().ok()?);
    Uri::from_parts(parts).ok()
}

fn is_event_stream(response: &Response) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slash_at_the_end_is_taken_off() {
        for (given, expected) in [
            ("/students/", Some("/students")),
            ("/students/?q=a/", Some("/students?q=a/")),
            ("http://n1/students/1/", Some("http://n1/students/1")),
            ("/students//", Some("/students/")),
            ("/students", None),
            ("/", None),
            ("//", Some("/")),
        ] {
            let trimmed = trim_slash(&given.parse().unwrap()).map(|uri| uri.to_string());
            assert_eq!(trimmed.as_deref(), expected, "{given}");
        }
    }
}
