//! `bench swarms`: measures the traffic and reaction times of up to thousands of nodes that run in one
//! process (without HTTP and disk), because the machine cannot run as many processes.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use hearsay_protocol::MemberState;
use hearsay_tests::{Cluster as _, NodeRef, Swarms};
use serde::{Deserialize, Serialize};

use crate::{
    clock::Moment,
    machine,
    namespace::{self, Place},
    statistics::Events,
    table::Table,
    usage::{Idle, Reading},
};

/// Usage.
pub(crate) const USAGE: &str = "\
bench swarms [OPTIONS]    many nodes in one process; needs root for a network namespace
  --sizes LIST            numbers of nodes (10,1000)
  --idle-seconds N        for how long idling is measured (60)
";

/// Nodes started per second. Each start is gossiped to all other nodes; with 1,000 nodes this keeps two
/// processors busy for a seventh of a second.
const STARTS_PER_SECOND: u32 = 6;
/// Time within which all nodes of a cluster must see each other.
const FULL_VIEW_MAX: Duration = Duration::from_secs(600);
/// Time after which unneeded connections of the start are closed.
const SETTLE: Duration = Duration::from_secs(40);
/// Time within which any other event must be known.
const BOUND: Duration = Duration::from_secs(30);
/// Pause between two readings of all nodes. Reading a thousand nodes takes well below a millisecond.
const LOOK: Duration = Duration::from_millis(1);
/// Events of each kind.
const REPEATS: usize = 3;
/// Open files for each node: its listener, about seven connections with both ends in this process, and
/// timers.
const FILES_PER_NODE: u64 = 64;

/// Figures of one size.
#[derive(Serialize, Deserialize)]
pub(crate) struct Figures {
    size: usize,
    full_view_seconds: f64,
    idle: Idle,
    /// Number of nodes that did not see all others alive, summed over readings once a second while idle.
    incomplete: usize,
    change: Events,
    crash: Events,
}

/// Measures and prints.
///
/// # Errors
/// The options are wrong, no namespace can be created, or a cluster did not become complete.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let (mut sizes, mut idle) = (vec![10, 1000], 60u64);
    let mut arguments = arguments.iter();
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} takes a value\n{USAGE}"))?;
        match name.as_str() {
            "--sizes" => {
                sizes = value.split(',').map(str::parse).collect::<Result<_, _>>().context("--sizes")?
            }
            "--idle-seconds" => idle = value.parse().context("--idle-seconds")?,
            _ => bail!("no option {name}\n{USAGE}"),
        }
    }
    ensure!(sizes.iter().all(|size| (3..=5000).contains(size)), "sizes are from 3 to 5000");
    ensure!((1..=3600).contains(&idle), "idle seconds are from 1 to 3600");
    if let Place::Done = namespace::enter()? {
        return Ok(());
    }
    print!("{}", table(&measure_all(&sizes, idle)?));
    Ok(())
}

