//! What a node answers over HTTP.
//!
//! Every answer comes from the node's own memory: a handler looks into the [`View`](crate::view::View), clones pointers under its
//! lock and writes JSON outside. Nothing here changes the cluster but through the driver ([`Control`](crate::control::Control)).
//!
//! | file | what |
//! | --- | --- |
//! | `site` | what handlers know and may do |
//! | `listeners` | TCP, and the Unix socket |
//! | `accept` | the accept loop and every bound on connections |
//! | `body`, `body_room`, `decode` | bounds on request bodies, and their content coding, before any handler |
//! | `unread` | the bound on answers that wait for their readers |
//! | `guard` | who may ask what: `Host`, `Origin`, content type |
//! | `forward` | writes for another node |
//! | `class`, `caller` | the class of a write, and who makes it |
//! | `errors` | every error a problem+json, plain text under `/v1`; counting |
//! | `plugins` | who answers below a plug-in's prefix |
//! | `wait` | blocking queries |
//! | `services`, `registry`, `watch`, `members`, `network`, `why`, `probes`, `agent`, `ui`, `openapi` | the paths |
//!
//! A request passes `guard` and `body`, then reaches a handler here or a plug-in's router; its answer passes `unread` and `errors`.

mod accept;
mod agent;
mod body;
mod body_room;
mod caller;
mod class;
mod decode;
mod dependencies;
mod errors;
mod forward;
mod guard;
mod host;
mod instance;
mod listeners;
mod members;
mod network;
mod openapi;
mod plugins;
mod probes;
mod registry;
mod routes;
mod services;
mod site;
mod ui;
mod unread;
mod wait;
mod watch;
mod why;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::Uri,
    middleware::{self, Next},
    response::{IntoResponse, Redirect, Response},
};
use hearsay_services::{Host, PrefixClash, Service, html, prefixes};

pub use accept::{Limits, serve};
pub use host::{NodeHost, OwnHttp};
pub use listeners::Listeners;
pub use site::{Access, Answers, HostNames, Readiness, Site, Waiters};

use class::Class;
use plugins::Plugins;
use routes::Routes;

/// Where `/` leads when no plug-in is what people come for.
const FRONT_PAGE: &str = "/ui";

/// Builds the router of a node and its plug-ins. Their tasks are not started here.
///
/// # Errors
/// Two of the plug-ins claim one path, or one claims a path of the node.
pub fn router(
    site: Arc<Site>,
    plugins: &[Arc<dyn Service>],
    host: Arc<dyn Host>,
) -> Result<Router, PrefixClash> {
    prefixes::check(plugins)?;
    let front = plugins.iter().find_map(|plugin| plugin.front_page()).unwrap_or(FRONT_PAGE).to_owned();
    let own = own_routes(&front, openapi::document(plugins));
    let guard = guard::Guard::new(Arc::clone(&site), plugins, own.writes());
    let own = own.into_router().with_state(Arc::clone(&site));
    let others = Plugins::new(Arc::clone(&site), plugins, &host);
    let unslashed = own.clone().fallback(async |uri: Uri| errors::unknown_path(&uri));
    let own = own.fallback(move |request| others.clone().answer(unslashed.clone(), request));
    Ok(own.layer(middleware::from_fn_with_state(Arc::new(Gate { site, guard, host }), pass)))
}

/// What every request passes.
struct Gate {
    site: Arc<Site>,
    guard: guard::Guard,
    host: Arc<dyn Host>,
}

/// One layer and not one for each: each is a box for every request and every answer.
async fn pass(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let asked = errors::Asked::of(&request);
    let answer = async {
        gate.guard.check(&mut request).map_err(|refusal| *refusal)?;
        let other = forward::addressed(&gate.site, &mut request).map_err(IntoResponse::into_response)?;
        let (request, _room) = body::bound(&gate.site, request).await?;
        if let Some(other) = other {
            let answer = forward::forward(gate.host.as_ref(), request, &other).await;
            return answer.map_err(IntoResponse::into_response);
        }
        Ok(unread::bound(&gate.site, next.run(request).await).await)
    };
    let answer: Result<Response, Response> = answer.await;
    asked.finish(&gate.site, answer.unwrap_or_else(|refusal| refusal))
}

/// The node's own paths.
fn own_routes(front: &str, document: Vec<u8>) -> Routes {
    let to_front = Redirect::temporary(front);
    let document = bytes::Bytes::from(document);
    Routes::new()
        .get("/", async move || to_front)
        .get("/services", services::list)
        .post("/services", Class::Registry, registry::register)
        .delete("/services", Class::Registry, registry::deregister_matching)
        .get("/services/{name}", services::one)
        .delete("/services/{name}", Class::Registry, registry::deregister_id)
        .get("/services/{name}/{id}", services::instance)
        .delete("/services/{name}/{id}", Class::Registry, registry::deregister_of_service)
        .put("/services/{name}/maintenance", Class::Registry, registry::maintenance)
        .get("/registrations", registry::list)
        .put("/checks/{id}", Class::Registry, registry::report)
        .get("/dependencies", dependencies::dependencies)
        .get("/services/watch", watch::watch)
        .get("/members", members::list)
        .delete("/members/{id}", Class::Admin, members::forget)
        .get("/network", network::network)
        .get("/why/{subject}", why::why)
        .get("/livez", probes::livez)
        .get("/readyz", probes::readyz)
        .get("/metrics", probes::metrics)
        .get("/openapi.json", async move || openapi::answer(document))
        .get("/ui", ui::page)
        .get("/ui/services", ui::services::page)
        .get("/ui/services/{name}", ui::service::page)
        .post(ui::DEREGISTER_PATH, Class::Registry, ui::actions::deregister)
        .post(ui::MAINTENANCE_PATH, Class::Registry, ui::actions::maintenance)
        .get("/ui/events", ui::live::events)
        .get("/ui/live.js", async || ui::LIVE_SCRIPT.answer())
        .get("/ui/style.css", async || html::STYLE.answer())
        .get("/ui/icon.svg", async || html::ICON.answer())
        .put("/v1/agent/leave", Class::Admin, agent::leave)
        .put("/v1/agent/maintenance", Class::Admin, agent::maintenance)
}
