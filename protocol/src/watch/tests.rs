//! What a node sees of others, step by step.

use super::*;
use crate::Identity;

fn at(ms: u64) -> Time {
    Time::from_start(Duration::from_millis(ms))
}

fn id(seed: u8) -> NodeId {
    Identity::from_seed(&[seed; 32]).id()
}

struct Bench {
    watch: Watch,
    health: Health,
}

impl Bench {
    /// Watches `n` connected subjects in a calm network.
    fn watching(n: u8) -> Self {
        let mut watch = Watch::new(&Config::default(), 1);
        let subjects: BTreeSet<NodeId> = (1..=n).map(id).collect();
        watch.set_watched(at(100_000), &subjects, |_| false);
        subjects.iter().for_each(|id| watch.connected(at(100_000), *id));
        Self { watch, health: Health::new(Time::ZERO) }
    }

    /// Runs until `ms`, answering the pings of those that `alive` names; returns the reports with their times.
    fn run(
        &mut self,
        ms: std::ops::Range<u64>,
        alive: impl Fn(NodeId) -> bool,
    ) -> Vec<(u64, NodeId, Strength)> {
        let mut reports = Vec::new();
        for t in ms {
            for act in self.watch.due(at(t), &self.health) {
                match act {
                    Act::Ping(id) if alive(id) => {
                        self.watch.pong(at(t), id);
                    }
                    Act::Report(id, strength) => reports.push((t, id, strength)),
                    Act::Ping(_) | Act::Dial(_) => (),
                }
            }
        }
        reports
    }
}

#[test]
fn a_silent_subject_is_reported_within_a_ping_and_its_timeout() {
    let mut bench = Bench::watching(3);
    assert_eq!(bench.run(100_000..110_000, |_| true), []);
    let reports = bench.run(110_000..115_000, |who| who != id(2));
    assert!(reports.iter().all(|r| r.1 == id(2)), "{reports:?}");
    assert!(reports[0].0 < 111_500 && reports[0].1 == id(2) && reports[0].2 == Strength::Weak);
}

#[test]
fn who_hears_nobody_doubts_itself_first() {
    let mut bench = Bench::watching(3);
    bench.run(100_000..110_000, |_| true);
    let one = bench.run(110_000..115_000, |who| who != id(2))[0].0;
    let mut bench = Bench::watching(3);
    bench.run(100_000..110_000, |_| true);
    let all = bench.run(110_000..115_000, |_| false);
    assert!(all.iter().map(|r| r.0).max().unwrap() > one, "{all:?}");
}

#[test]
fn a_ping_that_was_lost_is_followed_by_another() {
    let mut bench = Bench::watching(3);
    let lost = (110_000..).find(|t| {
        let acts = bench.watch.due(at(*t), &bench.health);
        let pinged = acts.iter().filter(|act| **act != Act::Ping(id(2)));
        pinged.for_each(|act| {
            if let Act::Ping(other) = act {
                _ = bench.watch.pong(at(*t), *other)
            }
        });
        acts.contains(&Act::Ping(id(2)))
    });
    let lost = lost.unwrap();
    let reports = bench.run(lost + 1..lost + 10_000, |_| true);
    assert!(reports.iter().all(|(t, ..)| *t < lost + 1000), "{reports:?}");
}

#[test]
fn a_burst_that_delays_everything_accuses_nobody() {
    let mut bench = Bench::watching(3);
    bench.run(100_000..110_000, |_| true);
    assert_eq!(bench.run(110_000..111_100, |_| false), []);
    (1..=3).for_each(|n| _ = bench.watch.pong(at(111_100), id(n)));
    assert_eq!(bench.run(111_100..115_000, |_| true), []);
}

