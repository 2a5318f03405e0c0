//! Tests of user events in the simulator: each node takes an event once, whatever the network loses, repeats
//! or reorders, also across a healed partition; a node does not take what was fired before its start; forged,
//! unknown and too many events are dropped and counted.

use std::{collections::BTreeSet, time::Duration};

use super::*;
use crate::{
    Identity, Incarnation,
    config::Config,
    io::Command,
    sim::{NodeIndex, Sim, Weather},
    wire::EventId,
};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn cluster(seed: u64, n: usize) -> Sim {
    let mut sim = Sim::new(seed, Config::default());
    sim.add(None);
    for _ in 1..n {
        sim.add(Some(0));
        sim.run_for(20 * MS);
    }
    within(&mut sim, 30 * S, "converged", Sim::has_converged);
    sim.run_for(25 * S);
    sim
}

#[track_caller]
fn within(sim: &mut Sim, bound: Duration, what: &str, until: impl FnMut(&Sim) -> bool) {
    assert!(sim.run_while(bound, until).is_some(), "not within {bound:?}: {what}");
}

fn content(name: &str) -> UserEventContent {
    UserEventContent { name: name.into(), payload: b"x".to_vec(), ..UserEventContent::default() }
}

/// Fires an event. Returns it if it was fired.
fn fire(sim: &mut Sim, at: NodeIndex, name: &str) -> Option<UserEvent> {
    let before = sim.nodes()[at].user_events.len();
    sim.command(at, Command::FireUserEvent(FireId(1), Box::new(content(name))));
    sim.nodes()[at].user_events.get(before).cloned()
}

/// Ids of the events that a node took in this life. Panics if it took one twice.
fn taken(sim: &Sim, at: NodeIndex) -> BTreeSet<EventId> {
    let events = &sim.nodes()[at].user_events;
    let ids: BTreeSet<EventId> = events.iter().map(UserEvent::id).collect();
    assert_eq!(ids.len(), events.len(), "node {at} took an event twice");
    ids
}

fn all_took(sim: &Sim, events: &BTreeSet<EventId>) -> bool {
    (0..sim.nodes().len()).filter(|at| sim.nodes()[*at].is_up()).all(|at| taken(sim, at) == *events)
}

fn counters(sim: &Sim, at: NodeIndex) -> UserEventCounters {
    sim.nodes()[at].core().unwrap().user_event_counters()
}

#[test]
fn an_event_reaches_each_node_once_and_at_once() {
    for n in [1, 2, 5, 30] {
        let mut sim = cluster(n as u64, n);
        let event = fire(&mut sim, n / 2, "deploy").unwrap();
        assert_eq!(taken(&sim, n / 2), [event.id()].into(), "at once where it was fired");
        within(&mut sim, 100 * MS, "all have it", |sim| all_took(sim, &[event.id()].into()));
        sim.run_for(60 * S);
        assert!(all_took(&sim, &[event.id()].into()));
        assert!(sim.nodes().iter().all(|node| node.user_events[0] == event));
    }
}

#[test]
fn loss_repetition_and_reordering_neither_lose_nor_repeat_an_event() {
    for seed in 0..8 {
        let mut sim = cluster(100 + seed, 12);
        sim.weather = Weather { loss_percent: 20, delay_min: MS, delay_max: 150 * MS };
        let (mut events, mut messages) = (BTreeSet::new(), Vec::new());
        for round in 0..40 {
            let event = fire(&mut sim, round % 12, &format!("e{round}")).unwrap();
            events.insert(event.id());
            messages.push(wire::encode(&Gossip::UserEvent(event)));
            sim.run_for(50 * MS);
            // A copy of an earlier event arrives at a random node.
            let (at, from, copy) = (sim.pick(12), sim.pick(12), sim.pick(messages.len()));
            let from = sim.nodes()[from].id();
            sim.overhear(at, from, messages[copy].clone());
        }
        sim.weather = Weather::default();
        within(&mut sim, 60 * S, "all have all", |sim| all_took(sim, &events));
        for at in 0..12 {
            let from = sim.nodes()[(at + 1) % 12].id();
            messages.iter().for_each(|copy| sim.overhear(at, from, copy.clone()));
        }
        sim.run_for(60 * S);
        assert!(all_took(&sim, &events), "seed {seed}");
    }
}

#[test]
fn lamport_times_order_an_event_after_those_that_its_origin_had() {
    let mut sim = cluster(3, 5);
    let mut last = 0;
    for round in 0..10 {
        let event = fire(&mut sim, round % 5, "step").unwrap();
        assert!(event.claim.lamport > last);
        last = event.claim.lamport;
        sim.run_for(S);
    }
    assert_eq!(last, 10);
}

#[test]
fn events_cross_a_partition_that_heals() {
    let mut sim = cluster(4, 8);
    sim.partition(4);
    sim.run_for(30 * S);
    let mut events = BTreeSet::new();
    for round in 0..3 {
        events.insert(fire(&mut sim, 0, &format!("left{round}")).unwrap().id());
        events.insert(fire(&mut sim, 5, &format!("right{round}")).unwrap().id());
    }
    sim.run_for(S);
    assert!(!all_took(&sim, &events));
    sim.heal();
    within(&mut sim, 60 * S, "all have all", |sim| all_took(sim, &events));
    assert!((0..8).map(|at| counters(&sim, at).recovered).sum::<u64>() > 0);
    sim.run_for(60 * S);
    assert!(all_took(&sim, &events));
}

