//! Lookups in the provider table for Consul's paths: blocking, copying under the lock, filtering, sorting.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hearsay_protocol::{Health, Index, MemberState, NodeId, Provider, ProviderTable};
use hearsay_services::Problem;
use serde::Serialize;

use super::{filter::Filter, node::CatalogNode, query::Query};
use crate::http::{api::blocking_query::Wait, state::AppState};

/// Longest part of an id or name that an error repeats, in characters.
const SHOWN_CHARS_MAX: usize = 128;

/// An instance and its node.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) provider: Arc<Provider>,
    pub(super) node: Arc<CatalogNode>,
    /// The index of the instance's service.
    pub(super) index: u64,
}

/// A node and its instances.
pub(super) type NodeEntries = (Arc<CatalogNode>, Vec<Entry>);

/// Waits until the node has started. A blocking query then waits until its index exceeds the seen one.
///
/// # Errors
/// 429 when too many requests wait.
pub(super) async fn hold(
    state: &AppState,
    query: &Query,
    index_of: impl Fn(&ProviderTable) -> Index,
) -> Result<(), Problem> {
    state.started().await;
    Wait::new(query.index, query.wait).hold(state, index_of).await
}

/// Returns the index of queries that show members and instances.
pub(super) fn overall_index(table: &ProviderTable) -> Index {
    table.services_index().max(table.members_index())
}

/// Waits as [`hold`] does, and copies the instances of a service and its index. A program that is registered
/// with several nodes counts once. `name` is from a path; names of services contain no plus.
pub(super) async fn service(
    state: &AppState,
    name: &str,
    query: &Query,
) -> Result<(u64, Vec<Entry>), Problem> {
    let name = name.replace('+', " ");
    hold(state, query, |table| table.service_index(&name)).await?;
    let (index, entries, distances) = state.read(|table| {
        let entries = with_nodes(table, table.providers_distinct(&name));
        (table.service_index(&name).0, entries, distances(table))
    });
    Ok((index, choose(entries, query, &distances, state)))
}

/// Copies the instances of all services.
pub(super) fn all_services(state: &AppState, query: &Query) -> (u64, Vec<Entry>) {
    let (index, entries) = state.read(|table| {
        let all = table.services().flat_map(|service| table.providers_distinct(service));
        (table.services_index().0, with_nodes(table, all))
    });
    (index, choose(entries, &query.for_all_services(), &BTreeMap::new(), state))
}

/// Waits as [`hold`] does, and copies a node and all its instances. The duplicates that a service omits are
/// among them. Their changes move the index of the table alone, so that one counts. `name` is from a path.
pub(super) async fn of_node(
    state: &AppState,
    name: &str,
    query: &Query,
) -> Result<(u64, Option<NodeEntries>), Problem> {
    let name = name.replace('+', " ");
    hold(state, query, ProviderTable::index).await?;
    Ok(state.read(|table| {
        let index = table.index().0;
        // A member that has left is not in the catalog.
        let node = CatalogNode::find_named(table, &name).filter(|node| node.state != MemberState::Left);
        let found = node.map(|node| {
            let all = table.services().flat_map(|service| table.providers(service));
            let entries = with_nodes(table, all.filter(|provider| provider.node_id == node.node_id));
            (Arc::new(node), entries)
        });
        (index, found)
    }))
}

fn with_nodes<'a>(table: &ProviderTable, providers: impl Iterator<Item = &'a Arc<Provider>>) -> Vec<Entry> {
    let mut nodes: BTreeMap<NodeId, Option<Arc<CatalogNode>>> = BTreeMap::new();
    let entry = |provider: &Arc<Provider>| {
        let node = nodes
            .entry(provider.node_id)
            .or_insert_with(|| CatalogNode::find(table, provider.node_id).map(Arc::new));
        let index = table.service_index(&provider.instance.service).0;
        Some(Entry { provider: Arc::clone(provider), node: node.clone()?, index })
    };
    providers.filter_map(entry).collect()
}

/// The last round trip to each node.
fn distances(table: &ProviderTable) -> BTreeMap<NodeId, Duration> {
    table.members().filter_map(|member| Some((member.id, member.rtt?))).collect()
}

/// Filters and sorts by the parameters that concern instances. A node knows only its own distances, so `near`
/// another node leaves the order as it is.
fn choose(
    mut entries: Vec<Entry>,
    query: &Query,
    distances: &BTreeMap<NodeId, Duration>,
    state: &AppState,
) -> Vec<Entry> {
    entries.retain(|entry| {
        let instance = &entry.provider.instance;
        let has_tag = |tag: &String| instance.tags.iter().any(|own| own.eq_ignore_ascii_case(tag));
        query.tags.iter().all(has_tag)
            && (!query.is_passing || instance.health == Health::Passing)
            && entry.node.has_meta(&query.node_meta)
    });
    let is_own = |near: &str| near == "_agent" || near == "_self" || near == state.name;
    if query.near.as_deref().is_some_and(is_own) {
        let distance = |entry: &Entry| match entry.provider.node_id {
            id if id == state.id => Duration::ZERO,
            id => distances.get(&id).copied().unwrap_or(Duration::MAX),
        };
        // Stable: equals stay in the table's order.
        entries.sort_by_key(distance);
    }
    entries
}

/// Keeps the elements that a filter accepts; all without a filter.
pub(super) fn filtered<T: Serialize>(
    filter: Option<&Filter>,
    elements: impl IntoIterator<Item = T>,
) -> Vec<T> {
    let is_accepted = |element: &T| filter.is_none_or(|filter| accepts(filter, element));
    elements.into_iter().filter(is_accepted).collect()
}

/// Whether a filter accepts the JSON of an element.
pub(super) fn accepts(filter: &Filter, element: &impl Serialize) -> bool {
    serde_json::to_value(element).is_ok_and(|json| filter.accepts(&json))
}

/// Returns the id of a registration of this node from a path; see [`resolve`].
pub(super) fn instance_id(state: &AppState, id: String) -> String {
    resolve(id, |id| state.registry.get(id).is_some())
}

/// Returns the id of a check of this node from a path; see [`resolve`].
pub(super) fn check_id(state: &AppState, id: String) -> String {
    resolve(id, |id| state.registry.has_check(id))
}

/// Returns the start of an id or name of a request, for an error.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

/// Returns the known id that a path names. Some clients encode a space as `+`, or end a path with a slash. An
/// id with these characters themselves comes first, if it is known.
fn resolve(id: String, is_known: impl Fn(&str) -> bool) -> String {
    if !(id.contains('+') || id.ends_with('/')) || is_known(&id) {
        return id;
    }
    let unslashed = id.strip_suffix('/').unwrap_or(&id);
    let others = [unslashed.to_owned(), id.replace('+', " "), unslashed.replace('+', " ")];
    others.into_iter().find(|other| is_known(other)).unwrap_or(id)
}
