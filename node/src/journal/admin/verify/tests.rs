//! Tests of `node journal verify`, `rebuild` and `backup`: damage is found, and a rebuild repairs it.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use hearsay_protocol::{
    Identity, Version,
    journal::{ChainHash, EntryId, FeedId, HybridTime, JournalEntry, Run},
};
use tempfile::TempDir;

use super::{report::Problem, *};
use crate::{
    builtin,
    journal::{
        backup, rebuild,
        store::{database::Store, retention::Bound},
    },
};

const CLUSTER: &str = "test";
const TOPIC: &str = "grading";
/// Number of entries of a run.
const PER_RUN: u64 = 3;

fn projections(topic: &str) -> Option<Arc<dyn Projection>> {
    builtin().iter().find(|service| service.name() == topic)?.projection()
}

fn grading() -> Arc<dyn Projection> {
    projections(TOPIC).unwrap()
}

fn check(path: &Path) -> Report {
    verify(path, Some(TOPIC), &projections, &mut |_, _, _| ())
}

/// A writer, with the position of its next entry.
struct Writer {
    me: Identity,
    at: (EntryId, ChainHash),
}

impl Writer {
    fn new(seed: u8) -> Self {
        let me = Identity::from_seed(&[seed; 32]);
        let feed = FeedId { writer: me.id(), boot: 0xff };
        let root = ChainHash::root(CLUSTER, TOPIC, feed);
        Self { me, at: (EntryId { feed, seq: Version(1) }, root) }
    }

    /// Returns the next run. Each of its entries adds a student with a key and a grade.
    fn run(&mut self) -> Run {
        let (EntryId { feed, seq: start }, _) = self.at;
        let entries = (start.0..start.0 + PER_RUN).map(|number| {
            let student = 1000 * u64::from(self.me.id().public_key()[0]) + number;
            JournalEntry {
                time: HybridTime(number),
                key: Some(format!("{feed:?} {number}")),
                body: format!(
                    r#"{{"changes":[{{"change":"put","student":{student},"firstName":"A","lastName":"B{number}"}},
                        {{"change":"grade","student":{student},"grade":{{"id":1,"title":"T","type":"Quiz","score":{number}}}}}]}}"#
                )
                .into_bytes(),
            }
        });
        let (run, hashes) = Run::sign(&self.me, CLUSTER, TOPIC, self.at, entries.collect());
        self.at = (EntryId { feed, seq: run.end().next() }, *hashes.last().unwrap());
        run
    }
}

/// Creates and closes a file with two feeds of ten runs each.
fn file() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grading.db");
    let mut store = Store::open(&path, CLUSTER, TOPIC, grading().as_ref()).unwrap();
    let mut writers = [Writer::new(1), Writer::new(2)];
    for _ in 0..10 {
        writers.iter_mut().for_each(|writer| store.append_run(&writer.run(), grading().as_ref()).unwrap());
        store.commit().unwrap();
    }
    (dir, path)
}

fn change(path: &Path, sql: &str) {
    let db = Connection::open(path).unwrap();
    db.execute_batch(sql).unwrap();
}

/// Flips a bit at the first occurrence of these bytes in the file.
fn flip(path: &Path, bytes: &[u8]) {
    // Copies the WAL into the file first.
    change(path, "PRAGMA wal_checkpoint(TRUNCATE)");
    let mut content = std::fs::read(path).unwrap();
    let at = content.windows(bytes.len()).position(|window| window == bytes).unwrap();
    content[at] ^= 1;
    // The page gets a valid checksum, as if the bit had flipped in memory before the page was written. With a
    // wrong checksum, nothing of the page could be read.
    checksum_vfs::seal(&mut content, at);
    std::fs::write(path, content).unwrap();
}

fn parts(report: &Report) -> Vec<Part> {
    let mut parts: Vec<_> = report.problems.iter().map(|problem| problem.part).collect();
    parts.dedup();
    parts
}

fn only(report: &Report) -> &Problem {
    assert_eq!(report.problems.len(), 1, "{report:#?}");
    &report.problems[0]
}

