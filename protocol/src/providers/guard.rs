//! Table guard: keeps the last passing instances of a service listed for a while when many nodes fall silent
//! at once.
//!
//! A single node that falls silent has failed, or its host has. Where nodes of several hosts fall silent within
//! seconds, a switch or this node's own network is the likelier fault, and an empty answer would cut off
//! clients that still reach the instances. Envoy's panic threshold and Eureka's self-preservation have the
//! same purpose; this one is bounded in time and never holds back a death of which there is proof.
//!
//! - It acts when members of two hosts or more fell silent together and held all passing instances of a
//!   service. Silent means failed by weak evidence alone. Their passing instances of it are listed as
//!   `unverified`.
//! - Together means: each was reported within [`SILENCE_WINDOW`] of another. One moment's silence is
//!   reported one after the other, because the watchers of a silent member may be silent themselves, and
//!   others have to take over first.
//! - It ends when an instance of the service passes that is not of a silent member, or after [`GUARD_MAX`].
//! - An instance of a silent member ends by itself when its member leaves, begins a new life or is forgotten.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use super::{MemberState, ProviderTable, addresses::host_of};
use crate::{
    NodeId, Time,
    record::{Health, Instance},
};

/// Members whose silence is reported within this time of each other may have one cause. Five seconds, in
/// which watchers notice a silence whatever the network's delays, and ten in which others take over from
/// watchers that are silent themselves, do not reach the member for
/// [`Config::unreached`](crate::config::Config::unreached), and say so.
pub const SILENCE_WINDOW: Duration = Duration::from_secs(15);
/// For this long at most the instances of silent members stay listed. Design, section 9.5.
pub const GUARD_MAX: Duration = Duration::from_secs(60);

/// The state of the guard.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// Members that fell silent within the last [`GUARD_MAX`], and when that was reported first.
    silent: BTreeSet<(Time, NodeId)>,
    /// The services that it keeps, and until when.
    until: BTreeMap<String, Time>,
    kept_total: u64,
}

impl Guard {
    /// Records that a member fails now by weak evidence alone.
    pub(super) fn record_silence(&mut self, now: Time, id: NodeId, since: Time) {
        self.silent.retain(|(since, other)| now.since(*since) <= GUARD_MAX && *other != id);
        self.silent.insert((since, id));
    }

    /// Records that a member is present again.
    pub(super) fn record_return(&mut self, id: NodeId) {
        self.silent.retain(|(_, silent)| *silent != id);
    }

    /// Ends the keeping of a service, whose last unverified instance is gone.
    pub(super) fn end_keeping(&mut self, service: &str) {
        self.until.remove(service);
    }

    /// Whether the guard keeps instances of a service listed.
    pub(super) fn is_keeping(&self, service: &str) -> bool {
        self.until.contains_key(service)
    }
}

impl ProviderTable {
    /// When to call [`ProviderTable::expire`] next.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.guard.until.values().min().copied()
    }

    /// Ends what the guard has kept for long enough.
    pub fn expire(&mut self, now: Time) {
        let over = self.guard.until.iter().filter(|(_, until)| **until <= now);
        for service in over.map(|(service, _)| service.clone()).collect::<Vec<_>>() {
            self.end_guard(now, &service);
        }
    }

    /// How often the guard kept a service, since the start.
    pub fn guarded_total(&self) -> u64 {
        self.guard.kept_total
    }

    /// A member has just failed, and is still listed: decides which services lose their last passing
    /// instances by that and are to be kept, and lists what silent members offer of them. Returns those
    /// services.
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
                    self.list(now, *node, id.clone(), instance, false);
                }
            }
        }
        passing.into_keys().collect()
    }

    /// The members that fell silent together with this one, if they are of several hosts. Empty if it did not
    /// fall silent.
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

    /// The host of a member: the first address in its header that is not a loopback one, or else the one that
    /// it is connected over. `None` stands for one host, too: all nodes of a test on one machine are on it.
    fn host(&self, id: NodeId) -> Option<IpAddr> {
        let hosts = self.members.get(&id)?.addresses.iter().filter_map(|address| host_of(address));
        let stated = hosts.filter_map(|host| host.parse::<IpAddr>().ok());
        stated.chain(self.vantage.connected(id)).find(|ip| !ip.is_loopback() && !ip.is_unspecified())
    }

    /// Whether a present member other than this one has a passing instance of a service.
    fn passes_without(&self, service: &str, without: NodeId) -> bool {
        let providers = self.providers(service).filter(|provider| provider.node_id != without);
        providers
            .into_iter()
            .any(|provider| !provider.unverified && provider.instance.health == Health::Passing)
    }

    /// Whether an instance of a silent member that has a new value stays listed.
    pub(super) fn stays_listed(&self, node: NodeId, id: &str, new: &Instance) -> bool {
        let listed = self.listed.get(&new.service).is_some_and(|of| of.contains_key(&(node, id.to_owned())));
        listed && self.guard.is_keeping(&new.service) && new.health == Health::Passing
    }

    /// Ends the guard of a service if one of its instances passes.
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
