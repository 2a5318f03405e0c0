//! Tests of `/v1/catalog/register` and `/v1/catalog/deregister`, as clients without an agent use them.

use serde_json::json;

use super::*;

async fn put(server: &Server, path: &str, body: &Value) -> Reply {
    server.send(&format!("PUT /v1/catalog/{path}"), &[], &body.to_string()).await
}

#[tokio::test]
async fn a_service_that_no_agent_serves_is_registered_and_removed() {
    let server = cluster().await;
    let body = json!({
        "Node": "legacy", "Address": "10.0.0.9", "Datacenter": "dc1",
        "Service": { "ID": "db-1", "Service": "db", "Tags": ["primary"], "Port": 5432 },
        "Checks": [{ "CheckID": "db-1-up", "Name": "up", "Status": "passing", "ServiceID": "db-1" }],
    });
    let reply = put(&server, "register", &body).await;
    assert_eq!((reply.status, &*reply.body), (200, "true"), "{reply:?}");
    let own = server.get("/v1/agent/service/db-1").await.json();
    assert_eq!((&own["Address"], &own["Port"]), (&json!("10.0.0.9"), &json!(5432)));
    assert_eq!(server.get("/v1/agent/checks").await.json()["db-1-up"]["Status"], "passing");

    let critical = json!({ "Node": "legacy", "Address": "10.0.0.9",
        "Check": { "CheckID": "db-1-up", "Name": "up", "Status": "critical", "ServiceID": "db-1" } });
    assert_eq!(put(&server, "register", &critical).await.status, 200);
    assert_eq!(server.get("/v1/agent/checks").await.json()["db-1-up"]["Status"], "critical");

    let removal = json!({ "Node": "legacy", "ServiceID": "db-1" });
    for _ in 0..2 {
        let reply = put(&server, "deregister", &removal).await;
        assert_eq!((reply.status, &*reply.body), (200, "true"), "{reply:?}");
    }
    assert_eq!(server.get("/v1/agent/services").await.json(), json!({}));
}

#[tokio::test]
async fn a_check_is_removed_alone() {
    let server = cluster().await;
    let body = json!({ "Node": "legacy", "Address": "10.0.0.9", "Service": { "Service": "db" },
        "Check": { "CheckID": "up", "Name": "up", "Status": "critical" } });
    assert_eq!(put(&server, "register", &body).await.status, 200);
    assert_eq!(server.get("/v1/agent/checks").await.json()["up"]["Status"], "critical");
    assert_eq!(put(&server, "deregister", &json!({ "Node": "legacy", "CheckID": "up" })).await.status, 200);
    assert_eq!(server.get("/v1/agent/checks").await.json(), json!({}));
    assert_eq!(server.get("/v1/agent/service/db").await.status, 200);
}

#[tokio::test]
async fn a_node_and_what_belongs_to_another_member_is_refused_with_the_reason() {
    let server = cluster().await;
    let service = json!({ "Service": "db", "Port": 5432 });
    for (path, body, status, word) in [
        ("register", json!({ "Node": "legacy", "Address": "10.0.0.9" }), 501, "register a Service"),
        ("register", json!({ "Node": "n2", "Address": "10.0.0.9", "Service": service }), 501, "n2"),
        ("register", json!({ "Address": "10.0.0.9", "Service": service }), 400, "Node"),
        (
            "register",
            json!({ "Node": "legacy", "Check": { "Name": "up", "ServiceID": "none" } }),
            404,
            "none",
        ),
        ("deregister", json!({ "Node": "legacy" }), 501, "force-leave"),
        ("deregister", json!({ "Node": "legacy", "ServiceID": "web-2" }), 501, "n2"),
    ] {
        let reply = put(&server, path, &body).await;
        assert!(reply.status == status && reply.body.contains(word), "{body}: {reply:?}");
    }
    assert_eq!(server.get("/v1/agent/services").await.json(), json!({}));
}
