//! The cluster page.

use std::collections::BTreeSet;

use hearsay_protocol::providers::Explanation;
use hearsay_services::{
    html::POLICY,
    testing::markup::{HOSTILE, breaches, skeleton, tags},
};

use super::*;

/// A server that knows of two members and a service, all of them called this.
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
    // What is no address is no link; the harmless one makes none either.
    let expected = skeleton(&harmless.body).unwrap();
    for text in HOSTILE {
        let reply = called(text).await.get("/ui").await;
        assert_eq!(breaches(&reply.body), Vec::<String>::new(), "{text:?}");
        assert_eq!(skeleton(&reply.body).unwrap(), expected, "{text:?}");
        assert!(!reply.body.contains('\u{1b}'), "{text:?}");
        assert_eq!(reply.header("content-security-policy"), POLICY);
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
        "n2 reported of n3 that its process is gone.",
        "n3 is now failed.",
        "3 members; this node is connected to 1 of them.",
        "class=\"link own\"",
    ] {
        assert!(page.contains(words), "{words:?} is missing in {page}");
    }
    assert!(!page.contains("http://10.0.0.3:7500/ui"), "nobody is led to the dead");
    let newest = page.split("data-text>").nth(1).unwrap();
    assert!(newest.starts_with("n3 is now failed."), "newest first");
}

#[tokio::test]
async fn everything_the_page_loads_is_there() {
    let server = Server::start().await;
    let page = server.get("/ui").await.body;
    let mut loaded = 0;
    for tag in tags(&page).unwrap() {
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
    server.apply([joined(member(1)), joined(member(2)), offered(instance(2, "p", "portal"))]);
    assert!(server.get("/ui").await.body.contains("href=\"http://10.0.0.2:80/portal\""));
    server.apply([offered(instance(1, "p", "portal"))]);
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
    let server = Server::with(Setup { roles: &["portal"], waiters: 1, ..Setup::default() }).await;
    let mut stream = server.open("GET /portal/log/tail HTTP/1.1\r\nhost: n1\r\n\r\n").await;
    assert_eq!(kinds(&mut stream, 1).await, ["absent"]);
    assert_eq!(server.metrics.http.waiting.get(), 1);
    server.get("/portal/log/tail").await.problem(503);
    server.readiness.send_replace(Readiness::Leaving);
    until("the stream ends", || server.metrics.http.waiting.get() == 0).await;
}
