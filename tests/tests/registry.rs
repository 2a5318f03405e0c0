//! Tests of programs that register with a node by HTTP or file: all nodes list them, checks show when they
//! fail or die, and programs are notified of changes of the services that they require.

// In a test, a failed unwrap is the failure.
#![allow(clippy::unwrap_used)]

use std::{fs, io::Read as _, time::Duration};

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef, Program, build_before,
    registry::{all_have, cluster, instances, on_five_hosts, passing, plain, register},
    scenario,
};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);
const PROGRAM: &str = env!("CARGO_BIN_EXE_program");

#[test]
fn a_program_is_listed_everywhere_and_survives_the_crash_of_its_node() {
    scenario("a_program_is_listed_everywhere_and_survives_the_crash_of_its_node", |lab| {
        let (hosts, mut nodes) = cluster(lab, 3, &[]);
        let ports =
            json!([{"name": "http", "port": 8080, "default": true}, {"name": "metrics", "port": 9100}]);
        let body = json!({
            "name": "web", "id": "web-1", "address": "localhost", "ports": ports, "tags": ["blue"],
            "meta": {"version": "3"}, "zone": "z1", "weight": 5, "requires": ["db"],
        });
        let answer = register(&hosts[0], &body);
        assert_eq!((&answer["id"], &answer["node"]), (&json!("web-1"), &json!("m0")));
        assert_eq!(answer["requires"], json!({"db": []}));
        // It was listed before the answer left.
        assert_eq!(instances(lab, nodes[0], "web").len(), 1);
        lab.until(5 * S, "all list it", |lab| all_have(lab, &nodes, "web", 1));
        let instance = instances(lab, nodes[2], "web?zone=z1&tag=blue").remove(0);
        assert_eq!(instance["address"], json!(hosts[0].ip), "what loopback means is this host");
        assert_eq!(instance["url"], json!(format!("http://{}:8080", hosts[0].ip)));
        assert_eq!((&instance["weight"], &instance["ports"]), (&json!(5), &ports_json()));
        // The same id with other values: replaced in place.
        register(&hosts[0], &json!({"name": "web", "id": "web-1", "address": "localhost", "port": 8081}));
        lab.until(5 * S, "it is replaced everywhere", |lab| {
            nodes.iter().all(|node| {
                let found = instances(lab, *node, "web");
                found.len() == 1 && found[0]["port"] == 8081
            })
        });
        register(&hosts[0], &json!({"name": "gone", "id": "gone-1", "port": 1}));
        assert_eq!(hosts[0].send(7500, "DELETE /services/gone-1", "").status, 200);
        lab.crash(nodes[0]);
        lab.until(5 * S, "the crash is known", |lab| all_have(lab, &nodes[1..], "web", 0));
        nodes[0] = plain(lab, &hosts[0], 0, &[]);
        lab.until(10 * S, "it is back, once", |lab| all_have(lab, &nodes, "web", 1));
        assert!(instances(lab, nodes[0], "gone").is_empty());
        // An id that another node holds.
        let reply = hosts[1].send(7500, "DELETE /services/web-1", "");
        assert!(reply.status == 404 && reply.body.contains("m0"), "{reply:?}");
        assert_eq!(hosts[0].send(7500, "DELETE /services/web/web-1", "").status, 200);
        lab.until(5 * S, "it is gone everywhere", |lab| all_have(lab, &nodes, "web", 0));
    });
}

fn ports_json() -> Value {
    json!([{"name": "http", "port": 8080, "default": true}, {"name": "metrics", "port": 9100, "default": false}])
}

