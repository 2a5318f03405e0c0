//! Routing table: finds the route of a request, and with it the instances that may get the request. The table
//! is built from the provider table. Routes are tried in this order:
//!
//! 1. Prefixes announced for the host of the request (`urlprefix-host/path`): the longest wins.
//! 2. Prefixes announced for any host (`urlprefix-/students`): the longest wins.
//! 3. The name of a service as the first segment, `/{service}/rest`, which is stripped from the path.
//! 4. `urlprefix-/`, announced for any host: the default route.
//!
//! A prefix matches whole segments: `/log` covers `/log` and `/log/tail`, not `/logs`. A route that several
//! services announce has the instances of all of them, and is shown as a conflict.
//!
//! Paths of built-in roles (`/students`) belong to those roles ([`super::ownership`]). A shorter prefix with
//! a host does not cover them while there is a route for the role.
//!
//! A route without instances is kept for an hour, so that its requests get 503. An unknown route gets 404.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use hearsay_protocol::{Health, NodeId, Provider};
use hearsay_services::http::BUILT_IN;
use http::HeaderValue;

use crate::{
    routing::{
        ownership::{may_announce, owner_of},
        policy::GatewayPolicy,
        route_tags::RouteTag,
    },
    upstream::endpoint::{Endpoint, Unusable},
};

/// Time for which a route is kept after its last instance has gone.
const KEPT: Duration = Duration::from_secs(3600);
/// Maximum number of routes without instances that are kept.
const KEPT_MAX: usize = 1024;
/// Maximum number of unusable tags and instances that are listed.
const IGNORED_MAX: usize = 32;
/// Maximum number of conflicts that are listed.
const CONFLICTS_MAX: usize = 32;
/// Maximum number of services that are listed for a conflict.
const SERVICES_MAX: usize = 8;

/// An instance of a group.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// The endpoint.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The instance's entry in the provider table.
    pub(crate) provider: Arc<Provider>,
    /// The options of the instance's own tag.
    pub(crate) options: Arc<RouteOptions>,
}

/// The instances that serve one route.
#[derive(Clone, Default, Debug)]
pub(crate) struct Group {
    /// All instances, in the order of the table.
    pub(crate) members: Vec<Member>,
    /// Positions in `members` of the instances that are not critical.
    pub(crate) healthy: Vec<usize>,
    /// Whether an instance is a role.
    pub(crate) has_roles: bool,
    /// Number of unusable instances.
    pub(crate) unusable: usize,
    /// When the last instance left the provider table, in milliseconds since the gateway's start.
    pub(crate) gone_ms: Option<u64>,
}

/// The options of an instance's route tag. They apply to that instance only: one service must not change the
/// requests that another one gets.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct RouteOptions {
    /// The prefix that is stripped from the path.
    pub(crate) strip: Option<String>,
    /// `strip` as a header value.
    pub(crate) prefix: Option<HeaderValue>,
    /// Whether `Host` is the instance's own authority.
    pub(crate) own_host: bool,
    /// Whether the instance gets HTTP/2.
    pub(crate) http2: bool,
}

impl RouteOptions {
    fn of(tag: &RouteTag) -> Self {
        Self {
            strip: tag.strip.clone(),
            prefix: tag.strip.as_deref().and_then(|strip| HeaderValue::from_str(strip).ok()),
            own_host: tag.own_host,
            http2: tag.http2,
        }
    }

    /// Returns the length of the prefix that is stripped from this path.
    pub(crate) fn stripped(&self, path: &str) -> usize {
        self.strip.as_deref().filter(|strip| path.starts_with(strip)).map_or(0, str::len)
    }
}

/// A route and its instances.
#[derive(Clone, Default, Debug)]
pub(crate) struct Route {
    /// Its instances.
    pub(crate) group: Group,
    /// `/{service}`, if the route is found by the name of a service.
    pub(crate) prefix: Option<HeaderValue>,
    /// Whether the route covers paths of built-in roles.
    covers_built_in: bool,
}

/// A route that several services announce.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Conflict {
    /// The host of the route; `None` for any.
    pub(crate) host: Option<String>,
    /// The prefix.
    pub(crate) prefix: String,
    /// The first few services.
    pub(crate) services: Vec<String>,
}

/// An unusable tag or instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Ignored {
    /// The tag, or the URL of the instance.
    pub(crate) subject: String,
    /// The service of the instance.
    pub(crate) service: String,
    /// The name of the instance's node.
    pub(crate) node: String,
    /// Why it is ignored.
    pub(crate) reason: Cow<'static, str>,
}

/// The key that a route is found by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Key {
    /// A prefix, with or without a host.
    Prefix(Option<String>, String),
    /// The name of a service.
    Service(String),
}

#[derive(Default, Debug)]
struct Prefixes {
    routes: BTreeMap<String, Arc<Route>>,
    /// Maximum number of segments of a prefix; a lookup reads no more segments of a path.
    segments_max: usize,
}

impl Prefixes {
    fn insert(&mut self, prefix: String, route: Arc<Route>) {
        self.segments_max = self.segments_max.max(prefix.matches('/').count());
        self.routes.insert(prefix, route);
    }

