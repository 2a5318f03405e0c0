//! [`GatewayPolicy`]: which addresses of instances the gateway may connect to. [`role_paths`]: the path
//! prefixes for which it sends requests to a role (plug-in), so that it reaches nothing else of the node.
//!
//! Programs and members state their own addresses, and the gateway sends its clients' requests there. So the
//! [address policy](AddressPolicy) checks each address twice. The check when an instance is added lets
//! `/gateway` show which instances are ignored, and why. The check before each connection is needed because
//! names are resolved only then, and the cluster may have changed.
//!
//! A role is served by the HTTP of its node, which serves more than that role. So a role gets only requests
//! for paths below its own prefixes, checked after a prefix was stripped.

use std::{borrow::Cow, net::SocketAddr, sync::Arc};

use hearsay_protocol::Instance;
use hearsay_services::{
    http::{BUILT_IN, RESERVED, covers},
    network::{AddressPolicy, Forbidden, InstanceAddress},
};

use crate::routing::{options::GatewayOptions, ownership::RouteRule, route_tags::RouteTag};

/// The policy of the gateway. Clones share its counters.
#[derive(Clone, Debug)]
pub(crate) struct GatewayPolicy {
    addresses: AddressPolicy,
    options: Arc<GatewayOptions>,
}

impl GatewayPolicy {
    /// Returns the node's policy, narrowed by the options of the gateway.
    pub(crate) fn new(addresses: AddressPolicy, options: GatewayOptions) -> Self {
        Self { addresses, options: Arc::new(options) }
    }

    /// Checks a resolved address of an instance.
    ///
    /// # Errors
    /// The rule that refuses it.
    pub(crate) fn check(&self, at: InstanceAddress<'_>, target: SocketAddr) -> Result<(), Forbidden> {
        self.addresses.check_instance(at, target)?;
        let (ip, allowed) = (target.ip().to_canonical(), &self.options.allow);
        let is_allowed = at.is_role || allowed.is_empty() || allowed.iter().any(|range| range.contains(ip));
        if is_allowed { Ok(()) } else { Err(Forbidden::NotAllowed(ip)) }
    }

    /// Returns the rules for the announcement of routes.
    pub(crate) fn route_rules(&self) -> &[RouteRule] {
        &self.options.routes
    }

    /// Counts a refusal.
    pub(crate) fn count(&self, refusal: Forbidden) {
        self.addresses.count(refusal);
    }
}

/// Returns the prefixes of the paths that a role gets. A built-in role has fixed ones. Another role gets
/// those that its instance announces, after `strip=`, but never paths of the node itself or of built-in
/// roles.
pub(crate) fn role_paths(instance: &Instance) -> Box<[Cow<'static, str>]> {
    if let Some((_, prefixes)) = BUILT_IN.iter().find(|(role, _)| *role == instance.service) {
        return prefixes.iter().map(|prefix| Cow::Borrowed(*prefix)).collect();
    }
    let announced = instance.tags.iter().filter_map(|tag| RouteTag::parse(tag)?.ok());
    let of_others = || RESERVED.iter().chain(BUILT_IN.iter().flat_map(|(_, prefixes)| prefixes.iter()));
    announced
        .filter_map(|tag| {
            let rest = tag.prefix.get(tag.strip.as_ref().map_or(0, String::len)..)?;
            let is_own = !rest.is_empty() && !of_others().any(|other| covers(other, rest));
            is_own.then(|| Cow::Owned(rest.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::provider;
    use hearsay_services::testing::lenient_policy;

    #[test]
    fn gateway_allow_narrows_programs_and_not_roles() {
        let options =
            GatewayOptions { allow: vec!["10.77.0.0/16".parse().unwrap()], ..GatewayOptions::default() };
        let policy = GatewayPolicy::new(lenient_policy(), options);
        let rule = |is_role, ip: &str| {
            let at = InstanceAddress { node_id: provider("web", "a", "", &[]).node_id, is_role, host: ip };
            let target = SocketAddr::new(ip.parse().unwrap(), 80);
            policy.check(at, target).map_or_else(Forbidden::rule, |()| "allowed")
        };
        for (is_role, ip, expected) in [
            (false, "10.77.0.1", "allowed"),
            (false, "10.78.0.1", "not_allowed"),
            (true, "10.78.0.1", "allowed"),
            (false, "169.254.169.254", "link_local"),
        ] {
            assert_eq!(rule(is_role, ip), expected, "{ip} {is_role}");
        }
    }

    #[test]
    fn a_role_gets_the_paths_that_it_announces_and_none_of_the_nodes() {
        let paths =
            |service: &str, tags: &[&str]| role_paths(&provider(service, "a", "", tags).instance).join(" ");
        assert_eq!(paths("grading", &["urlprefix-/v1"]), "/students");
        assert_eq!(paths("log", &[]), "/log /records");
        let tags = ["urlprefix-/mine", "urlprefix-shop.test/api/books strip=/api", "urlprefix-/", "v2"];
        assert_eq!(paths("mine", &tags), "/mine /books");
        for tag in ["urlprefix-/v1/agent", "urlprefix-/x/services strip=/x", "urlprefix-/x strip=/x"] {
            assert_eq!(paths("mine", &[tag]), "", "{tag}");
        }
        assert_eq!(paths("mine", &["urlprefix-/students/1"]), "", "another role's");
    }
}
