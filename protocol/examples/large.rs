//! A large cluster, simulated: how long news takes, what being idle costs, and what it takes to compute that.
//!
//! ```text
//! cargo run --release -p hearsay-protocol --features sim --example large -- --nodes 2000 --seed 1
//! ```
//!
//! Prints one line of JSON. Messages and bytes are those of gossip and anti-entropy, without the pings: three a second each way, of a
//! byte. What goes on meanwhile goes to stderr. Times in it are virtual unless they say `wall`.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use hearsay_protocol::{
    config::Config,
    io::Command,
    providers::MemberState,
    record::{Health, Instance},
    sim::{NodeIndex, Sim},
};

/// Newcomers in each second of the growth.
const JOINS_PER_S: u32 = 50;
/// For how long the idle cluster is measured: four of its comparisons.
const IDLE: Duration = Duration::from_secs(60);
/// How long it may take until all know something.
const BOUND: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let (mut nodes, mut seed) = (2000usize, 1u64);
    let mut args = std::env::args().skip(1);
    while let Some(option) = args.next() {
        let value = args.next();
        let taken = match (option.as_str(), value.as_deref()) {
            ("--nodes", Some(value)) => value.parse().map(|n| nodes = n).is_ok(),
            ("--seed", Some(value)) => value.parse().map(|s| seed = s).is_ok(),
            _ => false,
        };
        if !taken {
            eprintln!("usage: large [--nodes 2000] [--seed 1]");
            return ExitCode::from(2);
        }
    }
    if nodes < 10 {
        eprintln!("large: at least 10 nodes");
        return ExitCode::from(2);
    }
    match run(nodes, seed) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("large: {what}");
            ExitCode::FAILURE
        }
    }
}

fn run(nodes: usize, seed: u64) -> Result<String, String> {
    // The only clock here; it measures the computation and never reaches the simulation.
    #[allow(clippy::disallowed_methods)]
    let begin = Instant::now();
    let mut sim = Sim::new(seed, Config::default());
    let say = |sim: &Sim, what: &str| {
        let (virtual_s, wall_s) = (sim.now().since_start().as_secs_f64(), begin.elapsed().as_secs_f64());
        eprintln!("{wall_s:8.1} s wall {virtual_s:8.2} s virtual {:6} MB  {what}", peak_rss_mb());
    };

    sim.add(None);
    for index in 1..nodes {
        let contact = sim.pick(index);
        let newcomer = sim.add(Some(contact));
        let other = sim.pick(index);
        sim.hint(newcomer, other);
        sim.run_for(Duration::from_secs(1) / JOINS_PER_S);
        if index % 100 == 0 {
            say(&sim, &format!("{index} nodes"));
        }
    }
    let joined = until(&mut sim, "all know all", Sim::has_converged)?;
    say(&sim, "all know all");
    // Connections that served to join are given up.
    sim.run_for(Duration::from_secs(30));

    let (messages, bytes) = (sim.delivered, sim.bytes);
    sim.run_for(IDLE);
    let per = IDLE.as_secs_f64() * nodes as f64;
    let (messages, bytes) = ((sim.delivered - messages) as f64 / per, (sim.bytes - bytes) as f64 / per);
    say(&sim, "idle");

    // Apart from each other, and not the first, which has been there for longest.
    let [changes, leaves, crashes, freezes] = [1, 2, 3, 4].map(|i| i * nodes / 5);
    sim.command(changes, Command::SetInstance("grading".into(), Box::new(critical())));
    let change = until(&mut sim, "the change is known", |sim| {
        let id = sim.nodes()[changes].id();
        let shows = |of: NodeIndex| {
            sim.nodes()[of]
                .table()
                .providers("grading")
                .any(|p| p.node_id == id && p.instance.health == Health::Critical)
        };
        (0..nodes).all(shows)
    })?;
    say(&sim, "the change is known");
    sim.command(leaves, Command::Leave);
    let leave = until(&mut sim, "the farewell is known", |sim| sim.all_believe(leaves, MemberState::Left))?;
    sim.crash(leaves);
    say(&sim, "the farewell is known");
    sim.crash(crashes);
    let crash = until(&mut sim, "the crash is known", |sim| sim.all_believe(crashes, MemberState::Failed))?;
    say(&sim, "the crash is known");
    sim.freeze(freezes);
    let freeze = until(&mut sim, "the freeze is known", |sim| sim.all_believe(freezes, MemberState::Failed))?;
    say(&sim, "the freeze is known");
    let false_alarms = sim.false_alarms.len();

    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(format!(
        "{{\"nodes\":{nodes},\"seed\":{seed},\"joins_per_s\":{JOINS_PER_S},\"all_know_all_ms\":{:.1},\
         \"change_ms\":{:.1},\"leave_ms\":{:.1},\"crash_ms\":{:.1},\"freeze_ms\":{:.1},\
         \"idle_messages_per_node_s\":{messages:.3},\"idle_bytes_per_node_s\":{bytes:.1},\
         \"false_alarms\":{false_alarms},\"wall_s\":{:.1},\"peak_rss_mb\":{}}}",
        ms(joined),
        ms(change),
        ms(leave),
        ms(crash),
        ms(freeze),
        begin.elapsed().as_secs_f64(),
        peak_rss_mb(),
    ))
}

/// Runs until something is true of all, looking every millisecond: to look after each event would cost more than the events.
fn until(sim: &mut Sim, what: &str, holds: impl Fn(&Sim) -> bool) -> Result<Duration, String> {
    let begin = sim.now();
    while !holds(sim) {
        if sim.now().since(begin) > BOUND {
            return Err(format!("not within {} s: {what}", BOUND.as_secs()));
        }
        sim.run_for(Duration::from_millis(1));
    }
    Ok(sim.now().since(begin))
}

fn critical() -> Instance {
    Instance {
        service: "grading".into(),
        address: "10.77.0.1".into(),
        port: 7500,
        url: "http://10.77.0.1:7500".into(),
        tags: vec![],
        meta: Default::default(),
        health: Health::Critical,
        since_ms: 0,
    }
}

/// The most memory that this process has held, as Linux counts it; 0 elsewhere.
fn peak_rss_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
