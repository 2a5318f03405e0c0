//! Tests of xDS streams against a provider table: resources, subscriptions, acknowledgements and bounds.

use std::{collections::BTreeMap, sync::Arc};

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{Cluster, cluster::LbPolicy},
        core::v3::{HealthStatus, Locality, address, socket_address::PortSpecifier},
        endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier},
        listener::v3::Listener,
        route::v3::RouteConfiguration,
    },
    extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, http_connection_manager::RouteSpecifier,
    },
    service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse},
};
use hearsay_protocol::{
    Change, CheckSummary, Health, Incarnation, Index, Instance, Member, MemberState, NodeId, Origin,
    ProviderTable, Time, Version,
};
use prost::Message as _;
use tokio::time::Instant;

use super::{
    catalog::{Catalog, LINGER},
    delta::Delta,
    kind::Kind,
    request::{self, DeltaDiscoveryRequest, DiscoveryRequest, ErrorDetail, Node},
    rest_json::{RestClient, resource_json},
    routes::ALL_SERVICES,
    state_of_the_world::StateOfTheWorld,
    stream::{Received, Session},
    subscription::NAMES_MAX,
};

mod catalog;

pub(super) fn node(n: u8) -> NodeId {
    NodeId::from_public_key([n; 32])
}

/// Priority, zone and sub-zone, weight, and endpoints as port, health and weight.
type LocalityOf = (u32, String, u32, Vec<(u32, HealthStatus, u32)>);

/// Returns the change by which a node joins.
pub(super) fn joined(n: u8, zone: &str, rtt_ms: Option<u64>) -> Change {
    let member = Member {
        id: node(n),
        name: format!("n{n}"),
        state: MemberState::Alive,
        roles: vec![],
        addresses: vec![format!("/ip4/10.77.0.{n}/tcp/7600")],
        http: Some(format!("10.77.0.{n}:7500")),
        grpc: None,
        zone: Some(zone.into()),
        software: String::new(),
        protocol: 3,
        ephemeral: false,
        incarnation: Incarnation(1),
        version: Version(1),
        since: Time::ZERO,
        rtt: rtt_ms.map(std::time::Duration::from_millis),
        rank: 0,
        namesake: false,
    };
    Change::Member(Box::new(member))
}

/// Returns the change that adds an instance of a service to a node.
pub(super) fn offered(n: u8, service: &str, change: impl FnOnce(&mut Instance)) -> Change {
    let mut instance = Instance {
        service: service.into(),
        address: format!("10.77.1.{n}"),
        port: 8000,
        url: format!("http://10.77.1.{n}:8000"),
        origin: Origin::Program,
        ..Instance::default()
    };
    change(&mut instance);
    let id = format!("{service}-{n}-{}", instance.port);
    Change::Instance { node: node(n), id, instance: Some(Arc::new(instance)) }
}

/// A table, and the catalog of node 1.
struct Fixture {
    table: ProviderTable,
    catalog: Catalog,
    now: Instant,
}

impl Fixture {
    /// Three nodes: 1 in zone `a`, 2 in zone `b`, 3 in zone `c`, which is farther.
    fn new() -> Self {
        let mut fixture =
            Self { table: ProviderTable::new(Index(1)), catalog: Catalog::new(node(1)), now: Instant::now() };
        for (n, zone, rtt_ms) in [(1, "a", None), (2, "b", Some(3)), (3, "c", Some(40))] {
            fixture.add_member(n, zone, rtt_ms);
        }
        fixture.update();
        fixture
    }

    fn add_member(&mut self, n: u8, zone: &str, rtt_ms: Option<u64>) {
        self.table.apply(Time::ZERO, joined(n, zone, rtt_ms));
    }

    /// Adds an instance of a service to a node.
    fn add(&mut self, n: u8, service: &str, change: impl FnOnce(&mut Instance)) {
        self.table.apply(Time::ZERO, offered(n, service, change));
        self.update();
    }

