//! Tests of whole clusters in the simulator: crashes, freezes and departures are known within bounds,
//! partitions heal, packet loss fails no member, and instances stay listed when several hosts fall silent.

use std::time::Duration;

use crate::{
    Time,
    config::Config,
    io::Command,
    providers::MemberState,
    record::Instance,
    sim::{NodeIndex, Sim},
};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

fn cluster(seed: u64, n: usize) -> Sim {
    cluster_with(Config::default(), seed, n)
}

fn cluster_with(config: Config, seed: u64, n: usize) -> Sim {
    let mut sim = Sim::new(seed, config);
    sim.add(None);
    for i in 1..n {
        let contact = sim.pick(i);
        sim.add(Some(contact));
        sim.run_for(20 * MS);
    }
    let took = sim.run_while(30 * S, Sim::has_converged);
    assert!(took.is_some(), "{n} nodes did not converge: {}", describe(&sim));
    sim.run_for(25 * S);
    sim.false_alarms.clear();
    sim
}

fn describe(sim: &Sim) -> String {
    sim.nodes()
        .iter()
        .enumerate()
        .map(|(i, node)| {
            let members: Vec<String> =
                node.table().members().map(|m| format!("{}={}", m.name, m.state)).collect();
            let root = node.core().map(|c| c.state().root()[0]);
            let neighbours = node.core().map(|c| c.neighbours().count());
            format!("\n{i} up={} root={root:?} neighbours={neighbours:?} {}", node.is_up(), members.join(" "))
        })
        .collect()
}

#[track_caller]
fn within(sim: &mut Sim, bound: Duration, what: &str, until: impl FnMut(&Sim) -> bool) -> Duration {
    match sim.run_while(bound, until) {
        Some(took) => took,
        None => panic!("not within {bound:?}: {what}{}", describe(sim)),
    }
}

/// Makes a node offer `web` at a port.
fn offer_web(sim: &mut Sim, node: NodeIndex, port: u16) {
    let instance = Instance {
        service: "web".into(),
        address: "10.0.0.1".into(),
        port,
        url: format!("http://10.0.0.1:{port}"),
        ..Instance::default()
    };
    sim.command(node, Command::SetInstance(format!("web:{port}"), Box::new(instance)));
}

#[test]
fn two_nodes_see_each_other_within_a_moment() {
    let mut sim = Sim::new(1, Config::default());
    sim.add(None);
    sim.add(Some(0));
    within(&mut sim, 200 * MS, "both see both", Sim::has_converged);
}

#[test]
fn a_crash_is_known_everywhere_at_once_and_nobody_else_is_accused_to_death() {
    for n in [2, 3, 5, 7, 30, 100] {
        let mut sim = cluster(n as u64, n);
        sim.crash(n / 2);
        let took = within(&mut sim, S, "crash known", |sim| sim.all_believe(n / 2, MemberState::Failed));
        assert!(took < 100 * MS, "{n} nodes: {took:?}");
        sim.run_for(60 * S);
        assert_eq!(sim.false_alarms, []);
        assert!(sim.has_converged(), "{}", describe(&sim));
    }
}

#[test]
fn a_freeze_is_known_within_two_seconds_and_so_is_the_return() {
    for n in [2, 3, 5, 7, 30] {
        let mut sim = cluster(n as u64, n);
        sim.freeze(0);
        let took = within(&mut sim, 4 * S, "freeze known", |sim| sim.all_believe(0, MemberState::Failed));
        // In a small cluster the subject has one or two watchers, and their next pings may be far off.
        let bound = if n < 7 { 2500 * MS } else { 2000 * MS };
        assert!(took < bound, "{n} nodes: {took:?}");
        sim.run_for(10 * S);
        sim.thaw(0);
        let took = within(&mut sim, 5 * S, "thawed and back", Sim::has_converged);
        assert!(took < 2 * S, "{n} nodes: {took:?}");
        assert_eq!(sim.false_alarms, []);
    }
}

