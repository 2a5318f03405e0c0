//! Kills instances under load, and measures how clients that send repeatable requests are affected.

use std::{
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    load::{Answered, Load},
    protocol::{WireProtocol, get},
    server::{Plan, Server, stop},
};

/// Number of instances, except for a while after a kill.
pub(crate) const INSTANCES: usize = 3;
/// Connections of the load.
pub(crate) const CONNECTIONS: usize = 16;
/// Time from the start of the load to a kill, and from the kill to the end of the load.
const AROUND: Duration = Duration::from_millis(700);
const ROLE: &str = "grading";
const PORT: u16 = 8080;

/// Figures of all kills.
pub(crate) struct Figures {
    pub(crate) kills: usize,
    pub(crate) answered: Answered,
    /// Counters of the gateway.
    pub(crate) retries: u64,
    pub(crate) refused: u64,
}

impl Figures {
    pub(crate) fn json(&self) -> Value {
        json!({
            "kills": self.kills, "answered": self.answered.times_us.len(), "failed": self.answered.bad, "retries": self.retries,
            "retriesRefused": self.refused, "p99": self.answered.times().percentile(99).to_string(),
            "max": self.answered.times().max().to_string(),
        })
    }
}

/// # Errors
/// A node does not start, or the gateway finds no route.
pub(crate) fn measure(kills: usize, folder: &Path) -> Result<Figures> {
    let options = ["--gateway", &format!("127.0.0.1:{PORT}")];
    let mut gateway = Plan::new(folder, 0, "gateway", &[]).ephemeral().with(&options).start()?;
    let mut next = 0;
    let mut instance = || {
        next += 1;
        Plan::new(folder, next, ROLE, &[0]).ephemeral().with(&["--demo"]).start()
    };
    let mut nodes = (0..INSTANCES).map(|_| instance()).collect::<Result<Vec<_>>>()?;
    let mut answered = Answered::default();
    for kill in 0..kills {
        gateway.until("it has a route to all instances", |gateway| routes(gateway) == INSTANCES)?;
        let load = Load {
            to: (std::net::Ipv4Addr::LOCALHOST, PORT).into(),
            protocol: WireProtocol::Http,
            requests: vec![vec![get(&format!("/{ROLE}/students"))]; CONNECTIONS],
            warm_up: AROUND / 2,
            time: AROUND * 2,
        };
        // The load runs in a separate thread; this thread starts and kills processes.
        let (done, result) = mpsc::channel();
        thread::spawn(move || done.send(load.run(|| Ok(()))));
        let begun = Instant::now();
        while begun.elapsed() < AROUND {
            thread::sleep(AROUND - begun.elapsed().min(AROUND));
        }
        let mut node = nodes.remove(kill % INSTANCES);
        stop(&mut node, Signal::KILL)?;
        let (round, ..) = result.recv().context("the load ended")??;
        ensure!(!round.times_us.is_empty(), "nothing was answered");
        eprintln!("kill {}: {} answered, {} failed", kill + 1, round.times_us.len(), round.bad);
        answered.and(round);
        nodes.push(instance()?);
    }
    let totals = gateway.ask("GET /gateway", &[], "").context("the gateway's state")?.json();
    let total = |name: &str| totals["totals"][name].as_u64().unwrap_or_default();
    Ok(Figures { kills, answered, retries: total("retries"), refused: total("retriesRefused") })
}

/// Returns the number of healthy instances of the role that the gateway knows.
fn routes(gateway: &Server) -> usize {
    let Some(state) = gateway.ask("GET /gateway", &[], "") else { return 0 };
    let state = state.json();
    let instances = state["instances"].as_array().map(Vec::as_slice).unwrap_or_default();
    instances.iter().filter(|one| one["service"] == ROLE && one["health"] == "passing").count()
}
