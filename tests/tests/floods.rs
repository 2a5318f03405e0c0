//! Floods from one host while another host works (`docs/security.md`). `tests/run --bench floods` measures
//! how long the other host waits.

// In a test, a failed unwrap is the failure.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use hearsay_tests::{Cluster as _, Flood, Flooded, Flooding, Lab, scenario};

const S: Duration = Duration::from_secs(1);
/// Rounds of requests of the second host.
const ROUNDS: usize = 12;
/// Path of the flooding program.
const FLOODER: &str = env!("CARGO_BIN_EXE_flooder");

fn start(lab: &mut Lab) -> Flooded {
    Flooded::start(lab, "m1", &[FLOODER])
}

/// Sends all rounds of requests from the second host; every answer must be a success. Returns the slowest
/// time.
fn served(lab: &Lab, flooded: &Flooded, when: &str) -> Duration {
    let took = flooded.ask(ROUNDS).into_iter().enumerate().map(|(i, asked)| {
        let refused = || panic!("{}, request {i}: {when}\n{}", asked.what, lab.describe());
        asked.took.unwrap_or_else(refused)
    });
    took.max().unwrap()
}

/// Floods until all connections are open, then sends the second host's requests. The flood ends when it is
/// dropped.
fn others_are_served(lab: &Lab, flooded: &Flooded, flooding: &Flooding) -> Flood {
    let before = flooded.counted(lab, flooding.counter);
    let calm = served(lab, flooded, "calm");
    let flood = flooded.flood(lab, flooding);
    let slowest = served(lab, flooded, flooding.name);
    println!(
        "{}: slowest answer {calm:?} before, {slowest:?} beside the flood; the flooder used up its share {:?} times",
        flooding.name,
        flood.throttled(),
    );
    lab.until(20 * S, &format!("the flood is counted: {}", flooding.counter), |lab| {
        flooded.counted(lab, flooding.counter) > before
    });
    assert_eq!(lab.logged("ERROR"), [""; 0]);
    flood
}

#[test]
fn idle_connections_of_one_host_keep_no_other_from_a_node() {
    scenario("idle_connections_of_one_host_keep_no_other_from_a_node", |lab| {
        let flooded = start(lab);
        for flooding in [Flooding::silent_connections(), Flooding::endless_heads()] {
            others_are_served(lab, &flooded, &flooding);
        }
    });
}

#[test]
fn idle_connections_of_one_host_keep_no_other_from_a_gateway() {
    scenario("idle_connections_of_one_host_keep_no_other_from_a_gateway", |lab| {
        let flooded = start(lab);
        others_are_served(lab, &flooded, &Flooding::silent_at_the_gateway());
    });
}

#[test]
fn streams_of_one_host_leave_streams_for_others() {
    scenario("streams_of_one_host_leave_streams_for_others", |lab| {
        let flooded = start(lab);
        others_are_served(lab, &flooded, &Flooding::streams(&flooded.host.ip));
    });
}

#[test]
fn answers_that_one_host_does_not_take_leave_the_gateway_to_others() {
    scenario("answers_that_one_host_does_not_take_leave_the_gateway_to_others", |lab| {
        let flooded = start(lab);
        others_are_served(lab, &flooded, &Flooding::untaken_answers(&flooded.host.ip));
    });
}

#[test]
fn silent_connections_of_one_host_keep_no_node_from_joining() {
    scenario("silent_connections_of_one_host_keep_no_node_from_joining", |lab| {
        let flooded = start(lab);
        let _flood = others_are_served(lab, &flooded, &Flooding::silent_handshakes());
        let late = lab.host();
        let join = ["--no-mdns", "--name", "m2", "--join", &flooded.host.ip];
        let node = lab.start(Some(&late), "m2", 7500, &join);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/members").is_some());
        let begun = Instant::now();
        // Without a free place at once, it waits until a handshake is given up, 5 s.
        lab.until(20 * S, "both list both", |lab| {
            let alive = |by, name| lab.sees(by, name).as_deref() == Some("alive");
            alive(node, "m1") && alive(flooded.node, "m2")
        });
        assert!(begun.elapsed() < 4 * S, "it took {:?}", begun.elapsed());
    });
}