    fn remove(&mut self, n: u8, service: &str) {
        let change = Change::Instance { node: node(n), id: format!("{service}-{n}-8000"), instance: None };
        self.table.apply(Time::ZERO, change);
        self.update();
    }

    fn update(&mut self) {
        self.catalog.update(&self.table, self.now);
    }

    /// The responses that are due.
    fn responses<S: Session>(&self, session: &mut S) -> Vec<(Kind, S::Response)> {
        session.collect(&self.catalog).unwrap();
        std::iter::from_fn(|| session.respond(&self.catalog)).collect()
    }

    /// Sends a request and returns the responses that follow.
    fn send<S: Session>(&self, session: &mut S, request: S::Request) -> Vec<(Kind, S::Response)> {
        session.receive(request, &self.catalog).unwrap();
        self.responses(session)
    }

    /// The assignment of `web` for a client in a zone.
    fn web(&self, zone: &str) -> Vec<LocalityOf> {
        let mut session = StateOfTheWorld::default();
        let responses = self.send(
            &mut session,
            DiscoveryRequest { node: Some(in_zone(zone)), ..names(Kind::Endpoints, &["web"]) },
        );
        let assignment = ClusterLoadAssignment::decode(&*responses[0].1.resources[0].value).unwrap();
        let of_locality = |group: envoy_types::pb::envoy::config::endpoint::v3::LocalityLbEndpoints| {
            let endpoints = group.lb_endpoints.iter().map(|endpoint| {
                let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else { panic!() };
                let Some(address::Address::SocketAddress(socket)) = &host.address.as_ref().unwrap().address
                else {
                    panic!()
                };
                let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { panic!() };
                (port, endpoint.health_status(), endpoint.load_balancing_weight.unwrap().value)
            });
            let Locality { zone, sub_zone, .. } = group.locality.unwrap();
            let weight = group.load_balancing_weight.unwrap().value;
            (group.priority, format!("{zone}/{sub_zone}"), weight, endpoints.collect())
        };
        assignment.endpoints.into_iter().map(of_locality).collect()
    }
}

fn in_zone(zone: &str) -> Node {
    Node { locality: Some(request::Locality { zone: zone.into() }) }
}

fn names(kind: Kind, names: &[&str]) -> DiscoveryRequest {
    let resource_names = names.iter().map(|name| (*name).to_owned()).collect();
    DiscoveryRequest { type_url: kind.url(), resource_names, ..DiscoveryRequest::default() }
}

fn subscribe(kind: Kind, names: &[&str]) -> DeltaDiscoveryRequest {
    let resource_names_subscribe = names.iter().map(|name| (*name).to_owned()).collect();
    DeltaDiscoveryRequest {
        type_url: kind.url(),
        resource_names_subscribe,
        ..DeltaDiscoveryRequest::default()
    }
}

/// Kind of each response and the names of its resources.
fn told(responses: &[(Kind, DiscoveryResponse)]) -> Vec<(Kind, Vec<String>)> {
    let name = |kind: Kind, value: &[u8]| match kind {
        Kind::Endpoints => ClusterLoadAssignment::decode(value).unwrap().cluster_name,
        // The name is the first field of the others.
        _ => RouteConfiguration::decode(value)
            .map(|routes| routes.name)
            .unwrap_or_else(|_| Cluster::decode(value).unwrap().name),
    };
    let of = |(kind, response): &(Kind, DiscoveryResponse)| {
        (*kind, response.resources.iter().map(|resource| name(*kind, &resource.value)).collect())
    };
    responses.iter().map(of).collect()
}

/// Kind of each response, the names of its resources, and those that are removed.
fn told_delta(responses: &[(Kind, DeltaDiscoveryResponse)]) -> Vec<(Kind, Vec<String>, Vec<String>)> {
    let of = |(kind, response): &(Kind, DeltaDiscoveryResponse)| {
        let names = response.resources.iter().map(|resource| resource.name.clone()).collect();
        (*kind, names, response.removed_resources.clone())
    };
    responses.iter().map(of).collect()
}

