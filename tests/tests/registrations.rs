//! Tests that acknowledged registrations survive kills and power failures, and that a node and a cluster
//! refuse registrations beyond their maximum.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hearsay_tests::{Cluster as _, Host, Lab, LossyDisk, NodeRef, http, registry, scenario};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);
/// Clients that register at the same time.
const WRITERS: usize = 4;
/// Ids that each client uses in turn.
const IDS: usize = 12;
/// Limit of every answer.
const ANSWER_MAX: Duration = Duration::from_secs(8);

/// What a writer knows of an id.
#[derive(Clone, PartialEq, Debug)]
enum Known {
    /// Its registration with this port was acknowledged.
    Registered(u16),
    /// Its deregistration was acknowledged.
    Gone,
    /// A write without an answer: its effect may hold or not.
    Either(Vec<Known>),
}

impl Known {
    fn allows(&self, found: Option<u16>) -> bool {
        match self {
            Self::Registered(port) => found == Some(*port),
            Self::Gone => found.is_none(),
            Self::Either(all) => all.iter().any(|known| known.allows(found)),
        }
    }

    /// State after a write without an answer.
    fn or(self, other: Self) -> Self {
        match self {
            Self::Either(mut all) => {
                all.push(other);
                Self::Either(all)
            }
            known => Self::Either(vec![known, other]),
        }
    }
}

/// Registers and deregisters until stopped. Returns the state of each id.
fn write(me: usize, stop: &AtomicBool, acknowledged: &AtomicUsize) -> BTreeMap<String, Known> {
    let node: SocketAddr = "127.0.0.1:7500".parse().unwrap();
    let json_body = [("content-type", "application/json")];
    let mut known: BTreeMap<String, Known> = BTreeMap::new();
    for n in 0_usize.. {
        if stop.load(Relaxed) {
            break;
        }
        let id = format!("w{me}-{}", n % IDS);
        let port = 1000 + u16::try_from(n % 60_000).unwrap();
        let is_removal = n % 3 == 2;
        let (reply, after) = if is_removal {
            (http::send(node, &format!("DELETE /services/{id}"), &[], "", ANSWER_MAX), Known::Gone)
        } else {
            let body = json!({"name": "web", "id": id, "port": port}).to_string();
            (http::send(node, "POST /services", &json_body, &body, ANSWER_MAX), Known::Registered(port))
        };
        let before = known.remove(&id).unwrap_or(Known::Gone);
        let now = match reply {
            Ok(reply) if reply.status == 200 => {
                acknowledged.fetch_add(1, Relaxed);
                after
            }
            // Not found, so the last write had no effect either.
            Ok(reply) if reply.status == 404 && is_removal => {
                assert!(before.allows(None), "{id} is not found, and {before:?} was acknowledged");
                Known::Gone
            }
            Ok(reply) => panic!("{reply:?}"),
            Err(http::SendError::NotSent) => {
                std::thread::sleep(Duration::from_millis(20));
                before
            }
            Err(http::SendError::Unknown) => before.or(after),
        };
        known.insert(id, now);
    }
    known
}

fn plain(lab: &mut Lab, host: &Host) -> NodeRef {
    lab.start(Some(host), "m1", 7500, &["--name", "m1"])
}

fn registrations(lab: &Lab, node: NodeRef) -> Option<Vec<Value>> {
    lab.get(node, "/registrations")?["registrations"].as_array().cloned()
}

