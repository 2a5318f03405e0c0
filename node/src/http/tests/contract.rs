//! Tests of the HTTP API's contract: exact JSON, filters and order of instances; errors; operator requests
//! (leave, maintenance, forget); probes, metrics, `/network`; plug-in prefixes, redirect of `/`, final slash.

use serde_json::json;

use super::*;
use crate::driver_command::{ForgetOutcome, Outsider, Reason};

#[tokio::test]
async fn services_have_exactly_the_shape_of_the_contract() {
    let server = Server::start().await;
    server.apply([joined(member(1)), offered(instance(1, "g", "grading"))]);
    let reply = server.get("/services").await;
    let expected = json!({
        "cluster": "test", "node": "n1", "index": START.0 + 2,
        "services": { "grading": [{
            "id": "g", "name": "grading", "node": "n1", "nodeId": node_id(1).to_string(),
            "address": "10.0.0.1", "addresses": ["10.0.0.1:80"], "port": 80, "ports": [],
            "url": "http://10.0.0.1:80", "tags": ["a", "n1"], "meta": { "k": "v" }, "weight": 1, "zone": null,
            "requires": [], "health": "passing", "since": "1970-01-01T00:00:01.500Z",
        }] },
    });
    assert_eq!((reply.status, reply.json()), (200, expected.clone()));
    assert_eq!(reply.header("x-hearsay-index"), (START.0 + 2).to_string());
    assert_eq!(server.get("/services/grading").await.json(), expected);
}

#[tokio::test]
async fn a_role_is_listed_with_all_addresses_of_its_node_the_connected_one_first() {
    let server = Server::start().await;
    let on_two_networks = Member {
        http: Some("10.0.0.1:80".into()),
        roles: vec!["grading".into()],
        addresses: ["/ip4/10.0.0.1/tcp/7600", "/ip6/fd77::1/tcp/7600"].map(str::to_owned).into(),
        ..member(2)
    };
    let (node, id, grading) = instance(2, "g", "grading");
    let grading = Instance { address: "10.0.0.1".into(), url: "http://10.0.0.1:80".into(), ..grading };
    server.apply([joined(on_two_networks), offered((node, id, grading))]);
    let listed = async || server.get("/services/grading").await.json()["services"]["grading"][0].clone();
    assert_eq!(listed().await["url"], "http://10.0.0.1:80");
    server.view.set_connected(node, "fd77::1".parse().unwrap());
    let instance = listed().await;
    assert_eq!(instance["url"], "http://[fd77::1]:80");
    assert_eq!(instance["address"], "fd77::1");
    assert_eq!(instance["addresses"], json!(["[fd77::1]:80", "10.0.0.1:80"]));
}

#[tokio::test]
async fn an_unknown_service_is_404_with_the_index_to_wait_with() {
    let server = Server::start().await;
    let reply = server.get("/services/none").await;
    assert!(reply.problem(404).contains("\"none\""));
    assert_eq!(reply.header("x-hearsay-index"), START.0.to_string());
}

#[tokio::test]
async fn instances_are_filtered_by_tags_and_health() {
    let server = Server::start().await;
    let (node, id, mut sick) = instance(2, "b", "web");
    sick.health = Health::Critical;
    server.apply([
        joined(member(1)),
        joined(member(2)),
        offered(instance(1, "a", "web")),
        offered((node, id, sick)),
    ]);
    let ids = async |query: &str| -> Vec<String> {
        let services = server.get(&format!("/services/web?{query}")).await.json();
        services["services"]["web"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["id"].as_str().unwrap().into())
            .collect()
    };
    assert_eq!(ids("tag=a").await.len(), 2);
    assert_eq!(ids("tag=a&tag=n2").await, ["b"]);
    assert_eq!(ids("health=passing").await, ["a"]);
    assert_eq!(ids("health=critical").await, ["b"]);
    assert!(ids("health=warning").await.is_empty());
}

