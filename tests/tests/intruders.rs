//! Tests of malicious peers: forged, altered, replayed or malformed messages, floods of announcements and
//! spoofed mDNS make no live member fail, and memory stays bounded.

// In a test, a failed unwrap is the failure.
#![allow(clippy::unwrap_used)]

use std::{net::SocketAddr, time::Duration};

use hearsay_protocol::{
    Claim, Entry, Fact, Header, Health, Identity, Incarnation, Instance, Key, NodeId, Presence, Strength,
    Version,
    wire::{self, Gossip, MESSAGE_BYTES_MAX, Page, Request},
};
use hearsay_tests::{Cluster as _, Intruder, Lab, NodeRef, scenario, spoof_mdns};

const S: Duration = Duration::from_secs(1);
const CLUSTER: &str = "default";

fn lan(lab: &mut Lab, n: usize) -> Vec<NodeRef> {
    let nodes: Vec<NodeRef> = (1..=n)
        .map(|i| {
            let host = lab.host();
            lab.grading(&host, &format!("m{i}"))
        })
        .collect();
    lab.until(5 * S, "all list all", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
    nodes
}

fn swarm_of(i: usize) -> SocketAddr {
    format!("10.77.1.{i}:7600").parse().unwrap()
}

/// Generator of bytes that are the same in every run.
fn noise(seed: u32, length: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(2_654_435_761).max(1);
    (0..length)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as u8
        })
        .collect()
}

fn is_header(entry: &&Entry) -> bool {
    entry.fact.key == Key::Header
}

/// Returns a counter of a node; 0 without an answer.
fn counted(lab: &Lab, node: NodeRef, name: &str) -> f64 {
    let metrics = lab.text(node, "/metrics").unwrap_or_default();
    let start = format!("hearsay_{name}_total ");
    metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok()).unwrap_or(0.0)
}

fn all_is_well(lab: &Lab, nodes: &[NodeRef]) {
    lab.until(10 * S, "all list all, and no other member", |lab| lab.all_list_all(nodes) && lab.agree(nodes));
    assert_eq!(lab.logged("panicked"), [""; 0]);
    for node in nodes {
        assert!(lab.resident_kb(*node) < 100_000, "{} kB resident", lab.resident_kb(*node));
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "one scenario, step by step")]
fn what_is_forged_altered_or_malformed_is_not_believed() {
    scenario("what_is_forged_altered_or_malformed_is_not_believed", |lab| {
        let nodes = lan(lab, 3);
        let mut intruder = Intruder::connect([7; 32], CLUSTER, swarm_of(1)).unwrap();
        let known = intruder.everything().unwrap();
        assert_eq!(known.iter().filter(is_header).count(), 3);
        let mut lies = Vec::new();
        for entry in &known {
            // The true signature under another statement.
            let mut newer = entry.clone();
            newer.fact.version = Version(newer.fact.version.0 + 1);
            let mut next_life = entry.clone();
            next_life.fact.incarnation = Incarnation(next_life.fact.incarnation.0 + 1);
            let mut gone = newer.clone();
            gone.fact.value = None;
            lies.extend([newer, next_life, gone]);
            if entry.fact.key == Key::Header {
                // A leave message for another node, signed by the intruder.
                let mut header = Header::decode(entry.fact.value.as_deref().unwrap()).unwrap();
                header.presence = Presence::Left;
                let fact = Fact {
                    node: intruder.identity.id(),
                    version: Version(entry.fact.version.0 + 1),
                    value: Some(header.encode()),
                    ..entry.fact.clone()
                };
                // The intruder's own entry, made for another cluster.
                lies.push(fact.clone().sign(&intruder.identity, "elsewhere").unwrap());
                let mut farewell = fact.sign(&intruder.identity, CLUSTER).unwrap();
                farewell.fact.node = entry.fact.node;
                lies.push(farewell);
            }
        }
        let headers: Vec<Entry> = known.iter().filter(is_header).cloned().collect();
        let claims: Vec<_> = headers
            .iter()
            .map(|subject| {
                let observer = headers.iter().find(|h| h.fact.node != subject.fact.node).unwrap();
                let claim = Claim {
                    observer: observer.fact.node,
                    subject: subject.fact.node,
                    incarnation: subject.fact.incarnation,
                    version: subject.fact.version,
                    strength: Strength::Strong,
                };
                claim.sign(&intruder.identity, CLUSTER)
            })
            .collect();
        // Each lie goes to a node that has not disconnected the intruder yet: peers that lie often are cut
        // off.
        for (i, lie) in lies.iter().enumerate() {
            let seed = [u8::try_from(i % 200).unwrap() + 20; 32];
            if i % 6 == 0
                && let Ok(next) = Intruder::connect(seed, CLUSTER, swarm_of(1 + i % 3))
            {
                intruder = next;
            }
            intruder.gossip_entries(vec![lie.clone()]);
            let page = Page {
                node: lie.fact.node,
                incarnation: lie.fact.incarnation,
                covers: hearsay_protocol::VersionSet::up_to(lie.fact.version),
                entries: vec![lie.clone()],
                evidence: claims.clone(),
            };
            intruder.ask(wire::encode(&Request::Push(vec![page])));
        }
        let mut intruder = Intruder::connect([8; 32], CLUSTER, swarm_of(2)).unwrap();
        intruder.gossip(wire::encode(&Gossip::Evidence(claims)));
        intruder.let_pass(S);
        lab.until(5 * S, "forgeries are counted", |lab| {
            nodes.iter().map(|n| counted(lab, *n, "forged")).sum::<f64>() > 10.0
        });
        assert_eq!(lab.logged("member failed"), [""; 0]);
        assert_eq!(lab.logged("member left"), [""; 0]);
        // Not well-formed.
        for i in 0..40u32 {
            intruder.gossip(noise(i, 10 + 97 * i as usize));
            intruder.ask(noise(1000 + i, 1 + 131 * i as usize));
            if i % 8 == 7
                && let Ok(next) =
                    Intruder::connect([u8::try_from(i).unwrap() + 100; 32], CLUSTER, swarm_of(2))
            {
                intruder = next;
            }
        }
        // One byte too many, and very many.
        for (seed, length) in [(5, MESSAGE_BYTES_MAX + 1), (6, 8 * 1024 * 1024)] {
            let answer = Intruder::connect([seed; 32], CLUSTER, swarm_of(3)).unwrap().ask(vec![1; length]);
            assert_eq!(answer, None, "{length} bytes are no request");
        }
        lab.until(5 * S, "garbage is counted", |lab| counted(lab, nodes[1], "malformed") > 3.0);
        all_is_well(lab, &nodes);
    });
}

