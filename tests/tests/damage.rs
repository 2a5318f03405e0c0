//! Damaged disks: bits flip and files are cut short under real nodes. Damage is detected, never served, and
//! repaired from other replicas.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::OpenOptions,
    net::SocketAddr,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hearsay_tests::{Cluster, Host, Lab, NodeRef, all_written, feeds, http::send, scenario};
use serde_json::json;

const S: Duration = Duration::from_secs(1);
/// Log lines of a node that finds damage.
const NOTICED: &str = "the journal's database is damaged";
const PAGE: u64 = 4096;
/// Entries in each journal: some dozens of pages.
const ENTRIES: usize = 300;

/// Nodes with a full grade book and a full log each.
struct Keepers {
    hosts: Vec<Host>,
    nodes: Vec<NodeRef>,
    written: Vec<String>,
    rng: fastrand::Rng,
}

impl Keepers {
    fn start(lab: &mut Lab) -> Self {
        let hosts: Vec<_> = (0..3).map(|_| lab.host()).collect();
        let nodes: Vec<_> =
            hosts.iter().enumerate().map(|(i, host)| keeper(lab, host, &format!("m{}", i + 1))).collect();
        lab.until(10 * S, "all list all", |lab| lab.all_list_all(&nodes));
        for i in 0..ENTRIES {
            let to = lab.address(nodes[i % 3]);
            let student = json!({ "firstName": "Writer", "lastName": format!("student-{i}") }).to_string();
            let record = format!("record-{i} {}", "x".repeat(i));
            for (request, kind, body) in
                [("POST /students", "application/json", student), ("POST /log", "text/plain", record)]
            {
                let reply = send(to, request, &[("content-type", kind)], &body, 8 * S).unwrap();
                assert!(reply.status < 300, "{}", reply.body);
            }
        }
        let seed = std::env::var("LAB_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        println!("LAB_SEED={seed}");
        let mut keepers = Self { hosts, nodes, written: Vec::new(), rng: fastrand::Rng::with_seed(seed) };
        keepers.equal(lab, 2 * ENTRIES);
        keepers
    }

    fn address(&self, lab: &Lab, which: usize) -> String {
        lab.address(self.nodes[which]).to_string()
    }

    fn all(&self, lab: &Lab) -> BTreeMap<String, Vec<String>> {
        let addresses: Vec<SocketAddr> = self.nodes.iter().map(|node| lab.address(*node)).collect();
        all_written(&addresses)
    }

    fn restart(&mut self, lab: &mut Lab, which: usize) {
        let name = lab.name_of(self.nodes[which]);
        self.nodes[which] = keeper(lab, &self.hosts[which], &name);
    }

    /// Returns the directory of a node's journals.
    fn journals(&self, lab: &Lab, which: usize) -> PathBuf {
        let slots = lab.dir().join(lab.name_of(self.nodes[which])).join("hearsay");
        let cluster = slots.read_dir().unwrap().next().unwrap().unwrap();
        cluster.path().join("0/journal")
    }

    /// Waits until a node's writes are in its database file: newer pages in the write-ahead log would hide
    /// the damage.
    fn all_in_files(&self, lab: &Lab, which: usize) {
        let journals = self.journals(lab, which);
        let logs = ["grading.db-wal", "log.db-wal"].map(|log| journals.join(log));
        lab.until(20 * S, "logs are empty", |_| {
            logs.iter().all(|log| log.metadata().map_or(true, |log| log.len() == 0))
        });
    }

    /// Writes to every topic, so that a node's write-ahead log is not empty.
    fn write(&mut self, lab: &Lab, which: usize) {
        let to = lab.address(self.nodes[which]);
        let n = self.written.len();
        let student = json!({ "firstName": "Writer", "lastName": format!("student-{n}") }).to_string();
        let record = format!("record-{n}");
        for (request, kind, body) in
            [("POST /students", "application/json", &student), ("POST /log", "text/plain", &record)]
        {
            let reply = send(to, request, &[("content-type", kind)], body, 8 * S).unwrap();
            assert!(reply.status < 300, "{}", reply.body);
        }
        self.equal(lab, n + 2);
    }

    /// Waits until all nodes have this many entries, and remembers them.
    fn equal(&mut self, lab: &Lab, count: usize) {
        let first = self.address(lab, 0);
        lab.until(10 * S, "all have all", |lab| {
            let all = self.all(lab);
            all.values().all(|names| names.len() == count && *names == all[&first])
        });
        self.written = self.all(lab).remove(&first).unwrap();
    }

    /// Flips some bits of one page of a file, or cuts the file short. Returns a description.
    fn damage(&mut self, file: &Path) -> String {
        let disk = OpenOptions::new().read(true).write(true).open(file).unwrap();
        let length = disk.metadata().unwrap().len();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if self.rng.u8(..6) == 0 {
            let cut = self.rng.u64(..length);
            disk.set_len(cut).unwrap();
            return format!("{name} cut from {length} to {cut}");
        }
        let page = self.rng.u64(..length.div_ceil(PAGE)) * PAGE;
        let bits = self.rng.u64(1..8);
        for _ in 0..bits {
            let at = page + self.rng.u64(..PAGE.min(length - page));
            let mut byte = [0];
            disk.read_exact_at(&mut byte, at).unwrap();
            disk.write_all_at(&[byte[0] ^ (1 << self.rng.u8(..8))], at).unwrap();
        }
        format!("{name} {bits} bits of page {}", page / PAGE + 1)
    }

    /// Waits until a node has detected damage, or has scrubbed all pages twice without finding any: a free
    /// page was overwritten.
    fn noticed_or_gone(&self, lab: &Lab, which: usize, file: &Path, what: &str) -> bool {
        let topic = file.file_stem().unwrap().to_string_lossy().into_owned();
        let pages = file.metadata().unwrap().len() / PAGE;
        let node = self.nodes[which];
        let noticed = || has_noticed(&lab.log(node), &topic);
        lab.until(60 * S, what, |lab| {
            noticed()
                || count(lab, node, "journal_pages_checked", &topic).is_some_and(|seen| seen > 2 * pages)
        });
        noticed()
    }

    /// Stops all nodes, and verifies their databases.
    fn end_sound(&self, lab: &mut Lab) {
        self.nodes.clone().into_iter().for_each(|node| lab.crash(node));
        for which in 0..3 {
            let journals = self.journals(lab, which);
            for topic in ["grading.db", "log.db"] {
                let mut verify = lab.command(None, "verify", &["journal", "verify"]);
                let verified = verify.arg(journals.join(topic)).output().unwrap();
                assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
            }
        }
    }

    /// Waits until all nodes have everything. Until then no node has an unknown entry, and undamaged nodes
    /// miss none.
    fn mended(&self, lab: &Lab, ill: &BTreeSet<usize>, what: &str) {
        let start = Instant::now();
        let sound: BTreeSet<&String> = self.written.iter().collect();
        loop {
            let all = self.all(lab);
            for which in 0..3 {
                let names = &all[&self.address(lab, which)];
                let wrong = names.iter().find(|name| !sound.contains(name));
                assert_eq!(wrong, None, "served by {which} after {what}");
                let has_all = names.len() == self.written.len();
                assert!(has_all || ill.contains(&which), "{which} lost something after {what}");
            }
            if all.values().all(|names| *names == self.written) {
                return;
            }
            assert!(start.elapsed() < 20 * S, "not mended after {what}\n{}", lab.describe());
            std::thread::sleep(S / 20);
        }
    }
}

fn keeper(lab: &mut Lab, host: &Host, name: &str) -> NodeRef {
    lab.start(Some(host), name, 7500, &["--role", "grading,log", "--name", name])
}

/// Returns whether a node's log reports damage in this topic.
fn has_noticed(log: &str, topic: &str) -> bool {
    let topic = format!("topic=\"{topic}\"");
    log.lines().any(|line| line.contains(NOTICED) && line.contains(&topic))
}

/// Returns a counter of a node's journal.
fn count(lab: &Lab, node: NodeRef, name: &str, topic: &str) -> Option<u64> {
    let start = format!("hearsay_{name}_total{{topic=\"{topic}\"}} ");
    lab.text(node, "/metrics")?.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok())
}

