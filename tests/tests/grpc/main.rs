//! gRPC over real nodes with a real client, whose script (`client.py`) uses grpcio, grpcio-health-checking
//! and grpcio-reflection from PyPI.

#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef,
    registry::{all_have, cluster, instances, on_five_hosts, passing},
    scenario,
};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);
/// The client.
const CLIENT: &str = include_str!("client.py");

/// Returns the Python with the clients. Without it, prints that the test is skipped; with `LAB=full` the test
/// fails.
fn find_python(test: &str) -> Option<PathBuf> {
    let python = std::env::var_os("PYTHON_GRPC").map(PathBuf::from);
    if python.is_none() {
        println!("skipped: {test}: needs grpcio; tests/run installs it");
        assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and {test} has no grpcio");
    }
    python
}

/// A client that runs on a host until it is dropped.
struct PythonClient {
    child: Child,
    output: PathBuf,
    /// Its standard error, in which grpcio logs.
    errors: PathBuf,
}

impl PythonClient {
    fn start(lab: &Lab, host: &Host, python: &PathBuf, arguments: &[&str]) -> Self {
        let script = lab.dir().join("client.py");
        fs::write(&script, CLIENT).unwrap();
        let [output, errors] =
            ["out", "err"].map(|kind| lab.dir().join(format!("client-{}.{kind}", arguments[0])));
        let [stdout, stderr] = [&output, &errors].map(|path| File::create(path).unwrap());
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &host.name]).arg(python).arg(script).args(arguments);
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap();
        Self { child, output, errors }
    }

    /// Returns the lines that it has printed.
    fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Kills it with SIGKILL. `ip netns exec` has replaced itself with the client.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for PythonClient {
    fn drop(&mut self) {
        // The process may already have ended.
        _ = self.child.kill();
        _ = self.child.wait();
        if std::thread::panicking() {
            println!("{}", self.lines().join("\n"));
            println!("{}", fs::read_to_string(&self.errors).unwrap_or_default());
        }
    }
}

/// Returns the gRPC address of a node, as it tells it.
fn grpc_of(lab: &Lab, node: NodeRef) -> String {
    let name = lab.name_of(node);
    let members = lab.get(node, "/members").unwrap();
    let own = members["members"].as_array().unwrap().iter().find(|member| member["name"] == name.as_str());
    own.unwrap()["grpc"].as_str().unwrap_or_else(|| panic!("{name} has no gRPC: {members}")).to_owned()
}

#[test]
fn python_finds_the_services_by_reflection_and_lists_instances() {
    let name = "python_finds_the_services_by_reflection_and_lists_instances";
    let Some(python) = find_python(name) else { return };
    scenario(name, |lab| {
        let (hosts, nodes) = cluster(lab, 2, &[]);
        assert_eq!(grpc_of(lab, nodes[1]), format!("{}:7700", hosts[1].ip));
        assert!(lab.log(nodes[1]).contains(":7700"), "the banner tells it: {}", lab.log(nodes[1]));
        let body = json!({ "name": "web", "id": "web-1", "port": 8080, "tags": ["v1"] });
        assert_eq!(hosts[0].send(7500, "POST /services", &body.to_string()).status, 200);
        for aim in ["127.0.0.1:7700".to_owned(), grpc_of(lab, nodes[1])] {
            let body = json!({ "name": "aimed", "port": 1, "check": { "tcp": aim } });
            let refused = hosts[0].send(7500, "POST /services", &body.to_string());
            assert_eq!((refused.status, &refused.json()["field"]), (400, &json!("tcp")), "{aim}");
        }
        lab.until(5 * S, "both list it", |lab| all_have(lab, &nodes, "web", 1));
        let mut client = PythonClient::start(lab, &hosts[0], &python, &["list", &grpc_of(lab, nodes[1])]);
        assert!(client.child.wait().unwrap().success());
        let printed: Vec<Value> =
            client.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [services, listed, members] = printed.as_slice() else { panic!("{printed:?}") };
        for service in [
            "hearsay.v1.Discovery",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ] {
            assert!(services.as_array().unwrap().contains(&json!(service)), "{services}");
        }
        assert_eq!((&listed["node"], &listed["instances"][0]["id"]), (&json!("m1"), &json!("web-1")));
        assert_eq!(listed["instances"][0]["health"], "HEALTH_STATUS_PASSING");
        let addresses: Vec<&Value> =
            members["members"].as_array().unwrap().iter().map(|member| &member["grpc"]).collect();
        assert_eq!(addresses.len(), 2);
        for host in &hosts {
            assert!(addresses.contains(&&json!(format!("{}:7700", host.ip))), "{addresses:?}");
        }
    });
}

