//! Test of Consul's interface with the Rust client rs-consul, whose program (`rs_consul/main.rs`) registers a
//! service in the catalog, writes keys, and waits for changes on another node.

use hearsay_tests::{registry::cluster, scenario};

use super::clients::{command_on, find_program, run_to_end};

#[test]
fn rs_consul_does_a_round() {
    const TEST: &str = "rust::rs_consul_does_a_round";
    let Some(program) = find_program(TEST, "the program of rs-consul", Some("RS_CONSUL")) else { return };
    scenario(TEST, |lab| {
        let (hosts, _) = cluster(lab, 2, &["--role", "kv"]);
        let mut command = command_on(&hosts[0], &program);
        command.arg(&hosts[1].ip);
        run_to_end(lab, command);
    });
}