fn topic(rng: &mut fastrand::Rng) -> &'static str {
    if rng.bool() { "grading.db" } else { "log.db" }
}

#[test]
fn flipped_bits_and_cut_files_are_noticed_repaired_and_never_spread() {
    scenario("flipped_bits_and_cut_files_are_noticed_repaired_and_never_spread", |lab| {
        let mut keepers = Keepers::start(lab);
        let rounds = if std::env::var_os("LAB_LONG").is_some() { 300 } else { 6 };
        // Damage in a page that no request reads is found by the scrub, before the next turn.
        let mut unnoticed: BTreeMap<usize, (String, PathBuf)> = BTreeMap::new();
        let (mut noticed_at_once, mut noticed_later, mut gone, mut in_log) = (0, 0, 0, 0);
        for round in 0..rounds {
            let which = round % 3;
            if let Some((what, file)) = unnoticed.remove(&which) {
                let noticed = keepers.noticed_or_gone(lab, which, &file, &what);
                *(if noticed { &mut noticed_later } else { &mut gone }) += 1;
            }
            let topic = topic(&mut keepers.rng);
            let mut file = keepers.journals(lab, which).join(topic);
            let in_file = keepers.rng.u8(..3) > 0;
            if in_file {
                keepers.all_in_files(lab, which);
                match keepers.rng.bool() {
                    true => lab.leave(keepers.nodes[which]),
                    false => lab.crash(keepers.nodes[which]),
                }
            } else {
                let healthy = unnoticed.is_empty();
                if healthy {
                    keepers.write(lab, which);
                }
                lab.crash(keepers.nodes[which]);
                let log = file.with_extension("db-wal");
                if log.metadata().is_ok_and(|file| file.len() > 0) {
                    file = log;
                }
            }
            let in_file = file.extension().is_some_and(|extension| extension == "db");
            let what = format!("round {round}, node {which}: {}", keepers.damage(&file));
            keepers.restart(lab, which);
            lab.until(10 * S, "it answers", |lab| lab.text(keepers.nodes[which], "/readyz").is_some());
            let mut ill: BTreeSet<usize> = unnoticed.keys().copied().collect();
            ill.insert(which);
            keepers.mended(lab, &ill, &what);
            let noticed = has_noticed(&lab.log(keepers.nodes[which]), topic.trim_end_matches(".db"));
            match (in_file, noticed) {
                (_, true) => noticed_at_once += 1,
                (true, false) => _ = unnoticed.insert(which, (what, file)),
                // SQLite ends a log where its own checksums fail.
                (false, false) => in_log += 1,
            }
        }
        for (which, (what, file)) in unnoticed {
            let noticed = keepers.noticed_or_gone(lab, which, &file, &what);
            *(if noticed { &mut noticed_later } else { &mut gone }) += 1;
        }
        println!(
            "{rounds} damages: {noticed_at_once} noticed when read, {noticed_later} by looking, {gone} overwritten unread, \
             {in_log} in a log"
        );
        keepers.mended(lab, &[0, 1, 2].into(), "all rounds");
        // Damage in a whole file is detected, or hit a free page, which is overwritten.
        assert!(noticed_at_once + noticed_later >= gone, "{gone} were never noticed");
        keepers.end_sound(lab);
    });
}

