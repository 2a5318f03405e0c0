//! [`Catalog`]: the services and endpoints of the provider table, with the versions at which they changed.
//!
//! A stream keeps the version up to which it has sent changes, and reads what changed since. So a stream that
//! lags takes no memory, and gets only the newest state.
//!
//! A service whose last instance is gone stays for [`LINGER`], as one without endpoints. Clients that lose a
//! cluster or a listener drop its connections and forget its routes; a service that is only restarting would
//! come back as a new one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use hearsay_protocol::{Index, NodeId, ProviderTable};
use tokio::time::Instant;

use super::{
    endpoint::{Endpoint, Endpoints, Traits},
    kind::Kind,
};

/// Time for which a service stays without instances.
pub(super) const LINGER: Duration = Duration::from_secs(600);
/// Services without instances that stay. A host that registers and deregisters under ever new names makes
/// them.
pub(super) const LINGERING_MAX: usize = 4096;
/// Removals that are kept for streams that lag. A stream lags for 30 s at most.
const REMOVALS_MAX: usize = 32_768;
/// Services that one reading of the table removes, at most, so that streams can follow.
const REMOVALS_AT_ONCE: usize = 512;

/// A service and the versions at which it changed.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) traits: Traits,
    left_out: usize,
    /// Version of the cluster, the listener and the routes.
    service_at: u64,
    /// Version of the endpoints.
    endpoints_at: u64,
    /// Since when the service has no instance.
    empty_since: Option<Instant>,
}

/// The services of the table, as of its last reading.
#[derive(Debug)]
pub(super) struct Catalog {
    me: NodeId,
    services: BTreeMap<Arc<str>, Service>,
    service_changes: BTreeMap<u64, Arc<str>>,
    endpoint_changes: BTreeMap<u64, Arc<str>>,
    removals: VecDeque<u64>,
    /// Version of the newest change. It begins with the table's index, so that it grows over restarts.
    version: u64,
    /// Removals up to this version are no longer known.
    forgotten: u64,
    /// Index of the table up to which its changes were read; `None` before the first reading.
    position: Option<Index>,
    zones: Zones,
    /// Services without instances that were removed before their time, since this was read last.
    removed_early: u64,
}

/// Measured distances of zones.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Zones {
    /// Zone of this node; empty: none.
    own: String,
    /// Ranks of the other zones, from 1, by the shortest round trip to a member of the zone, to powers of two
    /// of a millisecond. So noise of the measurement rarely changes a rank, and zones of one network are
    /// equally near.
    distances: BTreeMap<String, u32>,
}

impl Zones {
    fn read(table: &ProviderTable, me: NodeId) -> Self {
        let own = table.member(me).and_then(|member| member.zone.clone()).unwrap_or_default();
        let mut distances = BTreeMap::new();
        for member in table.members().filter(|member| member.state.is_present()) {
            let Some(rtt) = member.rtt else { continue };
            let distance =
                u64::try_from(rtt.as_millis()).unwrap_or(u64::MAX).checked_ilog2().map_or(0, |log| log + 1);
            let known = distances.entry(member.zone.clone().unwrap_or_default()).or_insert(distance);
            *known = distance.min(*known);
        }
        distances.remove(&own);
        let ranks: BTreeSet<u32> = distances.values().copied().collect();
        for distance in distances.values_mut() {
            *distance = u32::try_from(ranks.range(..=*distance).count()).unwrap_or(u32::MAX);
        }
        Self { own, distances }
    }

    /// Returns the zone that is nearest: the client's, or this node's if the client states none.
    pub(super) fn nearest<'a>(&'a self, of_client: &'a str) -> &'a str {
        if of_client.is_empty() { &self.own } else { of_client }
    }

    /// Returns the distance of a zone; the largest value for one that was not measured.
    pub(super) fn distance(&self, zone: &str) -> u32 {
        match self.distances.get(zone) {
            _ if zone == self.own => 0,
            Some(distance) => *distance,
            None => u32::MAX,
        }
    }
}

impl Catalog {
    /// Returns an empty catalog of a node.
    pub(super) fn new(me: NodeId) -> Self {
        Self {
            me,
            services: BTreeMap::new(),
            service_changes: BTreeMap::new(),
            endpoint_changes: BTreeMap::new(),
            removals: VecDeque::new(),
            version: 0,
            forgotten: 0,
            position: None,
            zones: Zones::default(),
            removed_early: 0,
        }
    }

    /// Reads the changes of the table, and removes services that have been empty for long. Returns whether
    /// anything changed.
    pub(super) fn update(&mut self, table: &ProviderTable, now: Instant) -> bool {
        let before = self.version;
        let touched: BTreeSet<Arc<str>> = match self.position.and_then(|at| table.changes_after(at)) {
            Some(changes) => {
                changes.map(|(_, change)| change.provider().instance.service.as_str().into()).collect()
            }
            None => table.services().map(Arc::from).chain(self.services.keys().cloned()).collect(),
        };
        if self.position.is_none() {
            self.version = table.index().0;
        }
        self.position = Some(table.index());
        let zones = Zones::read(table, self.me);
        let has_moved = std::mem::replace(&mut self.zones, zones) != self.zones;
        for name in touched {
            let exists = table.providers(&name).next().is_some();
            let read = Endpoints::of(table, self.me, table.providers_distinct(&name));
            self.set(name, read, (!exists).then_some(now));
        }
        if has_moved {
            self.regroup();
        }
        for name in self.over(now) {
            let since = self.services.get(&name).and_then(|service| service.empty_since);
            self.removed_early += u64::from(since.is_some_and(|since| now.duration_since(since) < LINGER));
            self.remove(&name);
        }
        self.version != before
    }

