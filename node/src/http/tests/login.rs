//! Tests of the sign-in of browsers, and of the permissions of a session.

use super::*;

const FORM: &str = "content-type: application/x-www-form-urlencoded";
const OWN: &str = "origin: http://127.0.0.1";
/// Marks a request as forwarded by a proxy, so that its address is no proof.
const ELSEWHERE: &str = "x-forwarded-for: 8.8.8.8";

fn access() -> Access {
    Access { token: Some(Secret::new("s3cret".to_owned())), is_keyed: true, ..Access::default() }
}

async fn keyed(access: Access) -> Server {
    Server::with(Setup { access, roles: &["grading", "portal", "visits"], ..Setup::default() }).await
}

/// Signs in and returns the header line of the cookie.
async fn sign_in(server: &Server) -> String {
    let reply = server.send("POST /login", &[FORM, OWN, ELSEWHERE], "token=s3cret&next=%2Fportal").await;
    assert_eq!((reply.status, reply.header("location")), (303, "/portal"), "{reply:?}");
    let cookie = reply.header("set-cookie").split(';').next().unwrap();
    assert!(!reply.header("set-cookie").contains("s3cret"), "{reply:?}");
    format!("cookie: {cookie}")
}

#[tokio::test]
async fn a_session_writes_to_registry_and_roles_from_a_page_of_the_node_alone() {
    let mut server = keyed(access()).await;
    let cookie = sign_in(&server).await;
    let remove = async |headers: &[&str]| server.send("DELETE /students/1", headers, "").await.status;
    assert_eq!(remove(&[ELSEWHERE, OWN]).await, 401, "without a session");
    assert_eq!(remove(&[ELSEWHERE, &cookie]).await, 401, "browsers send the cookie to every port of a host");
    assert_eq!(remove(&[ELSEWHERE, &cookie, "origin: http://127.0.0.1:9999"]).await, 403, "another port");
    assert_eq!(remove(&[ELSEWHERE, &cookie, OWN]).await, 204);
    let hit = server.send("GET /visits/hit", &[ELSEWHERE, &cookie], "").await;
    assert_eq!(hit.status, 401, "an image bears the cookie, too");
    let registered = server
        .send("POST /services", &[ELSEWHERE, &cookie, OWN, "content-type: application/json"], "{}")
        .await;
    assert_eq!(registered.status, 400, "{registered:?}");
    let leave = server.send("PUT /v1/agent/leave", &[ELSEWHERE, &cookie, OWN], "").await;
    assert_eq!(leave.status, 401, "a page is not the node's administrator");
    assert!(server.operator_requests.try_recv().is_err(), "nothing reached the driver");
}

#[tokio::test]
async fn only_the_token_begins_a_session_and_only_from_the_nodes_own_page() {
    let server = keyed(access()).await;
    let body = "token=s3cret";
    for (headers, status) in [
        (&[FORM][..], 403),
        (&[FORM, "origin: http://evil.example"], 403),
        (&[FORM, "origin: null"], 403),
        (&[FORM, OWN, OWN], 403),
        (&[FORM, OWN, "sec-fetch-site: cross-site"], 403),
        (&[FORM, OWN, "sec-fetch-site: same-site"], 403),
        (&["content-type: application/json", OWN], 415),
        (&[FORM, OWN, "host: evil.example"], 421),
    ] {
        let reply = server.send("POST /login", headers, body).await;
        assert_eq!(reply.status, status, "{headers:?}: {reply:?}");
        assert!(!reply.headers.contains_key("set-cookie"));
    }
    for body in ["token=wrong", "token=", "", "next=/portal"] {
        let reply = server.send("POST /login", &[FORM, OWN], body).await;
        assert_eq!(reply.status, 401, "{body}: {reply:?}");
        assert!(
            reply.body.contains("not the token") && !reply.headers.contains_key("set-cookie"),
            "{reply:?}"
        );
    }
    assert_eq!(server.metrics.http.refused_count("login"), 4);
    let elsewhere = server.send("POST /login", &[FORM, OWN], "token=s3cret&next=//evil.example/").await;
    assert_eq!((elsewhere.status, elsewhere.header("location")), (303, "/"));
    let large = server.send("POST /login", &[FORM, OWN], "token=".to_owned() + &"x".repeat(10_000)).await;
    large.problem(413);
}

