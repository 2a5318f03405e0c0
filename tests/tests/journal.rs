//! Journal under real faults: every acknowledged write is on every replica exactly once.

#![allow(clippy::unwrap_used)]

use std::{cell::RefCell, collections::BTreeSet, path::Path, process::Command, time::Duration};

use hearsay_tests::{
    Cluster, Host, Lab, NodeRef, Writers, all_written,
    history::{Fault, History},
    http::{Reply, send},
    other_build, scenario,
};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);
const JSON: (&str, &str) = ("content-type", "application/json");

/// Grading nodes on hosts of their own. A killed node restarts with its data.
struct Books {
    hosts: Vec<Host>,
    nodes: Vec<NodeRef>,
}

impl Books {
    fn start(lab: &mut Lab, count: usize) -> Self {
        Self::named(lab, "m", count)
    }

    fn named(lab: &mut Lab, prefix: &str, count: usize) -> Self {
        let hosts: Vec<_> = (0..count).map(|_| lab.host()).collect();
        let start = |(i, host)| keeper(lab, host, &format!("{prefix}{}", i + 1));
        let nodes = hosts.iter().enumerate().map(start).collect();
        let books = Self { hosts, nodes };
        lab.until(5 * S, "all list all", |lab| lab.all_list_all(&books.nodes));
        books
    }

    fn restart(&mut self, lab: &mut Lab, which: usize) {
        let name = lab.name_of(self.nodes[which]);
        self.nodes[which] = keeper(lab, &self.hosts[which], &name);
    }

    /// Waits until all nodes have the same grade book, and returns it.
    fn agree(&self, lab: &Lab, bound: Duration) -> String {
        let book = |node: &NodeRef| lab.text(*node, "/students");
        lab.until(bound, "all have the same book", |lab| {
            let first = lab.text(self.nodes[0], "/students");
            first.is_some() && self.nodes.iter().all(|node| lab.text(*node, "/students") == first)
        });
        book(&self.nodes[0]).unwrap()
    }

    fn check(&self, lab: &Lab, history: &History) -> BTreeSet<Fault> {
        let addresses: Vec<_> = self.nodes.iter().map(|node| lab.address(*node)).collect();
        let (acknowledged, refused, unknown) = history.counts();
        println!("{acknowledged} acknowledged, {refused} refused, {unknown} indeterminate");
        history.check(&all_written(&addresses))
    }
}

/// Starts a node that keeps both journals.
fn keeper(lab: &mut Lab, host: &Host, name: &str) -> NodeRef {
    lab.start(Some(host), name, 7500, &["--role", "grading,log", "--name", name])
}

fn post(lab: &Lab, node: NodeRef, path: &str, body: &Value) -> hearsay_tests::http::Reply {
    send(lab.address(node), &format!("POST {path}"), &[JSON], &body.to_string(), 8 * S).unwrap()
}

fn student(last_name: &str) -> Value {
    json!({ "firstName": "A", "lastName": last_name })
}

/// Kills a random node every two seconds while writers run on all. Returns the faults.
fn killing_nodes(lab: &mut Lab, prefix: &str, rounds: u32) -> BTreeSet<Fault> {
    let mut books = Books::named(lab, prefix, 3);
    let addresses: Vec<_> = books.nodes.iter().map(|node| lab.address(*node)).collect();
    let writers = Writers::start(&addresses);
    let mut state = 7u32;
    for round in 0..rounds {
        // Requires some writes between two kills, at any speed of the machine.
        let before = writers.acknowledged();
        std::thread::sleep(2 * S);
        lab.until(60 * S, "writes go on", |_| writers.acknowledged() > before + 25);
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let which = (state >> 16) as usize % 3;
        // Every fourth round kills all at once: entries that one node has not synced cannot come back from
        // the others.
        let dying: Vec<usize> = if round % 4 == 3 { (0..3).collect() } else { vec![which] };
        dying.iter().for_each(|which| lab.signal(books.nodes[*which], "KILL"));
        for which in dying {
            lab.ended(books.nodes[which], 5 * S);
            books.restart(lab, which);
        }
    }
    let history = writers.stop();
    lab.until(20 * S, "all list all again", |lab| lab.all_list_all(&books.nodes));
    let (acknowledged, ..) = history.counts();
    assert!(acknowledged > 100, "{acknowledged} is not enough to say anything");
    // Replicas that have not converged by now never will; a broken build does not converge.
    let start = std::time::Instant::now();
    while start.elapsed() < 15 * S && !books.check(lab, &history).is_empty() {
        std::thread::sleep(S);
    }
    books.check(lab, &history)
}

