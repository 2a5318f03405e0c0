//! Which instances a request is for, learnt from the provider table and never written down anywhere.
//!
//! 1. Prefixes announced for the host that is asked for (`urlprefix-host/path`): the longest wins.
//! 2. Prefixes announced for any host (`urlprefix-/students`): the longest wins.
//! 3. The name of a service as the first segment, `/{service}/rest`, which is then taken off the path.
//! 4. `urlprefix-/`, announced for any host: what nobody else wants.
//!
//! A prefix matches segment by segment: `/log` is for `/log` and `/log/tail`, not for `/logs`. What several services announce alike is
//! shared among the instances of all of them, and shown as a conflict.
//!
//! The paths of built-in roles (`/students`) are theirs: see [`super::ownership`]. A host whose prefix is
//! shorter does not take them away, while there is a route for the role.
//!
//! A route whose last instance has gone is remembered for a while: its clients are told that nobody is there now (503), and not that
//! there is no such thing (404).

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use hearsay_protocol::{NodeId, providers::Provider, record::Health};
use http::HeaderValue;

use crate::prefixes::BUILT_IN;

use super::{
    announced::Announced,
    ownership::{may_announce, owner_of},
    policy::GatewayPolicy,
    target::{Target, Unusable},
};

/// How long a route is remembered after its last instance has gone.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// How many of those are remembered.
const REMEMBERED_MAX: usize = 1024;
/// How many tags and instances that could not be used are kept to be shown.
const IGNORED_MAX: usize = 32;
/// How many conflicts are kept to be shown.
const CONFLICTS_MAX: usize = 32;
/// How many services of a conflict.
const SERVICES_MAX: usize = 8;

/// An instance of a group.
#[derive(Clone, Debug)]
pub struct Member {
    /// The instance.
    pub target: Arc<Target>,
    /// What the table says of it.
    pub provider: Arc<Provider>,
    /// How its own tag changes the requests of this route.
    pub manner: Arc<Manner>,
}

/// The instances that serve one route.
#[derive(Clone, Default, Debug)]
pub struct Group {
    /// All of them, in the order of the table.
    pub members: Vec<Member>,
    /// Those whose checks do not say `critical`: positions in `members`.
    pub healthy: Vec<usize>,
    /// Whether one of them is of a built-in role.
    pub has_roles: bool,
    /// How many instances there are that nothing can be sent to.
    pub unusable: usize,
    /// Since when there is none, in milliseconds since the start.
    pub gone_ms: Option<u64>,
}

/// How an instance's tag changes the requests that this instance gets. It holds for no other instance of the
/// route: an option that one service announces must not change what another one's instances are asked.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Manner {
    /// What is taken off the path.
    pub strip: Option<String>,
    /// The same as a header; made once.
    pub prefix: Option<HeaderValue>,
    /// Whether the instance is asked under its own name.
    pub own_host: bool,
    /// Whether the instance is asked over HTTP/2.
    pub http2: bool,
}

impl Manner {
    fn of(tag: &Announced) -> Self {
        Self {
            strip: tag.strip.clone(),
            prefix: tag.strip.as_deref().and_then(|strip| HeaderValue::from_str(strip).ok()),
            own_host: tag.own_host,
            http2: tag.http2,
        }
    }

    /// How many bytes are taken off this path.
    pub fn stripped(&self, path: &str) -> usize {
        self.strip.as_deref().filter(|strip| path.starts_with(strip)).map_or(0, str::len)
    }
}

/// A route.
#[derive(Clone, Default, Debug)]
pub struct Route {
    /// Its instances.
    pub group: Group,
    /// The name of the service as a path, where the route is found by it, as a header; made once.
    pub prefix: Option<HeaderValue>,
    /// Whether a path of a built-in role that the route covers is for it, and not for the role.
    has_built_in: bool,
}

/// What several services announce alike.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conflict {
    /// The host, where one is announced.
    pub host: Option<String>,
    /// The prefix.
    pub prefix: String,
    /// The services; the first few.
    pub services: Vec<String>,
}