#[test]
fn what_was_written_is_clean_and_looking_changes_nothing() {
    let (_dir, path) = file();
    let before = std::fs::read(&path).unwrap();
    let report = check(&path);
    assert!(report.is_clean() && report.notes.is_empty(), "{report:#?}");
    assert_eq!((report.feeds, report.runs, report.entries), (2, 20, 60));
    assert_eq!((report.cluster.as_str(), report.topic.as_str()), (CLUSTER, TOPIC));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_run_that_comes_twice_or_overlaps_is_clean() {
    let (_dir, path) = file();
    let mut store = Store::open(&path, CLUSTER, TOPIC, grading().as_ref()).unwrap();
    let mut writer = Writer::new(3);
    let start = writer.at;
    let (first, second) = (writer.run(), writer.run());
    let all = [first.entries.clone(), second.entries.clone()].concat();
    let (whole, _) = Run::sign(&writer.me, CLUSTER, TOPIC, start, all.clone());
    let middle_at = (EntryId { feed: start.0.feed, seq: Version(2) }, start.1.then(&all[0]));
    let (middle, _) = Run::sign(&writer.me, CLUSTER, TOPIC, middle_at, all[1..4].to_vec());
    for run in [&first, &middle, &second, &whole] {
        store.append_run(run, grading().as_ref()).unwrap();
        store.commit().unwrap();
    }
    drop(store);
    let report = check(&path);
    assert!(report.is_clean(), "{report:#?}");
    assert_eq!((report.feeds, report.entries), (3, 66));
}

#[test]
fn a_flipped_bit_in_a_run_is_found_and_taken_out() {
    let (_dir, path) = file();
    // The bit is in a body, where neither SQLite nor the codec notices it.
    flip(&path, b"\"lastName\":\"B17\"");
    let report = check(&path);
    let problem = only(&report);
    assert_eq!(problem.part, Part::Runs);
    assert!(problem.place.ends_with("-00000000000000ff 16–18"), "{problem:?}");
    assert!(problem.problem.contains("signature") && report.notes[0].contains("not compared"), "{report:#?}");

    let rebuilt = rebuild(&path, TOPIC, &projections, &mut |_, _, _| ()).unwrap();
    assert_eq!((rebuilt.entries, rebuilt.deleted_runs), (57, 1));
    let report = check(&path);
    assert!(report.is_clean() && report.entries == 57, "{report:#?}");
    // The copy of the old file still has the damaged run.
    assert_eq!(only(&check(&rebuilt.copy.unwrap())), &Problem { part: Part::Runs, ..problem.clone() });
    let store = Store::open(&path, CLUSTER, TOPIC, grading().as_ref()).unwrap();
    let seen: Vec<_> = store.restored().unwrap().extents.into_iter().map(|e| e.seen).collect();
    let gaps = seen.iter().filter(|seen| !seen.contains(Version(16)) && seen.contains(Version(19))).count();
    assert_eq!((gaps, seen.len()), (1, 2));
}

#[test]
fn every_column_of_a_run_is_covered() {
    for sql in [
        "start = 100",
        "start = 'x'",
        "\"end\" = 4",
        "time = time + 1",
        "time = 'x'",
        "before = zeroblob(32)",
        "before = zeroblob(31)",
        "signature = zeroblob(64)",
        "entries = x'00'",
        "entries = 'text'",
        "entries = substr(entries, 1, length(entries) - 1)",
    ] {
        let (_dir, path) = file();
        change(&path, &format!("UPDATE journal_runs SET {sql} WHERE rowid = 3"));
        let report = check(&path);
        assert!(report.damaged_rows.contains(&3), "{sql}: {report:#?}");
        rebuild(&path, TOPIC, &projections, &mut |_, _, _| ()).unwrap();
        let report = check(&path);
        assert!(report.is_clean() && report.entries == 57, "{sql}: {report:#?}");
    }
}

#[test]
fn a_flipped_bit_in_a_plug_ins_table_is_found_and_made_good() {
    let (_dir, path) = file();
    for (sql, missing, surplus) in [
        (
            "UPDATE students SET last_name = 'C17' WHERE last_name = 'B17'",
            "last_name=\"B17\"",
            "last_name=\"C17\"",
        ),
        ("DELETE FROM grades WHERE score = 5", "score=5", ""),
        ("INSERT INTO grades (student, id, score) VALUES (7, 7, 7)", "", "student=7 id=7"),
        ("UPDATE grades SET score = 'x' WHERE score = 5", "score=5", "score=\"x\""),
        ("DROP INDEX students_by_name", "name=\"students_by_name\"", ""),
        ("DROP TABLE grades", "name=\"grades\"", ""),
    ] {
        change(&path, sql);
        let report = check(&path);
        assert_eq!(parts(&report), [Part::Tables], "{sql}: {report:#?}");
        let text = &report.problems[0].problem;
        assert!(text.contains(missing) && text.contains(surplus), "{sql}: {text}");
        let rebuilt = rebuild(&path, TOPIC, &projections, &mut |_, _, _| ()).unwrap();
        assert_eq!((rebuilt.entries, rebuilt.deleted_runs, rebuilt.copy), (60, 0, None));
        assert!(check(&path).is_clean());
    }
}

#[test]
fn a_bit_of_a_table_that_flips_on_the_disk_is_found() {
    let (_dir, path) = file();
    change(&path, "UPDATE students SET last_name = 'UNIQUE_NAME' WHERE last_name = 'B17'");
    flip(&path, b"UNIQUE_NAME");
    let report = check(&path);
    // The table's index differs from the table, too.
    assert!(parts(&report).contains(&Part::Tables) && parts(&report).contains(&Part::File), "{report:#?}");
}

#[test]
fn a_deleted_run_is_found() {
    let (_dir, path) = file();
    change(&path, "DELETE FROM journal_runs WHERE rowid = 7");
    let report = check(&path);
    let problem = only(&report);
    assert_eq!(problem.part, Part::Extents);
    assert!(problem.problem.contains("10–12"), "{problem:?}");
    assert!(report.needs_run_repair());
    assert_eq!(rebuild(&path, TOPIC, &projections, &mut |_, _, _| ()).unwrap().entries, 57);
    assert!(check(&path).is_clean());
}

#[test]
fn feeds_that_say_something_else_than_their_runs_are_found() {
    for sql in [
        "UPDATE journal_feeds SET seen = x'0000' WHERE id = 1",
        "UPDATE journal_feeds SET seen = x'ff' WHERE id = 1",
        "UPDATE journal_feeds SET latest = 1 WHERE id = 1",
        "UPDATE journal_feeds SET latest = 'x' WHERE id = 1",
        "UPDATE journal_feeds SET writer = x'00' WHERE id = 1",
        "PRAGMA foreign_keys = 0; DELETE FROM journal_feeds WHERE id = 1",
    ] {
        let (_dir, path) = file();
        change(&path, sql);
        let report = check(&path);
        assert!(report.needs_run_repair() && !report.is_clean(), "{sql}: {report:#?}");
        rebuild(&path, TOPIC, &projections, &mut |_, _, _| ()).unwrap();
        let report = check(&path);
        assert!(report.is_clean(), "{sql}: {report:#?}");
        Store::open(&path, CLUSTER, TOPIC, grading().as_ref()).unwrap().restored().unwrap();
    }
}

#[test]
fn keys_that_lead_astray_are_found() {
    let (_dir, path) = file();
    for sql in [
        "DELETE FROM journal_keys WHERE seq = 5 AND feed = 1",
        "INSERT INTO journal_keys VALUES ('no-feed''s', 5, 1, 5)",
        "UPDATE journal_keys SET seq = 6 WHERE seq = 5 AND feed = 2",
        "UPDATE journal_keys SET time = time + 1 WHERE seq = 5 AND feed = 2",
    ] {
        change(&path, sql);
        let report = check(&path);
        assert_eq!(parts(&report), [Part::Keys], "{sql}: {report:#?}");
        rebuild(&path, TOPIC, &projections, &mut |_, _, _| ()).unwrap();
        assert!(check(&path).is_clean());
    }
}

#[test]
fn a_writer_that_signed_two_histories_is_named() {
    let (_dir, path) = file();
    let mut store = Store::open(&path, CLUSTER, TOPIC, grading().as_ref()).unwrap();
    let mut writer = Writer::new(1);
    for _ in 0..10 {
        writer.run();
    }
    // A copy of the data directory would continue the feed after an older entry.
    writer.at.1 = ChainHash([7; 32]);
    store.append_run(&writer.run(), grading().as_ref()).unwrap();
    store.commit().unwrap();
    drop(store);
    let report = check(&path);
    let problem = only(&report);
    assert!(problem.part == Part::Runs && problem.problem.contains("another entry"), "{problem:?}");
    assert!(!report.needs_run_repair());
}

#[test]
fn a_file_that_is_cut_short_or_no_database_is_told() {
    let (_dir, path) = file();
    change(&path, "PRAGMA wal_checkpoint(TRUNCATE)");
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 50, 4096, whole.len() / 2, whole.len() - 4096, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let report = check(&path);
        assert!(!report.is_sound(Part::File), "{length}: {report:#?}");
        assert!(rebuild(&path, TOPIC, &projections, &mut |_, _, _| ()).is_err());
        let target = path.with_extension("copy");
        assert!(backup(&path, &target, &mut |_, _, _| ()).is_err(), "{length}");
        assert!(!target.exists() && !path.with_extension("copy.partial").exists());
    }
    std::fs::write(&path, vec![7; 8192]).unwrap();
    assert!(!check(&path).is_sound(Part::File));
    std::fs::remove_file(&path).unwrap();
    change(&path, "CREATE TABLE t (x)");
    assert!(only(&check(&path)).problem.contains("something else"));
}

