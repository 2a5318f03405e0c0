//! Tests by randomized simulation: scenarios with mixed faults from a seed, the invariants that hold in all
//! of them, and the agreement of all nodes afterwards.
//!
//! Each seed determines a cluster of 5 to 50 nodes, and faults for 30 to 120 seconds, several at once:
//! crashes, restarts, freezes, departures, joins, changes of instances, partitions, one-way cuts, loss and
//! delay. Then all faults end, and the nodes must agree again within a bound. At any time users see a
//! consistent table, no node spins, and every request is answered. While the network has no fault, no live
//! node is declared failed.
//!
//! `SEEDS=50` runs 50 seeds. For a seed that fails, the test prints the command that logs its scenario.

// In a test, a failed `unwrap` is a failed test.
#![allow(clippy::unwrap_used)]

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hearsay_protocol::{
    Command, Config, Health, Index, Instance, MemberState, Time,
    sim::{FalseAlarm, NodeIndex, Sim, Weather},
};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// Nodes of a scenario, including those that join later.
const NODES_MAX: usize = 60;
/// Interval at which the invariants are checked.
const SLICE: Duration = Duration::from_millis(100);
/// Time after the last fault within which all nodes must agree. A partition alone takes less than ten
/// seconds. In addition, a node may just have thawed with connections that are broken at one end, or its last
/// dial may have been lost.
const AGREE_WITHIN: Duration = Duration::from_secs(30);
/// Time after a fault of the network or a freeze in which verdicts may still be its effect.
const AFTERMATH: Duration = Duration::from_secs(20);
/// Inputs of a node in one second, at most. A node that spins would get a hundred thousand.
const INPUTS_PER_S_MAX: u64 = 5_000;

/// End of a fault or of a departure, scheduled in advance.
#[derive(Debug)]
enum End {
    Thaw(NodeIndex),
    /// The process ends some time after its node left.
    Exit(NodeIndex),
    Start(NodeIndex),
    Unblock(Vec<(NodeIndex, NodeIndex)>),
    Calm,
}

struct Scenario {
    sim: Sim,
    rng: fastrand::Rng,
    verbose: bool,
    /// Whether only processes have faults: they start, crash and leave, but the network and the hosts work.
    sound: bool,
    /// Whether all nodes receive addresses of others from time to time, as by mDNS. Otherwise only nodes
    /// without connections do.
    announced: bool,
    ends: Vec<(Time, End)>,
    blocks: BTreeMap<(NodeIndex, NodeIndex), u32>,
    /// When the network or a host last had a fault.
    unsound: Time,
    offered: BTreeMap<NodeIndex, BTreeMap<String, u16>>,
    indexes: BTreeMap<NodeIndex, Index>,
    inputs: Vec<u64>,
    inputs_max: u64,
    second: Time,
    alarms_excused: usize,
}

struct Outcome {
    nodes: usize,
    agreed_after: Duration,
    inputs_max: u64,
    alarms_excused: usize,
    trace: String,
}

