//! Builds the router of a node. Every request passes the guard and the limits on bodies; then it is forwarded
//! to another node, if it names one, or goes to a handler or a plug-in.

use std::sync::Arc;

use axum::{
    Extension, Router,
    extract::{Request, State},
    http::Uri,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use hearsay_services::{
    Host, PrefixClash, Service,
    http::{check_prefixes, covers},
};

use crate::{
    apis::{
        consul::{KV_PREFIX, consul_routes},
        xds::rest_routes,
    },
    http::{
        api::openapi,
        forward,
        guard::Guard,
        plugins::dispatch::Plugins,
        reentry::{Reentry, RoleElsewhere},
        routes::own_routes,
        server::{request_body, response},
        state::AppState,
    },
};

/// Target of the redirect from `/` if no plug-in has a front page.
const FRONT_PAGE: &str = "/ui";

/// Builds the router of a node and its plug-ins. It does not start the plug-ins' tasks.
///
/// # Errors
/// Two plug-ins claim one path, or a plug-in claims a path of the node.
pub fn router(
    state: Arc<AppState>,
    plugins: &[Arc<dyn Service>],
    host: Arc<dyn Host>,
) -> Result<Router, PrefixClash> {
    check_prefixes(plugins)?;
    let front = plugins.iter().find_map(|plugin| plugin.front_page()).unwrap_or(FRONT_PAGE).to_owned();
    let own = rest_routes(consul_routes(own_routes(&front, openapi::document(plugins))));
    let guard = Guard::new(Arc::clone(&state), plugins, own.writes());
    let (own, reentrant) = own.into_routers();
    let own = own.with_state(Arc::clone(&state));
    let reentrant = reentrant.with_state(Arc::clone(&state));
    let others = Plugins::new(Arc::clone(&state), plugins, &host);
    let unslashed = own.clone().fallback(async |uri: Uri| response::unknown_path(&uri));
    let own = own.fallback(move |request| others.clone().answer(unslashed.clone(), request));
    let gate = Arc::new(Gate { state, guard, host });
    let inner = own.layer(middleware::from_fn_with_state(Arc::clone(&gate), pass));
    // The inner router lacks the paths that enter it. So no request enters it twice, and no router holds
    // itself.
    let reentrant = reentrant.layer(Extension(Reentry::new(inner.clone())));
    Ok(inner.merge(reentrant.layer(middleware::from_fn_with_state(gate, pass))))
}

/// The parts that every request passes.
struct Gate {
    state: Arc<AppState>,
    guard: Guard,
    host: Arc<dyn Host>,
}

/// Passes a request through all steps. The steps are in one layer, because each layer costs an allocation for
/// every request and response.
async fn pass(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let info = response::RequestInfo::of(&request);
    let response = async {
        gate.guard.check(&mut request).map_err(|refusal| *refusal)?;
        let other = forward::take_target(&gate.state, &mut request).map_err(IntoResponse::into_response)?;
        let (request, _permit) = request_body::read_body(&gate.state, request).await?;
        if let Some(other) = other {
            let response = forward::forward(gate.host.as_ref(), request, &other).await;
            return response.map_err(IntoResponse::into_response);
        }
        if let Some(role) = request.extensions().get::<RoleElsewhere>().copied() {
            let response = forward::forward_to_role(gate.host.as_ref(), request, role).await;
            return response.map_err(IntoResponse::into_response);
        }
        let request = with_host(request, &gate.host);
        Ok(gate.state.response_budget.charge(next.run(request).await, &gate.state.metrics).await)
    };
    let response: Result<Response, Response> = response.await;
    info.finish(&gate.state, response.unwrap_or_else(|refusal| refusal))
}

/// Adds the host to a request for the key/value store, whose answer comes from another node.
fn with_host(mut request: Request, host: &Arc<dyn Host>) -> Request {
    if covers(KV_PREFIX, request.uri().path()) {
        request.extensions_mut().insert(Arc::clone(host));
    }
    request
}
