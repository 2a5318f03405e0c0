//! Tests of Consul's agent API (`/v1/agent`): services and checks are answered as they were registered,
//! reports change the status of checks, and maintenance can be begun and ended.

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_registration_is_answered_as_it_was_sent() {
    let server = cluster().await;
    let body = json!({
        "Name": "web", "Tags": ["v1"], "Port": 8080, "Meta": { "version": "1" }, "EnableTagOverride": true,
        "Weights": { "Passing": 10, "Warning": 2 }, "tagged_addresses": { "lan": { "address": "10.0.0.9", "port": 1 } },
        "Kind": "", "Connect": {}, "Proxy": null, "Namespace": "x", "whatever": [1],
        "Check": { "TTL": "15s", "Notes": "beats", "deregister_critical_service_after": "30s" },
    });
    register(&server, body).await;
    let service = server.get("/v1/agent/services").await.json()["web"].clone();
    let expected = json!({
        "ID": "web", "Service": "web", "Tags": ["v1"], "Meta": { "version": "1" }, "Port": 8080, "Ports": [],
        "Address": "", "TaggedAddresses": { "lan": { "Address": "10.0.0.9", "Port": 1 } },
        "Weights": { "Passing": 10, "Warning": 2 }, "EnableTagOverride": true,
        "CreateIndex": service["CreateIndex"], "ModifyIndex": service["ModifyIndex"],
    });
    assert_eq!(service, expected);
    let checks = server.get("/v1/agent/checks").await.json();
    let check = &checks["service:web"];
    assert_eq!(check["Notes"], "beats");
    assert_eq!(
        (&check["Status"], &check["Type"], &check["Interval"]),
        (&json!("critical"), &json!("ttl"), &json!(""))
    );
    register(&server, json!({ "Name": "bare", "Address": "10.0.0.7" })).await;
    let bare = server.get("/v1/agent/service/bare").await.json();
    assert_eq!(
        (&bare["Tags"], &bare["Meta"], &bare["TaggedAddresses"], &bare["Address"]),
        (&json!([]), &json!({}), &json!({}), &json!("10.0.0.7"))
    );
}

#[tokio::test]
async fn ids_of_checks_follow_the_instance_unless_they_are_given() {
    let server = cluster().await;
    let ttl = json!({ "TTL": "15s" });
    register(&server, json!({ "ID": "a", "Name": "web", "Check": ttl, "Checks": [] })).await;
    register(&server, json!({ "ID": "b", "Name": "web", "Checks": [ttl, ttl, {}] })).await;
    register(&server, json!({ "ID": "c", "Name": "web", "Check": { "CheckID": "c-ttl", "TTL": "15s" } }))
        .await;
    let checks = server.get("/v1/agent/checks").await.json();
    let ids: Vec<&String> = checks.as_object().unwrap().keys().collect();
    assert_eq!(ids, ["c-ttl", "service:a", "service:b:1", "service:b:2"]);
}

#[tokio::test]
async fn checks_show_the_timeout_that_was_sent_however_long() {
    let server = cluster().await;
    let check = json!({ "HTTP": "http://127.0.0.1:1/", "Interval": "5s", "Timeout": "1m" });
    register(&server, json!({ "Name": "web", "Port": 1, "Check": check })).await;
    let json = server.get("/v1/agent/checks").await.json()["service:web"].clone();
    assert_eq!((&json["Interval"], &json["Timeout"]), (&json!("5s"), &json!("1m0s")));
    let spec = server.registry.get("web").unwrap().row.registration.checks[0].clone();
    assert!(spec.timeout < spec.interval && spec.timeout > Duration::from_secs(4), "{spec:?}");
}

#[tokio::test]
async fn a_check_that_a_node_does_not_run_is_400_and_named() {
    let server = cluster().await;
    for (field, value) in [
        ("Args", json!(["true"])),
        ("ScriptArgs", json!(["true"])),
        ("Script", json!("true")),
        ("DockerContainerID", json!("x")),
        ("OSService", json!("x")),
        ("AliasNode", json!("n2")),
    ] {
        let body = json!({ "Name": "web", "Port": 1, "Check": { field: value, "HTTP": "http://10.0.0.1/", "Interval": "5s" } });
        let reply = send_put(&server, "/v1/agent/service/register", &body.to_string()).await;
        assert!(reply.status == 400 && reply.body.starts_with(field), "{field}: {reply:?}");
    }
    for (body, word) in [
        (json!({ "Name": "web", "Check": { "Notes": "x" } }), "kind"),
        (json!({ "Name": "web", "Tags": ["x".repeat(17_000)] }), "16384"),
        (json!({ "Name": "web", "Port": 1, "Ports": [{ "Name": "a", "Port": 2 }] }), "port"),
        (json!({ "Port": 1 }), "Name"),
        (json!({ "Name": "web", "Check": { "TTL": "soon" } }), "TTL"),
        (json!([]), "body"),
    ] {
        let reply = send_put(&server, "/v1/agent/service/register", &body.to_string()).await;
        assert!(reply.status == 400 && reply.body.contains(word), "{body}: {reply:?}");
    }
    assert!(server.registry.is_empty());
}

