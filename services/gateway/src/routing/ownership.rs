//! Decides which services may announce routes for which hosts and paths: the paths of built-in roles are
//! reserved for these roles, and the operator may set rules ([`RouteRule`], `--gateway-routes`).
//!
//! | path | announced by |
//! | --- | --- |
//! | below a prefix of a built-in role (`/students`, `/log`), with a host or without | the instances of that role, and a service that `--gateway-routes` names for it |
//! | any other | every service; with `--gateway-routes`, those that it names |
//!
//! A request with a cookie or a grade must not reach a program that merely announces a longer prefix. For the
//! same reason a shorter prefix with a host, such as `school.example/`, does not cover the paths of built-in
//! roles. It covers them only if the operator has given that host to the service.

use std::str::FromStr;

use hearsay_protocol::{Provider, check_service_name};
use hearsay_services::http::{BUILT_IN, covers, is_sign_in};

use crate::routing::route_tags::RouteTag;

/// A value of `--gateway-routes`: `SERVICE=[HOST]/PREFIX`. It permits all routes below the prefix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteRule {
    /// The service that the rule permits; `None`, written `*`, for every service.
    service: Option<String>,
    host: HostRule,
    prefix: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum HostRule {
    /// Routes without a host.
    Unnamed,
    /// Routes of this host.
    Named(String),
    /// `*`: routes with any host, and those without.
    Any,
}

impl RouteRule {
    fn permits(&self, service: &str, tag: &RouteTag) -> bool {
        let is_host = match &self.host {
            HostRule::Any => true,
            HostRule::Unnamed => tag.host.is_none(),
            HostRule::Named(host) => tag.host.as_ref() == Some(host),
        };
        self.service.as_ref().is_none_or(|named| named == service)
            && is_host
            && covers(&self.prefix, &tag.prefix)
    }

    /// Whether the rule covers paths of built-in roles: its prefix is such a path, or it names a host. A rule
    /// with a host gives all paths of that host to the service.
    fn names_built_in(&self) -> bool {
        matches!(self.host, HostRule::Named(_)) || owner_of(&self.prefix).is_some()
    }
}

impl FromStr for RouteRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "{text:?}: {why}; write SERVICE=HOST/PREFIX, SERVICE=/PREFIX or SERVICE=*/PREFIX, such as web=www.example.com/"
            )
        };
        let (service, route) = text.split_once('=').ok_or_else(|| wrong("it has no ="))?;
        let service = match service.trim() {
            "*" => None,
            name => {
                check_service_name("service", name).map_err(|invalid| wrong(&invalid.to_string()))?;
                Some(name.to_owned())
            }
        };
        let route = route.trim();
        let (any_host, route) = match route.strip_prefix('*') {
            Some(rest) => (true, rest),
            None => (false, route),
        };
        if any_host && !route.starts_with('/') {
            return Err(wrong("a host is a whole name or *"));
        }
        let tag = RouteTag::parse(&format!("urlprefix-{route}")).unwrap_or(Err("it is no route"));
        let RouteTag { host, prefix, .. } = tag.map_err(wrong)?;
        let host = match (any_host, host) {
            (true, _) => HostRule::Any,
            (false, Some(host)) => HostRule::Named(host),
            (false, None) => HostRule::Unnamed,
        };
        Ok(Self { service, host, prefix })
    }
}

/// Returns the built-in role that owns a path. The gateway owns the sign-in pages.
pub(crate) fn owner_of(path: &str) -> Option<&'static str> {
    if is_sign_in(path) {
        return Some("gateway");
    }
    let mut roles = BUILT_IN.iter();
    roles.find(|(_, prefixes)| prefixes.iter().any(|prefix| covers(prefix, path))).map(|(role, _)| *role)
}

