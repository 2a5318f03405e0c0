//! [`Duplicates`]: finds duplicates, which are further registrations of a program that is registered with
//! several nodes. Lookups and watchers see one registration of the program.
//!
//! Instances of one service with the same address and port are one program, unless the address is loopback or
//! the instance is a role. The healthiest registration counts; among equally healthy ones, that of the node
//! with the lowest id. If this node registers the program under several ids, all of these registrations
//! count. Registrations with other nodes are duplicates: the table keeps them, and lookups omit them.
//!
//! When another node's registration begins to count, watchers see a change of the program. They see a removal
//! only when no registration is left.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    change::{ProviderKey, ServiceChange},
    provider::Provider,
};
use crate::NodeId;

/// Registrations of one program, in the order of [`Provider::preference`] and id. The first one counts.
type Registrations = Vec<Arc<Provider>>;
/// Host and port.
type Endpoint = (String, u16);
/// Service and endpoint.
type Place = (String, Endpoint);

/// All registrations by endpoint, and the set of duplicates.
#[derive(Debug, Default)]
pub(super) struct Duplicates {
    places: BTreeMap<String, BTreeMap<Endpoint, Registrations>>,
    duplicates: BTreeSet<ProviderKey>,
}

impl Duplicates {
    /// Whether lookups omit this registration.
    pub(super) fn is_duplicate(&self, key: &ProviderKey) -> bool {
        self.duplicates.contains(key)
    }

    /// Replaces one registration of a service. `before` is `None` if the registration is new, `after` is
    /// `None` if it is gone. Returns the changes for watchers, which are none for a duplicate.
    pub(super) fn replace(
        &mut self,
        before: Option<&Arc<Provider>>,
        after: Option<&Arc<Provider>>,
    ) -> Vec<ServiceChange> {
        if let (Some(from), Some(to)) = (before, after)
            && place_of(from) != place_of(to)
        {
            // The endpoint changed, or the instance became a role: it is removed from the old place and added
            // at the new one.
            let mut changes = self.replace(before, None);
            changes.extend(self.replace(None, after));
            return join_move(changes);
        }
        match before.or(after).and_then(place_of) {
            Some(place) => self.replace_at(place, before, after),
            None => own_change(before, after).into_iter().collect(),
        }
    }

    /// Replaces a registration whose endpoint is unchanged.
    fn replace_at(
        &mut self,
        (service, endpoint): Place,
        before: Option<&Arc<Provider>>,
        after: Option<&Arc<Provider>>,
    ) -> Vec<ServiceChange> {
        let endpoints = self.places.entry(service.clone()).or_default();
        // Most endpoints have one registration.
        let registrations = endpoints.entry(endpoint.clone()).or_insert_with(|| Vec::with_capacity(1));
        let lead_before = registrations.first().map(|first| first.node_id);
        if let Some(before) = before
            && let Ok(at) = registrations.binary_search_by(|known| order(known).cmp(&order(before)))
        {
            registrations.remove(at);
        }
        if let Some(after) = after {
            let at = registrations.partition_point(|known| order(known) < order(after));
            registrations.insert(at, Arc::clone(after));
        }
        let lead = registrations.first().map(|first| first.node_id);
        if let Some(gone) = before.filter(|_| after.is_none()) {
            self.duplicates.remove(&key_of(gone));
        }
        match (lead_before, lead) {
            (Some(old), Some(new)) if old != new => {
                let came = of_node(registrations, new);
                let mut went = of_node(registrations, old);
                went.iter().for_each(|provider| _ = self.duplicates.insert(key_of(provider)));
                came.iter().for_each(|provider| _ = self.duplicates.remove(&key_of(provider)));
                if let Some(before) = before.filter(|before| before.node_id == old) {
                    // Watchers received the version before this change.
                    went.retain(|provider| provider.id != before.id);
                    went.push(Arc::clone(before));
                }
                changed_lead(went, came)
            }
            (_, Some(lead)) => match before.or(after) {
                Some(provider) if provider.node_id == lead => own_change(before, after).into_iter().collect(),
                _ => {
                    self.duplicates.extend(after.map(key_of));
                    Vec::new()
                }
            },
            (_, None) => {
                endpoints.remove(&endpoint);
                if endpoints.is_empty() {
                    self.places.remove(&service);
                }
                own_change(before, after).into_iter().collect()
            }
        }
    }
}

fn key_of(provider: &Arc<Provider>) -> ProviderKey {
    (provider.node_id, provider.id.clone())
}

fn place_of(provider: &Arc<Provider>) -> Option<Place> {
    let (host, port) = provider.endpoint()?;
    Some((provider.instance.service.clone(), (host.to_owned(), port)))
}

fn order(provider: &Provider) -> (impl Ord, &str) {
    (provider.preference(), provider.id.as_str())
}

fn of_node(registrations: &Registrations, node: NodeId) -> Vec<Arc<Provider>> {
    registrations.iter().filter(|provider| provider.node_id == node).cloned().collect()
}

/// Change of a registration that counted before and still counts.
fn own_change(before: Option<&Arc<Provider>>, after: Option<&Arc<Provider>>) -> Option<ServiceChange> {
    match (before, after) {
        (None, Some(after)) => Some(ServiceChange::Added(Arc::clone(after))),
        (Some(_), Some(after)) => Some(ServiceChange::Changed(Arc::clone(after))),
        (Some(before), None) => Some(ServiceChange::Removed(Arc::clone(before))),
        (None, None) => None,
    }
}

/// Changes for watchers when another node's registrations begin to count. Each new registration replaces an
/// old one, of the same id if there is one.
fn changed_lead(went: Vec<Arc<Provider>>, came: Vec<Arc<Provider>>) -> Vec<ServiceChange> {
    let mut went: BTreeMap<String, Arc<Provider>> =
        went.into_iter().map(|before| (before.id.clone(), before)).collect();
    let (mut changes, mut others) = (Vec::new(), Vec::new());
    for after in came {
        match went.remove(&after.id) {
            Some(before) => changes.push(ServiceChange::Replaced { before, after }),
            None => others.push(after),
        }
    }
    let mut went = went.into_values();
    changes.extend(others.into_iter().map(|after| match went.next() {
        Some(before) => ServiceChange::Replaced { before, after },
        None => ServiceChange::Added(after),
    }));
    changes.extend(went.map(ServiceChange::Removed));
    changes
}

/// Joins the removal and the addition of a moved registration into one change.
fn join_move(mut changes: Vec<ServiceChange>) -> Vec<ServiceChange> {
    let removed = changes.iter().position(|change| matches!(change, ServiceChange::Removed(_)));
    let added = changes.iter().position(|change| matches!(change, ServiceChange::Added(_)));
    if let (Some(removed), Some(added)) = (removed, added) {
        let after = Arc::clone(changes[added].provider());
        if key_of(changes[removed].provider()) == key_of(&after) {
            changes[added] = ServiceChange::Changed(after);
            changes.remove(removed);
        }
    }
    changes
}
