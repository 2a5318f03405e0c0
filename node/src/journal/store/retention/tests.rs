//! Tests of retention: which runs are dropped, and that a rebuild changes nothing.

use std::{path::PathBuf, sync::Arc};

use hearsay_protocol::{
    Identity, VersionSet,
    journal::{ChainHash, EntryId, JournalEntry, Run},
};
use hearsay_services::journal::Recorded;
use rusqlite::types::Value;
use tempfile::TempDir;

use super::*;
use crate::{
    builtin,
    journal::{backup, rebuild, verify},
};

const CLUSTER: &str = "test";
const TOPIC: &str = "log";
const SECOND: u64 = 1 << 16;

fn projections(topic: &str) -> Option<Arc<dyn Projection>> {
    builtin().iter().find(|service| service.name() == topic)?.projection()
}

fn log() -> Arc<dyn Projection> {
    projections(TOPIC).unwrap()
}

/// A writer in one of its lives, with the position of its next entry.
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

    /// Returns a run with one entry for each of these seconds. Every third entry is an event of the node,
    /// which has no offset.
    fn run(&mut self, seconds: impl IntoIterator<Item = u64>) -> Run {
        let first = self.at.0.seq.0;
        let entries = (first..).zip(seconds).map(|(number, second)| JournalEntry {
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

    fn append(&mut self, run: &Run) {
        self.store.append_run(run, log().as_ref()).unwrap();
        self.store.commit().unwrap();
    }

    fn drop_before(&mut self, second: u64) -> Dropped {
        let bound = Bound { before: Some(HybridTime(second * SECOND)), bytes: None };
        self.store.drop_oldest(bound, log().as_ref()).unwrap()
    }

    fn number(&self, sql: &str) -> i64 {
        self.store.connection().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// Returns all rows by which the log numbers and orders its records.
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

    /// Asserts that no kind of rebuild changes the log's content.
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
        bench.append(&writer.run(seconds));
    }
    assert_eq!(bench.drop_before(1), Dropped::default());
    assert!(!bench.store.is_dirty());
    assert_eq!(bench.drop_before(26), Dropped { runs: 2, entries: 20, more: false });
    assert_eq!(bench.drop_before(26), Dropped::default());
    assert_eq!(bench.number("SELECT count(*) FROM log_records"), 20);
    // Six of the first twenty entries are events of the node, so the next posted record has the number 14.
    assert_eq!(bench.number("SELECT before FROM log_records ORDER BY seq LIMIT 1"), 14);
    bench.assert_lasting();
    // The extent does not change, and replicas receive the number of the last dropped entry.
    let restored = bench.store.restored().unwrap();
    assert_eq!(restored.extents[0].seen.watermark(), Version(40));
    let loaded = bench.store.load(&Extent { feed, seen: VersionSet::default() }).unwrap();
    assert_eq!((loaded.dropped, loaded.runs[0].start), (Version(20), Version(21)));
    // The key of a dropped entry can be used again. The key of a stored entry still finds that entry.
    assert!(bench.store.find_key(&format!("{feed:?} 20")).unwrap().is_none());
    assert_eq!(bench.store.find_key(&format!("{feed:?} 21")).unwrap().unwrap().0.seq, Version(21));
    // Numbering continues even after all records are dropped.
    assert_eq!(bench.drop_before(1000).entries, 20);
    bench.assert_lasting();
    bench.append(&writer.run(41..=41));
    assert_eq!(bench.number("SELECT before FROM log_records"), 27);
    bench.assert_lasting();
}

#[test]
fn a_key_that_is_used_again_after_its_entry_went_is_the_new_one() {
    let mut bench = Bench::new();
    let (mut first, mut second) = (Writer::new(1, 1), Writer::new(2, 1));
    let key = format!("{:?} 1", first.feed());
    bench.append(&first.run(1..=3));
    bench.drop_before(10);
    let mut entry = second.run(20..=20).entries.remove(0);
    entry.key = Some(key.clone());
    second = Writer::new(2, 1);
    let (run, _) = Run::sign(&second.me, CLUSTER, TOPIC, second.at, vec![entry.clone()]);
    bench.append(&run);
    assert_eq!(
        bench.store.find_key(&key).unwrap(),
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
        bench.append(&runs[index]);
    }
    assert_eq!(bench.drop_before(1000).entries, 20);
    bench.assert_lasting();
    bench.append(&runs[2]);
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
    bench.append(&first);
    bench.append(&rest);
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
    // Two feeds grow all the time. The third one begins late and stays small.
    for second in 0..600 {
        writers[..2].iter_mut().for_each(|writer| bench.append(&writer.run([second])));
        if second > 500 && second % 20 == 0 {
            bench.append(&writers[2].run([second]));
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
    // Both growing feeds lost about the same, and the third one nothing.
    let oldest =
        |feed: i64| bench.number(&format!("SELECT min(start) FROM journal_runs WHERE feed = {feed}"));
    assert!(oldest(1).abs_diff(oldest(2)) <= RUNS_PER_TURN as u64, "{} {}", oldest(1), oldest(2));
    assert_eq!(oldest(3), 1);
    bench.assert_lasting();
}

/// Drops runs until the database uses at most this many bytes.
fn shorten(bench: &mut Bench, enough: u64) {
    let bound = Bound { before: None, bytes: Some(enough) };
    while bench.store.drop_oldest(bound, log().as_ref()).unwrap().more {}
}

#[test]
fn a_writer_that_floods_loses_its_own_and_the_others_keep_what_is_older() {
    let mut bench = Bench::new();
    let empty = bench.store.used_bytes().unwrap();
    let (mut quiet, mut flooding) = (Writer::new(1, 1), Writer::new(2, 1));
    for second in 0..20 {
        bench.append(&quiet.run([second]));
    }
    // Each run of the flood is a sixth of the bytes that are kept, and all are of one second.
    for _ in 0..12 {
        bench.append(&flooding.run(std::iter::repeat_n(30, 200)));
    }
    bench.append(&quiet.run([40]));
    let full = bench.store.used_bytes().unwrap();
    let enough = empty + (full - empty) / 2;
    shorten(&mut bench, enough);
    assert_eq!(bench.number("SELECT count(*) FROM journal_runs WHERE feed = 1"), 21);
    let left = bench.number("SELECT count(*) FROM journal_runs WHERE feed = 2");
    assert!((4..=6).contains(&left), "{left} of 12: no more than it takes");
    bench.assert_lasting();
}

#[test]
fn writers_come_down_to_one_level_over_all_their_lives() {
    let mut bench = Bench::new();
    let empty = bench.store.used_bytes().unwrap();
    // Writer 1 has two lives. Writer 2 writes as much as both together. Writer 3 writes little, and its
    // entries are the oldest.
    let mut lives = [Writer::new(1, 1), Writer::new(1, 2), Writer::new(2, 1), Writer::new(3, 1)];
    bench.append(&lives[3].run(0..30));
    for second in 100..400 {
        bench.append(&lives[usize::from(second >= 250)].run([second]));
        bench.append(&lives[2].run([second]));
    }
    let full = bench.store.used_bytes().unwrap();
    shorten(&mut bench, empty + (full - empty) / 2);
    let held = |bench: &Bench, feeds: &str| {
        bench.number(&format!(
            "SELECT coalesce(sum(length(entries)), 0) FROM journal_runs WHERE feed IN ({feeds})"
        ))
    };
    let (first, second) = (held(&bench, "2, 4"), held(&bench, "3"));
    assert!(first.abs_diff(second) <= (first + second) as u64 / 32, "{first} {second}");
    assert_eq!(bench.number("SELECT count(*) FROM log_records l JOIN log_feeds f ON f.id = l.feed WHERE l.seq <= 30 AND l.time < (SELECT min(time) FROM log_records WHERE feed <> l.feed)"), 30);
    assert!(held(&bench, "2") < held(&bench, "4"), "the earlier life goes first");
    assert_counted(&bench);
    bench.assert_lasting();
}

/// Asserts that each feed's row has the bytes of the feed's runs.
fn assert_counted(bench: &Bench) {
    let wrong = "SELECT count(*) FROM journal_feeds f WHERE bytes IS NOT NULL AND
        bytes <> (SELECT coalesce(sum(length(entries)), 0) FROM journal_runs WHERE feed = f.id)";
    assert_eq!(bench.number(wrong), 0);
}

#[test]
fn bytes_are_counted_along_and_anew_where_they_are_not_known() {
    let mut bench = Bench::new();
    let (mut first, mut second) = (Writer::new(1, 1), Writer::new(2, 1));
    let start = first.at;
    let whole = first.run(1..=30);
    let (part, _) = Run::sign(&first.me, CLUSTER, TOPIC, start, whole.entries[..10].to_vec());
    bench.append(&part);
    for second_of in 0..10 {
        bench.append(&second.run([second_of]));
    }
    assert_counted(&bench);
    assert_eq!(bench.number("SELECT count(*) FROM journal_feeds WHERE bytes > 0"), 2);
    // A longer run replaces a shorter one.
    bench.append(&whole);
    bench.drop_before(5);
    assert_counted(&bench);
    assert_eq!(bench.number("SELECT count(*) FROM journal_feeds WHERE bytes IS NULL"), 1);
    bench.store.discard(second.feed(), &[Version(8)], log().as_ref()).unwrap();
    assert_eq!(bench.number("SELECT count(*) FROM journal_feeds WHERE bytes IS NULL"), 2);
    let held = bench.store.holdings().unwrap();
    bench.store.commit().unwrap();
    assert_counted(&bench);
    let runs: i64 = bench.number("SELECT sum(length(entries)) FROM journal_runs");
    assert_eq!(held.total(), runs.cast_unsigned());
    // A file of a version without the column `bytes`.
    bench.store.connection().execute_batch("ALTER TABLE journal_feeds DROP COLUMN bytes").unwrap();
    bench.store = Store::open(&bench.path(), CLUSTER, TOPIC, log().as_ref()).unwrap();
    bench.append(&first.run(31..=31));
    assert_eq!(bench.store.holdings().unwrap().total(), {
        bench.number("SELECT sum(length(entries)) FROM journal_runs").cast_unsigned()
    });
    bench.store.commit().unwrap();
    assert_counted(&bench);
    bench.assert_lasting();
}

/// Replicas drop entries independently. By the same rule over the same entries they keep about the same, in
/// whatever order the entries arrived.
#[test]
fn replicas_that_are_over_their_bytes_keep_the_same_but_for_a_turn() {
    for seed in 0..4 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut writers = [Writer::new(1, 1), Writer::new(2, 1), Writer::new(3, 1)];
        let mut feeds: Vec<Vec<Run>> = vec![Vec::new(); 3];
        for second in 0..300 {
            let at = if rng.u8(0..10) == 0 { rng.usize(0..2) } else { 2 };
            feeds[at].push(writers[at].run([second]));
        }
        let quiet: Vec<usize> = feeds[..2].iter().map(Vec::len).collect();
        let mut kept = Vec::new();
        for _ in 0..2 {
            let mut bench = Bench::new();
            let empty = bench.store.used_bytes().unwrap();
            let mut next = [0; 3];
            // Each replica gets the runs in another order, and exceeds the bound all the time.
            while next.iter().zip(&feeds).any(|(next, feed)| *next < feed.len()) {
                let at = rng.usize(0..3);
                if let Some(run) = feeds[at].get(next[at]) {
                    bench.append(run);
                    next[at] += 1;
                    shorten(&mut bench, empty + 150_000);
                }
            }
            let count = |writer: &Writer| {
                let key: String =
                    writer.me.id().public_key().iter().map(|byte| format!("{byte:02x}")).collect();
                bench.number(&format!(
                    "SELECT count(*) FROM journal_runs r JOIN journal_feeds f ON f.id = r.feed WHERE f.writer = x'{key}'"
                ))
            };
            kept.push([count(&writers[0]), count(&writers[1]), count(&writers[2])]);
            assert_counted(&bench);
        }
        for replica in &kept {
            assert_eq!(
                [replica[0] as usize, replica[1] as usize],
                quiet[..],
                "seed {seed}: the quiet lose nothing"
            );
        }
        assert!(kept[0][2].abs_diff(kept[1][2]) <= 8 && kept[0][2] > 20, "seed {seed}: {kept:?}");
    }
}

#[test]
fn a_replica_that_joins_later_has_what_is_left_in_the_same_order() {
    let mut old = Bench::new();
    let mut writers = [Writer::new(1, 1), Writer::new(2, 1)];
    for i in 0..20 {
        writers.iter_mut().for_each(|writer| old.append(&writer.run(5 * i..5 * i + 5)));
    }
    old.drop_before(52);
    let mut new = Bench::new();
    for writer in &writers {
        let nothing = Extent { feed: writer.feed(), seen: VersionSet::default() };
        let loaded = old.store.load(&nothing).unwrap();
        assert_eq!(loaded.dropped, Version(50));
        let forgone = new.store.forgo(writer.feed(), loaded.dropped, log().as_ref()).unwrap().unwrap();
        assert_eq!(forgone.seen, VersionSet::up_to(Version(50)));
        loaded.runs.iter().for_each(|run| new.append(run));
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
    bench.append(&runs[1]);
    bench.append(&runs[3]);
    let forgo = |bench: &mut Bench, up_to| {
        let forgone = bench.store.forgo(feed, Version(up_to), log().as_ref()).unwrap();
        bench.store.commit().unwrap();
        forgone.map(|extent| extent.seen.iter().map(|(s, e)| (s.0, e.0)).collect::<Vec<_>>())
    };
    assert_eq!(forgo(&mut bench, 45), Some(vec![(1, 20), (31, 40)]));
    assert_eq!(forgo(&mut bench, 45), None);
    assert_eq!(bench.number("SELECT count(*) FROM log_records"), 20);
    bench.assert_lasting();
    // Once this node's own bound has dropped the entries before the next gap, that gap closes.
    assert_eq!(bench.drop_before(100).entries, 10);
    assert_eq!(forgo(&mut bench, 45), Some(vec![(1, 40)]));
    bench.assert_lasting();
    bench.append(&runs[4]);
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
    runs.iter().for_each(|run| bench.append(run));
    bench.drop_before(25);
    let before = bench.content();
    let left = bench.store.discard(writer.feed(), &[Version(41)], log().as_ref()).unwrap();
    assert_eq!(left.seen.iter().collect::<Vec<_>>(), [(Version(1), Version(40)), (Version(51), Version(60))]);
    bench.assert_lasting();
    bench.append(&runs[4]);
    assert_eq!(bench.content(), before);
    bench.assert_lasting();
    // A damaged run that is too old is dropped like the others, with its keys.
    bench.store.connection().execute("UPDATE journal_runs SET entries = x'00' WHERE start = 21", []).unwrap();
    assert_eq!(bench.drop_before(35).entries, 10);
    assert_eq!(bench.number("SELECT count(*) FROM journal_keys"), 30);
    bench.assert_lasting();
}

/// A plug-in that leaves too large a remnant.
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
        store.append_run(&writer.run(10 * i..10 * i + 10), &Hoarder).unwrap();
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

mod measurement;
