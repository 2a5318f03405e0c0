//! Tests of the routing table: which route a request gets, that programs do not get the paths of built-in
//! roles, conflicts, stripped prefixes, unusable instances, and what is kept when instances leave.

use super::*;
use crate::fixture::{policy, provider, provider_with};

fn routes(providers: &[Provider]) -> Routes {
    updated(&Routes::default(), providers, 0)
}

fn updated(before: &Routes, providers: &[Provider], now_ms: u64) -> Routes {
    let providers: Vec<_> = providers.iter().cloned().map(Arc::new).collect();
    before.updated(&providers, &policy(), now_ms)
}

/// Finds a route. Returns the ids of its instances, and the path that they get.
fn find(routes: &Routes, host: &str, path: &str) -> Option<(String, String)> {
    let found = routes.find(host, path)?;
    let ids: Vec<_> = found.route.group.members.iter().map(|m| m.endpoint.id.as_str()).collect();
    let options = found.route.group.members.first().map(|member| member.options.stripped(path));
    Some((ids.join(","), path[found.name_bytes.max(options.unwrap_or(0))..].to_owned()))
}

fn to(ids: &str, path: &str) -> Option<(String, String)> {
    Some((ids.to_owned(), path.to_owned()))
}

#[test]
fn the_host_comes_first_then_the_longest_prefix_then_the_service_then_the_default() {
    let routes = routes(&[
        provider("web", "w", "http://10.0.0.1:1", &["urlprefix-www.example.com/", "urlprefix-/"]),
        provider("shop", "s", "http://10.0.0.2:1", &["urlprefix-www.example.com/shop", "urlprefix-/a/b"]),
        provider("a", "a", "http://10.0.0.3:1", &[]),
        provider("grading", "g", "http://10.0.0.4:1", &["urlprefix-/students"]),
    ]);
    let of_role = find(&routes, "www.example.com", "/students");
    assert_eq!(of_role, to("g", "/students"), "a path of a built-in role is the role's under every host");
    let any = |path: &str| find(&routes, "10.1.1.1", path);
    assert_eq!(any("/students/1"), to("g", "/students/1"));
    assert_eq!(any("/students"), to("g", "/students"));
    assert_eq!(any("/studentship"), to("w", "/studentship"), "a prefix ends where a segment ends");
    assert_eq!(any("/grading/students/1"), to("g", "/students/1"), "by name, and the name is taken off");
    assert_eq!(any("/grading"), to("g", ""));
    assert_eq!(any("/a/b/c"), to("s", "/a/b/c"), "an announced prefix outranks a service's name");
    assert_eq!(any("/a/bc"), to("a", "/bc"));
    assert_eq!(any("/nothing"), to("w", "/nothing"), "/ is the default route");
    for host in ["www.example.com", "WWW.example.COM"] {
        assert_eq!(find(&routes, host, "/shop/1"), to("s", "/shop/1"), "{host}");
        assert_eq!(find(&routes, host, "/elsewhere"), to("w", "/elsewhere"), "{host}");
    }
}

fn program(service: &str, id: &str, tags: &[&str]) -> Provider {
    Provider { role: false, ..provider(service, id, "http://10.0.0.9:1", tags) }
}

#[test]
fn no_host_and_no_longer_prefix_covers_the_paths_of_a_built_in_role() {
    let grading = provider("grading", "g", "http://10.0.0.4:1", &["urlprefix-/students"]);
    let tags = [
        "urlprefix-/students/1",
        "urlprefix-10.77.0.1/",
        "urlprefix-localhost/students",
        "urlprefix-/students strip=/students",
    ];
    let routes =
        routes(&[program("Aaa", "a", &tags), grading, program("web", "w", &["urlprefix-w.example/"])]);
    for host in ["10.77.0.1", "localhost", "h", "w.example", "W.EXAMPLE"] {
        for path in ["/students", "/students/1", "/students/1/grades"] {
            assert_eq!(find(&routes, host, path), to("g", path), "{host}");
        }
    }
    assert_eq!(find(&routes, "10.77.0.1", "/x"), to("a", "/x"));
    assert_eq!(find(&routes, "w.example", "/studentship"), to("w", "/studentship"));
    assert_eq!(find(&routes, "w.example", "/log"), to("w", "/log"), "no log is there");
    assert_eq!((routes.ignored.len(), routes.ignored_count), (3, 3));
    assert!(
        routes
            .ignored
            .iter()
            .all(|ignored| ignored.service == "Aaa" && ignored.reason.contains("built-in role"))
    );
}

#[test]
fn a_route_of_several_services_is_a_conflict() {
    let routes = routes(&[
        program("shop", "s", &["urlprefix-/shop", "urlprefix-/s"]),
        program("shop", "t", &["urlprefix-/s"]),
        program("store", "u", &["urlprefix-/shop", "urlprefix-h/s"]),
    ]);
    let conflict =
        Conflict { host: None, prefix: "/shop".into(), services: vec!["shop".into(), "store".into()] };
    assert_eq!((routes.conflicts, routes.conflicts_count), (vec![conflict], 1));
}