#[test]
fn nothing_acknowledged_is_lost_though_nodes_are_killed_under_load() {
    scenario("nothing_acknowledged_is_lost_though_nodes_are_killed_under_load", |lab| {
        let rounds = if std::env::var_os("LAB_LONG").is_some() { 300 } else { 8 };
        assert_eq!(killing_nodes(lab, "m", rounds), BTreeSet::new());
    });
}

/// A checker that has never failed proves nothing.
#[test]
fn a_journal_that_breaks_its_word_is_found_out() {
    let Some(broken) = other_build("a_journal_that_breaks_its_word_is_found_out") else { return };
    scenario("a_journal_that_breaks_its_word_is_found_out", |lab| {
        for way in ["early-ack", "lost-range", "reused-number", "replay"] {
            lab.restart_with(&broken, &[("HEARSAY_BROKEN", way)]);
            let faults = killing_nodes(lab, way, 4);
            let kinds: BTreeSet<_> = faults
                .iter()
                .map(|fault| format!("{fault:?}").split(' ').next().unwrap().to_owned())
                .collect();
            println!("{way}: {} faults: {kinds:?}", faults.len());
            assert!(!faults.is_empty(), "the checker did not find {way}");
        }
    });
}

/// Sends a request with a token until the node has the token's write. A node waits 2 s for it, and then says
/// that it lacks it.
fn once_caught_up(lab: &Lab, send: impl Fn() -> Reply) -> Reply {
    let last = RefCell::new(None);
    lab.until(10 * S, "a node has what the token names", |_| {
        let reply = send();
        let has_it = reply.status != 503;
        *last.borrow_mut() = Some(reply);
        has_it
    });
    last.into_inner().unwrap()
}

#[test]
fn a_grade_is_on_all_nodes_at_once_and_survives_its_writer() {
    scenario("a_grade_is_on_all_nodes_at_once_and_survives_its_writer", |lab| {
        let books = Books::start(lab, 5);
        // Replicas connect a moment after they learn of each other.
        let reply = post(lab, books.nodes[0], "/students?ack=majority", &student("first"));
        assert_eq!((reply.status, reply.header("hearsay-ack")), (201, Some("majority")));
        let path = reply.header("location").unwrap().to_owned();
        let mut token = reply.header("hearsay-token").unwrap().to_owned();
        for score in 0..20 {
            let grade = json!({ "title": "Essay", "type": "Homework", "score": score });
            let writer = lab.address(books.nodes[score % 5]);
            let (request, headers) = (format!("POST {path}/grades"), [JSON, ("hearsay-token", &token)]);
            let reply =
                once_caught_up(lab, || send(writer, &request, &headers, &grade.to_string(), 8 * S).unwrap());
            assert_eq!(reply.status, 201, "{}", reply.body);
            token = reply.header("hearsay-token").unwrap().to_owned();
            // A read with the token sees the write, at any node.
            let other = lab.address(books.nodes[(score + 1) % 5]);
            let seen = once_caught_up(lab, || {
                send(other, &format!("GET {path}"), &[("hearsay-token", &token)], "", 5 * S).unwrap()
            });
            let grades = seen.json()["grades"].as_array().unwrap().len();
            assert_eq!((seen.status, grades), (200, score + 1), "{}", seen.body);
        }
        let last = post(lab, books.nodes[4], "/students", &student("last words"));
        lab.crash(books.nodes[4]);
        assert!(last.header("hearsay-ack").is_some_and(|ack| ack != "local"), "{last:?}");
        let rest = Books { hosts: Vec::new(), nodes: books.nodes[..4].to_vec() };
        lab.until(5 * S, "it outlives its writer everywhere", |lab| {
            rest.nodes
                .iter()
                .all(|n| lab.text(*n, "/students").is_some_and(|book| book.contains("last words")))
        });
        rest.agree(lab, 10 * S);
    });
}

