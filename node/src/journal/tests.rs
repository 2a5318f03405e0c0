//! Tests of [`Journals`] without a driver: acknowledged entries survive a restart, writers share syncs,
//! damaged files are put aside, damaged runs discarded, foreign files refused, and old entries dropped.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hearsay_protocol::{
    Identity, Version,
    journal::{AppendError, Appended, Durability, EntryId, Level, Run},
};
use hearsay_services::journal::{AppendOptions, Journal as _, Retention, Write, read};

use super::{open::open, topic::Topic, *};
use crate::{builtin, driver_command::DriverCommand, view::Clock};

const CLUSTER: &str = "test";

/// A node's journals, and the queue of their commands to the driver, from which no driver reads.
struct Bench {
    dir: tempfile::TempDir,
    journals: Journals,
    commands: tokio::sync::mpsc::Receiver<DriverCommand>,
}

fn open_in(dir: tempfile::TempDir) -> Bench {
    let (driver, commands) = tokio::sync::mpsc::channel(1024);
    let plugins: Vec<_> = builtin().into_iter().filter(|p| p.name() == "grading").collect();
    let context = JournalContext {
        dir: Some(dir.path()),
        me: &|| Identity::from_seed(&[1; 32]),
        cluster: CLUSTER,
        replicas_expected: None,
        retention: &BTreeMap::new(),
        clock: Clock::start(),
        driver,
        wrap_store: |store, _| Box::new(store),
    };
    let journals = Journals::open(&plugins, &context).unwrap();
    Bench { dir, journals, commands }
}

impl Bench {
    fn new() -> Self {
        open_in(tempfile::tempdir().unwrap())
    }

    fn book(&self) -> &Arc<Topic> {
        self.journals.topic("grading").unwrap()
    }

    async fn append(&self, id: u64, level: Option<Level>) -> Result<Appended, AppendError> {
        let body = format!(
            r#"{{"changes":[{{"change":"put","student":{id},"firstName":"A","lastName":"B{id}"}}]}}"#
        );
        let write = Write { key: None, body: body.into_bytes() };
        let options = AppendOptions { level, timeout: Duration::from_millis(200) };
        self.book().append(vec![write], options).await.remove(0)
    }

    async fn count(&self, table: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {table}");
        read(self.book().as_ref(), move |db| db.query_row(&sql, [], |row| row.get(0))).await.unwrap()
    }

