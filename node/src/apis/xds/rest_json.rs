//! Resources as JSON (proto3's JSON form), for discovery by REST. The content is that of the messages in
//! `cluster`, `assignment`, `listener` and `routes`.

use serde_json::{Map, Value, json};

use super::{
    assignment::{Group, group},
    catalog::{Catalog, Service},
    cluster::{CONCURRENCY_MAX, CONNECT_TIMEOUT_S, PROTOCOL_OPTIONS},
    endpoint::{Endpoint, Traits, Usability},
    kind::Kind,
    listener::{ROUTER, service_of},
    routes::{
        ALL_SERVICES, BACK_OFF_MS, HOST_CHOICES, Host, PREVIOUS_HOSTS, Path, RETRIES, RETRY_ON,
        host_of_service, hosts_of_all,
    },
};

/// Prefix of the types of messages.
const TYPES: &str = "type.googleapis.com/envoy";

/// Returns a resource with its `@type`; `None` if there is none of this name.
pub(super) fn resource_json(
    catalog: &Catalog,
    kind: Kind,
    name: &str,
    client: RestClient<'_>,
) -> Option<Value> {
    let service = catalog.service(name);
    let mut json = match (kind, service) {
        (Kind::Clusters, Some(service)) => cluster(name, service.traits, client.host),
        (Kind::Endpoints, service) => assignment(name, service, catalog, client.zone),
        (Kind::Listeners, _) if catalog.service(service_of(name)).is_some() => listener(name, client.host),
        (Kind::Routes, Some(_)) => routes(name, vec![host_of_service(name)]),
        (Kind::Routes, None) if name == ALL_SERVICES => {
            routes(name, hosts_of_all(catalog.names().map(AsRef::as_ref)))
        }
        _ => return None,
    };
    json["@type"] = kind.url().into();
    Some(json)
}

/// Returns the source of further resources: the same interface, at the client's cluster of this name. Envoy
/// sends the name of the cluster as the host of a request, so the host of the request names the cluster.
fn by_rest(host: &str) -> Value {
    let source = json!({
        "api_type": "REST",
        "transport_api_version": "V3",
        "cluster_names": [host],
        "refresh_delay": "1s",
        "request_timeout": "5s",
    });
    json!({"api_config_source": source, "resource_api_version": "V3"})
}

/// The client of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct RestClient<'a> {
    /// Zone; empty: none.
    pub(super) zone: &'a str,
    /// Host of the request.
    pub(super) host: &'a str,
}

fn cluster(name: &str, traits: Traits, host: &str) -> Value {
    let mut options = Map::new();
    if traits.is_http2 {
        let http2 = json!({
            "@type": format!("{TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": {"http2_protocol_options": {}},
        });
        options.insert(PROTOCOL_OPTIONS.into(), http2);
    }
    json!({
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": by_rest(host)},
        "connect_timeout": format!("{CONNECT_TIMEOUT_S}s"),
        "lb_policy": if traits.is_least_request { "LEAST_REQUEST" } else { "ROUND_ROBIN" },
        "circuit_breakers": {"thresholds": [{
            "max_connections": CONCURRENCY_MAX,
            "max_pending_requests": CONCURRENCY_MAX,
            "max_requests": CONCURRENCY_MAX,
            "max_retries": CONCURRENCY_MAX,
        }]},
        "common_lb_config": {"healthy_panic_threshold": {"value": 0.0}},
        "ignore_health_on_host_removal": true,
        "typed_extension_protocol_options": options,
    })
}

fn assignment(name: &str, service: Option<&Service>, catalog: &Catalog, zone: &str) -> Value {
    let endpoints = service.map_or(&[][..], |service| &service.endpoints);
    let localities: Vec<Value> = group(endpoints, catalog.zones(), zone).into_iter().map(locality).collect();
    json!({"cluster_name": name, "endpoints": localities})
}

fn locality(group: Group<'_>) -> Value {
    let endpoints: Vec<Value> =
        group.endpoints.iter().map(|(endpoint, weight)| lb_endpoint(endpoint, *weight)).collect();
    json!({
        "locality": {"zone": group.zone, "sub_zone": group.sub_zone},
        "lb_endpoints": endpoints,
        "load_balancing_weight": group.weight,
        "priority": group.priority,
    })
}

fn lb_endpoint(endpoint: &Endpoint, weight: u32) -> Value {
    let health = match endpoint.usability {
        Usability::Healthy => "HEALTHY",
        Usability::Draining => "DRAINING",
        Usability::Unhealthy => "UNHEALTHY",
    };
    let (ip, port) = (endpoint.address.ip().to_string(), endpoint.address.port());
    json!({
        "endpoint": {"address": {"socket_address": {"address": ip, "port_value": port}}},
        "health_status": health,
        "load_balancing_weight": weight,
    })
}

fn listener(name: &str, host: &str) -> Value {
    let manager = json!({
        "@type": format!("{TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": service_of(name),
        "rds": {"config_source": by_rest(host), "route_config_name": service_of(name)},
        "http_filters": [{
            "name": ROUTER,
            "typed_config": {"@type": format!("{TYPES}.extensions.filters.http.router.v3.Router")},
        }],
    });
    json!({"name": name, "api_listener": {"api_listener": manager}})
}

fn routes(name: &str, hosts: Vec<Host>) -> Value {
    let hosts: Vec<Value> = hosts.iter().map(virtual_host).collect();
    json!({"name": name, "virtual_hosts": hosts, "ignore_port_in_host_matching": true})
}

fn virtual_host(host: &Host) -> Value {
    let routes: Vec<Value> = host.paths.iter().map(route).collect();
    let previous_hosts = format!("{TYPES}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate");
    json!({
        "name": host.name,
        "domains": host.domains,
        "routes": routes,
        "retry_policy": {
            "retry_on": RETRY_ON,
            "num_retries": RETRIES,
            "retry_back_off": {
                "base_interval": seconds(BACK_OFF_MS.0),
                "max_interval": seconds(BACK_OFF_MS.1),
            },
            "retry_host_predicate": [{"name": PREVIOUS_HOSTS, "typed_config": {"@type": previous_hosts}}],
            // A 64-bit number, which proto3's JSON form writes as text.
            "host_selection_retry_max_attempts": HOST_CHOICES.to_string(),
        },
    })
}

fn seconds(ms: i32) -> String {
    format!("0.{ms:03}s")
}

fn route(path: &Path) -> Value {
    let matched = if path.is_prefix { json!({"prefix": path.path}) } else { json!({"path": path.path}) };
    let mut action = json!({"cluster": path.cluster, "timeout": "0s"});
    if path.is_stripped {
        action["prefix_rewrite"] = "/".into();
    }
    json!({"match": matched, "route": action})
}
