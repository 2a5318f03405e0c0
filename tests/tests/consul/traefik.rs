//! Traefik routes by the tags of instances in Consul's catalog, and follows their changes.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use hearsay_tests::{
    Cluster as _, Host, Lab, Program, http,
    registry::{cluster, plain},
    scenario,
};
use serde_json::{Value, json};

use super::{
    clients::{RealClient, command_on, find_program},
    requests::{S, put},
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_program");
/// Port of Traefik's own API.
const API_PORT: u16 = 8080;
/// Port on which Traefik serves the instances.
const ENTRY_PORT: u16 = 8000;
/// Port of the first instance's program.
const PROGRAM_PORT: u16 = 9001;
/// Traefik retries a failed query of Consul after 5 s, then after more.
const RECOVERY_MAX: Duration = Duration::from_secs(25);

const CONFIG: &str = "
global: { checkNewVersion: false, sendAnonymousUsage: false }
entryPoints:
  web: { address: '127.0.0.1:8000' }
  traefik: { address: '127.0.0.1:8080' }
api: { insecure: true }
providers:
  consulCatalog:
    exposedByDefault: false
    watch: true
    endpoint: { address: '127.0.0.1:7500' }
";

pub(super) fn start(lab: &Lab, host: &Host, program: &Path) -> RealClient {
    let config = lab.dir().join("traefik.yml");
    fs::write(&config, CONFIG).unwrap();
    let mut command = command_on(host, program);
    command.arg(format!("--configFile={}", config.display()));
    RealClient::spawn(lab, host, command, API_PORT)
}

/// Returns the number of servers of the service `web`, as Traefik lists them; `None` without an answer.
pub(super) fn servers(traefik: &RealClient) -> Option<usize> {
    let service = traefik.get("/api/http/services/web@consulcatalog");
    (!service.is_null()).then(|| service["loadBalancer"]["servers"].as_array().map_or(0, Vec::len))
}

/// Registers the program at a port.
fn register(host: &Host, port: u16) {
    let body = json!({
        "Name": "web", "ID": format!("web-{port}"), "Address": host.ip, "Port": port,
        "Tags": ["traefik.enable=true", "traefik.http.routers.web.rule=PathPrefix(`/app`)",
            "traefik.http.routers.web.entrypoints=web"],
        "Check": { "TTL": "1h", "Status": "passing" },
    });
    put(host, "/v1/agent/service/register", &body);
}

/// Sends a request through Traefik, and returns whether it succeeds. Called inside the namespace of its host.
pub(super) fn request() -> bool {
    let to = ([127, 0, 0, 1], ENTRY_PORT).into();
    let answer = http::send(to, "GET /app", &[], "", 5 * S);
    let is_good = answer.as_ref().is_ok_and(|answer| answer.status == 200);
    if !is_good {
        println!("a request failed: {answer:?}");
    }
    is_good
}

/// Sends requests through Traefik until `is_over`, and counts those that succeed and those that fail.
pub(super) fn send_requests(host: &Host, is_over: &AtomicBool, (good, bad): (&AtomicUsize, &AtomicUsize)) {
    host.enter(|| {
        while !is_over.load(Ordering::Relaxed) {
            if request() { good } else { bad }.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
}

/// Scales from one instance to five and back to two, restarts the node that Traefik asks, and scales again.
/// Returns the programs, which must run for as long as requests are sent.
fn scale_and_restart(
    lab: &mut Lab,
    hosts: &[Host],
    traefik: &RealClient,
    m0: hearsay_tests::NodeRef,
) -> Vec<Program> {
    let mut programs: Vec<Program> = Vec::new();
    for port in PROGRAM_PORT + 1..PROGRAM_PORT + 5 {
        programs.push(Program::start(PROGRAM, &hosts[1], port));
        register(&hosts[1], port);
    }
    lab.until(10 * S, "Traefik has five servers", |_| servers(traefik) == Some(5));
    lab.until(10 * S, "each is sent requests", |_| programs.iter().all(|program| program.count() > 0));
    for port in PROGRAM_PORT + 2..PROGRAM_PORT + 5 {
        put(&hosts[1], &format!("/v1/agent/service/deregister/web-{port}"), &Value::Null);
    }
    lab.until(10 * S, "Traefik has two servers", |_| servers(traefik) == Some(2));
    lab.leave(m0);
    lab.ended(m0, 10 * S);
    let m0 = plain(lab, &hosts[0], 0, &[]);
    lab.until(10 * S, "the node is ready", |lab| {
        lab.get(m0, "/readyz").is_some_and(|it| it["status"] == "ready")
    });
    assert!(servers(traefik).is_none_or(|count| count == 2), "Traefik dropped servers");
    register(&hosts[1], PROGRAM_PORT + 2);
    lab.until(RECOVERY_MAX, "Traefik follows the restarted node", |_| {
        let count = servers(traefik);
        assert!(count.is_none_or(|count| count >= 2), "Traefik dropped servers: {count:?}");
        count == Some(3)
    });
    programs
}

#[test]
fn traefik_follows_instances_and_a_restart_of_its_node_without_failed_requests() {
    const TEST: &str = "traefik::traefik_follows_instances_and_a_restart_of_its_node_without_failed_requests";
    let Some(program) = find_program(TEST, "traefik", Some("TRAEFIK")) else { return };
    scenario(TEST, |lab| {
        let (hosts, nodes) = cluster(lab, 2, &[]);
        let _first = Program::start(PROGRAM, &hosts[1], PROGRAM_PORT);
        register(&hosts[1], PROGRAM_PORT);
        let traefik = start(lab, &hosts[0], &program);
        lab.until(20 * S, "Traefik has one server", |_| servers(&traefik) == Some(1));
        // Traefik lists a configuration before its entry point uses it.
        lab.until(5 * S, "Traefik sends it requests", |_| hosts[0].enter(request));
        let (is_over, good, bad) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| send_requests(&hosts[0], &is_over, (&good, &bad)));
            // A panic must not leave the thread of the requests waiting.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                scale_and_restart(lab, &hosts, &traefik, nodes[0])
            }));
            is_over.store(true, Ordering::Relaxed);
            ended
        });
        let _programs = ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (good, bad) = (good.into_inner(), bad.into_inner());
        println!("{good} requests succeeded, {bad} failed");
        assert!(bad == 0 && good > 100, "{good} requests succeeded, {bad} failed");
    });
}