#[test]
fn a_majority_is_counted_of_replicas_that_do_not_answer_until_they_are_forgotten() {
    scenario("a_majority_is_counted_of_replicas_that_do_not_answer_until_they_are_forgotten", |lab| {
        let books = Books::start(lab, 5);
        let ask =
            |lab: &Lab, at: NodeRef, name: &str| post(lab, at, "/students?ack=majority", &student(name));
        let counted = |lab: &Lab, node: NodeRef, number: usize| {
            let line = format!("hearsay_journal_replicas_counted{{topic=\"grading\"}} {number}");
            lab.text(node, "/metrics").is_some_and(|metrics| metrics.lines().any(|l| l == line))
        };
        lab.until(10 * S, "all count five", |lab| books.nodes.iter().all(|node| counted(lab, *node, 5)));
        assert_eq!(ask(lab, books.nodes[0], "of five").header("hearsay-ack"), Some("majority"));
        // The others are frozen: only the first node has the write.
        books.nodes[1..].iter().for_each(|node| lab.signal(*node, "STOP"));
        let alone = ask(lab, books.nodes[0], "alone");
        assert_eq!(alone.status, 504, "{alone:?}");
        assert!(
            alone.json()["outcome"] == "indeterminate" && alone.body.contains("5 replicas"),
            "{}",
            alone.body
        );
        books.nodes[1..].iter().for_each(|node| lab.signal(*node, "CONT"));
        lab.until(20 * S, "all list all again", |lab| lab.all_list_all(&books.nodes));
        // Leaving, failing and restarting leave the number unchanged.
        lab.leave(books.nodes[3]);
        lab.leave(books.nodes[4]);
        lab.crash(books.nodes[2]);
        let mut rest = Books { hosts: books.hosts.clone(), nodes: books.nodes[..2].to_vec() };
        lab.crash(rest.nodes[1]);
        rest.restart(lab, 1);
        lab.until(10 * S, "two are left", |lab| lab.all_list_all(&rest.nodes));
        assert_eq!(ask(lab, rest.nodes[1], "two of five").status, 504);
        for (name, left) in [("m5", 4), ("m4", 3)] {
            let forget = lab.command(Some(&rest.hosts[0]), "m1", &["forget", name]).output().unwrap();
            assert!(forget.status.success(), "{forget:?}");
            lab.until(5 * S, "it counts no longer", |lab| {
                rest.nodes.iter().all(|node| counted(lab, *node, left))
            });
        }
        assert_eq!(ask(lab, rest.nodes[1], "two of three").header("hearsay-ack"), Some("majority"));
        rest.agree(lab, 10 * S);
    });
}

#[test]
fn both_sides_of_a_partition_keep_their_grades() {
    scenario("both_sides_of_a_partition_keep_their_grades", |lab| {
        let books = Books::start(lab, 4);
        let (left, right) = (&books.hosts[..2], &books.hosts[2..]);
        let (l, r): (Vec<_>, Vec<_>) = (left.iter().collect(), right.iter().collect());
        left.iter().for_each(|host| host.drop_packets_from(&r));
        right.iter().for_each(|host| host.drop_packets_from(&l));
        lab.until(20 * S, "each side sees itself alone", |lab| {
            lab.all_list_all(&books.nodes[..2]) && lab.all_list_all(&books.nodes[2..])
        });
        for (node, name) in books.nodes.iter().zip(["a", "b", "c", "d"]) {
            let reply = post(lab, *node, "/students?ack=replicated", &student(name));
            assert_eq!(reply.status, 201, "{}", reply.body);
        }
        books.hosts.iter().for_each(Host::drop_nothing);
        lab.until(30 * S, "together again", |lab| lab.all_list_all(&books.nodes));
        let book: Value = serde_json::from_str(&books.agree(lab, 20 * S)).unwrap();
        let names: BTreeSet<_> =
            book.as_array().unwrap().iter().map(|s| s["lastName"].as_str().unwrap().to_owned()).collect();
        assert_eq!(names, ["a", "b", "c", "d"].map(String::from).into());
    });
}