#[test]
fn a_held_registration_ends_with_its_connection() {
    scenario("a_held_registration_ends_with_its_connection", |lab| {
        let (hosts, nodes) = cluster(lab, 3, &[]);
        let body = json!({"name": "web", "id": "web-1", "port": 8080}).to_string();
        let held = hosts[0].hold(7500, "POST /services?hold", &body, "event: registered");
        lab.until(5 * S, "all list it", |lab| all_have(lab, &nodes, "web", 1));
        drop(held);
        lab.until(5 * S, "it is gone everywhere", |lab| all_have(lab, &nodes, "web", 0));
        assert!(instances(lab, nodes[0], "web").is_empty());
        // With grace it is critical for a while, and passing again once its client is back.
        let held = hosts[0].hold(7500, "POST /services?hold&grace=30s", &body, "event: registered");
        lab.until(5 * S, "all list it again", |lab| all_have(lab, &nodes, "web", 1));
        drop(held);
        lab.until(5 * S, "it is critical", |lab| {
            nodes.iter().all(|node| instances(lab, *node, "web?health=critical").len() == 1)
        });
        let _held = hosts[0].hold(7500, "POST /services?hold&grace=30s", &body, "event: registered");
        lab.until(5 * S, "it passes again", |lab| all_have(lab, &nodes, "web", 1));
        // A newer owner takes over, and the end of the older one has no effect.
        register(&hosts[0], &json!({"name": "web", "id": "web-1", "port": 8080}));
        drop(_held);
        lab.throughout(S, "it stays", |lab| all_have(lab, &nodes, "web", 1));
    });
}

#[test]
fn the_death_of_a_program_is_known_everywhere_by_its_watch_check() {
    scenario("the_death_of_a_program_is_known_everywhere_by_its_watch_check", |lab| {
        let (hosts, nodes) = cluster(lab, 3, &[]);
        let mut program = Program::start(PROGRAM, &hosts[0], 8080);
        register(
            &hosts[0],
            &json!({
                "name": "web", "id": "web-1", "port": 8080,
                "checks": [{"watch": true}, {"http": "/health", "interval": "1s", "timeout": "900ms"}],
            }),
        );
        lab.until(10 * S, "it passes everywhere", |lab| all_have(lab, &nodes, "web", 1));
        program.send("POST /fail");
        lab.until(5 * S, "it fails everywhere", |lab| all_have(lab, &nodes, "web", 0));
        // The status of a check, as the node of the program has it.
        let check = |lab: &Lab, by: NodeRef, kind: &str| {
            let one = lab.get(by, "/services/web/web-1").unwrap_or_default();
            let checks = one["checks"].as_array().cloned().unwrap_or_default();
            checks.into_iter().find(|check| check["kind"] == kind).unwrap_or_default()
        };
        lab.until(5 * S, "its answer is the output", |lab| {
            let failing = check(lab, nodes[0], "http");
            failing["status"] == "critical" && failing["output"].to_string().contains("503")
        });
        program.send("POST /pass");
        lab.until(5 * S, "it recovers everywhere", |lab| all_have(lab, &nodes, "web", 1));
        program.kill();
        lab.until(5 * S, "its death is known everywhere", |lab| all_have(lab, &nodes, "web", 0));
        // The other check may have been the first to fail.
        lab.until(5 * S, "the watch check fails", |lab| {
            check(lab, nodes[2], "watch")["status"] == "critical"
        });
    });
}

#[test]
fn a_ttl_check_passes_while_it_is_reported_and_fails_after() {
    scenario("a_ttl_check_passes_while_it_is_reported_and_fails_after", |lab| {
        let (hosts, nodes) = cluster(lab, 1, &[]);
        register(&hosts[0], &json!({"name": "job", "id": "job-1", "check": {"ttl": "5s"}}));
        assert_eq!(passing(lab, nodes[0], "job"), 0, "critical before the first report");
        let report = |status: &str| {
            let body = json!({"status": status, "output": "42 % done"}).to_string();
            hosts[0].send(7500, "PUT /checks/service:job-1", &body).status
        };
        assert_eq!(report("passing"), 200);
        lab.until(3 * S, "it passes", |lab| passing(lab, nodes[0], "job") == 1);
        let one = lab.get(nodes[0], "/services/job/job-1").unwrap();
        assert_eq!(one["checks"][0]["output"], "42 % done");
        lab.until(10 * S, "without reports it fails", |lab| passing(lab, nodes[0], "job") == 0);
        assert_eq!((report("fine"), report("warning")), (400, 200));
        assert_eq!(hosts[0].send(7500, "PUT /checks/unknown", "{\"status\":\"passing\"}").status, 404);
    });
}

