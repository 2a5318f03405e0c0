//! The node's own routes, remembered while they are added, so that a test can hold `/openapi.json` against them.

use std::sync::Arc;

use axum::{
    Router,
    handler::Handler,
    routing::{MethodRouter, delete, get, post, put},
};

use super::{class::Class, site::Site};

/// A router and the list of what it serves.
pub(super) struct Routes {
    router: Router<Arc<Site>>,
    served: Vec<(&'static str, &'static str)>,
    writes: Vec<(&'static str, &'static str, Class)>,
}

impl Routes {
    /// No routes.
    pub(super) fn new() -> Self {
        Self { router: Router::new(), served: Vec::new(), writes: Vec::new() }
    }

    /// Serves `GET` (and so `HEAD`).
    pub(super) fn get<T: 'static>(mut self, path: &'static str, handler: impl Handler<T, Arc<Site>>) -> Self {
        self.served.push(("get", path));
        Self { router: self.router.route(path, get(handler)), ..self }
    }

    /// Serves `POST`, a write of this class.
    pub(super) fn post<T: 'static>(
        self,
        path: &'static str,
        class: Class,
        handler: impl Handler<T, Arc<Site>>,
    ) -> Self {
        self.write("post", path, class, post(handler))
    }

    /// Serves `PUT`, a write of this class.
    pub(super) fn put<T: 'static>(
        self,
        path: &'static str,
        class: Class,
        handler: impl Handler<T, Arc<Site>>,
    ) -> Self {
        self.write("put", path, class, put(handler))
    }

    /// Serves `DELETE`, a write of this class.
    pub(super) fn delete<T: 'static>(
        self,
        path: &'static str,
        class: Class,
        handler: impl Handler<T, Arc<Site>>,
    ) -> Self {
        self.write("delete", path, class, delete(handler))
    }

    fn write(
        mut self,
        method: &'static str,
        path: &'static str,
        class: Class,
        route: MethodRouter<Arc<Site>>,
    ) -> Self {
        self.served.push((method, path));
        self.writes.push((method, path, class));
        Self { router: self.router.route(path, route), ..self }
    }

    /// What changes something: method in lower case, path and class.
    pub(super) fn writes(&self) -> &[(&'static str, &'static str, Class)] {
        &self.writes
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
