//! Measures twenty nodes with as many instances as a cluster may have: the time to register them, idle cost,
//! lookups, and the time until a change is on all nodes.

use std::{
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    clock::Moment,
    hearsay,
    load::{Answered, Load, send_all},
    protocol::{WireProtocol, get, post},
    server::{Server, cluster},
    statistics::Events,
    usage::{Idle, Reading},
};

/// Nodes of the cluster.
pub(crate) const NODES: usize = 20;
/// Number of instances of each service.
pub(crate) const OF_A_SERVICE: usize = 100;
const CONNECTIONS: usize = 16;
/// Number of connections that send lookups.
const LOOKING: usize = 4;
/// Number of changes that are awaited on all nodes.
const CHANGES: usize = 200;
/// Time within which a change must be on all nodes, and within which all nodes must list all instances.
const BOUND: Duration = Duration::from_secs(30);
const CONVERGED_MAX: Duration = Duration::from_secs(600);
/// Time for which idle nodes are measured.
const IDLE: Duration = Duration::from_secs(30);
/// Time for which lookups are measured.
const TIME: Duration = Duration::from_secs(5);

/// Figures of the full registry.
pub(crate) struct Figures {
    pub(crate) instances: usize,
    /// Time until the last registration was answered.
    pub(crate) registered: Duration,
    /// Time from then until all nodes list all instances.
    pub(crate) converged: Duration,
    pub(crate) idle: Idle,
    pub(crate) lookups: Answered,
    pub(crate) changes: Events,
}

impl Figures {
    pub(super) fn json(&self) -> Value {
        json!({
            "instances": self.instances, "registeredS": self.registered.as_secs_f64(),
            "convergedS": self.converged.as_secs_f64(), "node": self.idle, "lookupsPerSecond": self.lookups.per_second(),
            "lookupP99": self.lookups.times().percentile(99).to_string(), "changes": self.changes,
        })
    }
}

/// # Errors
/// A node does not start, refuses a registration, or does not list all instances.
pub(super) fn measure(instances: usize, folder: &Path) -> Result<Figures> {
    let nodes = cluster(&folder.join("large"), 0, NODES, "")?;
    let begun = Instant::now();
    for (index, node) in nodes.iter().enumerate() {
        let own = (index..instances).step_by(NODES);
        let requests: Vec<Vec<u8>> = own.map(|number| request(number, 0)).collect();
        let took = send_all(node.address, &requests, CONNECTIONS)?;
        eprintln!("node {index}: {} registered in {:.1} s", requests.len(), took.as_secs_f64());
    }
    let registered = begun.elapsed();
    let begun = Instant::now();
    for node in &nodes {
        while node.metric("hearsay_instances") != Some(instances as u64) {
            ensure!(begun.elapsed() < CONVERGED_MAX, "{:?} are listed", node.metric("hearsay_instances"));
            thread::sleep(Duration::from_millis(50));
        }
    }
    let converged = begun.elapsed();
    eprintln!("all nodes list all {:.1} s later", converged.as_secs_f64());
    let look = || Reading::take(nodes.iter().map(|node| node.process.pid()));
    let first = look()?;
    thread::sleep(IDLE);
    let idle = look()?.since(&first, IDLE);
    let service = |connection: usize| vec![get(&format!("/services/{}", service(connection * OF_A_SERVICE)))];
    let load = Load {
        to: nodes[1].address,
        protocol: WireProtocol::Http,
        requests: (0..LOOKING).map(service).collect(),
        warm_up: TIME / 5,
        time: TIME,
    };
    let (lookups, ..) = load.run(|| Ok(()))?;
    let changes = change(&nodes)?;
    Ok(Figures { instances, registered, converged, idle, lookups, changes })
}

fn service(number: usize) -> String {
    format!("large-{}", number / OF_A_SERVICE)
}

fn request(number: usize, version: usize) -> Vec<u8> {
    let body = json!({
        "name": service(number), "id": format!("large-{number}"), "address": "10.77.0.5", "port": 1 + number % 65_535,
        "tags": ["v1", "blue"], "meta": { "version": format!("v{version}") },
    });
    post("/services", "application/json", &body.to_string())
}

/// Registers instances of the first service again with other values, and waits until all nodes have the
/// changes.
fn change(nodes: &[Server]) -> Result<Events> {
    let (arrived, arrivals) = mpsc::channel();
    for observer in 0..NODES {
        let arrived = arrived.clone();
        hearsay::changes(observer, &format!("?service={}", service(0)), move |event| {
            // The receiver is gone when measuring is over.
            _ = arrived.send((observer, event.data.to_owned(), event.at));
        })?;
    }
    let mut events = Events::new(BOUND.as_secs());
    for version in 1..=CHANGES {
        let number = version % OF_A_SERVICE;
        let begun = Moment::now();
        send_all(nodes[number % NODES].address, &[request(number, version)], 1)?;
        let (id, wanted) = (format!("\"large-{number}\""), format!("\"v{version}\""));
        let mut times = vec![None; NODES];
        let until = Instant::now() + BOUND;
        while times.contains(&None) {
            let left = until.saturating_duration_since(Instant::now());
            let Ok((observer, data, at)) = arrivals.recv_timeout(left) else { break };
            if data.contains(&id) && data.contains(&wanted) {
                times[observer].get_or_insert(at.micros_since(begun));
            }
        }
        events.times_us.push(times);
    }
    Ok(events)
}
