//! Tests that HAProxy and Caddy, configured by the files of `deploy/dns`, follow the instances in a service's
//! SRV records: while the service scales, no request fails.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use hearsay_tests::{
    Cluster as _, Host, Lab, Program,
    registry::{all_have, plain, register},
    scenario,
};

use crate::{Daemon, S, deregister, has_programs, instance, shipped};

const PROGRAM: &str = env!("CARGO_BIN_EXE_program");
/// The balancer's port.
const PORT: u16 = 8080;
/// The most backends.
const BACKENDS: u16 = 10;

#[test]
fn haproxy_scales_a_service_without_a_failed_request() {
    const TEST: &str = "balancers::haproxy_scales_a_service_without_a_failed_request";
    if !has_programs(TEST, &["haproxy"]) {
        return;
    }
    scenario(TEST, |lab| {
        let host = lab.host();
        let node = plain(lab, &host, 0, &[]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/services").is_some());
        let conf = lab.dir().join("haproxy.cfg");
        let front = format!(
            "global\n  maxconn 200\ndefaults\n  mode http\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n\
             frontend web\n  bind 127.0.0.1:{PORT}\n  default_backend web\n\
             frontend stats\n  bind 127.0.0.1:8081\n  stats enable\n  stats uri /\n"
        );
        fs::write(&conf, front).unwrap();
        let recipe = shipped("haproxy.cfg");
        let arguments = ["-db", "-f", conf.to_str().unwrap(), "-f", recipe.to_str().unwrap()];
        let _haproxy = Daemon::start(lab, &host, "haproxy", &arguments);
        let mut programs = scale(lab, &host, &|host, programs| servers_up(host) == programs.len());
        // HAProxy keeps its servers while the node is away, and goes on when it is back.
        lab.crash(node);
        lab.throughout(4 * S, "requests pass without the node", |_| host.enter(|| get(PORT, "/")).is_some());
        let node = plain(lab, &host, 0, &[]);
        lab.until(10 * S, "the node lists the instances again", |lab| all_have(lab, &[node], "web", 3));
        programs.push(backend(&host, 4));
        lab.until(20 * S, "HAProxy has the fourth instance", |_| servers_up(&host) == programs.len());
    });
}

/// The servers of HAProxy's backend that are up.
fn servers_up(host: &Host) -> usize {
    let Some(csv) = host.enter(|| get(8081, "/;csv")) else { return 0 };
    let is_up = |line: &&str| line.starts_with("web,web") && line.split(',').nth(17) == Some("UP");
    csv.lines().filter(is_up).count()
}

#[test]
fn caddy_scales_a_service_without_a_failed_request() {
    const TEST: &str = "balancers::caddy_scales_a_service_without_a_failed_request";
    let Some(caddy) = std::env::var_os("CADDY") else {
        println!("skipped: {TEST}: CADDY does not name the program; tests/run installs it with pip");
        assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and {TEST} has no Caddy");
        return;
    };
    scenario(TEST, |lab| {
        let host = lab.host();
        let node = plain(lab, &host, 0, &[]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/services").is_some());
        let conf = lab.dir().join("Caddyfile");
        let recipe = fs::read_to_string(shipped("Caddyfile")).unwrap();
        fs::write(&conf, format!("{{\n\tadmin off\n\tauto_https off\n\tpersist_config off\n}}\n{recipe}"))
            .unwrap();
        let caddy = caddy.to_str().unwrap();
        let arguments = ["run", "--adapter", "caddyfile", "--config", conf.to_str().unwrap()];
        let _caddy = Daemon::start(lab, &host, caddy, &arguments);
        // Caddy lists no servers. Each instance gets some of so many requests.
        scale(lab, &host, &|host, programs| {
            let before: Vec<usize> = programs.iter().map(|program| program.count()).collect();
            (0..40 * programs.len()).for_each(|_| _ = host.enter(|| get(PORT, "/round")));
            programs.iter().zip(before).all(|(program, before)| program.count() > before)
        });
    });
}

/// Scales a service from 1 to 10 and to 3 instances, under requests that must not fail. `has` returns whether
/// the balancer sends requests to each of these instances. The three instances are returned.
fn scale(lab: &Lab, host: &Host, has: &dyn Fn(&Host, &[Program]) -> bool) -> Vec<Program> {
    let mut programs = vec![backend(host, 1)];
    lab.until(20 * S, "the balancer serves the first instance", |_| {
        host.enter(|| get(PORT, "/")).is_some() && has(host, &programs)
    });
    let (stopped, sent, failed) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            host.enter(|| {
                while !stopped.load(Ordering::Relaxed) {
                    sent.fetch_add(1, Ordering::Relaxed);
                    if get(PORT, "/").is_none() {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        });
        // Ends the requests also if a claim fails.
        let _stop = StopAtEnd(&stopped);
        programs.extend((2..=BACKENDS).map(|n| backend(host, n)));
        lab.until(20 * S, "the balancer has ten instances", |_| has(host, &programs));
        let gone = programs.split_off(3);
        for program in &gone {
            deregister(host, &format!("web-{}", program.port - 9000));
        }
        lab.until(20 * S, "the others get no more requests", |_| {
            let count = || gone.iter().map(Program::count).sum::<usize>();
            let before = count();
            let begun = sent.load(Ordering::Relaxed);
            while sent.load(Ordering::Relaxed) < begun + 100 {
                std::thread::sleep(S / 100);
            }
            count() == before
        });
        // They can end now.
        drop(gone);
        lab.until(20 * S, "the balancer has three instances", |_| has(host, &programs));
        let begun = sent.load(Ordering::Relaxed);
        lab.until(20 * S, "500 more requests", |_| sent.load(Ordering::Relaxed) > begun + 500);
    });
    let (sent, failed) = (sent.into_inner(), failed.into_inner());
    println!("{sent} requests, {failed} failed");
    assert_eq!(failed, 0, "of {sent} requests");
    programs
}

/// Sets a flag when it is dropped.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Starts and registers a backend.
fn backend(host: &Host, n: u16) -> Program {
    let program = Program::start(PROGRAM, host, 9000 + n);
    register(host, &instance("web", &format!("web-{n}"), &host.ip, 9000 + n));
    program
}

/// The body of a successful answer from loopback; to be called inside a host.
fn get(port: u16, path: &str) -> Option<String> {
    let to = (std::net::Ipv4Addr::LOCALHOST, port).into();
    let reply = hearsay_tests::http::send(to, &format!("GET {path}"), &[], "", 5 * S).ok()?;
    (reply.status == 200).then_some(reply.body)
}

#[test]
fn recipes_name_the_default_address() {
    for file in
        ["dnsmasq.conf", "named.conf", "unbound.conf", "systemd-resolved.conf", "haproxy.cfg", "Caddyfile"]
    {
        let text = fs::read_to_string(shipped(Path::new(file).to_str().unwrap())).unwrap();
        let address = |line: &&str| line.contains("127.0.0.1") && line.contains("7553");
        assert!(text.lines().any(|line| address(&line)), "{file}");
    }
}
