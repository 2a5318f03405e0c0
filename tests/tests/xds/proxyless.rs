//! A Python client of gRPC without a proxy, whose target is `xds:///web`, with the shipped bootstrap file: it
//! balances by weight, and follows a crash and the loss of a zone.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use hearsay_tests::{
    Cluster as _, Host, Lab, Program,
    clients::{RealClient, command_on, find_program},
    registry::{all_have, all_see_all, plain, register},
    scenario,
};
use serde_json::{Value, json};

use super::{S, bootstrap, restart};

/// Server of gRPC that answers with its name.
const ANSWERER: &str = include_str!("answerer.py");
/// Client that calls it without a pause.
const CALLER: &str = include_str!("caller.py");
/// Port at which the client tells how its calls ended.
const TELLING_PORT: u16 = 9900;
/// Calls at once.
const CALLERS: usize = 4;
/// Port of the first server.
const PORT: u16 = 9001;

/// Starts a server of gRPC, and registers it as an instance of `web` with a check that watches it.
fn start_answerer(lab: &Lab, host: &Host, python: &Path, (port, weight): (u16, u16)) -> Program {
    let name = name_of(host, port);
    let mut command = command_on(host, python);
    command
        .arg(script(lab, "answerer.py", ANSWERER))
        .args([&port.to_string(), &name])
        .stderr(Stdio::inherit());
    let program = Program::spawn(command, host, port);
    let body = json!({
        "name": "web", "id": name, "address": host.ip, "port": port, "weight": weight, "check": { "watch": true },
    });
    register(host, &body);
    program
}

/// The id of an instance, which is also its answer.
fn name_of(host: &Host, port: u16) -> String {
    format!("{}-{port}", host.name)
}

/// Writes a script into the folder of the scenario.
fn script(lab: &Lab, name: &str, text: &str) -> PathBuf {
    let file = lab.dir().join(name);
    fs::write(&file, text).unwrap();
    file
}

/// The client of gRPC.
struct Caller(RealClient);

/// Calls that ended so far.
#[derive(Clone, Debug, Default)]
struct Calls {
    /// Successful calls, by the name of the instance.
    names: BTreeMap<String, u64>,
    total: u64,
    /// Starts of failed calls, in seconds of the client's clock, and how they ended.
    failed: Vec<(f64, String)>,
}

impl Calls {
    /// Returns the calls since earlier ones.
    fn since(&self, before: &Self) -> Self {
        let count = |name: &str| before.names.get(name).copied().unwrap_or_default();
        Self {
            names: self.names.iter().map(|(name, calls)| (name.clone(), calls - count(name))).collect(),
            total: self.total - before.total,
            failed: self.failed[before.failed.len()..].to_vec(),
        }
    }

    /// Returns the names of the instances that answered.
    fn answered(&self) -> Vec<&str> {
        self.names.iter().filter(|(_, calls)| **calls > 0).map(|(name, _)| name.as_str()).collect()
    }
}

impl Caller {
    /// Starts the client on a host whose node it asks.
    fn start(lab: &Lab, host: &Host, python: &Path) -> Self {
        let file = bootstrap(lab, host, "grpc");
        let mut command = command_on(host, python);
        command.arg(script(lab, "caller.py", CALLER)).args([TELLING_PORT.to_string(), CALLERS.to_string()]);
        command.env("GRPC_XDS_BOOTSTRAP", file);
        Self(RealClient::spawn(lab, host, command, TELLING_PORT))
    }

    fn calls(&self) -> Calls {
        let calls = self.0.get("/calls");
        let names = calls["names"].as_object().cloned().unwrap_or_default();
        let failed = calls["failed"].as_array().cloned().unwrap_or_default();
        let failure = |it: &Value| (it[0].as_f64().unwrap_or_default(), format!("{}: {}", it[1], it[2]));
        Calls {
            names: names
                .into_iter()
                .map(|(name, calls)| (name, calls.as_u64().unwrap_or_default()))
                .collect(),
            total: calls["total"].as_u64().unwrap_or_default(),
            failed: failed.iter().map(failure).collect(),
        }
    }

    /// Returns the time of the client's clock, in seconds.
    fn now(&self) -> f64 {
        self.0.get("/now")["now"].as_f64().unwrap()
    }

    /// Waits until this many further calls have succeeded, and returns all calls in between.
    fn until_calls(&self, lab: &Lab, count: u64) -> Calls {
        let before = self.calls();
        lab.until(30 * S, &format!("{count} more calls"), |_| self.calls().since(&before).total >= count);
        self.calls().since(&before)
    }

    /// Waits until only these instances answer. Calls that began before may end later, so it waits for
    /// several calls of none but these.
    fn until_only(&self, lab: &Lab, names: &[String]) {
        lab.until(30 * S, &format!("only {names:?} answer"), |lab| {
            let calls = self.until_calls(lab, 50);
            calls.answered() == names
        });
    }
}

