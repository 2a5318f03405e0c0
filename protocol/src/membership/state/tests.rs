//! Tests of the replicated state, mostly with random histories: any order of arrival gives the same entries,
//! comparisons fill gaps, forged entries are refused, and every bound holds.

use proptest::{prelude::*, sample::Index};

use super::*;
use crate::{
    Identity,
    record::{Fact, Health, Instance},
};

/// Next step of an owner: sets a key, removes it, or collects tombstones.
#[derive(Clone, Debug)]
enum Step {
    Set(u8),
    Remove(u8),
    Collect,
}

fn who(seed: u8) -> Identity {
    Identity::from_seed(&[seed; 32])
}

fn header(floor: u64) -> Vec<u8> {
    let header =
        Header { name: "n".into(), software: "test".into(), floor: Version(floor), ..Header::default() };
    header.encode()
}

fn instance(port: u16) -> Vec<u8> {
    let instance = Instance {
        service: "web".into(),
        address: "10.0.0.1".into(),
        port,
        url: "http://10.0.0.1".into(),
        tags: vec![],
        meta: BTreeMap::new(),
        health: Health::Passing,
        since_ms: 0,
        ..Instance::default()
    };
    instance.encode()
}

fn entry(seed: u8, incarnation: u64, version: u64, key: Key, value: Option<Vec<u8>>) -> Entry {
    let (node, incarnation, version) = (who(seed).id(), Incarnation(incarnation), Version(version));
    Fact { node, incarnation, version, key, value }.sign(&who(seed), "default").unwrap()
}

/// Entries that an owner states in these steps.
fn history(seed: u8, incarnation: u64, steps: &[Step]) -> Vec<Entry> {
    let mut all = vec![entry(seed, incarnation, 1, Key::Header, Some(header(0)))];
    for deed in steps {
        let version = all.len() as u64 + 1;
        let name = |k: &u8| {
            if k.is_multiple_of(2) { Key::Instance(format!("i{k}")) } else { Key::Kv(format!("k{k}")) }
        };
        let (key, value) = match deed {
            Step::Set(k) => (name(k), Some(instance(version as u16))),
            Step::Remove(k) => (name(k), None),
            Step::Collect => (Key::Header, Some(header(version))),
        };
        all.push(entry(seed, incarnation, version, key, value));
    }
    all
}

fn steps(max: usize) -> impl Strategy<Value = Vec<Step>> {
    let deed = prop_oneof![
        6 => (0u8..6).prop_map(Step::Set),
        3 => (0u8..6).prop_map(Step::Remove),
        1 => Just(Step::Collect),
    ];
    prop::collection::vec(deed, 0..max)
}

fn state() -> State {
    State::new(&Config::default())
}

/// State that has received the whole history in order.
fn complete(history: &[Entry]) -> State {
    let mut state = state();
    history.iter().for_each(|e| _ = state.apply(e.clone()));
    state
}

fn entries_of(state: &State) -> Vec<Entry> {
    state.nodes().flat_map(|(_, s)| s.entries().cloned().collect::<Vec<_>>()).collect()
}

