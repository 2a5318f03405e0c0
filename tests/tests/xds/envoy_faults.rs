//! Envoy while nodes fail: its own node restarts, or most nodes freeze.

use std::fs;

use hearsay_tests::{
    Cluster as _, Lab, NodeRef,
    clients::find_program,
    registry::{all_have, cluster},
    scenario,
};

use super::{S, bootstrap, envoy_process::Envoy, load::under_load, restart, start_watched};

/// Port of the first instance.
const PORT: u16 = 9001;

#[test]
fn envoy_serves_during_a_restart_of_its_node_and_follows_later_changes() {
    const TEST: &str = "envoy_faults::envoy_serves_during_a_restart_of_its_node_and_follows_later_changes";
    let Some(program) = find_program(TEST, "envoy", Some("ENVOY")) else { return };
    scenario(TEST, |lab| {
        let (hosts, nodes) = cluster(lab, 3, &[]);
        let mut programs: Vec<_> = (PORT..PORT + 3).map(|port| start_watched(&hosts[1], port)).collect();
        let envoy = Envoy::start(lab, &hosts[0], &program);
        envoy.until_serves(lab, &hosts[0]);
        envoy.until_has(lab, 3);
        let mut own = nodes[0];
        under_load(&hosts[0], |load| {
            for is_crash in [true, false] {
                match is_crash {
                    true => lab.crash(own),
                    false => lab.leave(own),
                }
                lab.until(10 * S, "Envoy notices", |_| is_connected(&envoy) == Some(false));
                let good = load.good();
                lab.until(10 * S, "500 requests without the node", |_| load.good() > good + 500);
                let serves_all = || envoy.hosts("web").is_some_and(|hosts| hosts.len() >= programs.len());
                assert!(serves_all(), "Envoy dropped instances");
                own = restart(lab, &hosts[0], &hosts[1]);
                lab.until(30 * S, "Envoy asks the node again", |_| {
                    assert!(serves_all(), "Envoy dropped instances");
                    is_connected(&envoy) == Some(true)
                });
                programs.push(start_watched(&hosts[1], PORT + u16::try_from(programs.len()).unwrap()));
                envoy.until_has(lab, programs.len());
            }
            load.assert_none_failed();
            println!("{} requests", load.good());
        });
        envoy.assert_accepted_all();
    });
}

#[test]
fn envoy_asks_another_node_when_its_own_is_gone() {
    const TEST: &str = "envoy_faults::envoy_asks_another_node_when_its_own_is_gone";
    let Some(program) = find_program(TEST, "envoy", Some("ENVOY")) else { return };
    scenario(TEST, |lab| {
        let (hosts, nodes) = cluster(lab, 3, &[]);
        let mut programs: Vec<_> = (PORT..PORT + 2).map(|port| start_watched(&hosts[2], port)).collect();
        // As the shipped file says, with a second node beside the first.
        let file = bootstrap(lab, &hosts[0], "envoy");
        let text = fs::read_to_string(&file).unwrap();
        let (before, own) = text.split_once("              - endpoint:").unwrap();
        let other = own.replace("127.0.0.1", &hosts[1].ip);
        fs::write(&file, format!("{before}              - endpoint:{own}              - endpoint:{other}"))
            .unwrap();
        let envoy = Envoy::start_from(lab, &hosts[0], &program, &file);
        envoy.until_serves(lab, &hosts[0]);
        envoy.until_has(lab, 2);
        under_load(&hosts[0], |load| {
            for gone in [0, 1] {
                lab.crash(nodes[gone]);
                if gone == 0 {
                    programs.push(start_watched(&hosts[2], PORT + 2));
                    envoy.until_has(lab, 3);
                }
            }
            lab.until(30 * S, "Envoy notices that both are gone", |_| is_connected(&envoy) == Some(false));
            let good = load.good();
            lab.until(10 * S, "500 requests without a node", |_| load.good() > good + 500);
            load.assert_none_failed();
        });
        envoy.assert_accepted_all();
    });
}

/// Whether Envoy has a stream to its node.
fn is_connected(envoy: &Envoy) -> Option<bool> {
    let stats = envoy.stats("^control_plane.connected_state$");
    stats.first().map(|(_, value)| *value == 1)
}

#[test]
fn envoy_routes_to_the_instances_of_a_frozen_majority() {
    const TEST: &str = "envoy_faults::envoy_routes_to_the_instances_of_a_frozen_majority";
    let Some(program) = find_program(TEST, "envoy", Some("ENVOY")) else { return };
    scenario(TEST, |lab| {
        let (hosts, nodes) = cluster(lab, 5, &[]);
        let programs: Vec<_> = hosts[2..].iter().map(|host| start_watched(host, PORT)).collect();
        lab.until(10 * S, "all nodes list them", |lab| all_have(lab, &nodes, "web", 3));
        let envoy = Envoy::start(lab, &hosts[0], &program);
        envoy.until_serves(lab, &hosts[0]);
        envoy.until_has(lab, 3);
        under_load(&hosts[0], |load| {
            for node in &nodes[2..] {
                lab.signal(*node, "STOP");
            }
            lab.until(20 * S, "its node sees them as failed", |lab| {
                states(lab, nodes[0], &nodes[2..], "failed")
            });
            // The guard keeps what it cannot verify, for 60 s.
            let good = load.good();
            lab.until(10 * S, "500 requests", |_| load.good() > good + 500);
            assert_eq!(envoy.hosts("web").unwrap().len(), 3, "the instances answer, and Envoy has lost some");
            let before: Vec<_> = programs.iter().map(|program| program.count()).collect();
            lab.until(10 * S, "each gets requests", |_| {
                programs.iter().zip(&before).all(|(program, before)| program.count() > *before)
            });
            for node in &nodes[2..] {
                lab.signal(*node, "CONT");
            }
            lab.until(20 * S, "its node sees them alive", |lab| states(lab, nodes[0], &nodes[2..], "alive"));
            lab.until(10 * S, "all nodes list them", |lab| all_have(lab, &nodes, "web", 3));
            assert_eq!(envoy.hosts("web").unwrap().len(), 3);
            load.assert_none_failed();
            println!("{} requests", load.good());
        });
        envoy.assert_accepted_all();
    });
}

/// Whether a node sees all of these nodes in a state.
fn states(lab: &Lab, by: NodeRef, nodes: &[NodeRef], state: &str) -> bool {
    nodes.iter().all(|node| lab.sees(by, &lab.name_of(*node)).as_deref() == Some(state))
}
