//! Envoy with the shipped bootstrap file: it routes by host and by prefix, follows scaling, drains and
//! crashes of instances, and rejects nothing that a node sends.

use std::time::Instant;

use hearsay_tests::{
    Cluster as _, Host, Program,
    clients::{find_program, run_to_end},
    http::SendError,
    registry::cluster,
    scenario,
};
use serde_json::json;

use super::{
    S,
    envoy_process::{ENTRY_PORT, Envoy},
    id_of,
    load::{by_host, by_prefix, under_load},
    start_watched,
};

/// Port of the first instance.
const PORT: u16 = 9001;

#[test]
fn envoy_routes_by_host_and_by_prefix() {
    const TEST: &str = "envoy::envoy_routes_by_host_and_by_prefix";
    let Some(program) = find_program(TEST, "envoy", Some("ENVOY")) else { return };
    scenario(TEST, |lab| {
        let (hosts, _nodes) = cluster(lab, 2, &[]);
        let web = start_watched(&hosts[1], PORT);
        let other = Program::start(super::PROGRAM, &hosts[0], 9100);
        let body = json!({ "name": "My_Shop", "address": hosts[0].ip, "port": 9100 });
        hearsay_tests::registry::register(&hosts[0], &body);
        let envoy = Envoy::start(lab, &hosts[0], &program);
        envoy.until_serves(lab, &hosts[0]);
        lab.until(10 * S, "Envoy serves the other service", |_| {
            hosts[0].enter(|| by_prefix("My_Shop", "/")) == Ok(200)
        });
        let status = |name: &str, path: &str| hosts[0].enter(|| by_host(name, path));
        let (before, others) = (web.count(), other.count());
        let names = ["web", "web.hearsay", "web.service.hearsay", "web.service.consul", "WEB.hearsay"];
        for name in names {
            assert_eq!(status(name, "/by/host?x=1"), Ok(200), "{name}");
            // Clients send the port if it is not the scheme's.
            assert_eq!(status(&format!("{name}:{ENTRY_PORT}"), "/web/"), Ok(200), "{name}");
        }
        assert_eq!(web.count(), before + 2 * names.len());
        let send = |request: &str| {
            let to = ([127, 0, 0, 1], ENTRY_PORT).into();
            hosts[0].enter(|| hearsay_tests::http::send(to, request, &[], "", 5 * S)).unwrap().status
        };
        // The program records paths of requests other than GET.
        assert_eq!([send("POST /web/a/b?c=d"), send("POST /web"), send("POST /web/")], [200; 3]);
        assert_eq!(web.received(), ["POST /a/b?c=d ", "POST / ", "POST / "]);
        assert_eq!(send("POST /My_Shop/cart"), 200);
        assert_eq!(other.received(), ["POST /cart "]);
        // A path that leaves its prefix is one of the other service.
        assert_eq!(send("POST /web/../My_Shop/up"), 200);
        assert_eq!(other.received(), ["POST /cart ", "POST /up "]);
        assert_eq!(other.count(), others + 2);
        for path in ["/", "/webx", "/nothing/", "/We b/"] {
            assert_ne!(status("127.0.0.1", &path.replace(' ', "%20")), Ok(200), "{path}");
        }
        envoy.assert_accepted_all();
    });
}

#[test]
fn envoy_follows_scaling_without_a_failed_request() {
    const TEST: &str = "envoy::envoy_follows_scaling_without_a_failed_request";
    let Some(program) = find_program(TEST, "envoy", Some("ENVOY")) else { return };
    scenario(TEST, |lab| {
        let (hosts, _nodes) = cluster(lab, 2, &[]);
        let mut programs = vec![start_watched(&hosts[1], PORT)];
        let envoy = Envoy::start(lab, &hosts[0], &program);
        envoy.until_serves(lab, &hosts[0]);
        under_load(&hosts[0], |load| {
            programs.extend((PORT + 1..PORT + 10).map(|port| start_watched(&hosts[1], port)));
            envoy.until_has(lab, 10);
            let counts = |programs: &[Program]| programs.iter().map(Program::count).collect::<Vec<_>>();
            let before = counts(&programs);
            lab.until(10 * S, "each of ten gets requests", |_| {
                counts(&programs).iter().zip(&before).all(|(now, before)| now > before)
            });
            let gone = programs.split_off(3);
            for program in &gone {
                deregister(&hosts[1], &id_of(&hosts[1], program.port));
            }
            envoy.until_has(lab, 3);
            // Requests that were under way have ended when later ones have.
            let good = load.good();
            lab.until(10 * S, "100 more requests", |_| load.good() > good + 100);
            let before = counts(&gone);
            lab.until(10 * S, "200 more requests", |_| load.good() > good + 300);
            assert_eq!(counts(&gone), before, "instances without a registration get requests");
            load.assert_none_failed();
            println!("{} requests", load.good());
        });
        envoy.assert_accepted_all();
    });
}

