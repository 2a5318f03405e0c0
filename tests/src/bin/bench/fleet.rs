//! The processes of one system as a cluster: who runs, what each sees of the others, and what it takes to make something happen.
//!
//! Every process has a number and a name of its own, for ever: one that was killed is replaced by a new one with new ports, so that nothing
//! said about the dead can be mistaken for something about the living.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::process::Signal;

use crate::{
    clock::Moment,
    hearsay,
    process::{Heard, Process},
    serf,
    sighting::{self, What},
    system::{Start, System},
};

/// Between two starts. Starting all at once measures the machine, not the system.
const START_EVERY: Duration = Duration::from_millis(50);
/// How often it is looked whether all see all.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A cluster.
pub(crate) struct Fleet {
    system: System,
    size: usize,
    logs: Option<PathBuf>,
    /// All that were ever started; the index is the number.
    processes: Vec<Process>,
    live: BTreeSet<usize>,
    /// What each process last said of each other.
    views: BTreeMap<(usize, usize), What>,
    /// All that was heard, in the order of arrival.
    journal: Vec<Heard>,
    receiver: Receiver<Heard>,
    sender: Sender<Heard>,
    /// Who was asked to change how often: Hearsay's maintenance goes on and off.
    changes: BTreeMap<usize, usize>,
    watches_changes: bool,
}

/// A place in the journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark(usize);