impl Scenario {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed_fa11);
        let mut sim = Sim::new(seed, Config::default());
        sim.verbose = verbose;
        Self {
            sim,
            verbose,
            sound: rng.u8(..4) == 0,
            announced: rng.bool(),
            rng,
            ends: Vec::new(),
            blocks: BTreeMap::new(),
            unsound: Time::ZERO,
            offered: BTreeMap::new(),
            indexes: BTreeMap::new(),
            inputs: Vec::new(),
            inputs_max: 0,
            second: Time::ZERO,
            alarms_excused: 0,
        }
    }

    fn log(&self, line: impl Fn() -> String) {
        if self.verbose {
            println!("{:?} ======== {}", self.sim.now(), line());
        }
    }

    fn up(&self) -> Vec<NodeIndex> {
        (0..self.sim.nodes().len()).filter(|i| self.sim.nodes()[*i].is_up()).collect()
    }

    fn down(&self) -> Vec<NodeIndex> {
        (0..self.sim.nodes().len()).filter(|i| self.sim.nodes()[*i].core().is_none()).collect()
    }

    fn add(&mut self) {
        let contact = self.rng.choice(self.up());
        let index = self.sim.add(contact);
        self.log(|| format!("{index} joins through {contact:?}"));
        self.offered.insert(index, BTreeMap::from([("grading".into(), 7500)]));
    }

    /// Runs the whole scenario.
    fn run(mut self) -> Outcome {
        // Most clusters are small, because they run faster, and each fault affects a larger share of the
        // nodes.
        let nodes = self.rng.usize(5..=50).min(self.rng.usize(5..=50));
        self.log(|| format!("{nodes} nodes, sound: {}, announced: {}", self.sound, self.announced));
        for _ in 0..nodes {
            self.add();
            let pause = self.rng.u64(1..200);
            self.advance(Duration::from_millis(pause));
        }
        self.await_agreement();
        let end = self.sim.now() + S * self.rng.u32(30..=120);
        while self.sim.now() < end {
            let several = if self.rng.u8(..4) == 0 { 3 } else { 1 };
            for _ in 0..several {
                let fault = self.rng.u8(if self.sound { 0..6 } else { 0..12 });
                self.inject_fault(fault);
            }
            let pause = self.rng.u64(50..8_000);
            self.advance(Duration::from_millis(pause));
        }
        // Some faults are still active when all faults are ended.
        for _ in 0..3 {
            let fault = self.rng.u8(if self.sound { 0..6 } else { 6..12 });
            self.inject_fault(fault);
        }
        let pause = self.rng.u64(50..12_000);
        self.advance(Duration::from_millis(pause));
        self.log(|| "everything ends".into());
        for (_, end) in std::mem::take(&mut self.ends) {
            self.end(end);
        }
        let agreed_after = self.await_agreement();
        // After this, no further verdict may follow.
        self.log(|| format!("all agree after {agreed_after:?}"));
        let alarms = self.alarms_excused;
        self.advance(S * 15);
        assert_eq!(self.alarms_excused, alarms, "a live node was declared failed after all had agreed");
        assert_eq!(self.disagreement(), None, "they had agreed");
        Outcome {
            nodes: self.sim.nodes().len(),
            agreed_after,
            inputs_max: self.inputs_max,
            alarms_excused: self.alarms_excused,
            trace: self.sim.trace(),
        }
    }

    /// Advances time, ends the faults that are due, and checks the invariants.
    fn advance(&mut self, time: Duration) {
        let until = self.sim.now() + time;
        while self.sim.now() < until {
            self.sim.run_until(until.min(self.sim.now() + SLICE));
            let now = self.sim.now();
            while let Some(i) = self.ends.iter().position(|(at, _)| *at <= now) {
                let (_, end) = self.ends.remove(i);
                self.end(end);
            }
            if now.since(self.second) >= S {
                self.run_each_second();
                self.second = now;
            }
            self.check_invariants();
        }
    }

    fn end(&mut self, end: End) {
        self.log(|| format!("{end:?}"));
        match end {
            End::Thaw(i) if self.sim.nodes()[i].is_frozen() => self.sim.thaw(i),
            End::Exit(i) if self.sim.nodes()[i].core().is_some() => self.sim.crash(i),
            End::Start(i) => self.start(i),
            End::Thaw(_) | End::Exit(_) => (),
            End::Unblock(pairs) => {
                let mut free = Vec::new();
                for pair in pairs {
                    let count = self.blocks.get_mut(&pair).unwrap();
                    *count -= 1;
                    if *count == 0 {
                        self.blocks.remove(&pair);
                        free.push(pair);
                    }
                }
                self.sim.unblock(free);
            }
            End::Calm => self.sim.weather = Weather::default(),
        }
    }

    fn start(&mut self, i: NodeIndex) {
        if self.sim.nodes()[i].core().is_none() {
            let contact = self.rng.choice(self.up());
            self.log(|| format!("{i} starts, through {contact:?}"));
            self.sim.start(i, contact);
            self.offered.insert(i, BTreeMap::from([("grading".into(), 7500)]));
        }
    }

    fn later(&mut self, ms: std::ops::Range<u64>, end: End) {
        let at = self.sim.now() + Duration::from_millis(self.rng.u64(ms));
        self.ends.push((at, end));
    }

    /// Injects a fault. Numbers below 6 are faults of processes, the others are faults of the network or of
    /// hosts.
    fn inject_fault(&mut self, fault: u8) {
        let up = self.up();
        let node = *self.rng.choice(&up).unwrap();
        let expendable = up.len() > 3;
        match fault {
            0 | 1 if expendable => {
                self.log(|| format!("{node} crashes"));
                self.sim.crash(node);
                // A supervisor often restarts the process at once.
                if self.rng.bool() {
                    self.later(1..5_000, End::Start(node));
                }
            }
            2 => {
                if let Some(i) = self.rng.choice(self.down()) {
                    self.start(i);
                }
            }
            3 if expendable => {
                self.log(|| format!("{node} leaves"));
                self.sim.command(node, Command::Leave);
                self.offered.insert(node, BTreeMap::new());
                self.later(20..700, End::Exit(node));
            }
            4 if self.sim.nodes().len() < NODES_MAX => self.add(),
            5 => (0..self.rng.u8(1..8)).for_each(|_| self.change(node)),
            6 | 7 if expendable => {
                self.log(|| format!("{node} freezes"));
                self.sim.freeze(node);
                self.later(100..20_000, End::Thaw(node));
            }
            8 => {
                // The pairs include nodes that join later, because each of them would connect the two sides.
                let (left, right): (Vec<_>, Vec<_>) = (0..NODES_MAX).partition(|_| self.rng.bool());
                let pairs = left.iter().flat_map(|a| right.iter().flat_map(|b| [(*a, *b), (*b, *a)]));
                self.block(pairs.collect());
            }
            9 => {
                let count = self.rng.usize(1..=up.len());
                let pairs: BTreeSet<_> = (0..count)
                    .map(|_| (*self.rng.choice(&up).unwrap(), *self.rng.choice(&up).unwrap()))
                    .collect();
                self.block(pairs.into_iter().filter(|(a, b)| a != b).collect());
            }
            10 => {
                self.sim.weather.loss_percent = self.rng.u8(1..=30);
                self.log(|| format!("loss of {} %", self.sim.weather.loss_percent));
                self.later(1_000..40_000, End::Calm);
            }
            11 => {
                self.sim.weather.delay_max = MS * self.rng.u32(2..=200);
                self.log(|| format!("delay up to {:?}", self.sim.weather.delay_max));
                self.later(1_000..40_000, End::Calm);
            }
            _ => (),
        }
    }

    fn block(&mut self, pairs: Vec<(NodeIndex, NodeIndex)>) {
        self.log(|| format!("cut {pairs:?}"));
        for pair in &pairs {
            *self.blocks.entry(*pair).or_default() += 1;
            self.sim.block(pair.0, pair.1);
        }
        self.later(500..30_000, End::Unblock(pairs));
    }

    /// Changes the instances of a node.
    fn change(&mut self, node: NodeIndex) {
        if self.offered[&node].is_empty() {
            return;
        }
        let (id, port) = (format!("i{}", self.rng.u8(..6)), self.rng.u16(1..));
        let exists = self.offered[&node].contains_key(&id);
        self.log(|| format!("{node} changes {id}, {port}, offered before: {exists}"));
        if exists && self.rng.bool() {
            self.sim.command(node, Command::RemoveInstance(id.clone()));
            self.offered.get_mut(&node).unwrap().remove(&id);
        } else {
            let instance = Instance {
                service: "web".into(),
                address: "10.77.0.1".into(),
                port,
                url: format!("http://10.77.0.1:{port}"),
                tags: vec![],
                meta: BTreeMap::new(),
                health: Health::Passing,
                since_ms: 0,
                ..Instance::default()
            };
            self.sim.command(node, Command::SetInstance(id.clone(), Box::new(instance)));
            self.offered.get_mut(&node).unwrap().insert(id, port);
        }
    }

    /// Simulates the discovery of other nodes, which every deployment has outside the core. Also checks how
    /// many inputs each node got.
    fn run_each_second(&mut self) {
        for i in self.up() {
            let alone = self.sim.nodes()[i].core().unwrap().neighbours().next().is_none();
            if alone || self.announced && self.rng.u8(..10) == 0 {
                let of = *self.rng.choice(&self.up()).unwrap();
                if of != i {
                    self.sim.hint(i, of);
                }
            }
        }
        self.inputs.resize(self.sim.nodes().len(), 0);
        for (i, node) in self.sim.nodes().iter().enumerate() {
            let busy = node.inputs() - std::mem::replace(&mut self.inputs[i], node.inputs());
            self.inputs_max = self.inputs_max.max(busy);
            assert!(busy < INPUTS_PER_S_MAX, "node {i} was given {busy} inputs within a second");
        }
    }

    /// Checks the invariants that hold at any time.
    fn check_invariants(&mut self) {
        let now = self.sim.now();
        let weather = &self.sim.weather;
        let frozen = self.sim.nodes().iter().any(|n| n.is_frozen());
        if frozen || !self.blocks.is_empty() || weather.loss_percent > 0 || weather.delay_max > MS * 2 {
            self.unsound = now;
        }
        for (i, node) in self.sim.nodes().iter().enumerate().filter(|(_, n)| n.is_up()) {
            assert_eq!(node.unanswered(), 0, "node {i} has an unanswered request or message");
            let index = node.table().index();
            let before = self.indexes.insert(i, index).unwrap_or_default();
            assert!(before <= index, "the index of node {i} fell");
            if before == index {
                continue;
            }
            assert!(node.core().unwrap().state().len() <= self.sim.nodes().len());
            let names: BTreeSet<&str> = node.table().members().map(|m| m.name.as_str()).collect();
            assert_eq!(names.len(), node.table().members().count(), "node {i} lists a member twice");
            let offers: BTreeSet<(&str, &str)> = ["grading", "web"]
                .iter()
                .flat_map(|s| node.table().providers(s))
                .map(|p| (p.node.as_str(), p.id.as_str()))
                .collect();
            assert_eq!(offers.len(), node.table().providers_len(), "node {i} lists an instance twice");
        }
        for node in self.sim.nodes() {
            assert_eq!(node.fatal, None);
        }
        let alarms = std::mem::take(&mut self.sim.false_alarms);
        for FalseAlarm { at, by, of } in alarms {
            self.log(|| format!("{by} declared {of} failed, which was up, at {at:?}"));
            let excused = !self.sound && at.since(self.unsound) < AFTERMATH;
            assert!(
                excused,
                "{by} declared {of} failed at {at:?} while all was sound, since {:?}",
                self.unsound
            );
            self.alarms_excused += 1;
        }
    }

    /// Waits until all nodes agree.
    fn await_agreement(&mut self) -> Duration {
        let start = self.sim.now();
        loop {
            let disagreement = self.disagreement();
            let took = self.sim.now().since(start);
            match disagreement {
                None => return took,
                Some(what) => assert!(took < AGREE_WITHIN, "no agreement after {took:?}: {what}"),
            }
            self.advance(SLICE);
        }
    }

    /// Describes a difference between two nodes that are up, or a wrong entry of one node; `None`: all agree.
    fn disagreement(&self) -> Option<String> {
        let up = self.up();
        let first = self.sim.nodes()[up[0]].core().unwrap();
        let offered: BTreeSet<(String, String, u16)> = up
            .iter()
            .flat_map(|i| self.offered[i].iter().map(move |(id, port)| (format!("n{i}"), id.clone(), *port)))
            .collect();
        for i in &up {
            let node = &self.sim.nodes()[*i];
            let core = node.core().unwrap();
            for (j, other) in self.sim.nodes().iter().enumerate() {
                let state = core.member_state(other.id());
                let alive = state == Some(MemberState::Alive);
                let gone = matches!(state, None | Some(MemberState::Failed | MemberState::Left));
                if !(if other.is_up() { alive } else { gone }) {
                    return Some(format!("{i} holds {j} {state:?}"));
                }
                if state != first.member_state(other.id()) {
                    return Some(format!("{i} and {} hold different states of {j}", up[0]));
                }
            }
            let listed: BTreeSet<(String, String, u16)> = ["grading", "web"]
                .iter()
                .flat_map(|s| node.table().providers(s))
                .map(|p| (p.node.clone(), p.id.clone(), p.instance.port))
                .collect();
            if let Some(wrong) = listed.symmetric_difference(&offered).next() {
                return Some(format!("{i} lists {wrong:?}, or misses it"));
            }
            if core.state().root() != first.state().root() {
                return Some(format!("{i} and {} have different roots", up[0]));
            }
            if node.table().root_hash() != core.state().root() {
                return Some(format!("{i} shows another root than it has"));
            }
        }
        None
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned()
}

