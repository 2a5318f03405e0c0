//! Measures the time until a change of one instance is on the delta streams of many clients of one node, and
//! what the streams cost.

use std::{
    net::SocketAddr,
    path::Path,
    sync::mpsc::{self, Sender},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    INSTANCES,
    client::{CLUSTER, ENDPOINTS, Stream},
};
use crate::{
    clock::Moment,
    load::{runtime, send_all},
    protocol::post,
    server::{Plan, Server},
    statistics::Events,
    usage::Reading,
};

/// Services of the node.
pub(super) const SERVICES: usize = 100;
/// Address of the node's gRPC.
pub(super) const GRPC: &str = "127.0.0.1:7700";
/// Connections that register.
pub(super) const CONNECTIONS: usize = 8;
/// Time within which a change must be on all streams.
const BOUND: Duration = Duration::from_secs(10);
/// The service that changes.
pub(super) const CHANGING: &str = "xds-0";

/// Figures of all changes.
pub(crate) struct Figures {
    pub(super) streams: usize,
    pub(super) seen: Events,
    /// Bytes of a change on one stream.
    pub(super) bytes_of_change: usize,
    pub(super) cpu_ms_of_change: f64,
    pub(super) resident_kib_before: u64,
    pub(super) resident_kib: u64,
}

impl Figures {
    pub(super) fn kib_of_stream(&self) -> u64 {
        self.resident_kib.saturating_sub(self.resident_kib_before) / self.streams as u64
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "streams": self.streams, "seen": self.seen, "bytesOfChange": self.bytes_of_change,
            "cpuMsOfChange": self.cpu_ms_of_change, "residentKibBefore": self.resident_kib_before,
            "residentKib": self.resident_kib,
        })
    }
}

/// An event of a stream.
enum Arrival {
    /// The stream has all resources.
    Ready,
    /// An endpoint of [`CHANGING`] has this weight: stream, weight, bytes of the response, time.
    Changed(usize, u32, usize, Moment),
}

/// Returns the request that registers an instance with a weight.
pub(super) fn registration(service: usize, instance: usize, weight: usize) -> Vec<u8> {
    let body = json!({
        "name": format!("xds-{service}"), "id": format!("xds-{service}-{instance}"), "address": format!("10.77.0.{}", 1 + instance),
        "port": 1 + service, "weight": weight, "zone": "bench",
    });
    post("/services", "application/json", &body.to_string())
}

/// # Errors
/// The node does not start, refuses a registration or a stream, or ends a stream.
pub(super) fn measure(streams: usize, changes: usize, folder: &Path) -> Result<Figures> {
    let node = Plan::new(&folder.join("streams"), 0, "", &[]).with(&["--grpc", GRPC]).start()?;
    let all = (0..SERVICES).flat_map(|service| (0..INSTANCES).map(move |i| registration(service, i, 1)));
    send_all(node.address, &all.collect::<Vec<_>>(), CONNECTIONS)?;
    let read = || Reading::take(std::iter::once(node.process.pid()));
    let before = read()?;
    let (arrived, arrivals) = mpsc::channel();
    let address = GRPC.parse()?;
    std::thread::spawn(move || {
        let followed = (0..streams).map(|stream| follow(address, stream, arrived.clone()));
        // The node is gone when measuring is over.
        runtime().and_then(|runtime| runtime.block_on(futures::future::try_join_all(followed))).map(drop)
    });
    for _ in 0..streams {
        let arrival =
            arrivals.recv_timeout(super::client::BOUND).context("a stream does not get all resources")?;
        ensure!(matches!(arrival, Arrival::Ready), "a change before the first");
    }
    eprintln!("{streams} streams have all resources");
    let first = read()?;
    let (mut seen, mut bytes_of_change) = (Events::new(BOUND.as_secs()), 0);
    for change in 1..=changes {
        let (times, bytes) = make_change(&node, change + 1, streams, &arrivals)?;
        seen.times_us.push(times);
        bytes_of_change = bytes;
    }
    let last = read()?;
    let resident = |reading: &Reading| reading.since(&before, BOUND).resident_kib_max;
    let figures = Figures {
        streams,
        seen,
        bytes_of_change,
        cpu_ms_of_change: 1000.0 * last.cpu_seconds_since(&first) / changes as f64,
        resident_kib_before: resident(&before),
        resident_kib: resident(&last),
    };
    eprintln!("a change is on a stream: p99 {}", figures.seen.pairs().percentile(99));
    Ok(figures)
}

/// Registers an instance with another weight, and waits until all streams have it. Returns the times and the
/// bytes of the change on one stream.
fn make_change(
    node: &Server,
    weight: usize,
    streams: usize,
    arrivals: &mpsc::Receiver<Arrival>,
) -> Result<(Vec<Option<u64>>, usize)> {
    let begun = Moment::now();
    send_all(node.address, &[registration(0, 0, weight)], 1)?;
    let (mut times, mut bytes_of_change) = (vec![None; streams], 0);
    let until = Instant::now() + BOUND;
    while times.contains(&None) {
        let left = until.saturating_duration_since(Instant::now());
        let Ok(arrival) = arrivals.recv_timeout(left) else { break };
        if let Arrival::Changed(stream, found, bytes, at) = arrival
            && usize::try_from(found).is_ok_and(|found| found == weight)
        {
            times[stream].get_or_insert(at.micros_since(begun));
            bytes_of_change = bytes;
        }
    }
    Ok((times, bytes_of_change))
}

/// Subscribes to all clusters and endpoints, and passes on changes of the service that changes.
async fn follow(to: SocketAddr, number: usize, arrived: Sender<Arrival>) -> Result<()> {
    let mut stream = Stream::open(to).await?;
    let (names, _) = stream.until_has(CLUSTER, SERVICES).await?;
    stream.subscribe(names)?;
    stream.until_has(ENDPOINTS, SERVICES).await?;
    arrived.send(Arrival::Ready)?;
    loop {
        let received = stream.next().await?;
        let at = Moment::now();
        for assignment in received.assignments().filter(|it| it.cluster_name == CHANGING) {
            let endpoints = assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
            let weights = endpoints.filter_map(|endpoint| Some(endpoint.load_balancing_weight?.value));
            // The other instances keep the weight 1.
            let weight = weights.max().unwrap_or_default();
            arrived.send(Arrival::Changed(number, weight, received.bytes, at))?;
        }
    }
}
