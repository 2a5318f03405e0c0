//! [`ProviderTable`]: the struct, which applies the core's changes, and lists and removes providers.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
};

use super::{
    addresses::{AddressOrder, Subnet, is_role},
    change::{Change, Index, ProviderKey, ServiceChange},
    duplicates::Duplicates,
    explanations::{Explanation, Explanations, Subject},
    guard_state::Guard,
    member::{Member, MemberState},
    names::NameIndex,
    provider::Provider,
};
use crate::{
    NodeId, Time,
    record::{Health, Instance},
};

/// Changes kept for watchers that resume. Guess: enough for seven minutes at ten changes a second.
pub(crate) const HISTORY_MAX: usize = 4096;

/// One node's picture of members, their instances and the latest changes, which users query.
#[derive(Debug)]
pub struct ProviderTable {
    pub(super) index: Index,
    pub(super) members: BTreeMap<NodeId, Member>,
    /// Instances of all remembered members in their latest incarnation, listed or not.
    pub(super) offered: BTreeMap<ProviderKey, Arc<Instance>>,
    /// Listed providers by service.
    pub(super) listed: BTreeMap<String, BTreeMap<ProviderKey, Arc<Provider>>>,
    /// Number of listed providers of all services.
    pub(super) listed_len: usize,
    /// Which of the listed providers are duplicates.
    pub(super) duplicates: Duplicates,
    /// Listed services and present members by DNS label and address.
    pub(super) names: NameIndex,
    /// Index at which each service last changed. Kept after the last provider is gone, so that a waiting
    /// query returns.
    pub(super) touched: BTreeMap<String, Index>,
    pub(super) members_touched: Index,
    pub(super) history: VecDeque<(Index, ServiceChange)>,
    /// Changes up to this index are no longer in the history.
    pub(super) forgotten: Index,
    /// Highest index that was removed from `touched`. A service without an index in `touched` last changed at
    /// this index or before.
    pub(super) pruned: Index,
    pub(super) explanations: Explanations,
    pub(super) root_hash: [u8; 16],
    /// Orders the addresses of each provider.
    pub(super) address_order: AddressOrder,
    pub(super) guard: Guard,
}

impl ProviderTable {
    /// Empty table whose index starts at `start`.
    pub fn new(start: Index) -> Self {
        Self {
            index: start,
            members: BTreeMap::new(),
            offered: BTreeMap::new(),
            listed: BTreeMap::new(),
            listed_len: 0,
            duplicates: Duplicates::default(),
            names: NameIndex::default(),
            touched: BTreeMap::new(),
            members_touched: start,
            history: VecDeque::new(),
            forgotten: start,
            pruned: start,
            explanations: Explanations::default(),
            root_hash: [0; 16],
            address_order: AddressOrder::default(),
            guard: Guard::default(),
        }
    }

    /// Applies a change.
    pub fn apply(&mut self, now: Time, change: Change) {
        match change {
            Change::Member(member) => self.apply_member(now, *member),
            Change::Forgotten(id) => {
                if let Some(member) = self.members.remove(&id) {
                    self.names.remove_member(&member);
                    self.withdraw_all(now, id);
                    self.explanations.forget(&Subject::Member(id));
                    self.address_order.forget(id);
                    self.members_touched = self.tick();
                }
            }
            Change::Instance { node, id, instance } => self.apply_instance(now, node, id, instance),
            Change::Rtt(id, rtt) => {
                if let Some(member) = self.members.get_mut(&id) {
                    member.rtt = rtt;
                }
            }
            Change::Silent { node, since } => self.guard.record_silence(now, node, since),
            Change::RootHash(hash) => self.root_hash = hash,
            Change::Explained(id, explanation) => self.explain(now, Subject::Member(id), id, explanation),
        }
    }