/// A tag or an instance that could not be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ignored {
    /// The tag, or the URL of the instance.
    pub what: String,
    /// The service of the instance.
    pub service: String,
    /// The name of its node.
    pub node: String,
    /// Why it is not used.
    pub why: Cow<'static, str>,
}

/// What a route is found by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Key {
    /// A prefix, for one host or any.
    Prefix(Option<String>, String),
    /// The name of a service.
    Service(String),
}

#[derive(Default, Debug)]
struct Prefixes {
    routes: BTreeMap<String, Arc<Route>>,
    /// The segments of the longest: looking further is no use, however many segments a path has.
    segments_max: usize,
}

impl Prefixes {
    fn insert(&mut self, prefix: String, route: Arc<Route>) {
        self.segments_max = self.segments_max.max(prefix.matches('/').count());
        self.routes.insert(prefix, route);
    }

    /// The longest that covers the path, of at least one segment.
    fn longest(&self, path: &str) -> Option<&Arc<Route>> {
        let bytes = path.as_bytes();
        let last = self.segments_max.checked_sub(1)?;
        let mut end = memchr::memchr_iter(b'/', bytes).skip(1).nth(last).unwrap_or(path.len());
        while end > 0 {
            let prefix = path.get(..end)?;
            if let Some(route) = self.routes.get(prefix) {
                return Some(route);
            }
            end = memchr::memrchr(b'/', prefix.as_bytes())?;
        }
        None
    }

    fn all(&self) -> Option<&Arc<Route>> {
        self.routes.get("")
    }
}

/// Where a request goes.
#[derive(Debug)]
pub struct Found<'a> {
    /// The route.
    pub route: &'a Arc<Route>,
    /// How many bytes of the path are the name of the service, which is taken off for each of its instances.
    /// 0 where the route was found by a prefix: then each instance's [`Manner`] says what is taken off.
    pub name_bytes: usize,
}

impl Found<'_> {
    /// The name that is taken off the path, as a header.
    pub fn prefix(&self, path: &str) -> Option<HeaderValue> {
        let prefix = path.get(..self.name_bytes).filter(|prefix| !prefix.is_empty())?;
        match &self.route.prefix {
            Some(made) if made == prefix => Some(made.clone()),
            // In another spelling.
            _ => HeaderValue::from_str(prefix).ok(),
        }
    }
}

/// All routes, as of one state of the table.
#[derive(Default, Debug)]
pub struct Routes {
    hosts: HashMap<String, Prefixes>,
    prefixes: Prefixes,
    services: BTreeMap<String, Arc<Route>>,
    all: BTreeMap<Key, Arc<Route>>,
    targets: BTreeMap<(NodeId, String), Arc<Target>>,
    /// Instances that the address policy refuses. They are in the table, so there are no more than it lists.
    refused: BTreeSet<(NodeId, String)>,
    /// Tags and instances that could not be used, and why; the first few.
    pub ignored: Vec<Ignored>,
    /// How many there are.
    pub ignored_count: u64,
    /// Routes that several services announce; the first few.
    pub conflicts: Vec<Conflict>,
    /// How many there are.
    pub conflicts_count: u64,
}

