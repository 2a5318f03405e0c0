//! What the table lists, and what a reader of it is told.

use super::*;
use crate::{Identity, record::Health};

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
        incarnation: Incarnation(1),
        version: Version(1),
        since: Time::ZERO,
        rtt: None,
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
    // One that goes, and is forgotten, moves it: a reader may have been waiting for that one.
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
