//! Tests of routing: which instance gets a request, with which path and `Host`; the statuses for unknown
//! services, forbidden names and loops; and that routes follow the provider table within 100 ms.

use std::time::{Duration, Instant};

use hearsay_protocol::Health;
use hearsay_services::Host as _;

use crate::{
    harness::Harness,
    instance::{closed_address, echo},
};

#[tokio::test]
async fn a_prefix_is_forwarded_and_a_service_name_is_stripped() {
    let harness = Harness::start().await;
    let instance = echo("a").await;
    harness.offer("grading", "g", instance.address, &["urlprefix-/students"]).await;
    harness.offer("web", "w", instance.address, &[]).await;
    for (path, target) in [
        ("/students/1?q=x", "/students/1?q=x"),
        ("/grading/students/1?q=x", "/students/1?q=x"),
        ("/students", "/students"),
        ("/web/x?q", "/x?q"),
        ("/web?q", "/?q"),
        ("/web", "/"),
    ] {
        assert_eq!(harness.get(path).await.json()["target"], target, "{path}");
    }
}

#[tokio::test]
async fn a_role_gets_its_own_paths_and_none_of_its_nodes() {
    let harness = Harness::start().await;
    let instance = echo("a").await;
    harness.offer("grading", "g", instance.address, &["urlprefix-/students", "urlprefix-/api"]).await;
    for path in [
        "/grading",
        "/grading/",
        "/grading/v1/agent/leave",
        "/grading/services",
        "/api/x",
        "/grading//students",
    ] {
        let detail = harness.request(&format!("PUT {path}"), "").await.problem(404);
        assert!(detail.contains("no path of this role"), "{path}: {detail}");
    }
    assert_eq!(harness.get("/grading/students/1").await.json()["target"], "/students/1");
    assert_eq!(instance.connections(), 1);
}

#[tokio::test]
async fn a_forbidden_address_is_ignored_with_the_reason() {
    let harness = Harness::start().await;
    let good = echo("good").await;
    harness.offer("web", "good", good.address, &[]).await;
    for (id, url) in [("a", "http://169.254.169.254"), ("b", "http://[fd00:ec2::254]:80")] {
        harness.table.offer_as("web", id, url, &[], Health::Passing);
    }
    // A name is resolved at each connect.
    harness.table.offer_as("named", "n", "http://2852039166:80", &[], Health::Passing);
    harness.settled().await;
    for _ in 0..12 {
        assert_eq!(harness.get("/web").await.json()["name"], "good");
    }
    let detail = harness.get("/named").await.problem(503);
    assert!(detail.contains("not called: 169.254.169.254 is a link-local address"), "{detail}");
    let state = harness.state().await;
    let ignored: Vec<_> =
        state["ignored"].as_array().unwrap().iter().map(|ignored| ignored["why"].to_string()).collect();
    assert!(
        ignored.len() == 2 && ignored[0].contains("link-local") && ignored[1].contains("metadata"),
        "{state:#}"
    );
    let counted = |rule| harness.table.address_policy().refusals().find(|(name, _)| *name == rule).unwrap().1;
    assert_eq!((counted("link_local"), counted("metadata")), (2, 1));
}

#[tokio::test]
async fn an_unknown_service_is_404_and_one_that_is_gone_is_503() {
    let harness = Harness::start().await;
    let detail = harness.get("/nothing/here").await.problem(404);
    assert!(detail.contains("\"nothing\""), "{detail}");
    harness.offer("web", "w", closed_address(), &[]).await;
    harness.table.withdraw("w");
    harness.settled().await;
    let gone = harness.get("/web/x").await;
    assert!(gone.problem(503).contains("has gone") && gone.head.contains("retry-after"));
    assert_eq!((harness.refused("unknown"), harness.refused("unreachable")), (1, 1));
}