#[test]
fn many_that_froze_and_returned_make_nobody_patient() {
    for n in [10, 30] {
        let mut sim = cluster(40 + n as u64, n);
        for round in 0..6 {
            sim.freeze(round);
            within(&mut sim, 4 * S, "freeze known", |sim| sim.all_believe(round, MemberState::Failed));
            // In even rounds the connections of the frozen node are still open, in odd rounds they are
            // closed.
            sim.run_for(if round % 2 == 0 { S } else { 6 * S });
            sim.thaw(round);
            within(&mut sim, 5 * S, "thawed and back", Sim::has_converged);
            sim.run_for(2 * S);
        }
        sim.freeze(7);
        let took = within(&mut sim, 9 * S, "freeze known", |sim| sim.all_believe(7, MemberState::Failed));
        // Two of its watchers may be nodes that were suspended before, and these wait a little longer.
        assert!(took < 2500 * MS, "{n} nodes: {took:?}");
        assert_eq!(sim.false_alarms, []);
    }
}

#[test]
fn a_farewell_is_known_at_once_and_is_not_a_failure() {
    for n in [2, 7, 30] {
        let mut sim = cluster(n as u64, n);
        sim.command(1, Command::Leave);
        within(&mut sim, 30 * MS, "leave known", |sim| sim.all_believe(1, MemberState::Left));
        sim.crash(1);
        sim.run_for(30 * S);
        assert!(sim.all_believe(1, MemberState::Left), "{}", describe(&sim));
    }
}

#[test]
fn a_restart_is_never_listed_twice() {
    let mut sim = cluster(5, 10);
    sim.crash(3);
    sim.run_for(3 * MS);
    sim.start(3, Some(0));
    let took = sim.run_while(10 * S, |sim| {
        for node in sim.nodes().iter().filter(|n| n.is_up()) {
            let named = node.table().members().filter(|m| m.name == "n3").count();
            let offered = node.table().providers("grading").filter(|p| p.node == "n3").count();
            assert!(named <= 1 && offered <= 1);
        }
        sim.has_converged()
    });
    assert!(took.is_some(), "{}", describe(&sim));
}

#[test]
fn half_of_the_cluster_may_die_at_once() {
    let mut sim = cluster(6, 20);
    let dead: Vec<NodeIndex> = (0..20).step_by(2).collect();
    dead.iter().for_each(|i| sim.crash(*i));
    let took = within(&mut sim, 30 * S, "all deaths known", |sim| {
        dead.iter().all(|i| sim.all_believe(*i, MemberState::Failed))
    });
    assert!(took < 5 * S, "{took:?}");
    sim.run_for(60 * S);
    assert_eq!(sim.false_alarms, []);
    assert!(sim.has_converged(), "{}", describe(&sim));
}

#[test]
fn all_but_two_hosts_may_vanish_without_a_word() {
    let mut sim = cluster(7, 10);
    (2..10).for_each(|i| sim.freeze(i));
    within(&mut sim, 60 * S, "all losses known", |sim| {
        (2..10).all(|i| sim.all_believe(i, MemberState::Failed))
    });
    assert!(sim.has_converged(), "{}", describe(&sim));
}

#[test]
fn four_that_survive_of_a_hundred_find_out_about_all_others() {
    for seed in 0..3 {
        let mut sim = cluster(seed, 100);
        (4..100).for_each(|node| sim.freeze(node));
        within(&mut sim, 120 * S, "all losses known", |sim| {
            (4..100).all(|i| sim.all_believe(i, MemberState::Failed))
        });
        assert!(sim.has_converged(), "{}", describe(&sim));
    }
}

#[test]
fn a_partition_serves_on_both_sides_and_heals_within_ten_seconds() {
    for (n, at) in [(2, 1), (4, 2), (10, 3), (30, 15)] {
        let mut sim = cluster(n as u64, n);
        sim.partition(at);
        within(&mut sim, 60 * S, "each side sees the other gone", |sim| {
            let sees = |i: usize| sim.nodes()[i].table().providers("grading").count();
            (0..at).all(|i| sees(i) == at) && (at..n).all(|i| sees(i) == n - at)
        });
        sim.run_for(120 * S);
        sim.heal();
        let took = within(&mut sim, 30 * S, "healed", Sim::has_converged);
        assert!(took < 10 * S, "{n} nodes: {took:?}");
    }
}