#[tokio::test]
async fn reports_of_ttl_checks_change_their_status_and_an_unknown_check_is_404() {
    let server = cluster().await;
    register(&server, json!({ "Name": "web", "Check": { "TTL": "1h" } })).await;
    let status = async || {
        let check = server.get("/v1/agent/checks").await.json()["service:web"].clone();
        (check["Status"].as_str().unwrap().to_owned(), check["Output"].as_str().unwrap().to_owned())
    };
    for (path, body, expected) in [
        ("pass/service:web?note=fine", "", ("passing", "fine")),
        ("warn/service:web?note=slow", "", ("warning", "slow")),
        ("fail/service:web", "", ("critical", "")),
        ("update/service:web", r#"{"Status":"passing","Output":"ok"}"#, ("passing", "ok")),
        ("update/service%3Aweb", r#"{"status":"warning"}"#, ("warning", "")),
    ] {
        let reply = send_put(&server, &format!("/v1/agent/check/{path}"), body).await;
        assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{path}: {reply:?}");
        assert_eq!(status().await, (expected.0.to_owned(), expected.1.to_owned()), "{path}");
    }
    for path in ["pass/none", "warn/none", "fail/none", "deregister/none"] {
        let reply = send_put(&server, &format!("/v1/agent/check/{path}"), "").await;
        assert!(reply.status == 404 && reply.body.contains("none"), "{path}: {reply:?}");
    }
    let reply = send_put(&server, "/v1/agent/check/update/service:web", r#"{"Status":"good"}"#).await;
    assert_eq!(reply.status, 400, "{reply:?}");
}

#[tokio::test]
async fn checks_can_be_registered_apart_and_stay_when_their_instance_registers_again() {
    let server = cluster().await;
    register(&server, json!({ "ID": "w", "Name": "web", "Check": { "TTL": "1h", "Status": "passing" } }))
        .await;
    let apart = json!({ "ServiceID": "w", "ID": "apart", "Name": "Apart", "TTL": "1h", "Notes": "n", "Status": "warning" });
    let reply = send_put(&server, "/v1/agent/check/register", &apart.to_string()).await;
    assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{reply:?}");
    let ids = async || {
        let checks = server.get("/v1/agent/checks").await.json();
        checks.as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(ids().await, ["apart", "service:w"]);
    let check = server.get("/v1/agent/checks").await.json()["apart"].clone();
    assert_eq!(
        (&check["Notes"], &check["Status"], &check["ServiceID"]),
        (&json!("n"), &json!("warning"), &json!("w"))
    );
    let again = json!({ "ID": "w", "Name": "web", "Check": { "TTL": "2h" } });
    register(&server, again.clone()).await;
    assert_eq!(ids().await, ["apart", "service:w"]);
    let reply =
        send_put(&server, "/v1/agent/service/register?replace-existing-checks=true", &again.to_string())
            .await;
    assert_eq!(reply.status, 200);
    assert_eq!(ids().await, ["service:w"]);
    assert_eq!(send_put(&server, "/v1/agent/check/deregister/service:w", "").await.status, 200);
    assert!(ids().await.is_empty());
    for (body, status, word) in [
        (json!({ "Name": "x", "TTL": "1h" }), 400, "ServiceID"),
        (json!({ "ServiceID": "none", "Name": "x", "TTL": "1h" }), 404, "none"),
        (json!({ "ServiceID": "w", "TTL": "1h" }), 400, "Name"),
    ] {
        let reply = send_put(&server, "/v1/agent/check/register", &body.to_string()).await;
        assert!(reply.status == status && reply.body.contains(word), "{reply:?}");
    }
}

#[tokio::test]
async fn an_instance_is_in_maintenance_until_it_is_taken_back() {
    let server = cluster().await;
    register(&server, json!({ "Name": "web", "Check": { "TTL": "1h", "Status": "passing" } })).await;
    let health = async |path: &str| {
        let reply = server.get(&format!("/v1/agent/health/service/{path}")).await;
        let json = reply.json();
        let word = json["AggregatedStatus"].as_str().or(json[0]["AggregatedStatus"].as_str());
        (reply.status, word.unwrap_or_default().to_owned())
    };
    assert_eq!(health("id/web").await, (200, "passing".into()));
    assert_eq!(send_put(&server, "/v1/agent/check/warn/service:web", "").await.status, 200);
    assert_eq!(health("name/web").await, (429, "warning".into()));
    assert_eq!(send_put(&server, "/v1/agent/check/fail/service:web", "").await.status, 200);
    assert_eq!(health("id/web").await, (503, "critical".into()));
    let reply = send_put(&server, "/v1/agent/service/maintenance/web?enable=true&reason=disk", "").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(health("id/web").await, (503, "maintenance".into()));
    let check = server.get("/v1/agent/checks").await.json()["_service_maintenance:web"].clone();
    assert_eq!((&check["Notes"], &check["Status"]), (&json!("disk"), &json!("critical")));
    assert_eq!(send_put(&server, "/v1/agent/service/maintenance/web?enable=false", "").await.status, 200);
    assert_eq!(health("name/web").await, (503, "critical".into()));
    assert_eq!(send_put(&server, "/v1/agent/service/maintenance/web", "").await.status, 400);
    assert_eq!(send_put(&server, "/v1/agent/service/maintenance/none?enable=true", "").await.status, 404);
    let text = server.get("/v1/agent/health/service/id/web?format=text").await;
    assert_eq!((text.status, text.body.as_str()), (503, "critical"));
    let plain = server.send("GET /v1/agent/health/service/name/web", &["accept: text/plain"], "").await;
    assert_eq!((plain.status, plain.body.as_str()), (503, "critical"));
    let none = server.get("/v1/agent/health/service/name/none").await;
    assert_eq!((none.status, none.body.as_str()), (404, "[]"));
    assert_eq!(server.get("/v1/agent/health/service/id/none").await.status, 404);
}

#[tokio::test]
async fn the_agents_own_writes_ignore_unknown_parameters_and_a_missing_reason_is_consuls() {
    let mut server = cluster().await;
    for (query, expected) in [
        ("enable=true&reason=a%20disk&dc=dc1&ns=x&token=t", Some("a disk")),
        ("enable=false&partition=p", None),
        (
            "enable=true&reason=",
            Some(
                "Maintenance mode is enabled for this node, but no reason was provided. This is a default message.",
            ),
        ),
    ] {
        let reply = send_put(&server, &format!("/v1/agent/maintenance?{query}"), "").await;
        assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{query}: {reply:?}");
        let reason = server.registry.node_maintenance().map(|maintenance| maintenance.reason);
        assert_eq!(reason.as_deref(), expected, "{query}");
    }
    assert_eq!(send_put(&server, "/v1/agent/leave?dc=dc1&token=t", "").await.status, 200);
    assert!(matches!(within(server.operator_requests.recv()).await, Some(OperatorRequest::Leave)));
}

#[tokio::test]
async fn a_service_blocks_by_the_hash_of_what_was_registered() {
    let server = Arc::new(cluster().await);
    register(&server, json!({ "Name": "web", "Check": { "TTL": "1h" } })).await;
    let reply = server.get("/v1/agent/service/web").await;
    let hash = reply.json()["ContentHash"].as_str().unwrap().to_owned();
    assert_eq!(reply.header("x-consul-contenthash"), hash);
    assert_eq!(send_put(&server, "/v1/agent/check/pass/service:web", "").await.status, 200);
    let same = server.get(&format!("/v1/agent/service/web?hash={hash}&wait=10ms")).await;
    assert_eq!(same.json()["ContentHash"], json!(hash), "a check is no part of it");
    let waiting = held(&server, &format!("/v1/agent/service/web?hash={hash}&wait=5m")).await;
    // The provider table stays as it is, since this server has no driver.
    register(&server, json!({ "Name": "web", "Tags": ["v2"], "Check": { "TTL": "1h" } })).await;
    assert_ne!(within(waiting).await.unwrap().json()["ContentHash"], json!(hash));
    let reply = server.get("/v1/agent/service/none").await;
    assert_eq!((reply.status, reply.body.as_str()), (404, "unknown service ID: none"));
}

/// Other nodes see none of these fields, so a change of one changes nothing in the provider table.
#[tokio::test]
async fn every_change_of_a_registration_wakes_a_reader_that_blocks_by_hash() {
    let server = Arc::new(cluster().await);
    let mut body = json!({ "Name": "web", "Port": 80 });
    register(&server, body.clone()).await;
    for (field, value) in [
        ("TaggedAddresses", json!({ "lan": { "Address": "10.0.0.9", "Port": 1 } })),
        ("EnableTagOverride", json!(true)),
        ("Weights", json!({ "Passing": 1, "Warning": 7 })),
        ("Address", json!("127.0.0.1")),
        ("Meta", json!({ "a": "b" })),
    ] {
        let hash = server.get("/v1/agent/service/web").await.json()["ContentHash"].clone();
        let hash = hash.as_str().unwrap();
        let waiting = held(&server, &format!("/v1/agent/service/web?hash={hash}&wait=5m")).await;
        body[field] = value.clone();
        register(&server, body.clone()).await;
        assert_eq!(within(waiting).await.unwrap().json()[field], value, "{field}");
    }
    let hash = server.get("/v1/agent/service/web").await.json()["ContentHash"].clone();
    let path = format!("/v1/agent/service/web?hash={}&wait=5m", hash.as_str().unwrap());
    let waiting = held(&server, &path).await;
    assert_eq!(send_put(&server, "/v1/agent/service/deregister/web", "").await.status, 200);
    assert_eq!(within(waiting).await.unwrap().status, 404);
}

#[tokio::test]
async fn the_port_of_dns_is_stated() {
    let server = cluster().await;
    assert_eq!(server.get("/v1/agent/self").await.json()["DebugConfig"]["DNSPort"], json!(8600));
}

#[tokio::test]
async fn plus_and_percent_in_paths_are_decoded_once() {
    let server = cluster().await;
    server.apply([offered(instance(1, "s", "my service"))]);
    for name in ["my+service", "my%20service"] {
        assert_eq!(
            listed(&server, &format!("/v1/health/service/{name}"), "/Service/ID").await,
            ["s"],
            "{name}"
        );
    }
    for id in ["a/b", "a b", "a+b", "a%2Fb"] {
        register(&server, json!({ "ID": id, "Name": "web" })).await;
    }
    for (path, id) in
        [("a%2Fb", "a/b"), ("a%20b", "a b"), ("a+b", "a+b"), ("a%2Bb", "a+b"), ("a%252Fb", "a%2Fb")]
    {
        assert_eq!(server.get(&format!("/v1/agent/service/{path}")).await.json()["ID"], json!(id), "{path}");
    }
    assert_eq!(send_put(&server, "/v1/agent/service/deregister/a+b", "").await.status, 200);
    assert_eq!(
        send_put(&server, "/v1/agent/service/deregister/a+b", "").await.status,
        200,
        "the one with a space"
    );
    assert_eq!(send_put(&server, "/v1/agent/service/deregister/a+b", "").await.status, 404);
    let left = server.get("/v1/agent/services").await.json();
    assert_eq!(left.as_object().unwrap().len(), 2);
}

#[tokio::test]
async fn slashes_of_an_id_need_no_escapes() {
    let server = cluster().await;
    register(&server, json!({ "ID": "a/b/c", "Name": "web", "Check": { "TTL": "1h" } })).await;
    assert_eq!(server.get("/v1/agent/service/a/b/c").await.json()["ID"], json!("a/b/c"));
    for path in [
        "check/pass/service:a/b/c?note=fine",
        "check/pass/service:a/b/c/",
        "service/maintenance/a/b/c?enable=true",
        "service/maintenance/a/b/c/?enable=false",
    ] {
        assert_eq!(send_put(&server, &format!("/v1/agent/{path}"), "").await.status, 200, "{path}");
    }
    assert_eq!(server.get("/v1/agent/health/service/id/a/b/c").await.status, 200);
    for path in ["check/warn/service:a/b/c", "check/fail/service:a/b/c", "check/deregister/service:a/b/c"] {
        assert_eq!(send_put(&server, &format!("/v1/agent/{path}"), "").await.status, 200, "{path}");
    }
    assert_eq!(send_put(&server, "/v1/agent/service/deregister/a/b", "").await.status, 404);
    assert_eq!(send_put(&server, "/v1/agent/service/deregister/a/b/c", "").await.status, 200);
    assert!(server.registry.is_empty());
}
