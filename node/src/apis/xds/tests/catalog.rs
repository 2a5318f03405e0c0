//! Tests of the catalog alone: its bounds, and the order of zones.

use std::time::Duration;

use super::*;
use crate::apis::xds::catalog::LINGERING_MAX;

#[test]
fn of_too_many_services_without_instances_the_oldest_go_early_and_are_counted() {
    let mut fixture = Fixture::new();
    let services: Vec<String> = (0..LINGERING_MAX + 10).map(|n| format!("s{n}")).collect();
    let set = |fixture: &mut Fixture, services: &[String], is_there: bool| {
        for service in services {
            let Change::Instance { node, id, instance } = offered(1, service, |_| ()) else { panic!() };
            let instance = instance.filter(|_| is_there);
            fixture.table.apply(Time::ZERO, Change::Instance { node, id, instance });
        }
        fixture.now += Duration::from_secs(1);
        fixture.update();
    };
    set(&mut fixture, &services, true);
    assert_eq!(fixture.catalog.names().count(), services.len());
    let (oldest, others) = services.split_at(10);
    set(&mut fixture, oldest, false);
    set(&mut fixture, others, false);
    assert!(oldest.iter().all(|service| fixture.catalog.service(service).is_none()));
    assert_eq!(fixture.catalog.names().count(), LINGERING_MAX);
    assert_eq!(fixture.catalog.take_removed_early(), 10);
    fixture.now += LINGER;
    while fixture.catalog.names().next().is_some() {
        fixture.update();
    }
    assert_eq!(fixture.catalog.take_removed_early(), 0, "these went in time");
}

#[test]
fn measured_distances_change_endpoints_only_where_they_change_the_order_of_zones() {
    let mut fixture = Fixture::new();
    fixture.add(1, "web", |_| ());
    fixture.add(3, "web", |_| ());
    let version = fixture.catalog.version();
    // This node's own zone, and a zone that stays the farthest.
    fixture.add_member(4, "a", Some(9));
    fixture.add_member(3, "c", Some(400));
    fixture.update();
    assert_eq!(fixture.catalog.version(), version);
    fixture.add_member(3, "c", Some(1));
    fixture.update();
    assert_eq!(fixture.catalog.version(), version + 1);
}
