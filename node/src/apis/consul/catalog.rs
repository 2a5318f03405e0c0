//! `/v1/catalog`: services, instances and nodes of the cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    extract::{Path, State},
    http::Uri,
    response::Response,
};
use hearsay_protocol::ProviderTable;
use hearsay_services::Problem;
use serde::Serialize;
use serde_json::json;

use super::{
    answer,
    fields::{OF_CATALOG, OF_NODES, OF_SERVICES},
    lookup::{self, Entry, filtered},
    node::CatalogNode,
    query::{DATACENTER, Query},
    shapes::{CatalogServiceJson, NodeJson, ServiceJson},
};
use crate::http::state::AppState;

/// Name of the service that every Consul cluster lists.
const CONSUL: &str = "consul";

/// `GET /v1/catalog/services`: names and the tags of their instances.
pub(super) async fn services(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    let filter = query.filter(&OF_CATALOG)?;
    lookup::hold(&state, &query, ProviderTable::services_index).await?;
    let (index, entries) = lookup::all_services(&state, &query);
    let mut services: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    // It has no instances, so no filter accepts any of them.
    if filter.is_none() && query.node_meta.is_empty() {
        services.insert(CONSUL, BTreeSet::new());
    }
    for entry in &entries {
        let is_accepted =
            filter.as_ref().is_none_or(|filter| lookup::accepts(filter, &catalog_service(entry)));
        if is_accepted {
            let tags = services.entry(&entry.provider.instance.service).or_default();
            tags.extend(entry.provider.instance.tags.iter().map(String::as_str));
        }
    }
    Ok(answer::indexed(&query, index, &services))
}

/// `GET /v1/catalog/service/{name}`: the instances of a service.
pub(super) async fn service(
    State(state): State<Arc<AppState>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let mut query = Query::read(&uri)?;
    // The catalog lists instances of every status.
    query.is_passing = false;
    let filter = query.filter(&OF_CATALOG)?;
    let (index, entries) = lookup::service(&state, &name, &query).await?;
    let body = filtered(filter.as_ref(), entries.iter().map(catalog_service));
    Ok(answer::indexed(&query, index, &body))
}

fn catalog_service(entry: &Entry) -> CatalogServiceJson<'_> {
    CatalogServiceJson::new(&entry.provider, &entry.node, entry.index)
}

/// `GET /v1/catalog/nodes`.
pub(super) async fn nodes(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    let filter = query.filter(&OF_NODES)?;
    lookup::hold(&state, &query, ProviderTable::members_index).await?;
    let (index, mut nodes) = state.read(|table| (table.members_index().0, CatalogNode::list(table)));
    nodes.retain(|node| node.has_meta(&query.node_meta));
    let body = filtered(filter.as_ref(), nodes.iter().map(NodeJson::from));
    Ok(answer::indexed(&query, index, &body))
}

/// A node and its instances by their ids.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct NodeWithServices<'a, S> {
    node: Option<NodeJson<'a>>,
    services: S,
}

/// `GET /v1/catalog/node/{node}`: a node and its instances, by their ids; `null` for an unknown node.
pub(super) async fn node(
    State(state): State<Arc<AppState>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    let filter = query.filter(&OF_SERVICES)?;
    let (index, found) = lookup::of_node(&state, &name, &query).await?;
    let Some((node, entries)) = found else {
        return Ok(answer::indexed(&query, index, &json!(null)));
    };
    let services = filtered(filter.as_ref(), entries.iter().map(service_of));
    let services: BTreeMap<&str, ServiceJson<'_>> = services.into_iter().map(|s| (s.id, s)).collect();
    let body = NodeWithServices { node: Some(NodeJson::from(node.as_ref())), services };
    Ok(answer::indexed(&query, index, &body))
}

/// `GET /v1/catalog/node-services/{node}`: a node and the list of its instances.
pub(super) async fn node_services(
    State(state): State<Arc<AppState>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    let filter = query.filter(&OF_SERVICES)?;
    let (index, found) = lookup::of_node(&state, &name, &query).await?;
    let (node, entries) = found.map_or((None, Vec::new()), |(node, entries)| (Some(node), entries));
    let services = filtered(filter.as_ref(), entries.iter().map(service_of));
    let body = NodeWithServices { node: node.as_deref().map(NodeJson::from), services };
    Ok(answer::indexed(&query, index, &body))
}

fn service_of(entry: &Entry) -> ServiceJson<'_> {
    ServiceJson::new(&entry.provider, entry.index)
}

/// `GET /v1/catalog/datacenters`: the one datacenter.
pub(super) async fn datacenters(uri: Uri) -> Result<Response, Problem> {
    Ok(answer::json(&Query::read(&uri)?, &[DATACENTER]))
}
