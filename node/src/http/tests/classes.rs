//! Tests of who may write: the documentation lists every path that writes, with its class; in a cluster with
//! a key, strangers write nowhere, and members only with valid signatures and not to `admin` paths.

use std::collections::{BTreeMap, BTreeSet};

use hearsay_protocol::SIGNATURE_HEADER;
use hearsay_services::http::UnsignedRequest;
use http::{HeaderMap, HeaderValue, Method};

use super::*;
use crate::{
    apis::consul::consul_routes,
    http::{api::openapi, routes::own_routes},
    signing::Signing,
};

const DOCUMENTATION: &str = include_str!("../../../../docs/security.md");
const ROLES: [&str; 6] = ["grading", "log", "portal", "gateway", "visits", "kv"];

/// Returns the class of each write by method and path: the node's own, and those that plug-ins document.
fn writes() -> BTreeMap<(String, String), &'static str> {
    let own = consul_routes(own_routes("/ui", Vec::new()));
    let mut writes: BTreeMap<_, _> = own
        .writes()
        .iter()
        .map(|(method, path, class)| ((method.to_uppercase(), (*path).to_owned()), class.as_str()))
        .collect();
    let document: Value = serde_json::from_slice(&openapi::document(&builtin())).unwrap();
    let own: BTreeSet<&str> = own.served().iter().map(|(_, path)| *path).collect();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in item.as_object().unwrap().keys().filter(|key| *key != "parameters") {
            let is_write = method != "get" || path == "/visits/hit";
            if is_write && !own.contains(path.as_str()) {
                let class = if path.starts_with("/kv") { "kv" } else { "role" };
                writes.insert((method.to_uppercase(), path.clone()), class);
            }
        }
    }
    writes
}

/// Fills the parameters of a path.
fn filled(path: &str) -> String {
    path.split('/').map(|part| if part.starts_with('{') { "1" } else { part }).collect::<Vec<_>>().join("/")
}

async fn keyed() -> Server {
    let token = Some(Secret::new("s3cret".to_owned()));
    let access = Access { token, is_keyed: true, ..Access::default() };
    let server = Server::with(Setup { access, roles: &ROLES, ..Setup::default() }).await;
    server.apply([joined(member(1)), joined(member(2))]);
    server
}

/// Returns the signer of node 2.
fn other() -> Signing {
    let view = Arc::new(View::new(START, Clock::start()));
    view.apply(Time::ZERO, [joined(member(1)), joined(member(2))]);
    Signing::new(Identity::from_seed(&[2; 32]), "test".to_owned(), view, None)
}

/// Returns the headers of a request that is signed for node 1 and forwarded by a proxy.
fn signed(signing: &Signing, method: &str, path: &str) -> Vec<String> {
    let (method, mut headers) = (Method::from_bytes(method.as_bytes()).unwrap(), HeaderMap::new());
    headers.insert("forwarded", HeaderValue::from_static("for=8.8.8.8"));
    let request =
        UnsignedRequest { method: &method, authority: "127.0.0.1", target: path, headers: &headers };
    let signature = signing.sign(node_id(1), &request, b"").unwrap();
    vec!["forwarded: for=8.8.8.8".to_owned(), format!("{SIGNATURE_HEADER}: {}", signature.to_str().unwrap())]
}

#[test]
fn the_documentation_lists_every_path_that_writes_with_its_class() {
    let documented: BTreeMap<(String, String), &str> = DOCUMENTATION
        .lines()
        .filter_map(|line| {
            let (request, class) = line.strip_prefix("| `")?.strip_suffix(" |")?.split_once("` | ")?;
            let (method, path) = request.split_once(' ')?;
            Some(((method.to_owned(), path.to_owned()), class))
        })
        .collect();
    assert_eq!(documented, writes());
}

#[tokio::test]
async fn a_stranger_writes_nowhere_in_a_cluster_with_a_key() {
    let mut server = keyed().await;
    for ((method, path), class) in writes() {
        // The tests of JSON-RPC and MCP send their inner requests.
        if class == "session" || class == "inner" {
            continue;
        }
        let request = format!("{method} {}", filled(&path));
        let is_form = path.starts_with("/ui/");
        for slash in ["", "/"] {
            let reply = server.send(&format!("{request}{slash}"), &["via: 1.1 elsewhere"], "").await;
            // The forms of the pages need this machine or a session, even with another proof.
            let expected = if is_form { 403 } else { 401 };
            assert_eq!(reply.status, expected, "{request}{slash}: {reply:?}");
        }
    }
    assert!(server.operator_requests.try_recv().is_err(), "nothing reached the driver");
}

#[tokio::test]
async fn a_member_writes_to_the_registry_and_to_roles() {
    let (server, other) = (keyed().await, other());
    for ((method, path), class) in writes() {
        if path.starts_with("/ui/") || class == "session" || class == "inner" {
            continue;
        }
        let path = filled(&path);
        let headers = signed(&other, &method, &path);
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let first = server.send(&format!("{method} {path}"), &headers, "").await;
        assert_eq!(first.status == 401, class == "admin", "{method} {path}: {first:?}");
        let again = server.send(&format!("{method} {path}"), &headers, "").await;
        assert_eq!(again.status, 401, "replayed: {method} {path}");
    }
}

#[tokio::test]
async fn a_signed_request_that_was_altered_or_redirected_is_refused() {
    let server = keyed().await;
    let refused = async |request: &str, headers: &[String], body: &str| {
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        server.send(request, &headers, body).await.problem(401);
    };
    let headers = signed(&other(), "DELETE", "/students/1");
    refused("DELETE /students/2", &headers, "").await;
    refused("PUT /students/1", &headers, "").await;
    refused("DELETE /students/1", &headers, "another body").await;
    let elsewhere = [&headers[..], &["host: localhost".to_owned()]].concat();
    refused("DELETE /students/1", &elsewhere, "").await;
    refused("DELETE /students/1", &[&["forwarded: for=127.0.0.1".to_owned()], &headers[1..]].concat(), "")
        .await;
    let late = headers[1].replace("incarnation=5", "incarnation=4");
    let reply = server.send("DELETE /students/1", &[&headers[0], &late], "").await;
    assert_eq!((reply.status, reply.header("retry-after")), (401, "1"), "{reply:?}");
    assert!(server.metrics.http.refused_count("signature") >= 6);
}

#[tokio::test]
async fn a_read_is_answered_whatever_signature_it_bears() {
    let server = keyed().await;
    let reply = server.send("GET /services", &[&format!("{SIGNATURE_HEADER}: x")], "").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    server.send("GET /visits/hit", &[&format!("{SIGNATURE_HEADER}: x")], "").await.problem(401);
}

#[tokio::test]
async fn on_a_shared_host_the_forms_of_the_pages_are_closed_too() {
    let token = Some(Secret::new("s3cret".to_owned()));
    let access = Access { token, loopback_needs_token: true, ..Access::default() };
    let server = Server::with(Setup { access, ..Setup::default() }).await;
    let headers = ["origin: http://127.0.0.1", "content-type: application/x-www-form-urlencoded"];
    let reply = server.send("POST /ui/registrations/deregister", &headers, "service=web&id=web-1").await;
    assert_eq!(reply.status, 403, "{reply:?}");
}
