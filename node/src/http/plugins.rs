//! Which plug-in answers what is no path of the node's own.
//!
//! Plug-ins are asked by prefix and not merged into the node's routes: so a plug-in gets all that lies below its prefixes, cannot
//! take anything else, and sees none of the parameters of a route above it. Their event streams are held like the node's own: each
//! takes a place among those who wait, and ends when the node leaves.
//!
//! A path with a slash at its end is answered as without it, the node's own paths too. A redirect would cost a round trip, and programs that do
//! not follow one would see an error, on a write above all; and nothing here means another thing with the slash.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Uri, header},
    response::{IntoResponse, Response},
};
use futures::StreamExt as _;
use hearsay_services::{Host, Service, prefixes::covers};
use tower::ServiceExt;

use super::{
    errors::{Route, unknown_path},
    site::Site,
};

/// The routers of all plug-ins, by prefix.
#[derive(Clone)]
pub(super) struct Plugins {
    site: Arc<Site>,
    routers: Arc<[(Arc<str>, Router)]>,
}

impl Plugins {
    /// Asks each plug-in for its router. Their prefixes have been checked.
    pub(super) fn new(site: Arc<Site>, plugins: &[Arc<dyn Service>], host: &Arc<dyn Host>) -> Self {
        let routed = plugins.iter().flat_map(|plugin| {
            let router = plugin.router(Arc::clone(host));
            plugin.prefixes().iter().map(move |prefix| (Arc::from(*prefix), router.clone()))
        });
        Self { site, routers: routed.collect() }
    }

    /// Passes a request on to the plug-in that it is for. `own` are the node's own paths, for one that is theirs but for a slash at its end.
    pub(super) async fn answer(self, own: Router, mut request: Request) -> Response {
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
        let mut response = match router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if is_event_stream(&response) {
            response = self.hold(response);
        }
        response.extensions_mut().insert(Route(Arc::clone(prefix)));
        response
    }

    /// Lets an event stream run until the node leaves, if there is a place for it.
    fn hold(&self, response: Response) -> Response {
        let seat = match self.site.seat() {
            Ok(seat) => seat,
            Err(problem) => return problem.into_response(),
        };
        let (head, body) = response.into_parts();
        let site = Arc::clone(&self.site);
        let until = async move {
            let _seat = seat;
            site.leaving().await;
        };
        Response::from_parts(head, Body::from_stream(body.into_data_stream().take_until(Box::pin(until))))
    }
}

/// The address without the one slash at the end of its path; `None`: there is none, or the path is nothing else.
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
