//! Tests of the prober with pings answered or lost at given times: a silent member is reported in time; lost
//! pings, late answers and a suspension of this node itself accuse no member.

use super::*;
use crate::Identity;

fn at(ms: u64) -> Time {
    Time::from_start(Duration::from_millis(ms))
}

fn id(seed: u8) -> NodeId {
    Identity::from_seed(&[seed; 32]).id()
}

/// A claim of node 9 on node 1.
fn claim(incarnation: u64, version: u64, strength: Strength) -> Claim {
    let (incarnation, version) = (Incarnation(incarnation), Version(version));
    Claim { observer: id(9), subject: id(1), incarnation, version, strength }
}

struct Fixture {
    prober: Prober,
    patience: Patience,
}

impl Fixture {
    /// Watches `n` connected subjects in a calm network.
    fn watching(n: u8) -> Self {
        let mut prober = Prober::new(&Config::default(), 1);
        let subjects: BTreeMap<NodeId, u32> = (1..=n).map(|n| (id(n), 3)).collect();
        prober.set_watched(at(100_000), &subjects, |_| false);
        subjects.keys().for_each(|id| prober.record_connected(at(100_000), *id));
        Self { prober, patience: Patience::new(Time::ZERO) }
    }

    /// Runs for this many milliseconds, in which the nodes that `alive` names answer pings. Returns the
    /// reports with their times.
    fn run(
        &mut self,
        ms: std::ops::Range<u64>,
        alive: impl Fn(NodeId) -> bool,
    ) -> Vec<(u64, NodeId, Strength)> {
        let mut reports = Vec::new();
        for t in ms {
            for action in self.prober.due(at(t), &self.patience) {
                match action {
                    ProbeAction::Ping(id) if alive(id) => {
                        self.prober.record_pong(at(t), id, None);
                    }
                    ProbeAction::Report(id, strength) => reports.push((t, id, strength)),
                    ProbeAction::Ping(_) | ProbeAction::Dial(_) => (),
                }
            }
        }
        reports
    }
}

#[test]
fn a_silent_subject_is_reported_within_a_ping_and_its_timeout() {
    let mut fixture = Fixture::watching(3);
    assert_eq!(fixture.run(100_000..110_000, |_| true), []);
    let reports = fixture.run(110_000..115_000, |node| node != id(2));
    assert!(reports.iter().all(|r| r.1 == id(2)), "{reports:?}");
    assert!(reports[0].0 < 111_500 && reports[0].1 == id(2) && reports[0].2 == Strength::Weak);
}

#[test]
fn a_node_that_hears_no_peer_doubts_itself_first() {
    let mut fixture = Fixture::watching(3);
    fixture.run(100_000..110_000, |_| true);
    let time = fixture.run(110_000..115_000, |node| node != id(2))[0].0;
    let mut fixture = Fixture::watching(3);
    fixture.run(100_000..110_000, |_| true);
    let all = fixture.run(110_000..115_000, |_| false);
    assert!(all.iter().map(|r| r.0).max().unwrap() > time, "{all:?}");
}

#[test]
fn a_ping_that_was_lost_is_followed_by_another() {
    let mut fixture = Fixture::watching(3);
    let lost = (110_000..).find(|t| {
        let actions = fixture.prober.due(at(*t), &fixture.patience);
        let pinged = actions.iter().filter(|action| **action != ProbeAction::Ping(id(2)));
        pinged.for_each(|action| {
            if let ProbeAction::Ping(other) = action {
                _ = fixture.prober.record_pong(at(*t), *other, None)
            }
        });
        actions.contains(&ProbeAction::Ping(id(2)))
    });
    let lost = lost.unwrap();
    let reports = fixture.run(lost + 1..lost + 10_000, |_| true);
    assert!(reports.iter().all(|(t, ..)| *t < lost + 1000), "{reports:?}");
}

#[test]
fn a_burst_that_delays_everything_accuses_nobody() {
    let mut fixture = Fixture::watching(3);
    fixture.run(100_000..110_000, |_| true);
    assert_eq!(fixture.run(110_000..111_100, |_| false), []);
    (1..=3).for_each(|n| _ = fixture.prober.record_pong(at(111_100), id(n), None));
    assert_eq!(fixture.run(111_100..115_000, |_| true), []);
}

