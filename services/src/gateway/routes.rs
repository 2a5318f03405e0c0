//! Which instances a request is for, learnt from the provider table and never written down anywhere.
//!
//! 1. Prefixes announced for the host that is asked for (`urlprefix-host/path`): the longest wins.
//! 2. Prefixes announced for any host (`urlprefix-/students`): the longest wins.
//! 3. The name of a service as the first segment, `/{service}/rest`, which is then taken off the path.
//! 4. `urlprefix-/`, announced for any host: what nobody else wants.
//!
//! A prefix matches segment by segment: `/log` is for `/log` and `/log/tail`, not for `/logs`. What several services announce alike is
//! shared among the instances of all of them.
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

use crate::prefixes::{BUILT_IN, covers};

use super::{
    announced::Announced,
    policy::GatewayPolicy,
    target::{Target, Unusable},
};

/// How long a route is remembered after its last instance has gone.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// How many of those are remembered.
const REMEMBERED_MAX: usize = 1024;
/// How many tags and instances that could not be used are kept to be shown.
const IGNORED_MAX: usize = 32;

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
    /// How many instances there are that nothing can be sent to.
    pub unusable: usize,
    /// Since when there is none, in milliseconds since the start.
    pub gone_ms: Option<u64>,
}

/// How an instance's tag changes the requests that this instance gets. It holds for no other instance of the route: an
/// option that one service announces must not change what another one's instances are asked.
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
    /// How many bytes of the path are the name of the service, which is taken off for each of its instances. 0 where the
    /// route was found by a prefix: then each instance's [`Manner`] says what is taken off.
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
    pub ignored: Vec<(String, Cow<'static, str>)>,
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
            let mut join = |key: Key, manner: Arc<Manner>| {
                let route = building.entry(key).or_default();
                match &target {
                    Ok(target) => route.group.join(Arc::clone(target), provider, manner),
                    Err(_) => route.group.unusable += 1,
                }
            };
            let is_program = !provider.is_role();
            match is_program && is_built_in_role(&instance.service) {
                false => join(Key::Service(instance.service.clone()), Arc::clone(&plain)),
                true => {
                    learnt.ignore(instance.service.clone(), "a program bears the name of a built-in role")
                }
            }
            for tag in &instance.tags {
                match Announced::read(tag) {
                    Some(Ok(a)) if is_program && a.host.is_none() && is_built_in_path(&a.prefix) => {
                        learnt.ignore(tag.clone(), "a program announces a path of a built-in role");
                    }
                    Some(Ok(a)) => {
                        let manner = Arc::new(Manner::of(&a));
                        join(Key::Prefix(a.host, a.prefix), manner);
                    }
                    Some(Err(why)) => learnt.ignore(tag.clone(), why),
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
                    learnt.ignore(instance.url.clone(), why.reason());
                }
            }
        }
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
            (key.clone(), Route { group: Group { gone_ms: Some(gone_ms), ..Group::default() }, prefix: None })
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

    fn ignore(&mut self, what: String, why: impl Into<Cow<'static, str>>) {
        if self.ignored.len() < IGNORED_MAX {
            self.ignored.push((what, why.into()));
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

/// Whether requests of this prefix are, all or in part, those of a built-in role.
fn is_built_in_path(prefix: &str) -> bool {
    let mut paths = BUILT_IN.iter().flat_map(|(_, prefixes)| prefixes.iter());
    !prefix.is_empty() && paths.any(|path| covers(path, prefix))
}

impl Group {
    fn join(&mut self, target: Arc<Target>, provider: &Arc<Provider>, manner: Arc<Manner>) {
        // One instance may announce a prefix twice; the first tag counts.
        if self.members.last().is_some_and(|last| Arc::ptr_eq(&last.target, &target)) {
            return;
        }
        if provider.instance.health != Health::Critical {
            self.healthy.push(self.members.len());
        }
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
mod tests {
    use super::*;
    use crate::gateway::fixture::{policy, provider, provider_with};

    fn routes(providers: &[Provider]) -> Routes {
        learn(&Routes::default(), providers, 0)
    }

    fn learn(before: &Routes, providers: &[Provider], now_ms: u64) -> Routes {
        let providers: Vec<_> = providers.iter().cloned().map(Arc::new).collect();
        before.learn(&providers, &policy(), 1, now_ms)
    }

    /// The ids of the instances, and the path that they get.
    fn find(routes: &Routes, host: &str, path: &str) -> Option<(String, String)> {
        let found = routes.find(host, path)?;
        let ids: Vec<_> = found.route.group.members.iter().map(|m| m.target.id.as_str()).collect();
        let manner = found.route.group.members.first().map(|member| member.manner.stripped(path));
        Some((ids.join(","), path[found.name_bytes.max(manner.unwrap_or(0))..].to_owned()))
    }

    fn to(ids: &str, path: &str) -> Option<(String, String)> {
        Some((ids.to_owned(), path.to_owned()))
    }

    #[test]
    fn the_host_comes_first_then_the_longest_prefix_then_the_service_then_everything_else() {
        let routes = routes(&[
            provider("web", "w", "http://10.0.0.1:1", &["urlprefix-www.example.com/", "urlprefix-/"]),
            provider("shop", "s", "http://10.0.0.2:1", &["urlprefix-www.example.com/shop", "urlprefix-/a/b"]),
            provider("a", "a", "http://10.0.0.3:1", &[]),
            provider("grading", "g", "http://10.0.0.4:1", &["urlprefix-/students"]),
        ]);
        let any = |path: &str| find(&routes, "10.1.1.1", path);
        assert_eq!(any("/students/1"), to("g", "/students/1"));
        assert_eq!(any("/students"), to("g", "/students"));
        assert_eq!(any("/studentship"), to("w", "/studentship"), "a prefix ends where a segment ends");
        assert_eq!(any("/grading/students/1"), to("g", "/students/1"), "by name, and the name is taken off");
        assert_eq!(any("/grading"), to("g", ""));
        assert_eq!(any("/a/b/c"), to("s", "/a/b/c"), "an announced prefix outranks a service's name");
        assert_eq!(any("/a/bc"), to("a", "/bc"));
        assert_eq!(any("/nothing"), to("w", "/nothing"), "/ takes what nobody else wants");
        for host in ["www.example.com", "WWW.example.COM"] {
            assert_eq!(find(&routes, host, "/shop/1"), to("s", "/shop/1"), "{host}");
            assert_eq!(find(&routes, host, "/students"), to("w", "/students"), "{host}");
        }
    }

    #[test]
    fn what_nobody_offers_is_not_found() {
        let routes = routes(&[provider("grading", "g", "http://10.0.0.4:1", &["urlprefix-/students"])]);
        for path in ["/", "/x", "/grading2", "/Grading", "//grading", "/%zz", "/%ff", "/"] {
            assert_eq!(find(&routes, "h", path), None, "{path}");
        }
    }

    #[test]
    fn a_service_with_a_space_in_its_name_is_found() {
        let routes = routes(&[provider("Grade Book", "g", "http://10.0.0.4:1", &[])]);
        assert_eq!(find(&routes, "h", "/Grade%20Book/x"), to("g", "/x"));
    }

    #[test]
    fn strip_takes_off_what_it_names() {
        let tags = ["urlprefix-/api/v1 strip=/api host=dst"];
        let routes = routes(&[provider("web", "w", "http://10.0.0.1:1", &tags)]);
        assert_eq!(find(&routes, "h", "/api/v1/x"), to("w", "/v1/x"));
        let manner = &routes.find("h", "/api/v1/x").unwrap().route.group.members[0].manner;
        assert!(manner.own_host);
        assert_eq!(manner.prefix.as_ref().unwrap(), "/api");
    }

    #[test]
    fn the_options_of_a_tag_hold_for_its_own_instance_alone() {
        let routes = routes(&[
            provider("Aaa", "a", "http://10.0.0.1:1", &["urlprefix-/shop strip=/shop proto=h2c"]),
            provider("shop", "s", "http://10.0.0.2:1", &["urlprefix-/shop"]),
        ]);
        let members = &routes.find("h", "/shop/1").unwrap().route.group.members;
        let manners: Vec<_> = members
            .iter()
            .map(|m| (m.target.id.as_str(), m.manner.stripped("/shop/1"), m.manner.http2))
            .collect();
        assert_eq!(manners, [("a", 5, true), ("s", 0, false)]);
    }

    #[test]
    fn instances_that_nothing_can_be_sent_to_are_told_and_counted() {
        let routes = routes(&[
            provider("web", "w", "https://10.0.0.1", &["urlprefix-*/"]),
            provider("web", "v", "http://10.0.0.1:1", &[]),
        ]);
        let found = routes.find("h", "/web").unwrap();
        assert_eq!((found.route.group.members.len(), found.route.group.unusable), (1, 1));
        assert_eq!(routes.ignored.len(), 2, "{:?}", routes.ignored);
    }

    #[test]
    fn what_was_learnt_of_an_instance_stays_while_it_does_and_the_gone_are_told() {
        let (a, b) =
            (provider("web", "a", "http://10.0.0.1:1", &[]), provider("web", "b", "http://10.0.0.1:2", &[]));
        let first = routes(&[a.clone(), b.clone()]);
        let target = |routes: &Routes, id: &str| routes.targets().find(|t| t.id == id).cloned().unwrap();
        let (was_a, was_b) = (target(&first, "a"), target(&first, "b"));
        let moved = provider("web", "b", "http://10.0.0.1:3", &[]);
        let second = learn(&first, &[a, moved], 1);
        assert!(Arc::ptr_eq(&was_a, &target(&second, "a")) && !was_a.is_gone());
        assert!(!Arc::ptr_eq(&was_b, &target(&second, "b")) && was_b.is_gone(), "it is elsewhere now");
    }

    #[test]
    fn the_critical_are_members_and_not_healthy() {
        let routes = routes(&[
            provider_with("web", "a", "http://10.0.0.1:1", &[], Health::Critical),
            provider_with("web", "b", "http://10.0.0.1:2", &[], Health::Warning),
        ]);
        let group = &routes.find("h", "/web").unwrap().route.group;
        assert_eq!((group.members.len(), group.healthy.clone()), (2, vec![1]));
    }

    #[test]
    fn a_route_without_instances_is_remembered_for_an_hour() {
        let web = provider("web", "a", "http://10.0.0.1:1", &["urlprefix-/shop"]);
        let first = routes(std::slice::from_ref(&web));
        let gone = learn(&first, &[], 1_000);
        for path in ["/web/x", "/shop/1"] {
            let group = &gone.find("h", path).unwrap().route.group;
            assert!(group.members.is_empty() && group.gone_ms == Some(1_000));
        }
        let still = learn(&gone, &[], 3_600_000);
        assert!(still.find("h", "/shop").is_some());
        assert!(learn(&still, &[], 3_602_000).find("h", "/shop").is_none());
        assert!(learn(&still, &[web], 3_602_000).find("h", "/shop").unwrap().route.group.gone_ms.is_none());
    }

    #[test]
    fn a_path_of_many_segments_costs_no_more_than_the_longest_prefix() {
        let routes = routes(&[provider("web", "a", "http://10.0.0.1:1", &["urlprefix-/a/b"])]);
        let path = format!("/a/b{}", "/".repeat(30_000));
        assert!(find(&routes, "h", &path).is_some());
    }
}
