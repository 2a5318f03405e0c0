//! xDS over real nodes: Envoy and a gRPC client without a proxy, configured by the files that `node xds
//! bootstrap` prints, follow instances, and lose no request to a crash, a drain or a restart of their node.
//! Clients that break the protocol are refused and counted, and the node answers others meanwhile.

#![allow(clippy::unwrap_used)]

mod envoy;
mod envoy_faults;
mod envoy_process;
mod hostile;
mod load;
mod proxyless;
mod start;

use std::{fs, path::PathBuf, time::Duration};

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef, Program,
    clients::{command_on, run_to_end},
    registry::{plain, register},
};
use serde_json::json;

/// Program of the lab that runs as instances of `web`.
const PROGRAM: &str = env!("CARGO_BIN_EXE_program");
const S: Duration = Duration::from_secs(1);

/// Writes the bootstrap file that the node of a host prints for a client.
fn bootstrap(lab: &Lab, host: &Host, client: &str) -> PathBuf {
    let program = std::env::var_os("NODE_BIN").unwrap();
    let mut command = command_on(host, program);
    command.args(["xds", "bootstrap", client, "--node", "http://127.0.0.1:7500"]);
    let text = run_to_end(lab, command);
    // Envoy reads a file as YAML only if its name says so.
    let extension = if client == "envoy" { "yaml" } else { "json" };
    let file = lab.dir().join(format!("{client}-{}.{extension}", host.name));
    fs::write(&file, text).unwrap();
    file
}

/// Starts an instance of `web` on a host, and registers it with a check that watches it.
fn start_watched(host: &Host, port: u16) -> Program {
    let program = Program::start(PROGRAM, host, port);
    let body = json!({
        "name": "web", "id": id_of(host, port), "address": host.ip, "port": port, "check": { "watch": true },
    });
    register(host, &body);
    program
}

/// The id of an instance that [`start_watched`] registers.
fn id_of(host: &Host, port: u16) -> String {
    format!("web-{}-{port}", host.name)
}

/// Starts the node of a host again, and waits until it is ready. It joins a peer: a node that was killed
/// before it stored its first list of members would otherwise start as the first one of a cluster, with an
/// empty table.
fn restart(lab: &mut Lab, host: &Host, peer: &Host) -> NodeRef {
    let node = plain(lab, host, 0, &["--join", &peer.ip]);
    lab.until(20 * S, "the node is ready", |lab| {
        lab.get(node, "/readyz").is_some_and(|answer| answer["status"] == "ready")
    });
    node
}