#[tokio::test]
async fn a_host_outranks_prefixes_and_is_forwarded() {
    let harness = Harness::start().await;
    let (any, shop) = (echo("any").await, echo("shop").await);
    harness.offer("web", "w", any.address, &["urlprefix-/"]).await;
    harness.offer("shop", "s", shop.address, &["urlprefix-shop.example.com/ host=dst"]).await;
    let asked = async |host: &str| {
        let reply =
            harness.send(&format!("GET /x HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await;
        (reply.json()["name"].clone(), reply.json()["headers"]["host"].clone())
    };
    assert_eq!(asked("gw:8080").await, ("any".into(), "gw:8080".into()));
    assert_eq!(asked("Shop.example.com:8080").await, ("shop".into(), shop.address.to_string().into()));
}

#[tokio::test]
async fn a_role_gets_the_admitted_name_in_forwarded_and_a_program_does_not() {
    let harness = Harness::start().await;
    let (role, program) = (echo("role").await, echo("program").await);
    harness.offer("grading", "g", role.address, &["urlprefix-/students"]).await;
    harness.offer("web", "w", program.address, &[]).await;
    let claims = "forwarded: for=127.0.0.1;host=localhost;proto=https\r\nx-forwarded-host: localhost\r\n";
    let asked = async |host: &str, path: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{claims}connection: close\r\n\r\n");
        harness.send(&head).await
    };
    for host in ["school.example", "school.example:8443"] {
        let headers = asked(host, "/students").await.json()["headers"].clone();
        assert_eq!(headers["host"], role.address.to_string());
        assert_eq!(headers["forwarded"], format!("for=127.0.0.1;host=\"{host}\";proto=http"));
        assert_eq!(headers["x-forwarded-host"], host);
        let headers = asked(host, "/web").await.json()["headers"].clone();
        assert_eq!((&headers["host"], headers.get("forwarded")), (&host.into(), None));
    }
    // The node compares the origin of a page with the name that the gateway signs.
    let page = "POST /students HTTP/1.1\r\nhost: gw:8080\r\norigin: http://gw:8080\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let headers = harness.send(page).await.json()["headers"].clone();
    assert_eq!(headers["host"], role.address.to_string());
    assert_eq!(headers["origin"], "http://gw:8080");
    assert_eq!(headers["forwarded"], "for=127.0.0.1;host=\"gw:8080\";proto=http");
    let detail = asked("evil.example", "/students").await.problem(421);
    assert!(detail.contains("--allow-host evil.example"), "{detail}");
    assert_eq!(
        asked("evil.example", "/web").await.status,
        200,
        "what the host means there is the program's to know"
    );
    assert_eq!(harness.refused("host"), 1);
}

#[tokio::test]
async fn the_front_page_leads_to_the_portal_or_lists_the_routes() {
    let harness = Harness::start().await;
    let instance = echo("a").await;
    harness.offer("grading", "g", instance.address, &["urlprefix-/students"]).await;
    let list = harness.get("/").await;
    assert_eq!(list.status, 200);
    assert!(list.head.contains("text/plain") && list.head.contains("nosniff"), "{}", list.head);
    assert!(
        list.body.contains("/students/  (1 healthy)") && list.body.contains("/grading/"),
        "{}",
        list.body
    );
    let portal = |health| {
        let url = format!("http://{}", instance.address);
        harness.table.offer_as("portal", "p", &url, &["urlprefix-/portal"], health);
    };
    portal(Health::Passing);
    harness.settled().await;
    let there = harness.get("/").await;
    assert!(there.status == 303 && there.head.contains("location: /portal"), "{there:?}");
    assert_eq!(harness.request("POST /", "content-length: 0\r\n").await.status, 404);
    portal(Health::Critical);
    harness.settled().await;
    assert_eq!(harness.get("/").await.status, 200);
    harness.offer("web", "w", instance.address, &["urlprefix-/"]).await;
    assert_eq!(harness.get("/").await.json()["name"], "a", "a service announces it");
}

#[tokio::test]
async fn an_option_of_a_tag_applies_to_its_own_instance_only() {
    // `Aaa` is first in the table. Its options once applied to every instance of the route.
    for options in ["strip=/shop", "proto=h2c"] {
        let harness = Harness::start().await;
        let honest = echo("honest").await;
        let tag = format!("urlprefix-/shop {options}");
        harness.offer("Aaa", "a", closed_address(), &[&tag]).await;
        harness.offer("book", "b", honest.address, &["urlprefix-/shop"]).await;
        for _ in 0..12 {
            let reply = harness.get("/shop/2").await;
            assert_eq!(reply.status, 200, "{options}: {reply:?}");
            let asked = reply.json();
            assert_eq!((&asked["name"], &asked["target"]), (&"honest".into(), &"/shop/2".into()));
            assert_eq!(asked["headers"].get("x-forwarded-prefix"), None);
        }
    }
}

#[tokio::test]
async fn a_repeated_request_has_the_options_of_the_next_instance() {
    let harness = Harness::start().await;
    let stripped = echo("stripped").await;
    harness.offer("web", "dead", closed_address(), &["urlprefix-/a/b"]).await;
    harness.offer("api", "live", stripped.address, &["urlprefix-/a/b strip=/a host=dst"]).await;
    for _ in 0..12 {
        let asked = harness.get("/a/b/c?d").await.json();
        assert_eq!(asked["target"], "/b/c?d");
        let headers = &asked["headers"];
        assert_eq!(
            (&headers["x-forwarded-prefix"], &headers["host"]),
            (&"/a".into(), &stripped.address.to_string().into())
        );
    }
    assert!(harness.metric("gateway_retries", None) > 0);
    let state = harness.state().await;
    let route = state["routes"].as_array().unwrap().iter().find(|route| route["prefix"] == "/a/b/").unwrap();
    let strips: Vec<_> =
        route["options"].as_array().unwrap().iter().map(|options| &options["strip"]).collect();
    assert_eq!(strips, [&serde_json::Value::Null, &"/a".into()], "each instance has its own: {route}");
}

#[tokio::test]
async fn routes_follow_the_table_within_100_ms() {
    let harness = Harness::start().await;
    let instance = echo("a").await;
    let mut slowest_of_best = Duration::MAX;
    // The best of a few rounds: the machine may be busy.
    for _ in 0..20 {
        let start = Instant::now();
        harness.table.offer("web", "w", instance.address, &[]);
        while harness.get("/web").await.status != 200 {}
        let appeared = start.elapsed();
        let start = Instant::now();
        harness.table.withdraw("w");
        while harness.get("/web").await.status == 200 {}
        slowest_of_best = slowest_of_best.min(appeared.max(start.elapsed()));
    }
    println!("a change was followed within {slowest_of_best:?}");
    assert!(slowest_of_best < Duration::from_millis(100), "{slowest_of_best:?}");
}

#[tokio::test]
async fn a_request_that_returns_is_508() {
    let harness = Harness::start().await;
    // An instance at the address of the gateway, with the same service name.
    harness.offer("loop", "l", harness.address, &["urlprefix-/loop"]).await;
    let detail = harness.get("/loop").await.problem(508);
    assert!(detail.contains("hearsay-"), "{detail}");
    assert_eq!((harness.metric("gateway_requests", None), harness.refused("loop")), (2, 1));
}

#[tokio::test]
async fn critical_instances_get_requests_only_when_there_is_no_other() {
    let harness = Harness::start().await;
    let (good, bad) = (echo("good").await, echo("bad").await);
    let offer = |id, at: &crate::instance::Running, health| {
        harness.table.offer_as("web", id, &format!("http://{}", at.address), &[], health);
    };
    offer("a", &good, Health::Warning);
    offer("b", &bad, Health::Critical);
    harness.settled().await;
    for _ in 0..20 {
        assert_eq!(harness.get("/web").await.json()["name"], "good");
    }
    offer("a", &good, Health::Critical);
    harness.settled().await;
    let mut names = std::collections::BTreeSet::new();
    for _ in 0..40 {
        names.insert(harness.get("/web").await.json()["name"].to_string());
    }
    assert_eq!(names.len(), 2, "{names:?}");
}

#[tokio::test]
async fn the_state_lists_listener_routes_and_instances() {
    let harness = Harness::start().await;
    let instance = echo("a").await;
    harness.offer("web", "w", instance.address, &["urlprefix-/shop", "urlprefix-*.x/"]).await;
    harness.table.offer_as("web", "tls", "https://10.0.0.1", &[], Health::Passing);
    harness.settled().await;
    harness.get("/web").await;
    let state = harness.state().await;
    assert_eq!(state["listener"], harness.address.to_string());
    assert_eq!(state["routes"].as_array().unwrap().len(), 2);
    let web = state["instances"].as_array().unwrap().iter().find(|i| i["id"] == "w").unwrap();
    assert_eq!((&web["answered"], &web["ejected"], &web["inFlight"]), (&1.into(), &false.into(), &0.into()));
    assert!(web["latencyMs"].as_f64().unwrap() > 0.0);
    assert_eq!(state["ignored"].as_array().unwrap().len(), 2, "{state:#}");
}
