//! Tests of membership over real networks: nodes find each other, notice crashes within seconds, take no live
//! member for failed under packet loss or load, heal partitions, and keep strangers and clones out.

// In a test, a failed unwrap is the failure.
#![allow(clippy::unwrap_used)]

use std::{io::Write as _, net::TcpStream, path::Path, process::Command, time::Duration};

use hearsay_tests::{Busy, Cluster, Lab, NodeRef, Swarms, find, scenario};

const S: Duration = Duration::from_secs(1);

/// Starts `n` hosts with a grading node each, named m1, m2, …, and waits until they see each other.
fn lan(lab: &mut Lab, n: usize) -> (Vec<hearsay_tests::Host>, Vec<NodeRef>) {
    let hosts: Vec<_> = (0..n).map(|_| lab.host()).collect();
    let nodes: Vec<_> =
        hosts.iter().enumerate().map(|(i, h)| lab.grading(h, &format!("m{}", i + 1))).collect();
    lab.until(5 * S, "all list all, by mDNS alone", |lab| lab.all_list_all(&nodes));
    (hosts, nodes)
}

/// Checks that hold for every kind of cluster.
fn nodes_come_and_go(cluster: &mut impl Cluster) {
    let nodes: Vec<NodeRef> = (1..=9).map(|i| cluster.add(&format!("m{i}"))).collect();
    cluster.until(10 * S, "all list all", |c| c.all_list_all(&nodes) && c.agree(&nodes));
    let (crashed, left, rest) = (nodes[0], nodes[1], nodes[2..].to_vec());
    cluster.crash(crashed);
    cluster.until(2 * S, "a crash is known", |c| {
        rest.iter().all(|n| c.sees(*n, "m1").as_deref() == Some("failed"))
    });
    cluster.leave(left);
    cluster.until(2 * S, "a farewell is known", |c| {
        rest.iter().all(|n| c.sees(*n, "m2").as_deref() == Some("left"))
    });
    cluster.until(5 * S, "the others remain", |c| c.all_list_all(&rest) && c.agree(&rest));
    let newcomer = cluster.add("m10");
    let now: Vec<_> = rest.iter().copied().chain([newcomer]).collect();
    cluster.until(5 * S, "a newcomer is listed", |c| c.all_list_all(&now) && c.agree(&now));
    cluster.until(5 * S, "it believes what the others concluded", |c| {
        c.sees(newcomer, "m1").as_deref() == Some("failed")
    });
}

#[test]
fn nodes_come_and_go_as_processes() {
    scenario("nodes_come_and_go_as_processes", nodes_come_and_go);
}

#[test]
fn nodes_come_and_go_within_one_process() {
    scenario("nodes_come_and_go_within_one_process", |_| nodes_come_and_go(&mut Swarms::new().unwrap()));
}

fn assert_no_member_failed(lab: &Lab) {
    assert_eq!(lab.logged("member failed"), [""; 0]);
}

#[test]
fn two_nodes_with_no_flags_find_each_other_on_loopback() {
    scenario("two_nodes_with_no_flags_find_each_other_on_loopback", |lab| {
        let first = lab.start(None, "home", 7500, &["--role", "grading"]);
        lab.until(5 * S, "the first answers", |lab| lab.providers(first).len() == 1);
        let second = lab.start(None, "home", 7501, &["--role", "grading"]);
        // A starting process syncs its files; the disk decides how long that takes.
        lab.until(5 * S, "both list both", |lab| {
            [first, second].iter().all(|n| lab.providers(*n).len() == 2) && lab.agree(&[first, second])
        });
        let services = lab.command(None, "home", &["services", "grading"]).output().unwrap();
        let table = String::from_utf8_lossy(&services.stdout).into_owned();
        assert!(services.status.success() && table.contains(":7500") && table.contains(":7501"), "{table}");
    });
}

