//! Measures one system at one cluster size: first the idle cost, then how soon all processes report that one
//! changed, crashed, froze or left.
//!
//! Between two events all live processes must see each other again. If they do not within the bound, this is
//! noted, and measuring continues.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use rustix::process::Signal;
use serde::Serialize;

use crate::{
    clock::Moment,
    fleet::Fleet,
    sighting::{What, name},
    statistics::Events,
    system::System,
    usage::{Idle, Reading},
};

/// Time within which all processes must see each other after the start. serf's local profile needs up to a
/// minute and a half with 100 nodes.
const START_BOUND: Duration = Duration::from_secs(180);
/// Time within which all processes must see each other between two events: as long as serf's slowest repair.
const REPAIR_BOUND: Duration = Duration::from_secs(60);
/// Time within which an event must be known on all nodes. The slowest system needs 18 s where Hearsay needs
/// 50 ms.
const EVENT_BOUND: Duration = Duration::from_secs(60);
/// Pause between a complete view and the idle measurement. In every system, retransmissions, announcements
/// and closed connections follow the joins.
pub(crate) const SETTLE: Duration = Duration::from_secs(20);
/// Pause between two events, so that the gossip of the first has ended.
const PAUSE: Duration = Duration::from_secs(1);

/// Parameters of a measurement.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) repeats: usize,
    pub(crate) idle: Duration,
    pub(crate) logs: Option<PathBuf>,
}

/// Figures of one system at one size.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) system: &'static str,
    pub(crate) size: usize,
    /// Time from the last start until all processes saw each other.
    pub(crate) converged_s: Option<f64>,
    pub(crate) idle: Option<Idle>,
    pub(crate) change: Events,
    pub(crate) crash: Events,
    pub(crate) freeze: Events,
    pub(crate) thaw: Events,
    pub(crate) leave: Events,
    /// Verdicts that running processes drew on other running processes.
    pub(crate) false_alarms: usize,
    /// The part of these that was drawn by processes which had just been frozen themselves.
    pub(crate) false_alarms_by_thawed: usize,
    /// Events that were not planned.
    pub(crate) notes: Vec<String>,
}

/// Period in which a process was not expected to answer.
#[derive(Clone, Copy, Debug)]
struct Absence {
    subject: usize,
    from: Moment,
    until: Moment,
}

/// End of an absence of a process that does not come back.
const NEVER: Moment = Moment(u64::MAX);

struct Measuring {
    fleet: Fleet,
    figures: Figures,
    absences: Vec<Absence>,
}

/// Starts a cluster, measures it, and ends it.
///
/// If a process ends or does not answer, returns the figures so far, with a note.
///
/// # Errors
/// A program cannot be run.
pub(crate) fn measure(system: System, size: usize, plan: &Plan) -> Result<Figures> {
    let events = || Events::new(EVENT_BOUND.as_secs());
    let figures = Figures {
        system: system.name(),
        size,
        converged_s: None,
        idle: None,
        change: events(),
        crash: events(),
        freeze: events(),
        thaw: events(),
        leave: events(),
        false_alarms: 0,
        false_alarms_by_thawed: 0,
        notes: Vec::new(),
    };
    let fleet = Fleet::start(system, size, plan.logs.clone())?;
    let mut run = Measuring { fleet, figures, absences: Vec::new() };
    if let Err(problem) = run.all(system, plan) {
        let ended = run.deserters();
        run.note(format!("given up: {problem:#}{ended}"));
    }
    run.count_false_alarms();
    Ok(run.figures)
}

impl Measuring {
    fn all(&mut self, system: System, plan: &Plan) -> Result<()> {
        match self.fleet.converge(START_BOUND) {
            Ok(time) => self.figures.converged_s = Some(time.as_secs_f64()),
            Err(missing) => self.note_missing(missing, START_BOUND, "the start"),
        }
        self.say("settling", "");
        self.fleet.hear_for(SETTLE);
        self.figures.idle = Some(self.idle(plan.idle)?);
        self.fleet.watch_changes()?;
        let mut used = BTreeSet::new();
        for _ in 0..plan.repeats {
            self.repeat(&mut used, Self::change)?;
        }
        used.clear();
        for _ in 0..plan.repeats {
            self.repeat(&mut used, Self::crash)?;
        }
        used.clear();
        for _ in 0..plan.repeats {
            self.repeat(&mut used, Self::freeze)?;
        }
        used.clear();
        for _ in 0..if system.can_leave() { plan.repeats } else { 0 } {
            self.repeat(&mut used, Self::leave)?;
        }
        Ok(())
    }

    /// Measures the idle cost.
    fn idle(&mut self, time: Duration) -> Result<Idle> {
        let (start, before) = (Instant::now(), Reading::take(self.fleet.pids())?);
        self.fleet.hear_for(time);
        let idle = Reading::take(self.fleet.pids())?.since(&before, start.elapsed());
        let Idle { bytes_per_second, cpu_percent, .. } = idle;
        self.say("idle", &format!("{bytes_per_second:.0} B/s, {cpu_percent:.2} % per node"));
        Ok(idle)
    }

    /// Causes an event on a process that had none before, and waits until all processes see each other again.
    fn repeat(
        &mut self,
        used: &mut BTreeSet<usize>,
        event: fn(&mut Self, victim: usize) -> Result<()>,
    ) -> Result<()> {
        let Some(victim) = self.fleet.pick(used).or_else(|| self.fleet.pick(&BTreeSet::new())) else {
            return Ok(());
        };
        used.insert(victim);
        event(self, victim)?;
        self.repair();
        self.fleet.hear_for(PAUSE);
        Ok(())
    }