fn ack(response: &(Kind, DiscoveryResponse), request: DiscoveryRequest) -> DiscoveryRequest {
    DiscoveryRequest {
        response_nonce: response.1.nonce.clone(),
        version_info: response.1.version_info.clone(),
        ..request
    }
}

#[test]
fn zones_are_priorities_by_distance_and_weights_are_sub_zones_where_they_differ() {
    let mut fixture = Fixture::new();
    fixture.add(1, "web", |_| ());
    fixture.add(2, "web", |web| (web.port, web.weight) = (8001, Some(2)));
    fixture.add(2, "web", |web| (web.port, web.weight) = (8002, Some(3)));
    fixture.add(3, "web", |web| web.port = 8003);
    let healthy = |port, weight| (port, HealthStatus::Healthy, weight);
    let here = [
        (0, "a/".to_owned(), 1, vec![healthy(8000, 1)]),
        (1, "b/weight-2".to_owned(), 2, vec![healthy(8001, 2)]),
        (1, "b/weight-3".to_owned(), 3, vec![healthy(8002, 3)]),
        (2, "c/".to_owned(), 1, vec![healthy(8003, 1)]),
    ];
    assert_eq!(fixture.web(""), here);
    let zones =
        |zone| fixture.web(zone).into_iter().map(|(priority, zone, ..)| (priority, zone)).collect::<Vec<_>>();
    let of_c = [
        (0, "c/".to_owned()),
        (1, "a/".to_owned()),
        (2, "b/weight-2".to_owned()),
        (2, "b/weight-3".to_owned()),
    ];
    assert_eq!(zones("c"), of_c);
    // A zone without instances leaves no gap.
    assert_eq!(zones("elsewhere")[0], (0, "a/".to_owned()));
}

#[test]
fn health_follows_checks_and_an_endpoint_of_weight_0_is_a_last_resort() {
    let mut fixture = Fixture::new();
    let check =
        |kind: &str| CheckSummary { kind: kind.into(), status: Health::Critical, ..CheckSummary::default() };
    fixture.add(1, "web", |web| web.health = Health::Warning);
    fixture.add(1, "web", |web| {
        (web.port, web.health, web.checks) = (8001, Health::Critical, vec![check("http")])
    });
    fixture.add(1, "web", |web| {
        (web.port, web.health, web.checks) = (8002, Health::Critical, vec![check("maintenance")])
    });
    fixture.add(1, "web", |web| (web.port, web.weight) = (8003, Some(0)));
    let expected = vec![
        (8000, HealthStatus::Healthy, 1),
        (8001, HealthStatus::Unhealthy, 1),
        (8002, HealthStatus::Draining, 1),
    ];
    assert_eq!(fixture.web("")[0].3, expected);
    fixture.remove(1, "web");
    assert_eq!(fixture.web("")[0].3.last(), Some(&(8003, HealthStatus::Healthy, 1)));
    // Neither a host name nor port 0 can be an endpoint; an address counts once.
    fixture.add(1, "web", |web| web.address = "db.internal".into());
    fixture.add(2, "web", |web| (web.address, web.port) = ("10.77.1.1".into(), 8003));
    fixture.add(3, "web", |web| web.port = 0);
    // Nor a metadata address, the loopback of another host, or the port of a node.
    fixture.add(3, "web", |web| (web.address, web.port) = ("169.254.169.254".into(), 80));
    fixture.add(3, "web", |web| (web.address, web.port) = ("127.0.0.1".into(), 9901));
    fixture.add(3, "web", |web| (web.address, web.port) = ("10.77.0.2".into(), 7500));
    assert_eq!(fixture.web("").iter().map(|(.., endpoints)| endpoints.len()).sum::<usize>(), 3);
    assert_eq!(fixture.catalog.left_out(), 5);
}

