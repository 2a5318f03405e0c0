//! Traefik's clients notice no crash of an instance whose node watches it: the tags ask Traefik to retry, and
//! the node withdraws the instance within milliseconds.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hearsay_tests::{
    Cluster as _, Host, Program,
    registry::{all_have, cluster, register},
    scenario,
};
use serde_json::json;

use super::{
    clients::find_program,
    requests::S,
    traefik::{request, send_requests, servers, start},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_program");
const PORTS: [u16; 5] = [9001, 9002, 9003, 9004, 9005];
/// Clients that send requests at once.
const CLIENTS: usize = 4;

/// Starts a program, and registers it with the tags of the page on tools and a check that watches it.
fn start_watched(host: &Host, port: u16) -> Program {
    let program = Program::start(PROGRAM, host, port);
    let body = json!({
        "name": "web", "id": format!("web-{port}"), "port": port, "check": { "watch": true },
        "tags": ["traefik.enable=true", "traefik.http.routers.web.rule=PathPrefix(`/app`)",
            "traefik.http.routers.web.entrypoints=web", "traefik.http.routers.web.middlewares=again",
            "traefik.http.middlewares.again.retry.attempts=5"],
    });
    register(host, &body);
    program
}

#[test]
fn traefik_drops_a_crashed_instance_without_a_failed_request() {
    const TEST: &str = "traefik_crash::traefik_drops_a_crashed_instance_without_a_failed_request";
    let Some(program) = find_program(TEST, "traefik", Some("TRAEFIK")) else { return };
    scenario(TEST, |lab| {
        let (hosts, nodes) = cluster(lab, 2, &[]);
        let mut programs: Vec<Program> = PORTS.iter().map(|port| start_watched(&hosts[1], *port)).collect();
        let traefik = start(lab, &hosts[0], &program);
        lab.until(20 * S, "Traefik has five servers", |_| servers(&traefik) == Some(5));
        lab.until(5 * S, "Traefik sends them requests", |_| hosts[0].enter(request));
        let (is_over, good, bad) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| send_requests(&hosts[0], &is_over, (&good, &bad)));
            }
            // A claim that fails must not leave the threads of the requests waiting.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for left in [4, 3] {
                    let sent = |program: &Program| program.count();
                    lab.until(10 * S, "the next to crash gets requests", |_| sent(&programs[left]) > 0);
                    let mut crashed = programs.remove(left);
                    crashed.kill();
                    lab.until(10 * S, "all nodes have dropped it", |lab| all_have(lab, &nodes, "web", left));
                    lab.until(10 * S, "Traefik has dropped it", |_| servers(&traefik) == Some(left));
                }
            }));
            is_over.store(true, Ordering::Relaxed);
            if let Err(panic) = ended {
                std::panic::resume_unwind(panic);
            }
        });
        let (good, bad) = (good.into_inner(), bad.into_inner());
        println!("{good} requests succeeded, {bad} failed");
        assert!(bad == 0 && good > 100, "{good} requests succeeded, {bad} failed");
    });
}