#[test]
fn python_watches_a_service_fail_recover_and_go() {
    let name = "python_watches_a_service_fail_recover_and_go";
    let Some(python) = find_python(name) else { return };
    scenario(name, |lab| {
        let (hosts, nodes) = cluster(lab, 2, &[]);
        let client =
            PythonClient::start(lab, &hosts[1], &python, &["health", &grpc_of(lab, nodes[1]), "web"]);
        let mut expected = vec!["SERVICE_UNKNOWN"];
        lab.until(10 * S, "the client watches", |_| client.lines() == expected);
        let body =
            json!({ "name": "web", "id": "web-1", "port": 8080, "check": { "ttl": "1h", "id": "up" } });
        assert_eq!(hosts[0].send(7500, "POST /services", &body.to_string()).status, 200);
        expected.push("NOT_SERVING");
        lab.until(5 * S, "registered, critical until the first report", |_| client.lines() == expected);
        for (status, health) in [("passing", "SERVING"), ("critical", "NOT_SERVING"), ("warning", "SERVING")]
        {
            let report = json!({ "status": status }).to_string();
            assert_eq!(hosts[0].send(7500, "PUT /checks/up", &report).status, 200);
            expected.push(health);
            lab.until(5 * S, &format!("{status} is {health}"), |_| client.lines() == expected);
        }
        assert_eq!(hosts[0].send(7500, "DELETE /services/web-1", "").status, 200);
        expected.push("SERVICE_UNKNOWN");
        lab.until(5 * S, "deregistered", |_| client.lines() == expected);
    });
}

#[test]
fn a_program_that_is_killed_is_gone_on_all_nodes_at_once() {
    let name = "a_program_that_is_killed_is_gone_on_all_nodes_at_once";
    let Some(python) = find_python(name) else { return };
    scenario(name, |lab| {
        let (hosts, nodes) = on_five_hosts(lab);
        let message = json!({
            "registration": { "name": "job", "id": "job-1", "port": 8080, "requires": ["db"] },
        });
        let grpc = grpc_of(lab, nodes[0]);
        let mut client =
            PythonClient::start(lab, &hosts[0], &python, &["register", &grpc, &message.to_string()]);
        lab.until(10 * S, "all nodes list it", |lab| all_have(lab, &nodes, "job", 1));
        lab.until(10 * S, "its client prints the first event", |_| !client.lines().is_empty());
        let lines = client.lines();
        let first: Value = serde_json::from_str(&lines[0]).unwrap_or_else(|_| panic!("{lines:?}"));
        assert_eq!(
            (&first["registered"]["id"], &first["registered"]["node"]),
            (&json!("job-1"), &json!("m0"))
        );
        assert_eq!(instances(lab, nodes[9], "job")[0]["address"], hosts[0].ip.as_str());
        let db = json!({ "name": "db", "id": "db-1", "port": 5432 });
        assert_eq!(hosts[3].send(7500, "POST /services", &db.to_string()).status, 200);
        lab.until(5 * S, "it hears of the service that it requires", |_| {
            client.lines().last().is_some_and(|line| line.contains("\"updated\"") && line.contains("db-1"))
        });
        let killed = Instant::now();
        client.kill();
        // Polled without pauses, for a better measurement.
        while !nodes.iter().all(|node| passing(lab, *node, "job") == 0) {
            assert!(killed.elapsed() < 20 * S, "it is still listed: {}", lab.describe());
        }
        println!("gone on all ten nodes, as seen by ten requests in turn: {:?}", killed.elapsed());
        assert!(nodes.iter().all(|node| instances(lab, *node, "job").is_empty()));
    });
}
