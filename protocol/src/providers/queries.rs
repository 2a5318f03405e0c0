//! Part of [`ProviderTable`]: queries of indexes, members, services, changes and explanations.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    change::{Index, ProviderKey, ServiceChange},
    explanations::{Explanation, Subject},
    member::Member,
    provider::Provider,
    table::ProviderTable,
};
use crate::{NodeId, Time, record::Instance};

impl ProviderTable {
    /// Newest index.
    pub fn index(&self) -> Index {
        self.index
    }

    /// Index at which the providers of a service last changed. For an unknown service, this is the last
    /// pruned index, so that a blocking query on the service waits.
    pub fn service_index(&self, service: &str) -> Index {
        self.touched.get(service).copied().unwrap_or(self.pruned)
    }

    /// Index at which any service last changed.
    pub fn services_index(&self) -> Index {
        self.history.back().map_or(self.forgotten, |(index, _)| *index)
    }

    /// Index at which any member last changed.
    pub fn members_index(&self) -> Index {
        self.members_touched
    }

    /// Root hash of the replicated state. Two nodes with the same entries and verdicts have the same hash.
    pub fn root_hash(&self) -> [u8; 16] {
        self.root_hash
    }

    /// All remembered members, this node included.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// All remembered members, each with the HTTP and gRPC addresses that this node's host should try first.
    /// A change of these addresses alone does not move the index.
    pub fn members_from_here(&self) -> impl Iterator<Item = Member> {
        self.members.values().map(|member| self.address_order.seen_from_here(member))
    }

    /// The member with this id, with the addresses that this node's host should try first.
    pub fn member_from_here(&self, id: NodeId) -> Option<Member> {
        Some(self.address_order.seen_from_here(self.members.get(&id)?))
    }

    /// The member with this id.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// The member with this name. If several have the name: the present one, or else the one whose state
    /// changed last.
    pub fn member_named(&self, name: &str) -> Option<&Member> {
        self.members
            .values()
            .filter(|m| m.name == name)
            .min_by_key(|m| (!m.state.is_present(), std::cmp::Reverse(m.since)))
    }

    /// Names of all services with a provider.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.listed.keys().map(String::as_str)
    }

    /// Providers of a service, ordered by node and id. Empty for an unknown service.
    pub fn providers(&self, service: &str) -> impl Iterator<Item = &Arc<Provider>> {
        self.listed.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// Providers with this id, of all services and nodes. Scans all providers.
    pub fn providers_with_id(&self, id: &str) -> impl Iterator<Item = &Arc<Provider>> {
        self.listed.values().flat_map(BTreeMap::values).filter(move |provider| provider.id == id)
    }

    /// Providers of a service without duplicates: a program that is registered with several nodes counts
    /// once. [`Self::changes_after`] yields the changes of these providers.
    pub fn providers_distinct(&self, service: &str) -> impl Iterator<Item = &Arc<Provider>> {
        let all = self.listed.get(service).into_iter().flatten();
        all.filter(|(key, _)| !self.duplicates.is_duplicate(key)).map(|(_, provider)| provider)
    }

    /// The same providers, beginning with those of the nodes from `start` on.
    pub fn providers_distinct_from(
        &self,
        service: &str,
        start: NodeId,
    ) -> impl Iterator<Item = &Arc<Provider>> {
        let split: ProviderKey = (start, String::new());
        let all = self.listed.get(service).into_iter();
        let all = all.flat_map(move |all| all.range(split.clone()..).chain(all.range(..split.clone())));
        all.filter(|(key, _)| !self.duplicates.is_duplicate(key)).map(|(_, provider)| provider)
    }

    /// The instance that a node offers under this id, listed or not.
    pub fn instance(&self, node: NodeId, id: &str) -> Option<&Arc<Instance>> {
        self.offered.get(&(node, id.to_owned()))
    }

    /// The service that a DNS label in lower case stands for: the one of that name, else the first one in
    /// byte order whose [label](super::dns_label) it is.
    pub fn service_labelled(&self, label: &str) -> Option<&str> {
        self.names.service(label)
    }

    /// The labels of all services, each with the service that it stands for, in the order of the labels.
    pub fn service_labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.names.services()
    }

    /// The present member that a DNS label in lower case stands for: the one of that name, else that of the
    /// first name in byte order. Of several with one name, that of the lowest id.
    pub fn member_labelled(&self, label: &str) -> Option<&Member> {
        self.members.get(&self.names.member(label)?)
    }

    /// The present member that has an IP address. Of several, that of the lowest id.
    pub fn member_at(&self, ip: IpAddr) -> Option<&Member> {
        self.members.get(&self.names.member_at(ip)?)
    }

    /// Name clashes: the number of labels that several services need, and of those that several names of
    /// present members need.
    pub fn name_clashes(&self) -> [usize; 2] {
        self.names.clashes()
    }

    /// Number of listed providers of all services.
    pub fn providers_len(&self) -> usize {
        self.listed_len
    }

    /// Changes after `index`, oldest first. `None` if some of them were dropped, or if `index` is not of this
    /// table. The caller then starts from a snapshot.
    pub fn changes_after(&self, index: Index) -> Option<impl Iterator<Item = &(Index, ServiceChange)>> {
        if index < self.forgotten || index > self.index {
            return None;
        }
        let start = self.history.partition_point(|(at, _)| *at <= index);
        Some(self.history.range(start..))
    }

    /// Events of a member, oldest first.
    pub fn why_member(&self, id: NodeId) -> impl Iterator<Item = &(Time, NodeId, Explanation)> {
        self.explanations.of(&Subject::Member(id))
    }

    /// Events of a service, oldest first. They remain after the last provider is gone.
    pub fn why_service(&self, service: &str) -> impl Iterator<Item = &(Time, NodeId, Explanation)> {
        self.explanations.of(&Subject::Service(service.to_owned()))
    }

    /// Status changes of the checks of instances with this id, oldest first. Instances of several nodes may
    /// have the id; each line names the node.
    pub fn why_instance(&self, id: &str) -> impl Iterator<Item = &(Time, NodeId, Explanation)> {
        self.explanations.of_instance(id)
    }

    /// Last [`TIMELINE_MAX`](super::explanations::TIMELINE_MAX) events of all members and services, oldest
    /// first.
    pub fn timeline(&self) -> impl DoubleEndedIterator<Item = &(Time, NodeId, Explanation)> {
        self.explanations.timeline()
    }
}
