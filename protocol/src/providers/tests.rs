//! Tests of the provider table: which providers it lists, and which changes its readers see.

mod duplicates;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{change::ProviderKey, explanations::*, table::HISTORY_MAX, *};
use crate::{
    Identity, Incarnation, Instance, NodeId, Time, Version,
    record::{CheckSummary, Health, Origin},
};

fn member(seed: u8, state: MemberState) -> Change {
    Change::Member(Box::new(Member {
        id: Identity::from_seed(&[seed; 32]).id(),
        name: format!("n{seed}"),
        state,
        roles: vec![],
        addresses: vec![],
        http: None,
        zone: None,
        software: "test".into(),
        protocol: 1,
        ephemeral: false,
        grpc: None,
        incarnation: Incarnation(1),
        version: Version(1),
        since: Time::ZERO,
        rtt: None,
        rank: 0,
        namesake: false,
    }))
}

fn instance(seed: u8, id: &str, service: &str) -> Change {
    Change::Instance {
        node: Identity::from_seed(&[seed; 32]).id(),
        id: id.into(),
        instance: Some(Arc::new(Instance {
            service: service.into(),
            address: "10.0.0.1".into(),
            port: 80,
            url: "http://10.0.0.1:80".into(),
            tags: vec![],
            meta: BTreeMap::new(),
            health: Health::Passing,
            since_ms: 0,
            ..Instance::default()
        })),
    }
}

fn table(changes: impl IntoIterator<Item = Change>) -> ProviderTable {
    let mut table = ProviderTable::new(Index(100));
    changes.into_iter().for_each(|c| table.apply(Time::ZERO, c));
    table
}

#[test]
fn instances_are_listed_while_their_node_is_present() {
    use MemberState::{Alive, Failed, Suspect};
    let mut t = table([member(1, Alive), instance(1, "a", "web"), instance(2, "b", "web")]);
    assert_eq!(t.providers("web").count(), 1, "the node of b is not a member");
    t.apply(Time::ZERO, member(2, Suspect));
    assert_eq!(t.providers("web").count(), 2);
    t.apply(Time::ZERO, member(1, Failed));
    assert_eq!(t.providers("web").map(|p| p.id.as_str()).collect::<Vec<_>>(), ["b"]);
    t.apply(Time::ZERO, member(1, Alive));
    assert_eq!(t.providers("web").count(), 2);
}

#[test]
fn a_connection_and_a_new_subnet_reorder_addresses_and_a_reader_is_told() {
    let Change::Member(mut of_role) = member(1, MemberState::Alive) else { unreachable!() };
    let id = of_role.id;
    of_role.http = Some("10.0.0.1:80".into());
    of_role.roles = vec!["web".into()];
    of_role.addresses = ["/ip4/10.0.0.1/tcp/1", "/ip4/10.1.0.1/tcp/1"].map(str::to_owned).into();
    let mut t = table([Change::Member(of_role.clone()), instance(1, "a", "web")]);
    let first =
        |t: &ProviderTable| t.providers("web").next().map(|p| (p.url().into_owned(), p.addresses.len()));
    assert_eq!(first(&t), Some(("http://10.0.0.1:80".into(), 2)));
    let index = t.index();
    t.set_connected(id, "10.1.0.1".parse().unwrap());
    assert_eq!(first(&t), Some(("http://10.1.0.1:80".into(), 2)));
    assert_eq!(t.changes_after(index).unwrap().count(), 1);
    t.set_connected(id, "10.1.0.1".parse().unwrap());
    t.set_subnets(vec![Subnet { address: "10.1.0.9".parse().unwrap(), prefix: 16 }]);
    assert_eq!(t.changes_after(index).unwrap().count(), 1, "no other order, no change");
    let lines = t.why_service("web").count();
    of_role.addresses.truncate(1);
    t.apply(Time::ZERO, Change::Member(of_role));
    assert_eq!(first(&t), Some(("http://10.0.0.1:80".into(), 1)), "the header has lost the other one");
    assert_eq!(lines, 1, "a new order is nothing that happened to the instance");
}

#[test]
fn a_new_life_takes_back_what_the_last_one_offered() {
    let mut t = table([member(1, MemberState::Alive), instance(1, "a", "web")]);
    let Change::Member(mut reborn) = member(1, MemberState::Alive) else { unreachable!() };
    reborn.incarnation = Incarnation(2);
    t.apply(Time::ZERO, Change::Member(reborn));
    assert_eq!(t.providers_len(), 0);
    t.apply(Time::ZERO, instance(1, "a", "web"));
    assert_eq!(t.providers_len(), 1);
}

#[test]
fn a_watcher_resumes_where_it_was_or_is_told_to_start_anew() {
    let mut t = table([member(1, MemberState::Alive), instance(1, "a", "web")]);
    let index = t.index();
    assert_eq!(t.changes_after(index).unwrap().count(), 0);
    t.apply(Time::ZERO, instance(1, "b", "web"));
    assert_eq!(t.changes_after(index).unwrap().count(), 1);
    assert!(t.changes_after(Index(t.index().0 + 1)).is_none(), "an index of another table");
    for i in 0..HISTORY_MAX {
        t.apply(Time::ZERO, instance(1, "b", if i % 2 == 0 { "x" } else { "y" }));
    }
    assert!(t.changes_after(index).is_none());
}