#[tokio::test]
async fn the_page_says_whether_a_browser_is_signed_in_and_ends_its_session() {
    let server = keyed(access()).await;
    let page = server.send("GET /login?next=/portal/students/1", &[], "").await;
    assert!(
        page.body.contains(r#"name="token""#) && page.body.contains(r#"value="/portal/students/1""#),
        "{page:?}"
    );
    assert!(page.header("content-security-policy").contains("form-action 'self'"));
    let cookie = sign_in(&server).await;
    let page = server.send("GET /login", &[&cookie], "").await;
    assert!(
        page.body.contains("signed in for another 11 h 59 min") && !page.body.contains(r#"name="token""#)
    );
    let field = page.body.split(r#"name="session" value=""#).nth(1).unwrap().split('"').next().unwrap();
    server.send("POST /logout", &[FORM, OWN, &cookie], "session=wrong").await.problem(403);
    server.send("POST /logout", &[FORM, &cookie], format!("session={field}")).await.problem(403);
    let ended = server.send("POST /logout", &[FORM, OWN, &cookie], format!("session={field}")).await;
    assert_eq!((ended.status, ended.header("location")), (303, "/login"), "{ended:?}");
    assert!(ended.header("set-cookie").contains("Max-Age=0"), "{ended:?}");
    let after = server.send("DELETE /students/1", &[ELSEWHERE, OWN, &cookie], "").await;
    assert_eq!(after.status, 401, "the session has ended at the node, and not in the browser alone");
    for asset in ["/login/style.css", "/login/icon.svg"] {
        assert_eq!(server.get(asset).await.status, 200, "{asset}");
    }
    assert_eq!(server.send("DELETE /login", &[ELSEWHERE], "").await.status, 401);
}

#[tokio::test]
async fn a_person_is_led_to_sign_in_where_a_program_is_told_what_is_missing() {
    let server = keyed(access()).await;
    let html = "accept: text/html,application/xhtml+xml";
    let form = "firstName=A&lastName=B";
    let led = server.send("POST /portal", &[FORM, OWN, ELSEWHERE, html], form).await;
    assert_eq!((led.status, led.header("location")), (303, "/login?next=%2Fportal"), "{led:?}");
    server.send("POST /portal", &[FORM, OWN, ELSEWHERE], form).await.problem(401);
    let script = [FORM, OWN, ELSEWHERE, html, "sec-fetch-mode: cors"];
    server.send("POST /portal", &script, form).await.problem(401);
    // Without a token, sign-in is impossible.
    let server = keyed(Access { token: None, ..access() }).await;
    server.send("POST /portal", &[FORM, OWN, ELSEWHERE, html], form).await.problem(403);
    let page = server.get("/login").await;
    assert!(page.body.contains("has no token") && !page.body.contains("<input"), "{page:?}");
}

#[tokio::test]
async fn a_session_changes_registrations_by_the_pages_from_another_machine() {
    let server = keyed(access()).await;
    let cookie = sign_in(&server).await;
    let (path, form) = ("POST /ui/registrations/deregister", "service=web&id=web-1");
    server.send(path, &[FORM, OWN, ELSEWHERE], form).await.problem(403);
    server.send(path, &[FORM, OWN, ELSEWHERE, "authorization: Bearer s3cret"], form).await.problem(403);
    server.send(path, &[FORM, ELSEWHERE, &cookie], form).await.problem(403);
    let reply = server.send(path, &[FORM, OWN, ELSEWHERE, &cookie], form).await;
    assert!(reply.status == 404 && reply.body.contains("Nothing was changed"), "{reply:?}");
}

#[tokio::test]
async fn a_private_node_asks_the_same_proof_for_reads() {
    let private = || Access { reads_need_proof: true, ..access() };
    let server = keyed(private()).await;
    server.apply([joined(member(1)), joined(member(2))]);
    let cookie = sign_in(&server).await;
    let document: Value = serde_json::from_slice(&api::openapi::document(&builtin())).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let reads = paths.iter().filter(|(_, item)| item.get("get").is_some()).map(|(path, _)| {
        path.split('/')
            .map(|part| if part.starts_with('{') { "1" } else { part })
            .collect::<Vec<_>>()
            .join("/")
    });
    let mut guarded = 0;
    for path in reads {
        let request = format!("GET {path}");
        let status = server.send(&request, &[ELSEWHERE], "").await.status;
        if ["/", "/livez", "/readyz", "/login", "/login/style.css", "/login/icon.svg"]
            .contains(&path.as_str())
        {
            assert!(status < 400, "{path}: {status}");
            continue;
        }
        guarded += 1;
        assert_eq!(status, 401, "{path}");
        for proof in ["authorization: Bearer s3cret", &cookie] {
            // A stream does not end.
            let is_stream = ["/watch", "/events", "/tail"].iter().any(|end| path.ends_with(end));
            if path != "/visits/hit" && !is_stream {
                assert_ne!(
                    server.send(&request, &[ELSEWHERE, proof], "").await.status,
                    401,
                    "{path} {proof}"
                );
            }
        }
    }
    assert!(guarded > 15, "{guarded}");
    let led =
        server.send("GET /portal?x=y", &[ELSEWHERE, "accept: text/html,application/xhtml+xml"], "").await;
    assert_eq!((led.status, led.header("location")), (303, "/login?next=%2Fportal%3Fx%3Dy"), "{led:?}");
    assert_eq!(server.get("/services").await.status, 200, "this machine");
    // Reads follow the rules of writes: with `--open`, every client may read roles, but not the registry.
    let open = keyed(Access { is_open: true, ..private() }).await;
    assert_eq!(open.send("GET /students", &[ELSEWHERE], "").await.status, 200);
    assert_eq!(open.send("GET /services", &[ELSEWHERE], "").await.status, 401);
}
