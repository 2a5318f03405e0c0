//! Measures how fast a client that connects gets all clusters and endpoints of many services, and what a
//! change costs it then.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    INSTANCES,
    client::{BOUND, CLUSTER, ENDPOINTS, Stream, has_weight},
    streams::{CHANGING, CONNECTIONS, GRPC, registration},
};
use crate::{
    clock::Moment,
    load::{alone, send_all},
    server::{Plan, Server},
    statistics::Times,
    usage::Reading,
};

/// Nodes that hold the instances, one of each service. Another node serves the client.
const HOLDERS: usize = INSTANCES;
/// Times that a client connects.
const ROUNDS: usize = 5;
const CHANGES: usize = 100;
/// Time within which all instances must be on the node.
const CONVERGED_MAX: Duration = Duration::from_secs(600);

/// Figures of a large table.
pub(crate) struct Figures {
    pub(super) services: usize,
    /// Times from the start of a connection until it has all clusters.
    pub(super) clusters: Times,
    /// Times from there until it has all endpoints.
    pub(super) endpoints: Times,
    /// Bytes of all clusters, and of all endpoints.
    pub(super) bytes: (usize, usize),
    pub(super) changes: Times,
    pub(super) bytes_of_change: usize,
    pub(super) resident_kib: u64,
}

impl Figures {
    pub(super) fn json(&self) -> Value {
        let p50 = |times: &Times| times.percentile(50).to_string();
        json!({
            "services": self.services, "clustersP50": p50(&self.clusters), "endpointsP50": p50(&self.endpoints),
            "clustersBytes": self.bytes.0, "endpointsBytes": self.bytes.1, "changeP50": p50(&self.changes),
            "changeP99": self.changes.percentile(99).to_string(), "bytesOfChange": self.bytes_of_change,
            "residentKib": self.resident_kib,
        })
    }
}

/// # Errors
/// A node does not start, refuses a registration, or does not list all instances; or a stream ends.
pub(super) fn measure(services: usize, folder: &Path) -> Result<Figures> {
    let folder = folder.join("first");
    let node = Plan::new(&folder, 0, "", &[]).with(&["--grpc", GRPC]).start()?;
    let holders: Vec<Server> =
        (1..=HOLDERS).map(|index| Plan::new(&folder, index, "", &[0]).start()).collect::<Result<_>>()?;
    for (instance, holder) in holders.iter().enumerate() {
        let requests: Vec<_> = (0..services).map(|service| registration(service, instance, 1)).collect();
        let took = send_all(holder.address, &requests, CONNECTIONS)?;
        eprintln!("{services} instances registered in {:.1} s", took.as_secs_f64());
    }
    let (begun, wanted) = (Instant::now(), (services * INSTANCES) as u64);
    while node.metric("hearsay_instances") != Some(wanted) {
        ensure!(begun.elapsed() < CONVERGED_MAX, "{:?} are listed", node.metric("hearsay_instances"));
        thread::sleep(Duration::from_millis(50));
    }
    let (mut clusters, mut endpoints, mut bytes) = (Vec::new(), Vec::new(), (0, 0));
    for _ in 0..ROUNDS {
        alone(async {
            let begun = Moment::now();
            let mut stream = Stream::open(GRPC.parse()?).await?;
            let (names, of_clusters) = stream.until_has(CLUSTER, services).await?;
            let between = Moment::now();
            stream.subscribe(names)?;
            let (_, of_endpoints) = stream.until_has(ENDPOINTS, services).await?;
            clusters.push(Some(between.micros_since(begun)));
            endpoints.push(Some(Moment::now().micros_since(between)));
            bytes = (of_clusters, of_endpoints);
            Ok(())
        })?;
    }
    let (changes, bytes_of_change) = alone(make_changes(services, &holders[0]))?;
    let before = Reading::take(std::iter::once(node.process.pid()))?;
    let times = |times| Times::new(times, BOUND.as_secs());
    Ok(Figures {
        services,
        clusters: times(clusters),
        endpoints: times(endpoints),
        bytes,
        changes: times(changes),
        bytes_of_change,
        resident_kib: before.since(&before, BOUND).resident_kib_max,
    })
}

/// Registers an instance again and again with another weight, and waits each time until a stream has it.
/// Returns the times, and the bytes of one change.
async fn make_changes(services: usize, holder: &Server) -> Result<(Vec<Option<u64>>, usize)> {
    let mut stream = Stream::open(GRPC.parse()?).await?;
    let (names, _) = stream.until_has(CLUSTER, services).await?;
    stream.subscribe(names)?;
    stream.until_has(ENDPOINTS, services).await?;
    let (mut times, mut bytes) = (Vec::new(), 0);
    for change in 1..=CHANGES {
        let (to, weight) = (holder.address, change + 1);
        let begun = Moment::now();
        tokio::task::spawn_blocking(move || send_all(to, &[registration(0, 0, weight)], 1)).await??;
        loop {
            let received = timeout(BOUND, stream.next()).await.context("no change")??;
            let at = Moment::now();
            let wanted = u32::try_from(weight)?;
            if received.assignments().any(|it| has_weight(&it, CHANGING, wanted)) {
                times.push(Some(at.micros_since(begun)));
                bytes = received.bytes;
                break;
            }
        }
    }
    Ok((times, bytes))
}
