//! Tests of Consul's events (`/v1/event`): their form, payloads, filters, limits and proofs, and the list,
//! which blocks by the id of its newest event.

use serde_json::json;

use super::*;

async fn fire(server: &Server, path: &str, payload: &str) -> Value {
    let reply = send_put(server, &format!("/v1/event/fire/{path}"), payload).await;
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    assert_eq!(reply.header("content-type"), "application/json");
    reply.json()
}

/// The index of a list, computed from an id as Consul's clients do.
fn index_of(event: &Value) -> u64 {
    let digits = event["ID"].as_str().unwrap().replace('-', "");
    let half = |digits: &str| u64::from_str_radix(digits, 16).unwrap();
    half(&digits[..16]) ^ half(&digits[16..])
}

#[tokio::test]
async fn an_event_has_consuls_shape_and_is_listed() {
    let server = cluster().await;
    let fired = fire(&server, "deploy", "v2").await;
    let mut expected = json!({
        "ID": fired["ID"], "Name": "deploy", "Payload": "djI=", "NodeFilter": "", "ServiceFilter": "",
        "TagFilter": "", "Version": 1, "LTime": 1,
    });
    assert_eq!(fired, expected);
    let reply = server.get("/v1/event/list").await;
    assert_eq!(reply.json(), json!([fired]));
    assert_eq!(reply.header("x-consul-index"), index_of(&fired).to_string());
    // Without a payload and with filters.
    let fired = fire(&server, "a/b%20c?node=^n1$&service=web&tag=", "").await;
    expected["ID"] = fired["ID"].clone();
    for (name, value) in [
        ("Name", json!("a/b c")),
        ("Payload", Value::Null),
        ("NodeFilter", json!("^n1$")),
        ("ServiceFilter", json!("web")),
        ("LTime", json!(2)),
    ] {
        expected[name] = value;
    }
    assert_eq!(fired, expected);
    assert_eq!(listed_in_order(&server, "/v1/event/list", "/Name").await, ["deploy", "a/b c"]);
    assert_eq!(listed_in_order(&server, "/v1/event/list?name=deploy", "/Name").await, ["deploy"]);
    assert_eq!(listed_in_order(&server, "/v1/event/list?name=", "/Name").await.len(), 2);
    assert_eq!(listed(&server, "/v1/event/list?filter=Name+!=+deploy", "/Name").await, ["a/b c"]);
    let reply = server.get("/v1/event/list?name=none").await;
    assert_eq!((reply.json(), reply.header("x-consul-index")), (json!([]), "1"));
}

#[tokio::test]
async fn a_post_with_plain_text_fires_too_and_one_of_a_form_does_not() {
    let server = cluster().await;
    let post = async |content_type: &str| {
        let header = format!("content-type: {content_type}");
        server.send("POST /v1/event/fire/refresh", &[&header], "x=1").await.status
    };
    assert_eq!(post("text/plain;charset=UTF-8").await, 200);
    assert_eq!(post("application/json").await, 200);
    assert_eq!(post("application/x-www-form-urlencoded").await, 415);
    assert_eq!(post("multipart/form-data; boundary=x").await, 415);
    assert_eq!(server.send("POST /v1/event/fire/refresh", &[], "").await.status, 200);
    let foreign = ["content-type: text/plain", "origin: http://evil.example"];
    assert_eq!(server.send("POST /v1/event/fire/refresh", &foreign, "x").await.status, 403);
    let reply = server.get("/v1/event/fire/refresh").await;
    assert_eq!(reply.status, 405);
    for method in ["PUT", "POST"] {
        assert!(reply.header("allow").contains(method), "{reply:?}");
    }
}

#[tokio::test]
async fn an_event_whose_filters_do_not_accept_the_node_is_fired_and_not_listed() {
    let server = cluster().await;
    for (query, expected) in [
        ("node=^n1$", 1),
        ("node=^n2$", 0),
        ("service=web", 1),
        ("service=db", 0),
        ("service=web&tag=none", 0),
    ] {
        let before = listed(&server, "/v1/event/list", "/ID").await.len();
        fire(&server, &format!("deploy?{query}"), "").await;
        let after = listed(&server, "/v1/event/list", "/ID").await.len();
        assert_eq!(after - before, expected, "{query}");
    }
}

#[tokio::test]
async fn an_event_that_cannot_be_kept_is_refused_with_the_reason() {
    let server = cluster().await;
    let refused = async |path: &str, payload: &str, status: u16, word: &str| {
        let reply = send_put(&server, &format!("/v1/event/fire/{path}"), payload).await;
        assert_eq!(reply.status, status, "{path}: {reply:?}");
        assert!(reply.body.contains(word), "{path}: {reply:?}");
    };
    refused("a?node=(", "", 400, "node").await;
    refused("a?service=x&tag=[", "", 400, "tag").await;
    refused("a?tag=v1", "", 400, "service").await;
    refused(&format!("a?node={}", "x".repeat(129)), "", 400, "128").await;
    refused("a?service=(a{900}){900}", "", 400, "service").await;
    refused(&"x".repeat(129), "", 400, "128").await;
    refused("a%0Ab", "", 400, "control").await;
    refused("a", &"x".repeat(513), 413, "512").await;
    refused("a?dc=dc2", "", 500, "datacenter").await;
    refused(REFUSED_EVENT, "", 429, "10 user events a second").await;
    assert_eq!(server.get("/v1/event/list").await.json(), json!([]));
    fire(&server, "a", &"x".repeat(512)).await;
}

#[tokio::test]
async fn a_list_blocks_until_an_event_of_its_name_comes() {
    let server = Arc::new(cluster().await);
    let (all, named) = (
        held(&server, "/v1/event/list?index=1").await,
        held(&server, "/v1/event/list?name=deploy&index=1").await,
    );
    let other = fire(&server, "other", "").await;
    assert_eq!(within(all).await.unwrap().json(), json!([other]));
    assert!(!named.is_finished(), "another event woke it");
    let event = fire(&server, "deploy", "v2").await;
    let reply = within(named).await.unwrap();
    assert_eq!(
        (reply.json(), reply.header("x-consul-index")),
        (json!([event]), &*index_of(&event).to_string())
    );
    // An index of another node, or from before a restart, is answered at once.
    assert_eq!(server.get("/v1/event/list?index=77").await.json().as_array().unwrap().len(), 2);
    let index = index_of(&event);
    let reply = server.get(&format!("/v1/event/list?index={index}&wait=20ms")).await;
    assert_eq!(reply.header("x-consul-index"), index.to_string());
}

#[tokio::test]
async fn a_private_address_is_no_proof_for_an_event() {
    let token = Some(Secret::new("s3cret".to_owned()));
    let server =
        Server::with(Setup { access: Access { token, ..Access::default() }, ..Setup::default() }).await;
    let by_proxy = "x-forwarded-for: 10.0.0.1";
    let reply = server.send("PUT /v1/event/fire/a", &[by_proxy], "").await;
    assert_eq!(reply.status, 401, "{reply:?}");
    let reply = server.send("PUT /v1/event/fire/a", &[by_proxy, "x-consul-token: s3cret"], "").await;
    assert_eq!(reply.status, 200, "{reply:?}");
}