impl Routes {
    /// Learns from everything that the table lists. What is known of instances that were there before is kept; those that are gone are
    /// told so.
    #[must_use]
    pub fn learn(
        &self,
        providers: &[Arc<Provider>],
        policy: &GatewayPolicy,
        threads: usize,
        now_ms: u64,
    ) -> Self {
        let mut learnt = Self::default();
        let mut building: BTreeMap<Key, Route> = BTreeMap::new();
        let plain = Arc::<Manner>::default();
        for provider in providers {
            let target = self.target(provider, policy, threads);
            let instance = &provider.instance;
            let mut join = |key: Key, manner: Arc<Manner>, has_built_in: bool| {
                let route = building.entry(key).or_insert_with(|| Route { has_built_in, ..Route::default() });
                // One instance that may not have them is reason enough.
                route.has_built_in &= has_built_in;
                match &target {
                    Ok(target) => route.group.join(Arc::clone(target), provider, manner),
                    Err(_) => route.group.unusable += 1,
                }
            };
            match !provider.is_role() && is_built_in_role(&instance.service) {
                false => join(Key::Service(instance.service.clone()), Arc::clone(&plain), false),
                true => {
                    let why = "a program bears the name of a built-in role";
                    learnt.ignore(instance.service.clone(), provider, why);
                }
            }
            for tag in &instance.tags {
                match Announced::read(tag) {
                    Some(Ok(a)) => match may_announce(provider, &a, policy.route_rules()) {
                        Ok(has_built_in) => {
                            let manner = Arc::new(Manner::of(&a));
                            join(Key::Prefix(a.host, a.prefix), manner, has_built_in);
                        }
                        Err(why) => learnt.ignore(tag.clone(), provider, why),
                    },
                    Some(Err(why)) => learnt.ignore(tag.clone(), provider, why),
                    None => (),
                }
            }
            match target {
                Ok(target) => {
                    learnt.targets.insert((provider.node_id, provider.id.clone()), target);
                }
                Err(why) => {
                    if let Unusable::Forbidden(rule) = why {
                        let id = (provider.node_id, provider.id.clone());
                        // Counted once, however often it is judged again.
                        if !self.refused.contains(&id) {
                            policy.count(rule);
                        }
                        learnt.refused.insert(id);
                    }
                    learnt.ignore(instance.url.clone(), provider, why.reason());
                }
            }
        }
        learnt.find_conflicts(&building);
        self.remember(&mut building, now_ms);
        for (key, mut route) in building {
            if let Key::Service(name) = &key {
                route.prefix = HeaderValue::from_str(&format!("/{name}")).ok();
            }
            learnt.insert(key, Arc::new(route));
        }
        for (id, target) in &self.targets {
            if learnt.targets.get(id).is_none_or(|now| !Arc::ptr_eq(now, target)) {
                target.leave();
            }
        }
        learnt
    }

    /// What is known of this instance, or a new one.
    fn target(
        &self,
        provider: &Provider,
        policy: &GatewayPolicy,
        threads: usize,
    ) -> Result<Arc<Target>, Unusable> {
        let fresh = Target::new(provider, policy, threads)?;
        match self.targets.get(&(provider.node_id, provider.id.clone())) {
            Some(known) if known.is_same(&fresh) => Ok(Arc::clone(known)),
            _ => Ok(Arc::new(fresh)),
        }
    }

    /// Keeps the routes that had instances until now, and those that lost theirs not long ago.
    fn remember(&self, building: &mut BTreeMap<Key, Route>, now_ms: u64) {
        let lost = self.all.iter().filter(|(key, _)| !building.contains_key(key)).map(|(key, route)| {
            let gone_ms = route.group.gone_ms.unwrap_or(now_ms);
            let group = Group { gone_ms: Some(gone_ms), ..Group::default() };
            (key.clone(), Route { group, prefix: None, has_built_in: route.has_built_in })
        });
        let is_recent = |gone_ms: Option<u64>| {
            gone_ms.is_some_and(|at| u128::from(now_ms.saturating_sub(at)) < REMEMBERED.as_millis())
        };
        let mut lost: Vec<_> = lost.filter(|(_, route)| is_recent(route.group.gone_ms)).collect();
        lost.sort_by_key(|(_, route)| std::cmp::Reverse(route.group.gone_ms));
        building.extend(lost.into_iter().take(REMEMBERED_MAX));
    }

    fn insert(&mut self, key: Key, route: Arc<Route>) {
        match key.clone() {
            Key::Service(name) => _ = self.services.insert(name, Arc::clone(&route)),
            Key::Prefix(None, prefix) => self.prefixes.insert(prefix, Arc::clone(&route)),
            Key::Prefix(Some(host), prefix) => {
                self.hosts.entry(host).or_default().insert(prefix, Arc::clone(&route));
            }
        }
        self.all.insert(key, route);
    }