#[test]
fn whatever_bit_flips_nothing_panics_and_nothing_is_believed() {
    let (_dir, path) = file();
    change(&path, "PRAGMA wal_checkpoint(TRUNCATE)");
    let whole = std::fs::read(&path).unwrap();
    let (mut state, mut found) = (1u64, 0);
    for _ in 0..150 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (state >> 33) as usize % whole.len();
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (state >> 30 & 7);
        std::fs::write(&path, &damaged).unwrap();
        let report = check(&path);
        // Most of the other flips hit unused bytes.
        found += u32::from(!report.is_clean());
        if report.is_clean() {
            let db = open(&path).unwrap();
            let count = |table: &str| -> i64 {
                db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
            };
            assert_eq!(
                (count("students"), count("grades"), count("journal_runs")),
                (60, 60, 20),
                "byte {at}"
            );
        }
    }
    assert!(found > 30, "{found}");
}

#[test]
fn a_topic_under_another_name_or_without_a_plug_in_is_told() {
    let (_dir, path) = file();
    let report = verify(&path, Some("log"), &projections, &mut |_, _, _| ());
    assert!(only(&report).problem.contains("holds the topic \"grading\""));
    let report = verify(&path, None, &|_| None, &mut |_, _, _| ());
    assert!(report.is_clean() && report.notes[0].contains("no plug-in"), "{report:#?}");
    change(&path, "DELETE FROM journal_meta WHERE name = 'projection'; DELETE FROM students");
    let report = check(&path);
    assert!(report.is_clean() && report.notes[0].contains("at the next start"), "{report:#?}");
}

