//! Tests of the node's HTML pages: names cannot inject markup, pages show the cluster and stay bounded, event
//! streams report changes, and forms work only from pages of this node on this machine.

use std::collections::BTreeSet;

use hearsay_protocol::{CheckSummary, Explanation, NamedPort, Origin};
use hearsay_services::{
    http::CONTENT_SECURITY_POLICY,
    testing::{HOSTILE, markup_breaches, markup_skeleton, markup_tags},
};

use super::*;

/// Starts a server with two members and a service, all with this name.
async fn called(text: &str) -> Server {
    let server = Server::start().await;
    let (node, id, mut odd) = instance(1, "a", "web");
    (odd.service, odd.url, odd.tags) = (text.into(), text.into(), vec![text.into(), "b".into()]);
    let named = |seed| Member {
        name: text.into(),
        software: text.into(),
        roles: vec![text.into()],
        http: Some(text.into()),
        ..member(seed)
    };
    server.apply([
        joined(named(1)),
        joined(named(2)),
        offered((node, id, odd)),
        Change::Explained(node_id(2), Explanation::Accused { by: node_id(1), strong: true }),
    ]);
    server
}

#[tokio::test]
async fn hostile_text_stays_text() {
    let harmless = called("harmless text").await.get("/ui").await;
    assert!(harmless.body.matches("harmless text").count() >= 12, "{}", harmless.body);
    // A text that is no address becomes no link.
    let expected = markup_skeleton(&harmless.body).unwrap();
    for text in HOSTILE {
        let reply = called(text).await.get("/ui").await;
        assert_eq!(markup_breaches(&reply.body), Vec::<String>::new(), "{text:?}");
        assert_eq!(markup_skeleton(&reply.body).unwrap(), expected, "{text:?}");
        assert!(!reply.body.contains('\u{1b}'), "{text:?}");
        assert_eq!(reply.header("content-security-policy"), CONTENT_SECURITY_POLICY);
    }
}

#[tokio::test]
async fn the_page_shows_members_services_connections_and_what_happened() {
    let server = Server::start().await;
    server.apply([
        joined(member(1)),
        joined(Member { rtt: Some(Duration::from_micros(1234)), ..member(2) }),
        joined(Member { state: MemberState::Failed, ..member(3) }),
        offered(instance(2, "a", "web")),
        Change::Explained(node_id(3), Explanation::Accused { by: node_id(2), strong: true }),
        Change::Explained(node_id(3), Explanation::Became(MemberState::Failed)),
    ]);
    server
        .neighbours
        .send_replace(Neighbourhood { neighbours: BTreeSet::from([node_id(2)]), ..Neighbourhood::default() });
    let page = server.get("/ui").await.body;
    for words in [
        "state failed\">failed",
        "1.23 ms",
        "href=\"http://10.0.0.2:7500/ui\"",
        "href=\"http://10.0.0.2:80\"",
        "n2 reported n3: its process is gone.",
        "n3 is now failed.",
        "3 members; this node is connected to 1 of them.",
        "class=\"link own\"",
    ] {
        assert!(page.contains(words), "{words:?} is missing in {page}");
    }
    assert!(!page.contains("http://10.0.0.3:7500/ui"), "no link to a failed node");
    let newest = page.split("data-text>").nth(1).unwrap();
    assert!(newest.starts_with("n3 is now failed."), "newest first");
}

#[tokio::test]
async fn everything_the_page_loads_is_there() {
    let server = Server::start().await;
    let page = server.get("/ui").await.body;
    let mut loaded = 0;
    for tag in markup_tags(&page).unwrap() {
        for (name, value) in tag.attributes {
            if name == "src" || name == "href" && tag.name == "link" {
                let reply = server.get(&value).await;
                assert_eq!(reply.status, 200, "{value}");
                assert_eq!(reply.header("x-content-type-options"), "nosniff");
                loaded += 1;
            }
        }
    }
    assert_eq!(loaded, 3, "a style, a script, an icon");
    assert!(
        page.contains("<noscript><meta http-equiv=\"refresh\""),
        "and without scripts it loads itself again"
    );
}