/// Kills the node again and again under writers; `after_kill` runs before each restart.
fn killing(lab: &mut Lab, rounds: u32, mut after_kill: impl FnMut(u32)) {
    let host = lab.host();
    let mut node = plain(lab, &host);
    lab.until(10 * S, "it answers", |lab| registrations(lab, node).is_some());
    // A registration whose check continues after each start.
    let body = json!({"name": "job", "id": "job-1", "check": {"ttl": "1h", "id": "job-ttl"}}).to_string();
    assert_eq!(host.send(7500, "POST /services", &body).status, 200);
    assert_eq!(host.send(7500, "PUT /checks/job-ttl", r#"{"status":"passing"}"#).status, 200);
    let (stop, acknowledged, known) =
        (AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for me in 0..WRITERS {
            let (host, stop, acknowledged, known) = (&host, &stop, &acknowledged, &known);
            scope.spawn(move || {
                let of_one = host.enter(|| write(me, stop, acknowledged));
                known.lock().unwrap().extend(of_one);
            });
        }
        // Also after a failed assertion: otherwise the writers would keep the scope open.
        let _stop = StopAtEnd(&stop);
        for round in 0..rounds {
            let enough = acknowledged.load(Relaxed) + 20;
            lab.until(20 * S, "writes go on", |_| acknowledged.load(Relaxed) > enough);
            lab.crash(node);
            after_kill(round);
            node = plain(lab, &host);
        }
        lab.until(10 * S, "it answers", |lab| registrations(lab, node).is_some());
    });
    // The next incarnation reads the writes of the last one.
    lab.crash(node);
    after_kill(rounds);
    node = plain(lab, &host);
    lab.until(10 * S, "all is restored", |lab| {
        registrations(lab, node).is_some_and(|all| all.iter().any(|one| one["id"] == "job-1"))
    });
    let found = registrations(lab, node).unwrap();
    let mut ports: BTreeMap<String, u16> = BTreeMap::new();
    for one in &found {
        let (id, port) = (one["id"].as_str().unwrap(), one["port"].as_u64().unwrap());
        assert_eq!(ports.insert(id.to_owned(), u16::try_from(port).unwrap()), None, "{id} is there twice");
    }
    for (id, known) in known.into_inner().unwrap() {
        assert!(known.allows(ports.get(&id).copied()), "{id}: {known:?}, found {:?}", ports.get(&id));
    }
    println!("{rounds} rounds, {} writes acknowledged", acknowledged.load(Relaxed));
    let job = found.iter().find(|one| one["id"] == "job-1").unwrap();
    assert_eq!(job["health"], "passing", "the status that was reported is restored: {job}");
    assert_eq!(host.send(7500, "PUT /checks/job-ttl", r#"{"status":"critical"}"#).status, 200);
    lab.until(5 * S, "its check goes on", |lab| {
        let services = lab.get(node, "/services/job?health=critical").unwrap_or_default();
        services["services"]["job"].as_array().is_some_and(|all| all.len() == 1)
    });
}

/// Stops the writers when it is dropped.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn rounds(short: u32, long: u32) -> u32 {
    if std::env::var_os("LAB_LONG").is_some() { long } else { short }
}

#[test]
fn acknowledged_registrations_survive_kills_under_load() {
    scenario("acknowledged_registrations_survive_kills_under_load", |lab| {
        killing(lab, rounds(30, 300), |_| ())
    });
}

#[test]
fn acknowledged_registrations_survive_the_loss_of_power() {
    let name = "acknowledged_registrations_survive_the_loss_of_power";
    if let Err(why) = LossyDisk::can_be_mounted() {
        println!("skipped: {name}: {why}");
        assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and {name} cannot run here: {why}");
        return;
    }
    scenario(name, |lab| {
        let disk = LossyDisk::mount(&lab.dir().join("m1")).unwrap();
        let mut forgotten = 0;
        killing(lab, rounds(10, 100), |round| forgotten += disk.lose_power(u64::from(round)));
        assert!(forgotten > 0, "the power went, and nothing was forgotten");
    });
}

/// Largest number of instances of a node, and of a cluster.
const INSTANCES_MAX: usize = 10_000;
const INSTANCES_OF_CLUSTER_MAX: usize = 100_000;
/// Clients that fill a node: waiting changes are stored and stated together.
const FILLERS: usize = 32;

/// Registers the n-th instance of `web` with the node of this host.
fn register_nth(host: &Host, n: usize) -> http::Reply {
    let body = json!({"name": "web", "id": format!("web-{n}"), "port": 1 + n % 60_000}).to_string();
    host.send(7500, "POST /services", &body)
}

/// Registers this many instances, from the first number on.
fn fill(host: &Host, first: usize, count: usize) {
    std::thread::scope(|scope| {
        for me in 0..FILLERS {
            scope.spawn(move || {
                for n in (first + me..first + count).step_by(FILLERS) {
                    assert_eq!(register_nth(host, n).status, 200);
                }
            });
        }
    });
}

#[test]
fn a_node_takes_ten_thousand_registrations_and_refuses_the_next() {
    scenario("a_node_takes_ten_thousand_registrations_and_refuses_the_next", |lab| {
        let host = lab.host();
        let mut node = plain(lab, &host);
        lab.until(10 * S, "it answers", |lab| registrations(lab, node).is_some());
        fill(&host, 0, INSTANCES_MAX);
        let reply = register_nth(&host, INSTANCES_MAX);
        assert!(reply.status == 507 && reply.body.contains("10000"), "{reply:?}");
        // A replacement does not count.
        assert_eq!(register_nth(&host, 7).status, 200);
        assert_eq!(registrations(lab, node).unwrap().len(), INSTANCES_MAX);
        lab.crash(node);
        node = plain(lab, &host);
        lab.until(60 * S, "all are restored", |lab| {
            registrations(lab, node).is_some_and(|all| all.len() == INSTANCES_MAX)
        });
    });
}

/// The limit itself is tested with a prepared table (`node/src/http/tests/bounds.rs`); this test fills it by
/// gossip, which takes minutes.
#[test]
fn a_cluster_takes_a_hundred_thousand_registrations_and_refuses_the_next() {
    if std::env::var_os("LAB_LONG").is_none() {
        println!("skipped: a cluster of 100,000 registrations: LAB_LONG=1 runs it");
        return;
    }
    scenario("a_cluster_takes_a_hundred_thousand_registrations_and_refuses_the_next", |lab| {
        let of_cluster = INSTANCES_OF_CLUSTER_MAX / INSTANCES_MAX;
        let (hosts, nodes) = registry::cluster(lab, of_cluster + 1, &[]);
        let last = &hosts[of_cluster];
        for (n, host) in hosts[..of_cluster].iter().enumerate() {
            fill(host, n * INSTANCES_MAX, INSTANCES_MAX);
            println!("{} registered", (n + 1) * INSTANCES_MAX);
        }
        lab.until(120 * S, "all nodes know all", |lab| {
            nodes.iter().all(|node| lab.root(*node).is_some()) && lab.agree(&nodes)
        });
        let reply = register_nth(last, INSTANCES_OF_CLUSTER_MAX);
        assert!(reply.status == 507 && reply.body.contains("100000"), "{reply:?}");
        assert_eq!(registrations(lab, nodes[of_cluster]).unwrap(), [Value::Null; 0]);
        assert!(lab.agree(&nodes), "it changed nothing");
        // Once there is room, a registration is accepted.
        assert_eq!(hosts[0].send(7500, "DELETE /services/web-0", "").status, 200);
        lab.until(20 * S, "there is room", |_| register_nth(last, INSTANCES_OF_CLUSTER_MAX).status == 200);
        assert_eq!(registrations(lab, nodes[of_cluster]).unwrap().len(), 1);
    });
}
