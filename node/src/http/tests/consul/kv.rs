//! Tests of Consul's key/value API (`/v1/kv`): answers have Consul's form, queries block until a key changes,
//! operations that need consensus are refused, and writes need a proof.

use serde_json::json;

use super::*;

/// A node with the role, listed in its own table.
async fn store() -> Server {
    let server = Server::with(Setup { roles: &["kv"], ..Setup::default() }).await;
    let http = server.address.to_string();
    server.apply([joined(Member {
        http: Some(http.clone()),
        roles: vec!["kv".into()],
        addresses: vec!["/ip4/127.0.0.1/tcp/7600".into()],
        ..member(1)
    })]);
    let (node, id, kept) = instance(1, "kv", "kv");
    let kept = Instance {
        address: "127.0.0.1".into(),
        port: server.address.port(),
        url: format!("http://{http}"),
        ..kept
    };
    server.apply([offered((node, id, kept))]);
    server
}

async fn put(server: &Server, path: &str, value: &str) {
    let reply = send_put(server, path, value).await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "true"), "{path}: {reply:?}");
}

async fn delete(server: &Server, path: &str) -> (u16, String) {
    let reply = server.send(&format!("DELETE {path}"), &[], "").await;
    (reply.status, reply.body)
}

#[tokio::test]
async fn a_value_has_consuls_shape_and_headers() {
    let server = store().await;
    put(&server, "/v1/kv/web/limit?flags=7", "100").await;
    let reply = server.get("/v1/kv/web/limit").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    for (name, value) in HEADERS {
        assert_eq!(reply.header(name), value);
    }
    let index: u64 = reply.header("x-consul-index").parse().unwrap();
    let expected = json!([{
        "LockIndex": 0, "Key": "web/limit", "Flags": 7, "Value": "MTAw", "CreateIndex": index, "ModifyIndex": index,
    }]);
    assert_eq!(reply.json(), expected);
    assert_eq!(server.get("/v1/kv/web/limit?raw").await.body, "100");
    put(&server, "/v1/kv/web/", "").await;
    assert_eq!(server.get("/v1/kv/web/").await.json()[0]["Value"], Value::Null);
    assert_eq!(server.get("/v1/kv/?keys").await.json(), json!(["web/", "web/limit"]));
    assert_eq!(server.get("/v1/kv/?keys&separator=/").await.json(), json!(["web/"]));
    assert_eq!(listed_in_order(&server, "/v1/kv/web?recurse", "/Key").await, ["web/", "web/limit"]);
    assert_eq!(delete(&server, "/v1/kv/web/limit").await, (200, "true".to_owned()));
    assert_eq!(delete(&server, "/v1/kv/?recurse").await, (200, "true".to_owned()));
    for path in ["/v1/kv/web/limit", "/v1/kv/web?recurse", "/v1/kv/?keys"] {
        let reply = server.get(path).await;
        assert!(
            reply.status == 404 && reply.header("x-consul-index").parse::<u64>().unwrap() >= 1,
            "{reply:?}"
        );
        assert_eq!(reply.header("content-type"), "application/json", "{path}");
    }
}

#[tokio::test]
async fn what_consensus_would_need_is_false_or_501() {
    let server = store().await;
    put(&server, "/v1/kv/a", "1").await;
    let index = server.get("/v1/kv/a").await.header("x-consul-index").to_owned();
    for (path, expected) in [
        ("/v1/kv/a?cas=0".to_owned(), 200),
        ("/v1/kv/a?cas=1".to_owned(), 200),
        (format!("/v1/kv/a?cas={index}"), 501),
        ("/v1/kv/new?cas=0".to_owned(), 501),
        ("/v1/kv/a?acquire=x".to_owned(), 501),
        ("/v1/kv/a?release=x".to_owned(), 501),
        ("/v1/kv/a?flags=-1".to_owned(), 400),
    ] {
        let reply = send_put(&server, &path, "2").await;
        assert_eq!(reply.status, expected, "{path}: {reply:?}");
        assert!(reply.status != 200 || reply.body == "false", "{reply:?}");
    }
    assert_eq!(server.get("/v1/kv/a?raw").await.body, "1");
    let large = "x".repeat(128 * 1024 + 1);
    let reply = send_put(&server, "/v1/kv/a", &large).await;
    assert!(reply.status == 413 && reply.body.contains("131072"), "{reply:?}");
    put(&server, "/v1/kv/a", &large[1..]).await;
    assert_eq!(server.get("/v1/kv/a?raw").await.body.len(), 128 * 1024);
}

#[tokio::test]
async fn a_query_blocks_on_a_key_that_is_absent() {
    let server = store().await;
    let index = server.get("/v1/kv/new").await.header("x-consul-index").to_owned();
    let path = format!("/v1/kv/new?index={index}&wait=1m");
    let (reply, ()) = tokio::join!(server.get(&path), async {
        put(&server, "/v1/kv/other", "x").await;
        put(&server, "/v1/kv/new", "x").await;
    });
    assert_eq!(reply.status, 200, "{reply:?}");
    let index = reply.header("x-consul-index").to_owned();
    let reply = server.get(&format!("/v1/kv/new?index={index}&wait=50ms")).await;
    assert_eq!((reply.status, reply.header("x-consul-index")), (200, index.as_str()), "the wait is over");
}

#[tokio::test]
async fn without_a_replica_reads_are_404_and_writes_500() {
    let server = cluster().await;
    let why = "no node keeps the key/value store: start one with --role kv";
    let reply = server.get("/v1/kv/a").await;
    assert_eq!((reply.status, reply.header("x-consul-index")), (404, "1"));
    assert_eq!(reply.json(), json!({ "detail": why }));
    assert_eq!(reply.header("x-consul-knownleader"), "false");
    let reply = send_put(&server, "/v1/kv/a", "1").await;
    assert_eq!((reply.status, reply.body.as_str()), (500, why));
    assert_eq!(delete(&server, "/v1/kv/a").await, (500, why.to_owned()));
    assert_eq!(delete(&server, "/v1/kv").await.0, 400);
    let began = tokio::time::Instant::now();
    let reply = server.get("/v1/kv/a?index=1&wait=300ms").await;
    assert!(reply.status == 404 && began.elapsed() >= Duration::from_millis(250), "no busy loop: {reply:?}");
}

#[tokio::test]
async fn a_private_address_is_no_proof_for_keys() {
    let proxies = vec!["127.0.0.1/32".parse().unwrap()];
    let token = Some(Secret::new("s3cret".to_owned()));
    let access = Access { token, trusted_proxies: proxies, is_open: true, ..Access::default() };
    let server = Server::with(Setup { access, roles: &["kv", "visits"], ..Setup::default() }).await;
    let private = "x-forwarded-for: 192.168.0.7";
    assert_eq!(server.send("POST /visits", &[private], "").await.status, 200);
    for request in
        ["PUT /v1/kv/a", "DELETE /v1/kv/a", "DELETE /v1/kv?recurse", "PUT /kv/a", "DELETE /kv?prefix="]
    {
        assert_eq!(server.send(request, &[private], "").await.status, 401, "{request}");
        let reply = server.send(request, &[private, "authorization: Bearer s3cret"], "").await;
        assert!(![401, 403].contains(&reply.status), "{request}: {reply:?}");
    }
}