#[test]
fn a_copied_data_dir_reuses_no_number() {
    scenario("a_copied_data_dir_reuses_no_number", |lab| {
        let mut books = Books::start(lab, 2);
        post(lab, books.nodes[0], "/students?ack=replicated", &student("before"));
        let dir = lab.dir().join("m1");
        lab.leave(books.nodes[0]);
        let copied = |from: &Path, to: &Path| {
            assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
        };
        copied(&dir, &lab.dir().join("backup"));
        books.restart(lab, 0);
        lab.until(10 * S, "both again", |lab| lab.all_list_all(&books.nodes));
        let first = post(lab, books.nodes[0], "/students?ack=replicated", &student("after the backup"));
        lab.crash(books.nodes[0]);
        std::fs::remove_dir_all(&dir).unwrap();
        copied(&lab.dir().join("backup"), &dir);
        books.restart(lab, 0);
        lab.until(10 * S, "both with the backup", |lab| lab.all_list_all(&books.nodes));
        let second = post(lab, books.nodes[0], "/students?ack=replicated", &student("with the backup"));
        assert_ne!(first.header("hearsay-token").unwrap(), second.header("hearsay-token").unwrap());
        let book: Value = serde_json::from_str(&books.agree(lab, 20 * S)).unwrap();
        assert_eq!(book.as_array().unwrap().len(), 3);
    });
}

#[test]
fn a_full_disk_is_507_loses_nothing_and_recovers() {
    scenario("a_full_disk_is_507_loses_nothing_and_recovers", |lab| {
        let host = lab.host();
        let dir = lab.dir().join("small");
        std::fs::create_dir_all(&dir).unwrap();
        hearsay_tests::sh(&format!("mount -t tmpfs -o size=2m none {}", dir.display()));
        let node = lab.grading(&host, "small");
        lab.until(5 * S, "it is there", |lab| lab.providers(node) == ["small"]);
        std::fs::write(dir.join("ballast"), vec![0; 1_000_000]).unwrap();
        let (mut written, mut full) = (0, None);
        for i in 0..20_000 {
            let reply = post(lab, node, "/students", &student(&format!("{i}-{}", "x".repeat(80))));
            match reply.status {
                201 => written += 1,
                507 => {
                    full = Some(reply);
                    break;
                }
                _ => panic!("{reply:?}"),
            }
        }
        let full = full.expect("the disk is full by now");
        assert!(full.body.contains("the disk is full"), "{}", full.body);
        let count = |lab: &Lab| {
            send(lab.address(node), "GET /students/export", &[], "", 5 * S).unwrap().body.lines().count() - 1
        };
        assert_eq!(count(lab), written, "reads go on, and what was refused is not there");
        std::fs::remove_file(dir.join("ballast")).unwrap();
        lab.until(5 * S, "there is room again", |lab| {
            post(lab, node, "/students", &student("room")).status == 201
        });
        assert_eq!(count(lab), written + 1);
        lab.crash(node);
        let node = lab.grading(&host, "small");
        lab.until(5 * S, "all of it survives", |lab| {
            send(lab.address(node), "GET /students/export", &[], "", 5 * S)
                .is_ok_and(|reply| reply.body.lines().count() == written + 2)
        });
        hearsay_tests::sh(&format!("umount -l {}", dir.display()));
    });
}
