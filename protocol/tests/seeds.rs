//! A thousand clusters, each with faults of its own: what must be true of all of them.
//!
//! Every seed chooses a cluster of 5 to 50 nodes and what befalls it in 30 to 120 seconds: crashes, restarts, freezes, farewells,
//! newcomers, changes of instances, partitions, one-way cuts, loss and delay, several at once. Then all of it ends, and within a bound
//! all must agree again. Throughout, whatever happens: what users see is consistent, nobody spins, nothing is kept
//! unanswered, and while the network is sound no living node is declared dead.
//!
//! `SEEDS=50` runs fewer. A seed that fails is printed with the command that tells its story.

// In a test, what cannot be unwrapped is the failure.
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
    Time,
    config::Config,
    io::Command,
    providers::{Index, MemberState},
    record::{Health, Instance},
    sim::{FalseAlarm, NodeIndex, Sim, Weather},
};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// The most nodes of a story, newcomers included.
const NODES_MAX: usize = 60;
/// How often everything is looked at.
const SLICE: Duration = Duration::from_millis(100);
/// Within this long after the last fault all agree. A partition alone takes less than ten; on top of that a node may have been thawed
/// a moment ago, with connections that are broken at one end, or its last dial before the end may have met with loss.
const AGREE_WITHIN: Duration = Duration::from_secs(30);
/// For this long after a fault of the network or a freeze, verdicts that it led to may still be on their way.
const AFTERMATH: Duration = Duration::from_secs(20);
/// The most a core is given to do in a second. A node that spins would get a hundred thousand ticks.
const INPUTS_PER_S_MAX: u64 = 5_000;

/// A fault that is in force until it ends.
#[derive(Debug)]
enum End {
    Thaw(NodeIndex),
    /// Its process ends, some time after it said goodbye.
    Exit(NodeIndex),
    Start(NodeIndex),
    Unblock(Vec<(NodeIndex, NodeIndex)>),
    Calm,
}