    pub(super) fn apply_member(&mut self, now: Time, mut member: Member) {
        let id = member.id;
        if self.members.get(&id).is_some_and(|before| before.incarnation != member.incarnation) {
            self.withdraw_all(now, id);
        }
        let before = self.members.get(&id);
        member.rtt = member.rtt.or(before.and_then(|m| m.rtt));
        let was_listed = before.is_some_and(|m| m.state.is_present());
        let listed_otherwise = before.is_some_and(|m| {
            (&m.name, &m.zone, &m.addresses, &m.http, &m.roles)
                != (&member.name, &member.zone, &member.addresses, &member.http, &member.roles)
        });
        let (state, present) = (member.state, member.state.is_present());
        before.into_iter().for_each(|before| self.names.remove_member(before));
        self.names.add_member(&member);
        self.members.insert(id, member);
        self.members_touched = self.tick();
        if !present && (was_listed || state == MemberState::Left) {
            let kept = self.guard_services(now, id);
            for (instance_id, instance) in self.offered_by(id) {
                if !kept.contains(&instance.service) || instance.health != Health::Passing {
                    self.unlist(now, id, &instance_id, &instance.service);
                }
            }
        } else if present && (!was_listed || listed_otherwise) {
            self.guard.record_return(id);
            let offered = self.offered_by(id);
            for (instance_id, instance) in &offered {
                self.list(now, (id, instance_id.clone()), Arc::clone(instance), false);
            }
            // The guard ends after all instances are listed. Otherwise the instances that it kept would be
            // removed and added again.
            offered.iter().for_each(|(_, instance)| self.end_guard_if_verified(now, &instance.service));
        }
    }

    pub(super) fn apply_instance(
        &mut self,
        now: Time,
        node: NodeId,
        id: String,
        instance: Option<Arc<Instance>>,
    ) {
        let before = match &instance {
            Some(new) => self.offered.insert((node, id.clone()), Arc::clone(new)),
            None => self.offered.remove(&(node, id.clone())),
        };
        // An instance that moved to another service is removed from the old service first.
        if let Some(before) = &before
            && instance.as_ref().is_none_or(|new| new.service != before.service)
        {
            self.unlist(now, node, &id, &before.service);
        }
        let Some(new) = instance else { return };
        let service = new.service.clone();
        let present = self.members.get(&node).is_some_and(|member| member.state.is_present());
        if present || self.stays_listed(node, &id, &new) {
            let explained = before.is_some_and(|before| self.explain_checks(now, (node, &id), &before, &new));
            self.list(now, (node, id), new, explained);
            self.end_guard_if_verified(now, &service);
        } else {
            self.unlist(now, node, &id, &service);
        }
    }

    /// Adds a line for each check whose status changed. Returns whether any status changed.
    pub(super) fn explain_checks(
        &mut self,
        now: Time,
        (node, id): (NodeId, &str),
        before: &Instance,
        after: &Instance,
    ) -> bool {
        let mut changed = false;
        for check in &after.checks {
            let known = before.checks.iter().find(|known| known.id == check.id);
            // A new check gets a line only if it does not pass, as when an operator drains the instance.
            if known.map_or(Health::Passing, |known| known.status) == check.status {
                continue;
            }
            changed = true;
            let line = Explanation::CheckChanged {
                service: after.service.clone(),
                instance: id.to_owned(),
                check: check.id.clone(),
                status: check.status,
                output: check.output.clone(),
                took_ms: check.took_ms,
            };
            self.explanations.add_to_instance(id, (now, node, line.clone()));
            self.explain(now, Subject::Service(after.service.clone()), node, line);
        }
        changed
    }

    /// Lists a member's instance, or updates it. `explained`: lines for `/why` were already added.
    pub(super) fn list(
        &mut self,
        now: Time,
        (node, id): ProviderKey,
        instance: Arc<Instance>,
        explained: bool,
    ) {
        let Some(member) = self.members.get(&node) else { return };
        let service = instance.service.clone();
        let provider = Arc::new(Provider {
            role: is_role(&instance, member),
            unverified: !member.state.is_present(),
            id: id.clone(),
            node_id: node,
            node: member.name.clone(),
            zone: member.zone.clone(),
            addresses: self.address_order.order(&instance, member),
            instance,
        });
        let before =
            self.listed.entry(service.clone()).or_default().insert((node, id.clone()), Arc::clone(&provider));
        self.listed_len += usize::from(before.is_none());
        if before.is_none() {
            self.names.add_service(&service);
        }
        let line = match &before {
            Some(before) if *before == provider => return,
            _ if provider.unverified => Explanation::Kept(service.clone(), id),
            Some(_) => Explanation::Changed(service.clone(), id),
            None => Explanation::Added(service.clone(), id),
        };
        self.record(&service, before.as_ref(), Some(&provider));
        if !explained {
            self.explain(now, Subject::Service(service), node, line);
        }
    }