#[test]
fn three_nodes_that_are_each_damaged_elsewhere_repair_one_another() {
    scenario("three_nodes_that_are_each_damaged_elsewhere_repair_one_another", |lab| {
        let mut keepers = Keepers::start(lab);
        let rounds = if std::env::var_os("LAB_LONG").is_some() { 30 } else { 2 };
        let (mut noticed, mut gone) = (0, 0);
        for round in 0..rounds {
            // The last node to leave learns that the others left, and writes it into its log.
            (0..3).for_each(|which| keepers.all_in_files(lab, which));
            keepers.nodes.clone().into_iter().for_each(|node| lab.crash(node));
            for which in 0..3 {
                for topic in ["grading.db", "log.db"] {
                    let file = keepers.journals(lab, which).join(topic);
                    let bytes = file.metadata().unwrap().len();
                    // Each node in its own third of the file, so that no entry is damaged on all.
                    let pages = bytes / PAGE / 3;
                    let page = 1 + which as u64 * pages + keepers.rng.u64(..pages - 1);
                    let disk = OpenOptions::new().read(true).write(true).open(&file).unwrap();
                    let at = page * PAGE + keepers.rng.u64(..PAGE);
                    let mut byte = [0];
                    disk.read_exact_at(&mut byte, at).unwrap();
                    disk.write_all_at(&[byte[0] ^ (1 << keepers.rng.u8(..8))], at).unwrap();
                }
            }
            (0..3).for_each(|which| keepers.restart(lab, which));
            lab.until(10 * S, "all list all", |lab| lab.all_list_all(&keepers.nodes));
            // In both journals. A file that is about to be replaced is not damaged again.
            for which in 0..3 {
                for topic in ["grading.db", "log.db"] {
                    let file = keepers.journals(lab, which).join(topic);
                    let what = format!("round {round}, node {which}, {topic}");
                    *(if keepers.noticed_or_gone(lab, which, &file, &what) {
                        &mut noticed
                    } else {
                        &mut gone
                    }) += 1;
                }
            }
            keepers.mended(lab, &[0, 1, 2].into(), &format!("round {round}"));
        }
        println!("{noticed} noticed, {gone} overwritten unread");
        assert!(noticed > 2 * gone, "{gone} were never noticed");
        keepers.end_sound(lab);
        let all: Vec<_> =
            (0..3).map(|which| feeds(&keepers.journals(lab, which).join("grading.db"))).collect();
        assert!(all.iter().all(|feeds| *feeds == all[0]), "{all:#?}");
    });
}

#[test]
fn a_running_node_finds_a_flipped_bit_by_itself() {
    scenario("a_running_node_finds_a_flipped_bit_by_itself", |lab| {
        let mut keepers = Keepers::start(lab);
        keepers.all_in_files(lab, 0);
        let file = keepers.journals(lab, 0).join("grading.db");
        let disk = OpenOptions::new().read(true).write(true).open(&file).unwrap();
        let pages = disk.metadata().unwrap().len() / PAGE;
        for page in 2..pages {
            let mut byte = [0];
            let at = page * PAGE + keepers.rng.u64(..PAGE);
            disk.read_exact_at(&mut byte, at).unwrap();
            disk.write_all_at(&[byte[0] ^ 1], at).unwrap();
        }
        lab.until(30 * S, "it notices", |lab| has_noticed(&lab.log(keepers.nodes[0]), "grading"));
        keepers.mended(lab, &[0].into(), "flips while it ran");
        let counted = |name| count(lab, keepers.nodes[0], name, "grading");
        lab.until(5 * S, "it counts", |_| counted("journal_replaced") == Some(1));
        assert!(counted("journal_pages_checked").is_some_and(|pages| pages > 0));
    });
}