    fn change(&mut self, victim: usize) -> Result<()> {
        let observers = self.fleet.live().filter(|observer| *observer != victim).collect();
        let mark = self.fleet.mark();
        let since = self.fleet.change(victim)?;
        let times = self.fleet.observe(mark, since, victim, &[What::Changed], &observers, EVENT_BOUND);
        self.say_times("change", victim, &observers, &times);
        self.figures.change.times_us.push(times);
        Ok(())
    }

    fn crash(&mut self, victim: usize) -> Result<()> {
        let observers = self.fleet.believers(victim);
        let mark = self.fleet.mark();
        let since = self.fleet.kill(victim)?;
        self.absences.push(Absence { subject: victim, from: since, until: NEVER });
        let times = self.fleet.observe(mark, since, victim, &[What::Failed], &observers, EVENT_BOUND);
        self.say_times("crash", victim, &observers, &times);
        self.figures.crash.times_us.push(times);
        self.replace(victim)
    }

    fn freeze(&mut self, victim: usize) -> Result<()> {
        let observers = self.fleet.believers(victim);
        let mark = self.fleet.mark();
        let since = self.fleet.signal(victim, Signal::STOP)?;
        let absence = self.absences.len();
        self.absences.push(Absence { subject: victim, from: since, until: NEVER });
        let times = self.fleet.observe(mark, since, victim, &[What::Failed], &observers, EVENT_BOUND);
        self.say_times("freeze", victim, &observers, &times);
        // Only processes that had declared the victim failed can report its return.
        let known =
            observers.iter().zip(&times).filter(|(_, time)| time.is_some()).map(|(observer, _)| *observer);
        let known: BTreeSet<usize> = known.collect();
        self.figures.freeze.times_us.push(times);
        let mark = self.fleet.mark();
        let since = self.fleet.signal(victim, Signal::CONT)?;
        let times = self.fleet.observe(mark, since, victim, &[What::Alive], &known, EVENT_BOUND);
        self.say_times("thaw", victim, &known, &times);
        let is_back = times.iter().all(Option::is_some);
        self.figures.thaw.times_us.push(times);
        // Reports about the victim before all agree again are not false alarms.
        let is_whole = self.fleet.converge(REPAIR_BOUND).is_ok();
        self.absences[absence].until = Moment::now();
        if !is_back || !is_whole {
            self.note(format!("{} did not come back after a freeze, and was replaced", name(victim)));
            self.absences[absence].until = NEVER;
            return self.replace(victim);
        }
        Ok(())
    }

    fn leave(&mut self, victim: usize) -> Result<()> {
        let observers = self.fleet.believers(victim);
        let mark = self.fleet.mark();
        let since = self.fleet.leave(victim)?;
        self.absences.push(Absence { subject: victim, from: since, until: NEVER });
        let times =
            self.fleet.observe(mark, since, victim, &[What::Left, What::Failed], &observers, EVENT_BOUND);
        self.say_times("leave", victim, &observers, &times);
        self.figures.leave.times_us.push(times);
        self.replace(victim)
    }

    /// Starts a new process to replace one that is gone.
    fn replace(&mut self, victim: usize) -> Result<()> {
        self.fleet.bury(victim);
        let index = self.fleet.add()?;
        self.repair();
        self.fleet.watch(index)
    }

    fn repair(&mut self) {
        if let Err(missing) = self.fleet.converge(REPAIR_BOUND) {
            self.note_missing(missing, REPAIR_BOUND, "an event");
        }
    }

    fn note_missing(&mut self, pairs: usize, bound: Duration, after: &str) {
        let ended = self.deserters();
        self.note(format!("{pairs} pairs did not see each other {bound:?} after {after}{ended}"));
    }

    /// Returns the processes that ended unexpectedly, as the end of a sentence.
    fn deserters(&mut self) -> String {
        match self.fleet.deserters() {
            ended if ended.is_empty() => String::new(),
            ended => format!("; ended by themselves: {}", ended.join(", ")),
        }
    }

    fn count_false_alarms(&mut self) {
        let is_away = |who: usize, at: Moment| {
            self.absences.iter().any(|a| a.subject == who && a.from <= at && at <= a.until)
        };
        for heard in self.fleet.journal() {
            let (sighting, observer) = (heard.sighting, heard.observer);
            if sighting.what != What::Failed || is_away(sighting.subject, sighting.at) {
                continue;
            }
            if is_away(observer, sighting.at) {
                self.figures.false_alarms_by_thawed += 1;
            } else {
                self.figures.false_alarms += 1;
            }
        }
    }

    fn say_times(&self, what: &str, victim: usize, observers: &BTreeSet<usize>, times: &[Option<u64>]) {
        let events = Events { times_us: vec![times.to_vec()], bound_s: EVENT_BOUND.as_secs() };
        let (half, all) = (events.known_by_half().max(), events.known_by_all().max());
        // A missing time counts as the longest.
        let last = observers.iter().zip(times).max_by_key(|(_, time)| time.unwrap_or(u64::MAX));
        let last = last.map_or_else(|| "none".into(), |(observer, _)| name(*observer));
        self.say(what, &format!("of {}: half {half}, all {all} (last {last})", name(victim)));
    }

    fn note(&mut self, note: String) {
        self.say("note", &note);
        self.figures.notes.push(note);
    }

    fn say(&self, what: &str, text: &str) {
        eprintln!("{} at {}: {what} {text}", self.figures.system, self.figures.size);
    }
}