#[test]
fn others_are_asked_before_anybody_is_accused_and_not_accused_for_that() {
    let mut bench = Bench::watching(1);
    bench.watch.connected(at(100_000), id(9));
    let mut asked = false;
    for t in 100_000..101_500 {
        for act in bench.watch.due(at(t), &bench.health) {
            asked |= act == Act::Ping(id(9));
            assert!(!matches!(act, Act::Report(..)), "{act:?} at {t}: nobody has answered");
        }
    }
    assert!(asked);
    bench.watch.pong(at(101_500), id(9));
    assert_eq!(bench.watch.due(at(101_500), &bench.health), [Act::Report(id(1), Strength::Weak)]);
}

#[test]
fn a_control_that_did_not_answer_is_pinged_again_when_it_is_in_doubt() {
    let mut bench = Bench::watching(1);
    bench.watch.connected(at(100_000), id(9));
    bench.run(100_000..103_000, |_| false);
    bench.watch.probe(at(103_000), id(9));
    assert_eq!(bench.watch.due(at(103_000), &bench.health), [Act::Ping(id(9))]);
    let reports = bench.run(103_001..110_000, |subject| subject == id(1));
    assert_eq!(reports.first().map(|report| (report.1, report.2)), Some((id(9), Strength::Weak)));
}

#[test]
fn a_node_that_overslept_accuses_nobody() {
    let mut bench = Bench::watching(3);
    bench.run(100_000..105_000, |_| true);
    bench.run(105_000..105_990, |_| false);
    bench.watch.forgive(at(125_000));
    assert_eq!(bench.run(125_000..125_300, |_| false), []);
}

#[test]
fn a_lost_connection_is_dialled_at_once_and_only_the_outcome_is_evidence() {
    let mut bench = Bench::watching(1);
    bench.watch.disconnected(at(101_000), id(1), true);
    assert_eq!(bench.watch.due(at(101_000), &bench.health), [Act::Dial(id(1))]);
    assert_eq!(bench.watch.dial_failed(id(1), true), Some(Act::Report(id(1), Strength::Strong)));
    bench.watch.connected(at(101_001), id(1));
    bench.watch.disconnected(at(102_000), id(1), true);
    bench.watch.due(at(102_000), &bench.health);
    bench.watch.connected(at(102_010), id(1));
    assert_eq!(bench.run(102_010..104_000, |_| true), [], "it was there all the time");
}

#[test]
fn strangers_that_come_and_go_leave_nothing_behind() {
    let mut watch = Watch::new(&Config::default(), 1);
    for n in 0..100 {
        watch.connected(at(n), id(5));
        watch.disconnected(at(n), id(5), false);
        assert!(watch.subjects.is_empty());
    }
}

#[test]
fn the_same_is_not_said_twice_and_a_refuted_observer_keeps_quiet() {
    let mut watch = Watch::new(&Config::default(), 1);
    let mut say = |ms, version, strength| {
        watch.may_say(at(ms), id(1), Incarnation(1), Version(version), strength, |_| false)
    };
    assert!(say(0, 1, Strength::Weak));
    assert!(!say(5_000, 1, Strength::Weak));
    assert!(say(5_000, 1, Strength::Strong), "stronger is news");
    assert!(!say(10_000, 2, Strength::Weak), "refuted, and still not heard");
    assert!(say(70_000, 2, Strength::Weak));
    watch.connected(at(71_000), id(1));
    assert!(
        watch.may_say(at(75_000), id(1), Incarnation(1), Version(3), Strength::Weak, |_| false),
        "heard of it since"
    );
    let mut say = |ms, incarnation, version, lost: u64| {
        let lost_since = |said| said < at(lost);
        watch.may_say(at(ms), id(1), incarnation, Version(version), Strength::Weak, lost_since)
    };
    assert!(say(75_001, Incarnation(2), 1, 0), "another life");
    assert!(!say(80_000, Incarnation(2), 2, 75_000), "others were lost before it was accused");
    assert!(say(80_000, Incarnation(2), 2, 79_000), "others have been lost since");
    assert!(!say(81_000, Incarnation(2), 3, 80_500), "not again so soon");
}
