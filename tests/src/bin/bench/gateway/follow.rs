//! Measures the time until the gateway's routes show that an instance, which is a real node, started, left,
//! was killed, or was taken out of service.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{
    hearsay,
    server::{LOOK, Plan, Server, stop},
    sighting,
    statistics::Times,
};

/// Service whose instances come and go. It is the role of their nodes.
const ROLE: &str = "grading";
/// Pause between two kills. If an observer accuses more than four others in ten seconds, its report does not
/// suffice alone (`docs/design/membership.md`). In a cluster of three, the next crash would then take 0.7 s.
const KILL_EVERY: Duration = Duration::from_millis(2600);
/// Time within which the gateway must show a change.
const BOUND: Duration = Duration::from_secs(20);

/// Times until the gateway's routes show each kind of change.
pub(crate) struct Figures {
    pub(crate) times: Vec<(&'static str, Times)>,
}

impl Figures {
    pub(crate) fn json(&self) -> Value {
        let of = |(what, times): &(&str, Times)| {
            let at = |percent| times.percentile(percent).to_string();
            json!({ "what": what, "p50": at(50), "p99": at(99), "max": at(100), "samples": times.len() })
        };
        self.times.iter().map(of).collect()
    }
}

/// A gateway, and the folder and the next number for further nodes.
struct Scene {
    gateway: Server,
    folder: std::path::PathBuf,
    next: usize,
}

impl Scene {
    fn plan(&mut self) -> (usize, Plan) {
        self.next += 1;
        let plan = Plan::new(&self.folder, self.next, ROLE, &[0]).ephemeral();
        (self.next, plan)
    }

    /// Returns the health of a node's instance, as the gateway shows it.
    fn health(&self, index: usize) -> Option<String> {
        let state = self.gateway.ask("GET /gateway", &[], "")?.json();
        let name = sighting::name(index);
        let instance = state["instances"].as_array()?.iter().find(|one| one["node"] == name)?.clone();
        Some(instance["health"].as_str()?.to_owned())
    }

    /// Waits until the gateway shows this health. Returns the microseconds that it took.
    fn until(&self, index: usize, health: Option<&str>, since: Instant) -> Option<u64> {
        while self.health(index).as_deref() != health {
            if since.elapsed() > BOUND {
                return None;
            }
            thread::sleep(LOOK);
        }
        u64::try_from(since.elapsed().as_micros()).ok()
    }
}

/// # Errors
/// A node does not start or does not answer.
pub(crate) fn measure(changes: usize, folder: &Path) -> Result<Figures> {
    let options = ["--gateway", "127.0.0.1:8080"];
    let gateway = Plan::new(folder, 0, "gateway", &[]).ephemeral().with(&options).start()?;
    let mut scene = Scene { gateway, folder: folder.to_owned(), next: 0 };
    // This instance stays, and is a second observer of the others.
    let (stays, plan) = scene.plan();
    let _stays = plan.start()?;
    ensure!(scene.until(stays, Some("passing"), Instant::now()).is_some(), "the gateway has no route");
    let mut times = [
        ("an instance starts, from its first answer", Vec::new()),
        ("it is taken out of service", Vec::new()),
        ("it is put back", Vec::new()),
        ("it leaves (SIGTERM)", Vec::new()),
        ("it is killed (kill -9)", Vec::new()),
    ];
    let mut killed = Instant::now();
    for change in 0..changes * 2 {
        let (index, plan) = scene.plan();
        let mut node = plan.spawn()?;
        node.until("it answers", |node| node.answers("/readyz"))?;
        times[0].1.push(scene.until(index, Some("passing"), Instant::now()));
        for (which, enable, health) in [(1, true, "critical"), (2, false, "passing")] {
            let asked = Instant::now();
            hearsay::set_maintenance(index, enable)?;
            times[which].1.push(scene.until(index, Some(health), asked));
        }
        if change % 2 == 1 {
            thread::sleep(KILL_EVERY.saturating_sub(killed.elapsed()));
            killed = Instant::now();
        }
        let asked = Instant::now();
        if change % 2 == 0 {
            node.process.signal(Signal::TERM)?;
            times[3].1.push(scene.until(index, None, asked));
            stop(&mut node, Signal::TERM).ok();
        } else {
            node.process.signal(Signal::KILL)?;
            times[4].1.push(scene.until(index, None, asked));
        }
        if change % 10 == 9 {
            eprintln!("{} of {} instances came and went", change + 1, changes * 2);
        }
    }
    let figures = times.map(|(what, times)| (what, Times::new(times, BOUND.as_secs())));
    Ok(Figures { times: figures.into() })
}
