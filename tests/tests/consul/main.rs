//! Consul's interface over real nodes: writes show on every node and survive a restart, and real clients of
//! Consul and Prometheus work.

#![allow(clippy::unwrap_used)]

mod events;
mod go;
mod keys;
mod keys_faults;
mod long_polls;
mod monitor;
mod prometheus;
mod python;
mod requests;
mod restart;
mod rust;
mod traefik;
mod traefik_crash;

use std::{
    io::{Read as _, Write as _},
    time::Instant,
};

use hearsay_tests::{Cluster as _, Lab, NodeRef, clients, registry::cluster, scenario};
use requests::{S, index_of, passing, put};
use serde_json::{Value, json};

#[test]
fn what_is_registered_with_one_node_wakes_queries_on_another() {
    scenario("what_is_registered_with_one_node_wakes_queries_on_another", |lab| {
        let (hosts, nodes) = cluster(lab, 2, &[]);
        let index = index_of(&hosts[1], "/v1/health/service/web");
        let mut waiting = std::net::TcpStream::connect(lab.address(nodes[1])).unwrap();
        write!(waiting, "GET /v1/health/service/web?passing&index={index}&wait=60s HTTP/1.0\r\n\r\n")
            .unwrap();
        let body = json!({ "Name": "web", "ID": "web-1", "Address": "10.77.9.9", "Port": 8080,
            "Check": { "TTL": "1h", "Status": "passing" } });
        let began = Instant::now();
        put(&hosts[0], "/v1/agent/service/register", &body);
        let mut answer = String::new();
        waiting.set_read_timeout(Some(10 * S)).unwrap();
        waiting.read_to_string(&mut answer).unwrap();
        println!("the query woke {:?} after the request", began.elapsed());
        assert!(answer.contains("\r\nX-Consul-Index: "), "{answer}");
        assert!(answer.contains("\"ID\":\"web-1\""), "{answer}");
        let catalog = lab.get(nodes[1], "/v1/catalog/service/web").unwrap();
        assert_eq!(catalog[0]["ServiceAddress"], "10.77.9.9");
        for (path, is_passing) in [
            ("/v1/agent/check/fail/service:web-1", false),
            ("/v1/agent/check/pass/service:web-1", true),
            ("/v1/agent/service/maintenance/web-1?enable=true&reason=disk", false),
            ("/v1/agent/service/maintenance/web-1?enable=false", true),
            ("/v1/agent/maintenance?enable=true", false),
            ("/v1/agent/maintenance?enable=false", true),
            ("/v1/agent/service/deregister/web-1", false),
        ] {
            put(&hosts[0], path, &Value::Null);
            lab.until(5 * S, &format!("{path} shows on both nodes"), |lab| {
                nodes.iter().all(|node| passing(lab, *node, "web").is_empty() != is_passing)
            });
        }
    });
}

#[test]
fn registrations_statuses_and_indexes_outlive_a_restart_of_the_node() {
    scenario("registrations_statuses_and_indexes_outlive_a_restart_of_the_node", |lab| {
        let host = lab.host();
        let node = lab.start(Some(&host), "m0", 7500, &["--name", "m0"]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/v1/agent/self").is_some());
        let body = json!({
            "Name": "web", "ID": "web-1", "Tags": ["v1"], "Port": 8080, "EnableTagOverride": true,
            "TaggedAddresses": { "lan": { "Address": "10.77.9.9", "Port": 1 } }, "Weights": { "Passing": 3, "Warning": 2 },
            "Checks": [{ "TTL": "1h" }, { "TTL": "1h", "CheckID": "second", "Notes": "kept" }],
        });
        put(&host, "/v1/agent/service/register", &body);
        for id in ["service:web-1:1", "second"] {
            put(&host, &format!("/v1/agent/check/pass/{id}"), &Value::Null);
        }
        lab.until(5 * S, "it passes", |lab| passing(lab, node, "web") == ["web-1"]);
        put(&host, "/v1/agent/service/register", &json!({ "Name": "out", "Port": 1 }));
        put(&host, "/v1/agent/service/maintenance/out?enable=true&reason=disk", &Value::Null);
        let sent = |lab: &Lab, node: NodeRef| {
            let mut services = lab.get(node, "/v1/agent/services")?;
            for service in services.as_object_mut()?.values_mut() {
                service.as_object_mut()?.remove("ModifyIndex");
            }
            Some(services)
        };
        let (before, index) = (sent(lab, node).unwrap(), index_of(&host, "/v1/health/service/web"));
        assert_eq!(before["web-1"]["TaggedAddresses"]["lan"]["Address"], "10.77.9.9");
        lab.crash(node);
        let node = lab.start(Some(&host), "m0", 7500, &["--name", "m0"]);
        lab.until(10 * S, "it passes again", |lab| passing(lab, node, "web") == ["web-1"]);
        assert_eq!(sent(lab, node).unwrap(), before);
        assert!(index_of(&host, "/v1/health/service/web") >= index, "an index has fallen");
        let checks = lab.get(node, "/v1/agent/checks").unwrap();
        assert_eq!(
            (&checks["second"]["Notes"], &checks["second"]["Status"]),
            (&json!("kept"), &json!("passing"))
        );
        assert_eq!(checks["_service_maintenance:out"]["Notes"], "disk");
        assert!(passing(lab, node, "out").is_empty());
    });
}