impl Fleet {
    /// Starts so many processes, one after the other.
    ///
    /// # Errors
    /// A program cannot be run.
    pub(crate) fn start(system: System, size: usize, logs: Option<PathBuf>) -> Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let mut fleet = Self {
            system,
            size,
            logs,
            processes: Vec::new(),
            live: BTreeSet::new(),
            views: BTreeMap::new(),
            journal: Vec::new(),
            receiver,
            sender,
            changes: BTreeMap::new(),
            watches_changes: false,
        };
        for _ in 0..size {
            fleet.add()?;
            thread::sleep(START_EVERY);
        }
        Ok(fleet)
    }

    /// Starts one more, which asks the oldest and a random other for the rest.
    ///
    /// # Errors
    /// The program cannot be run.
    pub(crate) fn add(&mut self) -> Result<usize> {
        let index = self.processes.len();
        let oldest = self.live.first().copied();
        let other = self.pick(&oldest.into_iter().collect());
        let seeds = oldest.into_iter().chain(other).collect();
        let start = Start { index, size: self.size, seeds };
        let process = Process::start(self.system, &start, self.sender.clone(), self.logs.as_deref())?;
        self.processes.push(process);
        self.live.insert(index);
        Ok(index)
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = usize> + '_ {
        self.live.iter().copied()
    }

    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> + '_ {
        self.live.iter().map(|index| self.processes[*index].pid())
    }

    /// A random live process that is none of these.
    pub(crate) fn pick(&self, but: &BTreeSet<usize>) -> Option<usize> {
        let candidates: Vec<usize> = self.live.difference(but).copied().collect();
        let choice = rand::RngExt::random_range(&mut dice(), 0..candidates.len().max(1));
        candidates.get(choice).copied()
    }

    /// Who, beside it, now believes this process alive.
    pub(crate) fn believers(&self, subject: usize) -> BTreeSet<usize> {
        let believes = |observer: &usize| self.views.get(&(*observer, subject)) == Some(&What::Alive);
        self.live().filter(|observer| *observer != subject).filter(believes).collect()
    }

    /// Waits until every live process sees every other. Returns after what time they did, or how many pairs were missing at the bound.
    pub(crate) fn converge(&mut self, bound: Duration) -> Result<Duration, usize> {
        let start = Instant::now();
        loop {
            self.hear_for(LOOK_EVERY);
            let pairs = self.live().flat_map(|o| self.live().map(move |s| (o, s))).filter(|(o, s)| o != s);
            let missing = pairs.filter(|pair| self.views.get(pair) != Some(&What::Alive)).count();
            if missing == 0 {
                return Ok(start.elapsed());
            }
            if start.elapsed() > bound {
                return Err(missing);
            }
        }
    }

    /// Lets time pass, and takes note.
    pub(crate) fn hear_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while self.hear_one(end) {}
    }

    /// Takes note of the next thing heard before this moment; false when there was none.
    fn hear_one(&mut self, end: Instant) -> bool {
        match self.receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(heard) => {
                if heard.sighting.what != What::Changed {
                    self.views.insert((heard.observer, heard.sighting.subject), heard.sighting.what);
                }
                self.journal.push(heard);
                true
            }
            // It cannot be disconnected: the fleet holds a sender.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }

    /// All that was heard.
    pub(crate) fn journal(&self) -> &[Heard] {
        &self.journal
    }

    /// Where the journal ends now.
    pub(crate) fn mark(&mut self) -> Mark {
        self.hear_for(Duration::ZERO);
        Mark(self.journal.len())
    }

    /// Waits until each of these observers has said one of these things of the subject, and returns after how many microseconds each did;
    /// `None` for those that did not within the bound.
    pub(crate) fn observe(
        &mut self,
        mark: Mark,
        since: Moment,
        subject: usize,
        whats: &[What],
        observers: &BTreeSet<usize>,
        bound: Duration,
    ) -> Vec<Option<u64>> {
        let end = Instant::now() + bound;
        let mut times: BTreeMap<usize, u64> = BTreeMap::new();
        let Mark(mut position) = mark;
        loop {
            for Heard { observer, sighting } in &self.journal[position..] {
                let fits =
                    sighting.subject == subject && whats.contains(&sighting.what) && sighting.at >= since;
                if fits && observers.contains(observer) {
                    times.entry(*observer).or_insert_with(|| sighting.at.micros_since(since));
                }
            }
            position = self.journal.len();
            if times.len() == observers.len() || !self.hear_one(end) {
                return observers.iter().map(|observer| times.get(observer).copied()).collect();
            }
        }
    }

    /// Makes sure that changes are heard of. Where they are not in the log, everybody's event stream is opened; not before it is needed,
    /// because that costs the nodes something.
    ///
    /// # Errors
    /// A node does not answer.
    pub(crate) fn watch_changes(&mut self) -> Result<()> {
        self.watches_changes = true;
        self.live.clone().into_iter().try_for_each(|index| self.watch(index))
    }

    /// The same for one that was added later and has joined.
    ///
    /// # Errors
    /// The node does not answer.
    pub(crate) fn watch(&self, index: usize) -> Result<()> {
        if self.system != System::Hearsay || !self.watches_changes {
            return Ok(());
        }
        let to = self.sender.clone();
        hearsay::watch(index, move |sighting| {
            // Nobody listens any more when the measuring is over.
            _ = to.send(Heard { observer: index, sighting });
        })
    }

    /// Has a process say something new of itself. Returns when it was told to.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn change(&mut self, index: usize) -> Result<Moment> {
        let count = self.changes.entry(index).or_default();
        *count += 1;
        match self.system {
            System::Hearsay => hearsay::set_maintenance(index, *count % 2 == 1),
            System::SerfLan | System::SerfLocal => serf::Rpc::connect(index)?.set_tag(&count.to_string()),
            _ => self.tell_agent(index, "change"),
        }
    }

    /// Has a process say goodbye. Returns when it was told to.
    ///
    /// # Errors
    /// It does not answer.
    pub(crate) fn leave(&mut self, index: usize) -> Result<Moment> {
        self.live.remove(&index);
        match self.system {
            System::Hearsay => self.signal(index, Signal::TERM),
            System::SerfLan | System::SerfLocal => serf::Rpc::connect(index)?.leave(),
            _ => self.tell_agent(index, "leave"),
        }
    }

    fn tell_agent(&mut self, index: usize, word: &str) -> Result<Moment> {
        let now = Moment::now();
        self.processes[index].say(word).with_context(|| sighting::name(index))?;
        Ok(now)
    }

    /// Kills a process. Returns when.
    ///
    /// # Errors
    /// It had ended before.
    pub(crate) fn kill(&mut self, index: usize) -> Result<Moment> {
        self.live.remove(&index);
        self.signal(index, Signal::KILL)
    }

    /// Signals a process. Returns when.
    ///
    /// # Errors
    /// It had ended before.
    pub(crate) fn signal(&self, index: usize, signal: Signal) -> Result<Moment> {
        let now = Moment::now();
        self.processes[index]
            .signal(signal)
            .with_context(|| format!("{signal:?} to {}", sighting::name(index)))?;
        Ok(now)
    }

    /// The names of those that should run and have ended by themselves.
    pub(crate) fn deserters(&mut self) -> Vec<String> {
        let live = self.live.iter().copied();
        live.filter(|index| self.processes[*index].has_ended()).map(sighting::name).collect()
    }

    /// Makes sure that a process that was to go is gone.
    pub(crate) fn bury(&mut self, index: usize) {
        self.live.remove(&index);
        self.processes[index].end();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // All at once, before each is waited for: else the last would watch all others die, and work on it.
        for index in self.live.clone() {
            // One that ended by itself needs no signal.
            _ = self.signal(index, Signal::KILL);
        }
    }
}

/// A random number generator, seeded by the clock: victims should differ from run to run.
fn dice() -> rand::rngs::SmallRng {
    rand::SeedableRng::seed_from_u64(Moment::now().0)
}