#[test]
fn an_unknown_service_is_not_found() {
    let routes = routes(&[provider("grading", "g", "http://10.0.0.4:1", &["urlprefix-/students"])]);
    for path in ["/", "/x", "/grading2", "/Grading", "//grading", "/%zz", "/%ff", "/"] {
        assert_eq!(find(&routes, "h", path), None, "{path}");
    }
}

#[test]
fn a_service_with_a_space_in_its_name_is_found() {
    let routes = routes(&[provider("Grade Book", "g", "http://10.0.0.4:1", &[])]);
    assert_eq!(find(&routes, "h", "/Grade%20Book/x"), to("g", "/x"));
}

#[test]
fn strip_removes_its_prefix() {
    let tags = ["urlprefix-/api/v1 strip=/api host=dst"];
    let routes = routes(&[provider("web", "w", "http://10.0.0.1:1", &tags)]);
    assert_eq!(find(&routes, "h", "/api/v1/x"), to("w", "/v1/x"));
    let options = &routes.find("h", "/api/v1/x").unwrap().route.group.members[0].options;
    assert!(options.own_host);
    assert_eq!(options.prefix.as_ref().unwrap(), "/api");
}

#[test]
fn the_options_of_a_tag_apply_to_its_own_instance() {
    let routes = routes(&[
        provider("Aaa", "a", "http://10.0.0.1:1", &["urlprefix-/shop strip=/shop proto=h2c"]),
        provider("shop", "s", "http://10.0.0.2:1", &["urlprefix-/shop"]),
    ]);
    let members = &routes.find("h", "/shop/1").unwrap().route.group.members;
    let options: Vec<_> = members
        .iter()
        .map(|m| (m.endpoint.id.as_str(), m.options.stripped("/shop/1"), m.options.http2))
        .collect();
    assert_eq!(options, [("a", 5, true), ("s", 0, false)]);
}

#[test]
fn unusable_instances_are_listed_and_counted() {
    let routes = routes(&[
        provider("web", "w", "https://10.0.0.1", &["urlprefix-*/"]),
        provider("web", "v", "http://10.0.0.1:1", &[]),
    ]);
    let found = routes.find("h", "/web").unwrap();
    assert_eq!((found.route.group.members.len(), found.route.group.unusable), (1, 1));
    assert_eq!(routes.ignored.len(), 2, "{:?}", routes.ignored);
}

#[test]
fn an_endpoint_is_kept_while_it_is_listed_and_marked_when_it_is_gone() {
    let (a, b) =
        (provider("web", "a", "http://10.0.0.1:1", &[]), provider("web", "b", "http://10.0.0.1:2", &[]));
    let first = routes(&[a.clone(), b.clone()]);
    let endpoint = |routes: &Routes, id: &str| routes.endpoints().find(|e| e.id == id).cloned().unwrap();
    let (was_a, was_b) = (endpoint(&first, "a"), endpoint(&first, "b"));
    let moved = provider("web", "b", "http://10.0.0.1:3", &[]);
    let second = updated(&first, &[a, moved], 1);
    assert!(Arc::ptr_eq(&was_a, &endpoint(&second, "a")) && !was_a.is_gone());
    assert!(!Arc::ptr_eq(&was_b, &endpoint(&second, "b")) && was_b.is_gone(), "its address has changed");
}

#[test]
fn critical_instances_are_members_and_not_healthy() {
    let routes = routes(&[
        provider_with("web", "a", "http://10.0.0.1:1", &[], Health::Critical),
        provider_with("web", "b", "http://10.0.0.1:2", &[], Health::Warning),
    ]);
    let group = &routes.find("h", "/web").unwrap().route.group;
    assert_eq!((group.members.len(), group.healthy.clone()), (2, vec![1]));
}

#[test]
fn a_route_without_instances_is_kept_for_an_hour() {
    let web = provider("web", "a", "http://10.0.0.1:1", &["urlprefix-/shop"]);
    let first = routes(std::slice::from_ref(&web));
    let gone = updated(&first, &[], 1_000);
    for path in ["/web/x", "/shop/1"] {
        let group = &gone.find("h", path).unwrap().route.group;
        assert!(group.members.is_empty() && group.gone_ms == Some(1_000));
    }
    let still = updated(&gone, &[], 3_600_000);
    assert!(still.find("h", "/shop").is_some());
    assert!(updated(&still, &[], 3_602_000).find("h", "/shop").is_none());
    assert!(updated(&still, &[web], 3_602_000).find("h", "/shop").unwrap().route.group.gone_ms.is_none());
}

#[test]
fn a_path_of_many_segments_costs_no_more_than_the_longest_prefix() {
    let routes = routes(&[provider("web", "a", "http://10.0.0.1:1", &["urlprefix-/a/b"])]);
    let path = format!("/a/b{}", "/".repeat(30_000));
    assert!(find(&routes, "h", &path).is_some());
}