#[test]
fn a_partition_of_a_day_heals_by_itself() {
    let mut sim = cluster(9, 6);
    sim.partition(2);
    sim.run_for(24 * 3600 * S);
    sim.heal();
    let took = within(&mut sim, 120 * S, "healed", Sim::has_converged);
    assert!(took < 60 * S, "{took:?}");
}

#[test]
fn an_entry_that_gossip_lost_for_one_node_arrives_within_two_seconds() {
    let n = 20;
    let mut sim = cluster(15, n);
    for (change, node) in (1..).zip(0..n) {
        sim.set_deaf(node, true);
        offer_web(&mut sim, (node + 1) % n, change);
        within(&mut sim, 2 * S, "the node has it", |sim| {
            sim.nodes()[node].table().providers("web").count() == usize::from(change)
        });
        sim.set_deaf(node, false);
        within(&mut sim, 2 * S, "all have it", Sim::has_converged);
        let pause = sim.pick(1_000);
        sim.run_for(MS * u32::try_from(pause).unwrap() + S);
    }
}

#[test]
fn a_node_of_the_version_before_is_compared_with_every_fifteen_seconds() {
    let mut sim = cluster(16, 20);
    sim.set_older(3);
    sim.run_for(20 * S);
    for change in 1..=5 {
        sim.set_deaf(3, true);
        offer_web(&mut sim, 4, change);
        within(&mut sim, 19 * S, "the older node has it", |sim| {
            sim.nodes()[3].table().providers("web").count() == usize::from(change)
        });
        sim.set_deaf(3, false);
        sim.run_for(5 * S);
    }
}

#[test]
fn roots_are_equal_within_three_seconds_after_a_partition_of_many() {
    for (seed, pause) in [(18, 10), (19, 30), (20, 120)] {
        let mut sim = cluster(seed, 30);
        sim.partition(15);
        sim.run_for(pause * S);
        offer_web(&mut sim, 0, 80);
        offer_web(&mut sim, 29, 80);
        sim.run_for(S);
        sim.heal();
        within(&mut sim, 3 * S, "all roots are equal", Sim::has_equal_roots);
    }
}

#[test]
fn an_idle_cluster_compares_by_pongs_alone_and_pings_in_turns() {
    let n = 20;
    let mut sim = cluster(17, n);
    let rounds =
        |sim: &Sim| sim.nodes().iter().map(|n| n.core().unwrap().counters().sync_rounds).sum::<u64>();
    let (before, pings) = (rounds(&sim), sim.pings);
    sim.run_for(100 * S);
    assert!(rounds(&sim) - before <= 20, "{} comparisons", rounds(&sim) - before);
    // Three watchers, each every two seconds.
    assert!((2_900..3_100).contains(&(sim.pings - pings)), "{} pings", sim.pings - pings);
}

#[test]
fn a_one_way_cut_between_two_fails_nobody_and_does_not_flap() {
    let mut sim = cluster(11, 10);
    sim.block(0, 1);
    sim.run_for(120 * S);
    let changes = sim.false_alarms.len();
    assert!(changes <= 2, "{:?}", sim.false_alarms);
    sim.heal();
    within(&mut sim, 30 * S, "healed", Sim::has_converged);
}