    /// Stops the worker and waits for it.
    fn stop(self) -> tempfile::TempDir {
        let Self { dir, journals, mut commands } = self;
        drop(journals);
        // The worker holds the only sender.
        while commands.blocking_recv().is_some() {}
        dir
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("journal/grading.db")
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn what_was_acknowledged_is_there_after_a_restart_and_a_new_feed_begins() {
    let bench = Bench::new();
    let first = block_on(bench.append(1000, None)).unwrap();
    assert_eq!((first.level, first.id.seq), (Level::Local, Version(1)));
    let again = open_in(bench.stop());
    let second = block_on(again.append(1001, None)).unwrap();
    assert_ne!(second.id.feed, first.id.feed);
    assert!(second.time > first.time);
    assert!(again.book().has(first.id).unwrap() && again.book().has(second.id).unwrap());
    assert_eq!(block_on(again.count("students")), 2);
}

#[test]
fn a_level_that_is_not_reached_is_indeterminate_and_never_success() {
    let bench = Bench::new();
    let me = Identity::from_seed(&[1; 32]).id();
    let other = Identity::from_seed(&[2; 32]).id();
    bench.journals.set_replicas("grading", [(other, Durability::Durable)].into());
    let answer = block_on(bench.append(1000, None));
    assert!(matches!(answer, Err(AppendError::Indeterminate(id, _)) if id.feed.writer == me), "{answer:?}");
    assert!(block_on(bench.append(1001, Some(Level::Local))).is_ok());
}

#[test]
fn many_writers_share_syncs() {
    let bench = Bench::new();
    let count = 200u64;
    block_on(async {
        let writes = (0..count).map(|i| bench.append(1000 + i, None));
        assert!(futures::future::join_all(writes).await.iter().all(Result::is_ok));
    });
    assert_eq!(block_on(bench.count("students")), 200);
    let commits = bench.book().metrics.commits.load(Ordering::Relaxed);
    assert!(commits < count / 2, "{commits} commits for {count} writes");
}

#[test]
fn a_foreign_file_is_refused_and_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.db");
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
    drop(other);
    let before = std::fs::read(&path).unwrap();
    let grading = builtin().into_iter().find(|p| p.name() == "grading").unwrap();
    let projection = grading.projection().unwrap();
    let error = open(&path, "grading", projection.as_ref(), CLUSTER).err().unwrap().to_string();
    assert!(error.contains("database of something else") && error.contains("x.db"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let path = dir.path().join("y.db");
    drop(open(&path, "grading", projection.as_ref(), "another").unwrap());
    let error = open(&path, "grading", projection.as_ref(), CLUSTER).err().unwrap().to_string();
    assert!(error.contains("cluster \"another\""), "{error}");
}

#[test]
fn a_damaged_file_is_put_aside_and_the_node_starts() {
    let bench = Bench::new();
    block_on(bench.append(1000, None)).unwrap();
    let path = bench.path();
    let dir = bench.stop();
    std::fs::write(&path, vec![7; 100_000]).unwrap();
    let again = open_in(dir);
    assert!(path.with_extension("damaged-1").exists());
    assert!(block_on(again.append(1001, None)).is_ok());
}

#[test]
fn a_flipped_bit_in_a_run_is_found_before_it_is_sent_and_the_run_taken_out() {
    let bench = Bench::new();
    for id in 1000..1003 {
        block_on(bench.append(id, None)).unwrap();
    }
    let path = bench.path();
    let dir = bench.stop();
    let grading = builtin().into_iter().find(|p| p.name() == "grading").unwrap();
    let projection = grading.projection().unwrap();
    let (mut store, restored) = open(&path, "grading", projection.as_ref(), CLUSTER).unwrap();
    let extent = restored.extents[0].clone();
    let nothing = hearsay_protocol::journal::Extent { feed: extent.feed, seen: Default::default() };
    assert_eq!(store.load(&nothing).unwrap().runs.len(), 3);
    store
        .connection()
        .execute(
            "UPDATE journal_runs SET entries = substr(entries, 1, 20) || x'ff' || substr(entries, 22) WHERE start = 2",
            [],
        )
        .unwrap();
    let loaded = store.load(&nothing).unwrap();
    assert_eq!((loaded.runs.len(), loaded.damaged.as_slice()), (2, &[Version(2)][..]));
    let left = store.discard(extent.feed, &loaded.damaged, projection.as_ref()).unwrap();
    assert!(
        left.seen.contains(Version(1)) && !left.seen.contains(Version(2)) && left.seen.contains(Version(3))
    );
    let students = |store: &Store| -> i64 {
        store.connection().query_row("SELECT count(*) FROM students", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(students(&store), 2);
    drop(dir);
}

#[test]
fn tables_of_another_version_are_made_anew_and_come_to_the_same() {
    let bench = Bench::new();
    for id in 1000..1010 {
        block_on(bench.append(id, None)).unwrap();
    }
    let path = bench.path();
    let dir = bench.stop();
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute_batch("UPDATE journal_meta SET value = 0 WHERE name = 'projection'; DELETE FROM students")
        .unwrap();
    drop(db);
    let again = open_in(dir);
    assert_eq!(block_on(again.count("students")), 10);
}

#[test]
fn a_run_that_comes_twice_or_overlaps_is_folded_once() {
    let dir = tempfile::tempdir().unwrap();
    let grading = builtin().into_iter().find(|p| p.name() == "grading").unwrap();
    let projection = grading.projection().unwrap();
    let (mut store, _) = open(&dir.path().join("x.db"), "grading", projection.as_ref(), CLUSTER).unwrap();
    let me = Identity::from_seed(&[2; 32]);
    let feed = hearsay_protocol::journal::FeedId { writer: me.id(), boot: 7 };
    let root = hearsay_protocol::journal::ChainHash::root(CLUSTER, "grading", feed);
    let entry = |i: u64| hearsay_protocol::journal::JournalEntry {
        time: hearsay_protocol::journal::HybridTime(i),
        key: Some(format!("k{i}")),
        body: format!(r#"{{"changes":[{{"change":"put","student":{i},"firstName":"A","lastName":"B"}}]}}"#)
            .into_bytes(),
    };
    let at = |seq| EntryId { feed, seq: Version(seq) };
    let (short, _) = Run::sign(&me, CLUSTER, "grading", (at(1), root), vec![entry(1), entry(2)]);
    let (long, _) = Run::sign(&me, CLUSTER, "grading", (at(1), root), vec![entry(1), entry(2), entry(3)]);
    for run in [&short, &short, &long, &short] {
        store.append_run(run, projection.as_ref()).unwrap();
        store.commit().unwrap();
    }
    let count = |sql: &str| -> i64 { store.connection().query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(count("SELECT count(*) FROM students"), 3);
    assert_eq!(count("SELECT count(*) FROM journal_runs"), 1);
    let (id, found) = store.find_key("k3").unwrap().unwrap();
    assert_eq!((id, found), (at(3), entry(3)));
    assert!(store.find_key("k4").unwrap().is_none());
}

#[test]
fn what_is_too_much_goes_while_the_node_runs_and_nothing_is_numbered_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (driver, _commands) = tokio::sync::mpsc::channel(1024);
    let plugins: Vec<_> = builtin().into_iter().filter(|p| p.name() == "log").collect();
    let bytes = 2 << 20;
    let context = JournalContext {
        dir: Some(dir.path()),
        me: &|| Identity::from_seed(&[1; 32]),
        cluster: CLUSTER,
        replicas_expected: None,
        retention: &BTreeMap::from([("log".to_owned(), Retention { age: None, bytes: Some(bytes) })]),
        clock: Clock::start(),
        driver,
        wrap_store: |store, _| Box::new(store),
    };
    let journals = Arc::new(Journals::open(&plugins, &context).unwrap());
    let log = journals.topic("log").unwrap();
    let metric = |name| log.metrics().iter().find(|metric| metric.name == name).unwrap().value;
    let mut first = None;
    for batch in 0..20 {
        let body = format!("{{\"n\":\"n\"}}\n{batch} {}", "x".repeat(4000)).into_bytes();
        let writes = vec![Write { key: None, body }; 100];
        let answers = block_on(log.append(writes, AppendOptions::default()));
        assert!(answers.iter().all(Result::is_ok));
        first = first.or(answers.into_iter().next().and_then(Result::ok));
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while metric("journal_dropped") == 0 || metric("journal_database_bytes") > bytes {
        assert!(std::time::Instant::now() < deadline, "{:#?}", log.metrics());
        std::thread::sleep(Duration::from_millis(50));
    }
    let numbers = "SELECT count(*), min(before), max(before) FROM log_records";
    let (kept, lowest, highest): (u64, u64, u64) = block_on(read(log.as_ref(), |db| {
        db.query_row(numbers, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
    }))
    .unwrap();
    assert_eq!((kept + lowest, highest), (2000, 1999));
    assert!((50..400).contains(&kept), "{kept}");
    assert_eq!((metric("journal_appended"), metric("journal_dropped")), (2000, lowest));
    let view = crate::view::View::new(hearsay_protocol::Index(0), Clock::start());
    let metrics = crate::metrics::Metrics::new(Arc::new(view));
    metrics.set_journals(&journals);
    let text = metrics.render().unwrap();
    for line in [
        "hearsay_journal_appended_total{topic=\"log\"} 2000",
        "hearsay_journal_acknowledged_total{topic=\"log\",level=\"local\"} 2000",
        "hearsay_journal_waiting_bytes{topic=\"log\"} 0",
        &format!("hearsay_journal_dropped_total{{topic=\"log\"}} {lowest}"),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in:\n{text}");
    }
    // A dropped entry still counts as stored here, so no replica waits for it or sends it again.
    assert!(log.has(first.unwrap().id).unwrap());
}
