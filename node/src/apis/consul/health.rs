//! `GET /v1/health/…`: lists the instances of a service with their checks, and the checks of a service, of a
//! node or in a given state.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::Response,
};
use hearsay_protocol::{Index, NodeId};
use hearsay_services::Problem;

use super::{
    answer,
    fields::{OF_CHECKS, OF_ENTRIES},
    lookup::{self, Entry, filtered},
    node::CatalogNode,
    query::Query,
    shapes::{CheckJson, EntryJson},
};
use crate::http::state::AppState;

/// The values of `{state}`.
const STATES: [&str; 4] = ["any", "passing", "warning", "critical"];
/// Index of the empty lists, which never change: a blocking query waits until its time is over.
const UNCHANGING: Index = Index(1);

/// `GET /v1/health/service/{name}`: the instances of a service, with nodes and checks.
pub(super) async fn service(
    State(state): State<Arc<AppState>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    let filter = query.filter(&OF_ENTRIES)?;
    let (index, entries) = lookup::service(&state, &name, &query).await?;
    let body = filtered(filter.as_ref(), entries.iter().map(entry_json));
    Ok(answer::indexed(&query, index, &body))
}

/// `GET /v1/health/checks/{name}`: the checks of a service's instances.
pub(super) async fn checks(
    State(state): State<Arc<AppState>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut query = Query::read(&uri)?;
    // As in Consul, these choose instances on other paths, and no checks here.
    query.is_passing = false;
    query.tags.clear();
    let filter = query.filter(&OF_CHECKS)?;
    let (index, entries) = lookup::service(&state, &name, &query).await?;
    let mut checks: Vec<CheckJson<'_>> = entries.iter().flat_map(checks_of).collect();
    // The maintenance of the node is not a check of the service.
    checks.retain(|check| !check.service_id.is_empty());
    Ok(answer::indexed(&query, index, &filtered(filter.as_ref(), checks)))
}

/// `GET /v1/health/state/{state}`: all checks in a state, those of nodes among them.
pub(super) async fn in_state(
    State(state): State<Arc<AppState>>,
    Path(wanted): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    if !STATES.contains(&wanted.as_str()) {
        let wanted: String = wanted.chars().take(64).collect();
        let detail = format!("{wanted:?} is not one of {}", STATES.join(", "));
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
    }
    let filter = query.filter(&OF_CHECKS)?;
    lookup::hold(&state, &query, lookup::overall_index).await?;
    // The index is read first, so that no change between the two reads is missed.
    let (index, nodes) = state.read(|table| (lookup::overall_index(table).0, CatalogNode::list(table)));
    let (_, entries) = lookup::all_services(&state, &query);
    let alive = nodes.iter().filter(|node| node.has_meta(&query.node_meta));
    // Clients such as Fabio drop each instance of a node that is not alive, also those that the guard keeps.
    let unverified = entries.iter().filter(|entry| entry.provider.unverified);
    let kept: BTreeSet<NodeId> = unverified.map(|entry| entry.provider.node_id).collect();
    let alive = alive.map(|node| CheckJson::alive(node, kept.contains(&node.node_id)));
    let mut checks = distinct(alive.chain(entries.iter().flat_map(checks_of)));
    checks.retain(|check| wanted == "any" || check.status == wanted);
    Ok(answer::indexed(&query, index, &filtered(filter.as_ref(), checks)))
}

/// `GET /v1/health/node/{node}`: the checks of a node and of its instances.
pub(super) async fn node(
    State(state): State<Arc<AppState>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    let filter = query.filter(&OF_CHECKS)?;
    let (index, found) = lookup::of_node(&state, &name, &query).await?;
    let checks = match &found {
        Some((node, entries)) => {
            let is_kept = entries.iter().any(|entry| entry.provider.unverified);
            let alive = std::iter::once(CheckJson::alive(node, is_kept));
            distinct(alive.chain(entries.iter().flat_map(checks_of)))
        }
        None => Vec::new(),
    };
    Ok(answer::indexed(&query, index, &filtered(filter.as_ref(), checks)))
}

/// `GET /v1/health/connect/{name}` and others of the service mesh, and `GET /v1/coordinate/nodes`: an empty
/// list. Hearsay has no mesh, and a node derives no coordinates from the round trips that it measures.
pub(super) async fn nothing(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    lookup::hold(&state, &query, |_| UNCHANGING).await?;
    Ok(answer::indexed(&query, UNCHANGING.0, &[(); 0]))
}

fn entry_json(entry: &Entry) -> EntryJson<'_> {
    EntryJson::new(&entry.provider, &entry.node, entry.index)
}

fn checks_of(entry: &Entry) -> Vec<CheckJson<'_>> {
    CheckJson::of_instance(&entry.provider, &entry.node.name, entry.index)
}

/// Removes repetitions: each instance of a node states the maintenance of the node.
fn distinct<'a>(checks: impl Iterator<Item = CheckJson<'a>>) -> Vec<CheckJson<'a>> {
    let mut seen = BTreeSet::new();
    let is_new = |check: &CheckJson<'a>| {
        !check.service_id.is_empty() || seen.insert((check.node, check.check_id.clone()))
    };
    checks.filter(is_new).collect()
}