#[test]
fn tags_choose_the_policy_and_the_protocol() {
    let mut fixture = Fixture::new();
    fixture.add(1, "web", |_| ());
    fixture.add(2, "web", |web| web.tags = vec!["lb=least_request".into(), "urlprefix-/a proto=grpc".into()]);
    let responses = fixture.send(&mut StateOfTheWorld::default(), names(Kind::Clusters, &[]));
    let cluster = Cluster::decode(&*responses[0].1.resources[0].value).unwrap();
    assert_eq!(
        (cluster.lb_policy(), cluster.typed_extension_protocol_options.len()),
        (LbPolicy::LeastRequest, 1)
    );
    fixture.remove(2, "web");
    let responses = fixture.send(&mut StateOfTheWorld::default(), names(Kind::Clusters, &[]));
    let cluster = Cluster::decode(&*responses[0].1.resources[0].value).unwrap();
    assert_eq!(
        (cluster.lb_policy(), cluster.typed_extension_protocol_options.len()),
        (LbPolicy::RoundRobin, 0)
    );
}

#[test]
fn a_service_without_instances_stays_for_a_while_with_no_endpoints() {
    let mut fixture = Fixture::new();
    fixture.add(1, "web", |_| ());
    fixture.add(1, "db", |_| ());
    let mut session = Delta::default();
    fixture.send(&mut session, subscribe(Kind::Clusters, &[]));
    fixture.send(&mut session, subscribe(Kind::Endpoints, &["web"]));
    fixture.remove(1, "web");
    let emptied = fixture.responses(&mut session);
    assert_eq!(told_delta(&emptied), [(Kind::Endpoints, vec!["web".to_owned()], vec![])]);
    assert!(fixture.web("").is_empty());
    assert_eq!(fixture.catalog.next_removal(), Some(fixture.now + LINGER));
    // Back again: the same cluster.
    fixture.add(1, "web", |_| ());
    assert_eq!(
        told_delta(&fixture.responses(&mut session)),
        [(Kind::Endpoints, vec!["web".to_owned()], vec![])]
    );
    fixture.remove(1, "web");
    fixture.responses(&mut session);
    fixture.now += LINGER;
    fixture.update();
    let gone = told_delta(&fixture.responses(&mut session));
    assert_eq!(gone[0], (Kind::Clusters, vec![], vec!["web".to_owned()]));
    assert_eq!(fixture.catalog.next_removal(), None);
}

#[test]
fn responses_come_in_the_order_in_which_clients_can_use_them() {
    let mut fixture = Fixture::new();
    let mut session = StateOfTheWorld::default();
    for (kind, wanted) in [
        (Kind::Routes, &["web"][..]),
        (Kind::Listeners, &[]),
        (Kind::Endpoints, &["web"]),
        (Kind::Clusters, &[]),
    ] {
        fixture.send(&mut session, names(kind, wanted));
    }
    fixture.add(1, "web", |_| ());
    let kinds: Vec<_> = fixture.responses(&mut session).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, Kind::ALL);
}

#[test]
fn an_old_nonce_is_ignored_and_a_refused_response_is_not_repeated_until_something_changes() {
    let mut fixture = Fixture::new();
    fixture.add(1, "web", |_| ());
    let mut session = StateOfTheWorld::default();
    let first = fixture.send(&mut session, names(Kind::Endpoints, &["web"])).remove(0);
    fixture.add(1, "web", |web| web.port = 8001);
    let second = fixture.responses(&mut session).remove(0);
    assert_ne!(first.1.nonce, second.1.nonce);
    // A request that crossed the second response: its names are not taken.
    let crossed = ack(&first, names(Kind::Endpoints, &["other"]));
    assert!(matches!(session.receive(crossed, &fixture.catalog), Ok(Received::OldNonce)));
    let no_nonce = names(Kind::Endpoints, &["other"]);
    assert!(matches!(session.receive(no_nonce, &fixture.catalog), Ok(Received::OldNonce)));
    assert!(fixture.responses(&mut session).is_empty());
    let error = ErrorDetail { message: "bad".into() };
    let refused = DiscoveryRequest {
        error_detail: Some(error),
        response_nonce: second.1.nonce.clone(),
        version_info: first.1.version_info.clone(),
        ..names(Kind::Endpoints, &["web"])
    };
    let received = session.receive(refused, &fixture.catalog);
    assert!(matches!(received, Ok(Received::Refused(Kind::Endpoints, text)) if text == "bad"));
    assert!(fixture.responses(&mut session).is_empty());
    fixture.remove(1, "web");
    assert_eq!(told(&fixture.responses(&mut session)), [(Kind::Endpoints, vec!["web".to_owned()])]);
}