    fn ignore(&mut self, what: String, of: &Provider, why: impl Into<Cow<'static, str>>) {
        self.ignored_count += 1;
        if self.ignored.len() < IGNORED_MAX {
            let (service, node) = (of.instance.service.clone(), of.node.clone());
            self.ignored.push(Ignored { what, service, node, why: why.into() });
        }
    }

    fn find_conflicts(&mut self, building: &BTreeMap<Key, Route>) {
        for (key, route) in building {
            let Key::Prefix(host, prefix) = key else { continue };
            let services: BTreeSet<&str> =
                route.group.members.iter().map(|member| member.provider.instance.service.as_str()).collect();
            if services.len() < 2 {
                continue;
            }
            self.conflicts_count += 1;
            if self.conflicts.len() < CONFLICTS_MAX {
                let services = services.into_iter().take(SERVICES_MAX).map(str::to_owned).collect();
                self.conflicts.push(Conflict { host: host.clone(), prefix: prefix.clone(), services });
            }
        }
    }

    /// Whether the address policy refuses an instance. It may not for ever: members come and go.
    pub fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Finds the route of a request. `host` is without a port; `path` begins with a slash.
    pub fn find(&self, host: &str, path: &str) -> Option<Found<'_>> {
        if !self.hosts.is_empty() {
            let of_host = self.hosts.get(host).or_else(|| self.hosts.get(&host.to_ascii_lowercase()));
            if let Some(found) = of_host.and_then(|of_host| of_host.longest(path).or_else(|| of_host.all())) {
                let of_role = || owner_of(path).and_then(|_| self.prefixes.longest(path));
                let found = if found.has_built_in { found } else { of_role().unwrap_or(found) };
                return Some(announced(found));
            }
        }
        if let Some(found) = self.prefixes.longest(path) {
            return Some(announced(found));
        }
        let rest = path.get(1..)?;
        let name = &rest[..memchr::memchr(b'/', rest.as_bytes()).unwrap_or(rest.len())];
        let encoded = || decoded(name).and_then(|name| self.services.get(&*name));
        match self.services.get(name).or_else(encoded) {
            Some(route) => Some(Found { route, name_bytes: 1 + name.len() }),
            None => self.prefixes.all().map(announced),
        }
    }

    /// Whether a service of this name has an instance whose checks do not fail.
    pub fn has_healthy(&self, service: &str) -> bool {
        self.services.get(service).is_some_and(|route| !route.group.healthy.is_empty())
    }

    /// Every route, by what it is found by.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<Route>)> {
        self.all.iter()
    }

    /// Every instance that requests can be sent to.
    pub fn targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        self.targets.values()
    }
}

fn is_built_in_role(service: &str) -> bool {
    BUILT_IN.iter().any(|(role, _)| *role == service)
}

impl Group {
    /// Whether all of them are of built-in roles, and there are some.
    pub fn is_of_roles(&self) -> bool {
        self.has_roles && self.members.iter().all(|member| member.target.is_role())
    }

    fn join(&mut self, target: Arc<Target>, provider: &Arc<Provider>, manner: Arc<Manner>) {
        // One instance may announce a prefix twice; the first tag counts.
        if self.members.last().is_some_and(|last| Arc::ptr_eq(&last.target, &target)) {
            return;
        }
        if provider.instance.health != Health::Critical {
            self.healthy.push(self.members.len());
        }
        self.has_roles |= target.is_role();
        self.members.push(Member { target, provider: Arc::clone(provider), manner });
    }
}

fn announced(route: &Arc<Route>) -> Found<'_> {
    Found { route, name_bytes: 0 }
}

/// A segment without its percent-encoding: names have spaces. `None`: it is not encoded, or not text.
fn decoded(segment: &str) -> Option<Cow<'_, str>> {
    if !segment.contains('%') {
        return None;
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = rest.get(2..)?;
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests;
