//! How fast the log is, with a million records on a disk. Not part of the tests:
//! `cargo test --release -p hearsay-services --features testing -- --ignored --nocapture a_million`

use std::time::{Duration, Instant};

use hearsay_protocol::{
    NodeId, Version,
    journal::{clock::HybridTime, feed::FeedId},
};
use rusqlite::Connection;

use super::{
    numbers,
    page::{Filter, Question, Way, page},
    record::{Level, Said, Stored},
    search::Words,
    tables::Tables,
};
use crate::journal::{EntryId, Projection as _, Recorded};

const RECORDS: u64 = 1_000_000;
/// What the record budgets of a commit are like under load: group commits of a few dozen.
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
    let said = Said { level, service: Some(service.into()), time_ms: None, message: message.into_bytes() };
    Stored { said, node: "node-1".into(), is_event: false }.into_body()
}

#[test]
#[ignore = "a measurement of a minute, for an optimised build"]
fn a_million_records() {
    let dir = tempfile::tempdir_in(std::env::var_os("MEASURE_DIR").unwrap_or_else(|| "/tmp".into())).unwrap();
    let path = dir.path().join("log.db");
    let db = Connection::open(&path).unwrap();
    db.pragma_update(None, "journal_mode", "WAL").unwrap();
    // The disk is measured elsewhere; here it is what is written that counts.
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
    let question = |words: Option<&str>, filter: Filter, is_newest| Question {
        filter,
        words: words.map(|words| Words::read(words).unwrap()),
        way: if is_newest { Way::Back(None) } else { Way::On(None) },
        limit: 100,
        me,
    };
    page(&db, &question(None, Filter::default(), true)).unwrap();
    println!("open and the last 100: {:?}", begun.elapsed());
    let service = |name: &str| Filter { service: Some(name.into()), level: None };
    let level = |level| Filter { service: None, level: Some(level) };
    let kinds: Vec<(&str, Question)> = vec![
        ("first page", question(None, Filter::default(), false)),
        ("newest", question(None, Filter::default(), true)),
        ("a service", question(None, service("db"), true)),
        ("a rare service", question(None, service("rare"), false)),
        ("errors", question(None, level(Level::Error), true)),
        ("errors of a service", question(None, Filter { level: Some(Level::Error), ..service("db") }, false)),
        ("a common word", question(Some("request"), Filter::default(), false)),
        ("a common word, newest", question(Some("request"), Filter::default(), true)),
        ("three common words", question(Some("request timeout payment"), Filter::default(), false)),
        ("a rare word", question(Some("needle"), Filter::default(), false)),
        ("no such word", question(Some("nowhere"), Filter::default(), false)),
        ("a phrase", question(Some("\"payment timeout\""), Filter::default(), false)),
        (
            "a phrase that is nowhere",
            question(Some("\"from from from from from\""), Filter::default(), false),
        ),
        ("a prefix", question(Some("need*"), Filter::default(), false)),
        ("a common prefix", question(Some("req*"), Filter::default(), true)),
        ("a word of a rare service", question(Some("request"), service("rare"), false)),
        ("a word among errors", question(Some("request"), level(Level::Error), false)),
    ];
    for (name, question) in &kinds {
        let mut took: Vec<Duration> = (0..200)
            .map(|_| {
                let begun = Instant::now();
                page(&db, question).unwrap();
                begun.elapsed()
            })
            .collect();
        took.sort();
        let first = page(&db, question).unwrap();
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
            page(&db, &question(Some(&word), Filter::default(), rng.bool())).unwrap();
            begun.elapsed()
        })
        .collect();
    took.sort();
    println!("two random words: p50 {:?} p99 {:?}", took[1000], took[1980]);
    let begun = Instant::now();
    for _ in 0..1000 {
        numbers::at_offset(&db, me, rng.u64(..RECORDS)).unwrap();
    }
    println!("by offset: {:?}", begun.elapsed() / 1000);
    let begun = Instant::now();
    db.execute_batch("BEGIN").unwrap();
    tables.dropped(&db, feed, Version(10_000)).unwrap();
    db.execute_batch("COMMIT").unwrap();
    println!("10,000 records dropped in {:?}", begun.elapsed());
}
