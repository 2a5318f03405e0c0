//! Tests of lying members: one that accuses a node as of a header that does not exist hides no death, and
//! one that states the name of another node ends no process.
//!
//! Forged and malformed messages are tested in `intruders.rs`; here every message is well-formed and signed
//! by its author.

// In a test, a failed unwrap is the failure.
#![allow(clippy::unwrap_used)]

use std::{net::SocketAddr, time::Duration};

use hearsay_protocol::{
    Claim, Entry, Fact, Header, Identity, Incarnation, Key, NodeId, Strength, Version,
    wire::{self, Gossip},
};
use hearsay_tests::{Cluster as _, Host, Intruder, Lab, NodeRef, scenario};

const S: Duration = Duration::from_secs(1);
const CLUSTER: &str = "default";

fn swarm_of(i: usize) -> SocketAddr {
    format!("10.77.1.{i}:7600").parse().unwrap()
}

/// The header of an invented node at an address where no node is.
fn header(seed: [u8; 32], name: &str, incarnation: u64) -> Entry {
    let identity = Identity::from_seed(&seed);
    let header = Header {
        name: name.into(),
        addresses: vec!["/ip4/10.77.200.1/tcp/1".into()],
        software: "none".into(),
        ..Header::default()
    };
    let fact = Fact {
        node: identity.id(),
        incarnation: Incarnation(incarnation),
        version: Version(1),
        key: Key::Header,
        value: Some(header.encode()),
    };
    fact.sign(&identity, CLUSTER).unwrap()
}

