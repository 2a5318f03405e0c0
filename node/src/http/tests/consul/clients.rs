//! Tests that replay the requests of Consul clients (fabio, Nomad, Spring, Traefik and others): the answers
//! contain the fields that these clients read.

use serde_json::json;

use super::*;

/// Sends a request with these lines of head, and returns a success.
async fn replay(server: &Server, request: &str, headers: &[&str], body: &str) -> Reply {
    let reply = server.send(request, headers, body).await;
    assert_eq!(reply.status, 200, "{request}: {reply:?}");
    reply
}

#[tokio::test]
async fn fabio_registers_itself_and_reads_states_and_instances() {
    let server = cluster().await;
    let own = replay(&server, "GET /v1/agent/self", &[], "").await.json();
    assert!(own["Config"]["Datacenter"].is_string());
    let body = json!({
        "ID": "fabio-n1-9998", "Name": "fabio", "Tags": null, "Port": 9998, "Address": "127.0.0.1",
        "EnableTagOverride": false, "Check": null,
        "Checks": [
            { "Interval": "1s", "Timeout": "3s", "HTTP": "http://127.0.0.1:9998/health" },
            { "CheckID": "fabio-n1-9998-ttl", "TTL": "3s", "DeregisterCriticalServiceAfter": "1h" },
        ],
    });
    replay(&server, "PUT /v1/agent/service/register", &["user-agent: Go-http-client/1.1"], &body.to_string())
        .await;
    let update = r#"{"Status":"passing","Output":""}"#;
    replay(&server, "PUT /v1/agent/check/update/fabio-n1-9998-ttl", &[], update).await;
    let services = replay(&server, "GET /v1/agent/services", &[], "").await.json();
    assert_eq!(services["fabio-n1-9998"]["Tags"], json!([]));
    let checks = replay(&server, "GET /v1/health/state/any?index=1&wait=1ms", &[], "").await.json();
    for check in checks.as_array().unwrap() {
        for member in ["Node", "CheckID", "Name", "Status", "ServiceID", "ServiceName"] {
            assert!(check[member].is_string(), "{check}");
        }
    }
    let instances = replay(&server, "GET /v1/catalog/service/web?stale=", &[], "").await.json();
    assert!(instances[0]["ServiceAddress"].is_string() && instances[0]["ServicePort"].is_u64());
    replay(&server, "PUT /v1/agent/service/deregister/fabio-n1-9998", &[], "").await;
}

#[tokio::test]
async fn nomad_finds_what_it_registered_as_it_sent_it() {
    let server = cluster().await;
    let sent = json!({
        "Kind": "", "ID": "_nomad-task-1a-group-web-http", "Name": "web", "Tags": ["v1"], "Port": 23456,
        "Address": "10.0.0.7", "TaggedAddresses": { "lan_ipv4": { "Address": "10.0.0.7", "Port": 23456 } },
        "EnableTagOverride": false, "Meta": { "external-source": "nomad" }, "Weights": null, "Check": null,
        "Checks": null, "Proxy": null, "Connect": null,
    });
    let headers = ["content-type: application/json"];
    replay(&server, "PUT /v1/agent/service/register", &headers, &sent.to_string()).await;
    let check = json!({
        "ID": "_nomad-check-0123", "Name": "service: web check", "ServiceID": "_nomad-task-1a-group-web-http",
        "Interval": "10s", "Timeout": "2s", "TTL": "1h", "Status": "", "Method": "", "Header": {}, "Notes": "",
    });
    replay(&server, "PUT /v1/agent/check/register", &headers, &check.to_string()).await;
    let found =
        replay(&server, "GET /v1/agent/services", &[], "").await.json()["_nomad-task-1a-group-web-http"]
            .clone();
    for (member, of_sent) in [
        ("ID", "ID"),
        ("Service", "Name"),
        ("Tags", "Tags"),
        ("Port", "Port"),
        ("Address", "Address"),
        ("TaggedAddresses", "TaggedAddresses"),
        ("EnableTagOverride", "EnableTagOverride"),
        ("Meta", "Meta"),
    ] {
        assert_eq!(found[member], sent[of_sent], "{member}");
    }
    assert_eq!(found["Weights"], json!({ "Passing": 1, "Warning": 1 }));
    replay(&server, "PUT /v1/agent/service/register", &headers, &sent.to_string()).await;
    let checks = replay(&server, "GET /v1/agent/checks", &[], "").await.json();
    assert!(checks["_nomad-check-0123"]["Interval"].is_string(), "the check of its own stays: {checks}");
}

#[tokio::test]
async fn registrator_reads_the_leader_and_registers_with_colons_in_ids() {
    let server = cluster().await;
    assert!(replay(&server, "GET /v1/status/leader", &[], "").await.json().is_string());
    let body = json!({
        "ID": "host:redis.0:6379", "Name": "redis", "Port": 32768, "Address": "10.0.0.7", "Tags": [],
        "Check": { "TTL": "30s", "Script": "" },
    });
    replay(&server, "PUT /v1/agent/service/register", &[], &body.to_string()).await;
    replay(&server, "PUT /v1/agent/check/pass/service:host:redis.0:6379?note=", &[], "").await;
    // To remove what is left of its last run, it takes the ids of services apart.
    let services = replay(&server, "GET /v1/agent/services", &[], "").await.json();
    assert_eq!(services["host:redis.0:6379"]["ID"], "host:redis.0:6379", "{services}");
    replay(&server, "PUT /v1/agent/service/deregister/host:redis.0:6379", &[], "").await;
}