#[test]
fn only_subscribed_names_are_sent_and_all_only_to_a_client_that_never_stated_names() {
    let mut fixture = Fixture::new();
    fixture.add(1, "db", |_| ());
    fixture.add(1, "web", |_| ());
    let mut named = StateOfTheWorld::default();
    let first = fixture.send(&mut named, names(Kind::Clusters, &["web", "missing"])).remove(0);
    assert_eq!(told(std::slice::from_ref(&first)), [(Kind::Clusters, vec!["web".to_owned()])]);
    // No names any more: nothing, not all.
    assert!(fixture.send(&mut named, ack(&first, names(Kind::Clusters, &[]))).is_empty());
    fixture.add(1, "new", |_| ());
    assert!(fixture.responses(&mut named).is_empty());
    let mut all = StateOfTheWorld::default();
    let first = fixture.send(&mut all, names(Kind::Clusters, &[])).remove(0);
    assert_eq!(told(std::slice::from_ref(&first))[0].1, ["db", "new", "web"]);
    // The acknowledgement has no names either.
    assert!(fixture.send(&mut all, ack(&first, names(Kind::Clusters, &[]))).is_empty());
    fixture.add(1, "more", |_| ());
    assert_eq!(told(&fixture.responses(&mut all))[0].1, ["db", "more", "new", "web"]);
    // Neither endpoints nor routes can be wanted as a whole: the answer has none.
    for kind in [Kind::Endpoints, Kind::Routes] {
        let responses = fixture.send(&mut StateOfTheWorld::default(), names(kind, &[]));
        assert_eq!(told(&responses), [(kind, vec![])]);
    }
    let star = told(&fixture.send(&mut StateOfTheWorld::default(), names(Kind::Clusters, &["*"])));
    assert_eq!(star[0].1.len(), 4);
}

#[test]
fn a_delta_states_what_changed_and_a_client_that_returns_gets_what_differs() {
    let mut fixture = Fixture::new();
    for service in ["db", "old", "web"] {
        fixture.add(1, service, |_| ());
    }
    let mut session = Delta::default();
    let first = fixture.send(&mut session, subscribe(Kind::Endpoints, &["db", "old", "web"])).remove(0);
    let versions: BTreeMap<_, _> =
        first.1.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
    assert_eq!(versions.len(), 3);
    fixture.add(1, "web", |web| web.port = 8001);
    assert_eq!(
        told_delta(&fixture.responses(&mut session)),
        [(Kind::Endpoints, vec!["web".to_owned()], vec![])]
    );
    let unsubscribe = DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec!["web".into()],
        ..subscribe(Kind::Endpoints, &[])
    };
    assert!(fixture.send(&mut session, unsubscribe).is_empty());
    fixture.remove(1, "web");
    assert!(fixture.responses(&mut session).is_empty());
    // Another node has the same versions.
    let mut elsewhere = Delta::default();
    let again = DeltaDiscoveryRequest {
        initial_resource_versions: versions.into_iter().collect(),
        ..subscribe(Kind::Endpoints, &["db", "old", "web"])
    };
    let changed = told_delta(&fixture.send(&mut elsewhere, again));
    assert_eq!(changed, [(Kind::Endpoints, vec!["web".to_owned()], vec![])]);
    // What a client has and the node does not.
    let mut clusters = Delta::default();
    let stale = [("gone".to_owned(), "1".to_owned())];
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: stale.into_iter().collect(),
        ..subscribe(Kind::Clusters, &[])
    };
    let (_, present, removed) = told_delta(&fixture.send(&mut clusters, request)).remove(0);
    assert_eq!((present.len(), removed), (3, vec!["gone".to_owned()]));
    // A name without a resource.
    let missing = told_delta(&fixture.send(&mut Delta::default(), subscribe(Kind::Listeners, &["nope"])));
    assert_eq!(missing, [(Kind::Listeners, vec![], vec!["nope".to_owned()])]);
}