#[tokio::test]
async fn the_way_to_the_portal_is_shown_wherever_it_runs() {
    let server = Server::start().await;
    assert!(!server.get("/ui").await.body.contains("Grade book"));
    let role = |seed| {
        let (node, id, portal) = instance(seed, "p", "portal");
        offered((node, id, Instance { origin: Origin::Role, ..portal }))
    };
    // A program with the name of the role has no grade book.
    server.apply([joined(member(1)), joined(member(2)), offered(instance(2, "x", "portal"))]);
    assert!(!server.get("/ui").await.body.contains("Grade book"));
    server.apply([role(2)]);
    assert!(server.get("/ui").await.body.contains("href=\"http://10.0.0.2:80/portal\""));
    server.apply([role(1)]);
    assert!(server.get("/ui").await.body.contains("href=\"/portal\""));
}

#[tokio::test]
async fn a_large_cluster_makes_a_bounded_page() {
    let server = Server::start().await;
    let numbered = |n: u32| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        Member { id: NodeId::from_public_key(key), name: format!("n{n}"), ..member(1) }
    };
    server.apply([joined(member(1))]);
    server.apply((0..1000).map(|n| joined(numbered(n))));
    let page = server.get("/ui").await.body;
    assert!(
        page.contains("942 more</text>") && page.contains("and 701 more: <a href=\"/members\">"),
        "{}",
        page.len()
    );
    assert!(page.len() < 300_000, "{}", page.len());
}

/// Reads the kinds of the next events.
async fn kinds(stream: &mut TcpStream, count: usize) -> Vec<String> {
    let (mut text, mut bytes) = (String::new(), [0; 1024]);
    let reading = async {
        loop {
            let kinds: Vec<String> =
                text.lines().filter_map(|l| l.strip_prefix("event: ")).map(str::to_owned).collect();
            if kinds.len() >= count {
                return kinds;
            }
            let n = stream.read(&mut bytes).await.unwrap();
            assert!(n > 0, "ended after {text:?}");
            text.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
        }
    };
    within(reading).await
}

#[tokio::test]
async fn whoever_watches_is_told_of_members_and_of_connections() {
    let server = Server::start().await;
    let mut stream = server.open("GET /ui/events HTTP/1.1\r\nhost: n1\r\n\r\n").await;
    assert_eq!(kinds(&mut stream, 1).await, ["now"]);
    server.apply([joined(member(2))]);
    assert_eq!(kinds(&mut stream, 1).await, ["changed"]);
    server
        .neighbours
        .send_replace(Neighbourhood { neighbours: BTreeSet::from([node_id(2)]), ..Neighbourhood::default() });
    assert_eq!(kinds(&mut stream, 1).await, ["changed"]);
    assert_eq!(server.metrics.http.waiting.get(), 1);
    server.readiness.send_replace(Readiness::Leaving);
    until("the stream ends", || server.metrics.http.waiting.get() == 0).await;
}

#[tokio::test]
async fn event_streams_of_plugins_take_a_place_and_end_when_the_node_leaves() {
    let server = Server::with(Setup { roles: &["portal"], stream_limit: 1, ..Setup::default() }).await;
    let mut stream = server.open("GET /portal/log/tail HTTP/1.1\r\nhost: n1\r\n\r\n").await;
    assert_eq!(kinds(&mut stream, 1).await, ["absent"]);
    assert_eq!(server.metrics.http.waiting.get(), 1);
    server.get("/portal/log/tail").await.problem(429);
    server.readiness.send_replace(Readiness::Leaving);
    until("the stream ends", || server.metrics.http.waiting.get() == 0).await;
}

/// Percent-encodes every byte.
fn encoded(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02X}")).collect()
}