#[test]
fn whatever_befalls_a_cluster_it_agrees_afterwards_and_never_shows_nonsense() {
    if let Some(seed) = number("SEED") {
        let outcome = Scenario::new(seed, true).run();
        println!("{} nodes agreed after {:?}", outcome.nodes, outcome.agreed_after);
        return;
    }
    let seeds = number("SEEDS").unwrap_or(30);
    let next = AtomicU64::new(0);
    let (outcomes, failures) = (Mutex::new(Vec::new()), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    match catch_unwind(AssertUnwindSafe(|| Scenario::new(seed, false).run())) {
                        Ok(outcome) => outcomes.lock().unwrap().push(outcome),
                        Err(panic) => {
                            println!("seed {seed} failed");
                            failures.lock().unwrap().insert(seed, words(&*panic));
                        }
                    }
                }
            });
        }
    });
    let (outcomes, failures) = (outcomes.into_inner().unwrap(), failures.into_inner().unwrap());
    let mut times: Vec<Duration> = outcomes.iter().map(|o| o.agreed_after).collect();
    times.sort();
    if let Some(last) = times.len().checked_sub(1) {
        println!(
            "{} seeds: agreed after p50 {:?}, p90 {:?}, p99 {:?}, max {:?}; at most {} inputs per node and second; {} false alarms while there was a fault",
            times.len(),
            times[last / 2],
            times[last * 9 / 10],
            times[last * 99 / 100],
            times[last],
            outcomes.iter().map(|o| o.inputs_max).max().unwrap_or_default(),
            outcomes.iter().map(|o| o.alarms_excused).sum::<usize>(),
        );
    }
    for (seed, what) in &failures {
        println!("seed {seed}: {what}");
        println!(
            "    SEED={seed} cargo test -p hearsay-protocol --features sim --test seeds -- whatever --nocapture"
        );
    }
    assert!(failures.is_empty(), "{} of {seeds} seeds failed", failures.len());
}

#[test]
fn the_same_seed_tells_the_same_story() {
    for seed in [1, 2, 3] {
        let trace = |seed| Scenario::new(seed, false).run().trace;
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
}