#[test]
fn a_program_is_told_of_its_dependencies_in_its_dialect() {
    scenario("a_program_is_told_of_its_dependencies_in_its_dialect", |lab| {
        let (hosts, nodes) = cluster(lab, 2, &[]);
        let (first, second) =
            (Program::start(PROGRAM, &hosts[0], 6000), Program::start(PROGRAM, &hosts[0], 6001));
        // Registered before the services that it requires, as in older tutorials.
        let answer = register(
            &hosts[0],
            &json!({
                "ServiceName": "Grading Service", "ServiceURL": "http://localhost:6000",
                "RequiredServices": ["Log Service"], "ServiceUpdateURL": "http://localhost:6000/services",
                "HeartbeatURL": "http://localhost:6000/health",
            }),
        );
        assert_eq!(answer["requires"], json!({"Log Service": []}));
        let two = json!({"Name": "Portal", "Addr": "localhost:6001", "RequiredServices": ["Log Service"]});
        assert_eq!(
            register(&hosts[0], &two),
            json!({"Log Service": []}),
            "dialect 2 gets this and nothing else"
        );
        lab.until(5 * S, "both pass", |lab| {
            passing(lab, nodes[1], "Portal") == 1 && passing(lab, nodes[1], "Grading%20Service") == 1
        });
        let mut log = Program::start(PROGRAM, &hosts[1], 4000);
        let log_url = format!("http://{}:4000", hosts[1].ip);
        register(
            &hosts[1],
            &json!({"name": "Log Service", "id": "log-1", "port": 4000, "check": {"watch": true}}),
        );
        let added = |program: &Program, words: &[&str]| {
            program.received().iter().any(|line| words.iter().all(|word| line.contains(word)))
        };
        lab.until(5 * S, "both receive the instance", |_| {
            added(&first, &["POST /services", "\"Added\":[{\"Name\":\"Log Service\"", &log_url])
                && added(&second, &["POST /services", "\"Name\":\"Log Service\"", "\"Addr\""])
        });
        log.kill();
        lab.until(5 * S, "both receive its removal", |_| {
            added(&first, &["POST /services", "\"Removed\":[{\"Name\":\"Log Service\"", &log_url])
                && added(&second, &["DELETE /services", "\"Name\":\"Log Service\""])
        });
        let graph = lab.get(nodes[1], "/dependencies").unwrap();
        let grading =
            graph["services"].as_array().unwrap().iter().find(|s| s["name"] == "Grading Service").unwrap();
        assert_eq!(grading["missing"], json!(["Log Service"]));
        // And they go as they came.
        let reply = hosts[0].send(7500, "DELETE /services", &two.to_string());
        assert_eq!(reply.status, 200, "{reply:?}");
        let request = hosts[0].enter(|| {
            let headers = [("content-type", "text/plain")];
            let to = "127.0.0.1:7500".parse().unwrap();
            hearsay_tests::http::send(to, "DELETE /services", &headers, "http://localhost:6000", 5 * S)
                .unwrap()
        });
        assert_eq!(request.status, 200, "{request:?}");
        lab.until(5 * S, "both are gone", |lab| {
            instances(lab, nodes[1], "Portal").is_empty()
                && instances(lab, nodes[1], "Grading%20Service").is_empty()
        });
    });
}

#[test]
fn a_subscriber_that_was_down_misses_nothing() {
    scenario("a_subscriber_that_was_down_misses_nothing", |lab| {
        let (hosts, nodes) = cluster(lab, 1, &[]);
        register(
            &hosts[0],
            &json!({
                "name": "app", "port": 6000, "requires": ["db"], "updates": "http://127.0.0.1:6000/updates",
            }),
        );
        register(&hosts[0], &json!({"name": "db", "id": "db-1", "port": 5001}));
        register(&hosts[0], &json!({"name": "db", "id": "db-2", "port": 5002}));
        assert_eq!(hosts[0].send(7500, "DELETE /services/db-1", "").status, 200);
        lab.until(S, "db-2 is there", |lab| passing(lab, nodes[0], "db") == 1);
        let app = Program::start(PROGRAM, &hosts[0], 6000);
        lab.until(10 * S, "it receives the current set", |_| {
            let received = app.received();
            received.iter().any(|line| line.contains(":5002"))
        });
        register(&hosts[0], &json!({"name": "db", "id": "db-3", "port": 5003}));
        lab.until(5 * S, "and of what comes", |_| app.received().iter().any(|line| line.contains(":5003")));
    });
}

