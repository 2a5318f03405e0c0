//! The node's own routes, remembered while they are added, so that a test can hold `/openapi.json` against them.

use std::sync::Arc;

use axum::{
    Router,
    handler::Handler,
    routing::{delete, get, post, put},
};

use super::site::Site;

/// A router and the list of what it serves.
pub(super) struct Routes {
    router: Router<Arc<Site>>,
    served: Vec<(&'static str, &'static str)>,
}

impl Routes {
    /// No routes.
    pub(super) fn new() -> Self {
        Self { router: Router::new(), served: Vec::new() }
    }

    /// Serves `GET` (and so `HEAD`).
    pub(super) fn get<T: 'static>(mut self, path: &'static str, handler: impl Handler<T, Arc<Site>>) -> Self {
        self.served.push(("get", path));
        Self { router: self.router.route(path, get(handler)), ..self }
    }

    /// Serves `POST`.
    pub(super) fn post<T: 'static>(
        mut self,
        path: &'static str,
        handler: impl Handler<T, Arc<Site>>,
    ) -> Self {
        self.served.push(("post", path));
        Self { router: self.router.route(path, post(handler)), ..self }
    }

    /// Serves `PUT`.
    pub(super) fn put<T: 'static>(mut self, path: &'static str, handler: impl Handler<T, Arc<Site>>) -> Self {
        self.served.push(("put", path));
        Self { router: self.router.route(path, put(handler)), ..self }
    }

    /// Serves `DELETE`.
    pub(super) fn delete<T: 'static>(
        mut self,
        path: &'static str,
        handler: impl Handler<T, Arc<Site>>,
    ) -> Self {
        self.served.push(("delete", path));
        Self { router: self.router.route(path, delete(handler)), ..self }
    }

    /// What is served: method in lower case, and path.
    #[cfg(test)]
    pub(super) fn served(&self) -> &[(&'static str, &'static str)] {
        &self.served
    }

    /// The router alone.
    pub(super) fn into_router(self) -> Router<Arc<Site>> {
        self.router
    }
}
