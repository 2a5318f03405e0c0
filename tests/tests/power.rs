//! Power failures: every acknowledged write survives, though the disks lose unsynced writes.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use hearsay_tests::{
    Cluster, Host, Lab, LossyDisk, NodeRef, Writers, all_written, feeds,
    history::{Fault, History},
    other_build, scenario, sh,
};

const S: Duration = Duration::from_secs(1);
/// Seed with which a disk keeps no unsynced write, at least of few changes.
const NOTHING_KEPT: u64 = 8;
const TOPICS: [&str; 2] = ["grading", "log"];

/// Runs a scenario on lossy disks, where they can be mounted.
fn on_lossy_disks(name: &str, body: impl FnOnce(&mut Lab)) {
    if let Err(why) = LossyDisk::can_be_mounted() {
        println!("skipped: {name}: {why}");
        assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and {name} cannot run here: {why}");
        return;
    }
    scenario(name, body);
}

fn rounds() -> u32 {
    if std::env::var_os("LAB_LONG").is_some() { 300 } else { 10 }
}

/// Nodes that keep both journals, each on a lossy disk.
struct Machines {
    hosts: Vec<Host>,
    nodes: Vec<NodeRef>,
    disks: Vec<LossyDisk>,
    rng: fastrand::Rng,
    forgotten: u64,
    slowest: Duration,
}