#[test]
fn grpc_balances_by_weight_and_follows_a_crash() {
    const TEST: &str = "proxyless::grpc_balances_by_weight_and_follows_a_crash";
    let Some(python) = find_program(TEST, "grpcio", Some("XDS_PYTHON")) else { return };
    scenario(TEST, |lab| {
        let (hosts, nodes) = hearsay_tests::registry::cluster(lab, 2, &[]);
        let mut programs: Vec<_> = [(PORT, 1), (PORT + 1, 2), (PORT + 2, 1)]
            .map(|instance| start_answerer(lab, &hosts[1], &python, instance))
            .into();
        lab.until(10 * S, "all nodes list them", |lab| all_have(lab, &nodes, "web", 3));
        let caller = Caller::start(lab, &hosts[0], &python);
        let name = |port| name_of(&hosts[1], port);
        lab.until(30 * S, "each answers", |_| caller.calls().answered().len() == 3);
        let calls = caller.until_calls(lab, 4000);
        println!("{calls:?}");
        assert!(calls.failed.is_empty(), "{calls:?}");
        for (port, share) in [(PORT, 0.25), (PORT + 1, 0.5), (PORT + 2, 0.25)] {
            // Six standard deviations of as many random choices.
            let found = calls.names[&name(port)] as f64 / calls.total as f64;
            assert!((found - share).abs() < 0.05, "{found} instead of {share}: {calls:?}");
        }
        let before = caller.calls();
        programs.remove(1).kill();
        let crash = caller.now();
        caller.until_only(lab, &[name(PORT), name(PORT + 2)]);
        caller.until_calls(lab, 500);
        let failed = caller.calls().since(&before).failed;
        println!("{} calls in flight failed: {failed:?}", failed.len());
        let later: Vec<_> = failed.iter().filter(|(began, _)| *began > crash).collect();
        assert!(later.is_empty(), "calls failed that began after the crash at {crash}: {later:?}");
        assert!(failed.len() <= CALLERS, "{failed:?}");
        programs.push(start_answerer(lab, &hosts[1], &python, (PORT + 1, 2)));
        caller.until_only(lab, &[name(PORT), name(PORT + 1), name(PORT + 2)]);
    });
}

#[test]
fn grpc_calls_its_own_zone_and_then_the_next() {
    const TEST: &str = "proxyless::grpc_calls_its_own_zone_and_then_the_next";
    let Some(python) = find_program(TEST, "grpcio", Some("XDS_PYTHON")) else { return };
    scenario(TEST, |lab| {
        let hosts: Vec<Host> = (0..4).map(|_| lab.host()).collect();
        // The client's node and two others for a verdict on the lost one.
        let zones = ["east", "east", "west", "west"];
        let nodes: Vec<_> = hosts
            .iter()
            .zip(zones)
            .enumerate()
            .map(|(i, (host, zone))| plain(lab, host, i, &["--zone", zone]))
            .collect();
        all_see_all(lab, &nodes);
        let _programs: Vec<_> = [(1, PORT), (1, PORT + 1), (2, PORT)]
            .map(|(at, port)| start_answerer(lab, &hosts[at], &python, (port, 1)))
            .into();
        lab.until(10 * S, "all nodes list them", |lab| all_have(lab, &nodes, "web", 3));
        let caller = Caller::start(lab, &hosts[0], &python);
        let (near, far) =
            ([name_of(&hosts[1], PORT), name_of(&hosts[1], PORT + 1)], [name_of(&hosts[2], PORT)]);
        caller.until_only(lab, &near);
        let calls = caller.until_calls(lab, 1000);
        assert!(calls.failed.is_empty() && calls.answered() == near, "{calls:?}");
        // The machine with all instances of the zone is gone.
        hosts[1].sh("ip link set eth0 down");
        caller.until_only(lab, &far);
        let calls = caller.until_calls(lab, 1000);
        assert!(calls.failed.is_empty() && calls.answered() == far, "{calls:?}");
        hosts[1].sh("ip link set eth0 up");
        caller.until_only(lab, &near);
    });
}

#[test]
fn grpc_calls_during_a_restart_of_its_node_and_follows_later_changes() {
    const TEST: &str = "proxyless::grpc_calls_during_a_restart_of_its_node_and_follows_later_changes";
    let Some(python) = find_program(TEST, "grpcio", Some("XDS_PYTHON")) else { return };
    scenario(TEST, |lab| {
        let (hosts, nodes) = hearsay_tests::registry::cluster(lab, 2, &[]);
        let mut programs = vec![start_answerer(lab, &hosts[1], &python, (PORT, 1))];
        lab.until(10 * S, "all nodes list it", |lab| all_have(lab, &nodes, "web", 1));
        let caller = Caller::start(lab, &hosts[0], &python);
        let name = |port| name_of(&hosts[1], port);
        caller.until_only(lab, &[name(PORT)]);
        lab.crash(nodes[0]);
        caller.until_calls(lab, 1000);
        restart(lab, &hosts[0], &hosts[1]);
        programs.push(start_answerer(lab, &hosts[1], &python, (PORT + 1, 1)));
        caller.until_only(lab, &[name(PORT), name(PORT + 1)]);
        let failed = caller.calls().failed;
        assert!(failed.is_empty(), "{failed:?}");
    });
}
