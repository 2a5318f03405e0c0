//! Discovery by REST: `POST /v3/discovery:clusters`, `:endpoints`, `:listeners` and `:routes`.
//!
//! A client polls with the version that it has; without a change the answer is 304. A request without names
//! gets all clusters or listeners. The body is a `DiscoveryRequest` as JSON, with names in snake_case or
//! camelCase, as proto3's JSON form allows.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, header::HOST},
    response::{IntoResponse as _, Response},
};
use hearsay_services::Problem;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    catalog::Catalog,
    kind::Kind,
    rest_json::{RestClient, resource_json},
    subscription::NAMES_MAX,
};
use crate::http::{route_table::RouteTable, state::AppState};

/// Request for resources. Other members, of which Envoy sends many, are ignored.
#[derive(Deserialize, Default, Debug)]
#[serde(default)]
struct DiscoveryRequest {
    #[serde(alias = "versionInfo")]
    version_info: String,
    node: Node,
    #[serde(alias = "resourceNames")]
    resource_names: Vec<String>,
    #[serde(alias = "typeUrl")]
    type_url: String,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
struct Node {
    locality: Locality,
}

#[derive(Deserialize, Default, Debug)]
#[serde(default)]
struct Locality {
    zone: String,
}

/// Adds the paths.
pub(crate) fn rest_routes(table: RouteTable) -> RouteTable {
    let of = |kind| {
        move |State(state): State<Arc<AppState>>, headers: HeaderMap, body: Bytes| {
            answer(state, kind, headers, body)
        }
    };
    table
        .query("/v3/discovery:clusters", of(Kind::Clusters))
        .query("/v3/discovery:endpoints", of(Kind::Endpoints))
        .query("/v3/discovery:listeners", of(Kind::Listeners))
        .query("/v3/discovery:routes", of(Kind::Routes))
}

async fn answer(
    state: Arc<AppState>,
    kind: Kind,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let request: DiscoveryRequest = match body.is_empty() {
        true => DiscoveryRequest::default(),
        false => serde_json::from_slice(&body).map_err(|e| Problem::parameter("body", e))?,
    };
    if !request.type_url.is_empty() && Kind::of_url(&request.type_url) != Some(kind) {
        let expected = kind.url();
        return Err(Problem::parameter(
            "type_url",
            format!("this path has resources of the type {expected}"),
        ));
    }
    if request.resource_names.len() > NAMES_MAX {
        return Err(Problem::parameter("resource_names", format!("at most {NAMES_MAX} names")));
    }
    // A client would drop what a list lacks.
    state.settled().await;
    let shared = state.xds.open_for_request();
    let resources = resources(&shared.catalog(), kind, &request, &headers);
    let resources = serde_json::to_string(&resources).map_err(|e| Problem::parameter("resources", e))?;
    // The content decides, so that a client may ask any node next.
    let version: String = blake3::hash(resources.as_bytes()).to_hex().chars().take(16).collect();
    if version == request.version_info {
        return Ok(StatusCode::NOT_MODIFIED.into_response());
    }
    let raw = serde_json::value::RawValue::from_string(resources)
        .map_err(|e| Problem::parameter("resources", e))?;
    let (type_url, node) = (kind.url(), state.id.to_string());
    let answer = DiscoveryResponse {
        version_info: version,
        resources: raw,
        type_url,
        control_plane: json!({"identifier": node}),
    };
    Ok(Json(answer).into_response())
}

/// Returns the resources for a request.
fn resources(catalog: &Catalog, kind: Kind, request: &DiscoveryRequest, headers: &HeaderMap) -> Vec<Value> {
    let is_whole = request.resource_names.is_empty() || request.resource_names.iter().any(|name| name == "*");
    let names: BTreeSet<&str> = match kind.is_whole() && is_whole {
        true => catalog.names().map(AsRef::as_ref).collect(),
        false => request.resource_names.iter().map(String::as_str).collect(),
    };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let client = RestClient { zone: &request.node.locality.zone, host };
    names.into_iter().filter_map(|name| resource_json(catalog, kind, name, client)).collect()
}

#[derive(serde::Serialize)]
struct DiscoveryResponse {
    version_info: String,
    resources: Box<serde_json::value::RawValue>,
    type_url: String,
    control_plane: Value,
}