/// Measures each size in a separate process.
///
/// # Errors
/// One of the processes failed.
pub(crate) fn measure_all(sizes: &[usize], idle_seconds: u64) -> Result<Vec<Figures>> {
    let measured = sizes.iter().map(|size| {
        let output = Command::new(std::env::current_exe()?)
            .args(["swarms-of", &size.to_string(), &idle_seconds.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "{size} swarms: {}", output.status);
        Ok(serde_json::from_slice(&output.stdout)?)
    });
    measured.collect()
}

/// Runs the process of one size, which prints its figures as JSON.
///
/// # Errors
/// The cluster did not become complete, or some node missed an event.
pub(crate) fn run_one(arguments: &[String]) -> Result<()> {
    let [size, idle_seconds] = arguments else { bail!("swarms-of SIZE IDLE_SECONDS") };
    let figures = measure(size.parse()?, Duration::from_secs(idle_seconds.parse()?))?;
    print!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

fn measure(size: usize, idle: Duration) -> Result<Figures> {
    machine::allow_files(size as u64 * FILES_PER_NODE)?;
    let mut swarms = Swarms::new()?;
    let mut nodes: Vec<NodeRef> = Vec::new();
    let started = Instant::now();
    for i in 0..size {
        // Each node joins through the oldest node and one in the middle, as with `--join` and a seed list.
        let contacts: BTreeSet<usize> = [0, i / 2].into_iter().filter(|contact| *contact < i).collect();
        let contacts: Vec<NodeRef> = contacts.into_iter().map(|contact| nodes[contact]).collect();
        nodes.push(swarms.start(&format!("n{i}"), &contacts)?);
        if i % 100 == 99 {
            eprintln!("{size} swarms: {} started, {:.0?}", i + 1, started.elapsed());
        }
        let due = started + Duration::from_secs(1) * u32::try_from(i)? / STARTS_PER_SECOND;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let mut told = Instant::now();
    while !is_whole(&swarms, &nodes) {
        ensure!(started.elapsed() < FULL_VIEW_MAX, "{size} swarms are not whole after {FULL_VIEW_MAX:?}");
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            eprintln!("{size} swarms: {}, {:.0?}", views(&swarms, &nodes), started.elapsed());
        }
        // The pause is long, because reading a million entries takes processor time that the nodes need.
        thread::sleep(LOOK * u32::try_from(size)?);
    }
    let full_view_seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "{size} swarms: whole after {full_view_seconds:.1} s; settling for {SETTLE:?}, idling for {idle:?}"
    );
    thread::sleep(SETTLE);

    let me = std::process::id();
    let before = Reading::take([me].into_iter())?;
    let began = Instant::now();
    let mut missing = 0;
    while began.elapsed() < idle {
        thread::sleep(Duration::from_secs(1));
        missing += incomplete(&swarms, &nodes);
    }
    let idle = Reading::take([me].into_iter())?.since(&before, began.elapsed()).shared_by(size);

    let mut change = Events::new(BOUND.as_secs());
    let mut crash = Events::new(BOUND.as_secs());
    for repeat in 0..REPEATS {
        eprintln!("{size} swarms: event {} of {REPEATS}", repeat + 1);
        let subject = nodes[1 + (repeat * 7919) % (nodes.len() - 1)];
        let observers: Vec<NodeRef> = nodes.iter().copied().filter(|node| *node != subject).collect();
        let indices: Vec<u64> = observers.iter().map(|node| swarms.services_index(*node)).collect();
        let at = Moment::now();
        swarms.maintain(subject, true)?;
        change.times_us.push(watch(at, &observers, |i, node| swarms.services_index(node) > indices[i]));
        let at = Moment::now();
        swarms.crash(subject);
        crash.times_us.push(watch(at, &observers, |_, node| {
            swarms.state_of(node, subject) == Some(MemberState::Failed)
        }));
        nodes = observers;
        let since = Instant::now();
        while !is_whole(&swarms, &nodes) && since.elapsed() < BOUND {
            thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(Figures { size, full_view_seconds, idle, incomplete: missing, change, crash })
}

fn incomplete(swarms: &Swarms, nodes: &[NodeRef]) -> usize {
    nodes.iter().filter(|node| swarms.count(**node, MemberState::Alive) != nodes.len()).count()
}

/// Describes the average view of the nodes, for progress lines.
fn views(swarms: &Swarms, nodes: &[NodeRef]) -> String {
    let mean = |state| {
        let sum: usize = nodes.iter().map(|node| swarms.count(*node, state)).sum();
        sum as f64 / nodes.len() as f64
    };
    format!(
        "{} incomplete; a node sees {:.1} alive, {:.1} suspect, {:.1} failed",
        incomplete(swarms, nodes),
        mean(MemberState::Alive),
        mean(MemberState::Suspect),
        mean(MemberState::Failed)
    )
}

fn is_whole(swarms: &Swarms, nodes: &[NodeRef]) -> bool {
    nodes.iter().all(|node| swarms.count(*node, MemberState::Alive) == nodes.len()) && swarms.agree(nodes)
}

/// Returns when each observer knew of an event, by repeated readings.
fn watch(since: Moment, observers: &[NodeRef], knows: impl Fn(usize, NodeRef) -> bool) -> Vec<Option<u64>> {
    let mut times = vec![None; observers.len()];
    let start = Instant::now();
    while start.elapsed() < BOUND && times.iter().any(Option::is_none) {
        for (i, node) in observers.iter().enumerate() {
            if times[i].is_none() && knows(i, *node) {
                times[i] = Some(Moment::now().micros_since(since));
            }
        }
        thread::sleep(LOOK);
    }
    times
}

/// Prints the figures, and the ratio of the largest size to the smallest.
pub(crate) fn table(figures: &[Figures]) -> String {
    let mut table = Table::new(&[
        "swarms in one process",
        "all see all after",
        "idle B/s per node",
        "CPU per node",
        "RSS per node",
        "change p50 / p99",
        "crash p50 / p99",
        "incomplete views while idle",
    ]);
    for f in figures {
        let pair = |events: &Events| {
            let pairs = events.pairs();
            format!("{} / {}", pairs.percentile(50), pairs.percentile(99))
        };
        table.row(vec![
            f.size.to_string(),
            format!("{:.1} s", f.full_view_seconds),
            format!("{:.0}", f.idle.bytes_per_second),
            format!("{:.3} %", f.idle.cpu_percent),
            format!("{:.1} MB", f.idle.resident_kib_p50 as f64 * 1024.0 / 1e6),
            pair(&f.change),
            pair(&f.crash),
            f.incomplete.to_string(),
        ]);
    }
    let mut text = table.to_string();
    if let (Some(least), Some(most)) =
        (figures.iter().min_by_key(|f| f.size), figures.iter().max_by_key(|f| f.size))
        && least.size != most.size
    {
        let ratio = most.idle.bytes_per_second / least.idle.bytes_per_second;
        _ = write!(
            text,
            "\nBytes per node and second at {} are {ratio:.2} times those at {}.\n",
            most.size, least.size
        );
    }
    text
}
