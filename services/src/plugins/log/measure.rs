//! Benchmark of the log with a million records. Not part of the tests: `cargo test --release -p
//! hearsay-services --features testing -- --ignored --nocapture a_million`

use std::time::{Duration, Instant};

use hearsay_protocol::{
    NodeId, Version,
    journal::{FeedId, HybridTime},
};
use rusqlite::Connection;

use super::{
    filter::Filter,
    offsets,
    page::{Direction, PageQuery, read_page},
    record::{Level, Record, StoredRecord},
    search::SearchQuery,
    tables::Tables,
};
use crate::journal::{EntryId, Projection as _, Recorded};

const RECORDS: u64 = 1_000_000;
/// Records per commit, about as many as group commit combines under load.
const PER_COMMIT: u64 = 64;

const WORDS: [&str; 24] = [
    "request",
    "accepted",
    "from",
    "client",
    "connection",
    "closed",
    "timeout",
    "retry",
    "user",
    "session",
    "payment",
    "order",
    "cache",
    "miss",
    "hit",
    "query",
    "slow",
    "index",
    "queue",
    "worker",
    "started",
    "finished",
    "upstream",
    "response",
];

fn body(rng: &mut fastrand::Rng, n: u64) -> Vec<u8> {
    let words: Vec<&str> = (0..14).map(|_| WORDS[rng.usize(0..WORDS.len())]).collect();
    let rare = if n.is_multiple_of(10_000) { " needle" } else { "" };
    let message = format!("{} id={:016x} took {} ms{rare}", words.join(" "), rng.u64(..), rng.u16(..2000));
    let level = match rng.u16(0..1000) {
        0 => Level::Error,
        1..10 => Level::Warn,
        _ => Level::Info,
    };
    let service = ["web", "db", "cache", "billing"][rng.usize(0..4)];
    let service = if n.is_multiple_of(50_000) { "rare" } else { service };
    let record =
        Record { level, service: Some(service.into()), time_ms: None, message: message.into_bytes() };
    StoredRecord { record, node: "node-1".into(), is_event: false, source: None }.into_body()
}

#[test]
#[ignore = "a measurement of a minute, for an optimised build"]
#[allow(clippy::too_many_lines, reason = "one measurement, step by step")]
fn a_million_records() {
    let dir = tempfile::tempdir_in(std::env::var_os("MEASURE_DIR").unwrap_or_else(|| "/tmp".into())).unwrap();
    let path = dir.path().join("log.db");
    let db = Connection::open(&path).unwrap();
    db.pragma_update(None, "journal_mode", "WAL").unwrap();
    // Syncs are measured elsewhere.
    db.pragma_update(None, "synchronous", "OFF").unwrap();
    db.pragma_update(None, "cache_size", -8192).unwrap();
    let tables = Tables::default();
    tables.create(&db).unwrap();
    let me = NodeId::from_public_key([7; 32]);
    let feed = FeedId { writer: me, boot: 1 };
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut folding, mut bytes) = (Duration::ZERO, 0);
    for n in 0..RECORDS {
        let body = body(&mut rng, n);
        bytes += body.len();
        let begun = Instant::now();
        if n % PER_COMMIT == 0 {
            db.execute_batch("BEGIN").unwrap();
        }
        let id = EntryId { feed, seq: Version(n + 1) };
        let time = HybridTime::from_wall(1_700_000_000_000 + n);
        tables.fold(&db, &Recorded { id, epoch: 0, time, key: None, body: &body }).unwrap();
        if n % PER_COMMIT == PER_COMMIT - 1 {
            db.execute_batch("COMMIT").unwrap();
        }
        folding += begun.elapsed();
    }
    db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let size = std::fs::metadata(&path).unwrap().len();
    println!(
        "fold: {:.1} µs a record ({:.0}/s), {} bytes of bodies, {} bytes of tables each",
        folding.as_secs_f64() * 1e6 / RECORDS as f64,
        RECORDS as f64 / folding.as_secs_f64(),
        bytes as u64 / RECORDS,
        size / RECORDS
    );
    drop(db);
    let begun = Instant::now();
    let db = Connection::open(&path).unwrap();
    db.pragma_update(None, "cache_size", -2048).unwrap();
    let query = |words: Option<&str>, filter: Filter, is_newest| PageQuery {
        filter,
        words: words.map(|words| SearchQuery::read(words).unwrap()),
        direction: if is_newest { Direction::Backward(None) } else { Direction::Forward(None) },
        limit: 100,
        me,
    };
    read_page(&db, &query(None, Filter::default(), true)).unwrap();
    println!("open and the last 100: {:?}", begun.elapsed());
    let service = |name: &str| Filter { service: Some(name.into()), level: None };
    let level = |level| Filter { service: None, level: Some(level) };
    let kinds: Vec<(&str, PageQuery)> = vec![
        ("first page", query(None, Filter::default(), false)),
        ("newest", query(None, Filter::default(), true)),
        ("a service", query(None, service("db"), true)),
        ("a rare service", query(None, service("rare"), false)),
        ("errors", query(None, level(Level::Error), true)),
        ("errors of a service", query(None, Filter { level: Some(Level::Error), ..service("db") }, false)),
        ("a common word", query(Some("request"), Filter::default(), false)),
        ("a common word, newest", query(Some("request"), Filter::default(), true)),
        ("three common words", query(Some("request timeout payment"), Filter::default(), false)),
        ("a rare word", query(Some("needle"), Filter::default(), false)),
        ("no such word", query(Some("nowhere"), Filter::default(), false)),
        ("a phrase", query(Some("\"payment timeout\""), Filter::default(), false)),
        ("a phrase that is nowhere", query(Some("\"from from from from from\""), Filter::default(), false)),
        ("a prefix", query(Some("need*"), Filter::default(), false)),
        ("a common prefix", query(Some("req*"), Filter::default(), true)),
        ("a word of a rare service", query(Some("request"), service("rare"), false)),
        ("a word among errors", query(Some("request"), level(Level::Error), false)),
    ];
    for (name, query) in &kinds {
        let mut took: Vec<Duration> = (0..200)
            .map(|_| {
                let begun = Instant::now();
                read_page(&db, query).unwrap();
                begun.elapsed()
            })
            .collect();
        took.sort();
        let first = read_page(&db, query).unwrap();
        println!(
            "{name:28} p50 {:>10.2?} p99 {:>10.2?}  {} records, {}",
            took[100],
            took[197],
            first.records.len(),
            if first.next.is_some() { "more" } else { "all" }
        );
    }
    let mut took: Vec<Duration> = (0..2000)
        .map(|_| {
            let word = format!("{} {}", WORDS[rng.usize(0..WORDS.len())], WORDS[rng.usize(0..WORDS.len())]);
            let begun = Instant::now();
            read_page(&db, &query(Some(&word), Filter::default(), rng.bool())).unwrap();
            begun.elapsed()
        })
        .collect();
    took.sort();
    println!("two random words: p50 {:?} p99 {:?}", took[1000], took[1980]);
    let begun = Instant::now();
    for _ in 0..1000 {
        offsets::find_by_offset(&db, me, rng.u64(..RECORDS)).unwrap();
    }
    println!("by offset: {:?}", begun.elapsed() / 1000);
    let begun = Instant::now();
    db.execute_batch("BEGIN").unwrap();
    tables.dropped(&db, feed, Version(10_000)).unwrap();
    db.execute_batch("COMMIT").unwrap();
    println!("10,000 records dropped in {:?}", begun.elapsed());
}
