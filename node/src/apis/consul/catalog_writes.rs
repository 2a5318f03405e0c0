//! `PUT /v1/catalog/register` and `/v1/catalog/deregister`: enter a service that no agent serves, such as a
//! managed database, and remove it.
//!
//! A node speaks for itself. So the service is registered with this node, at the `Address` of the service
//! or of the body, and is listed under this node's name, whatever `Node` says.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::State,
    http::{StatusCode, Uri},
    response::Response,
};
use hearsay_services::Problem;

use super::{agent_writes::add_check, answer::json, lookup::shown, node::CatalogNode, query::Query};
use crate::{
    http::{api::registrations::Requester, state::AppState},
    registry::{
        RegistryError, Selector,
        catalog_input::{CatalogContent, CatalogRegistration, CatalogRemoval},
        consul_input::read_consul,
        record::Owner,
    },
};

/// `PUT /v1/catalog/register`.
///
/// # Errors
/// 400 names the field and the limit. 501: a node alone, or in the name of another member. Nothing was
/// registered.
pub(super) async fn register(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    // Before, the table does not tell what other members have.
    state.started().await;
    let asked = CatalogRegistration::parse(&body, &state.name).map_err(RegistryError::from)?;
    refuse_other_member(&state, &asked.node)?;
    match asked.content {
        CatalogContent::Service(service) => {
            let read = read_consul(&service, requester.source(), state.registry.suffix());
            let registration = read.map_err(RegistryError::from)?;
            let scope = requester.scope();
            // In the catalog, a registration removes no checks.
            if query.replaces_checks {
                state.registry.register(registration, Owner::Api, scope).await?;
            } else {
                state.registry.register_keeping_checks(registration, scope).await?;
            }
        }
        CatalogContent::Check(check) => add_check(&state, &requester, &check).await?,
        CatalogContent::Node => {
            return Err(not_here("a node is in the catalog while it runs; register a Service or a Check"));
        }
    }
    Ok(json(&query, &true))
}

/// `PUT /v1/catalog/deregister`. An unknown service or check counts as removed.
///
/// # Errors
/// 501: a node alone, or what another member has registered.
pub(super) async fn deregister(
    State(state): State<Arc<AppState>>,
    requester: Requester,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    let query = Query::read(&uri)?;
    // Before, the table does not tell what other members have.
    state.started().await;
    let asked = CatalogRemoval::parse(&body).map_err(RegistryError::from)?;
    refuse_other_member(&state, &asked.node)?;
    let removed = match (asked.check, asked.service) {
        (Some(check), service) => {
            if let Some(node) = service.and_then(|service| holder_of(&state, &service)) {
                return Err(not_here(&format!(
                    "the service is registered with the node {node}; ask that one"
                )));
            }
            state.registry.remove_check(&check, requester.scope()).await
        }
        (None, Some(id)) => {
            let removed = state.registry.deregister(Selector::Id(id), Owner::Api, requester.scope()).await;
            removed.map(|_| ())
        }
        (None, None) => {
            return Err(not_here(
                "a node leaves the catalog when it leaves; /v1/agent/force-leave forgets one",
            ));
        }
    };
    match removed {
        Ok(()) | Err(RegistryError::NotFound(_)) => (),
        Err(error @ RegistryError::HeldElsewhere { .. }) => return Err(not_here(&error.to_string())),
        Err(error) => return Err(error.into()),
    }
    Ok(json(&query, &true))
}

/// Refuses to write in the name of another live member.
fn refuse_other_member(state: &AppState, node: &str) -> Result<(), Problem> {
    let found = state.read(|table| CatalogNode::find_named(table, node));
    match found {
        Some(found) if found.node_id != state.id && found.state.is_present() => {
            let node = shown(node);
            Err(not_here(&format!(
                "{node:?} is a node of this cluster and speaks for itself; send this to that node"
            )))
        }
        _ => Ok(()),
    }
}

/// The name of another node that offers an instance with this id, unless this node does.
fn holder_of(state: &AppState, id: &str) -> Option<String> {
    if state.registry.get(id).is_some() {
        return None;
    }
    state.read(|table| table.providers_with_id(id).map(|provider| provider.node.clone()).next())
}

fn not_here(reason: &str) -> Problem {
    Problem::new(StatusCode::NOT_IMPLEMENTED, reason)
}