#[tokio::test]
async fn the_nearest_come_first_own_node_then_zone_then_round_trip() {
    let server = Server::start().await;
    let placed = |seed, zone: Option<&str>, rtt_ms: Option<u64>| {
        let (zone, rtt) = (zone.map(str::to_owned), rtt_ms.map(Duration::from_millis));
        joined(Member { zone, rtt, ..member(seed) })
    };
    server.apply([
        placed(1, Some("east"), None),
        placed(2, Some("east"), Some(9)),
        placed(3, Some("west"), Some(2)),
        placed(4, None, Some(1)),
        placed(5, Some("west"), None),
    ]);
    server.apply((1..=5).map(|seed| offered(instance(seed, "a", "web"))));
    let json = server.get("/services/web?near=_self").await.json();
    let nodes: Vec<&str> =
        json["services"]["web"].as_array().unwrap().iter().map(|i| i["node"].as_str().unwrap()).collect();
    assert_eq!(nodes, ["n1", "n2", "n4", "n3", "n5"]);
}

#[tokio::test]
async fn a_bad_parameter_is_named_with_what_is_allowed() {
    let server = Server::start().await;
    for (path, words) in [
        ("/services?health=good", ["health", "passing, warning, critical"]),
        ("/services?near=n7", ["near", "_self"]),
        ("/services?index=x", ["index", "whole number"]),
        ("/services/web?index=1&wait=soon", ["wait", "such as 10s"]),
        ("/services?heatlh=passing", ["heatlh", "tag, health, near, zone, index, wait"]),
        ("/members?tag=a", ["tag", "index, wait"]),
        ("/services/watch?tag=a", ["tag", "service"]),
    ] {
        let detail = server.get(path).await.problem(400);
        assert!(words.iter().all(|word| detail.contains(word)), "{path}: {detail}");
    }
}

#[tokio::test]
async fn members_have_exactly_the_shape_of_the_contract() {
    let server = Server::start().await;
    let far = Member {
        rtt: Some(Duration::from_micros(1_234)),
        http: None,
        grpc: Some("10.0.0.2:7700".into()),
        state: MemberState::Suspect,
        ..member(2)
    };
    server.apply([joined(member(1)), joined(far), joined(member(3)), Change::RootHash([0x0f; 16])]);
    let reply = server.get("/members").await;
    let json = reply.json();
    assert_eq!(reply.header("x-hearsay-index"), (START.0 + 3).to_string());
    assert_eq!((&json["cluster"], &json["node"]), (&json!("test"), &json!("n1")));
    assert_eq!(json["rootHash"], "0f".repeat(16));
    let by_name =
        |name: &str| json["members"].as_array().unwrap().iter().find(|m| m["name"] == name).unwrap().clone();
    let since = by_name("n2")["since"].clone();
    assert!(since.as_str().is_some_and(|since| since.ends_with('Z')));
    let expected = json!({
        "id": node_id(2).to_string(), "name": "n2", "namesake": false, "state": "suspect", "roles": ["grading"],
        "addresses": ["/ip4/10.0.0.2/tcp/7600"], "http": null, "grpc": "10.0.0.2:7700", "incarnation": 5, "version": 3, "since": since,
        "rttMs": 1.234,
    });
    assert_eq!(by_name("n2"), expected);
    assert_eq!(by_name("n1")["rttMs"], json!(0.0), "to itself");
    assert_eq!(by_name("n3")["rttMs"], Value::Null, "without a connection");
}