    /// Returns the route of the longest prefix that covers a path. The prefix has at least one segment.
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

    fn default_route(&self) -> Option<&Arc<Route>> {
        self.routes.get("")
    }
}

/// The result of a lookup.
#[derive(Debug)]
pub(crate) struct Found<'a> {
    /// The route.
    pub(crate) route: &'a Arc<Route>,
    /// Bytes of `/{service}` in the path, which are stripped for all instances of the route. 0 if the route
    /// was found by a prefix; then each instance has its own [`RouteOptions`].
    pub(crate) name_bytes: usize,
}

impl Found<'_> {
    /// Returns `/{service}` as it is stripped from the path; `None` if the route was found by a prefix.
    pub(crate) fn prefix(&self, path: &str) -> Option<HeaderValue> {
        let prefix = path.get(..self.name_bytes).filter(|prefix| !prefix.is_empty())?;
        match &self.route.prefix {
            Some(value) if value == prefix => Some(value.clone()),
            // The request spells the name in another percent-encoding.
            _ => HeaderValue::from_str(prefix).ok(),
        }
    }
}

/// All routes of one state of the provider table.
#[derive(Default, Debug)]
pub(crate) struct Routes {
    hosts: HashMap<String, Prefixes>,
    prefixes: Prefixes,
    services: BTreeMap<String, Arc<Route>>,
    all: BTreeMap<Key, Arc<Route>>,
    endpoints: BTreeMap<(NodeId, String), Arc<Endpoint>>,
    /// Instances that the address policy forbids. The provider table bounds their number.
    forbidden: BTreeSet<(NodeId, String)>,
    /// The first few unusable tags and instances.
    pub(crate) ignored: Vec<Ignored>,
    /// Number of unusable tags and instances.
    pub(crate) ignored_count: u64,
    /// The first few routes that several services announce.
    pub(crate) conflicts: Vec<Conflict>,
    /// Number of routes that several services announce.
    pub(crate) conflicts_count: u64,
}

impl Routes {
    /// Returns the routes for a new state of the provider table. Known endpoints are kept, with their latency
    /// and failures. Endpoints that are no longer listed are marked as gone.
    #[must_use]
    pub(crate) fn updated(&self, providers: &[Arc<Provider>], policy: &GatewayPolicy, now_ms: u64) -> Self {
        let mut updated = Self::default();
        let mut building: BTreeMap<Key, Route> = BTreeMap::new();
        for provider in providers {
            let endpoint = self.endpoint(provider, policy);
            for (key, options, covers_built_in) in updated.announced(provider, policy) {
                let route =
                    building.entry(key).or_insert_with(|| Route { covers_built_in, ..Route::default() });
                // The route covers paths of built-in roles only if each of its instances may.
                route.covers_built_in &= covers_built_in;
                match &endpoint {
                    Ok(endpoint) => route.group.add(Arc::clone(endpoint), provider, options),
                    Err(_) => route.group.unusable += 1,
                }
            }
            let id = (provider.node_id, provider.id.clone());
            match endpoint {
                Ok(endpoint) => _ = updated.endpoints.insert(id, endpoint),
                Err(unusable) => {
                    updated.ignore(provider.instance.url.clone(), provider, unusable.reason());
                    if let Unusable::Forbidden(rule) = unusable {
                        // Counted once, although each update checks the instance again.
                        if !self.forbidden.contains(&id) {
                            policy.count(rule);
                        }
                        updated.forbidden.insert(id);
                    }
                }
            }
        }
        updated.find_conflicts(&building);
        self.keep_lost(&mut building, now_ms);
        for (key, mut route) in building {
            if let Key::Service(name) = &key {
                route.prefix = HeaderValue::from_str(&format!("/{name}")).ok();
            }
            updated.insert(key, Arc::new(route));
        }
        for (id, endpoint) in &self.endpoints {
            if updated.endpoints.get(id).is_none_or(|now| !Arc::ptr_eq(now, endpoint)) {
                endpoint.mark_gone();
            }
        }
        updated
    }

    /// Returns the routes of an instance, and whether each covers paths of built-in roles. Unusable tags are
    /// ignored.
    fn announced(
        &mut self,
        provider: &Provider,
        policy: &GatewayPolicy,
    ) -> Vec<(Key, Arc<RouteOptions>, bool)> {
        let instance = &provider.instance;
        let mut routes = Vec::new();
        if !provider.is_role() && is_built_in_role(&instance.service) {
            let reason = "a program has the name of a built-in role";
            self.ignore(instance.service.clone(), provider, reason);
        } else {
            routes.push((Key::Service(instance.service.clone()), Arc::default(), false));
        }
        for tag in &instance.tags {
            let Some(parsed) = RouteTag::parse(tag) else { continue };
            let allowed =
                parsed.and_then(|route| Ok((may_announce(provider, &route, policy.route_rules())?, route)));
            match allowed {
                Ok((covers_built_in, route)) => {
                    let options = Arc::new(RouteOptions::of(&route));
                    routes.push((Key::Prefix(route.host, route.prefix), options, covers_built_in));
                }
                Err(reason) => self.ignore(tag.clone(), provider, reason),
            }
        }
        routes
    }