    fn set(&mut self, name: Arc<str>, read: Endpoints, empty_since: Option<Instant>) {
        let Some(known) = self.services.get_mut(&name) else {
            if empty_since.is_none() {
                let version = self.next_version();
                let Endpoints { all: endpoints, traits, left_out } = read;
                let service = Service {
                    endpoints,
                    traits,
                    left_out,
                    service_at: version,
                    endpoints_at: version,
                    empty_since,
                };
                self.service_changes.insert(version, Arc::clone(&name));
                self.endpoint_changes.insert(version, Arc::clone(&name));
                self.services.insert(name, service);
            }
            return;
        };
        known.left_out = read.left_out;
        known.empty_since = empty_since.map(|since| known.empty_since.unwrap_or(since));
        // A service without instances keeps its traits for the instances that come back.
        let is_other = empty_since.is_none() && known.traits != read.traits;
        if !is_other && known.endpoints == read.all {
            return;
        }
        self.version += 1;
        // Envoy waits for the endpoints of a cluster again when the cluster has changed.
        self.endpoint_changes.remove(&known.endpoints_at);
        known.endpoints_at = self.version;
        self.endpoint_changes.insert(self.version, Arc::clone(&name));
        known.endpoints = read.all;
        if is_other {
            known.traits = read.traits;
            self.service_changes.remove(&known.service_at);
            known.service_at = self.version;
            self.service_changes.insert(self.version, name);
        }
    }

    /// Changes the version of services in several zones, whose order may be another one.
    fn regroup(&mut self) {
        let in_several = |service: &Service| {
            let mut zones = service.endpoints.iter().map(|endpoint| &endpoint.zone);
            zones.next().is_some_and(|first| zones.any(|zone| zone != first))
        };
        for (name, service) in self.services.iter_mut().filter(|(_, service)| in_several(service)) {
            self.version += 1;
            self.endpoint_changes.remove(&service.endpoints_at);
            service.endpoints_at = self.version;
            self.endpoint_changes.insert(self.version, Arc::clone(name));
        }
    }

    /// Returns services without instances that are to be removed: after [`LINGER`], or earlier where there
    /// are more than [`LINGERING_MAX`]; the oldest first.
    fn over(&self, now: Instant) -> Vec<Arc<str>> {
        let empty = self.services.iter().filter_map(|(name, service)| Some((service.empty_since?, name)));
        let mut empty: Vec<_> = empty.collect();
        empty.sort();
        let surplus = empty.len().saturating_sub(LINGERING_MAX);
        let is_over =
            |(at, (since, _)): &(usize, (Instant, _))| *at < surplus || now.duration_since(*since) >= LINGER;
        let over = empty.into_iter().enumerate().take_while(is_over);
        over.take(REMOVALS_AT_ONCE).map(|(_, (_, name))| Arc::clone(name)).collect()
    }

    fn remove(&mut self, name: &Arc<str>) {
        let Some(service) = self.services.remove(name) else { return };
        self.service_changes.remove(&service.service_at);
        self.endpoint_changes.remove(&service.endpoints_at);
        let version = self.next_version();
        self.service_changes.insert(version, Arc::clone(name));
        self.endpoint_changes.insert(version, Arc::clone(name));
        self.removals.push_back(version);
        if self.removals.len() > REMOVALS_MAX
            && let Some(oldest) = self.removals.pop_front()
        {
            self.service_changes.remove(&oldest);
            self.endpoint_changes.remove(&oldest);
            self.forgotten = oldest;
        }
    }

    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Returns the id of the node.
    pub(super) fn me(&self) -> NodeId {
        self.me
    }

    /// Returns when the next service is to be removed.
    pub(super) fn next_removal(&self) -> Option<Instant> {
        self.services.values().filter_map(|service| service.empty_since).min().map(|since| since + LINGER)
    }

    /// Returns the index of the table up to which its changes were read; `None` before the first reading.
    pub(super) fn position(&self) -> Option<Index> {
        self.position
    }

    /// Returns the version of the newest change.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Whether all changes after a version are known.
    pub(super) fn reaches_back_to(&self, version: u64) -> bool {
        version >= self.forgotten
    }

    /// Returns the names of the services whose resources of a kind changed after a version.
    pub(super) fn changed_after(&self, kind: Kind, version: u64) -> impl Iterator<Item = &Arc<str>> {
        let changes = if kind == Kind::Endpoints { &self.endpoint_changes } else { &self.service_changes };
        changes.range(version.saturating_add(1)..).map(|(_, name)| name)
    }

    /// Returns the names of all services.
    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.services.keys()
    }

    /// Returns a name as the catalog keeps it, so that streams need not keep copies.
    pub(super) fn intern(&self, name: &str) -> Arc<str> {
        self.services.get_key_value(name).map_or_else(|| name.into(), |(known, _)| Arc::clone(known))
    }

    /// Returns a service.
    pub(super) fn service(&self, name: &str) -> Option<&Service> {
        self.services.get(name)
    }

    /// Returns the distances of zones.
    pub(super) fn zones(&self) -> &Zones {
        &self.zones
    }

    /// Returns how many services were removed before their time since the last call.
    pub(super) fn take_removed_early(&mut self) -> u64 {
        std::mem::take(&mut self.removed_early)
    }

    /// Returns the number of instances that cannot be endpoints.
    pub(super) fn left_out(&self) -> usize {
        self.services.values().map(|service| service.left_out).sum()
    }
}
