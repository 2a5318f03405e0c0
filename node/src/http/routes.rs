//! Route table of the node's own paths (not those of plug-ins): which handler serves a path, and which class
//! its writes belong to.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    response::{Redirect, Response},
    routing::post,
};
use hearsay_services::http::{ICON, STYLESHEET};

use crate::apis::{jsonrpc, mcp, prometheus};
use crate::http::{
    api::{agent, dependencies, members, network, openapi, probes, registrations, services, watch, why},
    guard::{class::Class, login},
    route_table::RouteTable,
    server::connection::Connection,
    state::AppState,
    ui::{actions, cluster, live, parts, service, services as services_page},
};

/// Returns the node's own paths: `/` redirects to `front`, and `/openapi.json` is `document`.
pub(crate) fn own_routes(front: &str, document: Vec<u8>) -> RouteTable {
    let to_front = Redirect::temporary(front);
    let document = bytes::Bytes::from(document);
    RouteTable::new()
        .get("/", async move || to_front)
        .get("/services", services::list)
        .post("/services", Class::Registry, registrations::register)
        .delete("/services", Class::Registry, registrations::deregister_matching)
        .get("/services/{name}", services::list_service)
        .delete("/services/{name}", Class::Registry, registrations::deregister_id)
        .get("/services/{name}/{id}", services::instance)
        .delete("/services/{name}/{id}", Class::Registry, registrations::deregister_of_service)
        .put("/services/{name}/maintenance", Class::Registry, registrations::maintenance)
        .get("/registrations", registrations::list)
        .put("/checks/{id}", Class::Registry, registrations::report)
        .get("/dependencies", dependencies::dependencies)
        .get("/services/watch", watch::watch)
        .get("/members", members::list)
        .delete("/members/{id}", Class::Admin, members::forget)
        .get("/network", network::network)
        .get("/why/{subject}", why::why)
        .get("/livez", probes::livez)
        .get("/readyz", probes::readyz)
        .get("/metrics", probes::metrics)
        .get("/sd/prometheus", prometheus::targets)
        .reentrant(jsonrpc::PATH, &["post"], post(jsonrpc::answer))
        .reentrant("/mcp", &["post"], post(mcp::answer))
        .get("/openapi.json", async move || openapi::answer(document))
        .get("/ui", cluster::page)
        .get("/ui/services", services_page::page)
        .get("/ui/services/{name}", service::page)
        .post(parts::DEREGISTER_PATH, Class::Registry, actions::deregister)
        .post(parts::MAINTENANCE_PATH, Class::Registry, actions::maintenance)
        .get("/ui/events", live::events)
        .get("/ui/live.js", async || parts::LIVE_SCRIPT.answer())
        .get("/ui/style.css", async || STYLESHEET.answer())
        .get("/ui/icon.svg", async || ICON.answer())
        .get(login::LOGIN, sign_in)
        .post(login::LOGIN, Class::Session, sign_in)
        .post(login::LOGOUT, Class::Session, sign_in)
        .get("/login/style.css", sign_in)
        .get("/login/icon.svg", sign_in)
        .put("/v1/agent/leave", Class::Admin, agent::leave)
        .put("/v1/agent/maintenance", Class::Admin, agent::maintenance)
}

/// Serves the sign-in pages.
async fn sign_in(State(state): State<Arc<AppState>>, request: Request) -> Response {
    let peer = request.extensions().get::<Connection>().and_then(|connection| connection.peer);
    let AppState { access, metrics, cluster, name: node, .. } = state.as_ref();
    let (head, body) = request.into_parts();
    login::Login { access, metrics, cluster, node }.answer(peer.map(|peer| peer.ip()), &head, body).await
}