/// Returns an instance of member 2 with this text in every field.
fn instance_of(text: &str) -> (NodeId, String, Instance) {
    let check = CheckSummary {
        id: text.into(),
        name: text.into(),
        kind: text.into(),
        status: Health::Critical,
        since_ms: 1_500,
        output: text.into(),
        took_ms: 3,
    };
    let (node, _, plain) = instance(2, "a", "web");
    let odd = Instance {
        service: text.into(),
        address: text.into(),
        url: text.into(),
        tags: vec![text.into()],
        meta: BTreeMap::from([(text.into(), text.into())]),
        zone: Some(text.into()),
        ports: vec![NamedPort { name: text.into(), port: 80, is_default: true }],
        requires: vec![text.into()],
        checks: vec![check],
        origin: Origin::Program,
        health: Health::Critical,
        ..plain
    };
    (node, text.into(), odd)
}

#[tokio::test]
async fn hostile_text_stays_text_on_the_pages_of_services() {
    let mut expected = None;
    for text in ["harmless text"].iter().chain(&HOSTILE) {
        let server = Server::start().await;
        server.apply([joined(member(1)), joined(member(2)), offered(instance_of(text))]);
        let mut skeletons = Vec::new();
        for (path, least) in [("/ui/services".to_owned(), 6), (format!("/ui/services/{}", encoded(text)), 12)]
        {
            let reply = server.get(&path).await;
            assert_eq!(reply.status, 200, "{text:?}: {reply:?}");
            assert_eq!(markup_breaches(&reply.body), Vec::<String>::new(), "{text:?}");
            assert!(!reply.body.contains('\u{1b}'), "{text:?}");
            assert_eq!(reply.header("content-security-policy"), CONTENT_SECURITY_POLICY);
            assert!(*text != "harmless text" || reply.body.matches(text).count() >= least, "{}", reply.body);
            skeletons.push(markup_skeleton(&reply.body).unwrap());
        }
        assert_eq!(&skeletons, expected.get_or_insert(skeletons.clone()), "{text:?}");
    }
}

#[tokio::test]
async fn the_page_of_services_counts_them_and_shows_what_is_missing() {
    let server = Server::start().await;
    let (node, id, web) = instance(2, "web-1", "web");
    let web = Instance { requires: vec!["db".into()], origin: Origin::Program, ..web };
    let (other, other_id, cache) = instance(1, "cache-1", "cache");
    let cache = Instance { health: Health::Critical, ..cache };
    server.apply([
        joined(member(1)),
        joined(member(2)),
        offered((node, id, web)),
        offered((other, other_id, cache)),
    ]);
    let page = server.get("/ui/services").await.body;
    for words in [
        "<dt>services</dt><dd>2</dd>",
        "<div class=\"bad\"><dt>critical</dt><dd>1</dd>",
        "<div class=\"bad\"><dt>required and missing</dt><dd>1</dd>",
        "<li class=\"missing\">db missing</li>",
        "href=\"/ui/services/cache\"",
        "1 registered instances",
        ">missing: no instance</text>",
        "2 services. Required without a passing instance: 1.",
        "<span>missing: no instance</span>",
    ] {
        assert!(page.contains(words), "{words:?} is missing in {page}");
    }
    assert!(server.get("/ui").await.body.contains("href=\"/ui/services\""), "the cluster page leads there");
    let gone = server.get("/ui/services/nowhere").await;
    assert_eq!((gone.status, gone.body.contains("No such service is known here.")), (404, true));
    let dots = offered(instance(2, "d", ".."));
    server.apply([dots]);
    assert!(
        !server.get("/ui/services").await.body.contains("href=\"/ui/services/..\""),
        "that is another page"
    );
}

const FORM: &str = "content-type: application/x-www-form-urlencoded";
const OWN: &str = "origin: http://127.0.0.1";

/// Starts a server that holds a registration of `web-1`.
async fn holding() -> Server {
    let server = Server::start().await;
    let body = r#"{"name":"web","id":"web-1","port":8080,"checks":[{"ttl":"1h","name":"<b>beat</b>"}]}"#;
    let reply = server.send("POST /services", &["content-type: application/json"], body).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    server.apply([joined(member(1)), joined(member(2)), offered(instance(1, "web-1", "web"))]);
    server
}

