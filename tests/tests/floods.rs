//! Floods of one host while another one works (`ATTACKS.md` B5).

// In a test, what cannot be unwrapped is the failure.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use hearsay_tests::{Cluster as _, Flood, Host, Lab, NodeRef, raise_file_limit, scenario, sh, status_of};

const S: Duration = Duration::from_secs(1);
/// How long one request may take. A probe of Kubernetes has a second; this machine may have other work.
const ANSWER_MAX: Duration = Duration::from_secs(2);
const ROUNDS: usize = 12;
/// Files that the node may open: it then takes 3,584 connections, 2,864 streams, and at the gateway 1,024 connections and requests.
const FILES: usize = 4096;

/// What the second host asks for.
const PATHS: [(u16, &str); 4] =
    [(7500, "/services"), (7500, "/services/watch"), (7500, "/log?limit=1"), (8080, "/students")];

/// What a flood is made of.
struct Flooding {
    port: u16,
    /// The first bytes of each connection.
    first: Vec<u8>,
    holding: usize,
    /// What shows that it is there: a gauge of the node, and its value.
    gauge: (&'static str, f64),
}

/// A node with all roles, and the host that floods it. The scenario itself is the second host, at the address of the bridge.
struct Flooded {
    host: Host,
    node: NodeRef,
    flooder: Host,
}

fn start(lab: &mut Lab) -> Flooded {
    raise_file_limit();
    let limited = lab.dir().join("limited");
    let binary = std::env::var("NODE_BIN").unwrap();
    fs::write(&limited, format!("#!/bin/sh\nulimit -n {FILES}\nexec {binary} \"$@\"\n")).unwrap();
    sh(&format!("chmod 755 {}", limited.display()));
    lab.go_on_with(limited.as_os_str(), &[]);
    let (host, flooder) = (lab.host(), lab.host());
    let roles = ["--no-mdns", "--name", "m1", "--role", "grading,log,portal,gateway", "--demo"];
    let node = lab.start(Some(&host), "m1", 7500, &roles);
    let flooded = Flooded { host, node, flooder };
    lab.until(20 * S, "the gateway brings the students", |_| flooded.status(8080, "/students") == Some(200));
    flooded
}

impl Flooded {
    fn at(&self, port: u16) -> SocketAddr {
        format!("{}:{port}", self.host.ip).parse().unwrap()
    }

    /// What the second host is answered.
    fn status(&self, port: u16, path: &str) -> Option<u16> {
        status_of(self.at(port), path, ANSWER_MAX)
    }

    /// What a probe on the node's own machine is answered.
    fn probe(&self) -> Option<u16> {
        let probe = self.host.inside(|| status_of("127.0.0.1:7500".parse().unwrap(), "/livez", ANSWER_MAX));
        probe.join().unwrap()
    }

    /// A counter of the node.
    fn counted(&self, lab: &Lab, figure: &str) -> f64 {
        let metrics = lab.text(self.node, "/metrics").unwrap_or_default();
        let value = metrics.lines().find_map(|line| line.strip_prefix(figure)?.trim().parse().ok());
        value.unwrap_or(0.0)
    }

    /// Asks as often as is required, every time with success. Returns how long the slowest answer took.
    fn served(&self, lab: &Lab, when: &str) -> Duration {
        let mut slowest = Duration::ZERO;
        let mut timed = |ask: &dyn Fn() -> Option<u16>, what: &str, round: usize| {
            let begun = Instant::now();
            assert_eq!(ask(), Some(200), "{what}, round {round}: {when}\n{}", lab.describe());
            slowest = slowest.max(begun.elapsed());
        };
        for round in 0..ROUNDS {
            timed(&|| self.probe(), "the probe", round);
            for (port, path) in PATHS {
                timed(&|| self.status(port, path), &format!("{port}{path}"), round);
            }
        }
        slowest
    }

