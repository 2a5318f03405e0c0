//! `bench simulation`: one simulated cluster, larger than any that could be run. Measures how fast news
//! spreads, the idle cost, and the cost of the simulation. All times are virtual unless stated otherwise. The
//! same seed gives the same figures.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use hearsay_protocol::{
    Command, Config, Health, Instance, MemberState,
    sim::{NodeIndex, Sim},
};

use crate::{machine, report, table::Table};

/// Usage.
pub(crate) const USAGE: &str = "\
bench simulation [OPTIONS]  one large simulated cluster
  --nodes N               how many (2000)
  --seed N                the same seed gives the same figures (1)
  --out FILE              the page to write (docs/bench/simulation.md)
";

/// New nodes per second while the cluster grows.
const JOINS_PER_S: u32 = 50;
/// Time after which connections that only served to join are closed.
const SETTLE: Duration = Duration::from_secs(30);
/// Time for which the idle cluster is measured.
const IDLE: Duration = Duration::from_secs(60);
/// Time within which all nodes must know of an event.
const BOUND: Duration = Duration::from_secs(120);
/// Memory for the knowledge of one node about another, with a margin.
const BYTES_PER_PAIR: u64 = 4_500;

/// Simulates, prints and writes the page.
///
/// # Errors
/// The options are wrong, there is too little memory, or an event was not known on all nodes in time.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (mut nodes, mut seed, mut out) = (2000usize, 1u64, "docs/bench/simulation.md".to_owned());
    let mut arguments = arguments.iter();
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} takes a value\n{USAGE}"))?;
        match name.as_str() {
            "--nodes" => nodes = value.parse().context("--nodes")?,
            "--seed" => seed = value.parse().context("--seed")?,
            "--out" => out.clone_from(value),
            _ => bail!("no option {name}\n{USAGE}"),
        }
    }
    ensure!((10..=10_000).contains(&nodes), "nodes are from 10 to 10000");
    let needed = (nodes * nodes) as u64 * BYTES_PER_PAIR;
    if let Some(free) = machine::available_memory() {
        ensure!(
            needed <= free,
            "{nodes} nodes that remember each other take {:.1} GB of memory, and {:.1} are free: ask for fewer by --nodes",
            needed as f64 / 1e9,
            free as f64 / 1e9
        );
    }
    let table = simulate(nodes, seed)?;
    print!("{table}");
    let page = format!(
        "# A large cluster, simulated\n\n\
         Computed {} on {}, by `tests/run --bench simulation --nodes {nodes} --seed {seed}`.\n\n{table}\n\
         Times are virtual, from what happens until all know, except that of the computation. Messages take 0.05 to 2 ms, and computing\n\
         takes no time. Idling is what gossip and anti-entropy send, without pings and without what TCP adds.\n",
        machine::date(),
        machine::describe(),
    );
    report::write(Path::new(&out), &page)
}

fn simulate(nodes: usize, seed: u64) -> Result<Table> {
    let begin = Instant::now();
    let mut sim = Sim::new(seed, Config::default());
    let say = |sim: &Sim, what: &str| {
        let (virtual_s, wall_s) = (sim.now().since_start().as_secs_f64(), begin.elapsed().as_secs_f64());
        eprintln!(
            "{wall_s:6.0} s, {virtual_s:7.2} s virtual, {:6} MB: {what}",
            machine::peak_memory() / 1_000_000
        );
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
    sim.run_for(SETTLE);

    let (messages, bytes) = (sim.delivered, sim.bytes);
    sim.run_for(IDLE);
    let per = IDLE.as_secs_f64() * nodes as f64;
    let (messages, bytes) = ((sim.delivered - messages) as f64 / per, (sim.bytes - bytes) as f64 / per);
    say(&sim, "idle");

    // The nodes are far apart in the order of their start. The first node is left out, because it has been
    // there for longest.
    let [changes, leaves, crashes, freezes] = [1, 2, 3, 4].map(|i| i * nodes / 5);
    sim.command(changes, Command::SetInstance("grading".into(), Box::new(critical())));
    let change = until(&mut sim, "the change is known", |sim| {
        let id = sim.nodes()[changes].id();
        let shows = |of: NodeIndex| {
            let mut providers = sim.nodes()[of].table().providers("grading");
            providers.any(|p| p.node_id == id && p.instance.health == Health::Critical)
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

    let mut table = Table::new(&["what", "figure"]);
    let mut row = |what: &str, figure: String| table.row(vec![what.into(), figure]);
    let ms = |time: Duration| format!("{} ms", time.as_millis());
    row("nodes, joining 50 a second", nodes.to_string());
    row("all know all, after the last join", ms(joined));
    row("a change is known", ms(change));
    row("a farewell is known", ms(leave));
    row("a crash is known", ms(crash));
    row("a freeze is known", ms(freeze));
    row("idle, messages per node and minute", format!("{:.1}", messages * 60.0));
    row("idle, bytes per node and second", format!("{bytes:.1}"));
    row("live nodes believed dead", sim.false_alarms.len().to_string());
    row("computing took", format!("{:.0} s", begin.elapsed().as_secs_f64()));
    row("memory", format!("{:.1} GB", machine::peak_memory() as f64 / 1e9));
    Ok(table)
}

/// Runs until a condition holds, which is checked every millisecond. A check after each event would cost more
/// than the events.
fn until(sim: &mut Sim, what: &str, holds: impl Fn(&Sim) -> bool) -> Result<Duration> {
    let begin = sim.now();
    while !holds(sim) {
        ensure!(sim.now().since(begin) <= BOUND, "not within {} s: {what}", BOUND.as_secs());
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
        ..Instance::default()
    }
}
