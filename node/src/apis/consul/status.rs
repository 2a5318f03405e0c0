//! `GET /v1/status/…` and `/v1/coordinate/datacenters`: the cluster has no leader, so each node names itself
//! as the leader and the only peer. There are no coordinates.

use std::sync::Arc;

use axum::{extract::State, http::Uri, response::Response};
use hearsay_services::Problem;
use serde_json::json;

use super::{
    answer,
    node::CatalogNode,
    query::{DATACENTER, Query},
};
use crate::http::state::AppState;

/// The port of Consul's servers, which clients expect beside a leader's address. Nothing listens there.
const SERVER_PORT: u16 = 8300;

/// `GET /v1/status/leader`: this node.
pub(super) async fn leader(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    state.started().await;
    Ok(answer::json(&query, &own_address(&state)))
}

/// `GET /v1/status/peers`: this node alone.
pub(super) async fn peers(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    state.started().await;
    Ok(answer::json(&query, &[own_address(&state)]))
}

fn own_address(state: &AppState) -> String {
    let own = state.read(|table| CatalogNode::find(table, state.id));
    let host = own.map(|node| node.address).filter(|host| !host.is_empty());
    let host = host.unwrap_or_else(|| "127.0.0.1".to_owned());
    if host.contains(':') { format!("[{host}]:{SERVER_PORT}") } else { format!("{host}:{SERVER_PORT}") }
}

/// `GET /v1/coordinate/datacenters`.
pub(super) async fn coordinates_of_datacenters(uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    Ok(answer::json(&query, &json!([{ "Datacenter": DATACENTER, "AreaID": "WAN", "Coordinates": [] }])))
}