    /// Floods until all its connections are opened, then asks as often as is required, and every time with success. `figure` counts what the flood
    /// was kept from.
    fn others_are_served(&self, lab: &Lab, flood: Flooding, figure: &str) -> Flood {
        let before = self.counted(lab, figure);
        let calm = self.served(lab, "calm");
        let Flooding { port, first, holding, gauge: (gauge, value) } = flood;
        let flood = Flood::start(&self.flooder, self.at(port), first, holding);
        lab.until(60 * S, &format!("the flood is there: {gauge} {value}"), |lab| {
            flood.opened() >= holding && self.counted(lab, gauge) >= value
        });
        let flooded = self.served(lab, figure);
        println!(
            "slowest of {} answers: {calm:?} before, {flooded:?} beside the flood",
            ROUNDS * (PATHS.len() + 1)
        );
        lab.until(20 * S, &format!("the flood is counted: {figure}"), |lab| {
            self.counted(lab, figure) > before
        });
        assert_eq!(lab.logged("ERROR"), [""; 0]);
        flood
    }
}

#[test]
fn idle_connections_of_one_host_keep_no_other_from_a_node() {
    scenario("idle_connections_of_one_host_keep_no_other_from_a_node", |lab| {
        let flooded = start(lab);
        // Silent ones, and heads that never end.
        for first in [b"".as_slice(), b"GET /services HTTP/1.1\r\nhost: x\r\n"] {
            let flood = Flooding {
                port: 7500,
                first: first.to_vec(),
                holding: 4500,
                gauge: ("hearsay_http_connections ", 2000.0),
            };
            flooded.others_are_served(lab, flood, "hearsay_http_connections_ended_total{reason=\"evicted\"}");
        }
    });
}

#[test]
fn idle_connections_of_one_host_keep_no_other_from_a_gateway() {
    scenario("idle_connections_of_one_host_keep_no_other_from_a_gateway", |lab| {
        let flooded = start(lab);
        let flood = Flooding {
            port: 8080,
            first: vec![],
            holding: 1500,
            gauge: ("hearsay_gateway_connections ", 700.0),
        };
        flooded.others_are_served(lab, flood, "hearsay_gateway_refused_total{reason=\"evicted\"}");
    });
}

#[test]
fn streams_of_one_host_leave_streams_for_others() {
    scenario("streams_of_one_host_leave_streams_for_others", |lab| {
        let flooded = start(lab);
        let head = format!("GET /services/watch HTTP/1.1\r\nhost: {}\r\n\r\n", flooded.at(7500));
        let flood = Flooding {
            port: 7500,
            first: head.into_bytes(),
            holding: 3000,
            gauge: ("hearsay_http_waiting ", 2000.0),
        };
        flooded.others_are_served(lab, flood, "hearsay_http_refused_total{reason=\"waiting_share\"}");
    });
}

/// One frame, by RFC 9113, section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

#[test]
fn answers_that_one_host_does_not_take_leave_the_gateway_to_others() {
    scenario("answers_that_one_host_does_not_take_leave_the_gateway_to_others", |lab| {
        const STREAMS: u32 = 100;
        let flooded = start(lab);
        let host = format!("{}:8080", flooded.host.ip);
        let length = u8::try_from(host.len()).unwrap();
        // GET /students in HPACK, without Huffman coding; SETTINGS_INITIAL_WINDOW_SIZE 0.
        let head = [b"\x82\x86\x04\x09/students\x01".as_slice(), &[length], host.as_bytes()].concat();
        let mut first = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        first.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
        (0..STREAMS).for_each(|n| first.extend(frame(1, 0x5, 2 * n + 1, &head)));
        let flood = Flooding { port: 8080, first, holding: 20, gauge: ("hearsay_gateway_in_flight ", 700.0) };
        flooded.others_are_served(lab, flood, "hearsay_gateway_refused_total{reason=\"in_flight_share\"}");
    });
}

#[test]
fn silent_connections_of_one_host_keep_no_node_from_joining() {
    scenario("silent_connections_of_one_host_keep_no_node_from_joining", |lab| {
        let flooded = start(lab);
        let flood =
            Flooding { port: 7600, first: vec![], holding: 600, gauge: ("hearsay_http_connections ", 0.0) };
        let _flood = flooded.others_are_served(lab, flood, "hearsay_handshakes_refused_total");
        let late = lab.host();
        let join = ["--no-mdns", "--name", "m2", "--join", &flooded.host.ip];
        let begun = Instant::now();
        let node = lab.start(Some(&late), "m2", 7500, &join);
        // Without a place at once it waits for a handshake to be given up, 5 s.
        lab.until(20 * S, "both list both", |lab| {
            let alive = |by, name| lab.sees(by, name).as_deref() == Some("alive");
            alive(node, "m1") && alive(flooded.node, "m2")
        });
        assert!(begun.elapsed() < 4 * S, "it took {:?}", begun.elapsed());
    });
}