#[test]
fn a_services_index_moves_only_with_that_service() {
    let mut t = table([member(1, MemberState::Alive), instance(1, "a", "web")]);
    let web = t.service_index("web");
    t.apply(Time::ZERO, instance(1, "b", "db"));
    assert_eq!(t.service_index("web"), web);
    assert!(t.service_index("db") > web);
    t.apply(Time::ZERO, instance(1, "b", "db"));
    assert_eq!(t.changes_after(web).unwrap().count(), 1, "the same value again is no change");
}

#[test]
fn a_query_that_waits_for_a_service_not_there_is_not_woken_by_others() {
    let mut t = table([member(1, MemberState::Alive)]);
    let never = t.service_index("never");
    let Change::Instance { node, id, instance: Some(web) } = instance(1, "a", "web") else { unreachable!() };
    for port in 0..2 * HISTORY_MAX {
        let web = Instance { port: u16::try_from(port).unwrap(), ..(*web).clone() };
        t.apply(Time::ZERO, Change::Instance { node, id: id.clone(), instance: Some(Arc::new(web)) });
    }
    assert_eq!(t.service_index("never"), never);
    // A removed service that leaves the history moves this index, because a reader may wait for the removal.
    let gone = t.index();
    t.apply(Time::ZERO, Change::Instance { node, id, instance: None });
    for port in 0..2 * HISTORY_MAX {
        let other = Instance { service: "db".into(), port: u16::try_from(port).unwrap(), ..(*web).clone() };
        t.apply(Time::ZERO, Change::Instance { node, id: "b".into(), instance: Some(Arc::new(other)) });
    }
    assert!(t.service_index("web") > gone);
    assert_eq!(t.touched.len(), 1);
}

#[test]
fn an_instance_that_moves_to_another_service_is_never_listed_twice() {
    let t = table([member(1, MemberState::Alive), instance(1, "a", "web"), instance(1, "a", "db")]);
    assert_eq!(t.services().collect::<Vec<_>>(), ["db"]);
    assert_eq!(t.why_service("web").count(), 2);
}

/// Changes the instance with this id.
fn with(seed: u8, id: &str, change: impl FnOnce(&mut Instance)) -> Change {
    let Change::Instance { node, id, instance: Some(stated) } = instance(seed, id, "web") else {
        unreachable!()
    };
    let mut stated = (*stated).clone();
    change(&mut stated);
    Change::Instance { node, id, instance: Some(Arc::new(stated)) }
}

#[test]
fn a_check_that_finds_something_else_is_explained_by_service_and_by_instance() {
    let checked = |status, output: &str| {
        let check = |id: &str, status| CheckSummary {
            id: id.into(),
            status,
            output: output.into(),
            took_ms: 3,
            ..CheckSummary::default()
        };
        with(1, "a", |i| {
            i.health = status;
            i.checks = vec![check("http", status), check("tcp", Health::Passing)];
        })
    };
    let mut t = table([member(1, MemberState::Alive), checked(Health::Passing, "200")]);
    let (lines, timeline) = (t.why_service("web").count(), t.timeline().count());
    assert_eq!(t.why_instance("a").count(), 0, "it came with its checks");
    t.apply(Time::ZERO, checked(Health::Critical, "refused"));
    let (_, node, line) = t.why_instance("a").last().unwrap();
    assert_eq!(*node, Identity::from_seed(&[1; 32]).id());
    let Explanation::CheckChanged { service, instance, check, status, output, took_ms } = line else {
        panic!("{line:?}")
    };
    let told = (service.as_str(), instance.as_str(), check.as_str(), output.as_str());
    assert_eq!((told, *status, *took_ms), (("web", "a", "http", "refused"), Health::Critical, 3));
    assert_eq!(t.why_service("web").count(), lines + 1, "no line says that it changed besides");
    assert_eq!(t.timeline().count(), timeline + 1);
    for n in 0..EXPLAINED_INSTANCES_MAX + 1 {
        let name = |status| {
            with(1, &n.to_string(), |i| i.checks = vec![CheckSummary { status, ..CheckSummary::default() }])
        };
        t.apply(Time::from_start(Duration::from_secs(1)), name(Health::Passing));
        t.apply(Time::from_start(Duration::from_secs(1)), name(Health::Warning));
    }
    assert_eq!(t.why_instance("a").count(), 0, "the oldest went first");
    assert_eq!(t.why_instance("4096").count(), 1);
}