/// Returns a feed of the log: twelve runs of one record each, the last one posted again under the same key.
fn log_runs(seed: u8) -> Vec<Run> {
    let me = Identity::from_seed(&[seed; 32]);
    let feed = FeedId { writer: me.id(), boot: 5 };
    let mut before = ChainHash::root(CLUSTER, "log", feed);
    let mut runs = Vec::new();
    for number in 1..=12u64 {
        let entry = JournalEntry {
            time: HybridTime(1000 * number + u64::from(seed)),
            key: (number > 10).then(|| "again".to_owned()),
            body: format!("{{\"n\":\"n{seed}\"}}\nmessage {}", number.min(11)).into_bytes(),
        };
        let at = (EntryId { feed, seq: Version(number) }, before);
        let (run, hashes) = Run::sign(&me, CLUSTER, "log", at, vec![entry]);
        before = hashes[0];
        runs.push(run);
    }
    runs
}

/// The log numbers its rows as they arrive, and the first feed on one node may be the last on another.
#[test]
fn tables_whose_rows_depend_on_the_order_of_arrival_are_compared_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.db");
    let log = projections("log").unwrap();
    let check = || verify(&path, Some("log"), &projections, &mut |_, _, _| ());
    let mut runs = [log_runs(1), log_runs(2)].concat();
    let mut store = Store::open(&path, CLUSTER, "log", log.as_ref()).unwrap();
    // The runs arrive in reverse order, and the last feed has a gap.
    runs.reverse();
    runs.remove(20);
    for run in &runs {
        store.append_run(run, log.as_ref()).unwrap();
        store.commit().unwrap();
    }
    let report = check();
    assert!(report.is_clean() && report.notes.is_empty() && report.entries == 23, "{report:#?}");
    // Half of a feed is dropped.
    let before = Some(HybridTime(6500));
    let dropped = store.drop_oldest(Bound { before, bytes: None }, log.as_ref()).unwrap();
    assert_eq!((dropped.runs, dropped.entries), (9, 9), "six of one, and of the other three, before its gap");
    let report = check();
    assert!(report.is_clean() && report.entries == 14, "{report:#?}");
    drop(store);
    for sql in [
        "UPDATE log_records SET message = 'other' WHERE seq = 9 AND feed = 1",
        "UPDATE log_records SET before = before + 1 WHERE seq = 9 AND feed = 1",
        "UPDATE log_records SET hidden = 1 WHERE seq = 8",
        "UPDATE log_feeds SET next = next + 1",
        "DELETE FROM log_keys",
    ] {
        let copy = dir.path().join("copy.db");
        backup(&path, &copy, &mut |_, _, _| ()).unwrap();
        change(&copy, sql);
        let report = verify(&copy, Some("log"), &projections, &mut |_, _, _| ());
        assert_eq!(parts(&report), [Part::Tables], "{sql}: {report:#?}");
        std::fs::remove_file(&copy).unwrap();
        for suffix in ["-wal", "-shm"] {
            _ = std::fs::remove_file(copy.with_extension(format!("db{suffix}")));
        }
    }
}

