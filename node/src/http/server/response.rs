//! Completes every response: error bodies, security headers and request metrics.

use std::{sync::Arc, time::Instant};

use axum::{
    body::HttpBody,
    extract::{MatchedPath, Request},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use hearsay_services::{Problem, http::covers};

use crate::http::state::AppState;

/// Fetch standard, `Cross-Origin-Resource-Policy`.
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// Metric label of a plug-in's response: its prefix, for all paths below it.
#[derive(Clone, Debug)]
pub(crate) struct Route(pub(crate) Arc<str>);

/// Returns 404 for a path that neither the node nor a plug-in serves.
pub(crate) fn unknown_path(uri: &Uri) -> Problem {
    let path: String = uri.path().chars().take(128).collect();
    Problem::not_found(format!("nothing is served at {path}; /openapi.json lists the paths"))
}

/// Facts about a request that its response needs.
pub(crate) struct RequestInfo {
    started: Instant,
    method: Method,
    route: Option<MatchedPath>,
    is_consul: bool,
}

impl RequestInfo {
    pub(crate) fn of(request: &Request) -> Self {
        Self {
            started: Instant::now(),
            method: request.method().clone(),
            route: request.extensions().get::<MatchedPath>().cloned(),
            is_consul: covers("/v1", request.uri().path()),
        }
    }

    /// Gives the response its final form and counts it.
    pub(crate) fn finish(self, state: &AppState, mut response: Response) -> Response {
        if is_bare_error(&response) {
            response = describe(response);
        }
        if self.is_consul {
            response = as_text(response);
        }
        protect(response.headers_mut());
        let plugin_route = response.extensions_mut().remove::<Route>();
        let route = self.route.as_ref().map(MatchedPath::as_str);
        let route = route.or(plugin_route.as_ref().map(|Route(prefix)| prefix.as_ref()));
        let status = response.status().as_u16();
        state.metrics.http.answered(route.unwrap_or("unknown"), &self.method, status, self.started.elapsed());
        response
    }
}

/// Keeps browsers from guessing the content type and from giving the response to a page of another origin.
pub(crate) fn protect(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
}

/// Whether the router wrote the response: an error status (404, 405) with an empty body.
fn is_bare_error(response: &Response) -> bool {
    let status = response.status();
    (status.is_client_error() || status.is_server_error())
        && !response.headers().contains_key(header::CONTENT_TYPE)
        && response.body().size_hint().exact() == Some(0)
}

/// Replaces a bare error by a problem. The error's other headers, such as `Allow`, stay.
fn describe(bare: Response) -> Response {
    let detail = match bare.status() {
        StatusCode::METHOD_NOT_ALLOWED => {
            "this path does not support this method; the Allow header lists those it does"
        }
        StatusCode::NOT_FOUND => "nothing is served here; /openapi.json lists the paths",
        status => status.canonical_reason().unwrap_or("the request failed"),
    };
    let mut response = Problem::new(bare.status(), detail).into_response();
    copy_other_headers(&bare, &mut response);
    response
}

/// Replaces a problem by its text, as Consul's clients expect.
fn as_text(response: Response) -> Response {
    let Some(problem) = response.extensions().get::<Problem>() else { return response };
    let mut text = (response.status(), problem.detail().to_owned()).into_response();
    copy_other_headers(&response, &mut text);
    text
}

/// Copies all headers that do not describe the body.
fn copy_other_headers(from: &Response, to: &mut Response) {
    for (name, value) in from.headers() {
        if name != header::CONTENT_LENGTH && name != header::CONTENT_TYPE {
            to.headers_mut().insert(name, value.clone());
        }
    }
}
