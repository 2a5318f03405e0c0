//! Tests of the request guard: it refuses foreign or malformed hosts, writes from pages of other origins or
//! in the content types of forms, and writes through a proxy without the token.

use super::*;

const JSON: &str = "content-type: application/json";

fn with_token() -> Access {
    Access { token: Some(Secret::new("s3cret".to_owned())), ..Access::default() }
}

#[tokio::test]
async fn a_host_that_is_not_this_node_is_turned_away_even_for_reads() {
    let server = Server::start().await;
    let reply = server.send("GET /services", &["host: evil.example"], "").await.problem(421);
    assert!(reply.contains("--allow-host evil.example"), "{reply}");
    assert!(!reply.contains("n1"), "a page that has made the node part of its origin reads this: {reply}");
    assert!(
        server.send("GET http://evil.example/services", &[], "").await.problem(421).contains("evil.example")
    );
    for host in ["host: localhost:7500", "host: n1", "host: [::1]:7500", "host: n1.local"] {
        assert_eq!(server.send("GET /services", &[host], "").await.status, 200, "{host}");
    }
    assert_eq!(server.metrics.http.refused_count("host"), 2);
    for target in ["http://user@n1/services", "http://n1:x/services"] {
        assert_eq!(server.send(&format!("GET {target}"), &[], "").await.status, 400, "{target}");
    }
}

#[tokio::test]
async fn a_host_header_is_there_once_and_names_a_host() {
    let server = Server::start().await;
    let missing = Reply::read(server.open("GET /services HTTP/1.1\r\nconnection: close\r\n\r\n").await).await;
    missing.problem(400);
    server.send("GET /services", &["host: n1", "host: n2"], "").await.problem(400);
    for host in ["a@n1", "a@a", "n1:x", "n1:65536", "javascript:alert(1)", "n1:80:80"] {
        server.send("GET /services", &[&format!("host: {host}")], "").await.problem(400);
    }
    assert_eq!(server.send("GET /services", &["host: n1:"], "").await.status, 200, "a port may be empty");
    let old = Reply::read(server.open("GET /livez HTTP/1.0\r\n\r\n").await).await;
    assert_eq!(old.status, 200, "HTTP/1.0 knows no Host");
}

#[tokio::test]
async fn a_page_of_another_origin_may_not_write() {
    let mut server = Server::start().await;
    for origin in ["origin: http://evil.example", "origin: null", "origin: http://127.0.0.1:1"] {
        server.send("POST /students", &[JSON, origin], "{}").await.problem(403);
        assert_eq!(server.send("PUT /v1/agent/leave", &[origin], "").await.status, 403);
    }
    assert!(server.operator_requests.try_recv().is_err(), "nothing reached the driver");
    server.send("POST /students", &[JSON, "origin: http://127.0.0.1"], "{}").await.problem(400);
}

#[tokio::test]
async fn asking_what_a_path_takes_is_no_write() {
    let server = Server::with(Setup { access: with_token(), ..Setup::default() }).await;
    let elsewhere = ["x-forwarded-for: 10.0.0.1", "origin: http://evil.example"];
    for path in ["/services", "/students"] {
        let reply = server.send(&format!("OPTIONS {path}"), &elsewhere, "").await;
        reply.problem(405);
        assert!(reply.header("allow").contains("GET"), "{reply:?}");
    }
}

#[tokio::test]
async fn what_a_form_can_send_is_not_taken_but_where_a_plugin_asks_for_it() {
    let server = Server::with(Setup { roles: &["grading", "log"], ..Setup::default() }).await;
    for content_type in
        ["content-type: application/x-www-form-urlencoded", "content-type: text/plain", "x-none: 1"]
    {
        server.send("POST /students", &[content_type], "a=b").await.problem(415);
        server.send("POST /services", &[content_type], "a=b").await.problem(415);
    }
    let reply = server.send("POST /log", &["content-type: text/plain"], "a line").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(server.send("DELETE /students/1", &[], "").await.status, 204);
}

#[tokio::test]
async fn writes_that_a_proxy_passes_on_need_the_token() {
    let mut server = Server::with(Setup { access: with_token(), ..Setup::default() }).await;
    let forwarded = "x-forwarded-for: 10.0.0.9";
    let reply = server.send("PUT /v1/agent/leave", &[forwarded], "").await;
    assert_eq!((reply.status, reply.header("www-authenticate")), (401, "Bearer"));
    assert!(
        reply.body.contains("Authorization: Bearer")
            && reply.header("content-type").starts_with("text/plain")
    );
    assert_eq!(
        server.send("PUT /v1/agent/leave", &[forwarded, "x-consul-token: wrong"], "").await.status,
        401
    );
    assert!(server.operator_requests.try_recv().is_err(), "nothing reached the driver");
    assert_eq!(
        server.send("PUT /v1/agent/leave", &[forwarded, "x-consul-token: s3cret"], "").await.status,
        200
    );
    assert!(matches!(within(server.operator_requests.recv()).await, Some(OperatorRequest::Leave)));
    let forget = format!("DELETE /members/{}", node_id(2));
    server.send(&forget, &[forwarded], "").await.problem(401);
    assert!(server.operator_requests.try_recv().is_err(), "nothing reached the driver");
    for path in ["/students", "/services"] {
        server.send(&format!("POST {path}"), &[JSON, forwarded], "{}").await.problem(401);
        let token = "authorization: Bearer s3cret";
        server.send(&format!("POST {path}"), &[JSON, forwarded, token], "{}").await.problem(400);
    }
}

#[tokio::test]
async fn over_the_unix_socket_a_write_is_local_unless_a_proxy_passes_it_on() {
    use tokio::net::{UnixListener, UnixStream};
    let mut server = Server::with(Setup { access: with_token(), ..Setup::default() }).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listeners = Listeners::from(tcp).with_socket(Some(socket));
    let stop = server.stop.subscribe();
    let serving =
        serve(listeners, server.router.clone(), Limits::default(), Arc::clone(&server.metrics), stop);
    tokio::spawn(serving);
    let ask = async |line: &str, headers: &str| {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let head = format!("{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.unwrap();
        answer
    };
    assert!(ask("GET /services", "").await.starts_with("HTTP/1.1 200 "));
    for header in ["via: 1.1 x\r\n", "forwarded: for=10.0.0.1\r\n", "x-forwarded-proto: https\r\n"] {
        assert!(ask("PUT /v1/agent/leave", header).await.starts_with("HTTP/1.1 401 "), "{header}");
    }
    assert!(server.operator_requests.try_recv().is_err(), "nothing reached the driver");
    assert!(ask("PUT /v1/agent/leave", "").await.starts_with("HTTP/1.1 200 "));
    assert!(matches!(server.operator_requests.try_recv(), Ok(OperatorRequest::Leave)));
}
