//! Reads of `/v1/agent`: this node, its members and its registrations. The writes are in
//! [`agent_writes`](super::agent_writes).

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use hearsay_services::{Problem, rfc3339};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    answer,
    fields::{OF_CHECKS, OF_MEMBERS, OF_SERVICES},
    local::{self, LocalService},
    lookup::{self, filtered, shown},
    node::{CatalogNode, uuid_of},
    query::{DATACENTER, Query},
    shapes::{CONSUL_VERSION, MemberJson, ServiceJson},
};
use crate::http::{api::blocking_query::Wait, state::AppState};

/// `GET /v1/agent/self`: this node. Every top-level member is an object, and every member of `Config` is a
/// scalar: clients fail on others.
pub(super) async fn own(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    state.started().await;
    let node = state.read(|table| CatalogNode::find(table, state.id));
    let member = node.as_ref().map(MemberJson::from);
    let body = json!({
        "Config": {
            "Datacenter": DATACENTER,
            "PrimaryDatacenter": DATACENTER,
            "NodeName": state.name,
            "NodeID": uuid_of(state.id),
            "Server": false,
            "Version": CONSUL_VERSION,
            "Revision": "",
        },
        // As in Consul, -1 without DNS.
        "DebugConfig": { "DNSPort": state.dns_port.map_or(-1, i32::from) },
        "Coord": {},
        "Member": member.map_or_else(|| json!({}), |member| json!(member)),
        "Stats": {},
        "Meta": node.map(|node| node.meta).unwrap_or_default(),
    });
    Ok(answer::json(&query, &body))
}

/// `GET /v1/agent/host`: empty, because the machine is not described to the network.
pub(super) async fn host(uri: Uri) -> Result<Response, Problem> {
    Ok(answer::json(&Query::read(&uri)?, &json!({})))
}

/// `GET /v1/agent/version`.
pub(super) async fn version(uri: Uri) -> Result<Response, Problem> {
    let body = json!({
        "SHA": "", "BuildDate": "1970-01-01T00:00:00Z", "HumanVersion": CONSUL_VERSION, "FIPS": "",
    });
    Ok(answer::json(&Query::read(&uri)?, &body))
}

/// `GET /v1/agent/metrics`: none in Consul's form; they are at `/metrics`.
pub(super) async fn metrics(uri: Uri) -> Result<Response, Problem> {
    let body = json!({
        "Timestamp": rfc3339(SystemTime::now()),
        "Gauges": [], "Points": [], "Counters": [], "Samples": [],
    });
    Ok(answer::json(&Query::read(&uri)?, &body))
}

/// `GET /v1/agent/members`: all members, including failed ones and those that have left.
pub(super) async fn members(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    let filter = query.filter(&OF_MEMBERS)?;
    state.started().await;
    let members = state.read(CatalogNode::list_all);
    let body = filtered(filter.as_ref(), members.iter().map(MemberJson::from));
    Ok(answer::json(&query, &body))
}

/// `GET /v1/agent/services`: the registrations of this node, by id.
pub(super) async fn services(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    let filter = query.filter(&OF_SERVICES)?;
    let services = LocalService::list(&state);
    let found = filtered(filter.as_ref(), services.iter().map(LocalService::to_json));
    let body: BTreeMap<&str, ServiceJson<'_>> =
        found.into_iter().map(|service| (service.id, service)).collect();
    Ok(answer::json(&query, &body))
}

/// A registration and the hash to wait with.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct HashedService<'a> {
    #[serde(flatten)]
    service: ServiceJson<'a>,
    content_hash: &'a str,
}

/// `GET /v1/agent/service/{id}`: a registration of this node. With `?hash=` the response comes when the
/// registration has changed, or the time is over.
///
/// # Errors
/// 404 for an unknown id.
pub(super) async fn service(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    state.started().await;
    let id = lookup::instance_id(&state, id);
    let read = || LocalService::find(&state, &id).map(|service| (content_hash(&service), service));
    if let Some(seen) = &query.hash {
        let has_changed = || read().is_none_or(|(hash, _)| hash != *seen);
        let changes = state.registry.subscribe();
        Wait::new(None, query.wait).until_changed(&state, changes, has_changed).await?;
    }
    let Some((hash, service)) = read() else {
        return Err(Problem::not_found(format!("unknown service ID: {}", shown(&id))));
    };
    let body = HashedService { service: service.to_json(), content_hash: &hash };
    Ok(answer::hashed(&query, &hash, &body))
}

/// Returns the hash of a registration, without its indexes: they change with the status of checks.
fn content_hash(service: &LocalService) -> String {
    let json = ServiceJson { create_index: 0, modify_index: 0, ..service.to_json() };
    let text = serde_json::to_vec(&json).unwrap_or_default();
    blake3::hash(&text).to_hex()[..16].to_owned()
}

/// `GET /v1/agent/checks`: the checks of this node's registrations, by id.
pub(super) async fn checks(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    let services = LocalService::list(&state);
    let mut checks = local::all_checks(&state, &services);
    if let Some(filter) = query.filter(&OF_CHECKS)? {
        checks.retain(|_, check| lookup::accepts(&filter, check));
    }
    Ok(answer::json(&query, &checks))
}

/// `GET /v1/agent/health/service/id/{id}`: the health of one registration, in the status too.
pub(super) async fn health_of_id(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::read(&uri)?.accepting(&headers);
    let id = lookup::instance_id(&state, id);
    let Some(service) = LocalService::find(&state, &id) else {
        return Err(Problem::not_found(format!("ServiceId {} not found", shown(&id))));
    };
    let aggregate = service.aggregate(state.registry.node_maintenance().is_some());
    Ok(with_status(aggregate, &query, &health_json(&state, &service)))
}

/// `GET /v1/agent/health/service/name/{name}`: the health of all registrations of a service; the status is
/// that of the worst.
pub(super) async fn health_of_name(
    State(state): State<Arc<AppState>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::read(&uri)?.accepting(&headers);
    // Service names contain no plus.
    let name = name.replace('+', " ");
    let mut services = LocalService::list(&state);
    services.retain(|service| service.view.row.registration.service == name);
    let is_node_out = state.registry.node_maintenance().is_some();
    let worst = services.iter().map(|service| service.aggregate(is_node_out)).max();
    let Some(worst) = worst else {
        if query.is_text {
            return Err(Problem::not_found(format!("ServiceName {} not found", shown(&name))));
        }
        return Ok((StatusCode::NOT_FOUND, answer::json(&query, &[(); 0])).into_response());
    };
    let body: Vec<Value> = services.iter().map(|service| health_json(&state, service)).collect();
    Ok(with_status(worst, &query, &body))
}

fn health_json(state: &AppState, service: &LocalService) -> Value {
    let maintenance = local::node_maintenance(state);
    let aggregate = service.aggregate(maintenance.is_some());
    let mut checks = service.checks(&state.name);
    checks.extend(maintenance);
    json!({ "AggregatedStatus": aggregate.as_str(), "Service": service.to_json(), "Checks": checks })
}

fn with_status(aggregate: local::Aggregate, query: &Query, body: &impl Serialize) -> Response {
    let status = match aggregate {
        local::Aggregate::Passing => StatusCode::OK,
        local::Aggregate::Warning => StatusCode::TOO_MANY_REQUESTS,
        local::Aggregate::Critical | local::Aggregate::Maintenance => StatusCode::SERVICE_UNAVAILABLE,
    };
    match query.is_text {
        true => (status, aggregate.as_str()).into_response(),
        false => (status, answer::json(query, body)).into_response(),
    }
}