/// Checks whether these rules let an instance announce a route. Returns whether the route may cover paths of
/// built-in roles.
///
/// # Errors
/// The reason why the instance may not announce it.
pub(crate) fn may_announce(
    provider: &Provider,
    tag: &RouteTag,
    rules: &[RouteRule],
) -> Result<bool, &'static str> {
    let service = &provider.instance.service;
    let owner = owner_of(&tag.prefix);
    if owner == Some(service.as_str()) && provider.is_role() && !is_sign_in(&tag.prefix) {
        return Ok(true);
    }
    let mut permitting = rules.iter().filter(|rule| rule.permits(service, tag)).peekable();
    let is_permitted = permitting.peek().is_some();
    match permitting.any(RouteRule::names_built_in) {
        true => Ok(true),
        false if owner.is_some() => {
            Err("its path belongs to a built-in role; only instances of that role may announce it")
        }
        false if !rules.is_empty() && !is_permitted => {
            Err("--gateway-routes does not name this service for it")
        }
        false => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::provider;

    fn rules(texts: &[&str]) -> Vec<RouteRule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn judged(service: &str, role: bool, tag: &str, texts: &[&str]) -> Result<bool, &'static str> {
        let provider = Provider { role, ..provider(service, "a", "http://10.0.0.1:1", &[]) };
        may_announce(&provider, &RouteTag::parse(tag).unwrap().unwrap(), &rules(texts))
    }

    #[test]
    fn the_paths_of_a_built_in_role_are_announced_by_its_instances_alone() {
        assert_eq!(judged("grading", true, "urlprefix-/students", &[]), Ok(true));
        assert_eq!(judged("grading", true, "urlprefix-school.example/students", &[]), Ok(true));
        for tag in [
            "urlprefix-/students",
            "urlprefix-/students/1",
            "urlprefix-10.77.0.1/students",
            "urlprefix-localhost/log",
            "urlprefix-/records/9 strip=/records",
        ] {
            for (service, role) in [("web", false), ("grading", false), ("other", true), ("visits", true)] {
                assert!(
                    judged(service, role, tag, &[]).unwrap_err().contains("built-in role"),
                    "{service} {tag}"
                );
            }
        }
        for tag in ["urlprefix-/login", "urlprefix-school.example/logout/x"] {
            for (service, role) in [("gateway", true), ("gateway", false), ("web", false)] {
                assert!(judged(service, role, tag, &[]).is_err(), "{service} {tag}");
            }
        }
        assert_eq!(judged("web", false, "urlprefix-/login", &["web=/login"]), Ok(true));
        for tag in ["urlprefix-/studentship", "urlprefix-/", "urlprefix-10.77.0.1/", "urlprefix-/a/students"]
        {
            assert_eq!(judged("web", false, tag, &[]), Ok(false), "{tag}");
        }
    }

    #[test]
    fn with_rules_only_what_they_name_is_announced() {
        let texts = ["web=www.example.com/", "shop=/shop", "*=*/public", "old=/students/old"];
        for (service, tag, expected) in [
            ("web", "urlprefix-www.example.com/a", Ok(true)),
            ("web", "urlprefix-www.example.com/students", Ok(true)),
            ("web", "urlprefix-other.example/a", Err(())),
            ("web", "urlprefix-/a", Err(())),
            ("shop", "urlprefix-/shop/1", Ok(false)),
            ("shop", "urlprefix-/shopping", Err(())),
            ("shop", "urlprefix-shop.example/shop", Err(())),
            ("any", "urlprefix-/public", Ok(false)),
            ("any", "urlprefix-any.example/public/x", Ok(false)),
            ("old", "urlprefix-/students/old/1", Ok(true)),
            ("old", "urlprefix-/students", Err(())),
        ] {
            assert_eq!(judged(service, false, tag, &texts).map_err(|_| ()), expected, "{service} {tag}");
        }
        assert_eq!(judged("grading", true, "urlprefix-/students", &texts), Ok(true), "its own path");
    }

    #[test]
    fn a_rule_that_is_none_says_how_to_write_one() {
        for text in ["web", "=/a", "a/b=/a", "web=host", "web=*x/a", "web=*.example/", "web=/a/../b", "web="]
        {
            let error = text.parse::<RouteRule>().unwrap_err();
            assert!(error.contains("SERVICE=HOST/PREFIX") && error.contains(text), "{error}");
        }
    }
}
