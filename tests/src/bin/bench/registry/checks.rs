//! Measures one node that runs five thousand health checks: its resource usage, and how many checks begin
//! late. The checks are HTTP requests, one for each instance, and all instances are one program.

use std::{path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::program::Program;
use crate::{
    load::send_all,
    protocol::post,
    server::Plan,
    usage::{Idle, Reading},
};

/// Number of instances, each with one check.
pub(crate) const CHECKS: usize = 5000;
/// Interval of each check.
const INTERVAL: Duration = Duration::from_secs(10);
/// Measured time, after two intervals that do not count.
const TIME: Duration = Duration::from_secs(30);
const CONNECTIONS: usize = 16;

/// Figures of the checks.
pub(crate) struct Figures {
    pub(crate) runs: u64,
    /// Number of runs that began more than a second late.
    pub(crate) late: u64,
    pub(crate) idle: Idle,
}

impl Figures {
    pub(super) fn json(&self) -> Value {
        json!({ "runs": self.runs, "late": self.late, "node": self.idle })
    }
}

/// # Errors
/// The node does not start, or refuses a registration.
pub(super) fn measure(folder: &Path) -> Result<Figures> {
    let program = Program::start(None, &[])?;
    let mut node = Plan::new(&folder.join("checks"), 0, "", &[]).start()?;
    let request = |number: usize| {
        let check = json!({ "http": "/health", "interval": "10s", "timeout": "2s" });
        let body = json!({ "name": "checked", "id": format!("checked-{number}"), "port": program.port, "checks": [check] });
        post("/services", "application/json", &body.to_string())
    };
    let requests: Vec<Vec<u8>> = (0..CHECKS).map(request).collect();
    let took = send_all(node.address, &requests, CONNECTIONS)?;
    eprintln!("{CHECKS} checks registered in {:.1} s", took.as_secs_f64());
    node.until("all pass", |node| {
        let reply = node.ask("GET /services/checked?health=passing", &[], "");
        let count = reply.and_then(|reply| reply.json()["services"]["checked"].as_array().map(Vec::len));
        thread::sleep(Duration::from_millis(500));
        count == Some(CHECKS)
    })?;
    thread::sleep(INTERVAL * 2);
    let look = || {
        let runs = node.metric("hearsay_check_runs_total").context("hearsay_check_runs_total")?;
        let late = node.metric("hearsay_check_late_total").context("hearsay_check_late_total")?;
        Ok::<_, anyhow::Error>((runs, late, Reading::take([node.process.pid()].into_iter())?))
    };
    let first = look()?;
    thread::sleep(TIME);
    let last = look()?;
    let idle = last.2.since(&first.2, TIME);
    Ok(Figures { runs: last.0 - first.0, late: last.1 - first.1, idle })
}
