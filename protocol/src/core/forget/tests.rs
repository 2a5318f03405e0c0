//! Tests of forgetting members in the simulator: by an operator's order, which also crosses a healed
//! partition, and by age. A live member cannot be forgotten by order, and a forgotten one that lives comes
//! back.

use std::time::Duration;

use crate::{
    Incarnation, NodeId, Version,
    config::Config,
    io::Command,
    providers::MemberState,
    sim::{NodeIndex, Sim},
    wire::{self, Forget, ForgetClaim, Gossip},
};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const MIN: Duration = Duration::from_secs(60);

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

fn is_forgotten_by_all(sim: &Sim, id: NodeId) -> bool {
    sim.nodes().iter().filter(|node| node.is_up()).all(|node| node.table().member(id).is_none())
}

/// Order of node `by` to forget `subject`, with these numbers added to the true incarnation and version.
fn order(sim: &Sim, by: NodeIndex, subject: NodeIndex, lives: u64, versions: u64) -> Forget {
    let id = sim.nodes()[subject].id();
    let s = sim.nodes()[by].core().and_then(|core| core.state().node(id)).unwrap();
    let claim = ForgetClaim {
        by: sim.nodes()[by].id(),
        subject: id,
        incarnation: Incarnation(s.incarnation().0 + lives),
        version: Version(s.header_version().0 + versions),
    };
    claim.sign(&sim.identity(by), "default")
}

#[test]
fn a_failed_member_is_forgotten_everywhere_at_once_when_an_operator_says_so() {
    for n in [2, 5, 30] {
        let mut sim = cluster(n as u64, n);
        let id = sim.nodes()[1].id();
        sim.crash(1);
        within(&mut sim, S, "the crash is known", |sim| sim.all_believe(1, MemberState::Failed));
        sim.command(0, Command::Forget(id));
        assert!(sim.nodes()[0].table().member(id).is_none(), "at once where it was said");
        within(&mut sim, 100 * MS, "it is forgotten", |sim| is_forgotten_by_all(sim, id));
        sim.run_for(60 * S);
        assert!(is_forgotten_by_all(&sim, id) && sim.has_converged());
        for node in sim.nodes().iter().filter(|node| node.is_up()) {
            assert_eq!(node.forgotten_by_operator, [id]);
        }
    }
}

#[test]
fn a_member_that_is_there_cannot_be_forgotten() {
    let mut sim = cluster(3, 5);
    let id = sim.nodes()[1].id();
    sim.command(0, Command::Forget(id));
    // A member gives an order for a member that is alive.
    let lie = order(&sim, 2, 1, 0, 0);
    for hearer in [3, 1] {
        sim.overhear(hearer, sim.nodes()[2].id(), wire::encode(&Gossip::Forget(lie.clone())));
    }
    sim.run_for(5 * S);
    assert!(sim.has_converged());
    assert!(sim.nodes().iter().all(|node| node.forgotten_by_operator.is_empty()));
    let refused = sim.nodes().iter().filter_map(|node| node.core()).map(|c| c.counters().forgets_refused);
    assert!(refused.sum::<u64>() > 0);
    assert!(sim.nodes()[1].core().unwrap().counters().refutations > 0, "the subject answers it");
}

#[test]
fn an_order_counts_only_from_a_member_and_for_the_life_and_header_that_it_names() {
    let mut sim = cluster(4, 5);
    let (id, relay) = (sim.nodes()[1].id(), sim.nodes()[2].id());
    let old = order(&sim, 2, 1, 0, 0);
    // The member states a newer header, and then ends.
    sim.overhear(1, relay, wire::encode(&Gossip::Forget(old.clone())));
    sim.run_for(S);
    sim.crash(1);
    within(&mut sim, S, "the crash is known", |sim| sim.all_believe(1, MemberState::Failed));
    let stranger = crate::Identity::from_seed(&[9; 32]);
    let true_claim = order(&sim, 2, 1, 0, 0).claim;
    let by_stranger = ForgetClaim { by: stranger.id(), ..true_claim }.sign(&stranger, "default");
    let forged = true_claim.sign(&stranger, "default");
    let of_another_cluster = true_claim.sign(&sim.identity(2), "elsewhere");
    let of_a_life_to_come = order(&sim, 2, 1, 1, 0);
    for lie in [old, by_stranger, forged, of_another_cluster, of_a_life_to_come] {
        sim.overhear(0, relay, wire::encode(&Gossip::Forget(lie.clone())));
        assert!(sim.nodes()[0].table().member(id).is_some(), "{lie:?}");
    }
    let order = order(&sim, 2, 1, 0, 0);
    sim.overhear(0, relay, wire::encode(&Gossip::Forget(order)));
    assert!(sim.nodes()[0].table().member(id).is_none());
}

#[test]
fn a_forgotten_member_that_lives_comes_back() {
    for n in [3, 8] {
        let mut sim = cluster(5 + n as u64, n);
        let id = sim.nodes()[1].id();
        sim.freeze(1);
        within(&mut sim, 5 * S, "it is failed", |sim| sim.all_believe(1, MemberState::Failed));
        sim.command(0, Command::Forget(id));
        within(&mut sim, S, "it is forgotten", |sim| is_forgotten_by_all(sim, id));
        sim.run_for(30 * S);
        sim.thaw(1);
        within(&mut sim, 60 * S, "it is back", Sim::has_converged);
        sim.run_for(60 * S);
        assert!(sim.has_converged(), "and stays");
    }
}

#[test]
fn what_was_ordered_beyond_a_partition_is_told_when_it_heals() {
    let mut sim = cluster(6, 8);
    let id = sim.nodes()[7].id();
    sim.crash(7);
    within(&mut sim, S, "the crash is known", |sim| sim.all_believe(7, MemberState::Failed));
    sim.partition(4);
    sim.run_for(30 * S);
    sim.command(0, Command::Forget(id));
    sim.run_for(30 * S);
    assert!(sim.nodes()[5].table().member(id).is_some());
    sim.heal();
    within(&mut sim, 30 * S, "it is forgotten on both sides", |sim| is_forgotten_by_all(sim, id));
    within(&mut sim, 30 * S, "all agree", Sim::has_converged);
    for node in &sim.nodes()[..7] {
        assert_eq!(node.forgotten_by_operator, [id], "each knows that an operator said so");
    }
}

#[test]
fn a_failed_member_that_kept_nothing_is_forgotten_after_ten_minutes() {
    let mut sim = cluster(7, 5);
    let (passing, left) = (sim.add_ephemeral(Some(0)), sim.add_ephemeral(Some(1)));
    within(&mut sim, 5 * S, "both are there", Sim::has_converged);
    let [kept, passing_id, left_id] = [4, passing, left].map(|i| sim.nodes()[i].id());
    sim.command(left, Command::Leave);
    sim.run_for(S);
    [4, passing, left].into_iter().for_each(|i| sim.crash(i));
    within(&mut sim, 5 * S, "the crash is known", |sim| sim.all_believe(passing, MemberState::Failed));
    sim.run_for(9 * MIN);
    assert!(sim.all_believe(passing, MemberState::Failed), "not yet");
    within(&mut sim, 2 * MIN, "it is forgotten", |sim| is_forgotten_by_all(sim, passing_id));
    sim.run_for(60 * MIN);
    assert!(is_forgotten_by_all(&sim, passing_id));
    for node in &sim.nodes()[..4] {
        assert!(node.table().member(kept).is_some(), "one that can come back is remembered");
        assert!(node.table().member(left_id).is_some(), "one that left is no alarm");
        assert_eq!(node.forgotten_by_operator, [], "there was no such order");
    }
}
