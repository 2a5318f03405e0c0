//! Measures the time until a registration reaches the watching clients of all thirty nodes.

use std::{
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    clock::Moment,
    hearsay,
    server::cluster,
    statistics::{Events, Times},
};

/// Nodes of the cluster.
pub(crate) const NODES: usize = 30;
/// Time within which a registration must be on all nodes.
const BOUND: Duration = Duration::from_secs(10);
/// Time after which unneeded connections of the start are closed.
const SETTLE: Duration = Duration::from_secs(20);

/// Figures of all registrations.
pub(crate) struct Figures {
    /// Times until the node has answered.
    pub(crate) answered: Times,
    /// Times until the client of each node, including the holder's client, has received the event.
    pub(crate) seen: Events,
}

impl Figures {
    pub(super) fn json(&self) -> Value {
        json!({ "seen": self.seen, "answeredP50": self.answered.percentile(50).to_string() })
    }
}

/// # Errors
/// A node does not start, or refuses a registration.
pub(super) fn measure(changes: usize, folder: &Path) -> Result<Figures> {
    eprintln!("{NODES} nodes: starting, and settling for {SETTLE:?}");
    let nodes = cluster(&folder.join("spread"), 0, NODES, "")?;
    std::thread::sleep(SETTLE);
    let (arrived, arrivals) = mpsc::channel();
    for observer in 0..NODES {
        let arrived = arrived.clone();
        hearsay::changes(observer, "?service=spread", move |event| {
            // The receiver is gone when measuring is over.
            _ = arrived.send((observer, event.data.to_owned(), event.at));
        })?;
    }
    let (mut answered, mut seen) = (Vec::new(), Events::new(BOUND.as_secs()));
    for number in 0..changes {
        let body = json!({ "name": "spread", "id": format!("spread-{number}"), "address": "10.77.0.5", "port": 8000 + number });
        let headers = [("content-type", "application/json")];
        let begun = Moment::now();
        let reply = nodes[number % NODES].ask("POST /services", &headers, &body.to_string());
        answered.push(Some(Moment::now().micros_since(begun)));
        ensure!(reply.is_some_and(|reply| reply.status == 200), "a registration was refused");
        let wanted = format!("\"spread-{number}\"");
        let mut times = vec![None; NODES];
        let until = Instant::now() + BOUND;
        while times.contains(&None) {
            let left = until.saturating_duration_since(Instant::now());
            let Ok((observer, data, at)) = arrivals.recv_timeout(left) else { break };
            if data.contains(&wanted) {
                times[observer].get_or_insert(at.micros_since(begun));
            }
        }
        seen.times_us.push(times);
    }
    Ok(Figures { answered: Times::new(answered, BOUND.as_secs()), seen })
}
