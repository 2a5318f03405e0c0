use std::{path::PathBuf, sync::Arc, time::Instant};

use hearsay_protocol::{
    Identity,
    journal::feed::{ChainHash, Entry, EntryId, Run},
    seen::Seen,
};
use hearsay_services::{builtin, journal::Recorded};
use rusqlite::types::Value;
use tempfile::TempDir;

use super::*;
use crate::journal::{backup, rebuild, verify};

const CLUSTER: &str = "test";
const TOPIC: &str = "log";
const SECOND: u64 = 1 << 16;

fn projections(topic: &str) -> Option<Arc<dyn Projection>> {
    builtin().iter().find(|service| service.name() == topic)?.projection()
}

fn log() -> Arc<dyn Projection> {
    projections(TOPIC).unwrap()
}

/// One life of a writer.
struct Writer {
    me: Identity,
    at: (EntryId, ChainHash),
}

impl Writer {
    fn new(seed: u8, boot: u64) -> Self {
        let me = Identity::from_seed(&[seed; 32]);
        let feed = FeedId { writer: me.id(), boot };
        Self { me, at: (EntryId { feed, seq: Version(1) }, ChainHash::root(CLUSTER, TOPIC, feed)) }
    }

    fn feed(&self) -> FeedId {
        self.at.0.feed
    }

    /// Entries of these seconds, as one run. Every third is something that happened to the node, which has no offset.
    fn run(&mut self, seconds: impl IntoIterator<Item = u64>) -> Run {
        let first = self.at.0.seq.0;
        let entries = (first..).zip(seconds).map(|(number, second)| Entry {
            time: HybridTime(second * SECOND),
            key: Some(format!("{:?} {number}", self.at.0.feed)),
            body: format!(
                "{{\"n\":\"n\"{}}}\nmessage {number} {}",
                if number % 3 == 0 { ",\"e\":true" } else { "" },
                "x".repeat(300)
            )
            .into_bytes(),
        });
        let (run, hashes) = Run::sign(&self.me, CLUSTER, TOPIC, self.at, entries.collect());
        self.at = (EntryId { feed: run.feed, seq: run.end().next() }, *hashes.last().unwrap());
        run
    }
}

struct Bench {
    dir: TempDir,
    store: Store,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("log.db"), CLUSTER, TOPIC, log().as_ref()).unwrap();
        Self { dir, store }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("log.db")
    }

    fn put(&mut self, run: &Run) {
        self.store.put(run, log().as_ref()).unwrap();
        self.store.commit().unwrap();
    }

    fn drop_before(&mut self, second: u64) -> Dropped {
        let bound = Bound { before: Some(HybridTime(second * SECOND)), bytes: None };
        self.store.drop_oldest(bound, log().as_ref()).unwrap()
    }

    fn number(&self, sql: &str) -> i64 {
        self.store.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// Everything by which the log numbers and orders what it shows.
    fn content(&self) -> Vec<Vec<Value>> {
        let mut content = Vec::new();
        for sql in [
            "SELECT writer, boot, first, next, posted, early, exact FROM log_feeds ORDER BY writer, boot",
            "SELECT r.time, f.writer, f.boot, r.seq, r.before, r.posted, r.hidden, r.message FROM log_records r
             JOIN log_feeds f ON f.id = r.feed ORDER BY 1, 2, 3, 4",
        ] {
            let mut query = self.store.connection().prepare(sql).unwrap();
            let columns = query.column_count();
            let rows = query.query_map([], |row| (0..columns).map(|column| row.get(column)).collect());
            content.extend(rows.unwrap().collect::<rusqlite::Result<Vec<Vec<Value>>>>().unwrap());
        }
        content
    }

    fn assert_clean(&self) {
        let report = verify(&self.path(), Some(TOPIC), &projections, &mut |_, _, _| ());
        assert!(report.is_clean() && report.notes.is_empty(), "{report:#?}");
    }

    /// Making everything anew, in each of the ways there are, changes nothing.
    fn assert_lasting(&mut self) {
        self.assert_clean();
        let before = self.content();
        self.store.rebuild(log().as_ref()).unwrap();
        assert_eq!(self.content(), before);
        self.assert_clean();
        let copy = self.dir.path().join("copy.db");
        backup(&self.path(), &copy, &mut |_, _, _| ()).unwrap();
        rebuild(&copy, TOPIC, &projections, &mut |_, _, _| ()).unwrap();
        let copy = Store::open(&copy, CLUSTER, TOPIC, log().as_ref()).unwrap();
        let copy = Self { dir: tempfile::tempdir().unwrap(), store: copy };
        assert_eq!(copy.content(), before);
        for suffix in ["", "-wal", "-shm"] {
            _ = std::fs::remove_file(self.dir.path().join(format!("copy.db{suffix}")));
        }
    }
}

