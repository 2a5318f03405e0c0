//! Tests of Consul's interface: headers, shapes, statuses and parameters on which clients depend.

mod agent;
mod catalog_writes;
mod checks;
mod clients;
mod event;
mod kv;
mod monitor;

use hearsay_protocol::{CheckSummary, NamedPort};
use serde_json::json;

use super::*;
use crate::driver_command::ForgetOutcome;

/// Headers of every query that can block.
const HEADERS: [(&str, &str); 5] = [
    ("x-consul-knownleader", "true"),
    ("x-consul-lastcontact", "0"),
    ("x-consul-query-backend", "blocking-query"),
    ("x-consul-default-acl-policy", "allow"),
    ("content-type", "application/json"),
];
const BLOCKABLE: [&str; 14] = [
    "/v1/catalog/services",
    "/v1/catalog/service/web",
    "/v1/catalog/connect/web",
    "/v1/catalog/nodes",
    "/v1/catalog/node/n1",
    "/v1/catalog/node-services/n1",
    "/v1/health/service/web",
    "/v1/health/service/none",
    "/v1/health/checks/web",
    "/v1/health/state/any",
    "/v1/health/node/n1",
    "/v1/health/connect/web",
    "/v1/coordinate/nodes",
    "/v1/event/list",
];

/// An instance with one check.
fn checked(seed: u8, id: &str, service: &str, health: Health) -> (NodeId, String, Instance) {
    let (node, id, mut instance) = instance(seed, id, service);
    instance.health = health;
    instance.checks.push(CheckSummary {
        id: format!("service:{id}"),
        name: format!("Service '{service}' check"),
        kind: "ttl".into(),
        status: health,
        since_ms: 1_500,
        output: "as it was".into(),
        took_ms: 1,
    });
    (node, id, instance)
}

/// Two nodes, with one instance of `web` each.
async fn cluster() -> Server {
    let server = Server::start().await;
    server.apply([
        joined(member(1)),
        joined(Member { zone: Some("east".into()), ..member(2) }),
        offered(checked(1, "web-1", "web", Health::Passing)),
        offered(checked(2, "web-2", "web", Health::Critical)),
    ]);
    server
}

async fn send_put(server: &Server, path: &str, body: &str) -> Reply {
    server.send(&format!("PUT {path}"), &[], body).await
}

async fn register(server: &Server, body: Value) {
    let reply = send_put(server, "/v1/agent/service/register", &body.to_string()).await;
    assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{reply:?}");
}

/// The list that a path answers, sorted, each element by one of its members.
async fn listed(server: &Server, path: &str, member: &str) -> Vec<String> {
    let mut found = listed_in_order(server, path, member).await;
    found.sort();
    found
}