#[test]
fn what_was_true_once_is_not_believed_again() {
    scenario("what_was_true_once_is_not_believed_again", |lab| {
        let hosts = [lab.host(), lab.host(), lab.host()];
        let mut nodes: Vec<NodeRef> =
            hosts.iter().enumerate().map(|(i, host)| lab.grading(host, &format!("m{}", i + 1))).collect();
        lab.until(5 * S, "all list all", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
        let recorded = Intruder::connect([7; 32], CLUSTER, swarm_of(1)).unwrap().everything().unwrap();
        // m3 restarts and m2 leaves for good; then the intruder replays their earlier messages.
        lab.crash(nodes[2]);
        nodes[2] = lab.grading(&hosts[2], "m3");
        lab.until(5 * S, "m3 is back", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
        let incarnation = |lab: &Lab| {
            let members = lab.get(nodes[0], "/members").unwrap();
            let list = members["members"].as_array().unwrap().clone();
            list.iter().find(|m| m["name"] == "m3").unwrap()["incarnation"].as_u64()
        };
        let before = incarnation(lab);
        lab.leave(nodes[1]);
        let rest = [nodes[0], nodes[2]];
        lab.until(5 * S, "m2 left", |lab| lab.all_list_all(&rest));
        let mut intruder = Intruder::connect([8; 32], CLUSTER, swarm_of(1)).unwrap();
        for _ in 0..3 {
            intruder.gossip_entries(recorded.clone());
            for entry in &recorded {
                let page = Page {
                    node: entry.fact.node,
                    incarnation: entry.fact.incarnation,
                    covers: hearsay_protocol::VersionSet::up_to(Version(1_000_000)),
                    entries: vec![entry.clone()],
                    evidence: Vec::new(),
                };
                intruder.ask(wire::encode(&Request::Push(vec![page])));
            }
            intruder.let_pass(S);
        }
        assert_eq!(incarnation(lab), before);
        assert_eq!(lab.sees(nodes[0], "m2").as_deref(), Some("left"));
        all_is_well(lab, &rest);
    });
}

/// A header and `instances` instances of an invented node.
fn invented(seed: [u8; 32], name: &str, instances: u64) -> Vec<Entry> {
    let identity = Identity::from_seed(&seed);
    let node: NodeId = identity.id();
    let fact = |version: u64, key, value| Fact {
        node,
        incarnation: Incarnation(1),
        version: Version(version),
        key,
        value: Some(value),
    };
    let header = Header {
        name: name.into(),
        addresses: vec!["/ip4/10.77.200.1/tcp/1".into()],
        software: "none".into(),
        ..Header::default()
    };
    let mut entries = vec![fact(1, Key::Header, header.encode()).sign(&identity, CLUSTER).unwrap()];
    for i in 0..instances {
        let instance = Instance {
            service: "flood".into(),
            address: "10.77.200.1".into(),
            port: 1,
            url: format!("http://10.77.200.1/{i}"),
            tags: vec![],
            meta: Default::default(),
            health: Health::Passing,
            since_ms: 0,
            ..Instance::default()
        };
        let key = Key::Instance(format!("i{i}"));
        entries.push(fact(i + 2, key, instance.encode()).sign(&identity, CLUSTER).unwrap());
    }
    entries
}

#[test]
fn a_flood_of_announcements_delays_no_verdict_and_fills_no_memory() {
    scenario("a_flood_of_announcements_delays_no_verdict_and_fills_no_memory", |lab| {
        let nodes = lan(lab, 5);
        let mut intruder = Intruder::connect([7; 32], CLUSTER, swarm_of(1)).unwrap();
        // More instances than one node may have.
        for batch in invented([7; 32], "flood", 12_000).chunks(200) {
            intruder.gossip_entries(batch.to_vec());
        }
        let rest = nodes[..4].to_vec();
        lab.crash(nodes[4]);
        lab.until(3 * S, "a crash is known in the flood", |lab| {
            rest.iter().all(|n| lab.sees(*n, "m5").as_deref() == Some("failed"))
        });
        drop(intruder);
        // Members that cannot be reached, far more than real ones. Nodes may have disconnected the first
        // intruder.
        let mut intruder = Intruder::connect([8; 32], CLUSTER, swarm_of(1)).unwrap();
        for i in 0..100u8 {
            let mut seed = [i; 32];
            seed[0] = 99;
            intruder.gossip_entries(invented(seed, &format!("ghost{i}"), 3));
        }
        lab.until(5 * S, "all are believed at first", |lab| {
            rest.iter().all(|n| (0..100).all(|i| lab.sees(*n, &format!("ghost{i}")).is_some()))
        });
        drop(intruder);
        lab.until(60 * S, "what was invented is gone from the table", |lab| {
            lab.all_list_all(&rest)
                && rest.iter().all(|n| {
                    let services = lab.get(*n, "/services").unwrap_or_default();
                    services["services"]["flood"].as_array().is_none_or(Vec::is_empty)
                })
        });
        lab.until(20 * S, "equal roots", |lab| lab.agree(&rest));
        for node in &rest {
            assert!(lab.resident_kb(*node) < 200_000, "{} kB resident", lab.resident_kb(*node));
            assert_eq!(lab.sees(*node, "m1").as_deref(), Some("alive"));
        }
        let live =
            lab.logged("member failed").into_iter().filter(|l| l.contains("name=\"m")).collect::<Vec<_>>();
        assert!(live.iter().all(|l| l.contains("\"m5\"")), "{live:?}");
    });
}

#[test]
fn spoofed_mdns_is_a_hint_and_no_more() {
    scenario("spoofed_mdns_is_a_hint_and_no_more", |lab| {
        let mut nodes = lan(lab, 3);
        let from = "10.77.0.1".parse().unwrap();
        // More than a node keeps.
        let peers: Vec<String> = (0..1_500u16)
            .map(|i| {
                let mut seed = [0; 32];
                seed[..2].copy_from_slice(&i.to_le_bytes());
                let key = libp2p::identity::Keypair::ed25519_from_bytes(seed).unwrap();
                key.public().to_peer_id().to_string()
            })
            .collect();
        let flood = || {
            for (i, peer) in peers.iter().enumerate() {
                spoof_mdns(from, peer, &format!("/ip4/10.77.1.{}/tcp/7600", 1 + i % 5)).unwrap();
            }
        };
        flood();
        // A true member at a false address.
        let members = lab.get(nodes[0], "/members").unwrap();
        let id = members["members"][1]["id"].as_str().unwrap().to_owned();
        spoof_mdns(from, &id, "/ip4/10.77.1.1/tcp/9").unwrap();
        lab.throughout(3 * S, "no node is misled", |lab| lab.all_list_all(&nodes));
        lab.until(10 * S, "a flood is noticed", |lab| {
            let noticed = nodes.iter().all(|node| counted(lab, *node, "mdns_floods") >= 1.0);
            // A busy machine drops datagrams, so lost ones are sent again.
            if !noticed {
                flood();
            }
            noticed
        });
        let host = lab.host();
        nodes.push(lab.grading(&host, "m4"));
        assert_eq!(lab.logged("member failed"), [""; 0]);
        all_is_well(lab, &nodes);
    });
}