struct Story {
    sim: Sim,
    rng: fastrand::Rng,
    told: bool,
    /// Neither the network nor the scheduler of any host is at fault in this one, only processes come and go.
    sound: bool,
    /// Others are announced now and then, as by mDNS. Without, an address is asked for only by who is alone.
    announced: bool,
    ends: Vec<(Time, End)>,
    blocks: BTreeMap<(NodeIndex, NodeIndex), u32>,
    /// The last moment at which the network or a host was not sound.
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

impl Story {
    fn new(seed: u64, told: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed_fa11);
        let mut sim = Sim::new(seed, Config::default());
        sim.verbose = told;
        Self {
            sim,
            told,
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

    fn tell(&self, what: impl Fn() -> String) {
        if self.told {
            println!("{:?} ======== {}", self.sim.now(), what());
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
        self.tell(|| format!("{index} joins through {contact:?}"));
        self.offered.insert(index, BTreeMap::from([("grading".into(), 7500)]));
    }

    /// The whole story.
    fn run(mut self) -> Outcome {
        // Mostly few: they are quick, and among few each fault weighs more.
        let nodes = self.rng.usize(5..=50).min(self.rng.usize(5..=50));
        self.tell(|| format!("{nodes} nodes, sound: {}, announced: {}", self.sound, self.announced));
        for _ in 0..nodes {
            self.add();
            let pause = self.rng.u64(1..200);
            self.pass(Duration::from_millis(pause));
        }
        self.agree();
        let end = self.sim.now() + S * self.rng.u32(30..=120);
        while self.sim.now() < end {
            let several = if self.rng.u8(..4) == 0 { 3 } else { 1 };
            for _ in 0..several {
                let fault = self.rng.u8(if self.sound { 0..6 } else { 0..12 });
                self.befall(fault);
            }
            let pause = self.rng.u64(50..8_000);
            self.pass(Duration::from_millis(pause));
        }
        // Some of it is still in force when everything ends.
        for _ in 0..3 {
            let fault = self.rng.u8(if self.sound { 0..6 } else { 6..12 });
            self.befall(fault);
        }
        let pause = self.rng.u64(50..12_000);
        self.pass(Duration::from_millis(pause));
        self.tell(|| "everything ends".into());
        for (_, end) in std::mem::take(&mut self.ends) {
            self.end(end);
        }
        let agreed_after = self.agree();
        // From now on nothing happens, so nothing may happen.
        self.tell(|| format!("all agree after {agreed_after:?}"));
        let alarms = self.alarms_excused;
        self.pass(S * 15);
        assert_eq!(self.alarms_excused, alarms, "somebody was declared dead after all had agreed");
        assert_eq!(self.disagreement(), None, "they had agreed");
        Outcome {
            nodes: self.sim.nodes().len(),
            agreed_after,
            inputs_max: self.inputs_max,
            alarms_excused: self.alarms_excused,
            trace: self.sim.trace(),
        }
    }

    /// Time passes; what is due ends; everything is looked at.
    fn pass(&mut self, time: Duration) {
        let until = self.sim.now() + time;
        while self.sim.now() < until {
            self.sim.run_until(until.min(self.sim.now() + SLICE));
            let now = self.sim.now();
            while let Some(i) = self.ends.iter().position(|(at, _)| *at <= now) {
                let (_, end) = self.ends.remove(i);
                self.end(end);
            }
            if now.since(self.second) >= S {
                self.each_second();
                self.second = now;
            }
            self.look();
        }
    }

    fn end(&mut self, end: End) {
        self.tell(|| format!("{end:?}"));
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
            self.tell(|| format!("{i} starts, through {contact:?}"));
            self.sim.start(i, contact);
            self.offered.insert(i, BTreeMap::from([("grading".into(), 7500)]));
        }
    }

    fn later(&mut self, ms: std::ops::Range<u64>, end: End) {
        let at = self.sim.now() + Duration::from_millis(self.rng.u64(ms));
        self.ends.push((at, end));
    }

    /// Something happens: below 6 to processes, from there on to the network or to hosts.
    fn befall(&mut self, fault: u8) {
        let up = self.up();
        let someone = *self.rng.choice(&up).unwrap();
        let expendable = up.len() > 3;
        match fault {
            0 | 1 if expendable => {
                self.tell(|| format!("{someone} crashes"));
                self.sim.crash(someone);
                // Often a supervisor starts it again at once.
                if self.rng.bool() {
                    self.later(1..5_000, End::Start(someone));
                }
            }
            2 => {
                if let Some(i) = self.rng.choice(self.down()) {
                    self.start(i);
                }
            }
            3 if expendable => {
                self.tell(|| format!("{someone} leaves"));
                self.sim.command(someone, Command::Leave);
                self.offered.insert(someone, BTreeMap::new());
                self.later(20..700, End::Exit(someone));
            }
            4 if self.sim.nodes().len() < NODES_MAX => self.add(),
            5 => (0..self.rng.u8(1..8)).for_each(|_| self.change(someone)),
            6 | 7 if expendable => {
                self.tell(|| format!("{someone} freezes"));
                self.sim.freeze(someone);
                self.later(100..20_000, End::Thaw(someone));
            }
            8 => {
                // Those to come included, each of which would be a bridge.
                let (one, other): (Vec<_>, Vec<_>) = (0..NODES_MAX).partition(|_| self.rng.bool());
                let pairs = one.iter().flat_map(|a| other.iter().flat_map(|b| [(*a, *b), (*b, *a)]));
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
                self.tell(|| format!("loss of {} %", self.sim.weather.loss_percent));
                self.later(1_000..40_000, End::Calm);
            }
            11 => {
                self.sim.weather.delay_max = MS * self.rng.u32(2..=200);
                self.tell(|| format!("delay up to {:?}", self.sim.weather.delay_max));
                self.later(1_000..40_000, End::Calm);
            }
            _ => (),
        }
    }

    fn block(&mut self, pairs: Vec<(NodeIndex, NodeIndex)>) {
        self.tell(|| format!("cut {pairs:?}"));
        for pair in &pairs {
            *self.blocks.entry(*pair).or_default() += 1;
            self.sim.block(pair.0, pair.1);
        }
        self.later(500..30_000, End::Unblock(pairs));
    }

    /// A node offers something else than before.
    fn change(&mut self, node: NodeIndex) {
        if self.offered[&node].is_empty() {
            return;
        }
        let (id, port) = (format!("i{}", self.rng.u8(..6)), self.rng.u16(1..));
        let held = self.offered[&node].contains_key(&id);
        self.tell(|| format!("{node} changes {id}, {port}, offered before: {held}"));
        if held && self.rng.bool() {
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

    /// What is there in every deployment beside the core, and looks for others; and how busy everybody was.
    fn each_second(&mut self) {
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

    /// What must be true at any time.
    fn look(&mut self) {
        let now = self.sim.now();
        let weather = &self.sim.weather;
        let frozen = self.sim.nodes().iter().any(|n| n.is_frozen());
        if frozen || !self.blocks.is_empty() || weather.loss_percent > 0 || weather.delay_max > MS * 2 {
            self.unsound = now;
        }
        for (i, node) in self.sim.nodes().iter().enumerate().filter(|(_, n)| n.is_up()) {
            assert_eq!(node.unanswered(), 0, "node {i} owes an answer or a judgement");
            let index = node.table().index();
            let before = self.indexes.insert(i, index).unwrap_or_default();
            assert!(before <= index, "the index of node {i} fell");
            if before == index {
                continue;
            }
            assert!(node.core().unwrap().state().len() <= self.sim.nodes().len());
            let names: BTreeSet<&str> = node.table().members().map(|m| m.name.as_str()).collect();
            assert_eq!(names.len(), node.table().members().count(), "node {i} lists somebody twice");
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
            self.tell(|| format!("{by} declared {of} dead, which it was not, at {at:?}"));
            let excused = !self.sound && at.since(self.unsound) < AFTERMATH;
            assert!(
                excused,
                "{by} declared {of} dead at {at:?} while all was sound, since {:?}",
                self.unsound
            );
            self.alarms_excused += 1;
        }
    }

    /// Waits until all agree.
    fn agree(&mut self) -> Duration {
        let start = self.sim.now();
        loop {
            let disagreement = self.disagreement();
            let took = self.sim.now().since(start);
            match disagreement {
                None => return took,
                Some(what) => assert!(took < AGREE_WITHIN, "no agreement after {took:?}: {what}"),
            }
            self.pass(SLICE);
        }
    }

    /// What two nodes that are up see differently, or what one sees wrong.
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
                let concluded = core.concluded(other.id());
                let alive = concluded == Some(MemberState::Alive);
                let gone = matches!(concluded, None | Some(MemberState::Failed | MemberState::Left));
                if !(if other.is_up() { alive } else { gone }) {
                    return Some(format!("{i} believes {j} {concluded:?}"));
                }
                if concluded != first.concluded(other.id()) {
                    return Some(format!("{i} and {} believe different things of {j}", up[0]));
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
        let outcome = Story::new(seed, true).run();
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
                    match catch_unwind(AssertUnwindSafe(|| Story::new(seed, false).run())) {
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
            "{} seeds: agreed after p50 {:?}, p90 {:?}, p99 {:?}, max {:?}; at most {} inputs per node and second; {} verdicts on the living while something was not sound",
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
        let trace = |seed| Story::new(seed, false).run().trace;
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
}
