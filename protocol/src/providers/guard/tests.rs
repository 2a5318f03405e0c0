//! Tests of the table guard, which keeps instances listed when several hosts fall silent at once: when it
//! acts, when it does not, and when it ends.

use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    Incarnation, Version,
    providers::{Change, Explanation, Index, Member, ServiceChange},
    record::Instance,
};

fn id(seed: u8) -> NodeId {
    NodeId::from_public_key([seed; 32])
}

fn at(s: u64) -> Time {
    Time::from_start(Duration::from_secs(s))
}

/// A member on the host with this number.
fn on_host(seed: u8, host: u8, state: MemberState) -> Change {
    Change::Member(Box::new(Member {
        id: id(seed),
        name: format!("n{seed}"),
        state,
        roles: vec![],
        addresses: vec!["/ip4/127.0.0.1/tcp/7600".into(), format!("/ip4/10.0.0.{host}/tcp/7600")],
        http: None,
        zone: None,
        software: "test".into(),
        protocol: 3,
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

fn member(seed: u8, state: MemberState) -> Change {
    on_host(seed, seed, state)
}

fn offer(seed: u8, service: &str, health: Health) -> Change {
    let instance = Instance {
        service: service.into(),
        address: format!("10.0.0.{seed}"),
        port: 80,
        url: format!("http://10.0.0.{seed}"),
        health,
        ..Instance::default()
    };
    Change::Instance { node: id(seed), id: service.into(), instance: Some(Arc::new(instance)) }
}

/// Table with members 1 to 3, each on a separate host; `web` runs on 1 and 2, `db` on 1 only.
fn table() -> ProviderTable {
    let mut table = ProviderTable::new(Index(0));
    for seed in 1..=3 {
        table.apply(Time::ZERO, member(seed, MemberState::Alive));
    }
    for (seed, service) in [(1, "web"), (2, "web"), (1, "db")] {
        table.apply(Time::ZERO, offer(seed, service, Health::Passing));
    }
    table
}

fn fall_silent(table: &mut ProviderTable, s: u64, seed: u8) {
    table.apply(at(s), Change::Silent { node: id(seed), since: at(s) });
    table.apply(at(s), member(seed, MemberState::Failed));
}

/// Listed instances of a service: node seed and health of each.
fn listed(table: &ProviderTable, service: &str) -> Vec<(u8, &'static str)> {
    table.providers(service).map(|p| (p.node_id.public_key()[0], p.health_word())).collect()
}

#[test]
fn the_last_instances_of_hosts_that_fall_silent_together_stay_for_a_minute() {
    let mut t = table();
    fall_silent(&mut t, 10, 1);
    assert_eq!(listed(&t, "web"), [(2, "passing")]);
    assert_eq!(listed(&t, "db"), [], "one host alone");
    let before = t.index();
    fall_silent(&mut t, 14, 2);
    assert_eq!(listed(&t, "web"), [(1, "unverified"), (2, "unverified")]);
    assert_eq!(listed(&t, "db"), [(1, "unverified")], "its host was not alone");
    let of_web = |change: &&(Index, ServiceChange)| change.1.provider().instance.service == "web";
    let changes = t.changes_after(before).unwrap();
    assert!(changes.filter(of_web).all(|(_, change)| !matches!(change, ServiceChange::Removed(_))));
    assert!(matches!(t.why_service("web").last().unwrap().2, Explanation::Kept(..)));
    assert_eq!((t.guarded_total(), t.poll_timeout()), (2, Some(at(74))));
    t.expire(at(73));
    assert_eq!(listed(&t, "web").len(), 2);
    t.expire(at(74));
    assert_eq!((listed(&t, "web"), listed(&t, "db"), t.poll_timeout()), (vec![], vec![], None));
    assert!(matches!(t.why_service("web").last().unwrap().2, Explanation::Removed(..)));
}

#[test]
fn what_fell_silent_at_once_is_found_out_one_after_the_other() {
    let mut t = table();
    t.apply(Time::ZERO, offer(3, "web", Health::Passing));
    t.apply(Time::ZERO, Change::Instance { node: id(1), id: "db".into(), instance: None });
    for (concluded, reported, seed) in [(12, 10, 3), (24, 22, 1), (60, 34, 2)] {
        t.apply(at(concluded), Change::Silent { node: id(seed), since: at(reported) });
        t.apply(at(concluded), member(seed, MemberState::Failed));
    }
    assert_eq!(listed(&t, "web"), [1, 2, 3].map(|seed| (seed, "unverified")));
    assert_eq!(t.poll_timeout(), Some(at(120)));
}

#[test]
fn an_instance_that_passes_ends_it() {
    let mut t = table();
    fall_silent(&mut t, 10, 1);
    fall_silent(&mut t, 11, 2);
    t.apply(at(12), offer(3, "web", Health::Critical));
    assert_eq!(listed(&t, "web").len(), 3, "a critical one is none that passes");
    t.apply(at(13), offer(3, "web", Health::Passing));
    assert_eq!(listed(&t, "web"), [(3, "passing")]);
    assert_eq!(listed(&t, "db"), [(1, "unverified")], "another service");
    t.apply(at(14), member(1, MemberState::Alive));
    assert_eq!(listed(&t, "db"), [(1, "passing")], "the member has returned");
    assert_eq!(listed(&t, "web"), [(1, "passing"), (3, "passing")]);
    assert_eq!(t.poll_timeout(), None);
}

#[test]
fn a_member_that_returns_is_not_removed_on_the_way() {
    let mut t = table();
    t.apply(Time::ZERO, offer(2, "db", Health::Passing));
    fall_silent(&mut t, 10, 1);
    fall_silent(&mut t, 11, 2);
    let before = t.index();
    t.apply(at(12), member(1, MemberState::Suspect));
    let removed = t.changes_after(before).unwrap().filter_map(|(_, change)| match change {
        ServiceChange::Removed(provider) => Some(provider.node_id),
        _ => None,
    });
    assert_eq!(removed.collect::<BTreeSet<_>>(), BTreeSet::from([id(2)]));
    assert_eq!(listed(&t, "web"), [(1, "passing")]);
}

#[test]
fn it_does_not_act() {
    let nothing = |t: &ProviderTable, why: &str| {
        assert_eq!((listed(t, "web"), listed(t, "db"), t.guarded_total()), (vec![], vec![], 0), "{why}");
    };
    let mut t = table();
    for seed in [1, 2] {
        t.apply(at(10), member(seed, MemberState::Failed));
    }
    nothing(&t, "there is proof that they are gone");

    let mut t = table();
    fall_silent(&mut t, 10, 1);
    t.apply(at(11), member(2, MemberState::Left));
    nothing(&t, "one has left");

    let mut t = table();
    fall_silent(&mut t, 10, 1);
    fall_silent(&mut t, 26, 2);
    nothing(&t, "too far apart");

    let mut t = table();
    t.apply(at(9), on_host(2, 1, MemberState::Alive));
    for seed in [1, 2] {
        t.apply(at(10), Change::Silent { node: id(seed), since: at(10) });
        t.apply(at(10), on_host(seed, 1, MemberState::Failed));
    }
    nothing(&t, "one host");

    let mut t = table();
    for (seed, service) in [(1, "web"), (2, "web"), (1, "db")] {
        t.apply(at(9), offer(seed, service, Health::Critical));
    }
    fall_silent(&mut t, 10, 1);
    fall_silent(&mut t, 10, 2);
    nothing(&t, "their checks had failed");

    let mut t = table();
    t.apply(at(9), offer(3, "web", Health::Passing));
    fall_silent(&mut t, 10, 2);
    fall_silent(&mut t, 11, 3);
    assert_eq!(listed(&t, "web"), [(1, "passing")], "one passes");
    assert_eq!(t.guarded_total(), 0);
}

#[test]
fn what_a_silent_member_takes_back_goes() {
    let silent = || {
        let mut t = table();
        fall_silent(&mut t, 10, 1);
        fall_silent(&mut t, 10, 2);
        t
    };
    let mut t = silent();
    t.apply(at(11), member(1, MemberState::Left));
    assert_eq!((listed(&t, "web"), listed(&t, "db")), (vec![(2, "unverified")], vec![]));
    t.apply(at(11), Change::Forgotten(id(2)));
    assert_eq!((listed(&t, "web"), t.poll_timeout()), (vec![], None));

    let mut t = silent();
    t.apply(at(11), offer(1, "web", Health::Critical));
    assert_eq!(listed(&t, "web"), [(2, "unverified")]);
    t.apply(at(11), Change::Instance { node: id(2), id: "web".into(), instance: None });
    assert_eq!(listed(&t, "web"), []);
    t.apply(at(11), offer(1, "cache", Health::Passing));
    assert_eq!(listed(&t, "cache"), [], "nothing new is kept");
    t.apply(at(12), offer(1, "db", Health::Passing));
    assert_eq!(listed(&t, "db"), [(1, "unverified")]);
}
