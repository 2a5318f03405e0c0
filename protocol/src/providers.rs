//! The provider table: a node's local picture of who is there and which instances they offer. It is what users query.
//!
//! The core decides, this only shows: it is fed the core's [`Change`]s and never asks back, so that the node can keep it behind
//! a lock that readers take for microseconds while the core goes on. Instances are shared (`Arc`), so a reader clones pointers
//! under the lock and formats outside it.
//!
//! - An instance is listed while its node is `alive` or `suspect`: a suspicion is not yet a death. Where
//!   many fall silent at once, the table guard keeps the last passing instances of a service for a while.
//! - The index grows by one with every change that a query could see, is local to the node, and never falls at a restart because it
//!   starts at the incarnation in microseconds (well below 2^53, which JSON can carry exactly).
//! - The last [`HISTORY_MAX`] changes are kept, so that a watcher that was away for a moment resumes where it was; who was away for
//!   longer gets a snapshot. The same holds for the explanations behind `/why`.

mod addresses;
mod distinct;
mod explanations;
mod guard;
mod provider;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use crate::{
    Incarnation, NodeId, Time, Version,
    record::{Health, Instance},
};
pub use addresses::{ADDRESSES_META, AddressLimit, Subnet, host_of};
use addresses::{Vantage, is_role};
use distinct::Distinct;
pub use explanations::Explanation;
use explanations::{Explanations, Subject};
use guard::Guard;
pub use guard::{GUARD_MAX, SILENCE_WINDOW};
pub use provider::Provider;

/// Changes kept for watchers that resume. Guess: at ten changes a second, seven minutes.
pub const HISTORY_MAX: usize = 4096;
/// Explanations kept for each member or service.
pub const EXPLANATIONS_MAX: usize = 64;
/// Subjects for which explanations are kept; the one that changed longest ago goes first.
pub const EXPLAINED_SUBJECTS_MAX: usize = 16 * 1024;
/// Instances for which explanations are kept, counted apart: where checks flap, those of members and services
/// stay. The one that changed longest ago goes first.
pub const EXPLAINED_INSTANCES_MAX: usize = 4096;
/// Explanations kept of all members and services together, in the order in which they happened. Guess: what a person scrolls through.
pub const TIMELINE_MAX: usize = 200;

/// Counts the changes of one node's table. Grows, also over restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Index(pub u64);

/// What the table concludes of a member.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum MemberState {
    /// It is there.
    Alive,
    /// Somebody could not reach it; not yet believed.
    Suspect,
    /// Believed dead.
    Failed,
    /// It said goodbye.
    Left,
}

impl MemberState {
    /// The word that `/members` uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Failed => "failed",
            Self::Left => "left",
        }
    }

    /// Whether its instances are offered.
    pub fn is_present(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a node knows of another node, or of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its key.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// What the table concludes.
    pub state: MemberState,
    /// The plug-ins it runs.
    pub roles: Vec<String>,
    /// Its swarm addresses (multiaddrs).
    pub addresses: Vec<String>,
    /// Its HTTP address, `host:port`.
    pub http: Option<String>,
    /// Where it stands.
    pub zone: Option<String>,
    /// Its software version.
    pub software: String,
    /// Its protocol version.
    pub protocol: u16,
    /// Whether what it stores goes with its process.
    pub ephemeral: bool,
    /// Its current life.
    pub incarnation: Incarnation,
    /// The version of its header: what evidence against it refers to.
    pub version: Version,
    /// Since when it is in this state, by the local clock.
    pub since: Time,
    /// The last round trip to it; `None` without a connection.
    pub rtt: Option<Duration>,
}

/// What the core says to the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A member came, or something about it is new.
    Member(Box<Member>),
    /// A member is remembered no longer.
    Forgotten(NodeId),
    /// An instance came or changed; `None`: it went. A new incarnation takes back everything the last one offered first.
    Instance {
        /// The node that offers it.
        node: NodeId,
        /// Its id.
        id: String,
        /// Its new value.
        instance: Option<Arc<Instance>>,
    },
    /// A round trip was measured. No query waits for this, so it moves no index.
    Rtt(NodeId, Option<Duration>),
    /// The root hash of everything that anti-entropy compares. Moves no index either.
    RootHash([u8; 16]),
    /// A member is about to fail by weak evidence alone: it does not answer, and nothing proves that it is
    /// gone. Its [`Change::Member`] follows.
    Silent {
        /// The member.
        node: NodeId,
        /// When the first report of it came.
        since: Time,
    },
    /// A line for `/why`.
    Explained(NodeId, Explanation),
}