#[test]
fn a_backup_never_overwrites_and_is_one_private_file() {
    use std::os::unix::fs::MetadataExt as _;
    let (dir, path) = file();
    let target = dir.path().join("copy.db");
    backup(&path, &target, &mut |_, _, _| ()).unwrap();
    assert_eq!(target.metadata().unwrap().mode() & 0o777, 0o600);
    assert!(check(&target).is_clean());
    let names = || {
        let mut names: Vec<_> =
            dir.path().read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.starts_with("copy"));
        names
    };
    assert_eq!(names(), ["copy.db"]);
    let before = std::fs::read(&target).unwrap();
    let error = backup(&path, &target, &mut |_, _, _| ()).unwrap_err().to_string();
    assert!(error.contains("never overwrites") && error.contains("copy.db"), "{error}");
    assert_eq!(std::fs::read(&target).unwrap(), before);
    std::fs::write(dir.path().join("other.partial"), "").unwrap();
    assert!(backup(&path, &dir.path().join("other"), &mut |_, _, _| ()).is_err());
    assert!(backup(&path, &dir.path().join("none/x"), &mut |_, _, _| ()).is_err());
}

#[test]
fn a_backup_of_a_file_that_is_being_written_is_one_moment_of_it() {
    let (dir, path) = file();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut store = Store::open(&path, CLUSTER, TOPIC, grading().as_ref()).unwrap();
            let (mut writer, mut runs) = (Writer::new(4), 0u64);
            while !stop.load(Ordering::Relaxed) {
                store.append_run(&writer.run(), grading().as_ref()).unwrap();
                store.commit().unwrap();
                runs += 1;
            }
            runs
        });
        let mut last = 0;
        for number in 0..10 {
            let target = dir.path().join(format!("copy-{number}.db"));
            // The pause lets the writer commit between two steps of the backup.
            backup(&path, &target, &mut |_, _, _| std::thread::sleep(Duration::from_millis(3))).unwrap();
            for file in [&target, &path] {
                let report = check(file);
                assert!(report.is_clean(), "{report:#?}");
                assert!(report.entries >= last, "{} after {last}", report.entries);
                last = report.entries;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let runs = writing.join().unwrap();
        assert!(runs > 20 && last > 60, "{runs} runs, {last} entries in the last copy");
    });
    // A node can open a copy and append to it.
    let copy = dir.path().join("copy-9.db");
    let mut store = Store::open(&copy, CLUSTER, TOPIC, grading().as_ref()).unwrap();
    store.append_run(&Writer::new(5).run(), grading().as_ref()).unwrap();
    store.commit().unwrap();
    drop(store);
    assert!(check(&copy).is_clean());
}
