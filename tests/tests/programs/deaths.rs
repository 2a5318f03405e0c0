//! A killed program: all of ten nodes on five hosts stop listing its instance, and no other one.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef, Program, get,
    registry::{instances, on_five_hosts, register},
    scenario,
};
use serde_json::json;

use crate::{PROGRAM, S};

/// Far above the usual time: these machines are noisy.
const KNOWN_MAX: Duration = Duration::from_secs(15);
/// Pause between two lookups at one node.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Returns the ids that a node lists as passing; `None` without an answer.
fn passing_ids(at: SocketAddr) -> Option<BTreeSet<String>> {
    let answer = get(at, "/services/web?health=passing")?;
    let list = answer["services"]["web"].as_array().cloned().unwrap_or_default();
    Some(list.iter().filter_map(|one| one["id"].as_str().map(str::to_owned)).collect())
}

/// Kills a program. Returns the time until each node listed exactly the other instances, which all nodes
/// listed throughout.
fn kill(lab: &Lab, nodes: &[NodeRef], id: &str, kill: impl FnOnce()) -> Vec<Duration> {
    let rest: BTreeSet<String> = instances(lab, nodes[0], "web?health=passing")
        .iter()
        .filter_map(|one| one["id"].as_str().map(str::to_owned))
        .filter(|one| one != id)
        .collect();
    assert!(rest.len() > 1, "others remain: {rest:?}");
    let addresses: Vec<SocketAddr> = nodes.iter().map(|node| lab.address(*node)).collect();
    let begun = Instant::now();
    kill();
    let known = |at: SocketAddr| loop {
        let listed = passing_ids(at).unwrap_or_else(|| panic!("{at} does not answer"));
        assert!(listed.is_superset(&rest), "{at} lists {listed:?} after the death of {id}");
        if listed == rest {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < KNOWN_MAX, "{at} still lists {id}\n{}", lab.describe());
        std::thread::sleep(LOOK_EVERY);
    };
    let mut times: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = addresses.into_iter().map(|at| scope.spawn(move || known(at))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    times.sort();
    println!("{id}: gone at the first of ten nodes after {:?}, at the last after {:?}", times[0], times[9]);
    times
}

/// Runs `node register` of an instance with a check, over the socket of the host's first node.
fn register_by_command(lab: &Lab, host: &Host, node: NodeRef, port: u16, check: &str) {
    let (id, port) = (format!("web-{port}"), port.to_string());
    let socket = format!("unix:{}", lab.socket(node).display());
    let arguments = ["register", "web", "--id", &id, "--port", &port, "--check", check, "--node", &socket];
    let output = lab.command(Some(host), "register", &arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `node run` of the program.
fn run(lab: &Lab, host: &Host, node: NodeRef, port: u16) -> Program {
    let (id, text) = (format!("web-{port}"), port.to_string());
    let socket = format!("unix:{}", lab.socket(node).display());
    let arguments =
        ["run", "--service", "web", "--id", &id, "--port", &text, "--node", &socket, "--", PROGRAM, &text];
    Program::spawn(lab.command(Some(host), "run", &arguments), host, port)
}

#[test]
fn the_kill_of_a_program_is_known_to_ten_nodes_however_it_is_registered() {
    let test = "deaths::the_kill_of_a_program_is_known_to_ten_nodes_however_it_is_registered";
    scenario(test, |lab| {
        let (hosts, nodes) = on_five_hosts(lab);
        let first = |i: usize| nodes[2 * i];
        // On the same hosts as the dying programs, and on all others.
        let _stays: Vec<Program> = (0..5)
            .map(|i| {
                let program = Program::start(PROGRAM, &hosts[i], 8000);
                let id = format!("stays-{i}");
                register(
                    &hosts[i],
                    &json!({"name": "web", "id": id, "port": 8000, "check": {"watch": true}}),
                );
                program
            })
            .collect();
        let held = json!({"name": "web", "id": "web-8001", "port": 8001}).to_string();
        let mut held = Program::start_with(PROGRAM, &hosts[0], 8001, &["127.0.0.1:7500", &held]);
        let mut watched = Program::start(PROGRAM, &hosts[1], 8002);
        register_by_command(lab, &hosts[1], first(1), 8002, "watch");
        let mut by_pid = Program::start(PROGRAM, &hosts[2], 8003);
        register_by_command(lab, &hosts[2], first(2), 8003, &format!("process={}", by_pid.pid()));
        let mut by_port = Program::start(PROGRAM, &hosts[3], 8004);
        register_by_command(lab, &hosts[3], first(3), 8004, "process=:8004");
        let mut wrapped = run(lab, &hosts[4], first(4), 8005);
        let mut wrapper = run(lab, &hosts[4], first(4), 8006);
        lab.until(20 * S, "all list all eleven", |lab| {
            nodes.iter().all(|node| instances(lab, *node, "web?health=passing").len() == 11)
        });
        let mut times = kill(lab, &nodes, "web-8001", || held.kill());
        times.extend(kill(lab, &nodes, "web-8002", || watched.kill()));
        times.extend(kill(lab, &nodes, "web-8003", || by_pid.kill()));
        times.extend(kill(lab, &nodes, "web-8004", || by_port.kill()));
        let command = wrapped.child_pid();
        times.extend(kill(lab, &nodes, "web-8005", || hearsay_tests::sh(&format!("kill -KILL {command}"))));
        assert_eq!(wrapped.wait().code(), Some(128 + 9), "`node run` ends as its command did");
        // The command ends with `node run`.
        times.extend(kill(lab, &nodes, "web-8006", || wrapper.kill()));
        lab.until(5 * S, "its command has ended", |_| {
            !hosts[4].enter(|| std::net::TcpStream::connect("127.0.0.1:8006").is_ok())
        });
        times.sort();
        println!(
            "of {} deaths as ten nodes saw them: median {:?}, last {:?}",
            times.len(),
            times[times.len() / 2],
            times[times.len() - 1]
        );
    });
}
