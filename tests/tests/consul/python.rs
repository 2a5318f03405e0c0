//! Tests of Consul's interface with the clients py-consul and python-consul, whose script (`round.py`)
//! registers, reports checks, waits for changes, sets maintenance, and reads the catalog.

use std::fs;

use hearsay_tests::{registry::cluster, scenario};

use super::{
    clients::{command_on, find_program, run_to_end},
    requests::passing,
};

/// Requests of the clients, and the expected answers.
const ROUND: &str = include_str!("round.py");

/// Runs the round with the Python that has a client.
fn do_round(test: &str, client: &str, variable: &str) {
    let Some(python) = find_program(test, client, Some(variable)) else { return };
    scenario(test, |lab| {
        let (hosts, nodes) = cluster(lab, 2, &[]);
        let script = lab.dir().join("round.py");
        fs::write(&script, ROUND).unwrap();
        let mut command = command_on(&hosts[0], &python);
        command.arg(&script).arg(&hosts[1].ip);
        run_to_end(lab, command);
        assert_eq!(passing(lab, nodes[1], "web"), ["web-1"]);
    });
}

#[test]
fn py_consul_does_a_round() {
    do_round("python::py_consul_does_a_round", "py-consul", "PY_CONSUL");
}

/// python-consul is from 2018 and has no successor of that name; many programs still use it.
#[test]
fn python_consul_does_a_round() {
    do_round("python::python_consul_does_a_round", "python-consul", "PYTHON_CONSUL");
}