/// The list that a path answers, in its order.
async fn listed_in_order(server: &Server, path: &str, member: &str) -> Vec<String> {
    let reply = server.get(path).await;
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    let json = reply.json();
    let elements = json.as_array().unwrap_or_else(|| panic!("{path}: {json}"));
    elements.iter().map(|element| element.pointer(member).unwrap().as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn every_query_that_can_block_has_consuls_headers_and_an_index() {
    let server = cluster().await;
    for path in BLOCKABLE {
        let reply = server.get(path).await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        for (name, value) in HEADERS {
            assert_eq!(reply.header(name), value, "{path}");
        }
        assert!(reply.header("x-consul-index").parse::<u64>().unwrap() >= 1, "{path}");
    }
}

#[tokio::test]
async fn header_names_are_in_title_case_on_the_wire() {
    let server = cluster().await;
    for version in ["1.0", "1.1"] {
        let host = if version == "1.1" { "Host: 127.0.0.1\r\nConnection: close\r\n" } else { "" };
        let request = format!("GET /v1/health/service/web?passing HTTP/{version}\r\n{host}\r\n");
        let mut stream = server.open(request).await;
        let mut text = String::new();
        within(stream.read_to_string(&mut text)).await.unwrap();
        assert!(text.starts_with("HTTP/1."), "{text}");
        for line in [
            "\r\nX-Consul-Index: 1004\r\n",
            "\r\nX-Consul-Knownleader: true\r\n",
            "\r\nX-Consul-Lastcontact: 0\r\n",
            "\r\nContent-Type: application/json\r\n",
            "\r\nContent-Length: ",
        ] {
            assert!(text.contains(line), "{line:?} is not in {text}");
        }
    }
}

#[tokio::test]
async fn an_entry_of_a_service_has_exactly_consuls_shape() {
    let server = cluster().await;
    let json = server.get("/v1/health/service/web?passing").await.json();
    let uuid = json[0]["Node"]["ID"].as_str().unwrap().to_owned();
    assert_eq!(uuid.len(), 36);
    let expected = json!([{
        "Node": {
            "ID": uuid, "Node": "n1", "Address": "10.0.0.1", "Datacenter": "dc1",
            "TaggedAddresses": { "lan": "10.0.0.1", "wan": "10.0.0.1" }, "Meta": {},
            "CreateIndex": 1002, "ModifyIndex": 1002,
        },
        "Service": {
            "ID": "web-1", "Service": "web", "Tags": ["a", "n1"], "Meta": { "k": "v" }, "Port": 80, "Ports": [],
            "Address": "10.0.0.1", "TaggedAddresses": {}, "Weights": { "Passing": 1, "Warning": 1 },
            "EnableTagOverride": false, "CreateIndex": 1004, "ModifyIndex": 1004,
        },
        "Checks": [
            {
                "Node": "n1", "CheckID": "service:web-1", "Name": "Service 'web' check", "Status": "passing",
                "Notes": "", "Output": "as it was", "ServiceID": "web-1", "ServiceName": "web",
                "ServiceTags": ["a", "n1"], "Type": "ttl", "Definition": {}, "CreateIndex": 1004,
                "ModifyIndex": 1004,
            },
            {
                "Node": "n1", "CheckID": "serfHealth", "Name": "Serf Health Status", "Status": "passing",
                "Notes": "", "Output": "Agent alive and reachable", "ServiceID": "", "ServiceName": "",
                "ServiceTags": [], "Type": "", "Definition": {}, "CreateIndex": 1002, "ModifyIndex": 1002,
            },
        ],
    }]);
    assert_eq!(json, expected);
}

#[tokio::test]
async fn an_instance_of_the_catalog_has_exactly_consuls_shape() {
    let server = cluster().await;
    let (node, id, mut ported) = instance(2, "p", "ported");
    ported.ports = vec![NamedPort { name: "metrics".into(), port: 80, is_default: true }];
    ported.weight = Some(7);
    server.apply([offered((node, id, ported))]);
    let json = server.get("/v1/catalog/service/ported").await.json();
    let uuid = json[0]["ID"].clone();
    let expected = json!([{
        "ID": uuid, "Node": "n2", "Address": "10.0.0.2", "Datacenter": "dc1",
        "TaggedAddresses": { "lan": "10.0.0.2", "wan": "10.0.0.2" }, "NodeMeta": { "zone": "east" },
        "ServiceID": "p", "ServiceName": "ported", "ServiceTags": ["a", "n2"], "ServiceAddress": "10.0.0.2",
        "ServicePort": 80, "ServicePorts": [{ "Name": "metrics", "Port": 80, "Default": true }],
        "ServiceMeta": { "k": "v" }, "ServiceWeights": { "Passing": 7, "Warning": 1 },
        "ServiceEnableTagOverride": false, "CreateIndex": 1005, "ModifyIndex": 1005,
    }]);
    assert_eq!(json, expected);
}

#[tokio::test]
async fn the_catalog_lists_services_with_their_tags_and_consul_itself() {
    let server = cluster().await;
    let json = server.get("/v1/catalog/services").await.json();
    assert_eq!(json, json!({ "consul": [], "web": ["a", "n1", "n2"] }));
    assert_eq!(
        server.get("/v1/catalog/services?node-meta=zone:east").await.json(),
        json!({ "web": ["a", "n2"] })
    );
    assert_eq!(server.get("/v1/catalog/service/none").await.json(), json!([]));
    assert_eq!(server.get("/v1/catalog/datacenters").await.json(), json!(["dc1"]));
}

#[tokio::test]
async fn nodes_are_listed_with_their_instances() {
    let server = cluster().await;
    assert_eq!(listed(&server, "/v1/catalog/nodes", "/Node").await.len(), 2);
    assert_eq!(listed(&server, "/v1/catalog/nodes?node-meta=zone:east", "/Node").await, ["n2"]);
    let node = server.get("/v1/catalog/node/n1").await.json();
    assert_eq!((&node["Node"]["Node"], &node["Services"]["web-1"]["Service"]), (&json!("n1"), &json!("web")));
    let list = server.get("/v1/catalog/node-services/n2").await.json();
    assert_eq!((&list["Node"]["Node"], &list["Services"][0]["ID"]), (&json!("n2"), &json!("web-2")));
    server.apply([joined(Member { state: MemberState::Left, ..member(3) })]);
    assert_eq!(listed(&server, "/v1/catalog/nodes", "/Node").await, ["n1", "n2"]);
    for unknown in ["none", "n3"] {
        assert_eq!(server.get(&format!("/v1/catalog/node/{unknown}")).await.json(), Value::Null, "{unknown}");
    }
    let none = server.get("/v1/catalog/node-services/none").await.json();
    assert_eq!(none, json!({ "Node": null, "Services": [] }));
}

#[tokio::test]
async fn instances_are_chosen_by_health_tags_and_filters() {
    let server = cluster().await;
    let ids =
        async |query: &str| listed(&server, &format!("/v1/health/service/web?{query}"), "/Service/ID").await;
    assert_eq!(ids("").await.len(), 2);
    for query in ["passing", "passing=", "passing=1", "passing=true", "passing=True&dc=dc1&stale&ns=x"] {
        assert_eq!(ids(query).await, ["web-1"], "{query}");
    }
    assert_eq!(ids("passing=false").await.len(), 2);
    assert_eq!(ids("tag=a&tag=N2").await, ["web-2"]);
    assert_eq!(ids("node-meta=zone:east").await, ["web-2"]);
    let nearest = listed_in_order(&server, "/v1/health/service/web?near=_agent", "/Service/ID").await;
    assert_eq!(nearest, ["web-1", "web-2"]);
    for near in ["n2", "_ip", "nowhere"] {
        assert_eq!(ids(&format!("near={near}")).await.len(), 2, "{near}");
    }
    for (filter, expected) in [
        ("n2+in+Service.Tags", "web-2"),
        ("Service.Tags+contains+n1", "web-1"),
        ("Node.Node+==+n2+and+Service.Meta.k+==+v", "web-2"),
        ("Checks.Status+==+critical", "web-2"),
        ("not+Checks.Status+==+critical", "web-1"),
        ("Service.Port+==+80+and+Node.Meta.zone+==+east", "web-2"),
        ("Service.ID+matches+`-1$`", "web-1"),
    ] {
        assert_eq!(ids(&format!("filter={filter}")).await, [expected], "{filter}");
    }
}

#[tokio::test]
async fn another_paths_selector_and_what_cannot_be_parsed_is_400() {
    let server = cluster().await;
    for (path, filter) in [
        ("/v1/catalog/services", "Service.Tags contains a"),
        ("/v1/catalog/service/web", "Service.Tags contains a"),
        ("/v1/health/service/web", "ServiceTags contains a"),
        ("/v1/health/state/any", "Service.Tags contains a"),
        ("/v1/catalog/nodes", "ServiceName == web"),
        ("/v1/catalog/node/none", "ServiceName == web"),
        ("/v1/agent/services", "ServiceName == web"),
        ("/v1/agent/checks", "Service == web"),
        ("/v1/health/service/web", "Service.Tags contains"),
        ("/v1/health/service/web", "("),
    ] {
        let reply = server.get(&format!("{path}?filter={}", filter.replace(' ', "+"))).await;
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (400, "text/plain; charset=utf-8"),
            "{path}"
        );
        assert!(reply.body.starts_with("filter: "), "{reply:?}");
    }
}

#[tokio::test]
async fn a_bad_filter_is_400_before_any_wait() {
    let server = cluster().await;
    for path in BLOCKABLE.iter().filter(|path| !path.contains("/connect/") && !path.contains("coordinate")) {
        let index = server.get(path).await.header("x-consul-index").to_owned();
        let reply = server.get(&format!("{path}?index={index}&wait=5m&filter=(")).await;
        assert!(reply.status == 400 && reply.body.starts_with("filter: "), "{path}: {reply:?}");
    }
}

#[tokio::test]
async fn checks_are_listed_by_service_node_and_state() {
    let server = cluster().await;
    let ids = async |path: &str| listed(&server, path, "/CheckID").await;
    for path in ["/v1/health/checks/web", "/v1/health/checks/web?passing&tag=none"] {
        assert_eq!(ids(path).await, ["service:web-1", "service:web-2"], "{path}");
    }
    assert_eq!(ids("/v1/health/node/n2").await, ["serfHealth", "service:web-2"]);
    assert_eq!(ids("/v1/health/state/critical").await, ["service:web-2"]);
    assert_eq!(ids("/v1/health/state/passing").await, ["serfHealth", "serfHealth", "service:web-1"]);
    assert_eq!(ids("/v1/health/state/any?filter=ServiceName+==+web").await.len(), 2);
    assert!(ids("/v1/health/state/warning").await.is_empty() && ids("/v1/health/node/none").await.is_empty());
    assert_eq!(server.get("/v1/health/state/good").await.status, 400);
    for check in server.get("/v1/health/state/any").await.json().as_array().unwrap() {
        assert!(check["ServiceTags"].is_array() && check["Definition"] == json!({}), "{check}");
    }
}

#[tokio::test]
async fn an_instance_without_checks_has_that_of_its_node_and_one_for_its_state() {
    let server = cluster().await;
    let (node, id, mut out) = instance(1, "g", "grading");
    server.apply([offered((node, id.clone(), out.clone()))]);
    let ids = async || listed(&server, "/v1/health/service/grading", "/Checks/0/CheckID").await;
    assert_eq!(ids().await, ["serfHealth"]);
    out.health = Health::Critical;
    server.apply([offered((node, id, out))]);
    assert_eq!(ids().await, ["service:g:state"]);
    let json = server.get("/v1/health/service/grading").await.json();
    assert_eq!(json[0]["Checks"][0]["Status"], "critical", "clients aggregate checks");
    assert_eq!(server.get("/v1/health/service/grading?passing").await.json(), json!([]));
}

#[tokio::test]
async fn maintenance_is_a_critical_check_with_its_reason_as_notes() {
    let server = cluster().await;
    let (node, id, mut out) = checked(1, "web-1", "web", Health::Critical);
    let maintenance = |id: &str| CheckSummary {
        id: id.into(),
        name: "Maintenance Mode".into(),
        kind: "maintenance".into(),
        status: Health::Critical,
        output: "a new disk".into(),
        ..CheckSummary::default()
    };
    out.checks = vec![maintenance("_service_maintenance:web-1"), maintenance("_node_maintenance")];
    server.apply([
        offered((node, id, out.clone())),
        offered((node, "other".into(), Instance { port: 81, ..out })),
    ]);
    let json = server.get("/v1/health/service/web?filter=Service.ID+==+`web-1`").await.json();
    let check = |n: usize| {
        let check = &json[0]["Checks"][n];
        ["CheckID", "Name", "Status", "Notes", "ServiceID"].map(|key| check[key].as_str().unwrap().to_owned())
    };
    let expected =
        ["_service_maintenance:web-1", "Service Maintenance Mode", "critical", "a new disk", "web-1"];
    assert_eq!(check(0), expected);
    assert_eq!(check(1), ["_node_maintenance", "Node Maintenance Mode", "critical", "a new disk", ""]);
    let of_node = listed(&server, "/v1/health/node/n1", "/CheckID").await;
    assert_eq!(of_node.iter().filter(|id| *id == "_node_maintenance").count(), 1, "{of_node:?}");
}

#[tokio::test]
async fn a_query_wakes_for_its_own_service_and_ends_with_its_wait() {
    let server = cluster().await;
    let index = server.get("/v1/health/service/web").await.header("x-consul-index").to_owned();
    let request = format!("GET /v1/health/service/web?index={index}&wait=5m HTTP/1.0\r\n\r\n");
    let waiting = Reply::read(server.open(request).await);
    tokio::pin!(waiting);
    until("it waits", || server.metrics.http.waiting.get() == 1).await;
    server.apply([offered(instance(1, "db-1", "db"))]);
    let is_woken = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await.is_ok();
    assert!(!is_woken, "another service has changed");
    server.apply([withdrawn(2, "web-2")]);
    let reply = waiting.await;
    assert_eq!((reply.json().as_array().unwrap().len(), reply.header("x-consul-index")), (1, "1006"));
    for query in ["index=1006&wait=10ms", "index=1006&wait=0.01s"] {
        let reply = server.get(&format!("/v1/health/service/web?{query}")).await;
        assert_eq!((reply.status, reply.header("x-consul-index")), (200, "1006"), "{query}");
    }
    for query in ["index=0&wait=5m", "index=-1&wait=5m", "index=x&wait=5m", "index=1&wait=5m", "index="] {
        assert_eq!(server.get(&format!("/v1/health/service/web?{query}")).await.status, 200, "{query}");
    }
    assert_eq!(server.get("/v1/health/service/web?index=1&wait=soon").await.status, 400);
}

#[tokio::test]
async fn what_never_changes_waits_in_place_of_spinning() {
    let server = cluster().await;
    assert_eq!(server.get("/v1/health/connect/web").await.header("x-consul-index"), "1");
    let request = "GET /v1/catalog/connect/web?index=1&wait=5m HTTP/1.0\r\n\r\n";
    let _waiting = server.open(request).await;
    let _other = server.open("GET /v1/coordinate/nodes?index=1&wait=5m HTTP/1.0\r\n\r\n").await;
    until("both wait", || server.metrics.http.waiting.get() == 2).await;
}

#[tokio::test]
async fn a_node_that_starts_holds_reads() {
    let server = cluster().await;
    for path in ["/v1/health/service/web", "/v1/catalog/services", "/v1/agent/self", "/sd/prometheus"] {
        server.readiness.send_replace(Readiness::Starting);
        let reply = Reply::read(server.open(format!("GET {path} HTTP/1.0\r\n\r\n")).await);
        tokio::pin!(reply);
        let held = tokio::time::timeout(Duration::from_millis(100), &mut reply).await;
        assert!(held.is_err(), "{path} is held");
        server.readiness.send_replace(Readiness::Ready);
        assert_eq!(reply.await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn the_agent_describes_itself_in_objects_and_its_configuration_in_scalars() {
    let server = cluster().await;
    let json = server.get("/v1/agent/self?pretty").await.json();
    assert!(json.as_object().unwrap().values().all(Value::is_object), "{json}");
    let config = json["Config"].as_object().unwrap();
    assert!(config.values().all(|value| !value.is_object() && !value.is_array() && !value.is_null()));
    assert_eq!((&config["Datacenter"], &config["NodeName"]), (&json!("dc1"), &json!("n1")));
    assert_eq!(config["NodeID"], json["Member"]["Tags"]["id"]);
    let members = server.get("/v1/agent/members?segment=_all").await.json();
    let found = members.as_array().unwrap().iter().find(|m| m["Name"] == "n2").unwrap().clone();
    let expected = json!({
        "Name": "n2", "Addr": "10.0.0.2", "Port": 7600, "Status": 1,
        "Tags": { "role": "node", "dc": "dc1", "build": "1.22.0:", "vsn": "2", "id": found["Tags"]["id"] },
        "ProtocolMin": 1, "ProtocolMax": 5, "ProtocolCur": 2, "DelegateMin": 2, "DelegateMax": 5, "DelegateCur": 4,
    });
    assert_eq!(found, expected);
    server.apply([joined(Member { state: MemberState::Failed, ..member(2) })]);
    let members = server.get("/v1/agent/members").await.json();
    assert!(members.as_array().unwrap().iter().any(|m| m["Name"] == "n2" && m["Status"] == 4), "{members}");
    assert_eq!(server.get("/v1/agent/host").await.json(), json!({}));
    assert_eq!(server.get("/v1/agent/version").await.json()["HumanVersion"], "1.22.0");
    let metrics = server.get("/v1/agent/metrics").await.json();
    assert!(["Gauges", "Points", "Counters", "Samples"].iter().all(|key| metrics[key] == json!([])));
    assert_eq!(server.get("/v1/status/leader").await.json(), json!("10.0.0.1:8300"));
    assert_eq!(server.get("/v1/status/peers").await.json(), json!(["10.0.0.1:8300"]));
}

#[tokio::test]
async fn bodies_are_taken_with_any_content_type() {
    let server = cluster().await;
    for content_type in ["", "content-type: text/plain", "content-type: application/x-www-form-urlencoded"] {
        let headers: Vec<&str> = Some(content_type).filter(|line| !line.is_empty()).into_iter().collect();
        let reply = server.send("PUT /v1/agent/service/register", &headers, r#"{"Name":"web"}"#).await;
        assert_eq!(reply.status, 200, "{content_type}: {reply:?}");
    }
}

#[tokio::test]
async fn a_wrong_method_is_405_with_the_right_ones_and_a_foreign_datacenter_500() {
    let server = cluster().await;
    for (request, allowed) in [
        ("POST /v1/health/service/web", "GET"),
        ("GET /v1/agent/service/register", "PUT"),
        ("DELETE /v1/catalog/nodes", "GET"),
    ] {
        let reply = server.send(request, &[], "").await;
        assert!(reply.status == 405 && reply.header("allow").contains(allowed), "{request}: {reply:?}");
    }
    let reply = server.get("/v1/catalog/nodes?dc=elsewhere").await;
    assert!(reply.status == 500 && reply.body.starts_with("No path to datacenter"), "{reply:?}");
}

#[tokio::test]
async fn what_a_node_cannot_promise_is_501_and_why() {
    let server = cluster().await;
    for request in [
        "PUT /v1/session/create",
        "GET /v1/session/list",
        "PUT /v1/txn",
        "GET /v1/query",
        "POST /v1/query/x/execute",
        "GET /v1/connect/ca/roots",
        "GET /v1/agent/connect/ca/leaf/web",
        "PUT /v1/agent/join/10.0.0.1",
        "PUT /v1/agent/reload",
    ] {
        let reply = server.send(request, &[], "").await;
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (501, "text/plain; charset=utf-8"),
            "{request}"
        );
        assert!(reply.body.len() > 20, "{reply:?}");
    }
    let reply = server.get("/v1/acl/tokens").await;
    assert_eq!((reply.status, reply.header("content-type")), (404, "text/plain; charset=utf-8"));
}

#[tokio::test]
async fn a_member_that_failed_is_forgotten_by_its_name() {
    let mut server = cluster().await;
    let reply = send_put(&server, "/v1/agent/force-leave/none", "").await;
    assert!(reply.status == 404 && reply.body.contains("none"), "{reply:?}");
    let request = "PUT /v1/agent/force-leave/n2?prune HTTP/1.0\r\ncontent-length: 0\r\n\r\n";
    let reply = Reply::read(server.open(request).await);
    let answer = async {
        match within(server.operator_requests.recv()).await {
            Some(OperatorRequest::Forget(id, answer)) => {
                assert_eq!(id, node_id(2));
                answer.send(ForgetOutcome::Done).unwrap();
            }
            other => panic!("{other:?}"),
        }
    };
    let (reply, ()) = tokio::join!(reply, answer);
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
}

#[tokio::test]
async fn targets_that_prometheus_has_are_not_sent_again() {
    let server = cluster().await;
    let tag = server.get("/sd/prometheus").await.header("etag").to_owned();
    let statuses = [
        (tag.clone(), 304),
        (format!("W/{tag}"), 304),
        (format!("\"a,b\", W/\"c\" ,{tag}"), 304),
        (format!("\"a\"\r\nif-none-match: {tag}"), 304),
        ("*".to_owned(), 304),
        (tag.trim_matches('"').to_owned(), 200),
        (format!("w/{tag}"), 200),
        ("\"a\", \"b\"".to_owned(), 200),
    ];
    for (known, status) in statuses {
        let request = format!("GET /sd/prometheus HTTP/1.0\r\nif-none-match: {known}\r\n\r\n");
        let reply = Reply::read(server.open(request).await).await;
        assert_eq!((reply.status, reply.header("etag")), (status, tag.as_str()), "{known:?}");
        assert_eq!(reply.body.is_empty(), status == 304, "{known:?}");
    }
}