/// Pulls until the receiver lacks nothing; `None` if that never happens.
fn pull(to: &mut State, from: &State, budget: usize) -> Option<usize> {
    let nodes: Vec<NodeId> = from.nodes().map(|(id, _)| id).collect();
    for pages in 0..1000 {
        let page = nodes.iter().find_map(|id| from.sign_in_url(&to.digest(*id), budget));
        let Some((page, _)) = page else { return Some(pages) };
        page.entries.iter().for_each(|e| _ = to.apply(e.clone()));
        to.confirm_page(&page);
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Without removals of tombstones, which depend on the versions seen before; the next test has them.
    #[test]
    fn any_order_and_repetition_of_arrival_gives_the_same_state(
        steps in steps(24), order in prop::collection::vec(any::<Index>(), 0..60)
    ) {
        let steps: Vec<Step> = steps.into_iter().filter(|d| !matches!(d, Step::Collect)).collect();
        let mut all = history(1, 1000, &steps);
        all.extend(history(2, 1000, &steps[..steps.len() / 2]));
        let expected = complete(&all);
        let mut got = state();
        // First some of the entries, any number of times; entries before their header are refused. Then all
        // of them, backwards.
        order.iter().for_each(|i| _ = got.apply(i.get(&all).clone()));
        all.iter().filter(|e| e.fact.key == Key::Header).for_each(|e| _ = got.apply(e.clone()));
        all.iter().rev().for_each(|e| _ = got.apply(e.clone()));
        prop_assert_eq!(got.root(), expected.root());
        prop_assert_eq!(entries_of(&got), entries_of(&expected));
        for (id, s) in got.nodes() {
            prop_assert_eq!(&s.seen, &VersionSet::up_to(Version(all.iter().filter(|e| e.fact.node == id).count() as u64)));
        }
    }

    #[test]
    fn gaps_are_known_and_filled_whatever_was_missed(
        steps in steps(40), arrived in prop::collection::vec(any::<Index>(), 0..40), budget in 200usize..4000
    ) {
        let all = history(1, 1000, &steps);
        let full = complete(&all);
        let mut got = state();
        arrived.iter().for_each(|i| _ = got.apply(i.get(&all).clone()));
        let missed = !entries_of(&full).iter().all(|e| entries_of(&got).contains(e));
        let id = who(1).id();
        prop_assert!(!missed || State::lacks(&got.digest(id), &full.digest(id)), "what is missing is noticed");
        prop_assert!(pull(&mut got, &full, budget).is_some(), "it comes to an end");
        prop_assert_eq!(entries_of(&got), entries_of(&full));
        prop_assert_eq!(got.root(), full.root());
        prop_assert!(!State::lacks(&full.digest(id), &got.digest(id)));
        // Late entries change nothing.
        all.iter().for_each(|e| _ = got.apply(e.clone()));
        prop_assert_eq!(got.root(), full.root());
    }

    #[test]
    fn two_that_each_missed_something_even_out(
        steps in steps(30), a in prop::collection::vec(any::<Index>(), 1..30), b in prop::collection::vec(any::<Index>(), 1..30)
    ) {
        let steps: Vec<Step> = steps.into_iter().filter(|d| !matches!(d, Step::Collect)).collect();
        let all = history(1, 1000, &steps);
        let some = |indexes: &[Index]| {
            let mut some = vec![all[0].clone()];
            some.extend(indexes.iter().map(|i| i.get(&all).clone()));
            complete(&some)
        };
        let (mut a, mut b) = (some(&a), some(&b));
        prop_assert!(pull(&mut a, &b, 1000).is_some());
        prop_assert!(pull(&mut b, &a, 1000).is_some());
        prop_assert_eq!(entries_of(&a), entries_of(&b));
        prop_assert_eq!(a.root(), b.root());
    }

    /// Three nodes missed different entries. They exchange pages that were made for an older state of the
    /// receiver. Then a node with all entries joins.
    #[test]
    fn no_exchange_among_those_who_missed_something_loses_or_revives_anything(
        steps in steps(30),
        arrived in prop::collection::vec((0usize..3, any::<Index>()), 0..60),
        exchanges in prop::collection::vec((0usize..3, 0usize..3, 0usize..3, any::<Index>(), 200usize..2000), 0..20),
    ) {
        let all = history(1, 1000, &steps);
        let full = complete(&all);
        let id = who(1).id();
        let mut states = [state(), state(), state()];
        arrived.iter().for_each(|(to, i)| _ = states[*to].apply(i.get(&all).clone()));
        for (to, from, then, news, budget) in exchanges {
            let asked = states[to].digest(id);
            _ = states[then].apply(news.get(&all).clone());
            let Some((page, _)) = states[from].sign_in_url(&asked, budget) else { continue };
            page.entries.iter().for_each(|e| _ = states[to].apply(e.clone()));
            states[to].confirm_page(&page);
        }
        for state in &mut states {
            prop_assert!(pull(state, &full, 1000).is_some(), "it comes to an end");
            prop_assert_eq!(entries_of(state), entries_of(&full));
            prop_assert_eq!(state.root(), full.root());
        }
    }

    #[test]
    fn a_higher_incarnation_replaces_the_whole_of_a_lower_one(
        old in steps(20), new in steps(10), order in prop::collection::vec(any::<Index>(), 0..40)
    ) {
        let (old, new) = (history(1, 1000, &old), history(1, 1001, &new));
        let mut all = old.clone();
        all.extend(new.clone());
        let mut got = state();
        order.iter().for_each(|i| _ = got.apply(i.get(&all).clone()));
        prop_assert!(pull(&mut got, &complete(&new), 1000).is_some(), "it comes to an end");
        old.iter().for_each(|e| prop_assert_eq_or_stale(&mut got, e));
        prop_assert_eq!(entries_of(&got), entries_of(&complete(&new)));
        prop_assert_eq!(got.root(), complete(&new).root());
        prop_assert!(complete(&old).sign_in_url(&got.digest(who(1).id()), 1000).is_none(), "the old has nothing to give");
    }

    #[test]
    fn what_is_altered_forged_or_foreign_is_never_admitted(
        steps in steps(10), which in any::<Index>(), what in 0u8..5
    ) {
        let all = history(1, 1000, &steps);
        let mut got = complete(&all[..1]);
        let before = got.root();
        let mut bad = which.get(&all).clone();
        bad.fact.version = Version(bad.fact.version.0 + 1000);
        match what {
            0 => (),
            1 => bad.fact.value = Some(header(7)),
            2 => bad.fact.incarnation = Incarnation(2000),
            3 => bad.fact.key = Key::Kv("other".into()),
            _ => {
                let elsewhere = Fact { version: Version(5000), ..bad.fact.clone() };
                bad = elsewhere.sign(&who(1), "elsewhere").unwrap();
            }
        }
        prop_assert!(matches!(got.apply(bad), Applied::Refused(_) | Applied::NoHeader));
        prop_assert_eq!(got.root(), before);
    }
}

fn prop_assert_eq_or_stale(state: &mut State, old: &Entry) {
    assert_eq!(state.apply(old.clone()), Applied::Stale, "the old life is over");
}

#[test]
fn what_was_overtaken_leaves_no_gap_and_a_forgery_of_it_closes_none() {
    let all = history(1, 1000, &[Step::Set(0), Step::Set(0)]);
    let mut got = complete(&[all[0].clone(), all[2].clone()]);
    let root = got.root();
    let mut forged = all[1].clone();
    forged.fact.value = Some(instance(80));
    assert_eq!(got.apply(forged), Applied::Refused(EntryError::Forged));
    assert_eq!(got.digest(who(1).id()).seen.watermark(), Version(1));
    assert_eq!(got.apply(all[1].clone()), Applied::Stale);
    assert_eq!(got.digest(who(1).id()).seen, VersionSet::up_to(Version(3)));
    assert_eq!(got.root(), root);
}

#[test]
fn every_page_gets_ahead_even_of_one_with_too_many_gaps_to_remember_the_header() {
    let gaps = crate::version_set::VERSION_RANGES_MAX as u64;
    let header_at = |version| entry(1, 1000, version, Key::Header, Some(header(0)));
    let key = |v| entry(1, 1000, v, Key::Kv(format!("k{v}")), Some(vec![0; 100]));
    let last = 2 * gaps + 10;
    let mut all = vec![header_at(1)];
    all.extend((2..last).map(key));
    all.push(header_at(last));
    let full = complete(&all);
    let mut got = complete(&all.iter().filter(|e| e.fact.version.0 % 2 == 1).cloned().collect::<Vec<_>>());
    assert!(pull(&mut got, &full, 0).is_some());
    assert_eq!(entries_of(&got), entries_of(&full));
}

/// Three entries: a value, its deletion, and the owner's statement after the tombstone was removed.
fn collected() -> Vec<Entry> {
    history(1, 1000, &[Step::Set(0), Step::Set(2), Step::Remove(0), Step::Collect])
}

#[test]
fn a_floor_that_comes_in_the_page_deletes_nothing_that_the_page_left_out_as_seen() {
    let all = history(1, 1000, &[Step::Set(0), Step::Set(0), Step::Set(0), Step::Collect]);
    // The node has the first header and the last value. The versions in between are a gap below the floor.
    let mut got = complete(&[all[0].clone(), all[3].clone()]);
    assert!(pull(&mut got, &complete(&all), 1000).is_some());
    assert_eq!(entries_of(&got), entries_of(&complete(&all)));
}

#[test]
fn a_floor_that_comes_before_the_answer_deletes_nothing_that_the_answer_left_out_as_seen() {
    let all = history(1, 1000, &[Step::Set(0), Step::Set(0), Step::Set(0), Step::Collect]);
    let (full, mut got) = (complete(&all), complete(&[all[0].clone(), all[3].clone()]));
    let (answer, _) = full.sign_in_url(&got.digest(who(1).id()), 1000).unwrap();
    got.apply(all[4].clone());
    answer.entries.iter().for_each(|e| _ = got.apply(e.clone()));
    assert_eq!(got.confirm_page(&answer), []);
    assert!(pull(&mut got, &full, 1000).is_some());
    assert_eq!(entries_of(&got), entries_of(&full));
}

#[test]
fn a_newcomer_that_hears_of_the_deleted_from_a_straggler_drops_it_when_it_hears_more() {
    let all = collected();
    let mut newcomer = complete(&[all[4].clone(), all[1].clone()]);
    assert!(pull(&mut newcomer, &complete(&all), 1000).is_some());
    assert_eq!(entries_of(&newcomer), entries_of(&complete(&all)));
}

#[test]
fn who_does_not_know_the_floor_confirms_nothing_below_it() {
    let all = collected();
    let (straggler, mut newcomer) = (complete(&all[..2]), complete(&all[4..]));
    let (page, _) = straggler.sign_in_url(&newcomer.digest(who(1).id()), 1000).unwrap();
    page.entries.iter().for_each(|e| _ = newcomer.apply(e.clone()));
    newcomer.confirm_page(&page);
    assert!(pull(&mut newcomer, &complete(&all), 1000).is_some());
    assert_eq!(entries_of(&newcomer), entries_of(&complete(&all)));
}

#[test]
fn every_bound_holds() {
    let config =
        Config { members_max: 2, entries_per_node_max: 4, instances_per_node_max: 2, ..Config::default() };
    let mut state = State::new(&config);
    for seed in [1, 2] {
        let header = entry(seed, 1, 1, Key::Header, Some(header(0)));
        assert_eq!(state.apply(header), Applied::NewLife);
    }
    assert_eq!(state.apply(entry(3, 1, 1, Key::Header, Some(header(0)))), Applied::Full);
    let mut state_instance =
        |version, id: &str, value| state.apply(entry(1, 1, version, Key::Instance(id.into()), value));
    assert_eq!(state_instance(2, "a", Some(instance(1))), Applied::Updated(None));
    assert_eq!(state_instance(3, "b", Some(instance(1))), Applied::Updated(None));
    assert_eq!(state_instance(4, "c", Some(instance(1))), Applied::Full, "instances");
    assert!(matches!(state_instance(5, "a", None), Applied::Updated(Some(_))), "one may go");
    assert_eq!(state_instance(6, "c", Some(instance(1))), Applied::Updated(None), "and another come");
    assert_eq!(state.apply(entry(1, 1, 7, Key::Kv("k".into()), Some(vec![]))), Applied::Full, "entries");
}

#[test]
fn the_dead_do_not_return_in_the_life_in_which_they_were_forgotten() {
    let mut got = complete(&history(1, 1000, &[Step::Set(0)]));
    let empty = state().root();
    got.forget(who(1).id());
    assert_eq!(got.root(), empty);
    for stale in history(1, 1000, &[Step::Set(0), Step::Set(1)]).iter().chain(&history(1, 999, &[])) {
        assert!(matches!(got.apply(stale.clone()), Applied::Stale | Applied::NoHeader));
    }
    assert_eq!(got.root(), empty);
    // Anti-entropy does not request the entries either.
    let straggler = complete(&history(1, 1000, &[Step::Set(0)]));
    assert_eq!(
        straggler.sign_in_url(&got.digest(who(1).id()), 1000).is_some(),
        State::lacks(&got.digest(who(1).id()), &straggler.digest(who(1).id()))
    );
    assert_eq!(got.apply(history(1, 1001, &[])[0].clone()), Applied::NewLife, "a new life may begin");
}

#[test]
fn only_the_parts_that_differ_are_listed() {
    let first = |seed| entry(seed, 1, 1, Key::Header, Some(header(0)));
    let (mut a, mut b) = (state(), state());
    for seed in 1..=200 {
        a.apply(first(seed));
        b.apply(first(seed));
    }
    assert_eq!(a.parts(), b.parts());
    let second = entry(9, 1, 2, Key::Kv("k".into()), Some(vec![1]));
    a.apply(second);
    b.forget(who(77).id());
    let parts = a.differing_parts(b.parts());
    assert_eq!(parts.count_ones(), 2);
    assert_eq!(parts, b.differing_parts(a.parts()));
    let listed: Vec<NodeId> = a.nodes_in(parts, None).collect();
    assert!(
        listed.contains(&who(9).id()) && listed.contains(&who(77).id()) && listed.len() < 30,
        "{listed:?}"
    );
    assert_eq!(a.nodes_in(ALL_PARTS, None).count(), 200);
    assert_eq!(a.nodes_in(parts, listed.first().copied()).count(), listed.len() - 1);
    // The XOR of the parts is the first half of the root. So all parts are equal while the root differs with
    // probability 2^-64 only.
    for state in [&a, &b] {
        let sum = state.parts().iter().fold(0, |sum, part| sum ^ part);
        assert_eq!(sum.to_le_bytes(), state.root()[..8]);
    }
    assert_eq!(a.differing_parts(&[]), ALL_PARTS, "who tells nothing is told everything");
}

#[test]
fn of_a_node_that_states_too_much_everybody_keeps_the_same() {
    let config = Config { instances_per_node_max: 10, ..Config::default() };
    let named = |n: u64| entry(1, 1, n + 1, Key::Instance(format!("i{n:02}")), Some(instance(1)));
    let all: Vec<Entry> = (1..=15).map(named).collect();
    let orders: [Vec<usize>; 3] =
        [(0..15).collect(), (0..15).rev().collect(), (0..15).map(|n| n * 7 % 15).collect()];
    let states = orders.map(|order| {
        let mut state = State::new(&config);
        state.apply(entry(1, 1, 1, Key::Header, Some(header(0))));
        let mut evicted = 0;
        for place in order {
            state.apply(all[place].clone());
            evicted += state.take_evicted().len();
        }
        (state, evicted)
    });
    assert!(states.iter().all(|(state, _)| state.root() == states[0].0.root()));
    let kept: Vec<u64> = states[1].0.node(who(1).id()).unwrap().entries().map(|e| e.fact.version.0).collect();
    assert_eq!(kept, (1..=11).collect::<Vec<u64>>());
    assert_eq!((states[0].1, states[1].1), (0, 5));
}

/// State of three nodes of different incarnations, each with its header and this many instances.
fn three_nodes(instances: u64) -> Vec<Entry> {
    let mut all = Vec::new();
    for (seed, incarnation) in [(1, 30), (2, 10), (3, 20)] {
        all.push(entry(seed, incarnation, 1, Key::Header, Some(header(0))));
        let named = |n| entry(seed, incarnation, n + 1, Key::Instance(format!("i{n:02}")), Some(instance(1)));
        all.extend((1..=instances).map(named));
    }
    all
}

fn instances_of(state: &State, seed: u8) -> usize {
    state.node(who(seed).id()).map_or(0, |s| s.instances)
}

/// Pulls once from each node. A page counts as seen only if it was applied completely.
fn pull_what_there_is_room_for(to: &mut State, from: &State) {
    for (id, _) in from.nodes() {
        let Some((page, _)) = from.sign_in_url(&to.digest(id), 100_000) else { continue };
        let taken: Vec<Applied> = page.entries.iter().map(|e| to.apply(e.clone())).collect();
        if !taken.contains(&Applied::Full) {
            to.confirm_page(&page);
        }
    }
}

#[test]
fn of_too_many_instances_in_all_those_of_the_newest_nodes_are_left_out() {
    let config = Config { instances_max: 10, ..Config::default() };
    let all = three_nodes(6);
    let (headers, rest): (Vec<&Entry>, Vec<&Entry>) = all.iter().partition(|e| e.fact.key == Key::Header);
    let orders: [Vec<usize>; 3] =
        [(0..18).collect(), (0..18).rev().collect(), (0..18).map(|n| n * 7 % 18).collect()];
    let states = orders.map(|order| {
        let mut state = State::new(&config);
        headers.iter().for_each(|header| _ = state.apply((*header).clone()));
        order.into_iter().for_each(|place| _ = state.apply(rest[place].clone()));
        state
    });
    for state in &states {
        assert_eq!([1, 2, 3].map(|seed| instances_of(state, seed)), [0, 6, 4]);
        assert_eq!(state.instances, 10);
        assert_eq!(state.root(), states[0].root());
    }
    // A withdrawn or lost instance makes room, and anti-entropy brings the displaced one.
    let [mut state, ..] = states;
    let complete = complete(&all);
    let takes_back = entry(2, 10, 8, Key::Instance("i01".into()), None);
    assert!(matches!(state.apply(takes_back), Applied::Updated(_)));
    pull_what_there_is_room_for(&mut state, &complete);
    assert_eq!([1, 2, 3].map(|seed| instances_of(&state, seed)), [0, 5, 5]);
    state.forget(who(2).id());
    pull_what_there_is_room_for(&mut state, &complete);
    assert_eq!([1, 2, 3].map(|seed| instances_of(&state, seed)), [4, 0, 6]);
}

#[test]
fn a_nodes_own_instances_are_never_left_out() {
    let mut state = State::new(&Config { instances_max: 4, ..Config::default() });
    state.set_own(who(1).id());
    three_nodes(6).into_iter().for_each(|entry| _ = state.apply(entry));
    assert_eq!([1, 2, 3].map(|seed| instances_of(&state, seed)), [6, 4, 0]);
    let mut late = State::new(&Config { instances_max: 4, ..Config::default() });
    late.set_own(who(1).id());
    three_nodes(6).into_iter().skip(7).for_each(|entry| _ = late.apply(entry));
    three_nodes(6).into_iter().take(7).for_each(|entry| _ = late.apply(entry));
    assert_eq!([1, 2, 3].map(|seed| instances_of(&late, seed)), [6, 4, 0]);
}