#[test]
fn five_hosts_find_each_other_by_mdns_and_notice_a_crash_a_freeze_and_a_leave() {
    scenario("five_hosts_find_each_other_by_mdns_and_notice_a_crash_a_freeze_and_a_leave", |lab| {
        let (hosts, nodes) = lan(lab, 5);
        lab.signal(nodes[0], "KILL");
        let others = nodes[1..].to_vec();
        lab.until(2 * S, "crash known", |lab| {
            others.iter().all(|n| lab.sees(*n, "m1").as_deref() == Some("failed"))
        });
        let again = lab.grading(&hosts[0], "m1");
        let all: Vec<_> = others.iter().copied().chain([again]).collect();
        lab.until(5 * S, "restarted and listed once", |lab| {
            assert!(all.iter().all(|n| lab.providers(*n).iter().filter(|p| *p == "m1").count() <= 1));
            lab.all_list_all(&all) && lab.agree(&all)
        });
        lab.signal(nodes[1], "STOP");
        let others: Vec<_> = all.iter().copied().filter(|n| *n != nodes[1]).collect();
        lab.until(4 * S, "freeze known", |lab| {
            others.iter().all(|n| lab.sees(*n, "m2").as_deref() == Some("failed"))
        });
        lab.signal(nodes[1], "CONT");
        lab.until(3 * S, "thawed and back", |lab| lab.all_list_all(&all) && lab.agree(&all));
        lab.signal(nodes[2], "TERM");
        assert!(lab.ended(nodes[2], 5 * S).success());
        let others: Vec<_> = all.iter().copied().filter(|n| *n != nodes[2]).collect();
        lab.until(S, "farewell known", |lab| {
            others.iter().all(|n| lab.sees(*n, "m3").as_deref() == Some("left"))
        });
        let failed = lab.logged("member failed");
        assert!(failed.iter().all(|l| l.contains("\"m1\"") || l.contains("\"m2\"")), "{failed:?}");
    });
}

#[test]
fn five_hosts_that_start_at_once_see_each_other_every_time() {
    scenario("five_hosts_that_start_at_once_see_each_other_every_time", |lab| {
        let hosts: Vec<_> = (0..5).map(|_| lab.host()).collect();
        let mut late = 0;
        for run in 0..20 {
            let start = |(i, host)| lab.grading(host, &format!("r{run}m{i}"));
            let nodes: Vec<NodeRef> = hosts.iter().enumerate().map(start).collect();
            let took = lab.until(9 * S, "all list all, by mDNS alone", |lab| lab.all_list_all(&nodes));
            late += usize::from(took > 9 * S);
            nodes.iter().for_each(|node| lab.crash(*node));
        }
        // The second query of mDNS leaves after 10 s. It finds what the first one missed on a busy machine.
        assert!(late <= 1, "{late} runs needed a second query");
    });
}

