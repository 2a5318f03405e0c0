//! Tests a rolling restart: ten instances under `node run` restart one after another behind the gateway, and
//! no request of a client fails.

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef, Program, http,
    registry::{all_see_all, passing, plain},
    scenario,
};

use crate::{PROGRAM, S};

const INSTANCES: u16 = 10;
/// Clients that send one request after another.
const CLIENTS: usize = 8;
/// Limit of every answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Runs `node run` of one instance.
fn run(lab: &Lab, host: &Host, node: NodeRef, n: u16) -> Program {
    let (id, port) = (format!("web-{n}"), 8000 + n);
    let text = port.to_string();
    let socket = format!("unix:{}", lab.socket(node).display());
    let arguments = [
        "run",
        "--service",
        "web",
        "--id",
        &id,
        "--port",
        &text,
        "--check",
        "http=/health",
        "--drain",
        "1s",
        "--node",
        &socket,
        "--",
        PROGRAM,
        &text,
    ];
    Program::spawn(lab.command(Some(host), "run", &arguments), host, port)
}

/// Sends requests until stopped: repeatable and non-repeatable ones, some of them slow. Returns the failed
/// ones.
fn request(gateway: SocketAddr, stop: &AtomicBool, answered: &AtomicUsize) -> Vec<String> {
    let requests = ["GET /web/a", "POST /web/a", "GET /web/slow", "POST /web/slow"];
    let mut failed = Vec::new();
    for request in requests.iter().cycle() {
        if stop.load(Relaxed) {
            break;
        }
        match http::send(gateway, request, &[], "", ANSWER_MAX) {
            Ok(reply) if reply.status == 200 => _ = answered.fetch_add(1, Relaxed),
            other => failed.push(format!("{request}: {other:?}")),
        }
    }
    failed
}

#[test]
fn ten_instances_restart_one_after_another_and_no_request_fails() {
    scenario("rolling::ten_instances_restart_one_after_another_and_no_request_fails", |lab| {
        let hosts = [lab.host(), lab.host()];
        let node = plain(lab, &hosts[0], 0, &[]);
        let door = lab.start(Some(&hosts[1]), "door", 7500, &["--name", "door", "--role", "gateway"]);
        all_see_all(lab, &[node, door]);
        let mut programs: Vec<Program> = (0..INSTANCES).map(|n| run(lab, &hosts[0], node, n)).collect();
        let all = usize::from(INSTANCES);
        lab.until(20 * S, "all pass", |lab| passing(lab, door, "web") == all);
        let gateway: SocketAddr = format!("{}:8080", hosts[1].ip).parse().unwrap();
        lab.until(10 * S, "the gateway passes requests on", |_| {
            http::send(gateway, "GET /web/a", &[], "", ANSWER_MAX).is_ok_and(|reply| reply.status == 200)
        });
        let (stop, answered, failed) = (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| failed.lock().unwrap().extend(request(gateway, &stop, &answered)));
            }
            // Also after a failed assertion: otherwise the clients would keep the scope open.
            let _stop = StopAtEnd(&stop);
            for n in 0..INSTANCES {
                let enough = answered.load(Relaxed) + 50;
                let ended = programs[usize::from(n)].terminate();
                assert_eq!(ended.code(), Some(128 + 15), "the code of its command");
                lab.until(10 * S, "it is gone", |lab| passing(lab, door, "web") == all - 1);
                programs[usize::from(n)] = run(lab, &hosts[0], node, n);
                lab.until(10 * S, "it passes again", |lab| passing(lab, door, "web") == all);
                lab.until(10 * S, "requests go on", |_| answered.load(Relaxed) > enough);
            }
        });
        let failed = failed.into_inner().unwrap();
        println!("{} requests answered, {} failed", answered.load(Relaxed), failed.len());
        assert!(failed.is_empty(), "{failed:#?}");
        let counts: Vec<usize> = programs.iter().map(Program::count).collect();
        println!("requests of the new instances, health checks included: {counts:?}");
    });
}

/// Stops the clients when it is dropped.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
