//! Tests that a program registered under the name of a built-in role (`log`, `grading`) is listed beside the
//! role's nodes, but gets none of the requests that gateway, portal and nodes send to the role.

use std::net::SocketAddr;

use hearsay_tests::{
    Cluster as _, Lab, Program,
    http::{self, Reply},
    registry::{all_see_all, instances, plain, register},
    scenario,
};
use serde_json::json;

use crate::{PROGRAM, S};

/// Requests that a built-in role answers, at a portal and at a gateway.
const AT_PORTAL: [&str; 4] =
    ["GET /portal", "GET /portal/log", "GET /portal/students", "GET /portal/log/events"];
const AT_GATEWAY: [&str; 8] = [
    "GET /log",
    "POST /log",
    "GET /log/tail?limit=1",
    "GET /log/log",
    "GET /grading/students",
    "GET /students",
    "GET /students/1",
    "GET /records",
];

fn send(to: SocketAddr, request: &str) -> Option<Reply> {
    let headers = [("content-type", "text/plain")];
    http::send(to, request, &headers, if request.starts_with("POST") { "a line" } else { "" }, 10 * S).ok()
}

#[test]
fn a_program_named_as_a_role_is_listed_and_gets_no_request_of_the_role() {
    scenario("namesakes::a_program_named_as_a_role_is_listed_and_gets_no_request_of_the_role", |lab| {
        let hosts: Vec<_> = (0..3).map(|_| lab.host()).collect();
        let roles = lab.start(Some(&hosts[0]), "roles", 7500, &["--name", "roles", "--role", "log,grading"]);
        let door = lab.start(Some(&hosts[1]), "door", 7500, &["--name", "door", "--role", "portal,gateway"]);
        let beside = plain(lab, &hosts[2], 0, &[]);
        let nodes = [roles, door, beside];
        all_see_all(lab, &nodes);
        let names = [("log", 4000), ("grading", 4001)];
        let programs: Vec<Program> = names.map(|(_, port)| Program::start(PROGRAM, &hosts[2], port)).into();
        for (name, port) in names {
            // As attractive as possible: the role's prefixes, and weight.
            let tags = ["urlprefix-/log", "urlprefix-/students", "urlprefix-/records", "urlprefix-/log/tail"];
            register(
                &hosts[2],
                &json!({"name": name, "id": format!("{name}-1"), "port": port, "tags": tags, "weight": 65535}),
            );
        }
        lab.until(10 * S, "all list the programs beside the roles", |lab| {
            nodes.iter().all(|node| names.iter().all(|(name, _)| instances(lab, *node, name).len() == 2))
        });
        let portal = lab.address(door);
        let gateway = SocketAddr::new(portal.ip(), 8080);
        lab.until(10 * S, "the gateway knows the roles", |_| {
            send(gateway, "GET /log").is_some_and(|reply| reply.status == 200)
        });
        for _ in 0..20 {
            for request in AT_PORTAL {
                let reply = send(portal, request).unwrap();
                assert!(reply.status < 500, "{request}: {reply:?}");
            }
            for request in AT_GATEWAY {
                let reply = send(gateway, request).unwrap();
                assert!(reply.status < 500, "{request}: {reply:?}");
            }
        }
        // Events of a node reach the log: the crash of a fourth node, as the plain node has seen it.
        let fourth = lab.add("fourth");
        all_see_all(lab, &[roles, door, beside, fourth]);
        lab.crash(fourth);
        lab.until(20 * S, "events are shipped", |lab| {
            let log = lab.text(roles, "/log?limit=1000").unwrap_or_default();
            log.contains("fourth") && shipped(lab, beside) > 0
        });
        let counts = || programs.iter().map(Program::count).collect::<Vec<_>>();
        assert_eq!(counts(), [0, 0], "requests of the roles");
        // The programs alone are no roles, either.
        lab.crash(roles);
        lab.until(10 * S, "the roles are gone, the programs are not", |lab| {
            names.iter().all(|(name, _)| instances(lab, door, name).len() == 1)
        });
        for request in AT_GATEWAY {
            let reply = send(gateway, request).unwrap();
            assert!([502, 503, 504].contains(&reply.status), "{request}: {reply:?}");
        }
        AT_PORTAL.iter().for_each(|request| _ = send(portal, request).unwrap());
        assert_eq!(counts(), [0, 0], "requests of the roles when they are gone");
        // The programs would have counted the requests.
        programs.iter().for_each(|program| assert_eq!(program.send("GET /x").status, 200));
        assert_eq!(counts(), [1, 1]);
    });
}

/// Returns the events that a node has shipped.
fn shipped(lab: &Lab, node: hearsay_tests::NodeRef) -> u64 {
    let metrics = lab.text(node, "/metrics").unwrap_or_default();
    let name = "hearsay_events_shipped_total ";
    metrics.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).unwrap_or_default()
}