fn deregister(host: &Host, id: &str) {
    let reply = host.send(7500, &format!("DELETE /services/{id}"), "");
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[test]
fn a_crash_fails_no_request_of_envoy_but_those_in_flight() {
    const TEST: &str = "envoy::a_crash_fails_no_request_of_envoy_but_those_in_flight";
    let Some(program) = find_program(TEST, "envoy", Some("ENVOY")) else { return };
    scenario(TEST, |lab| {
        let (hosts, _nodes) = cluster(lab, 2, &[]);
        let mut programs: Vec<_> = (PORT..PORT + 5).map(|port| start_watched(&hosts[1], port)).collect();
        let envoy = Envoy::start(lab, &hosts[0], &program);
        envoy.until_serves(lab, &hosts[0]);
        envoy.until_has(lab, 5);
        for left in [4, 3] {
            under_load(&hosts[0], |load| {
                let before = programs[left].count();
                lab.until(10 * S, "the next to crash gets requests", |_| programs[left].count() > before);
                programs.remove(left).kill();
                let crash = Instant::now();
                envoy.until_has(lab, left);
                println!("Envoy dropped the instance {:?} after the crash", crash.elapsed());
                let good = load.good();
                lab.until(10 * S, "200 more requests", |_| load.good() > good + 200);
                load.assert_only_in_flight_failed(crash);
            });
        }
        envoy.assert_accepted_all();
    });
}

#[test]
fn a_drain_fails_no_request_of_envoy() {
    const TEST: &str = "envoy::a_drain_fails_no_request_of_envoy";
    let Some(program) = find_program(TEST, "envoy", Some("ENVOY")) else { return };
    scenario(TEST, |lab| {
        let (hosts, _nodes) = cluster(lab, 2, &[]);
        let programs: Vec<_> = (PORT..PORT + 3).map(|port| start_watched(&hosts[1], port)).collect();
        let envoy = Envoy::start(lab, &hosts[0], &program);
        envoy.until_serves(lab, &hosts[0]);
        envoy.until_has(lab, 3);
        let drain = |port, more: &[&str]| {
            let mut command = lab.command(Some(&hosts[1]), "drain", &["drain", &id_of(&hosts[1], port)]);
            command.args(more).args(["--node", "http://127.0.0.1:7500"]);
            run_to_end(lab, command);
        };
        under_load(&hosts[0], |load| {
            // Two of three: more than the half at which Envoy would ignore the health of instances.
            for (program, left) in programs[1..].iter().zip([2, 1]) {
                drain(program.port, &["--reason", "test"]);
                envoy.until_has(lab, left);
                let good = load.good();
                lab.until(10 * S, "100 more requests", |_| load.good() > good + 100);
                let before = program.count();
                lab.until(10 * S, "200 more requests", |_| load.good() > good + 300);
                assert_eq!(program.count(), before, "a drained instance gets requests");
            }
            for (program, count) in programs[1..].iter().zip([2, 3]) {
                drain(program.port, &["--undo"]);
                envoy.until_has(lab, count);
                let before = program.count();
                lab.until(10 * S, "it gets requests again", |_| program.count() > before);
            }
            load.assert_none_failed();
            println!("{} requests", load.good());
        });
        envoy.assert_accepted_all();
    });
}

/// Envoy that polls the node by REST. It sends the name of the cluster as host, and a node answers to its own
/// names.
const BY_REST: &str = r#"
node: {id: rest, cluster: hearsay}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
dynamic_resources:
  cds_config: &node
    resource_api_version: V3
    api_config_source: {api_type: REST, transport_api_version: V3, cluster_names: [localhost], refresh_delay: 0.1s, request_timeout: 5s}
static_resources:
  listeners:
    - address: {socket_address: {address: 127.0.0.1, port_value: 10000}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: services
                rds: {route_config_name: hearsay/services, config_source: *node}
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
    - name: localhost
      type: STATIC
      load_assignment:
        cluster_name: localhost
        endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 7500}}}}]}]
"#;

#[test]
fn envoy_follows_instances_by_rest() {
    const TEST: &str = "envoy::envoy_follows_instances_by_rest";
    let Some(program) = find_program(TEST, "envoy", Some("ENVOY")) else { return };
    scenario(TEST, |lab| {
        let (hosts, _nodes) = cluster(lab, 2, &[]);
        let mut programs = vec![start_watched(&hosts[1], PORT)];
        let file = lab.dir().join("rest.yaml");
        std::fs::write(&file, BY_REST).unwrap();
        let envoy = Envoy::start_from(lab, &hosts[0], &program, &file);
        envoy.until_serves(lab, &hosts[0]);
        programs.extend((PORT + 1..PORT + 3).map(|port| start_watched(&hosts[1], port)));
        envoy.until_has(lab, 3);
        programs.pop().unwrap().kill();
        envoy.until_has(lab, 2);
        envoy.assert_accepted_all();
    });
}

#[test]
fn envoy_takes_resources_of_every_type() {
    const TEST: &str = "envoy::envoy_takes_resources_of_every_type";
    let Some(program) = find_program(TEST, "envoy", Some("ENVOY")) else { return };
    scenario(TEST, |lab| {
        let (hosts, _nodes) = cluster(lab, 2, &[]);
        let _web = start_watched(&hosts[1], PORT);
        for api in ["DELTA_GRPC", "GRPC"] {
            // The listeners of services are for gRPC. Envoy leaves them out, without an error.
            let more = format!(
                "dynamic_resources: {{ads_config: {{api_type: {api}}}, lds_config: {{ads: {{}}, resource_api_version: V3}}}}"
            );
            let envoy = Envoy::start_with(lab, &hosts[0], &program, &["--config-yaml", &more]);
            envoy.until_serves(lab, &hosts[0]);
            lab.until(10 * S, "Envoy has an answer to each subscription", |_| {
                envoy.stats("listener_manager.lds.update_success").iter().any(|(_, value)| *value > 0)
            });
            envoy.assert_accepted_all();
            let types: Vec<String> = envoy.config()["configs"]
                .as_array()
                .unwrap()
                .iter()
                .filter_map(|it| it["@type"].as_str()?.rsplit('.').next().map(str::to_owned))
                .collect();
            println!("{api}: {types:?}");
            assert_eq!(hosts[0].enter(|| by_prefix("nothing", "/")), Ok::<_, SendError>(404));
            assert!(!envoy.log().contains("[critical]"), "{}", envoy.log());
        }
    });
}