#[tokio::test]
async fn forms_drain_and_deregister_what_this_node_holds() {
    let server = holding().await;
    let page = server.get("/ui/services/web").await.body;
    for words in ["Drain web-1", "Deregister web-1", "&#60;b&#62;beat", "until it is deregistered"] {
        assert!(page.contains(words), "{words:?} is missing in {page}");
    }
    assert!(!page.contains("disabled"), "{page}");
    for text in HOSTILE {
        let form = format!("service=web&id=web-1&enable=true&reason={}", encoded(text));
        let reply = server.send("POST /ui/registrations/maintenance", &[FORM, OWN], form).await;
        assert_eq!((reply.status, reply.header("location")), (303, "/ui/services/web?done=drained"));
        let page = server.get("/ui/services/web?done=drained").await.body;
        assert!(page.contains("Drained since") && page.contains("Undo the drain of web-1"), "{page}");
        assert!(page.contains("it gets no new requests"), "{page}");
        assert_eq!(markup_breaches(&page), Vec::<String>::new(), "{text:?}");
    }
    let form = "service=web&id=web-1&enable=false";
    let reply = server.send("POST /ui/registrations/maintenance", &[FORM, OWN], form).await;
    assert_eq!((reply.status, reply.header("location")), (303, "/ui/services/web?done=undone"));
    assert_eq!(server.registry.get("web-1").unwrap().maintenance, None);
    for form in ["", "service=web", "service=web&id=web-1&enable=maybe", "service=web&id=web-1&x=1"] {
        server.send("POST /ui/registrations/maintenance", &[FORM, OWN], form).await.problem(400);
    }
    let form = "service=web&id=web-1";
    let reply = server.send("POST /ui/registrations/deregister", &[FORM, OWN], form).await;
    assert_eq!((reply.status, reply.header("location")), (303, "/ui/services/web?done=deregistered"));
    assert!(server.registry.is_empty());
    let again = server.send("POST /ui/registrations/deregister", &[FORM, OWN], form).await;
    assert_eq!((again.status, again.header("content-type")), (404, "text/html; charset=utf-8"));
    assert!(again.body.contains("role=\"alert\"") && again.body.contains("Nothing was changed"), "{again:?}");
}

#[tokio::test]
async fn forms_come_from_pages_of_this_node_on_this_machine() {
    let server = holding().await;
    let form = "service=web&id=web-1";
    let elsewhere = "x-forwarded-for: 10.0.0.9";
    for (headers, status) in [
        (&[FORM][..], 403),
        (&[FORM, "origin: http://evil.example"], 403),
        (&[FORM, "origin: null"], 403),
        (&[FORM, OWN, elsewhere], 403),
        (&[FORM, OWN, "via: 1.1 proxy"], 403),
        (&[FORM, OWN, "sec-fetch-site: cross-site"], 403),
        (&[FORM, OWN, "host: evil.example"], 421),
        (&["content-type: application/json", OWN], 415),
        (&["content-type: text/plain", OWN], 415),
        (&["content-type: multipart/form-data; boundary=x", OWN], 415),
    ] {
        for slash in ["", "/"] {
            let request = format!("POST /ui/registrations/deregister{slash}");
            server.send(&request, headers, form).await.problem(status);
        }
    }
    // No other path accepts the content type of forms.
    for path in ["/services", "/ui", "/ui/services/web", "/ui/registrations"] {
        let reply = server.send(&format!("POST {path}"), &[FORM, OWN], form).await;
        assert!([404, 405, 415].contains(&reply.status), "{path}: {reply:?}");
    }
    server.send("PUT /ui/registrations/deregister", &[FORM, OWN], form).await.problem(405);
    assert_eq!(server.registry.len(), 1);
    let page = server.send("GET /ui/services/web", &[elsewhere], "").await.body;
    assert!(page.contains("From this node's own machine, or after <"), "{page}");
    assert_eq!(page.matches(" disabled").count(), 3, "a field and two buttons");
    let page = server.get("/ui/services/web").await.body;
    let other = offered(instance(2, "web-2", "web"));
    server.apply([other]);
    let both = server.get("/ui/services/web").await.body;
    assert_eq!(both.matches("<form").count(), page.matches("<form").count(), "none for what another holds");
}