#[test]
fn the_routes_to_all_services_follow_the_services_and_no_domain_is_there_twice() {
    let mut fixture = Fixture::new();
    fixture.add(1, "my.web", |_| ());
    let mut session = Delta::default();
    fixture.send(&mut session, subscribe(Kind::Routes, &[ALL_SERVICES]));
    fixture.add(1, "my-web", |_| ());
    fixture.add(1, "My Web", |_| ());
    let responses = fixture.responses(&mut session);
    let resource = responses.last().unwrap().1.resources[0].resource.clone().unwrap();
    let routes = RouteConfiguration::decode(&*resource.value).unwrap();
    let mut domains: Vec<String> =
        routes.virtual_hosts.iter().flat_map(|host| host.domains.clone()).collect();
    let count = domains.len();
    domains.sort();
    domains.dedup();
    assert_eq!((domains.len(), count), (5, 5), "{domains:?}");
    let holder =
        routes.virtual_hosts.iter().find(|host| host.domains.contains(&"my-web".to_owned())).unwrap();
    assert_eq!(holder.name, "my-web");
    // By path each of the three services can be reached.
    assert_eq!(routes.virtual_hosts.last().unwrap().routes.len(), 6);
    fixture.remove(1, "my-web");
    assert!(fixture.responses(&mut session).is_empty(), "a service without instances stays");
}

#[test]
fn what_a_client_can_make_grow_has_a_bound() {
    let fixture = Fixture::new();
    let many: Vec<String> = (0..=NAMES_MAX).map(|n| format!("s{n}")).collect();
    let request = DiscoveryRequest { resource_names: many.clone(), ..names(Kind::Endpoints, &[]) };
    let refused = StateOfTheWorld::default().receive(request, &fixture.catalog).err().unwrap();
    assert!(refused.message().contains("at most 32768 names"), "{refused}");
    let request = DeltaDiscoveryRequest { resource_names_subscribe: many, ..subscribe(Kind::Endpoints, &[]) };
    assert!(Delta::default().receive(request, &fixture.catalog).is_err());
    let long = "x".repeat(129);
    let refused =
        StateOfTheWorld::default().receive(names(Kind::Endpoints, &[&long]), &fixture.catalog).err().unwrap();
    assert!(refused.message().contains("129 bytes"), "{refused}");
    let unknown = DiscoveryRequest { type_url: "x".into(), ..DiscoveryRequest::default() };
    let mut session = StateOfTheWorld::default();
    assert!(matches!(session.receive(unknown, &fixture.catalog), Ok(Received::UnknownType(_))));
    assert!(fixture.responses(&mut session).is_empty());
}