#[tokio::test]
async fn spring_registers_in_its_spelling_and_discovers() {
    let server = cluster().await;
    let body = json!({
        "ID": "shop-8080", "Name": "shop", "Tags": ["zone=a"], "Address": "127.0.0.1", "Meta": { "secure": "false" },
        "Port": 8080, "EnableTagOverride": null, "Checks": null,
        "Check": { "ID": null, "Script": null, "Interval": null, "HTTP": null, "TTL": "30s",
            "DeregisterCriticalServiceAfter": null, "TLSSkipVerify": null, "Status": "passing" },
    });
    let headers = ["content-type: application/json;charset=UTF-8", "accept: application/json"];
    replay(&server, "PUT /v1/agent/service/register?token=", &headers, &body.to_string()).await;
    replay(&server, "PUT /v1/agent/check/pass/service:shop-8080?note=", &headers, "").await;
    let entries =
        replay(&server, "GET /v1/health/service/web?passing=true&token=&tag=", &headers, "").await.json();
    assert_eq!(entries.as_array().unwrap().len(), 1);
    assert!(
        ["passing", "warning", "critical"].contains(&entries[0]["Checks"][0]["Status"].as_str().unwrap())
    );
    let services = replay(&server, "GET /v1/catalog/services?wait=2s&index=-1&token=", &headers, "").await;
    assert!(services.json()["web"].is_array() && !services.header("x-consul-index").is_empty());
    let peers = replay(&server, "GET /v1/status/peers", &headers, "").await.json();
    assert!(peers[0].is_string());
}

#[tokio::test]
async fn readers_find_the_members_that_they_decode() {
    let server = cluster().await;
    let cases: [(&str, &str, &[&str]); 9] = [
        // Prometheus
        ("GET /v1/catalog/services?index=0&stale=&wait=120000ms", "/web", &[]),
        ("GET /v1/health/service/web?index=0&stale=&tag=a", "/0/Node/Datacenter", &["accept-encoding: gzip"]),
        // Traefik
        ("GET /v1/health/service/web?passing=1&filter=", "/0/Node/ID", &["accept-encoding: gzip"]),
        // consul-template
        ("GET /v1/health/service/web?passing=1&stale=&wait=60000ms&near=_agent", "/0/Checks/0/CheckID", &[]),
        ("GET /v1/catalog/nodes?stale=&wait=60000ms", "/0/TaggedAddresses/lan", &[]),
        // HAProxy Data Plane API
        ("GET /v1/health/service/web", "/0/Checks/0/Status", &["accept: */*"]),
        // APISIX
        ("GET /v1/health/service/web?passing=true&index=0&wait=60s", "/0/Service/Address", &[]),
        // Telegraf
        ("GET /v1/health/state/any", "/0/Definition", &[]),
        ("GET /v1/agent/metrics", "/Gauges", &[]),
    ];
    for (request, pointer, headers) in cases {
        let reply = replay(&server, request, headers, "").await;
        assert!(reply.json().pointer(pointer).is_some(), "{request}: {reply:?}");
    }
}

#[tokio::test]
async fn nginx_upsync_reads_over_http_1_0_and_compares_the_bytes_of_the_index_header() {
    let server = cluster().await;
    for (path, port) in [
        ("/v1/catalog/service/web?recurse&index=0", "/0/ServicePort"),
        ("/v1/health/service/web?index=0", "/0/Service/Port"),
    ] {
        let request = format!("GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n");
        let mut text = String::new();
        within(server.open(request).await.read_to_string(&mut text)).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 ") && head.contains("\r\nX-Consul-Index: "), "{path}: {text}");
        // It reads to the end of the connection, so chunks would be taken for the body.
        assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{path}: {text}");
        let json: Value = serde_json::from_str(body).unwrap();
        assert!(json.pointer(port).is_some_and(Value::is_u64), "{path}: {text}");
    }
}

#[tokio::test]
async fn consul_template_renders_only_with_an_index_and_a_last_contact() {
    let server = cluster().await;
    let mut waiting = Vec::new();
    for path in [
        "/v1/catalog/services?stale=&wait=60000ms",
        "/v1/catalog/service/web?stale=&wait=60000ms",
        "/v1/catalog/nodes?stale=&wait=60000ms",
        "/v1/catalog/node/n1?stale=&wait=60000ms",
        "/v1/health/service/web?passing=1&stale=&wait=60000ms",
        "/v1/health/service/unknown?passing=1&stale=&wait=60000ms",
    ] {
        let reply = replay(&server, &format!("GET {path}"), &["accept-encoding: gzip"], "").await;
        let index: u64 = reply.header("x-consul-index").parse().unwrap();
        let contact: u64 = reply.header("x-consul-lastcontact").parse().unwrap();
        assert!(index > 0 && contact == 0, "{path}: {reply:?}");
        assert_eq!(reply.header("x-consul-knownleader"), "true", "{path}");
        // With the index that it has seen, the same query waits.
        let again = format!("GET {path}&index={index} HTTP/1.0\r\n\r\n");
        waiting.push(server.open(again).await);
        until("it waits", || server.metrics.http.waiting.get() == waiting.len() as i64).await;
    }
    assert_eq!(replay(&server, "GET /v1/catalog/datacenters", &[], "").await.json(), json!(["dc1"]));
}
