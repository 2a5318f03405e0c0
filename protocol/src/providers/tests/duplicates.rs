//! Tests of programs with several registrations: lookups and watchers see each program once, and another
//! registration takes over when one is removed.

use proptest::prelude::*;

use super::*;

fn node(seed: u8) -> NodeId {
    Identity::from_seed(&[seed; 32]).id()
}

fn gone(seed: u8, id: &str) -> Change {
    Change::Instance { node: node(seed), id: id.into(), instance: None }
}

/// Two node seeds; the first gives the lower node id.
fn low_and_high() -> [u8; 2] {
    if node(1) < node(2) { [1, 2] } else { [2, 1] }
}

/// Changes that a watcher sees after `index`, abbreviated.
fn told_after(t: &ProviderTable, index: Index) -> Vec<String> {
    let in_words = |(_, change): &(Index, ServiceChange)| match change {
        ServiceChange::Added(p) => format!("+{}", p.id),
        ServiceChange::Changed(p) => format!("~{}", p.id),
        ServiceChange::Replaced { before, after } => format!("{}>{}", before.id, after.id),
        ServiceChange::Removed(p) => format!("-{}", p.id),
    };
    t.changes_after(index).unwrap().map(in_words).collect()
}

#[test]
fn a_watcher_sees_a_program_of_two_nodes_once_until_its_last_registration_is_gone() {
    let [low, high] = low_and_high();
    let mut t = table([member(1, MemberState::Alive), member(2, MemberState::Alive)]);
    let mut told_by = |change: Change| {
        let (index, service) = (t.index(), t.service_index("web"));
        t.apply(Time::ZERO, change);
        let told = told_after(&t, index);
        assert_eq!(told.is_empty(), t.service_index("web") == service, "{told:?}");
        (told.join(" "), t.index() > index)
    };
    assert_eq!(told_by(instance(low, "low", "web")), ("+low".into(), true));
    // A change that no lookup shows moves only the index of the table.
    assert_eq!(told_by(instance(high, "high", "web")), (String::new(), true));
    assert_eq!(told_by(with(high, "high", |i| i.weight = Some(2))), (String::new(), true));
    assert_eq!(told_by(with(low, "low", |i| i.weight = Some(2))), ("~low".into(), true));
    assert_eq!(told_by(gone(low, "low")), ("low>high".into(), true));
    assert_eq!(told_by(instance(low, "low", "web")), ("high>low".into(), true));
    // The healthier registration counts, whatever its node.
    assert_eq!(told_by(with(low, "low", |i| i.health = Health::Warning)), ("low>high".into(), true));
    assert_eq!(told_by(member(high, MemberState::Failed)), ("high>low".into(), true));
    assert_eq!(told_by(member(low, MemberState::Left)), ("-low".into(), true));
}

#[test]
fn several_ids_of_one_node_give_way_one_by_one() {
    let [low, high] = low_and_high();
    let mut t = table([member(1, MemberState::Alive), member(2, MemberState::Alive)]);
    for (seed, id) in [(low, "a"), (low, "b"), (high, "b"), (high, "c"), (high, "d")] {
        t.apply(Time::ZERO, instance(seed, id, "web"));
    }
    let index = t.index();
    t.apply(Time::ZERO, gone(low, "a"));
    t.apply(Time::ZERO, gone(low, "b"));
    assert_eq!(told_after(&t, index), ["-a", "b>b", "+c", "+d"], "the same id first");
    let index = t.index();
    t.apply(Time::ZERO, instance(low, "a", "web"));
    assert_eq!(told_after(&t, index), ["b>a", "-c", "-d"]);
}

#[test]
fn a_program_that_moves_leaves_its_place_to_the_other_registration() {
    let [low, high] = low_and_high();
    let mut t = table([member(1, MemberState::Alive), member(2, MemberState::Alive)]);
    t.apply(Time::ZERO, instance(low, "low", "web"));
    t.apply(Time::ZERO, instance(high, "high", "web"));
    let index = t.index();
    t.apply(Time::ZERO, with(low, "low", |i| i.port = 81));
    assert_eq!(told_after(&t, index), ["low>high", "+low"]);
    let index = t.index();
    t.apply(Time::ZERO, with(low, "low", |i| i.port = 82));
    assert_eq!(told_after(&t, index), ["~low"]);
}

/// Change of a registration or of a node.
fn step() -> impl Strategy<Value = Change> {
    let health = prop_oneof![Just(Health::Passing), Just(Health::Warning), Just(Health::Critical)];
    let address = prop_oneof![3 => Just("10.0.0.1"), 1 => Just("127.0.0.1")];
    let placed =
        (1..4_u8, 0..2_u8, 80..82_u16, health, address).prop_map(|(seed, id, port, health, address)| {
            with(seed, &id.to_string(), |i| (i.port, i.health, i.address) = (port, health, address.into()))
        });
    let removed = (1..4_u8, 0..2_u8).prop_map(|(seed, id)| gone(seed, &id.to_string()));
    let state = prop_oneof![Just(MemberState::Alive), Just(MemberState::Suspect), Just(MemberState::Left)];
    prop_oneof![5 => placed, 2 => removed, 1 => (1..4_u8, state).prop_map(|(seed, state)| member(seed, state))]
}

/// Address and port of each program in a lookup.
fn endpoints<'a>(providers: impl Iterator<Item = &'a Arc<Provider>>) -> BTreeSet<(String, u16)> {
    providers.map(|p| (p.instance.address.clone(), p.instance.port)).collect()
}

proptest! {
    #[test]
    fn changes_lead_from_one_lookup_to_the_next_and_hide_no_program_that_stays(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut t = table((1..4).map(|seed| member(seed, MemberState::Alive)));
        let mut seen: BTreeMap<ProviderKey, Arc<Provider>> = BTreeMap::new();
        let key = |p: &Arc<Provider>| (p.node_id, p.id.clone());
        for step in steps {
            let (index, before) = (t.index(), endpoints(t.providers("web")));
            t.apply(Time::ZERO, step);
            let after = endpoints(t.providers("web"));
            let stays: BTreeSet<_> = before.intersection(&after).cloned().collect();
            for (_, change) in t.changes_after(index).unwrap() {
                match change {
                    ServiceChange::Added(p) => prop_assert!(seen.insert(key(p), Arc::clone(p)).is_none()),
                    ServiceChange::Changed(p) => prop_assert!(seen.insert(key(p), Arc::clone(p)).is_some()),
                    ServiceChange::Replaced { before, after } => {
                        prop_assert_eq!(seen.remove(&key(before)), Some(Arc::clone(before)));
                        prop_assert!(seen.insert(key(after), Arc::clone(after)).is_none());
                    }
                    ServiceChange::Removed(p) => prop_assert_eq!(seen.remove(&key(p)), Some(Arc::clone(p))),
                }
                prop_assert!(endpoints(seen.values()).is_superset(&stays));
            }
            let expected: BTreeMap<_, _> =
                t.providers_distinct("web").map(|p| (key(p), Arc::clone(p))).collect();
            prop_assert_eq!(&seen, &expected);
            prop_assert_eq!(endpoints(seen.values()), after);
        }
    }
}
