//! Instances are killed under load: what do those notice who ask for something that may be asked twice?

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
    dialect::{Dialect, get},
    load::{Answered, Load},
    server::{Plan, Server, stop},
};

/// Instances at any time but after a kill.
pub(crate) const INSTANCES: usize = 3;
/// Connections that ask.
pub(crate) const CONNECTIONS: usize = 16;
/// Between the start of the load and a kill, and after it.
const AROUND: Duration = Duration::from_millis(700);
const ROLE: &str = "grading";
const PORT: u16 = 8080;

/// What came of it.
pub(crate) struct Figures {
    pub(crate) kills: usize,
    pub(crate) answered: Answered,
    /// What the gateway counted.
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
            dialect: Dialect::Http,
            requests: vec![vec![get(&format!("/{ROLE}/students"))]; CONNECTIONS],
            warm_up: AROUND / 2,
            time: AROUND * 2,
        };
        // The load has a thread of its own; processes stay with this one.
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

/// Healthy instances of the role, as the gateway knows them.
fn routes(gateway: &Server) -> usize {
    let Some(state) = gateway.ask("GET /gateway", &[], "") else { return 0 };
    let state = state.json();
    let instances = state["instances"].as_array().map(Vec::as_slice).unwrap_or_default();
    instances.iter().filter(|one| one["service"] == ROLE && one["health"] == "passing").count()
}
