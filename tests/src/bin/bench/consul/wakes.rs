//! Measures the time from a registration until the blocking queries of clients of ten nodes are answered.

use std::{
    net::SocketAddr,
    path::Path,
    sync::mpsc::{self, Sender},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    clock::Moment,
    load::{Connection, alone},
    protocol::{WireProtocol, get},
    server::{Server, cluster},
    statistics::{Events, Times},
};

/// Nodes of the cluster.
pub(crate) const NODES: usize = 10;
/// Time within which a query must be answered.
const BOUND: Duration = Duration::from_secs(10);
/// Time after which unneeded connections of the start are closed.
const SETTLE: Duration = Duration::from_secs(20);
/// The service whose queries wait.
const SERVICE: &str = "wakes";

/// Times of all changes. The change with number `n` is made at node `n` modulo [`NODES`].
pub(crate) struct Figures {
    seen: Events,
}

impl Figures {
    pub(crate) fn same_node(&self) -> Times {
        self.of(|change, observer| change % NODES == observer)
    }

    pub(crate) fn other_nodes(&self) -> Times {
        self.of(|change, observer| change % NODES != observer)
    }

    pub(crate) fn all_nodes(&self) -> Times {
        self.seen.known_by_all()
    }

    fn of(&self, is_wanted: impl Fn(usize, usize) -> bool) -> Times {
        let changes = self.seen.times_us.iter().enumerate();
        let times = changes.flat_map(|(change, times)| {
            let wanted = times.iter().enumerate().filter(|(observer, _)| is_wanted(change, *observer));
            wanted.map(|(_, time)| *time).collect::<Vec<_>>()
        });
        Times::new(times, self.seen.bound_s)
    }

    pub(crate) fn json(&self) -> Value {
        json!({ "seen": self.seen })
    }
}

/// Answer to a query: node, body and time.
type Arrival = (usize, String, Moment);

/// # Errors
/// A node does not start, or refuses a registration.
pub(crate) fn measure(changes: usize, folder: &Path) -> Result<Figures> {
    eprintln!("{NODES} nodes: starting, and settling for {SETTLE:?}");
    let mut nodes = cluster(&folder.join("wakes"), 0, NODES, "")?;
    std::thread::sleep(SETTLE);
    register(&nodes[0], "v0")?;
    let (arrived, arrivals) = mpsc::channel();
    for (observer, node) in nodes.iter_mut().enumerate() {
        node.until("it lists the service", |node| {
            node.ask(&format!("GET /v1/health/service/{SERVICE}"), &[], "")
                .is_some_and(|reply| reply.body.contains("\"v0\""))
        })?;
        let (arrived, address) = (arrived.clone(), node.address);
        std::thread::spawn(move || {
            // The node is gone when measuring is over.
            _ = alone(follow(address, observer, arrived));
        });
    }
    let mut seen = Events::new(BOUND.as_secs());
    for change in 0..changes {
        for node in &mut nodes {
            node.until("its query waits", |node| node.metric("hearsay_http_waiting") == Some(1))?;
        }
        let tag = format!("v{}", change + 1);
        let begun = Moment::now();
        register(&nodes[change % NODES], &tag)?;
        let wanted = format!("\"{tag}\"");
        let mut times = vec![None; NODES];
        let until = Instant::now() + BOUND;
        while times.contains(&None) {
            let left = until.saturating_duration_since(Instant::now());
            let Ok((observer, body, at)) = arrivals.recv_timeout(left) else { break };
            if body.contains(&wanted) {
                times[observer].get_or_insert(at.micros_since(begun));
            }
        }
        seen.times_us.push(times);
    }
    let figures = Figures { seen };
    eprintln!("a query at another node: p99 {}", figures.other_nodes().percentile(99));
    Ok(figures)
}

fn register(node: &Server, tag: &str) -> Result<()> {
    // Of instances with the same address and port, one counts.
    let port = node.address.port();
    let id = format!("{SERVICE}-{port}");
    let body = json!({ "Name": SERVICE, "ID": id, "Address": "10.77.0.5", "Port": port, "Tags": [tag] });
    let headers = [("content-type", "application/json")];
    let reply = node.ask("PUT /v1/agent/service/register", &headers, &body.to_string());
    ensure!(reply.is_some_and(|reply| reply.status == 200), "a registration was refused");
    Ok(())
}

/// Sends one blocking query after the other, and passes on their answers.
async fn follow(to: SocketAddr, observer: usize, arrived: Sender<Arrival>) -> Result<()> {
    let mut connection = Connection::open(to, WireProtocol::Http, observer).await?;
    let path = format!("/v1/health/service/{SERVICE}?passing");
    let mut index = "0".to_owned();
    loop {
        // The wait is below the bound of an answer.
        let is_good = connection.ask(&get(&format!("{path}&index={index}&wait=5s"))).await?;
        let at = Moment::now();
        ensure!(is_good, "a query was refused");
        index = connection.header("x-consul-index").context("no index")?;
        let body = String::from_utf8_lossy(connection.body()).into_owned();
        // The receiver is gone when measuring is over.
        if arrived.send((observer, body, at)).is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_at_the_node_of_the_change_is_counted_apart() {
        let change = |own: usize| (0..NODES).map(|at| Some(if at == own { 1 } else { 5 })).collect();
        let seen = Events { times_us: vec![change(0), change(1)], bound_s: 10 };
        let figures = Figures { seen };
        assert_eq!((figures.same_node().len(), figures.other_nodes().len()), (2, 2 * (NODES - 1)));
        assert_eq!(figures.same_node().max().to_string(), "0.0 ms");
    }
}