#[test]
fn a_lost_host_fails_and_returns() {
    scenario("a_lost_host_fails_and_returns", |lab| {
        let (hosts, nodes) = lan(lab, 4);
        hosts[3].sh("ip link set eth0 down");
        lab.until(5 * S, "loss known", |lab| lab.all_list_all(&nodes[..3]));
        hosts[3].sh("ip link set eth0 up");
        lab.until(10 * S, "back", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
    });
}

#[test]
fn partitions_serve_on_both_sides_and_heal() {
    scenario("partitions_serve_on_both_sides_and_heal", |lab| {
        let (hosts, nodes) = lan(lab, 5);
        let far: Vec<_> = hosts[2..].iter().collect();
        hosts[..2].iter().for_each(|h| h.drop_packets_from(&far));
        lab.until(10 * S, "each side sees itself", |lab| {
            lab.all_list_all(&nodes[..2]) && lab.all_list_all(&nodes[2..])
        });
        hosts[..2].iter().for_each(|h| h.drop_nothing());
        lab.until(10 * S, "healed", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
        // One way only, between two of five: the others see both, so no member stays failed.
        hosts[0].drop_packets_from(&[&hosts[1]]);
        lab.throughout(6 * S, "m1 and m2 are there for the others", |lab| {
            nodes[2..].iter().all(|n| lab.providers(*n).len() == 5)
        });
        hosts[0].drop_nothing();
        lab.until(10 * S, "healed from one way", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
        // m3 is the bridge between m1, m2 and m4, m5.
        hosts[..2].iter().for_each(|h| h.drop_packets_from(&[&hosts[3], &hosts[4]]));
        lab.throughout(6 * S, "the bridge sees all", |lab| lab.providers(nodes[2]).len() == 5);
        hosts[..2].iter().for_each(|h| h.drop_nothing());
        lab.until(10 * S, "healed from the bridge", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
    });
}

#[test]
fn a_new_address_is_known_within_ten_seconds() {
    scenario("a_new_address_is_known_within_ten_seconds", |lab| {
        let (hosts, nodes) = lan(lab, 3);
        // In this order: when an interface loses its first address, Linux removes the others of that network.
        hosts[2].sh(&format!("ip addr del {}/16 dev eth0", hosts[2].ip));
        hosts[2].sh("ip addr add 10.77.9.9/16 dev eth0");
        lab.until(10 * S, "m3 is offered at its new address", |lab| {
            nodes[..2].iter().all(|n| {
                let services = lab.get(*n, "/services/grading").unwrap_or_default();
                let list = services["services"]["grading"].as_array().cloned().unwrap_or_default();
                list.iter().any(|i| i["node"] == "m3" && i["address"] == "10.77.9.9")
            })
        });
    });
}

#[test]
fn a_fifth_of_all_packets_lost_fails_no_member() {
    scenario("a_fifth_of_all_packets_lost_fails_no_member", |lab| {
        let long = std::env::var_os("LAB_LONG").is_some();
        let (hosts, nodes) = lan(lab, if long { 20 } else { 8 });
        hosts.iter().for_each(|h| h.drop_percent(20));
        let time = if long { 600 * S } else { 40 * S };
        lab.throughout(time, "no member is declared failed", |lab| lab.logged("member failed").is_empty());
        hosts.iter().for_each(|h| h.drop_nothing());
        lab.until(10 * S, "all list all", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
        assert_no_member_failed(lab);
    });
}

#[test]
fn starved_processors_fail_no_member() {
    scenario("starved_processors_fail_no_member", |lab| {
        let long = std::env::var_os("LAB_LONG").is_some();
        let (_hosts, nodes) = lan(lab, if long { 20 } else { 10 });
        let busy = Busy::start(6);
        let time = if long { 600 * S } else { 20 * S };
        lab.throughout(time, "no member is declared failed", |lab| lab.logged("member failed").is_empty());
        drop(busy);
        lab.until(10 * S, "all list all", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
    });
}

#[test]
fn a_copied_data_dir_stops_the_newer_process_and_a_taken_name_none() {
    scenario("a_copied_data_dir_stops_the_newer_process_and_a_taken_name_none", |lab| {
        let (hosts, nodes) = lan(lab, 3);
        let dir = lab.dir().clone();
        // The clone asks the peers that its directory names: mDNS has only a moment to name others.
        lab.until(10 * S, "m3 has stored its peers", |_| find(&dir.join("m3"), "peers.json").is_some());
        copy_dir(&dir.join("m3"), &dir.join("clone"));
        let clone = lab.start(Some(&hosts[0]), "clone", 7501, &["--role", "grading", "--name", "m3"]);
        assert!(!lab.ended(clone, 5 * S).success());
        assert!(lab.log(clone).contains("already runs under this node's key"), "{}", lab.log(clone));
        assert!(lab.all_list_all(&nodes), "the older one was there all the time");
        lab.until(5 * S, "all agree", |lab| lab.agree(&nodes));
        let namesake = lab.start(Some(&hosts[0]), "other", 7501, &["--ephemeral", "--name", "m2"]);
        // Every node keeps the name for the one that it knew first: the older nodes for the older one, and
        // the newer one for itself.
        lab.until(5 * S, "all see both", |lab| {
            let names = |node: NodeRef| -> Vec<String> {
                let members = lab.get(node, "/members").unwrap_or_default()["members"].clone();
                let list = members.as_array().cloned().unwrap_or_default();
                list.iter().filter_map(|member| Some(member["name"].as_str()?.to_owned())).collect()
            };
            let beside = |names: &[String]| names.iter().any(|name| name.starts_with("m2-"));
            nodes.iter().chain([&namesake]).all(|node| {
                let names = names(*node);
                names.len() == 4 && names.contains(&"m2".to_owned()) && beside(&names)
            })
        });
        assert!(lab.log(nodes[0]).contains("two live members have one name"), "{}", lab.log(nodes[0]));
    });
}

/// For peers that have just dialled the original, the clone's connection looks like a crossing dial of the
/// original.
#[test]
fn a_clone_of_a_node_that_was_dialled_a_moment_ago_is_stopped() {
    scenario("a_clone_of_a_node_that_was_dialled_a_moment_ago_is_stopped", |lab| {
        let hosts: Vec<_> = (0..4).map(|_| lab.host()).collect();
        let original = lab.start(Some(&hosts[0]), "m1", 7500, &["--name", "m1", "--no-mdns"]);
        lab.until(5 * S, "the original is there", |lab| lab.sees(original, "m1").as_deref() == Some("alive"));
        let joins = format!("{}:7600", hosts[0].ip);
        let others: Vec<_> = [(&hosts[1], "m2"), (&hosts[2], "m3")]
            .map(|(host, name)| {
                lab.start(Some(host), name, 7500, &["--name", name, "--no-mdns", "--join", &joins])
            })
            .to_vec();
        lab.until(5 * S, "they have dialled it", |lab| {
            others.iter().all(|n| lab.sees(*n, "m1").as_deref() == Some("alive"))
        });
        copy_dir(&lab.dir().join("m1"), &lab.dir().join("clone"));
        let joins = [&hosts[1], &hosts[2]].map(|host| format!("{}:7600", host.ip));
        let arguments = ["--name", "m1", "--no-mdns", "--join", &joins[0], "--join", &joins[1]];
        let clone = lab.start(Some(&hosts[3]), "clone", 7500, &arguments);
        assert!(!lab.ended(clone, 5 * S).success());
        assert!(lab.log(clone).contains("already runs under this node's key"), "{}", lab.log(clone));
        assert_no_member_failed(lab);
        lab.until(5 * S, "the original is there", |lab| {
            lab.sees(others[0], "m1").as_deref() == Some("alive")
                && lab.agree(&[original, others[0], others[1]])
        });
    });
}

/// Copies the directory of a node that may run. A copy fails if the node removes a file meanwhile; then it is
/// made again.
fn copy_dir(from: &Path, to: &Path) {
    let options = ["-rT", "--remove-destination"];
    let copy = || Command::new("cp").args(options).args([from, to]).status().unwrap().success();
    assert!((0..5).any(|_| copy()), "{} cannot be copied", from.display());
}

#[test]
fn strangers_and_garbage_are_kept_out() {
    scenario("strangers_and_garbage_are_kept_out", |lab| {
        let key = |lab: &Lab, name: &str| {
            let output = lab.command(None, "keys", &["keygen"]).output().unwrap();
            let path = lab.dir().join(name);
            std::fs::write(&path, output.stdout).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (ours, theirs) = (key(lab, "ours.key"), key(lab, "theirs.key"));
        let hosts = [lab.host(), lab.host(), lab.host(), lab.host()];
        let keyed = |name: &'static str, key: &str| -> Vec<String> {
            ["--role", "grading", "--name", name, "--key-file", key].map(String::from).to_vec()
        };
        let start = |lab: &mut Lab, host: &hearsay_tests::Host, name: &'static str, arguments: &[String]| {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            lab.start(Some(host), name, 7500, &arguments)
        };
        let a = start(lab, &hosts[0], "a", &keyed("a", &ours));
        let b = start(lab, &hosts[1], "b", &keyed("b", &ours));
        let other = start(lab, &hosts[2], "c", &keyed("c", &theirs));
        let open = lab.grading(&hosts[3], "d");
        lab.until(5 * S, "a and b see each other, and the others run", |lab| {
            lab.all_list_all(&[a, b]) && lab.providers(other) == ["c"] && lab.providers(open) == ["d"]
        });
        // Bytes from all hosts: noise, the start of a handshake, a repeated byte.
        for round in 0..200u32 {
            let mut stream = TcpStream::connect((hosts[0].ip.as_str(), 7600)).unwrap();
            let noise: Vec<u8> = (0..4096u32)
                .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(round) >> 13) as u8)
                .collect();
            // The node may have closed the connection by now, as it should.
            _ = stream.write_all(if round % 3 == 0 { b"\x13/multistream/1.0.0\n" } else { &noise });
        }
        lab.throughout(5 * S, "no other peer is admitted", |lab| {
            lab.all_list_all(&[a, b]) && lab.providers(other) == ["c"] && lab.providers(open) == ["d"]
        });
        assert_no_member_failed(lab);
        assert!(lab.resident_kb(a) < 100_000, "{} kB resident", lab.resident_kb(a));
    });
}

#[test]
fn a_join_that_leads_nowhere_yet_is_tried_until_it_works() {
    scenario("a_join_that_leads_nowhere_yet_is_tried_until_it_works", |lab| {
        let (a, b) = (lab.host(), lab.host());
        let arguments =
            ["--role", "grading", "--name", "m1", "--no-mdns", "--join", &format!("{}:7600", b.ip)];
        let first = lab.start(Some(&a), "m1", 7500, &arguments);
        lab.until(5 * S, "the first is there, alone", |lab| lab.providers(first) == ["m1"]);
        let second = lab.start(Some(&b), "m2", 7500, &["--role", "grading", "--name", "m2", "--no-mdns"]);
        lab.until(20 * S, "joined", |lab| lab.all_list_all(&[first, second]));
    });
}

#[test]
fn neighbours_that_wait_for_the_same_seed_still_join_it() {
    scenario("neighbours_that_wait_for_the_same_seed_still_join_it", |lab| {
        let (a, b) = (lab.host(), lab.host());
        let seed = format!("{}:7600", b.ip);
        let arguments = |name: &'static str| {
            ["--role", "grading", "--name", name, "--no-mdns", "--join", &seed].map(str::to_owned)
        };
        let start = |lab: &mut Lab, name: &'static str, http| {
            let arguments = arguments(name);
            lab.start(Some(&a), name, http, &arguments.each_ref().map(String::as_str))
        };
        let (m1, m2) = (start(lab, "m1", 7500), start(lab, "m2", 7501));
        lab.until(5 * S, "the two of one host are a cluster", |lab| lab.all_list_all(&[m1, m2]));
        lab.until_logged(5 * S, m1, &["cannot reach the address of --join"]);
        let m3 = lab.start(Some(&b), "m3", 7500, &["--role", "grading", "--name", "m3", "--no-mdns"]);
        lab.until(20 * S, "joined", |lab| lab.all_list_all(&[m1, m2, m3]));
    });
}

#[test]
fn an_address_that_means_another_node_here_is_no_evidence() {
    scenario("an_address_that_means_another_node_here_is_no_evidence", |lab| {
        let (a, b) = (lab.host(), lab.host());
        for host in [&a, &b] {
            // Like the address of Docker's bridge: the same on every host, and so never a path to another
            // one.
            host.sh("ip link add docker0 type bridge");
            host.sh("ip addr add 172.17.0.1/16 dev docker0");
            host.sh("ip link set docker0 up");
        }
        let seed = format!("{}:7600", a.ip);
        let mut nodes = Vec::new();
        for (host, side) in [(&a, "a"), (&b, "b")] {
            for n in 0..3 {
                let name = format!("{side}{n}");
                let arguments = ["--role", "grading", "--name", &name, "--no-mdns", "--join", &seed];
                nodes.push(lab.start(Some(host), &name, 7500 + n, &arguments));
            }
        }
        lab.until(20 * S, "all list all", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
        // Lost connections are dialled again by the addresses in the headers.
        b.drop_packets_from(&[&a]);
        lab.until(10 * S, "each side is alone", |lab| {
            lab.all_list_all(&nodes[..3]) && lab.all_list_all(&nodes[3..])
        });
        b.drop_nothing();
        lab.until(10 * S, "healed", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
        let verdicts = lab.logged("member failed").len();
        lab.throughout(10 * S, "no member is declared failed any more", |lab| {
            lab.logged("member failed").len() == verdicts
        });
    });
}

#[test]
fn a_log_without_a_reader_ends_no_node() {
    scenario("a_log_without_a_reader_ends_no_node", |lab| {
        let host = lab.host();
        let mut deaf = lab.command(Some(&host), "deaf", &["--role", "grading", "--name", "deaf"]);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut deaf = deaf.stdout(full).stderr(writer).spawn().unwrap();
        let other = lab.add("other");
        lab.until(10 * S, "they see each other", |lab| lab.providers(other) == ["deaf", "other"]);
        // The node has something to log.
        lab.crash(other);
        let third = lab.add("third");
        lab.until(10 * S, "it is still there", |lab| lab.providers(third) == ["deaf", "third"]);
        hearsay_tests::sh(&format!("kill -TERM {}", deaf.id()));
        assert!(deaf.wait().unwrap().success());
    });
}

#[test]
fn bad_input_is_refused_in_words() {
    scenario("bad_input_is_refused_in_words", |lab| {
        let file = lab.dir().join("file");
        std::fs::write(&file, "no key").unwrap();
        let file = file.to_str().unwrap().to_owned();
        let taken =
            lab.start(None, "taken", 7500, &["--http", "127.0.0.1:7500", "--swarm", "127.0.0.1:7600"]);
        lab.until(5 * S, "it answers", |lab| lab.get(taken, "/members").is_some());
        let cases: [(&[&str], i32, &str); 6] = [
            (&["--no-such-flag"], 2, "--no-such-flag"),
            (&["--http", "127.0.0.1:7500"], 1, "127.0.0.1:7500"),
            (&["--swarm", "127.0.0.1:7600"], 1, "127.0.0.1:7600"),
            (&["--key-file", &file], 1, &file),
            (&["--data-dir", &file], 1, &file),
            (&["--role", "teaching"], 2, "teaching"),
        ];
        for (arguments, code, names) in cases {
            let refused = lab.start(None, "bad", 7500, arguments);
            let ended = lab.ended(refused, 5 * S);
            let said = lab.log(refused);
            assert!(said.contains(names), "{arguments:?}: {said}");
            assert!(
                ended.code().is_some_and(|c| c == code || c == 2 && code == 1),
                "{arguments:?}: {ended:?}"
            );
        }
    });
}