#[test]
fn whole_runs_that_are_older_go_and_one_that_is_partly_older_stays() {
    let mut bench = Bench::new();
    let mut writer = Writer::new(1, 1);
    let feed = writer.feed();
    for seconds in [1..=10, 11..=20, 21..=30, 31..=40] {
        bench.put(&writer.run(seconds));
    }
    assert_eq!(bench.drop_before(1), Dropped::default());
    assert!(!bench.store.is_dirty());
    assert_eq!(bench.drop_before(26), Dropped { runs: 2, entries: 20, more: false });
    assert_eq!(bench.drop_before(26), Dropped::default());
    assert_eq!(bench.number("SELECT count(*) FROM log_records"), 20);
    // Of the first twenty, six happened to the node: the next one that is posted has the number 14.
    assert_eq!(bench.number("SELECT before FROM log_records ORDER BY seq LIMIT 1"), 14);
    bench.assert_lasting();
    // Nobody's extents change, and whoever asks is told.
    let restored = bench.store.restored().unwrap();
    assert_eq!(restored.extents[0].seen.watermark(), Version(40));
    let loaded = bench.store.load(&Extent { feed, seen: Seen::default() }).unwrap();
    assert_eq!((loaded.dropped, loaded.runs[0].start), (Version(20), Version(21)));
    // A key of what is gone can be used again, and one of what is there leads there.
    assert!(bench.store.with_key(&format!("{feed:?} 20")).unwrap().is_none());
    assert_eq!(bench.store.with_key(&format!("{feed:?} 21")).unwrap().unwrap().0.seq, Version(21));
    // Numbers go on, also when all are gone.
    assert_eq!(bench.drop_before(1000).entries, 20);
    bench.assert_lasting();
    bench.put(&writer.run(41..=41));
    assert_eq!(bench.number("SELECT before FROM log_records"), 27);
    bench.assert_lasting();
}

#[test]
fn a_key_that_is_used_again_after_its_entry_went_is_the_new_one() {
    let mut bench = Bench::new();
    let (mut first, mut second) = (Writer::new(1, 1), Writer::new(2, 1));
    let key = format!("{:?} 1", first.feed());
    bench.put(&first.run(1..=3));
    bench.drop_before(10);
    let mut entry = second.run(20..=20).entries.remove(0);
    entry.key = Some(key.clone());
    second = Writer::new(2, 1);
    let (run, _) = Run::sign(&second.me, CLUSTER, TOPIC, second.at, vec![entry.clone()]);
    bench.put(&run);
    assert_eq!(
        bench.store.with_key(&key).unwrap(),
        Some((EntryId { feed: run.feed, seq: Version(1) }, entry))
    );
    bench.assert_lasting();
}

#[test]
fn a_feed_is_not_shortened_beyond_what_is_missing() {
    let mut bench = Bench::new();
    let mut writer = Writer::new(1, 1);
    let runs: Vec<Run> = (0..6).map(|i| writer.run(10 * i..10 * i + 10)).collect();
    for index in [0, 1, 3, 5] {
        bench.put(&runs[index]);
    }
    assert_eq!(bench.drop_before(1000).entries, 20);
    bench.assert_lasting();
    bench.put(&runs[2]);
    assert_eq!(bench.drop_before(1000).entries, 20);
    bench.assert_lasting();
    assert_eq!(
        bench.store.restored().unwrap().extents[0].seen.iter().collect::<Vec<_>>(),
        [(Version(1), Version(40)), (Version(51), Version(60))]
    );
}