impl Machines {
    fn start(lab: &mut Lab, prefix: &str) -> Self {
        let names: Vec<_> = (1..=3).map(|i| format!("{prefix}{i}")).collect();
        let hosts: Vec<_> = names.iter().map(|_| lab.host()).collect();
        let disks: Vec<_> =
            names.iter().map(|name| LossyDisk::mount(&lab.dir().join(name)).unwrap()).collect();
        let nodes: Vec<_> = names.iter().zip(&hosts).map(|(name, host)| keeper(lab, host, name)).collect();
        let seed = std::env::var("LAB_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        println!("LAB_SEED={seed}");
        lab.until(10 * S, "all list all", |lab| lab.all_list_all(&nodes));
        let rng = fastrand::Rng::with_seed(seed);
        Self { hosts, nodes, disks, rng, forgotten: 0, slowest: Duration::ZERO }
    }

    /// The power of these nodes fails and comes back.
    fn lose_power(&mut self, lab: &mut Lab, which: &[usize]) {
        which.iter().for_each(|which| lab.signal(self.nodes[*which], "KILL"));
        which.iter().for_each(|which| _ = lab.ended(self.nodes[*which], 5 * S));
        let start = Instant::now();
        for which in which {
            self.forgotten += self.disks[*which].lose_power(self.rng.u64(..));
            let name = lab.name_of(self.nodes[*which]);
            self.nodes[*which] = keeper(lab, &self.hosts[*which], &name);
        }
        lab.until(10 * S, "they answer again", |lab| {
            which.iter().all(|which| lab.text(self.nodes[*which], "/readyz").is_some())
        });
        self.slowest = self.slowest.max(start.elapsed());
    }

    fn faults(&self, lab: &Lab, history: &History) -> BTreeSet<Fault> {
        let addresses: Vec<_> = self.nodes.iter().map(|node| lab.address(*node)).collect();
        history.check(&all_written(&addresses))
    }

    /// Kills all nodes at the same time, and copies their journals to an ordinary disk.
    fn copy(&mut self, lab: &mut Lab, attempt: u32) -> Vec<PathBuf> {
        self.nodes.iter().for_each(|node| lab.signal(*node, "KILL"));
        let mut copies = Vec::new();
        for node in &self.nodes {
            lab.ended(*node, 5 * S);
            let name = lab.name_of(*node);
            let copy = lab.dir().join(format!("copy-{attempt}-of-{name}"));
            sh(&format!("cp -r {}/hearsay/*/0/journal {}", lab.dir().join(name).display(), copy.display()));
            copies.push(copy);
        }
        copies
    }

    fn restart(&mut self, lab: &mut Lab) {
        for (node, host) in self.nodes.iter_mut().zip(&self.hosts) {
            let name = lab.name_of(*node);
            *node = keeper(lab, host, &name);
        }
        lab.until(10 * S, "all list all again", |lab| lab.all_list_all(&self.nodes));
        // Each start is an event that goes to the log of every node.
        lab.until(20 * S, "equal logs", |lab| {
            let newest = |node: &NodeRef| {
                let page = lab.get(*node, "/log?limit=100&before=end")?;
                let ids = page["records"].as_array()?.iter().map(|record| record["id"].to_string());
                Some(ids.collect::<BTreeSet<_>>())
            };
            let first = newest(&self.nodes[0]);
            first.is_some() && self.nodes.iter().all(|node| newest(node) == first)
        });
    }
}

fn keeper(lab: &mut Lab, host: &Host, name: &str) -> NodeRef {
    lab.start(Some(host), name, 7500, &["--role", "grading,log", "--name", name])
}

/// The power fails again and again under writers on all nodes, for the nodes that `whose` selects. Returns
/// the faults.
fn losing_power(
    lab: &mut Lab,
    prefix: &str,
    (rounds, settle): (u32, Duration),
    whose: impl Fn(&mut fastrand::Rng) -> Vec<usize>,
) -> BTreeSet<Fault> {
    let mut machines = Machines::start(lab, prefix);
    let addresses: Vec<_> = machines.nodes.iter().map(|node| lab.address(*node)).collect();
    let writers = Writers::start(&addresses);
    for _ in 0..rounds {
        // Requires some writes before each failure, at any speed of the machine and after a different time.
        let enough = writers.acknowledged() + machines.rng.usize(..60);
        lab.until(60 * S, "writes go on", |_| writers.acknowledged() > enough);
        let which = whose(&mut machines.rng);
        machines.lose_power(lab, &which);
    }
    let history = writers.stop();
    lab.until(20 * S, "all list all again", |lab| lab.all_list_all(&machines.nodes));
    lab.until(20 * S, "equal roots", |lab| lab.agree(&machines.nodes));
    let (acknowledged, refused, unknown) = history.counts();
    println!(
        "{rounds} rounds: {acknowledged} acknowledged, {refused} refused, {unknown} indeterminate; {} bytes and names \
         forgotten; slowest restart {:?}; {} syncs",
        machines.forgotten,
        machines.slowest,
        machines.disks.iter().map(LossyDisk::syncs).sum::<u64>()
    );
    assert!(acknowledged > 5 * rounds as usize, "{acknowledged} is not enough to say anything");
    assert!(machines.forgotten > 0, "the power went, and nothing was forgotten");
    // Replicas that have not converged by now never will.
    let start = Instant::now();
    let mut faults = machines.faults(lab, &history);
    while start.elapsed() < settle && !faults.is_empty() {
        std::thread::sleep(S / 4);
        faults = machines.faults(lab, &history);
    }
    if faults.is_empty() {
        sound_and_equal(lab, &mut machines);
    }
    faults
}

/// Checks that the databases verify, have no gaps, and are equal on all nodes, and that the nodes kept their
/// identities.
fn sound_and_equal(lab: &mut Lab, machines: &mut Machines) {
    for attempt in 0.. {
        let copies = machines.copy(lab, attempt);
        for copy in &copies {
            let verified = lab.command(None, "verify", &["journal", "verify"]).arg(copy).output().unwrap();
            assert!(verified.status.success(), "{copy:?}\n{}", String::from_utf8_lossy(&verified.stdout));
        }
        let all = TOPICS.map(|topic| {
            copies.iter().map(|copy| feeds(&copy.join(format!("{topic}.db")))).collect::<Vec<_>>()
        });
        if all.iter().any(|nodes| nodes.iter().any(|feeds| *feeds != nodes[0])) {
            // The log also has events of the nodes: the last lines may have been on their way.
            assert!(attempt < 5, "they differ: {all:#?}");
            machines.restart(lab);
            continue;
        }
        for (topic, nodes) in TOPICS.iter().zip(&all) {
            let feeds = &nodes[0];
            let entries: u64 = feeds.values().map(|feed| feed.entries).sum();
            let writers: BTreeSet<_> = feeds.keys().filter_map(|name| name.split('-').next()).collect();
            println!("{topic}: {entries} entries in {} feeds of {} writers", feeds.len(), writers.len());
            let gap = feeds.iter().find(|(_, feed)| feed.entries != feed.last);
            assert_eq!(gap, None, "{topic} has a gap");
            assert_eq!(writers.len(), 3, "a node came back as another one");
        }
        return;
    }
}

#[test]
fn nothing_acknowledged_is_lost_though_one_node_after_the_other_loses_power() {
    on_lossy_disks("nothing_acknowledged_is_lost_though_one_node_after_the_other_loses_power", |lab| {
        let faults = losing_power(lab, "m", (rounds(), 30 * S), |rng| vec![rng.usize(..3)]);
        assert_eq!(faults, BTreeSet::new());
    });
}

#[test]
fn nothing_acknowledged_is_lost_though_all_nodes_lose_power_at_once() {
    on_lossy_disks("nothing_acknowledged_is_lost_though_all_nodes_lose_power_at_once", |lab| {
        let faults = losing_power(lab, "m", (rounds(), 30 * S), |_| vec![0, 1, 2]);
        assert_eq!(faults, BTreeSet::new());
    });
}

/// A checker that has never failed proves nothing.
#[test]
fn nodes_that_seldom_sync_are_found_out_when_the_power_goes() {
    let Some(broken) = other_build("nodes_that_seldom_sync_are_found_out_when_the_power_goes") else {
        return;
    };
    on_lossy_disks("nodes_that_seldom_sync_are_found_out_when_the_power_goes", |lab| {
        lab.restart_with(&broken, &[("HEARSAY_BROKEN", "seldom-sync")]);
        let faults = losing_power(lab, "m", (4, 3 * S), |_| vec![0, 1, 2]);
        let lost = faults.iter().filter(|fault| matches!(fault, Fault::Lost { .. })).count();
        println!("{lost} lost, of {} faults", faults.len());
        assert!(lost > 0, "the checker found no loss");
    });
}

#[test]
fn a_lossy_disk_is_a_disk_until_the_power_goes() {
    on_lossy_disks("a_lossy_disk_is_a_disk_until_the_power_goes", |lab| {
        let dir = lab.dir().join("disk");
        let disk = LossyDisk::mount(&dir).unwrap();
        let synced = dir.join("synced");
        let mut file = fs::File::create(&synced).unwrap();
        file.write_all(b"kept").unwrap();
        file.sync_all().unwrap();
        fs::File::open(&dir).unwrap().sync_all().unwrap();
        file.write_all(&[b'x'; 10_000]).unwrap();
        fs::create_dir(dir.join("made")).unwrap();
        fs::write(dir.join("made/file"), "unsynced").unwrap();
        fs::rename(dir.join("made/file"), dir.join("made/renamed")).unwrap();
        // Readers see all of it.
        assert_eq!(fs::metadata(&synced).unwrap().len(), 10_004);
        assert_eq!(fs::read_to_string(dir.join("made/renamed")).unwrap(), "unsynced");
        drop(file);
        assert!(disk.lose_power(NOTHING_KEPT) > 10_000);
        assert_eq!(fs::read(&synced).unwrap(), b"kept");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    });
}