/// A change as a watcher of services sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceChange {
    /// A provider that was not listed before.
    Added(Arc<Provider>),
    /// A listed provider with something new.
    Changed(Arc<Provider>),
    /// The same program by its registration with another node.
    Replaced {
        /// The registration that counted until now, as it was told last.
        before: Arc<Provider>,
        /// The one that counts from now on.
        after: Arc<Provider>,
    },
    /// No longer listed.
    Removed(Arc<Provider>),
}

impl ServiceChange {
    /// The provider, as it is or last was.
    pub fn provider(&self) -> &Arc<Provider> {
        match self {
            Self::Added(p) | Self::Changed(p) | Self::Removed(p) | Self::Replaced { after: p, .. } => p,
        }
    }
}

/// Which provider: its node, then its id.
type ProviderKey = (NodeId, String);

/// The table.
#[derive(Debug)]
pub struct ProviderTable {
    index: Index,
    members: BTreeMap<NodeId, Member>,
    /// Everything that any remembered member offers or offered, in its latest incarnation.
    offered: BTreeMap<ProviderKey, Arc<Instance>>,
    /// What is listed now, by service.
    listed: BTreeMap<String, BTreeMap<ProviderKey, Arc<Provider>>>,
    /// How many are listed, over all services.
    listed_len: usize,
    /// Which of them lookups leave out.
    distinct: Distinct,
    /// When each service last changed. Kept after its last provider went, so that a query that waits for it wakes.
    touched: BTreeMap<String, Index>,
    members_touched: Index,
    history: VecDeque<(Index, ServiceChange)>,
    /// Changes up to this index have left the history.
    forgotten: Index,
    /// Up to here there may have been changes of services that have no index of their own any more.
    pruned: Index,
    explanations: Explanations,
    root_hash: [u8; 16],
    /// What orders addresses.
    vantage: Vantage,
    guard: Guard,
}

impl ProviderTable {
    /// An empty table whose index starts at `start`.
    pub fn new(start: Index) -> Self {
        Self {
            index: start,
            members: BTreeMap::new(),
            offered: BTreeMap::new(),
            listed: BTreeMap::new(),
            listed_len: 0,
            distinct: Distinct::default(),
            touched: BTreeMap::new(),
            members_touched: start,
            history: VecDeque::new(),
            forgotten: start,
            pruned: start,
            explanations: Explanations::default(),
            root_hash: [0; 16],
            vantage: Vantage::default(),
            guard: Guard::default(),
        }
    }