    pub(super) fn unlist(&mut self, now: Time, node: NodeId, id: &str, service: &str) {
        let Some(providers) = self.listed.get_mut(service) else { return };
        let Some(provider) = providers.remove(&(node, id.to_owned())) else { return };
        self.listed_len -= 1;
        if self.guard.is_keeping(service) && !providers.values().any(|provider| provider.unverified) {
            self.guard.end_keeping(service);
        }
        if providers.is_empty() {
            self.listed.remove(service);
            self.names.remove_service(service);
        }
        self.record(service, Some(&provider), None);
        let line = Explanation::Removed(service.to_owned(), id.to_owned());
        self.explain(now, Subject::Service(service.to_owned()), node, line);
    }

    /// Address over which a node is connected, or was last connected.
    pub fn connected(&self, node: NodeId) -> Option<IpAddr> {
        self.address_order.connected(node)
    }

    /// Records the address of a connection to a node.
    pub fn set_connected(&mut self, node: NodeId, ip: IpAddr) {
        if self.address_order.connect(node, ip, |known| self.members.contains_key(known)) {
            self.reorder(Some(node));
        }
    }

    /// Replaces the subnets of this host.
    pub fn set_subnets(&mut self, subnets: Vec<Subnet>) {
        if self.address_order.set_subnets(subnets) {
            self.reorder(None);
        }
    }

    /// Orders the addresses of listed providers again, of one node or of all nodes. Watchers see a new order
    /// as a change. `/why` gets no line, because the instance did not change.
    pub(super) fn reorder(&mut self, only: Option<NodeId>) {
        let mut changed = Vec::new();
        for provider in self.listed.values_mut().flat_map(BTreeMap::values_mut) {
            let Some(member) = self.members.get(&provider.node_id) else { continue };
            if only.is_some_and(|only| only != provider.node_id) {
                continue;
            }
            let addresses = self.address_order.order(&provider.instance, member);
            if addresses != provider.addresses {
                let reordered = Arc::new(Provider { addresses, ..(**provider).clone() });
                changed.push((std::mem::replace(provider, Arc::clone(&reordered)), reordered));
            }
        }
        for (before, after) in changed {
            self.record(&after.instance.service, Some(&before), Some(&after));
        }
    }

    /// Instances that a node offers, by id.
    pub(super) fn offered_by(&self, node: NodeId) -> Vec<(String, Arc<Instance>)> {
        let offered = self.offered.range((node, String::new())..).take_while(|((of, _), _)| *of == node);
        offered.map(|((_, id), instance)| (id.clone(), Arc::clone(instance))).collect()
    }

    pub(super) fn withdraw_all(&mut self, now: Time, node: NodeId) {
        for (id, instance) in self.offered_by(node) {
            self.unlist(now, node, &id, &instance.service);
            self.offered.remove(&(node, id));
        }
    }

    pub(super) fn tick(&mut self) -> Index {
        self.index.0 += 1;
        self.index
    }

    /// Records the change of a registration. If lookups do not show the registration, only the table's index
    /// moves.
    pub(super) fn record(
        &mut self,
        service: &str,
        before: Option<&Arc<Provider>>,
        after: Option<&Arc<Provider>>,
    ) {
        let changes = self.duplicates.replace(before, after);
        if changes.is_empty() {
            self.tick();
        }
        changes.into_iter().for_each(|change| self.record_change(service, change));
    }

    pub(super) fn record_change(&mut self, service: &str, change: ServiceChange) {
        let index = self.tick();
        self.touched.insert(service.to_owned(), index);
        self.history.push_back((index, change));
        if self.history.len() > HISTORY_MAX
            && let Some((index, change)) = self.history.pop_front()
        {
            self.forgotten = index;
            // A service that is gone, and whose removal left the history, needs no separate index.
            let service = &change.provider().instance.service;
            if self.touched.get(service) == Some(&index) && !self.listed.contains_key(service) {
                self.touched.remove(service);
                self.pruned = index;
            }
        }
    }

    pub(super) fn explain(&mut self, now: Time, subject: Subject, about: NodeId, explanation: Explanation) {
        self.explanations.add(subject, (now, about, explanation));
    }
}