#[test]
fn a_run_that_overlaps_what_went_is_kept_and_only_its_rest_is_shown() {
    let mut bench = Bench::new();
    let mut writer = Writer::new(1, 1);
    let start = writer.at;
    let whole = writer.run(1..=30);
    let (first, hashes) = Run::sign(&writer.me, CLUSTER, TOPIC, start, whole.entries[..10].to_vec());
    let at = (EntryId { feed: start.0.feed, seq: Version(6) }, hashes[4]);
    let (rest, _) = Run::sign(&writer.me, CLUSTER, TOPIC, at, whole.entries[5..].to_vec());
    bench.put(&first);
    bench.put(&rest);
    assert_eq!(bench.drop_before(20), Dropped { runs: 1, entries: 10, more: false });
    assert_eq!(bench.number("SELECT min(seq) FROM log_records"), 11);
    bench.assert_lasting();
    assert_eq!(bench.drop_before(100), Dropped { runs: 1, entries: 20, more: false });
    bench.assert_lasting();
}

#[test]
fn what_is_too_much_goes_from_the_oldest_on_until_it_is_enough() {
    let mut bench = Bench::new();
    let empty = bench.store.used_bytes().unwrap();
    let mut writers = [Writer::new(1, 1), Writer::new(2, 1), Writer::new(1, 2)];
    // Two write all the time, one began late and says little.
    for second in 0..600 {
        writers[..2].iter_mut().for_each(|writer| bench.put(&writer.run([second])));
        if second > 500 && second % 20 == 0 {
            bench.put(&writers[2].run([second]));
        }
    }
    let full = bench.store.used_bytes().unwrap();
    let enough = (full + empty) / 2;
    let (mut steps, mut runs) = (0, 0);
    loop {
        let dropped =
            bench.store.drop_oldest(Bound { before: None, bytes: Some(enough) }, log().as_ref()).unwrap();
        (steps, runs) = (steps + 1, runs + dropped.runs);
        assert!(!bench.store.is_dirty() && dropped.runs <= RUNS_PER_STEP + RUNS_PER_TURN as u64);
        if !dropped.more {
            break;
        }
    }
    let used = bench.store.used_bytes().unwrap();
    assert!(used <= enough && used > enough * 9 / 10, "{used} of {enough}, was {full}, empty {empty}");
    assert!(steps > 1 && (400..800).contains(&runs), "{runs} runs in {steps} steps");
    // Both that write all the time lost the same, about, and the third nothing.
    let oldest =
        |feed: i64| bench.number(&format!("SELECT min(start) FROM journal_runs WHERE feed = {feed}"));
    assert!(oldest(1).abs_diff(oldest(2)) <= RUNS_PER_TURN as u64, "{} {}", oldest(1), oldest(2));
    assert_eq!(oldest(3), 1);
    bench.assert_lasting();
}