#[test]
fn a_subscriber_hears_of_what_vanished_while_its_node_was_down() {
    scenario("a_subscriber_hears_of_what_vanished_while_its_node_was_down", |lab| {
        let (hosts, mut nodes) = cluster(lab, 2, &[]);
        let app = Program::start(PROGRAM, &hosts[0], 6000);
        for port in [5001, 5002] {
            register(&hosts[1], &json!({"name": "db", "id": format!("db-{port}"), "port": port}));
        }
        register(
            &hosts[0],
            &json!({
                "name": "app", "port": 6000, "requires": ["db"], "updates": "http://127.0.0.1:6000/updates",
            }),
        );
        let told = |key: &str, port: &str| {
            let of_key = |line: String| {
                line.split(&format!("\"{key}\":[")).nth(1)?.split(']').next().map(str::to_owned)
            };
            app.received().into_iter().filter_map(of_key).filter(|instances| instances.contains(port)).count()
        };
        lab.until(10 * S, "it receives both", |_| told("Added", ":5001") == 1 && told("Added", ":5002") == 1);
        lab.leave(nodes[0]);
        assert_eq!(hosts[1].send(7500, "DELETE /services/db-5002", "").status, 200);
        nodes[0] = plain(lab, &hosts[0], 0, &[]);
        lab.until(40 * S, "it receives the removal", |_| {
            // Each poll is a connection, and there are not enough ports for a thousand a second.
            std::thread::sleep(S / 5);
            told("Removed", ":5002") == 1
        });
        assert_eq!((told("Added", ":5001"), told("Removed", ":5001")), (1, 0), "{:?}", app.received());
    });
}

