//! Which addresses the gateway connects to, and which paths of a node it asks for.
//!
//! Any program that may register, and any member, says where its instances are. The gateway would bring its
//! clients there, so each address is judged by the [address policy](crate::address_policy): when the instance
//! is learnt, so that `/gateway` shows what is ignored and why, and again at each connect, when names are
//! resolved and the cluster may have changed.
//!
//! A role is served by the HTTP of its node, which serves more than that role. So a role is asked for the
//! paths under its own prefixes alone, whatever is taken off a request's path.

use std::{borrow::Cow, net::SocketAddr, sync::Arc};

use hearsay_protocol::record::Instance;

use super::{announced::Announced, options::GatewayOptions, ownership::RouteRule};
use crate::{
    address_policy::{AddressPolicy, Forbidden, InstanceAddress},
    prefixes::{BUILT_IN, RESERVED, covers},
};

/// The policy. Clones share what is counted.
#[derive(Clone, Debug)]
pub struct GatewayPolicy {
    addresses: AddressPolicy,
    options: Arc<GatewayOptions>,
}

impl GatewayPolicy {
    /// The node's policy, narrowed by what the operator says.
    pub fn new(addresses: AddressPolicy, options: GatewayOptions) -> Self {
        Self { addresses, options: Arc::new(options) }
    }

    /// Judges a resolved address of an instance.
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn check(&self, at: InstanceAddress<'_>, target: SocketAddr) -> Result<(), Forbidden> {
        self.addresses.check_instance(at, target)?;
        let (ip, allowed) = (target.ip().to_canonical(), &self.options.allow);
        let is_allowed = at.is_role || allowed.is_empty() || allowed.iter().any(|range| range.contains(ip));
        if is_allowed { Ok(()) } else { Err(Forbidden::NotAllowed(ip)) }
    }

    /// Which services may announce which routes.
    pub fn route_rules(&self) -> &[RouteRule] {
        &self.options.routes
    }

    /// Counts a refusal.
    pub fn count(&self, refusal: Forbidden) {
        self.addresses.count(refusal);
    }
}

/// The prefixes of the paths that a role is asked for: those that the built-in role has, or else those that
/// the instance announces, as they are when their `strip=` has been applied. The paths of the node itself,
/// and of built-in roles, are never among the latter.
pub fn role_paths(instance: &Instance) -> Box<[Cow<'static, str>]> {
    if let Some((_, prefixes)) = BUILT_IN.iter().find(|(role, _)| *role == instance.service) {
        return prefixes.iter().map(|prefix| Cow::Borrowed(*prefix)).collect();
    }
    let announced = instance.tags.iter().filter_map(|tag| Announced::read(tag)?.ok());
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
    use crate::{gateway::fixture::provider, testing::lenient_policy};

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
    fn a_role_has_the_paths_that_it_announces_and_none_of_the_nodes() {
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