#[test]
fn an_instance_registered_with_two_nodes_counts_once_in_lookups() {
    use MemberState::Alive;
    let ids = |t: &ProviderTable| t.providers_distinct("web").map(|p| p.id.clone()).collect::<BTreeSet<_>>();
    let expect = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
    let [low, high] =
        if Identity::from_seed(&[1; 32]).id() < Identity::from_seed(&[2; 32]).id() { [1, 2] } else { [2, 1] };
    let mut t = table([
        member(1, Alive),
        member(2, Alive),
        instance(low, "low", "web"),
        instance(high, "high", "web"),
    ]);
    assert_eq!((ids(&t), t.providers("web").count()), (expect(&["low"]), 2));
    t.apply(Time::ZERO, with(low, "low", |i| i.health = Health::Critical));
    assert_eq!(ids(&t), expect(&["high"]), "the passing one counts");
    t.apply(Time::ZERO, with(high, "again", |_| ()));
    assert_eq!(ids(&t), expect(&["high", "again"]), "one node may list it twice");
    t.apply(Time::ZERO, with(low, "low", |i| i.port = 81));
    assert_eq!(ids(&t), expect(&["high", "again", "low"]), "another port");
    for own in ["127.0.0.1", "::1", "[::1]", "localhost", "::ffff:127.0.0.1"] {
        let there = |seed, id: &str| with(seed, id, |i| i.address = own.into());
        let t = table([member(1, Alive), member(2, Alive), there(1, "a"), there(2, "b")]);
        assert_eq!(ids(&t), expect(&["a", "b"]), "{own}");
    }
    let role = |seed, id: &str| with(seed, id, |i| i.origin = Origin::Role);
    let t = table([member(1, Alive), member(2, Alive), role(1, "a"), role(2, "b")]);
    assert_eq!(ids(&t), expect(&["a", "b"]), "roles belong to their nodes");
}

#[test]
fn a_provider_has_the_zone_and_weight_that_its_instance_states_or_its_node_has() {
    let Change::Member(mut node) = member(1, MemberState::Alive) else { unreachable!() };
    node.zone = Some("node".into());
    let both = with(1, "b", |i| (i.zone, i.weight, i.origin) = (Some("own".into()), Some(0), Origin::Role));
    let t = table([Change::Member(node), instance(1, "a", "web"), both]);
    let of: Vec<_> = t.providers("web").map(|p| (p.zone(), p.weight(), p.is_role())).collect();
    assert_eq!(of, [(Some("node"), 1, false), (Some("own"), 0, true)]);
}

#[test]
fn services_and_members_are_found_by_label_as_long_as_they_are_listed() {
    let mut table = table([member(1, MemberState::Alive), member(2, MemberState::Alive)]);
    for (id, service) in
        [("a", "My Web"), ("b", "my.web"), ("c", "web"), ("d", "WEB"), ("e", &"x".repeat(64))]
    {
        table.apply(Time::ZERO, instance(1, id, service));
    }
    assert_eq!(table.service_labelled("my-web"), Some("My Web"), "the first in byte order");
    assert_eq!(table.service_labelled("web"), Some("web"), "the exact name");
    assert_eq!(table.service_labels().collect::<Vec<_>>(), [("my-web", "My Web"), ("web", "web")]);
    assert_eq!(table.name_clashes(), [2, 0]);
    let gone = |id: &str| Change::Instance {
        node: Identity::from_seed(&[1; 32]).id(),
        id: id.into(),
        instance: None,
    };
    table.apply(Time::ZERO, gone("a"));
    table.apply(Time::ZERO, gone("c"));
    assert_eq!(
        (table.service_labelled("my-web"), table.service_labelled("web")),
        (Some("my.web"), Some("WEB"))
    );
    assert_eq!(table.name_clashes(), [0, 0]);
    table.apply(Time::ZERO, member(1, MemberState::Failed));
    assert_eq!(table.service_labels().count(), 0);

    let named = |seed: u8, name: &str, ip: &str| {
        let Change::Member(member) = member(seed, MemberState::Alive) else { unreachable!() };
        let addresses = vec![format!("/ip4/{ip}/tcp/7600"), "/dns4/m.example/tcp/7600".into()];
        Change::Member(Box::new(Member { name: name.into(), addresses, ..*member }))
    };
    let label = |table: &ProviderTable, label: &str| table.member_labelled(label).map(|m| m.name.clone());
    let at = |table: &ProviderTable, ip: &str| table.member_at(ip.parse().unwrap()).map(|m| m.name.clone());
    table.apply(Time::ZERO, named(2, "n 3", "10.0.0.2"));
    table.apply(Time::ZERO, named(3, "N-3", "10.0.0.3"));
    assert_eq!((label(&table, "n-3"), table.name_clashes()), (Some("N-3".into()), [0, 1]));
    assert_eq!(at(&table, "10.0.0.2"), Some("n 3".into()));
    table.apply(Time::ZERO, named(3, "n-3", "10.0.0.4"));
    assert_eq!(label(&table, "n-3"), Some("n-3".into()));
    assert_eq!((at(&table, "10.0.0.3"), at(&table, "10.0.0.4")), (None, Some("n-3".into())));
    table.apply(Time::ZERO, Change::Forgotten(Identity::from_seed(&[3; 32]).id()));
    assert_eq!((label(&table, "n-3"), at(&table, "10.0.0.4")), (Some("n 3".into()), None));
    table.apply(Time::ZERO, member(2, MemberState::Left));
    assert_eq!((label(&table, "n-2"), label(&table, "n2"), at(&table, "10.0.0.2")), (None, None, None));
}