#[test]
fn files_register_programs_and_a_bad_one_keeps_its_last_good_version() {
    scenario("files_register_programs_and_a_bad_one_keeps_its_last_good_version", |lab| {
        let dir = lab.dir().join("services.d");
        fs::create_dir_all(&dir).unwrap();
        let toml = dir.join("web.toml");
        fs::write(&toml, "[service]\nname = 'web'\nid = 'web-1'\nport = 8080\n").unwrap();
        let (hosts, nodes) = cluster(lab, 1, &["--services-dir", dir.to_str().unwrap()]);
        lab.until(5 * S, "the file is read", |lab| passing(lab, nodes[0], "web") == 1);
        // The file outranks the API.
        let reply = hosts[0].send(7500, "POST /services", r#"{"name":"web","id":"web-1","port":1}"#);
        assert!(reply.status == 409 && reply.body.contains("web.toml"), "{reply:?}");
        assert_eq!(hosts[0].send(7500, "DELETE /services/web-1", "").status, 409);
        let consul = r#"{"services":[{"Name":"db","ID":"db-1","Port":5432,"Tags":["primary"],"Check":{"TTL":"10s","Status":"passing"}}]}"#;
        fs::write(dir.join("db.json"), consul).unwrap();
        lab.until(5 * S, "a file in Consul's form is read", |lab| {
            instances(lab, nodes[0], "db?tag=primary&health=passing").len() == 1
        });
        fs::write(&toml, "[service]\nname = 'web'\nid = 'web-1'\npo").unwrap();
        lab.until(5 * S, "the bad file is named", |lab| {
            let files = lab.get(nodes[0], "/registrations").unwrap_or_default()["files"].to_string();
            files.contains("web.toml") && files.contains("TOML")
        });
        assert_eq!(passing(lab, nodes[0], "web"), 1, "its last good version stays");
        fs::write(&toml, "[service]\nname = 'web'\nid = 'web-1'\nport = 8081\n").unwrap();
        lab.until(5 * S, "it is put right", |lab| {
            instances(lab, nodes[0], "web").first().is_some_and(|one| one["port"] == 8081)
        });
        fs::remove_file(&toml).unwrap();
        lab.until(5 * S, "it is gone", |lab| instances(lab, nodes[0], "web").is_empty());
        // Commands come from files only, and only where the node allows it.
        fs::write(dir.join("exec.toml"), "[service]\nname = 'x'\n[service.check]\nexec = ['true']\n")
            .unwrap();
        lab.until(5 * S, "exec is refused", |lab| {
            lab.get(nodes[0], "/registrations").unwrap_or_default()["files"]
                .to_string()
                .contains("--allow-exec-checks")
        });
    });
}

#[test]
fn a_drained_instance_stays_out_of_service_over_a_restart() {
    scenario("a_drained_instance_stays_out_of_service_over_a_restart", |lab| {
        let (hosts, mut nodes) = cluster(lab, 2, &[]);
        register(&hosts[0], &json!({"name": "web", "id": "web-1", "port": 8080}));
        lab.until(5 * S, "all list it", |lab| all_have(lab, &nodes, "web", 1));
        let drain = |enable: bool| {
            let body = json!({"enable": enable, "reason": "kernel update"}).to_string();
            hosts[0].send(7500, "PUT /services/web-1/maintenance", &body).status
        };
        assert_eq!(drain(true), 200);
        lab.until(5 * S, "it is out", |lab| all_have(lab, &nodes, "web", 0));
        lab.crash(nodes[0]);
        nodes[0] = plain(lab, &hosts[0], 0, &[]);
        lab.until(10 * S, "it is back, and critical", |lab| {
            nodes.iter().all(|node| instances(lab, *node, "web?health=critical").len() == 1)
        });
        lab.until(5 * S, "the other node gives the reason", |lab| {
            let one = lab.get(nodes[1], "/services/web/web-1").unwrap_or_default();
            one["checks"].to_string().contains("kernel update")
        });
        assert_eq!(drain(false), 200);
        lab.until(5 * S, "it is in again", |lab| all_have(lab, &nodes, "web", 1));
        assert_eq!(
            hosts[0].send(7500, "PUT /services/unknown/maintenance", r#"{"enable":true}"#).status,
            404
        );
    });
}

#[test]
fn bad_registrations_change_nothing() {
    scenario("bad_registrations_change_nothing", |lab| {
        let (hosts, nodes) = cluster(lab, 1, &[]);
        for (body, field) in [
            (r#"{"name":"a/b"}"#, "name"),
            (r#"{"name":"web","port":70000}"#, "port"),
            (r#"{"name":"web","port":1,"check":{"exec":["id"]}}"#, "exec"),
            (r#"{"name":"web","port":1,"check":{"http":"http://169.254.169.254/latest"}}"#, "http"),
            (r#"{"name":"web","port":1,"check":{"http":"http://127.0.0.1:7500/v1/agent/leave"}}"#, "http"),
        ] {
            let reply = hosts[0].send(7500, "POST /services", body);
            assert!(reply.status == 400 && reply.body.contains(field), "{body}: {reply:?}");
        }
        assert_eq!(lab.get(nodes[0], "/registrations").unwrap()["registrations"], json!([]));
    });
}

#[test]
fn a_registration_whose_checks_change_is_replaced_without_a_flap() {
    scenario("a_registration_whose_checks_change_is_replaced_without_a_flap", |lab| {
        let (hosts, nodes) = cluster(lab, 1, &[]);
        let _program = Program::start(PROGRAM, &hosts[0], 8080);
        let body = |version: &str, checks: Value| json!({"name": "web", "id": "web-1", "port": 8080, "meta": {"version": version}, "checks": checks});
        let check = json!({"http": "/health", "id": "http"});
        register(&hosts[0], &body("v1", json!([check])));
        lab.until(10 * S, "it passes", |lab| all_have(lab, &nodes, "web", 1));
        let mut events = hosts[0].hold(7500, "GET /services/watch?service=web", "", "\"v1\"");
        // Another interval, and a second check.
        let changed = json!({"http": "/health", "id": "http", "interval": "20s"});
        register(&hosts[0], &body("v2", json!([changed, {"tcp": true, "id": "tcp"}])));
        lab.until(10 * S, "both have run", |lab| {
            let instance = lab.get(nodes[0], "/services/web/web-1").unwrap_or_default();
            let checks = instance["checks"].as_array().cloned().unwrap_or_default();
            checks.len() == 2 && checks.iter().all(|check| check["lastRun"].is_string())
        });
        // The stream is ordered, so with the next change all earlier ones have arrived.
        register(&hosts[0], &body("v3", json!([changed])));
        let (mut told, mut buffer) = (String::new(), [0; 4096]);
        while !told.contains("\"v3\"") {
            let read = events.read(&mut buffer).unwrap();
            assert!(read > 0, "the stream ended: {told}");
            told.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
        assert!(told.contains("\"v2\"") && !told.contains("critical"), "{told}");
    });
}

#[test]
fn a_node_of_the_version_before_relays_and_reads_programs() {
    let test = "a_node_of_the_version_before_relays_and_reads_programs";
    let Some(before) = build_before(test) else { return };
    scenario(test, |lab| {
        let hosts: Vec<Host> = (0..3).map(|_| lab.host()).collect();
        // The first and the last node know each other only through the middle one.
        hosts[0].drop_packets_from(&[&hosts[2]]);
        hosts[2].drop_packets_from(&[&hosts[0]]);
        let this = std::env::var_os("NODE_BIN").unwrap();
        let mut nodes = vec![plain(lab, &hosts[0], 0, &[])];
        lab.use_binary(&before, &[]);
        nodes.push(plain(lab, &hosts[1], 1, &[]));
        lab.use_binary(&this, &[]);
        nodes.push(plain(lab, &hosts[2], 2, &[]));
        let tags: Vec<String> = (0..200).map(|n| format!("tag-{n:03}-{}", "x".repeat(60))).collect();
        let body = json!({
            "name": "web", "id": "web-1", "port": 8080, "tags": tags, "weight": 7, "requires": ["db"], "zone": "z",
        });
        lab.until(10 * S, "the first answers", |lab| lab.get(nodes[0], "/registrations").is_some());
        register(&hosts[0], &body);
        lab.until(20 * S, "all list it", |lab| all_have(lab, &nodes, "web", 1));
        lab.until(10 * S, "the far one has all of it", |lab| {
            let found = instances(lab, nodes[2], "web");
            found.len() == 1
                && found[0]["tags"].as_array().is_some_and(|t| t.len() == 200)
                && found[0]["weight"] == 7
        });
        lab.until(10 * S, "all agree", |lab| lab.agree(&nodes));
    });
}

#[test]
fn lookups_still_answer_while_most_hosts_are_silent_and_not_when_they_are_dead() {
    let test = "lookups_still_answer_while_most_hosts_are_silent_and_not_when_they_are_dead";
    scenario(test, |lab| {
        let (hosts, nodes) = on_five_hosts(lab);
        for (host, id) in [(&hosts[0], "web-1"), (&hosts[1], "web-2")] {
            register(host, &json!({"name": "web", "id": id, "port": 8080}));
        }
        let rest = &nodes[8..];
        lab.until(10 * S, "all list both", |lab| all_have(lab, &nodes, "web", 2));
        // One lost host is no fault of the network.
        register(&hosts[2], &json!({"name": "db", "id": "db-1", "port": 5432}));
        lab.until(10 * S, "all list the third", |lab| all_have(lab, &nodes, "db", 1));
        hosts[2].sh("ip link set eth0 down");
        lab.until(20 * S, "what the lost host held is gone", |lab| all_have(lab, rest, "db", 0));
        hosts[2].sh("ip link set eth0 up");
        lab.until(30 * S, "it is back", |lab| all_have(lab, &nodes, "db", 1));
        // Four hosts at once are.
        nodes[..8].iter().for_each(|node| lab.signal(*node, "STOP"));
        lab.until(60 * S, "all that they held is listed and marked", |lab| {
            rest.iter().all(|node| {
                let found = instances(lab, *node, "web?health=passing");
                assert!(!found.is_empty(), "nothing is found\n{}", lab.describe());
                found.iter().all(|one| one["health"] == "unverified")
            })
        });
        nodes[..8].iter().for_each(|node| lab.signal(*node, "CONT"));
        lab.until(30 * S, "they pass again", |lab| {
            nodes.iter().all(|node| {
                let found = instances(lab, *node, "web?health=passing");
                found.len() == 2 && found.iter().all(|one| one["health"] == "passing")
            })
        });
        // Instances whose processes are known to be dead are not kept.
        nodes[..8].iter().for_each(|node| lab.crash(*node));
        lab.until(30 * S, "the dead are gone", |lab| rest.iter().all(|node| passing(lab, *node, "web") == 0));
    });
}