    /// Returns the endpoint of an instance: the known one, or a new one.
    fn endpoint(&self, provider: &Provider, policy: &GatewayPolicy) -> Result<Arc<Endpoint>, Unusable> {
        let new = Endpoint::new(provider, policy)?;
        match self.endpoints.get(&(provider.node_id, provider.id.clone())) {
            Some(known) if known.is_same(&new) => Ok(Arc::clone(known)),
            _ => Ok(Arc::new(new)),
        }
    }

    /// Keeps the routes that lost their last instance now or recently.
    fn keep_lost(&self, building: &mut BTreeMap<Key, Route>, now_ms: u64) {
        let lost = self.all.iter().filter(|(key, _)| !building.contains_key(key)).map(|(key, route)| {
            let gone_ms = route.group.gone_ms.unwrap_or(now_ms);
            let group = Group { gone_ms: Some(gone_ms), ..Group::default() };
            (key.clone(), Route { group, prefix: None, covers_built_in: route.covers_built_in })
        });
        let is_recent = |gone_ms: Option<u64>| {
            gone_ms.is_some_and(|at| u128::from(now_ms.saturating_sub(at)) < KEPT.as_millis())
        };
        let mut lost: Vec<_> = lost.filter(|(_, route)| is_recent(route.group.gone_ms)).collect();
        lost.sort_by_key(|(_, route)| std::cmp::Reverse(route.group.gone_ms));
        building.extend(lost.into_iter().take(KEPT_MAX));
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

    fn ignore(&mut self, subject: String, provider: &Provider, reason: impl Into<Cow<'static, str>>) {
        self.ignored_count += 1;
        if self.ignored.len() < IGNORED_MAX {
            let (service, node) = (provider.instance.service.clone(), provider.node.clone());
            self.ignored.push(Ignored { subject, service, node, reason: reason.into() });
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

    /// Whether the address policy forbids an instance. The policy changes with the addresses of members.
    pub(crate) fn has_forbidden(&self) -> bool {
        !self.forbidden.is_empty()
    }

    /// Finds the route of a request. `host` has no port; `path` begins with a slash.
    pub(crate) fn find(&self, host: &str, path: &str) -> Option<Found<'_>> {
        if !self.hosts.is_empty() {
            let of_host = self.hosts.get(host).or_else(|| self.hosts.get(&host.to_ascii_lowercase()));
            if let Some(found) =
                of_host.and_then(|of_host| of_host.longest(path).or_else(|| of_host.default_route()))
            {
                let of_role = || owner_of(path).and_then(|_| self.prefixes.longest(path));
                let found = if found.covers_built_in { found } else { of_role().unwrap_or(found) };
                return Some(by_prefix(found));
            }
        }
        if let Some(found) = self.prefixes.longest(path) {
            return Some(by_prefix(found));
        }
        let rest = path.get(1..)?;
        let name = &rest[..memchr::memchr(b'/', rest.as_bytes()).unwrap_or(rest.len())];
        let encoded = || decoded(name).and_then(|name| self.services.get(&*name));
        match self.services.get(name).or_else(encoded) {
            Some(route) => Some(Found { route, name_bytes: 1 + name.len() }),
            None => self.prefixes.default_route().map(by_prefix),
        }
    }

    /// Whether the operator has given the route of this host and path to a service, including the paths of
    /// built-in roles.
    pub(crate) fn is_given_by_operator(&self, host: &str, path: &str) -> bool {
        self.find(host, path).is_some_and(|found| found.route.covers_built_in)
    }

    /// Whether a service has a healthy instance.
    pub(crate) fn has_healthy(&self, service: &str) -> bool {
        self.services.get(service).is_some_and(|route| !route.group.healthy.is_empty())
    }

    /// Returns all routes by their keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &Arc<Route>)> {
        self.all.iter()
    }

    /// Returns all endpoints.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.values()
    }
}

fn is_built_in_role(service: &str) -> bool {
    BUILT_IN.iter().any(|(role, _)| *role == service)
}

impl Group {
    /// Whether the group has instances, and all of them are roles.
    pub(crate) fn is_of_roles(&self) -> bool {
        self.has_roles && self.members.iter().all(|member| member.endpoint.is_role())
    }

    fn add(&mut self, endpoint: Arc<Endpoint>, provider: &Arc<Provider>, options: Arc<RouteOptions>) {
        // An instance may announce a prefix twice; the first tag counts.
        if self.members.last().is_some_and(|last| Arc::ptr_eq(&last.endpoint, &endpoint)) {
            return;
        }
        if provider.instance.health != Health::Critical {
            self.healthy.push(self.members.len());
        }
        self.has_roles |= endpoint.is_role();
        self.members.push(Member { endpoint, provider: Arc::clone(provider), options });
    }
}

fn by_prefix(route: &Arc<Route>) -> Found<'_> {
    Found { route, name_bytes: 0 }
}

/// Decodes a percent-encoded segment. `None`: it is not encoded, or not UTF-8.
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
