//! Part of [`ProviderTable`]: the table guard, which keeps the last passing instances of a service listed for
//! a while when many nodes fall silent at once.
//!
//! If one node falls silent, the node or its host has failed. If nodes of several hosts fall silent within
//! seconds, the fault is more likely a switch or this node's own network. An empty answer would then
//! disconnect clients that still reach the instances. Envoy's panic threshold and Eureka's self-preservation
//! serve the same purpose. This guard is bounded in time, and never delays a verdict that rests on strong
//! evidence.
//!
//! - The guard acts if members on two hosts or more fell silent together and had all passing instances of a
//!   service. A silent member is one that failed by weak evidence alone. Its passing instances are listed as
//!   `unverified`.
//! - Members fell silent together if the first reports on them came within [`SILENCE_WINDOW`] of each other.
//!   Reports of one fault are spread over time: the watchers of a silent member may be silent, too, and must
//!   be replaced first.
//! - The guard of a service ends when one of its instances passes on another member, or after [`GUARD_MAX`].
//! - The guard ends for a silent member that leaves, begins a new life or is forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    addresses::host_of_multiaddr,
    guard_state::{GUARD_MAX, SILENCE_WINDOW},
    member::MemberState,
    table::ProviderTable,
};
use crate::{
    NodeId, Time,
    record::{Health, Instance},
};

impl ProviderTable {
    /// When to call [`ProviderTable::expire`] next.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.guard.until.values().min().copied()
    }

    /// Removes instances that the guard has kept for [`GUARD_MAX`].
    pub fn expire(&mut self, now: Time) {
        let over = self.guard.until.iter().filter(|(_, until)| **until <= now);
        for service in over.map(|(service, _)| service.clone()).collect::<Vec<_>>() {
            self.end_guard(now, &service);
        }
    }

    /// Number of times that the guard began to keep a service listed, since the start.
    pub fn guarded_total(&self) -> u64 {
        self.guard.kept_total
    }

    /// Begins to keep the services that lose their last passing instances by this failure: lists the
    /// instances of silent members. Returns these services. Call this while the failed member is still
    /// listed.
    pub(super) fn guard_services(&mut self, now: Time, failed: NodeId) -> BTreeSet<String> {
        let silent = self.silent_together(failed);
        let mut passing: BTreeMap<String, Vec<(NodeId, String)>> = BTreeMap::new();
        for node in silent {
            for (id, instance) in self.offered_by(node) {
                if instance.health == Health::Passing {
                    passing.entry(instance.service.clone()).or_default().push((node, id));
                }
            }
        }
        passing.retain(|service, _| !self.passes_without(service, failed));
        for (service, instances) in &passing {
            if !self.guard.is_keeping(service) {
                self.guard.until.insert(service.clone(), now + GUARD_MAX);
                self.guard.kept_total += 1;
            }
            for (node, id) in instances {
                if let Some(instance) = self.offered.get(&(*node, id.clone())).cloned() {
                    self.list(now, (*node, id.clone()), instance, false);
                }
            }
        }
        passing.into_keys().collect()
    }

    /// Members that fell silent together with this one, if they are on several hosts. Empty if this member
    /// did not fall silent.
    fn silent_together(&self, failed: NodeId) -> Vec<NodeId> {
        let is_failed = |id: &NodeId| self.members.get(id).is_some_and(|m| m.state == MemberState::Failed);
        let reported: Vec<(Time, NodeId)> =
            self.guard.silent.iter().copied().filter(|(_, id)| is_failed(id)).collect();
        let mut waves = reported.chunk_by(|(a, _), (b, _)| b.since(*a) <= SILENCE_WINDOW);
        let wave = waves.find(|wave| wave.iter().any(|(_, id)| *id == failed)).unwrap_or_default();
        let silent: Vec<NodeId> = wave.iter().map(|(_, id)| *id).collect();
        let hosts: BTreeSet<Option<IpAddr>> = silent.iter().map(|id| self.host(*id)).collect();
        if hosts.len() >= 2 { silent } else { Vec::new() }
    }

    /// Host of a member: the first address in its header that is not loopback, or else the connected address.
    /// `None` counts as one host, because all nodes of a test on one machine have loopback addresses only.
    fn host(&self, id: NodeId) -> Option<IpAddr> {
        let hosts = self.members.get(&id)?.addresses.iter().filter_map(|address| host_of_multiaddr(address));
        let stated = hosts.filter_map(|host| host.parse::<IpAddr>().ok());
        stated.chain(self.address_order.connected(id)).find(|ip| !ip.is_loopback() && !ip.is_unspecified())
    }

    /// Whether a present member other than this one has a passing instance of a service.
    fn passes_without(&self, service: &str, without: NodeId) -> bool {
        let providers = self.providers(service).filter(|provider| provider.node_id != without);
        providers
            .into_iter()
            .any(|provider| !provider.unverified && provider.instance.health == Health::Passing)
    }

    /// Whether an instance of a silent member stays listed with its new value.
    pub(super) fn stays_listed(&self, node: NodeId, id: &str, new: &Instance) -> bool {
        let listed = self.listed.get(&new.service).is_some_and(|of| of.contains_key(&(node, id.to_owned())));
        listed && self.guard.is_keeping(&new.service) && new.health == Health::Passing
    }

    /// Ends the guard of a service if one of its verified instances passes.
    pub(super) fn end_guard_if_verified(&mut self, now: Time, service: &str) {
        let verified = |table: &Self| {
            let mut providers = table.providers(service);
            providers.any(|p| !p.unverified && p.instance.health == Health::Passing)
        };
        if self.guard.is_keeping(service) && verified(self) {
            self.end_guard(now, service);
        }
    }

    fn end_guard(&mut self, now: Time, service: &str) {
        self.guard.end_keeping(service);
        let unverified = self.providers(service).filter(|provider| provider.unverified);
        let unverified: Vec<_> = unverified.map(|p| (p.node_id, p.id.clone())).collect();
        for (node, id) in unverified {
            self.unlist(now, node, &id, service);
        }
    }
}

#[cfg(test)]
mod tests;