#[test]
fn others_are_asked_before_anybody_is_accused_and_not_accused_for_that() {
    let mut fixture = Fixture::watching(1);
    fixture.prober.record_connected(at(100_000), id(9));
    let mut asked = false;
    for t in 100_000..101_500 {
        for action in fixture.prober.due(at(t), &fixture.patience) {
            asked |= action == ProbeAction::Ping(id(9));
            assert!(!matches!(action, ProbeAction::Report(..)), "{action:?} at {t}: no peer has answered");
        }
    }
    assert!(asked);
    fixture.prober.record_pong(at(101_500), id(9), None);
    assert_eq!(
        fixture.prober.due(at(101_500), &fixture.patience),
        [ProbeAction::Report(id(1), Strength::Weak)]
    );
}

#[test]
fn a_control_that_did_not_answer_is_pinged_again_when_it_is_in_doubt() {
    let mut fixture = Fixture::watching(1);
    fixture.prober.record_connected(at(100_000), id(9));
    fixture.run(100_000..103_000, |_| false);
    fixture.prober.probe(at(103_000), id(9));
    assert_eq!(fixture.prober.due(at(103_000), &fixture.patience), [ProbeAction::Ping(id(9))]);
    let reports = fixture.run(103_001..110_000, |subject| subject == id(1));
    assert_eq!(reports.first().map(|report| (report.1, report.2)), Some((id(9), Strength::Weak)));
}

#[test]
fn a_node_that_overslept_accuses_nobody() {
    let mut fixture = Fixture::watching(3);
    fixture.run(100_000..105_000, |_| true);
    fixture.run(105_000..105_990, |_| false);
    fixture.prober.restart_timeouts(at(125_000));
    assert_eq!(fixture.run(125_000..125_300, |_| false), []);
}

#[test]
fn a_lost_connection_is_dialled_at_once_and_only_the_outcome_is_evidence() {
    let mut fixture = Fixture::watching(1);
    fixture.prober.record_disconnected(at(101_000), id(1), true);
    assert_eq!(fixture.prober.due(at(101_000), &fixture.patience), [ProbeAction::Dial(id(1))]);
    assert_eq!(
        fixture.prober.record_failed_dial(id(1), true),
        Some(ProbeAction::Report(id(1), Strength::Strong))
    );
    fixture.prober.record_connected(at(101_001), id(1));
    fixture.prober.record_disconnected(at(102_000), id(1), true);
    fixture.prober.due(at(102_000), &fixture.patience);
    fixture.prober.record_connected(at(102_010), id(1));
    assert_eq!(fixture.run(102_010..104_000, |_| true), [], "it was there all the time");
}

#[test]
fn strangers_that_come_and_go_leave_nothing_behind() {
    let mut prober = Prober::new(&Config::default(), 1);
    for n in 0..100 {
        prober.record_connected(at(n), id(5));
        prober.record_disconnected(at(n), id(5), false);
        assert!(prober.subjects.is_empty());
    }
}

#[test]
fn the_same_is_not_said_twice_and_a_refuted_observer_keeps_quiet() {
    let mut prober = Prober::new(&Config::default(), 1);
    let mut say = |ms, version, strength| prober.may_report(at(ms), &claim(1, version, strength), |_| false);
    assert!(say(0, 1, Strength::Weak));
    assert!(!say(5_000, 1, Strength::Weak));
    assert!(say(5_000, 1, Strength::Strong), "stronger is news");
    assert!(!say(10_000, 2, Strength::Weak), "refuted, and still not heard");
    assert!(say(70_000, 2, Strength::Weak));
    prober.record_connected(at(71_000), id(1));
    assert!(prober.may_report(at(75_000), &claim(1, 3, Strength::Weak), |_| false), "heard of it since");
    let mut say = |ms, incarnation, version, lost: u64| {
        let lost_since = |said| said < at(lost);
        prober.may_report(at(ms), &claim(incarnation, version, Strength::Weak), lost_since)
    };
    assert!(say(75_001, 2, 1, 0), "another life");
    assert!(!say(80_000, 2, 2, 75_000), "others were lost before it was accused");
    assert!(say(80_000, 2, 2, 79_000), "others have been lost since");
    assert!(!say(81_000, 2, 3, 80_500), "not again so soon");
}

