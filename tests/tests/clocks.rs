//! Wrong, jumping and stopped wall clocks: every acknowledged write takes effect, and a node whose clock is
//! off warns.

#![allow(clippy::unwrap_used)]

use std::{
    ffi::OsStr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hearsay_tests::{
    Cluster as _, Host, Lab, LabClock, NodeRef,
    http::{Reply, send},
    older_build, other_build,
    rows::{RowHistory, RowWriters, read},
    scenario,
};
use serde_json::json;

const S: Duration = Duration::from_secs(1);
const HOUR_MS: i64 = 3_600_000;
const YEAR_MS: i64 = 365 * 24 * HOUR_MS;
const JSON: (&str, &str) = ("content-type", "application/json");

/// Runs a scenario with a dynamically linked build, so that a clock can be preloaded.
fn with_clocks(test: &str, body: impl FnOnce(&mut Lab, &OsStr)) {
    let Some(build) = other_build(test) else { return };
    scenario(test, |lab| match LabClock::new(lab.dir(), "probe") {
        Some(_) => body(lab, &build),
        None => {
            println!("skipped: {test}: needs a C compiler (cc)");
            assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and there is no cc");
        }
    });
}

/// Starts a grading node with a clock that the test controls.
fn start(lab: &mut Lab, build: &OsStr, host: &Host, clock: &LabClock, name: &str) -> NodeRef {
    lab.use_binary(build, &clock.environment());
    lab.start(Some(host), name, 7500, &["--role", "grading", "--name", name])
}

fn rename(lab: &Lab, at: NodeRef, name: &str) -> Reply {
    let body = json!({ "firstName": "Ann", "lastName": name }).to_string();
    send(lab.address(at), "PUT /students/7", &[JSON], &body, 8 * S).unwrap()
}

fn shown(lab: &Lab, at: NodeRef) -> Option<String> {
    Some(lab.get(at, "/students/7")?["lastName"].as_str()?.to_owned())
}

/// Renames the student through each node in turn; each name must be on all nodes at once.
fn every_rename_takes_effect(lab: &Lab, nodes: &[NodeRef], prefix: &str) {
    for (turn, at) in nodes.iter().chain(nodes.iter().rev()).enumerate() {
        let name = format!("{prefix}{turn}");
        let reply = rename(lab, *at, &name);
        assert_eq!(reply.status, 200, "{}", reply.body);
        assert_eq!(shown(lab, *at).as_ref(), Some(&name), "where it was written");
        lab.until(5 * S, "the new name is on all nodes", |lab| {
            nodes.iter().all(|node| shown(lab, *node).as_ref() == Some(&name))
        });
    }
}

#[test]
fn a_write_takes_effect_though_its_nodes_clock_is_days_or_years_off() {
    with_clocks("a_write_takes_effect_though_its_nodes_clock_is_days_or_years_off", |lab, build| {
        let hosts = [lab.host(), lab.host()];
        let clocks = ["a", "b"].map(|name| LabClock::new(lab.dir(), name).unwrap());
        let a = start(lab, build, &hosts[0], &clocks[0], "a");
        let b = start(lab, build, &hosts[1], &clocks[1], "b");
        lab.until(5 * S, "both list both", |lab| lab.all_list_all(&[a, b]));
        let student = json!({ "id": 7, "firstName": "Ann", "lastName": "Old" }).to_string();
        assert_eq!(send(lab.address(a), "POST /students", &[JSON], &student, 8 * S).unwrap().status, 201);
        lab.until(5 * S, "both have the student", |lab| shown(lab, b).is_some());
        for (word, offset_ms) in [("2 days behind", -48 * HOUR_MS), ("10 years ahead of", 10 * YEAR_MS)] {
            clocks[1].run(offset_ms);
            every_rename_takes_effect(lab, &[a, b], word);
            lab.until(20 * S, "it says that its clock is off", |lab| {
                lab.text(b, "/readyz").is_some_and(|ready| ready.contains(word))
                    && lab.text(b, "/metrics").is_some_and(|m| m.contains("hearsay_warnings 1"))
            });
            let line = format!("WARN hearsay_node::warnings: the clock of this node is {word}");
            lab.until_logged(5 * S, b, &[&line]);
            let doctor = lab.command(Some(&hosts[1]), "b", &["doctor"]).output().unwrap();
            assert!(String::from_utf8_lossy(&doctor.stdout).contains(word), "{doctor:?}");
            clocks[1].run(0);
            lab.until(20 * S, "the warning ends with its cause", |lab| {
                [a, b].iter().all(|node| lab.text(*node, "/readyz").is_some_and(|r| !r.contains("warnings")))
            });
        }
        // Restarted with its data: nothing of the future remains.
        lab.leave(b);
        let b = start(lab, build, &hosts[1], &clocks[1], "b");
        lab.until(10 * S, "both list both again", |lab| lab.all_list_all(&[a, b]));
        every_rename_takes_effect(lab, &[a, b], "put right");
        let reply = send(lab.address(b), "DELETE /students/7", &[], "", 8 * S).unwrap();
        assert_eq!(reply.status, 204, "{}", reply.body);
        lab.until(5 * S, "it is removed on both", |lab| {
            [a, b].iter().all(|node| lab.text(*node, "/students/7").is_some_and(|t| t.contains("404")))
        });
    });
}

/// Clients rename students while clocks are disturbed and nodes are killed. Returns the clients'
/// observations, and the faults.
fn disturb_clocks(lab: &mut Lab, build: &OsStr, bound: Duration) -> (Vec<RowHistory>, Vec<String>) {
    let hosts: Vec<_> = (0..3).map(|_| lab.host()).collect();
    let names = ["m1", "m2", "m3"];
    let clocks = names.map(|name| LabClock::new(lab.dir(), name).unwrap());
    let mut nodes: Vec<_> = (0..3).map(|i| start(lab, build, &hosts[i], &clocks[i], names[i])).collect();
    lab.until(10 * S, "all list all", |lab| lab.all_list_all(&nodes));
    let addresses: Vec<_> = nodes.iter().map(|node| lab.address(*node)).collect();
    let writers = RowWriters::start(&addresses, 6);
    let mut rng = fastrand::Rng::with_seed(7);
    let sizes = [0, 30_000, HOUR_MS, 25 * HOUR_MS, 48 * HOUR_MS, 10 * YEAR_MS];
    let begin = Instant::now();
    while begin.elapsed() < bound {
        let before = writers.acknowledged();
        let which = rng.usize(..3);
        let size = sizes[rng.usize(..sizes.len())] * if rng.bool() { 1 } else { -1 };
        match rng.u8(..5) {
            0 => clocks[which].freeze(wall_ms() + size),
            1 => {
                lab.signal(nodes[which], "KILL");
                lab.ended(nodes[which], 5 * S);
                nodes[which] = start(lab, build, &hosts[which], &clocks[which], names[which]);
            }
            _ => clocks[which].run(size),
        }
        // Requires some writes between two disturbances, at any speed of the machine.
        lab.until(30 * S, "writes go on", |_| writers.acknowledged() > before + 20);
    }
    let histories = writers.stop();
    clocks.iter().for_each(|clock| clock.run(0));
    lab.until(20 * S, "all list all again", |lab| lab.all_list_all(&nodes));
    let mut faults: Vec<String> = histories
        .iter()
        .flat_map(|history| &history.without_effect)
        .map(|(name, shown, at)| format!("{name} was acknowledged, and {at} showed {shown}"))
        .collect();
    // Replicas that have not converged by now never will; an older build may not converge.
    let settled = Instant::now();
    let ends = loop {
        let ends: Vec<String> = histories
            .iter()
            .flat_map(|history| {
                addresses.iter().map(move |at| history.check(read(*at, history.row, None).as_deref()))
            })
            .filter_map(Result::err)
            .collect();
        if ends.is_empty() || settled.elapsed() > 15 * S {
            break ends;
        }
        std::thread::sleep(S / 4);
    };
    faults.extend(ends);
    (histories, faults)
}

fn wall_ms() -> i64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(wall.as_millis()).unwrap()
}