#[tokio::test]
async fn why_tells_who_accused_who_confirmed_and_what_followed() {
    use hearsay_protocol::{Explanation::Accused, Explanation::Became, Explanation::Joined};
    let server = Server::start().await;
    let about = |explanation| Change::Explained(node_id(2), explanation);
    server.apply([
        joined(member(1)),
        joined(member(2)),
        joined(member(3)),
        offered(instance(2, "w", "web")),
        about(Joined(Incarnation(5))),
        about(Accused { by: node_id(3), strong: false }),
        about(Accused { by: node_id(1), strong: true }),
        about(Became(MemberState::Failed)),
        joined(Member { state: MemberState::Failed, ..member(2) }),
    ]);
    let json = server.get("/why/n2").await.json();
    let events: Vec<(&str, &str)> = json["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["event"].as_str().unwrap(), e["by"].as_str().unwrap_or_default()))
        .collect();
    assert_eq!(events, [("joined", ""), ("accused", "n3"), ("confirmed", "n1"), ("became", "")]);
    assert_eq!(json["events"][2]["text"], "n1 confirmed the report on n2: its process is gone.");
    assert!(json["events"].as_array().unwrap().iter().all(|e| e["time"].as_str().unwrap().ends_with('Z')));
    assert_eq!(
        server.get(&format!("/why/{}", node_id(2))).await.json()["events"],
        json["events"],
        "by its id"
    );
    let web = server.get("/why/web").await.json();
    assert_eq!(
        (&web["events"][0]["event"], &web["events"][1]["event"]),
        (&json!("added"), &json!("removed"))
    );
    assert!(server.get("/why/unknown").await.problem(404).contains("unknown"));
}

#[tokio::test]
async fn probes_follow_the_nodes_life() {
    let server = Server::start().await;
    assert_eq!(server.get("/livez").await.status, 200);
    assert_eq!(server.get("/readyz").await.json()["status"], "ready", "alone, and ready");
    for readiness in [Readiness::Starting, Readiness::Leaving] {
        server.readiness.send_replace(readiness);
        server.get("/readyz").await.problem(503);
        assert_eq!(server.get("/livez").await.status, 200);
    }
}

#[tokio::test]
async fn metrics_count_requests_by_route() {
    let server = Server::start().await;
    server.get("/services/none").await;
    let reply = server.get("/metrics").await;
    assert!(reply.header("content-type").starts_with("application/openmetrics-text"));
    let line = r#"hearsay_http_requests_total{route="/services/{name}",method="GET",status="404"} 1"#;
    assert!(reply.body.contains(line), "{}", reply.body);
}

#[tokio::test]
async fn the_root_leads_to_the_portal_where_it_runs_and_else_to_the_cluster_page() {
    for (roles, front) in [(["grading"].as_slice(), "/ui"), (["log", "portal"].as_slice(), "/portal")] {
        let server = Server::with(Setup { roles, ..Setup::default() }).await;
        let reply = server.get("/").await;
        assert_eq!((reply.status, reply.header("location")), (307, front));
        assert!(server.get(front).await.header("content-type").starts_with("text/html"));
    }
}

#[tokio::test]
async fn plugins_answer_below_their_prefix_and_nowhere_else() {
    let server = Server::start().await;
    assert_eq!(server.get("/students").await.json().as_array().unwrap().len(), 5);
    assert_eq!(server.get("/students/1").await.json()["lastName"], "Carter");
    server.get("/students/9").await.problem(404);
    server.get("/students/1/2/3").await.problem(404);
    server.get("/log").await.problem(404);
    assert!(
        server
            .send("POST /students", &["content-type: application/json"], "{}")
            .await
            .problem(400)
            .contains("firstName")
    );
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems() {
    let server = Server::start().await;
    assert!(server.get("/nothing/here").await.problem(404).contains("/nothing/here"));
    for path in ["/services", "/students"] {
        let reply = server.send(&format!("PATCH {path}"), &[], "").await;
        assert!(reply.problem(405).contains("Allow") && reply.header("allow").contains("GET"));
    }
}

#[tokio::test]
async fn below_v1_errors_are_plain_text() {
    let server = Server::start().await;
    for (request, status) in [("GET /v1/no/such/thing", 404), ("GET /v1/agent/leave", 405)] {
        let reply = server.send(request, &[], "").await;
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (status, "text/plain; charset=utf-8"),
            "{reply:?}"
        );
        assert!(!reply.body.starts_with('{') && !reply.body.is_empty());
    }
}

#[tokio::test]
async fn leave_asks_the_driver() {
    let mut server = Server::start().await;
    let reply = server.send("PUT /v1/agent/leave", &[], "").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
    assert!(matches!(within(server.operator_requests.recv()).await, Some(OperatorRequest::Leave)));
    server.operator_requests.close();
    assert_eq!(server.send("PUT /v1/agent/leave", &[], "").await.status, 503);
}

#[tokio::test]
async fn maintenance_asks_the_driver_and_wants_to_know_which_way() {
    let server = Server::start().await;
    for (query, enable) in [("enable=true&reason=disk", true), ("enable=false", false)] {
        assert_eq!(server.send(&format!("PUT /v1/agent/maintenance?{query}"), &[], "").await.status, 200);
        let maintenance = server.registry.node_maintenance();
        assert_eq!(maintenance.map(|m| m.reason), enable.then(|| "disk".to_owned()));
    }
    for query in ["", "reason=x", "enable=perhaps"] {
        assert_eq!(server.send(&format!("PUT /v1/agent/maintenance?{query}"), &[], "").await.status, 400);
    }
}

#[tokio::test]
async fn a_member_is_forgotten_by_its_id_or_it_is_said_why_not() {
    let mut server = Server::start().await;
    server.send("DELETE /members/n2", &[], "").await.problem(404);
    let path = format!("DELETE /members/{}", node_id(2));
    let cases = [
        (ForgetOutcome::Done, 200),
        (ForgetOutcome::Unknown, 404),
        (ForgetOutcome::Present(MemberState::Alive), 409),
        (ForgetOutcome::Present(MemberState::Suspect), 409),
    ];
    for (outcome, status) in cases {
        let request = format!("{path} HTTP/1.1\r\nconnection: close\r\nhost: 127.0.0.1\r\n\r\n");
        let asking = server.open(&request).await;
        let Some(OperatorRequest::Forget(id, tell)) = within(server.operator_requests.recv()).await else {
            panic!("{outcome:?}")
        };
        assert_eq!(id, node_id(2));
        tell.send(outcome).unwrap();
        let reply = Reply::read(asking).await;
        assert_eq!(reply.status, status, "{outcome:?}: {reply:?}");
        match outcome {
            ForgetOutcome::Done => assert_eq!(reply.json()["id"], node_id(2).to_string()),
            ForgetOutcome::Unknown => assert!(reply.body.contains("/members"), "{reply:?}"),
            ForgetOutcome::Present(state) => {
                assert!(
                    reply.body.contains(state.as_str()) && reply.body.contains("node leave"),
                    "{reply:?}"
                );
            }
        }
    }
    server.operator_requests.close();
    assert_eq!(server.send(&path, &[], "").await.status, 503);
}

#[tokio::test]
async fn the_network_around_is_told() {
    let server = Server::start().await;
    let outsider = |address: &str, reason| Outsider { id: None, address: address.into(), reason };
    server.neighbours.send_replace(Neighbourhood {
        mdns: true,
        heard: ["10.77.0.2".parse().unwrap()].into(),
        outsiders: vec![
            outsider("10.77.0.13:7600", Reason::AnotherKey),
            outsider("10.77.0.14:7600", Reason::OtherCluster("shop".into())),
        ],
        ..Neighbourhood::default()
    });
    let reply = server.get("/network").await.json();
    assert_eq!(reply["heard"][0], "10.77.0.2");
    assert_eq!(
        (&reply["outsiders"][0]["reason"], &reply["outsiders"][0]["cluster"]),
        (&"another-key".into(), &Value::Null)
    );
    assert_eq!(reply["outsiders"][1]["cluster"], "shop");
    server.get("/network?x=1").await.problem(400);
}

#[tokio::test]
async fn two_plugins_that_claim_one_prefix_stop_the_start() {
    let twice = [builtin(), builtin()].concat();
    let error = hearsay_services::http::check_prefixes(&twice).unwrap_err().to_string();
    assert!(error.contains("log and log") && error.contains("/log"), "{error}");
}

#[tokio::test]
async fn a_slash_at_the_end_of_a_path_changes_nothing() {
    let roles = &["grading", "log", "portal", "visits"];
    let server = Server::with(Setup { roles, ..Setup::default() }).await;
    let document = server.get("/openapi.json").await.json();
    let mut asked = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let is_stream = item["get"]["responses"]["200"]["content"]["text/event-stream"].is_object();
        if item["get"].is_null() || is_stream || path == "/" {
            continue;
        }
        let path = path.replace("{name}", "grading").replace("{subject}", "n1").replace(['{', '}'], "");
        let (with, without) = (server.get(&format!("{path}/")).await, server.get(&path).await);
        let of = |reply: &Reply| (reply.status, reply.header("content-type").to_owned());
        assert_eq!(of(&with), of(&without), "{path}/");
        asked.push(path);
    }
    for path in [
        "/students",
        "/students/id",
        "/students/export",
        "/portal",
        "/portal/log",
        "/log",
        "/records",
        "/visits",
        "/services",
        "/ui",
    ] {
        assert!(asked.iter().any(|asked| asked == path), "{path} is not among {asked:?}");
    }
    let json = "content-type: application/json";
    let student = r#"{"firstName":"Ada","lastName":"Lovelace"}"#;
    assert_eq!(server.send("POST /students/", &[json], student).await.status, 201);
    assert_eq!(server.get("/students/?q=Lovelace").await.json().as_array().unwrap().len(), 1);
    assert!(server.get("/nowhere/").await.problem(404).contains("/nowhere"));
    server.send("POST /members/", &[json], "{}").await.problem(405);
}