/// Watchers of one subject, all of them connected to it, and the subject's answers.
struct Watchers {
    probers: Vec<Prober>,
    patience: Patience,
    last_ping: u64,
}

impl Watchers {
    fn new(seed: u64, count: u32) -> Self {
        let watched = BTreeMap::from([(id(1), count)]);
        let probers = (0..u64::from(count)).map(|n| {
            let mut prober = Prober::new(&Config::default(), seed * 100 + n);
            prober.set_watched(at(100_000), &watched, |_| false);
            prober.record_connected(at(100_000), id(1));
            prober
        });
        Self { probers: probers.collect(), patience: Patience::new(Time::ZERO), last_ping: 100_000 }
    }

    /// Runs for this many milliseconds. Returns the time of each ping and its watcher. `stated` is the gap
    /// that the subject states instead of a true one.
    fn run(
        &mut self,
        ms: std::ops::Range<u64>,
        stated: impl Fn(Duration) -> Option<Duration>,
    ) -> Vec<(u64, usize)> {
        let (mut pings, subject) = (Vec::new(), id(1));
        for t in ms {
            for (n, prober) in self.probers.iter_mut().enumerate() {
                if prober.due(at(t), &self.patience).contains(&ProbeAction::Ping(subject)) {
                    let gap = Duration::from_millis(t - std::mem::replace(&mut self.last_ping, t));
                    prober.record_pong(at(t), subject, stated(gap));
                    pings.push((t, n));
                }
            }
        }
        pings
    }
}

/// The longest and the shortest time between two pings of the same watcher.
fn intervals(pings: &[(u64, usize)]) -> (u64, u64) {
    let of = |n| pings.iter().filter(move |(_, by)| *by == n).map(|(t, _)| *t);
    let all = (0..3).flat_map(|n| of(n).zip(of(n).skip(1)).map(|(a, b)| b - a));
    let all: Vec<u64> = all.collect();
    (*all.iter().max().unwrap(), *all.iter().min().unwrap())
}

#[test]
fn watchers_take_turns_within_a_few_pings_whatever_their_phases() {
    for (seed, (count, interval)) in (1..=60).zip([(1, 1_000), (2, 1_500), (3, 2_000)].into_iter().cycle()) {
        let mut watchers = Watchers::new(seed, count);
        watchers.run(100_000..115_000, Some);
        let mut last = watchers.last_ping;
        for (t, _) in watchers.run(115_000..130_000, Some) {
            assert!(t - last <= interval / u64::from(count) + 40, "seed {seed}: {} ms", t - last);
            last = t;
        }
        let (longest, shortest) = intervals(&watchers.run(130_000..160_000, Some));
        assert!(longest <= interval && shortest + 40 >= interval, "seed {seed}: {longest}, {shortest}");
    }
}

#[test]
fn watchers_take_turns_again_after_one_died_and_another_replaced_it() {
    let mut watchers = Watchers::new(7, 3);
    let longest_gap = |pings: &[(u64, usize)]| pings.windows(2).map(|pair| pair[1].0 - pair[0].0).max();
    watchers.run(100_000..115_000, Some);
    watchers.probers.remove(0);
    watchers.run(115_000..130_000, Some);
    let pings = watchers.run(130_000..140_000, Some);
    assert!(longest_gap(&pings) <= Some(1_000), "{pings:?}");
    watchers.probers.push(Watchers::new(8, 3).probers.remove(0));
    watchers.run(140_000..155_000, Some);
    let pings = watchers.run(155_000..170_000, Some);
    assert!(longest_gap(&pings) <= Some(707), "{pings:?}");
}

#[test]
fn a_lying_pong_makes_no_watcher_wait_longer_than_its_interval_or_hurry() {
    for lie in [Duration::ZERO, Duration::from_millis(1), Duration::MAX] {
        let mut watchers = Watchers::new(5, 3);
        let (longest, shortest) = intervals(&watchers.run(100_000..200_000, |_| Some(lie)));
        assert!(longest <= 2_000 && shortest >= 1_000, "{lie:?}: {longest}, {shortest}");
    }
}

#[test]
fn a_subject_that_states_no_gap_is_pinged_at_the_ping_interval() {
    let mut watchers = Watchers::new(5, 3);
    assert_eq!(intervals(&watchers.run(100_000..200_000, |_| None)), (1_000, 1_000));
}