#[test]
fn what_is_acknowledged_takes_effect_though_clocks_jump_and_stand_still() {
    with_clocks("what_is_acknowledged_takes_effect_though_clocks_jump_and_stand_still", |lab, build| {
        let bound = match (std::env::var_os("LAB_LONG"), std::env::var("LAB").as_deref()) {
            (Some(_), _) => 600 * S,
            (None, Ok("full")) => 60 * S,
            _ => 10 * S,
        };
        let (histories, faults) = disturb_clocks(lab, build, bound);
        let acknowledged: usize = histories.iter().map(|history| history.acknowledged).sum();
        println!("{acknowledged} names acknowledged");
        assert!(acknowledged > 100, "{acknowledged} is not enough to say anything");
        assert_eq!(faults, [""; 0]);
    });
}

/// A checker that has never failed proves nothing.
#[test]
fn the_version_before_epochs_is_found_out() {
    let Some(older) = older_build("the_version_before_epochs_is_found_out") else { return };
    with_clocks("the_version_before_epochs_is_found_out", |lab, _| {
        let (_, faults) = disturb_clocks(lab, &older, 10 * S);
        println!("{} faults, such as {:?}", faults.len(), faults.first());
        assert!(!faults.is_empty(), "nothing was noticed");
    });
}

#[test]
fn a_replica_of_the_version_before_epochs_is_warned_of_and_tables_are_equal_once_it_is_upgraded() {
    let test = "a_replica_of_the_version_before_epochs_is_warned_of_and_tables_are_equal_once_it_is_upgraded";
    let Some(older) = older_build(test) else { return };
    with_clocks(test, |lab, build| {
        let hosts = [lab.host(), lab.host()];
        let clocks = ["new", "old"].map(|name| LabClock::new(lab.dir(), name).unwrap());
        // Starts on the previous version's journal, with rows from ten years ahead.
        clocks[1].run(10 * YEAR_MS);
        let old = start(lab, &older, &hosts[1], &clocks[1], "old");
        lab.until(5 * S, "it is there", |lab| lab.providers(old) == ["old"]);
        let student = json!({ "id": 7, "firstName": "Ann", "lastName": "Future" }).to_string();
        assert_eq!(send(lab.address(old), "POST /students", &[JSON], &student, 8 * S).unwrap().status, 201);
        clocks[1].run(0);
        lab.leave(old);
        let old = start(lab, &older, &hosts[1], &clocks[1], "old");
        let new = start(lab, build, &hosts[0], &clocks[0], "new");
        lab.until(10 * S, "both list both", |lab| lab.all_list_all(&[new, old]));
        lab.until(5 * S, "the new one warns of the old one", |lab| {
            lab.text(new, "/readyz")
                .is_some_and(|ready| ready.contains("rows are ordered differently") && ready.contains("old"))
        });
        lab.until(5 * S, "the new one has the student", |lab| shown(lab, new).is_some());
        assert_eq!(rename(lab, new, "Now").status, 200);
        assert_eq!(shown(lab, new).as_deref(), Some("Now"));
        // The previous version stores and relays the entry, and orders rows by time alone.
        let grade = json!({ "title": "Oral", "type": "Exam", "score": 95 }).to_string();
        let reply =
            send(lab.address(new), "POST /students/7/grades?ack=replicated", &[JSON], &grade, 8 * S).unwrap();
        assert_eq!(reply.status, 201, "{}", reply.body);
        lab.leave(old);
        let old = start(lab, build, &hosts[1], &clocks[1], "old");
        lab.until(10 * S, "both list both again", |lab| lab.all_list_all(&[new, old]));
        lab.until(10 * S, "tables are equal once all are new", |lab| {
            let tables = [new, old].map(|node| lab.text(node, "/students"));
            tables[0].is_some() && tables[0] == tables[1] && shown(lab, old).as_deref() == Some("Now")
        });
        lab.until(10 * S, "nothing is warned of any more", |lab| {
            lab.text(new, "/readyz").is_some_and(|ready| !ready.contains("ordered differently"))
        });
        every_rename_takes_effect(lab, &[new, old], "after");
    });
}
