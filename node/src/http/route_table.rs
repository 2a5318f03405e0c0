//! [`RouteTable`]: a router that lists its paths and the class of each write, for the guard and for the test
//! of `/openapi.json`.

use std::sync::Arc;

use axum::{
    Router,
    handler::Handler,
    routing::{MethodRouter, any, delete, get, post, put},
};

use crate::http::{guard::class::Class, state::AppState};

/// A router and the list of its paths.
pub(crate) struct RouteTable {
    router: Router<Arc<AppState>>,
    /// Paths whose handlers make inner requests. The router that they enter again does not have them.
    reentrant: Router<Arc<AppState>>,
    served: Vec<(&'static str, &'static str)>,
    writes: Vec<(&'static str, &'static str, Class)>,
}

impl RouteTable {
    /// Returns an empty table.
    pub(crate) fn new() -> Self {
        Self { router: Router::new(), reentrant: Router::new(), served: Vec::new(), writes: Vec::new() }
    }

    /// Adds a path for `GET` and `HEAD`.
    pub(crate) fn get<T: 'static>(
        mut self,
        path: &'static str,
        handler: impl Handler<T, Arc<AppState>>,
    ) -> Self {
        self.served.push(("get", path));
        Self { router: self.router.route(path, get(handler)), ..self }
    }

    /// Adds a path for `POST`, a write of this class.
    pub(crate) fn post<T: 'static>(
        self,
        path: &'static str,
        class: Class,
        handler: impl Handler<T, Arc<AppState>>,
    ) -> Self {
        self.write("post", path, class, post(handler))
    }

    /// Adds a path for `POST` that only reads: the body says what.
    pub(crate) fn query<T: 'static>(
        mut self,
        path: &'static str,
        handler: impl Handler<T, Arc<AppState>>,
    ) -> Self {
        self.served.push(("post", path));
        Self { router: self.router.route(path, post(handler)), ..self }
    }

    /// Adds a path for `PUT`, a write of this class.
    pub(crate) fn put<T: 'static>(
        self,
        path: &'static str,
        class: Class,
        handler: impl Handler<T, Arc<AppState>>,
    ) -> Self {
        self.write("put", path, class, put(handler))
    }

    /// Adds a path for `DELETE`, a write of this class.
    pub(crate) fn delete<T: 'static>(
        self,
        path: &'static str,
        class: Class,
        handler: impl Handler<T, Arc<AppState>>,
    ) -> Self {
        self.write("delete", path, class, delete(handler))
    }

    /// Adds a path, with and without a trailing slash, whose handlers make [inner
    /// requests](crate::http::reentry). `methods` are in lower case; all but `get` are writes of the class
    /// [`Class::Inner`].
    pub(crate) fn reentrant(
        mut self,
        path: &'static str,
        methods: &[&'static str],
        route: MethodRouter<Arc<AppState>>,
    ) -> Self {
        for method in methods {
            self.served.push((method, path));
            if *method != "get" {
                self.writes.push((method, path, Class::Inner));
            }
        }
        let reentrant = self.reentrant.route(path, route.clone()).route(&format!("{path}/"), route);
        Self { reentrant, ..self }
    }

    /// Adds a path that refuses every method. It is neither a write nor documented.
    pub(crate) fn refuse<T: 'static>(
        self,
        path: &'static str,
        handler: impl Handler<T, Arc<AppState>>,
    ) -> Self {
        Self { router: self.router.route(path, any(handler)), ..self }
    }

    fn write(
        mut self,
        method: &'static str,
        path: &'static str,
        class: Class,
        route: MethodRouter<Arc<AppState>>,
    ) -> Self {
        self.served.push((method, path));
        self.writes.push((method, path, class));
        Self { router: self.router.route(path, route), ..self }
    }

    /// The writes: method in lower case, path and class.
    pub(crate) fn writes(&self) -> &[(&'static str, &'static str, Class)] {
        &self.writes
    }

    /// All paths: method in lower case, and path.
    #[cfg(test)]
    pub(crate) fn served(&self) -> &[(&'static str, &'static str)] {
        &self.served
    }

    /// Returns the router, and the router of the paths whose handlers make inner requests.
    pub(crate) fn into_routers(self) -> (Router<Arc<AppState>>, Router<Arc<AppState>>) {
        (self.router, self.reentrant)
    }
}