    /// Takes over one change.
    pub fn apply(&mut self, now: Time, change: Change) {
        match change {
            Change::Member(member) => self.apply_member(now, *member),
            Change::Forgotten(id) => {
                if self.members.remove(&id).is_some() {
                    self.withdraw_all(now, id);
                    self.explanations.forget(&Subject::Member(id));
                    self.vantage.forget(id);
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

    fn apply_member(&mut self, now: Time, mut member: Member) {
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
                self.list(now, id, instance_id.clone(), Arc::clone(instance), false);
            }
            // Only when all are listed: those that the guard kept would go and come.
            offered.iter().for_each(|(_, instance)| self.end_guard_if_verified(now, &instance.service));
        }
    }

    fn apply_instance(&mut self, now: Time, node: NodeId, id: String, instance: Option<Arc<Instance>>) {
        let before = match &instance {
            Some(new) => self.offered.insert((node, id.clone()), Arc::clone(new)),
            None => self.offered.remove(&(node, id.clone())),
        };
        // An instance that moved to another service leaves the old one first.
        if let Some(before) = &before
            && instance.as_ref().is_none_or(|new| new.service != before.service)
        {
            self.unlist(now, node, &id, &before.service);
        }
        let Some(new) = instance else { return };
        let service = new.service.clone();
        let present = self.members.get(&node).is_some_and(|member| member.state.is_present());
        if present || self.stays_listed(node, &id, &new) {
            let explained = before.is_some_and(|before| self.explain_checks(now, node, &id, &before, &new));
            self.list(now, node, id, new, explained);
            self.end_guard_if_verified(now, &service);
        } else {
            self.unlist(now, node, &id, &service);
        }
    }

    /// Adds a line for each check whose status is another one now. Returns whether there is any.
    fn explain_checks(
        &mut self,
        now: Time,
        node: NodeId,
        id: &str,
        before: &Instance,
        after: &Instance,
    ) -> bool {
        let mut any = false;
        for check in &after.checks {
            let known = before.checks.iter().find(|known| known.id == check.id);
            // One that came later says something only where it does not pass: a drain does.
            if known.map_or(Health::Passing, |known| known.status) == check.status {
                continue;
            }
            any = true;
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
        any
    }

    /// Lists an instance of a member, or what is new of it. `explained`: lines for `/why` have been added already.
    fn list(&mut self, now: Time, node: NodeId, id: String, instance: Arc<Instance>, explained: bool) {
        let Some(member) = self.members.get(&node) else { return };
        let service = instance.service.clone();
        let provider = Arc::new(Provider {
            role: is_role(&instance, member),
            unverified: !member.state.is_present(),
            id: id.clone(),
            node_id: node,
            node: member.name.clone(),
            zone: member.zone.clone(),
            addresses: self.vantage.order(&instance, member),
            instance,
        });
        let before =
            self.listed.entry(service.clone()).or_default().insert((node, id.clone()), Arc::clone(&provider));
        self.listed_len += usize::from(before.is_none());
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

    fn unlist(&mut self, now: Time, node: NodeId, id: &str, service: &str) {
        let Some(providers) = self.listed.get_mut(service) else { return };
        let Some(provider) = providers.remove(&(node, id.to_owned())) else { return };
        self.listed_len -= 1;
        if self.guard.is_keeping(service) && !providers.values().any(|provider| provider.unverified) {
            self.guard.end_keeping(service);
        }
        if providers.is_empty() {
            self.listed.remove(service);
        }
        self.record(service, Some(&provider), None);
        let line = Explanation::Removed(service.to_owned(), id.to_owned());
        self.explain(now, Subject::Service(service.to_owned()), node, line);
    }

    /// The address over which a node is or last was connected.
    pub fn connected(&self, node: NodeId) -> Option<IpAddr> {
        self.vantage.connected(node)
    }

    /// A connection to this node was opened to or from this address.
    pub fn set_connected(&mut self, node: NodeId, ip: IpAddr) {
        if self.vantage.connect(node, ip, |known| self.members.contains_key(known)) {
            self.reorder(Some(node));
        }
    }

    /// The subnets of this host are these now.
    pub fn set_subnets(&mut self, subnets: Vec<Subnet>) {
        if self.vantage.set_subnets(subnets) {
            self.reorder(None);
        }
    }

    /// Orders the addresses of what is listed again: of one node, or of all. A reader sees a new order as a
    /// change; `/why` does not tell of it, since nothing happened to the instance.
    fn reorder(&mut self, only: Option<NodeId>) {
        let mut changed = Vec::new();
        for provider in self.listed.values_mut().flat_map(BTreeMap::values_mut) {
            let Some(member) = self.members.get(&provider.node_id) else { continue };
            if only.is_some_and(|only| only != provider.node_id) {
                continue;
            }
            let addresses = self.vantage.order(&provider.instance, member);
            if addresses != provider.addresses {
                let reordered = Arc::new(Provider { addresses, ..(**provider).clone() });
                changed.push((std::mem::replace(provider, Arc::clone(&reordered)), reordered));
            }
        }
        for (before, after) in changed {
            self.record(&after.instance.service, Some(&before), Some(&after));
        }
    }

    /// What this node offers, by id.
    fn offered_by(&self, node: NodeId) -> Vec<(String, Arc<Instance>)> {
        let offered = self.offered.range((node, String::new())..).take_while(|((of, _), _)| *of == node);
        offered.map(|((_, id), instance)| (id.clone(), Arc::clone(instance))).collect()
    }

    fn withdraw_all(&mut self, now: Time, node: NodeId) {
        for (id, instance) in self.offered_by(node) {
            self.unlist(now, node, &id, &instance.service);
            self.offered.remove(&(node, id));
        }
    }

    fn tick(&mut self) -> Index {
        self.index.0 += 1;
        self.index
    }

    /// Records what became of a registration. A change that lookups do not see moves the index of the table alone.
    fn record(&mut self, service: &str, before: Option<&Arc<Provider>>, after: Option<&Arc<Provider>>) {
        let changes = self.distinct.replace(before, after);
        if changes.is_empty() {
            self.tick();
        }
        changes.into_iter().for_each(|change| self.record_change(service, change));
    }

    fn record_change(&mut self, service: &str, change: ServiceChange) {
        let index = self.tick();
        self.touched.insert(service.to_owned(), index);
        self.history.push_back((index, change));
        if self.history.len() > HISTORY_MAX
            && let Some((index, change)) = self.history.pop_front()
        {
            self.forgotten = index;
            // A service that is gone, and whose going is no longer remembered, needs no index of its own.
            let service = &change.provider().instance.service;
            if self.touched.get(service) == Some(&index) && !self.listed.contains_key(service) {
                self.touched.remove(service);
                self.pruned = index;
            }
        }
    }

    fn explain(&mut self, now: Time, subject: Subject, about: NodeId, explanation: Explanation) {
        self.explanations.add(subject, (now, about, explanation));
    }

    /// The newest index.
    pub fn index(&self) -> Index {
        self.index
    }

    /// When the providers of this service last changed. For a service never seen: when the last one was forgotten that is gone, so that a
    /// query which waits for it does wait.
    pub fn service_index(&self, service: &str) -> Index {
        self.touched.get(service).copied().unwrap_or(self.pruned)
    }

    /// When any service last changed.
    pub fn services_index(&self) -> Index {
        self.history.back().map_or(self.forgotten, |(index, _)| *index)
    }

    /// When any member last changed.
    pub fn members_index(&self) -> Index {
        self.members_touched
    }

    /// Equal on two nodes exactly when anti-entropy would find nothing to do between them.
    pub fn root_hash(&self) -> [u8; 16] {
        self.root_hash
    }

    /// All remembered members, this node among them.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// All remembered members, with the address of their HTTP that this node's host should try first. Another order
    /// moves no index, as a round trip does not.
    pub fn members_from_here(&self) -> impl Iterator<Item = Member> {
        self.members.values().map(|member| Member { http: self.vantage.http(member), ..member.clone() })
    }

    /// The member with this id.
    pub fn member(&self, id: NodeId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// The member of this name; where several have had it, the one that is present, or else the last one that was.
    pub fn member_named(&self, name: &str) -> Option<&Member> {
        self.members
            .values()
            .filter(|m| m.name == name)
            .min_by_key(|m| (!m.state.is_present(), std::cmp::Reverse(m.since)))
    }

    /// The names of all services that have a provider.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.listed.keys().map(String::as_str)
    }

    /// The providers of a service, in the order of node and id. Empty for an unknown one.
    pub fn providers(&self, service: &str) -> impl Iterator<Item = &Arc<Provider>> {
        self.listed.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// The providers with this id, of all services and nodes. Looks at each provider.
    pub fn providers_with_id(&self, id: &str) -> impl Iterator<Item = &Arc<Provider>> {
        self.listed.values().flat_map(BTreeMap::values).filter(move |provider| provider.id == id)
    }

    /// The providers of a service, where a program that is registered with several nodes counts once: the same
    /// address and port, unless that is a loopback address or a role. The healthiest registration counts,
    /// then that of the lowest node. [`Self::changes_after`] yields the changes of these.
    pub fn providers_distinct(&self, service: &str) -> impl Iterator<Item = &Arc<Provider>> {
        let all = self.listed.get(service).into_iter().flatten();
        all.filter(|(key, _)| !self.distinct.is_duplicate(key)).map(|(_, provider)| provider)
    }

    /// The instance that a node offers under this id, whether or not it is listed.
    pub fn instance(&self, node: NodeId, id: &str) -> Option<&Arc<Instance>> {
        self.offered.get(&(node, id.to_owned()))
    }

    /// How many providers are listed, over all services.
    pub fn providers_len(&self) -> usize {
        self.listed_len
    }

    /// Every change after `index`, oldest first; `None` if some of them are no longer remembered, or `index` is not of this
    /// table: start from a snapshot then.
    pub fn changes_after(&self, index: Index) -> Option<impl Iterator<Item = &(Index, ServiceChange)>> {
        if index < self.forgotten || index > self.index {
            return None;
        }
        let start = self.history.partition_point(|(at, _)| *at <= index);
        Some(self.history.range(start..))
    }

    /// What happened to a member, oldest first.
    pub fn why_member(&self, id: NodeId) -> impl Iterator<Item = &(Time, NodeId, Explanation)> {
        self.explanations.of(&Subject::Member(id))
    }

    /// What happened to a service, oldest first. Also for a service whose last provider is gone.
    pub fn why_service(&self, service: &str) -> impl Iterator<Item = &(Time, NodeId, Explanation)> {
        self.explanations.of(&Subject::Service(service.to_owned()))
    }

    /// What the checks of the instances with this id found, oldest first. Several nodes may have one: each
    /// line names its node.
    pub fn why_instance(&self, id: &str) -> impl Iterator<Item = &(Time, NodeId, Explanation)> {
        self.explanations.of_instance(id)
    }

    /// The last [`TIMELINE_MAX`] things that happened to anybody, oldest first.
    pub fn timeline(&self) -> impl DoubleEndedIterator<Item = &(Time, NodeId, Explanation)> {
        self.explanations.timeline()
    }

    /// The nodes that offer anything at all under one of these services.
    pub fn nodes_offering<'a>(&'a self, service: &'a str) -> BTreeSet<NodeId> {
        self.providers(service).map(|p| p.node_id).collect()
    }
}
