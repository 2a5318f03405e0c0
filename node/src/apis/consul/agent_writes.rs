//! `PUT /v1/agent/…`: registers and deregisters services and checks, sets maintenance, records the results of
//! checks, and forgets failed members.
//!
//! Success is 200 with an empty body. An unknown check is 404: clients register again then.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{Path, State},
    http::{StatusCode, Uri},
};
use hearsay_protocol::Health;
use hearsay_services::Problem;
use serde_json::Value;
use tokio::sync::oneshot;

use super::{
    lookup::{check_id, instance_id, shown},
    node::CatalogNode,
    query::Query,
};
use crate::{
    driver_command::ForgetOutcome,
    http::{
        api::{
            agent::send,
            registrations::{Requester, parse_status, readable_reason},
        },
        state::AppState,
    },
    operator_request::OperatorRequest,
    registry::{
        AddedCheck, RegistryError, Scope, Selector,
        consul_input::{ConsulCheckInput, read_consul},
        record::Owner,
    },
};

/// `PUT /v1/agent/service/register`. Checks that were registered apart stay, unless
/// `?replace-existing-checks` is given.
///
/// # Errors
/// 400 names the field and the limit. Nothing was registered.
pub(super) async fn register(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    uri: Uri,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    let query = Query::read(&uri)?;
    let source = requester.source();
    let read = read_consul(&body, source, state.registry.suffix());
    let registration = read.map_err(RegistryError::from)?;
    let scope = requester.scope();
    if query.replaces_checks {
        state.registry.register(registration, Owner::Api, scope).await?;
    } else {
        state.registry.register_keeping_checks(registration, scope).await?;
    }
    Ok(StatusCode::OK)
}

/// `PUT /v1/agent/service/deregister/{id}`.
///
/// # Errors
/// 404: this node has no such registration.
pub(super) async fn deregister(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    Query::read(&uri)?;
    let id = instance_id(&state, id);
    state.registry.deregister(Selector::Id(id), Owner::Api, requester.scope()).await?;
    Ok(StatusCode::OK)
}

/// `PUT /v1/agent/service/maintenance/{id}?enable=&reason=`.
///
/// # Errors
/// 400 without `enable`; 404: this node has no such registration.
pub(super) async fn maintenance(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    let query = Query::read(&uri)?;
    let Some(enable) = query.enable else {
        return Err(Problem::parameter("enable", "is missing; give true or false"));
    };
    let id = instance_id(&state, id);
    let reason = match query.reason.as_str() {
        "" => "Maintenance mode is enabled for this service, but no reason was provided.",
        given => given,
    };
    let reason = enable.then(|| readable_reason(reason));
    state.registry.set_maintenance(&id, reason, requester.scope()).await?;
    Ok(StatusCode::OK)
}

/// `PUT /v1/agent/check/register`: adds a check to a registration of this node, or replaces the check with
/// the same id.
///
/// # Errors
/// 400 names the field and the limit; 404: this node has no such registration.
pub(super) async fn register_check(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    uri: Uri,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    Query::read(&uri)?;
    add_check(&state, &requester, &body).await?;
    Ok(StatusCode::OK)
}

/// Adds a check in Consul's form to a registration of this node, or replaces the check with the same id.
///
/// # Errors
/// As [`register_check`].
pub(super) async fn add_check(state: &AppState, requester: &Requester, body: &[u8]) -> Result<(), Problem> {
    let input = ConsulCheckInput::parse(body).map_err(RegistryError::from)?;
    let instance = input.instance.clone();
    let Some(view) = state.registry.get(&instance) else {
        return Err(Problem::not_found(format!("ServiceID {:?} does not exist", shown(&instance))));
    };
    let source = requester.source();
    let read = input.of_registration(&view.row.registration, source);
    let (spec, sent) = read.map_err(RegistryError::from)?;
    let added = AddedCheck { registration: instance, spec, sent };
    state.registry.add_check(added, requester.scope()).await?;
    Ok(())
}

/// `PUT /v1/agent/check/deregister/{id}`.
///
/// # Errors
/// 404: this node has no such check.
pub(super) async fn deregister_check(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    Query::read(&uri)?;
    let id = check_id(&state, id);
    state.registry.remove_check(&id, requester.scope()).await?;
    Ok(StatusCode::OK)
}

/// `PUT /v1/agent/check/pass/{id}`: a report of a TTL check, with an optional `note`.
pub(super) async fn pass(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    let note = Query::read(&uri)?.note;
    report(&state, id, Health::Passing, note, requester.scope())
}

/// `PUT /v1/agent/check/warn/{id}`: as [`pass`].
pub(super) async fn warn(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    let note = Query::read(&uri)?.note;
    report(&state, id, Health::Warning, note, requester.scope())
}

/// `PUT /v1/agent/check/fail/{id}`: as [`pass`].
pub(super) async fn fail(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    let note = Query::read(&uri)?.note;
    report(&state, id, Health::Critical, note, requester.scope())
}

/// `PUT /v1/agent/check/update/{id}` with `{"Status","Output"}`.
///
/// # Errors
/// 400 for a body that is no report, 404 for an unknown check.
pub(super) async fn update(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    Path(id): Path<String>,
    uri: Uri,
    body: Bytes,
) -> Result<StatusCode, Problem> {
    Query::read(&uri)?;
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    let value: Value = serde_json::from_slice(&body)
        .map_err(|error| bad(format!("the body is no report such as {{\"Status\":\"passing\"}}: {error}")))?;
    let member = |name: &str| {
        let members = value.as_object().into_iter().flatten();
        let mut found = members.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().and_then(|(_, value)| value.as_str()).unwrap_or_default()
    };
    let status = parse_status("Status", member("Status"))?;
    report(&state, id, status, member("Output").to_owned(), requester.scope())
}

fn report(
    state: &AppState,
    id: String,
    status: Health,
    output: String,
    scope: Scope,
) -> Result<StatusCode, Problem> {
    let id = check_id(state, id);
    if !state.registry.has_check(&id) {
        let id = shown(&id);
        let detail =
            format!("Unknown check ID {id:?}. Ensure that the check ID is passed, not the check name.");
        return Err(Problem::not_found(detail));
    }
    state.registry.report(&id, status, output, scope)?;
    Ok(StatusCode::OK)
}

/// `PUT /v1/agent/force-leave/{node}`: forgets a member that has failed or left.
///
/// # Errors
/// 404: no member has this name. 409: it is alive here.
pub(super) async fn force_leave(
    State(state): State<Arc<AppState>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<StatusCode, Problem> {
    Query::read(&uri)?;
    let name = name.replace('+', " ");
    let unknown = || Problem::not_found(format!("agent: No node found with name '{}'", shown(&name)));
    let node = state.read(|table| CatalogNode::find_named(table, &name)).ok_or_else(unknown)?;
    let (answer, answered) = oneshot::channel();
    send(&state, OperatorRequest::Forget(node.node_id, answer))?;
    match answered.await {
        Ok(ForgetOutcome::Done) => Ok(StatusCode::OK),
        Ok(ForgetOutcome::Unknown) => Err(unknown()),
        Ok(ForgetOutcome::Present(state)) => {
            let detail =
                format!("{name:?} is {state} here; only a member that has failed or left can be forgotten");
            Err(Problem::new(StatusCode::CONFLICT, detail))
        }
        Err(_) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the node is already stopping")),
    }
}