fn lan(lab: &mut Lab, n: usize) -> (Vec<Host>, Vec<NodeRef>) {
    let hosts: Vec<Host> = (0..n).map(|_| lab.host()).collect();
    let nodes: Vec<NodeRef> =
        hosts.iter().zip(1..).map(|(host, i)| lab.grading(host, &format!("m{i}"))).collect();
    lab.until(5 * S, "all list all", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
    (hosts, nodes)
}

/// Id of the member that a node shows under a name.
fn id_of(lab: &Lab, node: NodeRef, name: &str) -> Option<String> {
    let members = lab.get(node, "/members")?;
    let member = members["members"].as_array()?.iter().find(|member| member["name"] == name)?.clone();
    Some(member["id"].as_str()?.to_owned())
}

#[test]
fn accusations_of_a_header_that_does_not_exist_hide_no_death() {
    scenario("accusations_of_a_header_that_does_not_exist_hide_no_death", |lab| {
        let (_hosts, nodes) = lan(lab, 4);
        let (victim, rest) = (nodes[3], &nodes[..3]);
        let mut intruder = Intruder::connect([7; 32], CLUSTER, swarm_of(1)).unwrap();
        let known = intruder.everything().unwrap();
        let subject = known
            .iter()
            .find(|entry| {
                let header = entry.fact.value.as_deref().and_then(|value| Header::decode(value).ok());
                entry.fact.key == Key::Header && header.is_some_and(|header| header.name == "m4")
            })
            .unwrap()
            .fact
            .clone();
        let ghosts: Vec<[u8; 32]> = (1..=8).map(|n| [n + 90; 32]).collect();
        intruder.gossip_entries(
            ghosts.iter().enumerate().map(|(i, seed)| header(*seed, &format!("ghost{i}"), 1)).collect(),
        );
        lab.until(5 * S, "the invented members are known", |lab| {
            rest.iter().all(|node| (0..8).all(|i| lab.sees(*node, &format!("ghost{i}")).is_some()))
        });
        let accusations = ghosts.iter().map(|seed| {
            let identity = Identity::from_seed(seed);
            let claim = Claim {
                observer: identity.id(),
                subject: subject.node,
                incarnation: subject.incarnation,
                version: Version(u64::MAX),
                strength: Strength::Strong,
            };
            claim.sign(&identity, CLUSTER)
        });
        intruder.gossip(wire::encode(&Gossip::Evidence(accusations.collect())));
        lab.until(5 * S, "the accusations are known", |lab| {
            rest.iter().all(|node| {
                let metrics = lab.text(*node, "/metrics").unwrap_or_default();
                let start = "hearsay_accusations_heard_total ";
                metrics.lines().find_map(|line| line.strip_prefix(start)?.parse::<f64>().ok()) >= Some(8.0)
            })
        });
        assert_eq!(lab.sees(nodes[0], "m4").as_deref(), Some("alive"), "and refuted by nothing");
        // The invented members are declared failed before the victim is, so that they do not watch it.
        lab.until(30 * S, "the invented members are gone", |lab| {
            rest.iter().all(|node| {
                (0..8).all(|i| lab.sees(*node, &format!("ghost{i}")).as_deref() == Some("failed"))
            })
        });
        lab.crash(victim);
        lab.until(5 * S, "its death is known", |lab| {
            rest.iter().all(|node| lab.sees(*node, "m4").as_deref() == Some("failed"))
        });
    });
}

#[test]
fn a_member_that_states_the_names_of_others_ends_no_process() {
    scenario("a_member_that_states_the_names_of_others_ends_no_process", |lab| {
        let (hosts, mut nodes) = lan(lab, 3);
        let ids: Vec<String> = (1..=3).map(|i| id_of(lab, nodes[0], &format!("m{i}")).unwrap()).collect();
        let mut intruder = Intruder::connect([7; 32], CLUSTER, swarm_of(1)).unwrap();
        // The name of each node that runs, and of one that will start; begun long before them.
        let names = ["m1", "m2", "m3", "m4"];
        let liars: Vec<NodeId> = (1..=4).map(|n: u8| Identity::from_seed(&[n + 90; 32]).id()).collect();
        let state = |intruder: &mut Intruder| {
            let lies = names.iter().zip(1u8..).map(|(name, n)| header([n + 90; 32], name, 1000));
            intruder.gossip_entries(lies.collect());
        };
        state(&mut intruder);
        let beside = |i: usize| format!("m{}-{}", i + 1, liars[i].short());
        lab.until(5 * S, "the liars are shown under other names", |lab| {
            nodes.iter().all(|node| (0..3).all(|i| lab.sees(*node, &beside(i)).is_some()))
        });
        for node in &nodes {
            for (i, id) in ids.iter().enumerate() {
                assert_eq!(id_of(lab, *node, &format!("m{}", i + 1)).as_ref(), Some(id));
            }
        }
        // A node of a name that is taken starts, and is itself under its name.
        let host = lab.host();
        let late = lab.grading(&host, "m4");
        lab.until(10 * S, "it is there", |lab| {
            lab.sees(late, "m1").as_deref() == Some("alive")
                && lab.sees(late, "m4").as_deref() == Some("alive")
        });
        let own = lab.get(late, "/members").unwrap();
        assert_eq!(own["node"], "m4");
        let resolved = id_of(lab, late, "m4").unwrap();
        assert_ne!(resolved, liars[3].to_string());
        lab.until(5 * S, "the others list it by its id", |lab| {
            let members = lab.get(nodes[0], "/members").unwrap_or_default();
            let list = members["members"].as_array().cloned().unwrap_or_default();
            list.iter().any(|member| member["id"] == resolved.as_str() && member["state"] == "alive")
        });
        // A restart under the same key, with the liars about: the others knew the node before them.
        lab.crash(nodes[2]);
        nodes[2] = lab.grading(&hosts[2], "m3");
        state(&mut intruder);
        lab.until(10 * S, "all see it under its name", |lab| {
            nodes.iter().all(|node| id_of(lab, *node, "m3").as_ref() == Some(&ids[2]))
        });
        assert_eq!(lab.logged("is already used"), [""; 0]);
        for node in nodes.iter().chain([&late]) {
            assert!(lab.text(*node, "/livez").is_some(), "it runs");
        }
    });
}
