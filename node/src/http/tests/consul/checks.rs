//! Tests of checks that are registered again: a stated status counts, a kept check keeps its own, and an id
//! belongs to the instance that registered it last.

use serde_json::json;

use super::*;

async fn status(server: &Server, check: &str) -> String {
    let checks = server.get("/v1/agent/checks").await.json();
    checks[check]["Status"].as_str().unwrap_or_else(|| panic!("{check} in {checks}")).to_owned()
}

async fn report(server: &Server, what: &str) {
    let reply = send_put(server, &format!("/v1/agent/check/{what}"), "").await;
    assert_eq!(reply.status, 200, "{what}: {reply:?}");
}

async fn register_check(server: &Server, body: Value) -> Reply {
    send_put(server, "/v1/agent/check/register", &body.to_string()).await
}

#[tokio::test]
async fn a_status_that_is_stated_again_counts_and_without_one_a_check_keeps_its_own() {
    let server = cluster().await;
    let service = |check: Value| json!({ "Name": "web", "Port": 80, "Check": check });
    register(&server, service(json!({ "TTL": "1h", "Status": "passing" }))).await;
    assert_eq!(status(&server, "service:web").await, "passing");
    for (check, expected) in [
        (json!({ "TTL": "1h", "Status": "warning" }), "warning"),
        (json!({ "TTL": "1h" }), "warning"),
        (json!({ "TTL": "2h", "Status": "" }), "warning"),
        (json!({ "TTL": "2h", "Status": "critical" }), "critical"),
        (json!({ "TTL": "2h", "Status": "passing" }), "passing"),
        (json!({ "TTL": "2h" }), "passing"),
    ] {
        register(&server, service(check.clone())).await;
        assert_eq!(status(&server, "service:web").await, expected, "{check}");
    }
    // The newest report is older than the statement.
    report(&server, "fail/service:web").await;
    register(&server, service(json!({ "TTL": "2h", "Status": "passing" }))).await;
    assert_eq!(status(&server, "service:web").await, "passing");
    report(&server, "warn/service:web?note=slow").await;
    let apart = json!({ "ServiceID": "web", "ID": "service:web", "Name": "beat", "TTL": "2h" });
    assert_eq!(register_check(&server, apart.clone()).await.status, 200);
    assert_eq!(status(&server, "service:web").await, "warning");
    let stated =
        json!({ "ServiceID": "web", "ID": "service:web", "Name": "beat", "TTL": "2h", "Status": "critical" });
    assert_eq!(register_check(&server, stated).await.status, 200);
    assert_eq!(status(&server, "service:web").await, "critical");
}

#[tokio::test]
async fn a_request_sets_no_status_of_checks_that_it_does_not_state() {
    let server = cluster().await;
    let beat = json!({ "TTL": "1h", "Status": "passing" });
    register(&server, json!({ "Name": "web", "Port": 80, "Check": beat })).await;
    let apart =
        json!({ "ServiceID": "web", "ID": "apart", "Name": "apart", "TTL": "1h", "Status": "passing" });
    assert_eq!(register_check(&server, apart).await.status, 200);
    report(&server, "fail/service:web").await;
    report(&server, "warn/apart").await;
    let more = json!({ "ServiceID": "web", "ID": "more", "Name": "more", "TTL": "1h", "Status": "passing" });
    assert_eq!(register_check(&server, more).await.status, 200);
    assert_eq!(status(&server, "service:web").await, "critical", "another check was added");
    register(&server, json!({ "Name": "web", "Port": 80, "Check": beat })).await;
    assert_eq!(
        (status(&server, "service:web").await, status(&server, "apart").await),
        ("passing".into(), "warning".into()),
        "the one is stated, the other is kept"
    );
    assert_eq!(send_put(&server, "/v1/agent/check/deregister/more", "").await.status, 200);
    assert_eq!(status(&server, "apart").await, "warning", "another check was removed");
}

#[tokio::test]
async fn a_check_that_runs_keeps_what_it_found_if_the_same_status_is_stated_again() {
    let server = cluster().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let body = |status: &str| {
        let check = json!({ "TCP": closed.to_string(), "Interval": "1h", "Status": status });
        json!({ "Name": "web", "Port": 80, "Check": check })
    };
    register(&server, body("passing")).await;
    let found = || server.registry.get("web").unwrap().checks[0].clone();
    until("a run fails", || found().status == Health::Critical).await;
    let since = found().since_ms;
    register(&server, body("passing")).await;
    assert_eq!((found().status, found().since_ms), (Health::Critical, since));
    // A run of this one lasts an hour.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = silent.local_addr().unwrap().to_string();
    for stated in ["passing", "warning", "critical", "passing"] {
        let check = json!({ "UDP": target, "Interval": "2h", "Timeout": "1h", "Status": stated });
        register(&server, json!({ "Name": "web", "Port": 80, "Check": check })).await;
        assert_eq!(status(&server, "service:web").await, stated);
    }
}