#[test]
fn a_replica_that_joins_later_has_what_is_left_in_the_same_order() {
    let mut old = Bench::new();
    let mut writers = [Writer::new(1, 1), Writer::new(2, 1)];
    for i in 0..20 {
        writers.iter_mut().for_each(|writer| old.put(&writer.run(5 * i..5 * i + 5)));
    }
    old.drop_before(52);
    let mut new = Bench::new();
    for writer in &writers {
        let nothing = Extent { feed: writer.feed(), seen: Seen::default() };
        let loaded = old.store.load(&nothing).unwrap();
        assert_eq!(loaded.dropped, Version(50));
        let forgone = new.store.forgo(writer.feed(), loaded.dropped, log().as_ref()).unwrap().unwrap();
        assert_eq!(forgone.seen, Seen::up_to(Version(50)));
        loaded.runs.iter().for_each(|run| new.put(run));
    }
    let (extents, of_new) = (old.store.restored().unwrap().extents, new.store.restored().unwrap().extents);
    assert_eq!(extents, of_new);
    let order = |bench: &Bench| -> Vec<(i64, i64)> {
        let mut query = bench
            .store
            .connection()
            .prepare("SELECT r.time, r.seq FROM log_records r JOIN log_feeds f ON f.id = r.feed ORDER BY time, writer")
            .unwrap();
        query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(order(&old).len(), 100);
    assert_eq!(order(&old), order(&new));
    old.assert_lasting();
    new.assert_lasting();
    // Both drop on, and come to the same.
    old.drop_before(80);
    new.drop_before(80);
    assert_eq!(order(&old), order(&new));
    new.assert_lasting();
}

#[test]
fn what_another_no_longer_keeps_is_not_waited_for_and_takes_nothing_away() {
    let mut bench = Bench::new();
    let mut writer = Writer::new(1, 1);
    let feed = writer.feed();
    let runs: Vec<Run> = (0..5).map(|i| writer.run(10 * i..10 * i + 10)).collect();
    bench.put(&runs[1]);
    bench.put(&runs[3]);
    let forgo = |bench: &mut Bench, up_to| {
        let forgone = bench.store.forgo(feed, Version(up_to), log().as_ref()).unwrap();
        bench.store.commit().unwrap();
        forgone.map(|extent| extent.seen.iter().map(|(s, e)| (s.0, e.0)).collect::<Vec<_>>())
    };
    assert_eq!(forgo(&mut bench, 45), Some(vec![(1, 20), (31, 40)]));
    assert_eq!(forgo(&mut bench, 45), None);
    assert_eq!(bench.number("SELECT count(*) FROM log_records"), 20);
    bench.assert_lasting();
    // Once what is before it has gone by this node's own bounds, the next gap closes.
    assert_eq!(bench.drop_before(100).entries, 10);
    assert_eq!(forgo(&mut bench, 45), Some(vec![(1, 40)]));
    bench.assert_lasting();
    bench.put(&runs[4]);
    bench.assert_lasting();
    assert_eq!(bench.drop_before(100).entries, 20);
    assert_eq!(bench.number("SELECT count(*) FROM log_records"), 0);
    bench.assert_lasting();
}

#[test]
fn a_damaged_run_is_taken_out_and_comes_back_behind_what_was_dropped() {
    let mut bench = Bench::new();
    let mut writer = Writer::new(1, 1);
    let runs: Vec<Run> = (0..6).map(|i| writer.run(10 * i..10 * i + 10)).collect();
    runs.iter().for_each(|run| bench.put(run));
    bench.drop_before(25);
    let before = bench.content();
    let left = bench.store.discard(writer.feed(), &[Version(41)], log().as_ref()).unwrap();
    assert_eq!(left.seen.iter().collect::<Vec<_>>(), [(Version(1), Version(40)), (Version(51), Version(60))]);
    bench.assert_lasting();
    bench.put(&runs[4]);
    assert_eq!(bench.content(), before);
    bench.assert_lasting();
    // A damaged one that is old goes like the others, with its keys.
    bench.store.connection().execute("UPDATE journal_runs SET entries = x'00' WHERE start = 21", []).unwrap();
    assert_eq!(bench.drop_before(35).entries, 10);
    assert_eq!(bench.number("SELECT count(*) FROM journal_keys"), 30);
    bench.assert_lasting();
}

/// A plug-in that wants to leave too much.
struct Hoarder;

impl Projection for Hoarder {
    fn version(&self) -> u32 {
        1
    }
    fn create(&self, _: &Connection) -> rusqlite::Result<()> {
        Ok(())
    }
    fn fold(&self, _: &Connection, _: &Recorded<'_>) -> rusqlite::Result<()> {
        Ok(())
    }
    fn dropped(&self, _: &Connection, _: FeedId, up_to: Seq) -> rusqlite::Result<Option<Vec<u8>>> {
        Ok(Some(vec![0; if up_to.0 > 10 { REMNANT_BYTES_MAX + 1 } else { REMNANT_BYTES_MAX }]))
    }
}

#[test]
fn what_fails_drops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(&dir.path().join("x.db"), CLUSTER, TOPIC, &Hoarder).unwrap();
    let mut writer = Writer::new(1, 1);
    for i in 0..2 {
        store.put(&writer.run(10 * i..10 * i + 10), &Hoarder).unwrap();
    }
    store.commit().unwrap();
    let bound = |second| Bound { before: Some(HybridTime(second * SECOND)), bytes: None };
    assert!(store.drop_oldest(bound(100), &Hoarder).is_err());
    store.roll_back();
    let count = |store: &Store| -> i64 {
        store.connection().query_row("SELECT count(*) FROM journal_runs", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(count(&store), 2);
    assert_eq!(store.drop_oldest(bound(10), &Hoarder).unwrap().entries, 10);
    assert_eq!(remnant(store.connection(), writer.feed()).unwrap().unwrap().len(), REMNANT_BYTES_MAX);
}

/// How long an append may have to wait, and how much is kept of a log that is always full. Not part of the tests:
/// `cargo test --release -p hearsay-node --lib -- --ignored --nocapture how_long_dropping_takes`
#[test]
#[ignore = "a measurement of some minutes, for an optimised build"]
fn how_long_dropping_takes() {
    for per_run in [1, 64, 1000] {
        let mut bench = Bench::new();
        let mut writers = [Writer::new(1, 1), Writer::new(2, 1)];
        let (mut second, each) = (0, 50_000);
        let begun = Instant::now();
        while second < each {
            write(&mut bench, &mut writers, &mut second, per_run);
        }
        let full = bench.store.used_bytes().unwrap();
        println!("{per_run} a run: {} entries put in {:.2?}, {full} bytes", 2 * each, begun.elapsed());
        let enough = full / 2;
        drop_all("size", &mut bench, Bound { before: None, bytes: Some(enough) });
        for _ in 0..4 {
            for _ in 0..each / 4 / per_run {
                write(&mut bench, &mut writers, &mut second, per_run);
                if bench.store.used_bytes().unwrap() > enough {
                    let bound = Bound { before: None, bytes: Some(enough - enough / 20) };
                    while bench.store.drop_oldest(bound, log().as_ref()).unwrap().more {}
                }
            }
            let kept = bench.number("SELECT count(*) FROM log_records");
            let free = bench.number("SELECT freelist_count FROM pragma_freelist_count");
            println!(
                "  always full: {kept} records in {} bytes, {free} free pages",
                bench.store.used_bytes().unwrap()
            );
        }
        drop_all("age", &mut bench, Bound { before: Some(HybridTime(u64::MAX / 2)), bytes: None });
    }
}

fn write(bench: &mut Bench, writers: &mut [Writer; 2], second: &mut u64, per_run: u64) {
    writers.iter_mut().for_each(|writer| {
        bench.store.put(&writer.run(*second..*second + per_run), log().as_ref()).unwrap();
    });
    *second += per_run;
    // As under load: dozens share a sync.
    if second.is_multiple_of(64) || per_run > 64 {
        bench.store.commit().unwrap();
    }
}

fn drop_all(what: &str, bench: &mut Bench, bound: Bound) {
    if bench.store.is_dirty() {
        bench.store.commit().unwrap();
    }
    let (mut steps, mut all) = (Vec::new(), Dropped::default());
    loop {
        let begun = Instant::now();
        let dropped = bench.store.drop_oldest(bound, log().as_ref()).unwrap();
        steps.push(begun.elapsed());
        (all.entries, all.runs) = (all.entries + dropped.entries, all.runs + dropped.runs);
        if !dropped.more {
            break;
        }
    }
    steps.sort();
    println!(
        "  by {what}: {} entries, {} runs in {} steps: p50 {:.2?}, p99 {:.2?}, longest {:.2?}; {} bytes left",
        all.entries,
        all.runs,
        steps.len(),
        steps[steps.len() / 2],
        steps[steps.len() * 99 / 100],
        steps[steps.len() - 1],
        bench.store.used_bytes().unwrap()
    );
}
