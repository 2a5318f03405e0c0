//! [`Fleet`]: the cluster of processes of one system, their reports about each other, and the events that the
//! benchmark causes.
//!
//! Every process has a unique number and name. A killed process is replaced by a new one with new ports, so
//! that reports about the killed process are not taken for reports about a live one.

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
    process::{Observed, Process},
    serf,
    sighting::{self, What},
    system::{Start, System},
};

/// Pause between two starts. Starting all processes at once would measure the machine, not the system.
const START_EVERY: Duration = Duration::from_millis(50);
/// Pause between two checks of the whole cluster.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Cluster of processes of one system.
pub(crate) struct Fleet {
    system: System,
    size: usize,
    logs: Option<PathBuf>,
    /// All processes that were ever started. The index is the process's number.
    processes: Vec<Process>,
    live: BTreeSet<usize>,
    /// Latest report of each process about each other process.
    views: BTreeMap<(usize, usize), What>,
    /// All reports, in the order of arrival.
    journal: Vec<Observed>,
    receiver: Receiver<Observed>,
    sender: Sender<Observed>,
    /// Number of changes of each process. For Hearsay, odd changes switch maintenance on.
    changes: BTreeMap<usize, usize>,
    watches_changes: bool,
}

/// Position in the journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark(usize);

impl Fleet {
    /// Starts this many processes, one after another.
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

    /// Starts a further process, which joins through the oldest one and a random other one.
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

    /// Returns a random live process other than these.
    pub(crate) fn pick(&self, but: &BTreeSet<usize>) -> Option<usize> {
        let candidates: Vec<usize> = self.live.difference(but).copied().collect();
        let choice = rand::RngExt::random_range(&mut dice(), 0..candidates.len().max(1));
        candidates.get(choice).copied()
    }

    /// Returns the other processes that currently see this one as alive.
    pub(crate) fn believers(&self, subject: usize) -> BTreeSet<usize> {
        let believes = |observer: &usize| self.views.get(&(*observer, subject)) == Some(&What::Alive);
        self.live().filter(|observer| *observer != subject).filter(believes).collect()
    }

    /// Waits until every live process sees every other one. Returns the time that it took. If the bound
    /// passes, returns the number of missing pairs.
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

    /// Waits for this time, and records reports meanwhile.
    pub(crate) fn hear_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while self.hear_one(end) {}
    }

    /// Records the next report before this time. Returns false if there was none.
    fn hear_one(&mut self, end: Instant) -> bool {
        match self.receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(heard) => {
                if heard.sighting.what != What::Changed {
                    self.views.insert((heard.observer, heard.sighting.subject), heard.sighting.what);
                }
                self.journal.push(heard);
                true
            }
            // The channel cannot be disconnected, because the fleet holds a sender.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => false,
        }
    }

    /// Returns all reports.
    pub(crate) fn journal(&self) -> &[Observed] {
        &self.journal
    }

    /// Returns the current end of the journal.
    pub(crate) fn mark(&mut self) -> Mark {
        self.hear_for(Duration::ZERO);
        Mark(self.journal.len())
    }

    /// Waits until each of these observers has made one of these reports about the subject. Returns the
    /// microseconds that each took; `None` for observers beyond the bound.
    #[allow(clippy::too_many_arguments, reason = "the parts of an observation")]
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
            for Observed { observer, sighting } in &self.journal[position..] {
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

    /// Makes changes observable. If the log of a system does not show them, opens every node's event stream.
    /// It is opened no earlier than needed, because streams cost the nodes processor time.
    ///
    /// # Errors
    /// A node does not answer.
    pub(crate) fn watch_changes(&mut self) -> Result<()> {
        self.watches_changes = true;
        self.live.clone().into_iter().try_for_each(|index| self.watch(index))
    }

    /// Makes the changes of a node that joined later observable.
    ///
    /// # Errors
    /// The node does not answer.
    pub(crate) fn watch(&self, index: usize) -> Result<()> {
        if self.system != System::Hearsay || !self.watches_changes {
            return Ok(());
        }
        let to = self.sender.clone();
        hearsay::watch(index, move |sighting| {
            // The receiver is gone when measuring is over.
            _ = to.send(Observed { observer: index, sighting });
        })
    }

    /// Makes a process change its state. Returns the time of the command.
    ///
    /// # Errors
    /// The process does not answer.
    pub(crate) fn change(&mut self, index: usize) -> Result<Moment> {
        let count = self.changes.entry(index).or_default();
        *count += 1;
        match self.system {
            System::Hearsay => hearsay::set_maintenance(index, *count % 2 == 1),
            System::SerfLan | System::SerfLocal => serf::Rpc::connect(index)?.set_tag(&count.to_string()),
            _ => self.tell_agent(index, "change"),
        }
    }

    /// Makes a process leave. Returns the time of the command.
    ///
    /// # Errors
    /// The process does not answer.
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

    /// Kills a process. Returns the time of the kill.
    ///
    /// # Errors
    /// The process had already ended.
    pub(crate) fn kill(&mut self, index: usize) -> Result<Moment> {
        self.live.remove(&index);
        self.signal(index, Signal::KILL)
    }

    /// Signals a process. Returns the time of the signal.
    ///
    /// # Errors
    /// The process had already ended.
    pub(crate) fn signal(&self, index: usize, signal: Signal) -> Result<Moment> {
        let now = Moment::now();
        self.processes[index]
            .signal(signal)
            .with_context(|| format!("{signal:?} to {}", sighting::name(index)))?;
        Ok(now)
    }

    /// Returns the names of processes that should run but have ended.
    pub(crate) fn deserters(&mut self) -> Vec<String> {
        let live = self.live.iter().copied();
        live.filter(|index| self.processes[*index].has_ended()).map(sighting::name).collect()
    }

    /// Removes a process that should end, and makes sure that it has ended.
    pub(crate) fn bury(&mut self, index: usize) {
        self.live.remove(&index);
        self.processes[index].end();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // All processes are killed before any is awaited. Otherwise the remaining ones would report the
        // deaths of the others.
        for index in self.live.clone() {
            // A process that has ended needs no signal.
            _ = self.signal(index, Signal::KILL);
        }
    }
}

/// Creates a random number generator with a seed from the clock, so that the victims differ from run to run.
fn dice() -> rand::rngs::SmallRng {
    rand::SeedableRng::seed_from_u64(Moment::now().0)
}
