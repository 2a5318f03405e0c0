//! `RouteConfiguration`: the routes to one service; and [`ALL_SERVICES`], the routes to all services by host
//! and by path.

use std::collections::BTreeMap;

use envoy_types::pb::{
    envoy::{
        config::route::v3::{
            RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
            retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate},
            route::Action,
            route_action::ClusterSpecifier,
            route_match::PathSpecifier,
        },
        extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate,
    },
    google::protobuf::{Duration, UInt32Value},
};
use hearsay_protocol::dns_label;

use super::encoding::any;

/// Name of the routes to all services. No service can have this name, because of the slash.
pub(super) const ALL_SERVICES: &str = "hearsay/services";

/// When Envoy repeats a request at another endpoint: only where the first one cannot have received it. gRPC
/// ignores conditions that it does not know.
pub(super) const RETRY_ON: &str = "connect-failure,refused-stream,reset-before-request";
/// Repetitions of a request.
pub(super) const RETRIES: u32 = 3;
/// Pause before the first repetition, and the longest one, in milliseconds. Nothing was sent, so the next
/// endpoint can be tried at once.
pub(super) const BACK_OFF_MS: (i32, i32) = (5, 50);
/// Attempts to choose an endpoint that has not been tried.
pub(super) const HOST_CHOICES: i64 = 5;
/// Name of the extension that avoids endpoints that have been tried.
pub(super) const PREVIOUS_HOSTS: &str = "envoy.retry_host_predicates.previous_hosts";

/// Suffixes of the names of a service as virtual hosts, besides the name itself.
const DOMAIN_SUFFIXES: [&str; 4] = ["", ".hearsay", ".service.hearsay", ".service.consul"];

/// A virtual host: its name, its domains, and its routes as pairs of a path and the path in its place.
pub(super) struct Host {
    pub(super) name: String,
    pub(super) domains: Vec<String>,
    pub(super) paths: Vec<Path>,
}

/// A route of a virtual host.
pub(super) struct Path {
    /// Matches requests whose path begins with this, or that have this path.
    pub(super) path: String,
    pub(super) is_prefix: bool,
    /// Whether `/` takes the place of the path.
    pub(super) is_stripped: bool,
    pub(super) cluster: String,
}

impl Path {
    fn every(cluster: &str) -> Self {
        Self { path: "/".into(), is_prefix: true, is_stripped: false, cluster: cluster.into() }
    }
}

/// Returns the virtual host of the routes to one service. It has every domain, because a gRPC client looks
/// for the authority of its channel.
pub(super) fn host_of_service(name: &str) -> Host {
    Host { name: name.to_owned(), domains: vec!["*".into()], paths: vec![Path::every(name)] }
}

/// Returns the virtual hosts of the routes to all services: one for each service, and a last one that chooses
/// the service by the first segment of the path, as Hearsay's gateway does.
pub(super) fn hosts_of_all<'a>(services: impl Iterator<Item = &'a str>) -> Vec<Host> {
    let (mut labels, mut paths) = (BTreeMap::new(), Vec::new());
    for name in services {
        // Envoy refuses routes in which two virtual hosts have one domain. Of services with one label, the
        // one of that name has it, else the first one, as in DNS.
        if let Some(label) = dns_label(name) {
            let is_own = label == name;
            let holder = labels.entry(label).or_insert(name);
            if is_own {
                *holder = name;
            }
        }
        // A client cannot send a space in a path.
        let segment = name.replace(' ', "%20");
        for (path, is_prefix) in [(format!("/{segment}/"), true), (format!("/{segment}"), false)] {
            paths.push(Path { path, is_prefix, is_stripped: true, cluster: name.to_owned() });
        }
    }
    let host_of = |(label, name): (String, &str)| Host {
        name: name.to_owned(),
        domains: DOMAIN_SUFFIXES.iter().map(|suffix| format!("{label}{suffix}")).collect(),
        paths: vec![Path::every(name)],
    };
    let mut hosts: Vec<Host> = labels.into_iter().map(host_of).collect();
    hosts.push(Host { name: "by path".to_owned(), domains: vec!["*".into()], paths });
    hosts
}

/// Returns a route configuration.
pub(super) fn route_configuration(name: &str, hosts: Vec<Host>) -> RouteConfiguration {
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: hosts.into_iter().map(virtual_host).collect(),
        ignore_port_in_host_matching: true,
        ..RouteConfiguration::default()
    }
}

fn virtual_host(host: Host) -> VirtualHost {
    VirtualHost {
        name: host.name,
        domains: host.domains,
        routes: host.paths.into_iter().map(route).collect(),
        retry_policy: Some(retry_policy()),
        ..VirtualHost::default()
    }
}

fn route(path: Path) -> Route {
    let matched =
        if path.is_prefix { PathSpecifier::Prefix(path.path) } else { PathSpecifier::Path(path.path) };
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(path.cluster)),
        prefix_rewrite: if path.is_stripped { "/".into() } else { String::new() },
        // Event streams and long polls last; the client decides how long it waits.
        timeout: Some(Duration { seconds: 0, nanos: 0 }),
        ..RouteAction::default()
    };
    Route {
        r#match: Some(RouteMatch { path_specifier: Some(matched), ..RouteMatch::default() }),
        action: Some(Action::Route(action)),
        ..Route::default()
    }
}

fn milliseconds(ms: i32) -> Duration {
    Duration { seconds: 0, nanos: ms * 1_000_000 }
}

fn retry_policy() -> RetryPolicy {
    let previous_hosts = RetryHostPredicate {
        name: PREVIOUS_HOSTS.into(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(any(&PreviousHostsPredicate {}))),
    };
    RetryPolicy {
        retry_on: RETRY_ON.into(),
        num_retries: Some(UInt32Value { value: RETRIES }),
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(milliseconds(BACK_OFF_MS.0)),
            max_interval: Some(milliseconds(BACK_OFF_MS.1)),
        }),
        retry_host_predicate: vec![previous_hosts],
        host_selection_retry_max_attempts: HOST_CHOICES,
        ..RetryPolicy::default()
    }
}
