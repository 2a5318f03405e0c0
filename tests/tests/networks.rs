//! Tests that nodes find each other and clients reach their services when hosts have several networks, only
//! IPv6, both IP versions, or ports that a container host maps.

// In a test, a failed unwrap is the failure.
#![allow(clippy::unwrap_used)]

use std::{net::SocketAddr, time::Duration};

use hearsay_tests::{Cluster as _, Host, Lab, NodeRef, get, scenario, sh};
use serde_json::Value;

const S: Duration = Duration::from_secs(1);

/// Returns the only instance of grading, as a node lists it.
fn grading(lab: &Lab, by: NodeRef) -> Option<Value> {
    let services = lab.get(by, "/services/grading")?;
    let instances = services["services"]["grading"].as_array()?;
    (instances.len() == 1).then(|| instances[0].clone())
}

fn addresses(instance: &Value) -> Vec<&str> {
    instance["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Returns the students through a gateway; `None` if it has none.
fn students_at(gateway: &str) -> Option<String> {
    let gateway: SocketAddr = gateway.parse().unwrap();
    get(gateway, "/students")?.as_array().map(|students| format!("{students:?}"))
}

/// Checks that gateway, portal and command line of this host read the grade book of another node.
fn all_ways_lead_to_the_book(lab: &Lab, host: &Host, node: NodeRef) {
    lab.until(10 * S, "the gateway brings the grade book", |_| {
        students_at(&format!("{}:8080", host.ip)).is_some_and(|students| students.contains("Roberto"))
    });
    lab.until(10 * S, "the portal shows the grade book", |lab| {
        lab.text(node, "/portal").is_some_and(|page| page.contains("Roberto"))
    });
    let export = lab.command(Some(host), "cli", &["grades", "export"]).output().unwrap();
    let csv = String::from_utf8_lossy(&export.stdout).into_owned();
    assert!(csv.contains("Roberto"), "{csv}{}", String::from_utf8_lossy(&export.stderr));
}

#[test]
fn a_laptop_in_a_vpn_is_reached_over_the_lan() {
    scenario("a_laptop_in_a_vpn_is_reached_over_the_lan", |lab| {
        let (laptop, desk) = (lab.host(), lab.host());
        // The other end of the tunnel leads to no network of the desk.
        sh(&format!("ip link add vpn type veth peer name tun0 netns {} && ip link set vpn up", laptop.name));
        laptop.sh("ip addr add 10.88.0.5/24 dev tun0");
        laptop.sh("ip link set tun0 up");
        laptop.sh("ip route add default dev tun0");
        laptop.sh("ip route add 224.0.0.0/4 dev eth0");
        desk.sh("ip route add default via 10.77.0.254");
        let roles = ["--role", "grading,log", "--demo", "--name", "laptop"];
        let book = lab.start(Some(&laptop), "laptop", 7500, &roles);
        let reader = lab.start(Some(&desk), "desk", 7500, &["--role", "gateway,portal", "--name", "desk"]);
        let lan = format!("{}:7500", laptop.ip);
        lab.until(15 * S, "the desk lists the address that it reaches first, and the other one", |lab| {
            let instance = grading(lab, reader).unwrap_or_default();
            instance["url"] == format!("http://{lan}")
                && addresses(&instance)[..2] == [lan.as_str(), "10.88.0.5:7500"]
        });
        let members = lab.get(reader, "/members").unwrap_or_default()["members"].clone();
        let https: Vec<_> = members.as_array().into_iter().flatten().map(|m| m["http"].as_str()).collect();
        assert!(https.contains(&Some(&*lan)), "{https:?}");
        let own = grading(lab, book).unwrap();
        assert_eq!(own["url"], "http://10.88.0.5:7500", "on its own host the stated address is as good");
        all_ways_lead_to_the_book(lab, &desk, reader);
        lab.until(15 * S, "what the desk says is in the laptop's log", |lab| {
            lab.text(book, "/log?limit=1000").is_some_and(|log| log.contains("\"node\":\"desk\""))
        });
    });
}

#[test]
fn an_address_that_falls_silent_is_passed_over() {
    scenario("an_address_that_falls_silent_is_passed_over", |lab| {
        let (server, desk) = (lab.host(), lab.host());
        sh("ip link add br1 type bridge && ip link set br1 up");
        for (n, host) in [(1, &server), (2, &desk)] {
            let name = &host.name;
            sh(&format!(
                "ip link add w{name} type veth peer name eth1 netns {name} && ip link set w{name} master br1 up && \
                 ip -n {name} addr add 10.78.0.{n}/16 dev eth1 && ip -n {name} link set eth1 up"
            ));
        }
        lab.start(Some(&server), "server", 7500, &["--role", "grading", "--demo", "--name", "server"]);
        let reader = lab.start(Some(&desk), "desk", 7500, &["--role", "gateway,portal", "--name", "desk"]);
        lab.until(15 * S, "both addresses are listed", |lab| {
            grading(lab, reader).is_some_and(|instance| addresses(&instance).len() >= 2)
        });
        // No request was sent there yet, so no open connection has to fail first.
        let instance = grading(lab, reader).unwrap();
        let first = instance["address"].as_str().unwrap();
        server.sh(&format!(
            "nft 'add table inet lab; add chain inet lab in {{ type filter hook input priority 0; }}; \
             add rule inet lab in ip daddr {first} tcp dport 7500 drop'"
        ));
        all_ways_lead_to_the_book(lab, &desk, reader);
    });
}

/// Removes a host's IPv4 addresses, if it is to have IPv6 alone, and gives it an IPv6 address.
fn give_ipv6(host: &Host, number: usize, alone: bool) -> Host {
    if alone {
        host.sh("ip -4 addr flush dev eth0");
    }
    host.sh(&format!("ip -6 addr add fd77::{number}/64 dev eth0 nodad"));
    let ip = if alone { format!("[fd77::{number}]") } else { host.ip.clone() };
    Host { name: host.name.clone(), ip }
}

#[test]
fn hosts_with_ipv6_alone_find_each_other_with_no_options() {
    scenario("hosts_with_ipv6_alone_find_each_other_with_no_options", |lab| {
        sh("ip -6 addr add fd77::ffff/64 dev br0 nodad");
        let hosts: Vec<Host> = (1..=3).map(|n| give_ipv6(&lab.host(), n, true)).collect();
        let nodes: Vec<NodeRef> =
            hosts.iter().enumerate().map(|(i, host)| lab.grading(host, &format!("m{}", i + 1))).collect();
        lab.until(20 * S, "all list all, by mDNS alone", |lab| lab.all_list_all(&nodes));
        let services = lab.get(nodes[0], "/services/grading").unwrap_or_default();
        let urls = services["services"]["grading"].to_string();
        assert!(urls.contains("http://[fd77::1]:7500") && !urls.contains("fe80"), "{urls}");
        let doctor = lab.command(Some(&hosts[0]), "cli", &["doctor"]).output().unwrap();
        let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(
            doctor.status.success() && told.contains("has only IPv6") && !told.contains("0.0.0.0"),
            "{told}"
        );
        lab.crash(nodes[2]);
        lab.until(3 * S, "a crash is known", |lab| lab.sees(nodes[0], "m3").as_deref() == Some("failed"));
    });
}

#[test]
fn a_host_with_both_families_meets_hosts_with_either() {
    scenario("a_host_with_both_families_meets_hosts_with_either", |lab| {
        sh("ip -6 addr add fd77::ffff/64 dev br0 nodad");
        let both = give_ipv6(&lab.host(), 1, false);
        let six = give_ipv6(&lab.host(), 2, true);
        let four = lab.host();
        four.sh("ip -6 addr flush dev eth0");
        for (cluster, other) in [("six", &six), ("four", &four)] {
            let name = format!("{cluster}-both");
            let arguments = ["--role", "grading", "--cluster", cluster, "--name"];
            let nodes = [
                lab.start(Some(&both), &name, 7500, &[&arguments[..], &[&name]].concat()),
                lab.start(Some(other), cluster, 7500, &[&arguments[..], &[cluster]].concat()),
            ];
            lab.until(20 * S, "both list both", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
            lab.until(5 * S, "each lists the other at an address of the family that both have", |lab| {
                let urls = nodes.map(|n| lab.get(n, "/services/grading").unwrap_or_default().to_string());
                let expected = if cluster == "six" { "http://[fd77::1]:" } else { "http://10.77." };
                urls[1].contains(&format!("\"url\":\"{expected}"))
            });
            lab.crash(nodes[0]);
            lab.until(3 * S, "a crash is known", |lab| {
                lab.sees(nodes[1], &name).as_deref() == Some("failed")
            });
        }
    });
}

/// Container: its only network is one with its host `on`, which maps two ports to it. It has no way out.
fn container(lab: &mut Lab, on: &Host) -> Host {
    let inside = lab.host();
    inside.sh("ip link del eth0");
    sh(&format!(
        "ip -n {0} link add vc type veth peer name eth0 netns {1} && ip -n {0} addr add 10.99.0.1/24 dev vc && \
         ip -n {0} link set vc up && ip -n {1} addr add 10.99.0.2/24 dev eth0 && ip -n {1} link set eth0 up",
        on.name, inside.name
    ));
    on.sh("sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'");
    on.sh("nft 'add table ip lab; add chain ip lab in { type nat hook prerouting priority -100; }; \
         add chain ip lab out { type nat hook postrouting priority 100; }; \
         add rule ip lab in tcp dport 17600 dnat to 10.99.0.2:7600; \
         add rule ip lab in tcp dport 17500 dnat to 10.99.0.2:7500; \
         add rule ip lab in tcp dport 18080 dnat to 10.99.0.2:8080; \
         add rule ip lab out oifname vc masquerade'");
    Host { name: inside.name, ip: on.ip.clone() }
}

#[test]
fn a_container_is_reached_by_its_mapped_ports_alone() {
    scenario("a_container_is_reached_by_its_mapped_ports_alone", |lab| {
        let (outside, b, c) = (lab.host(), lab.host(), lab.host());
        let inside = container(lab, &outside);
        let (swarm, http) = (format!("{}:17600", outside.ip), format!("{}:17500", outside.ip));
        let told = ["--no-mdns", "--advertise", &swarm, "--advertise-http", &http];
        let arguments = [&["--role", "grading,gateway", "--demo", "--name", "inside"][..], &told].concat();
        let contained = lab.start(Some(&inside), "inside", 17500, &arguments);
        let joins = ["--no-mdns", "--join", &swarm, "--role", "gateway,portal", "--name", "b"];
        let first = lab.start(Some(&b), "b", 7500, &joins);
        let by_b = format!("{}:7600", b.ip);
        // The other node announces the container, which cannot be dialled at its own address.
        let second = lab.start(Some(&c), "c", 7500, &["--no-mdns", "--join", &by_b, "--name", "c"]);
        lab.until(20 * S, "a node that learns of the container connects to it", |lab| {
            let members = lab.get(second, "/members").unwrap_or_default();
            let all = members["members"].as_array().cloned().unwrap_or_default();
            all.iter().any(|m| m["name"] == "inside" && m["state"] == "alive" && m["rttMs"].is_number())
        });
        for node in [first, second, contained] {
            let instance = grading(lab, node).unwrap();
            assert_eq!(
                (instance["url"].as_str(), addresses(&instance)),
                (Some(&*format!("http://{http}")), vec![&*http])
            );
        }
        all_ways_lead_to_the_book(lab, &b, first);
        // From inside, the mapped port leads nowhere.
        lab.until(10 * S, "the container's own gateway reaches its own role", |_| {
            students_at(&format!("{}:18080", outside.ip)).is_some_and(|students| students.contains("Roberto"))
        });
    });
}
