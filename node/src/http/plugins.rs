//! Which plug-in answers what is no path of the node's own.
//!
//! Plug-ins are asked by prefix and not merged into the node's routes: so a plug-in gets all that lies below its prefixes, cannot
//! take anything else, and sees none of the parameters of a route above it.

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    response::{IntoResponse, Response},
};
use hearsay_services::{Host, Service, prefixes::covers};
use tower::ServiceExt;

use super::errors::{Route, unknown_path};

/// The routers of all plug-ins, by prefix.
#[derive(Clone)]
pub(super) struct Plugins(Arc<[(String, Router)]>);

impl Plugins {
    /// Asks each plug-in for its router. Their prefixes have been checked.
    pub(super) fn new(plugins: &[Arc<dyn Service>], host: &Arc<dyn Host>) -> Self {
        let routed = plugins.iter().flat_map(|plugin| {
            let router = plugin.router(Arc::clone(host));
            plugin.prefixes().iter().map(move |prefix| ((*prefix).to_owned(), router.clone()))
        });
        Self(routed.collect())
    }

    /// Passes a request on to the plug-in that it is for.
    pub(super) async fn answer(self, request: Request) -> Response {
        let path = request.uri().path();
        let Some((prefix, router)) = self.0.iter().find(|(prefix, _)| covers(prefix, path)) else {
            return unknown_path(request.uri()).into_response();
        };
        let mut response = match router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        response.extensions_mut().insert(Route(prefix.clone()));
        response
    }
}