#[test]
fn a_fifth_of_all_packets_lost_fails_nobody() {
    let mut sim = cluster(12, 20);
    sim.weather.loss_percent = 20;
    sim.run_for(600 * S);
    assert_eq!(sim.false_alarms, []);
    sim.weather.loss_percent = 0;
    within(&mut sim, 20 * S, "converged", Sim::has_converged);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = |seed| {
        let mut sim = cluster(seed, 8);
        sim.crash(2);
        sim.run_for(10 * S);
        sim.trace()
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[test]
fn a_newcomer_believes_the_verdicts_of_witnesses_that_have_died_since() {
    let mut sim = cluster(13, 12);
    for dead in 0..6 {
        sim.crash(dead);
        sim.run_for(2 * S);
    }
    sim.add(Some(7));
    let took = within(&mut sim, 5 * S, "the newcomer sees what all see", Sim::has_converged);
    assert!(took < S, "{took:?}");
}

#[test]
fn nobody_stays_a_suspect_whom_nobody_confirms() {
    let mut sim = cluster(14, 12);
    // Some pairs stall for a short time: long enough for reports, too short for verdicts.
    for (a, b) in [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)] {
        sim.block(a, b);
        sim.block(b, a);
    }
    sim.run_for(3 * S);
    sim.heal();
    within(&mut sim, 20 * S, "all alive to all", Sim::has_converged);
}

#[test]
fn a_report_that_reached_only_one_leaves_nobody_a_suspect() {
    let mut sim = cluster(15, 12);
    let is_far = |sim: &Sim, i: NodeIndex| {
        let subject = sim.nodes()[1].id();
        i != 1 && sim.nodes()[i].core().is_some_and(|c| c.neighbours().all(|id| id != subject))
    };
    let far = (0..12).find(|i| is_far(&sim, *i)).unwrap();
    let observer = (0..12).rfind(|i| *i != far && *i != 1).unwrap();
    sim.whisper(observer, 1, far);
    assert!(!sim.has_converged(), "it is a suspect to one");
    within(&mut sim, 10 * S, "all alive to all", Sim::has_converged);
}

fn forgetful() -> Config {
    Config { forget_after: 60 * S, ..Config::default() }
}

#[test]
fn who_was_away_for_longer_than_anybody_remembers_comes_back() {
    for n in [2, 5, 12] {
        let mut sim = cluster_with(forgetful(), 17, n);
        let id = sim.nodes()[0].id();
        sim.freeze(0);
        let forgotten = |sim: &Sim| (1..n).all(|i| sim.nodes()[i].table().member(id).is_none());
        within(&mut sim, 120 * S, "it is forgotten", forgotten);
        sim.thaw(0);
        within(&mut sim, 60 * S, "it is back", Sim::has_converged);
    }
}

#[test]
fn the_dead_are_forgotten_by_the_young_when_the_old_forget_them() {
    let mut sim = cluster_with(forgetful(), 18, 6);
    let id = sim.nodes()[5].id();
    sim.crash(5);
    for i in 0..4 {
        // Each node that restarts learns of the death again.
        sim.run_for(25 * S);
        sim.crash(i);
        sim.start(i, Some((i + 1) % 5));
    }
    let forgotten = |sim: &Sim| (0..5).all(|i| sim.nodes()[i].table().member(id).is_none());
    within(&mut sim, 40 * S, "it is forgotten by all", forgotten);
    within(&mut sim, 10 * S, "all agree", Sim::has_converged);
}

#[test]
fn who_restarts_believes_what_it_said_in_its_last_life() {
    let mut sim = cluster(16, 12);
    sim.crash(5);
    sim.run_for(5 * S);
    // The nodes that reported the crash are among these.
    for i in (0..12).filter(|i| *i != 5) {
        sim.crash(i);
        sim.start(i, Some((i + 1) % 5));
        within(&mut sim, 5 * S, "it sees the dead as dead", Sim::has_converged);
        assert_eq!(
            sim.nodes()[i].core().and_then(|c| c.member_state(sim.nodes()[5].id())),
            Some(MemberState::Failed)
        );
    }
}

#[test]
fn a_table_that_is_full_of_instances_comes_to_rest_and_takes_more_when_there_is_room() {
    let n = 6;
    let mut sim = cluster_with(Config { instances_max: 20, ..Config::default() }, 77, n);
    // With one role each, the nodes offer 36 instances in all.
    for node in 0..n {
        for port in 0..5 {
            offer_web(&mut sim, node, port);
        }
    }
    sim.run_for(60 * S);
    let table_full =
        |sim: &Sim| sim.nodes().iter().map(|n| n.core().unwrap().counters().table_full).sum::<u64>();
    assert!(table_full(&sim) > 0);
    for node in sim.nodes() {
        let own = node.core().unwrap().state().node(node.id()).unwrap();
        assert_eq!(own.entries().count(), 7, "its own are all there");
    }
    let (bytes, inputs) = (sim.bytes, sim.nodes().iter().map(|n| n.inputs()).sum::<u64>());
    sim.run_for(60 * S);
    let inputs = sim.nodes().iter().map(|n| n.inputs()).sum::<u64>() - inputs;
    assert!(sim.bytes - bytes < 60 * 20_000, "{} bytes in a minute", sim.bytes - bytes);
    assert!(inputs < 60 * 200, "{inputs} inputs in a minute");
    for node in 0..n {
        for port in 2..5 {
            sim.command(node, Command::RemoveInstance(format!("web:{port}")));
        }
    }
    within(&mut sim, 60 * S, "18 instances everywhere", |sim| {
        sim.has_converged() && sim.nodes().iter().all(|n| n.table().providers("web").count() == 12)
    });
}

/// Ten nodes, two on each of five hosts. All but the first two offer `web`.
fn five_hosts(seed: u64) -> Sim {
    let mut sim = Sim::new(seed, Config::default());
    for node in 0..10u8 {
        sim.add_on(node / 2 + 1, (node > 0).then_some(0));
        sim.run_for(20 * MS);
    }
    within(&mut sim, 30 * S, "ten nodes see each other", Sim::has_converged);
    sim.run_for(25 * S);
    (2..10).for_each(|node| offer_web(&mut sim, node, 80));
    sim.run_for(2 * S);
    sim
}

/// Instances of `web` that a node lists, and how many of them are unverified.
fn web(sim: &Sim, node: NodeIndex) -> (usize, usize) {
    let listed = || sim.nodes()[node].table().providers("web");
    (listed().count(), listed().filter(|provider| provider.unverified).count())
}

/// Explanations that a node has for the nodes that offer `web`.
fn accusations(sim: &Sim, node: NodeIndex) -> String {
    let lines = (2..10).map(|of| {
        let lines = sim.nodes()[node].table().why_member(sim.nodes()[of].id());
        let lines: Vec<_> = lines.skip(1).take(6).map(|(at, _, line)| (at, line)).collect();
        format!("\n{of}: {lines:?}")
    });
    lines.collect()
}

#[test]
fn where_several_hosts_fall_silent_at_once_their_instances_stay_for_a_minute() {
    for seed in 0..4 {
        let mut sim = five_hosts(seed);
        (2..4).for_each(|node| sim.command(node, Command::RemoveInstance("web:80".into())));
        sim.run_for(S);
        (4..10).for_each(|node| sim.freeze(node));
        // For each node: since when it lists only unverified instances, and since when it lists none.
        let mut kept: [Option<Time>; 4] = [None; 4];
        let mut gone: [Option<Time>; 4] = [None; 4];
        within(&mut sim, 120 * S, "they were kept, and are gone", |sim| {
            for node in 0..4 {
                match web(sim, node) {
                    (0, _) => _ = gone[node].get_or_insert(sim.now()),
                    (all, unverified) if all == unverified => _ = kept[node].get_or_insert(sim.now()),
                    _ => (),
                }
            }
            gone.iter().all(Option::is_some)
        });
        for node in 0..4 {
            let stayed = kept[node].map(|kept| gone[node].unwrap().since(kept));
            let is_a_minute = stayed.is_some_and(|stayed| (59 * S..61 * S).contains(&stayed));
            assert!(is_a_minute, "seed {seed}, node {node}: {stayed:?}{}", accusations(&sim, node));
        }
        (4..10).for_each(|node| sim.thaw(node));
        within(&mut sim, 40 * S, "all are back", |sim| (0..10).all(|node| web(sim, node) == (6, 0)));
    }
}

#[test]
fn where_most_hosts_fall_silent_at_once_lookups_go_on_finding_something_for_a_minute() {
    for seed in 0..30 {
        let mut sim = five_hosts(seed);
        (2..10).for_each(|node| sim.freeze(node));
        let claims_sent = |sim: &Sim| format!("seed {seed}{}{}", accusations(sim, 0), accusations(sim, 1));
        let is_marked = |sim: &Sim, node| {
            let (all, unverified) = web(sim, node);
            assert!(all > 0, "nothing is found: {}", claims_sent(sim));
            all == unverified
        };
        let marked = sim.run_while(60 * S, |sim| (0..2).all(|node| is_marked(sim, node)));
        assert!(marked.is_some(), "not all are marked: {}", claims_sent(&sim));
        let found_nothing = sim.run_while(30 * S, |sim| (0..2).any(|node| web(sim, node).0 == 0));
        assert_eq!(found_nothing, None, "{}", claims_sent(&sim));
        let gone = sim.run_while(60 * S, |sim| (0..2).all(|node| web(sim, node) == (0, 0)));
        assert!(gone.is_some(), "some stay: {}", claims_sent(&sim));
    }
}

#[test]
fn silence_is_agreed_upon_where_most_observers_are_silent_themselves() {
    for seed in 0..60 {
        let mut sim = five_hosts(seed);
        (2..10).for_each(|node| sim.freeze(node));
        within(&mut sim, 60 * S, &format!("seed {seed}: all losses are known"), |sim| {
            (2..10).all(|node| sim.all_believe(node, MemberState::Failed))
        });
    }
}

#[test]
fn a_host_that_was_lost_and_returned_shortly_before_hides_no_silence() {
    for seed in 0..60 {
        let mut sim = five_hosts(seed);
        let lost = [4, 5];
        let cut: Vec<(NodeIndex, NodeIndex)> = (0..10)
            .filter(|node| !lost.contains(node))
            .flat_map(|node| lost.map(|lost| [(node, lost), (lost, node)]))
            .flatten()
            .collect();
        cut.iter().for_each(|(from, to)| sim.block(*from, *to));
        within(&mut sim, 20 * S, "the lost host is gone", |sim| (0..2).all(|node| web(sim, node) == (6, 0)));
        // The two other nodes learn of its return from peers before it is silent again.
        let is_of_them = |(from, to): &(NodeIndex, NodeIndex)| *from < 2 || *to < 2;
        sim.unblock(cut.iter().copied().filter(|pair| !is_of_them(pair)));
        within(&mut sim, 30 * S, "it is back", |sim| (0..2).all(|node| web(sim, node) == (8, 0)));
        (2..10).for_each(|node| sim.freeze(node));
        sim.heal();
        let claims_sent = |sim: &Sim| format!("seed {seed}{}{}", accusations(sim, 0), accusations(sim, 1));
        let marked = sim.run_while(60 * S, |sim| {
            (0..2).all(|node| {
                let (all, unverified) = web(sim, node);
                assert!(all > 0, "nothing is found: {}", claims_sent(sim));
                all == unverified
            })
        });
        assert!(marked.is_some(), "not all are marked: {}", claims_sent(&sim));
    }
}

#[test]
fn where_there_is_proof_or_only_one_host_nothing_is_kept() {
    let mut sim = five_hosts(5);
    (2..10).for_each(|node| sim.crash(node));
    // If a member's watchers were killed, too, it remains a suspect until other watchers replace them.
    within(&mut sim, 40 * S, "the killed are gone", |sim| {
        let listed = [web(sim, 0), web(sim, 1)];
        assert!(listed.iter().all(|(_, unverified)| *unverified == 0), "{listed:?}");
        listed == [(0, 0); 2]
    });

    let mut sim = five_hosts(6);
    (2..8).for_each(|node| sim.command(node, Command::RemoveInstance("web:80".into())));
    sim.run_for(S);
    [8, 9].into_iter().for_each(|node| sim.freeze(node));
    within(&mut sim, 5 * S, "the lost host is gone", |sim| {
        let listed: Vec<_> = (0..8).map(|node| web(sim, node)).collect();
        assert!(listed.iter().all(|(_, unverified)| *unverified == 0), "{listed:?}");
        listed.iter().all(|(all, _)| *all == 0)
    });
}