#[test]
fn a_target_with_a_port_has_a_listener_that_follows_its_service() {
    let mut fixture = Fixture::new();
    let targets = ["web", "web:8080", "web:http", "webs:1", "web:1:2"];
    let (mut delta, mut whole) = (Delta::default(), StateOfTheWorld::default());
    let missing = told_delta(&fixture.send(&mut delta, subscribe(Kind::Listeners, &targets)));
    assert_eq!(missing[0].2.len(), targets.len());
    fixture.send(&mut whole, names(Kind::Listeners, &targets));
    fixture.add(1, "web", |_| ());
    let followed = fixture.responses(&mut delta);
    assert_eq!(told_delta(&followed)[0].1, ["web", "web:8080"]);
    let resource = followed[0].1.resources[1].resource.clone().unwrap();
    let listener = Listener::decode(&*resource.value).unwrap();
    let manager = listener.api_listener.unwrap().api_listener.unwrap();
    let manager = HttpConnectionManager::decode(&*manager.value).unwrap();
    let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier else { panic!() };
    assert_eq!((listener.name.as_str(), rds.route_config_name.as_str()), ("web:8080", "web"));
    assert_eq!(fixture.responses(&mut whole)[0].1.resources.len(), 2);
    let client = RestClient { zone: "", host: "localhost" };
    let json = resource_json(&fixture.catalog, Kind::Listeners, "web:8080", client).unwrap();
    let rds = &json["api_listener"]["api_listener"]["rds"];
    assert_eq!((&json["name"], &rds["route_config_name"]), (&"web:8080".into(), &"web".into()));
    fixture.remove(1, "web");
    fixture.now += LINGER;
    fixture.update();
    assert_eq!(told_delta(&fixture.responses(&mut delta))[0].2, ["web", "web:8080"]);
}

#[test]
fn a_wildcard_that_is_repeated_a_million_times_costs_as_much_as_one() {
    let mut fixture = Fixture::new();
    for n in 0..2000 {
        fixture.add(1, &format!("s{n}"), |_| ());
    }
    let all = vec!["*".to_owned(); 1_000_000];
    let began = Instant::now();
    let request = DiscoveryRequest { resource_names: all.clone(), ..names(Kind::Clusters, &[]) };
    let responses = fixture.send(&mut StateOfTheWorld::default(), request);
    assert_eq!(responses[0].1.resources.len(), 2000);
    let request = DeltaDiscoveryRequest { resource_names_subscribe: all, ..subscribe(Kind::Clusters, &[]) };
    let responses = fixture.send(&mut Delta::default(), request);
    assert_eq!(responses[0].1.resources.len(), 2000);
    // Work for each pair of a wildcard and a service would take minutes.
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn a_large_answer_is_several_responses() {
    let mut fixture = Fixture::new();
    let services: Vec<String> = (0..3000).map(|n| format!("{}{n:04}", "service".repeat(16))).collect();
    for service in &services {
        fixture.add(1, service, |_| ());
    }
    let all: Vec<&str> = services.iter().map(String::as_str).collect();
    let responses = fixture.send(&mut StateOfTheWorld::default(), names(Kind::Routes, &all));
    assert!(responses.len() > 1 && responses.iter().all(|(_, response)| response.encoded_len() < 3 << 20));
    assert_eq!(responses.iter().map(|(_, response)| response.resources.len()).sum::<usize>(), 3000);
    let responses = fixture.send(&mut Delta::default(), subscribe(Kind::Clusters, &[]));
    assert_eq!(responses.iter().map(|(_, response)| response.resources.len()).sum::<usize>(), 3000);
}

#[test]
fn rest_has_the_same_names_types_and_endpoints() {
    let mut fixture = Fixture::new();
    fixture.add(1, "web", |web| web.weight = Some(7));
    let client = RestClient { zone: "", host: "localhost" };
    for kind in Kind::ALL {
        let json = resource_json(&fixture.catalog, kind, "web", client).unwrap();
        assert_eq!(json["@type"], kind.url());
        assert!(json["name"] == "web" || json["cluster_name"] == "web", "{json}");
    }
    let json = resource_json(&fixture.catalog, Kind::Endpoints, "web", client).unwrap();
    let locality = &json["endpoints"][0];
    assert_eq!((&locality["priority"], &locality["load_balancing_weight"]), (&0.into(), &7.into()));
    assert_eq!(locality["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"], 8000);
    assert!(resource_json(&fixture.catalog, Kind::Clusters, "nope", client).is_none());
    let all = resource_json(&fixture.catalog, Kind::Routes, ALL_SERVICES, client).unwrap();
    assert_eq!(all["virtual_hosts"][0]["domains"][0], "web");
}
