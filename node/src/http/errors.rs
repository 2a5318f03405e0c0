//! The last word on every answer: errors take the form that the contract says, and everything is counted.

use std::{sync::Arc, time::Instant};

use axum::{
    body::HttpBody,
    extract::{MatchedPath, Request},
    http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use hearsay_services::{Problem, prefixes::covers};

use super::site::Site;

/// Fetch standard, `Cross-Origin-Resource-Policy`.
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// How a plug-in's answer is counted: all that lies below a prefix as one.
#[derive(Clone, Debug)]
pub(super) struct Route(pub(super) Arc<str>);

/// The answer to a path that is nobody's.
pub(super) fn unknown_path(uri: &Uri) -> Problem {
    let path: String = uri.path().chars().take(128).collect();
    Problem::not_found(format!("nothing is served at {path}; /openapi.json lists what is"))
}

/// What is to be known of a request when its answer is there.
pub(super) struct Asked {
    started: Instant,
    method: Method,
    route: Option<MatchedPath>,
    is_consul: bool,
}

impl Asked {
    pub(super) fn of(request: &Request) -> Self {
        Self {
            started: Instant::now(),
            method: request.method().clone(),
            route: request.extensions().get::<MatchedPath>().cloned(),
            is_consul: covers("/v1", request.uri().path()),
        }
    }

    /// Finishes the answer on its way out.
    pub(super) fn finish(self, site: &Site, mut response: Response) -> Response {
        if is_bare_error(&response) {
            response = describe(response);
        }
        if self.is_consul {
            response = as_text(response);
        }
        // A browser neither guesses a type nor lets a page of another origin take an answer in.
        let headers = response.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(RESOURCE_POLICY, HeaderValue::from_static("same-origin"));
        let plugin_route = response.extensions_mut().remove::<Route>();
        let route = self.route.as_ref().map(MatchedPath::as_str);
        let route = route.or(plugin_route.as_ref().map(|Route(prefix)| prefix.as_ref()));
        let status = response.status().as_u16();
        site.metrics.http.answered(route.unwrap_or("unknown"), &self.method, status, self.started.elapsed());
        response
    }
}

/// What routers answer by themselves: a status (404, 405) with an empty body.
fn is_bare_error(response: &Response) -> bool {
    let status = response.status();
    (status.is_client_error() || status.is_server_error())
        && !response.headers().contains_key(header::CONTENT_TYPE)
        && response.body().size_hint().exact() == Some(0)
}

/// Gives a bare error its words. Its other headers (`Allow`) stay.
fn describe(bare: Response) -> Response {
    let detail = match bare.status() {
        StatusCode::METHOD_NOT_ALLOWED => {
            "this path does not take this method; the Allow header has those it takes"
        }
        StatusCode::NOT_FOUND => "nothing is served here; /openapi.json lists what is",
        status => status.canonical_reason().unwrap_or("the request failed"),
    };
    let mut response = Problem::new(bare.status(), detail).into_response();
    copy_other_headers(&bare, &mut response);
    response
}

/// Consul's clients expect the words alone.
fn as_text(response: Response) -> Response {
    let Some(problem) = response.extensions().get::<Problem>() else { return response };
    let mut text = (response.status(), problem.detail().to_owned()).into_response();
    copy_other_headers(&response, &mut text);
    text
}

/// Keeps all that does not speak of the body.
fn copy_other_headers(from: &Response, to: &mut Response) {
    for (name, value) in from.headers() {
        if name != header::CONTENT_LENGTH && name != header::CONTENT_TYPE {
            to.headers_mut().insert(name, value.clone());
        }
    }
}