#[test]
fn a_node_does_not_take_what_was_fired_before_its_start() {
    let mut sim = cluster(5, 5);
    let old = fire(&mut sim, 0, "old").unwrap();
    sim.run_for(2 * S);
    // A restarted origin does not get its own event back, nor do the others a second time.
    sim.crash(0);
    sim.run_for(2 * S);
    sim.start(0, Some(1));
    let late = sim.add(Some(2));
    within(&mut sim, 30 * S, "converged", Sim::has_converged);
    sim.run_for(60 * S);
    assert!(taken(&sim, late).is_empty() && taken(&sim, 0).is_empty());
    let new = fire(&mut sim, 0, "new").unwrap();
    assert_ne!(new.id(), old.id());
    sim.run_for(S);
    for at in 1..5 {
        assert_eq!(taken(&sim, at), [old.id(), new.id()].into());
    }
    assert_eq!((taken(&sim, late), taken(&sim, 0)), ([new.id()].into(), [new.id()].into()));
}

#[test]
fn a_frozen_node_gets_what_it_missed() {
    let mut sim = cluster(6, 6);
    sim.freeze(3);
    sim.run_for(30 * S);
    let event = fire(&mut sim, 0, "missed").unwrap();
    sim.run_for(30 * S);
    sim.thaw(3);
    within(&mut sim, 60 * S, "it has the event", |sim| all_took(sim, &[event.id()].into()));
}

#[test]
fn what_a_node_missed_does_not_reach_one_that_started_later() {
    let mut sim = cluster(6, 6);
    sim.freeze(3);
    sim.run_for(30 * S);
    let event = fire(&mut sim, 0, "deploy").unwrap();
    sim.run_for(30 * S);
    let late = sim.add(Some(0));
    sim.run_for(10 * S);
    sim.thaw(3);
    within(&mut sim, 60 * S, "it has what it missed", |sim| taken(sim, 3) == [event.id()].into());
    sim.run_for(60 * S);
    assert!(taken(&sim, late).is_empty());
}

#[test]
fn an_origin_over_its_rate_is_refused_where_it_fires_and_dropped_elsewhere() {
    let mut sim = cluster(7, 3);
    let fired = (0..150).filter(|_| fire(&mut sim, 0, "flood").is_some()).count();
    assert_eq!((fired, counters(&sim, 0).refused), (100, 50));
    sim.run_for(2 * S);
    assert!((0..3).all(|at| taken(&sim, at).len() == 100), "receivers drop none of those");
    // A member that ignores its own limit.
    let (me, from) = (sim.identity(1), sim.nodes()[1].id());
    let incarnation = sim.nodes()[0].core().unwrap().state().node(from).unwrap().incarnation();
    for number in 1..=300 {
        let claim = UserEventClaim { by: me.id(), incarnation, number, lamport: 1, content: content("lie") };
        sim.overhear(2, from, wire::encode(&Gossip::UserEvent(claim.sign(&me, "default"))));
    }
    assert_eq!((taken(&sim, 2).len(), counters(&sim, 2).limited), (300, 100));
}

#[test]
fn a_forged_or_unbounded_event_and_one_of_a_stranger_are_dropped() {
    let mut sim = cluster(8, 3);
    let (me, from) = (sim.identity(1), sim.nodes()[1].id());
    let stranger = Identity::from_seed(&[9; 32]);
    let claim = |by, content| UserEventClaim {
        by,
        incarnation: Incarnation(u64::MAX),
        number: u64::MAX,
        lamport: 1,
        content,
    };
    let long = UserEventContent { payload: vec![0; 513], ..content("long") };
    for lie in [
        claim(me.id(), content("forged")).sign(&stranger, "default"),
        claim(me.id(), content("elsewhere")).sign(&me, "elsewhere"),
        claim(stranger.id(), content("stranger")).sign(&stranger, "default"),
        claim(me.id(), long).sign(&me, "default"),
        UserEventClaim { number: 0, ..claim(me.id(), content("none")) }.sign(&me, "default"),
        UserEventClaim { lamport: u64::MAX, ..claim(me.id(), content("late")) }.sign(&me, "default"),
    ] {
        sim.overhear(2, from, wire::encode(&Gossip::UserEvent(lie)));
    }
    assert!(taken(&sim, 2).is_empty());
    let all = sim.nodes()[2].core().unwrap().counters();
    assert_eq!((all.forged, all.malformed, counters(&sim, 2).early), (2, 2, 1));
    // The true origin is not harmed.
    let event = claim(me.id(), content("true")).sign(&me, "default");
    sim.overhear(2, from, wire::encode(&Gossip::UserEvent(event.clone())));
    assert_eq!(taken(&sim, 2), [event.id()].into());
}

#[test]
fn an_answer_fits_one_message_and_the_rest_follows() {
    let mut config = Config { user_events_per_origin_burst: 4000, ..Config::default() };
    config.user_events_per_origin_per_s = 4000;
    let mut sim = Sim::new(9, config);
    sim.add(None);
    sim.add(Some(0));
    sim.run_for(25 * S);
    sim.partition(1);
    sim.run_for(10 * S);
    let filter = "ü".repeat(crate::wire::EVENT_FILTER_CHARS_MAX);
    for _ in 0..EVENTS_MAX {
        let large = UserEventContent {
            name: "large".into(),
            payload: vec![1; crate::wire::EVENT_PAYLOAD_BYTES_MAX],
            node_filter: filter.clone(),
            service_filter: filter.clone(),
            tag_filter: filter.clone(),
        };
        sim.command(0, Command::FireUserEvent(FireId(1), Box::new(large)));
    }
    sim.heal();
    within(&mut sim, 60 * S, "the other has all", |sim| taken(sim, 1).len() == EVENTS_MAX);
}