#[tokio::test]
async fn a_new_check_of_a_registered_instance_begins_with_its_stated_status() {
    let server = cluster().await;
    register(&server, json!({ "Name": "web", "Port": 80, "Check": { "TTL": "1h", "Status": "passing" } }))
        .await;
    let checks = json!([
        { "CheckID": "a", "TTL": "1h", "Status": "warning" }, { "CheckID": "b", "TTL": "1h" },
    ]);
    register(&server, json!({ "Name": "web", "Port": 80, "Checks": checks })).await;
    assert_eq!(status(&server, "a").await, "warning");
    assert_eq!(status(&server, "b").await, "passing", "as the instance was before");
}

#[tokio::test]
async fn a_native_registration_states_a_status_too() {
    let server = cluster().await;
    for (stated, expected) in [("passing", "passing"), ("warning", "warning"), ("", "warning")] {
        let check = json!({ "id": "beat", "ttl": "1h", "initial_status": stated });
        let body = json!({ "name": "web", "id": "web", "port": 80, "check": check });
        let reply =
            server.send("POST /services", &["content-type: application/json"], &body.to_string()).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(status(&server, "beat").await, expected);
    }
}

#[tokio::test]
async fn a_check_id_belongs_to_the_instance_that_registered_it_last() {
    let server = cluster().await;
    let beat = json!({ "CheckID": "beat", "TTL": "1h", "Status": "passing", "Notes": "n" });
    let mine = json!({ "TTL": "1h", "Status": "warning" });
    register(&server, json!({ "ID": "a", "Name": "web", "Port": 1, "Checks": [mine, beat] })).await;
    register(&server, json!({ "ID": "b", "Name": "web", "Port": 2, "Check": beat })).await;
    let owner = async || {
        let checks = server.get("/v1/agent/checks").await.json();
        checks["beat"]["ServiceID"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(owner().await, "b");
    // The first instance goes on with its other check, and its state.
    let health = server.get("/v1/agent/health/service/id/a").await.json();
    let ids: Vec<&Value> =
        health["Checks"].as_array().unwrap().iter().map(|check| &check["CheckID"]).collect();
    assert_eq!((ids, &health["AggregatedStatus"]), (vec![&json!("service:a:1")], &json!("warning")));
    report(&server, "fail/beat").await;
    let health = async |id: &str| server.get(&format!("/v1/agent/health/service/id/{id}")).await.status;
    assert_eq!((health("a").await, health("b").await), (429, 503));
    let apart = json!({ "ServiceID": "a", "Name": "beat", "TTL": "1h" });
    assert_eq!(register_check(&server, apart).await.status, 200);
    assert_eq!(owner().await, "a");
    assert_eq!(health("b").await, 200, "it has no check");
    assert_eq!(send_put(&server, "/v1/agent/service/deregister/b", "").await.status, 200);
    assert_eq!(owner().await, "a");
}

#[tokio::test]
async fn a_check_of_a_native_registration_is_not_taken_over() {
    let server = cluster().await;
    let native = json!({ "name": "db", "id": "db", "port": 5432, "check": { "id": "beat", "ttl": "1h" } });
    let post = async |body: &Value| {
        server.send("POST /services", &["content-type: application/json"], &body.to_string()).await
    };
    assert_eq!(post(&native).await.status, 200);
    let consul = json!({ "Name": "web", "Port": 1, "Check": { "CheckID": "beat", "TTL": "1h" } });
    let reply = send_put(&server, "/v1/agent/service/register", &consul.to_string()).await;
    assert!(reply.status == 409 && reply.body.contains("db"), "{reply:?}");
    assert_eq!(server.registry.len(), 1, "nothing was registered");
    let other = json!({ "Name": "web", "Port": 1, "Check": { "CheckID": "other", "TTL": "1h" } });
    register(&server, other).await;
    let native = json!({ "name": "x", "id": "x", "port": 1, "check": { "id": "other", "ttl": "1h" } });
    post(&native).await.problem(409);
}
