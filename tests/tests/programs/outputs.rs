//! Tests that a check whose output changes with every run, but not its status, changes no index, and wakes no
//! blocking query and no event stream.

use std::{
    io::{ErrorKind, Read as _},
    net::TcpStream,
    time::Duration,
};

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef, Program,
    registry::{all_have, cluster, register},
    scenario,
};
use serde_json::{Value, json};

use crate::{PROGRAM, S};

/// Short, so that a thousand runs take seconds.
const INSTANCES: usize = 25;
const CHECKS: usize = 8;
/// Runs that must change nothing.
const RUNS: usize = 1000;

/// A request that waits for changes: a blocking query or a stream.
struct Waiting {
    what: String,
    stream: TcpStream,
}

impl Waiting {
    /// Opens one, and reads its beginning.
    fn open(host: &Host, path: &str, begins_with: &str) -> Self {
        let stream = host.hold(7500, &format!("GET {path}"), "", begins_with);
        Self { what: format!("{path} on {}", host.name), stream }
    }

    /// A blocking query is silent from the start.
    fn query(host: &Host, path: &str) -> Self {
        Self::open(host, path, "")
    }

    /// Returns what has arrived since. Keep-alive comments of a stream and chunk lengths do not count.
    fn news(&self) -> String {
        self.stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (mut news, mut buffer) = (String::new(), [0; 4096]);
        loop {
            match (&self.stream).read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => news.push_str(&String::from_utf8_lossy(&buffer[..read])),
                Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => break,
                Err(error) => panic!("{}: {error}", self.what),
            }
        }
        let is_news = |line: &&str| line.contains(": ") || line.starts_with("HTTP/");
        news.lines().filter(|line| !line.starts_with(':')).filter(is_news).collect()
    }
}

fn index(lab: &Lab, node: NodeRef, path: &str) -> u64 {
    lab.get(node, path).unwrap()["index"].as_u64().unwrap()
}

fn output(lab: &Lab, node: NodeRef) -> Value {
    lab.get(node, "/services/web/web-0").unwrap_or_default()["checks"][0]["output"].clone()
}

#[test]
fn a_thousand_changes_of_output_move_no_index_and_wake_nothing() {
    scenario("outputs::a_thousand_changes_of_output_move_no_index_and_wake_nothing", |lab| {
        let (hosts, nodes) = cluster(lab, 2, &[]);
        let program = Program::start(PROGRAM, &hosts[0], 8080);
        // A short pause of a busy machine shows only in the output.
        let check = json!({
            "http": "http://127.0.0.1:8080/changing", "interval": "1s", "timeout": "900ms", "failures_before_critical": 5,
        });
        for n in 0..INSTANCES {
            let checks = vec![check.clone(); CHECKS];
            register(
                &hosts[0],
                &json!({"name": "web", "id": format!("web-{n}"), "port": 8080, "checks": checks}),
            );
        }
        lab.until(20 * S, "all pass everywhere", |lab| all_have(lab, &nodes, "web", INSTANCES));
        // By then the hosts' IPv6 addresses are no longer tentative: each new one changes the nodes' entries.
        lab.until(60 * S, "each check has run four times", |_| program.count() >= 4 * INSTANCES * CHECKS);
        lab.until(10 * S, "the nodes agree", |lab| lab.agree(&nodes));
        let paths = ["/services", "/services/web"];
        let indexes = |lab: &Lab| -> Vec<u64> {
            nodes.iter().flat_map(|node| paths.map(|path| index(lab, *node, path))).collect()
        };
        let before = indexes(lab);
        let mut waiting = Vec::new();
        for (host, node) in hosts.iter().zip(&nodes) {
            for path in paths {
                let index = index(lab, *node, path);
                waiting.push(Waiting::query(host, &format!("{path}?index={index}&wait=5m")));
            }
            let snapshot = format!("\"web-{}\"", INSTANCES - 1);
            waiting.push(Waiting::open(host, "/services/watch", &snapshot));
            waiting.push(Waiting::open(host, "/services/watch?service=web", &snapshot));
        }
        // The rest of each snapshot.
        lab.until(10 * S, "the snapshots are read", |_| {
            waiting.iter().all(|waiting| waiting.news().is_empty())
        });
        let (first, runs) = (output(lab, nodes[0]), program.count());
        lab.until(60 * S, "a thousand runs", |_| program.count() >= runs + RUNS);
        assert_ne!(output(lab, nodes[0]), first, "each run has another output");
        assert!(
            output(lab, nodes[1]).as_str().unwrap().contains("request "),
            "the newest is fetched from its holder"
        );
        for waiting in &waiting {
            assert_eq!(waiting.news(), "", "{}", waiting.what);
        }
        assert_eq!(before, indexes(lab));
        println!("{} runs, and nothing was told", program.count() - runs);
        // A change of status wakes all of them.
        program.send("POST /fail");
        lab.until(30 * S, "all are critical", |lab| all_have(lab, &nodes, "web", 0));
        for waiting in &waiting {
            lab.until(5 * S, &waiting.what, |_| !waiting.news().is_empty());
        }
        assert!(indexes(lab).iter().zip(&before).all(|(after, before)| after > before));
    });
}
