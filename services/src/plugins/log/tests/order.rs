//! Tests that the same entries give the same log in any order of arrival, and that a reader misses none of
//! them.

use hearsay_protocol::{
    NodeId, Version,
    journal::{FeedId, HybridTime},
};

use super::*;
use crate::{
    journal::{EntryId, Moment, Stamp},
    plugins::log::record::{Level, Record, StoredRecord},
    testing::MemoryEntry,
};

/// Returns entries of two incarnations of each of three writers, one of which is the node `n1`.
pub(super) fn entries(seed: u64, per_feed: u64, keyed: bool) -> Vec<MemoryEntry> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut entries = Vec::new();
    let own = MemoryHost::new("n1").node_id();
    for writer in [7u8, 1, 200] {
        let id = if writer == 7 { own } else { NodeId::from_public_key([writer; 32]) };
        let mut ms = 1_700_000_000_000;
        for boot in [u64::MAX - 1, 3] {
            let feed = FeedId { writer: id, boot };
            for seq in 1..=per_feed {
                // Small steps, so that several nodes write at the same time.
                ms += rng.u64(1..4);
                let record = Record {
                    level: [Level::Debug, Level::Info, Level::Warn, Level::Error][rng.usize(0..4)],
                    service: rng.bool().then(|| format!("s{}", rng.u8(0..3))),
                    time_ms: None,
                    message: format!("message {} of {}", rng.u8(0..9), rng.u8(0..3)).into_bytes(),
                };
                let source = rng.bool().then(|| format!("192.0.2.{}", rng.u8(0..3)));
                let is_event = rng.u8(0..4) == 0;
                let stored = StoredRecord { record, node: format!("n{writer}"), is_event, source };
                // Some entries cannot be decoded by this version.
                let body = if rng.u8(0..20) == 0 { b"?".to_vec() } else { stored.into_body() };
                entries.push(MemoryEntry {
                    id: EntryId { feed, seq: Version(seq) },
                    time: HybridTime::from_wall(ms),
                    key: (keyed && rng.u8(0..4) == 0).then(|| format!("k{}", rng.u8(0..6))),
                    body,
                });
            }
        }
    }
    // Equal writes under one key on different nodes.
    if keyed {
        let body = entries[0].body.clone();
        for index in [2, 30, 47] {
            let index = index % entries.len();
            (entries[index].key, entries[index].body) = (Some("same".into()), body.clone());
        }
    }
    entries
}

fn taking(entries: &[MemoryEntry]) -> (Router, Arc<MemoryHost>) {
    let host = host();
    let journal = host.memory_journal(LOG_ROLE).unwrap();
    entries.iter().cloned().for_each(|kept| journal.take(kept));
    (Log::default().router(host.clone()), host)
}

#[tokio::test]
async fn the_same_entries_make_the_same_log_in_any_order() {
    for seed in 0..6 {
        let mut entries = entries(seed, 20, true);
        let (expected, _) = all(&taking(&entries).0, "limit=7").await;
        let order: Vec<String> = {
            let mut stamps: Vec<Stamp> = entries
                .iter()
                .map(|kept| Stamp { moment: Moment { epoch: 0, time: kept.time }, id: kept.id })
                .collect();
            stamps.sort();
            stamps.iter().map(|stamp| stamp.id.to_string()).collect()
        };
        let ids: Vec<&str> = expected.iter().map(|record| record["id"].as_str().unwrap()).collect();
        let visible: Vec<&String> = order.iter().filter(|id| ids.contains(&id.as_str())).collect();
        assert_eq!(ids, visible, "in the order of stamps");
        for shuffle in 0..5 {
            fastrand::Rng::with_seed(shuffle).shuffle(&mut entries);
            let (router, _) = taking(&entries);
            assert_eq!(all(&router, "limit=13").await.0, expected, "seed {seed}, shuffle {shuffle}");
            assert_eq!(all_back(&router, "limit=11").await, expected, "seed {seed}, shuffle {shuffle}");
            for query in ["level=warn", "service=s1", "level=error&service=s2"] {
                let (filtered, _) = all(&router, query).await;
                let takes = |r: &&Value| match query {
                    "level=warn" => r["level"] == "warn" || r["level"] == "error",
                    "service=s1" => r["service"] == "s1",
                    _ => r["level"] == "error" && r["service"] == "s2",
                };
                assert_eq!(
                    filtered.iter().collect::<Vec<_>>(),
                    expected.iter().filter(takes).collect::<Vec<_>>()
                );
            }
        }
    }
}

#[tokio::test]
async fn offsets_are_gapless_over_all_lives_of_a_node() {
    let mut entries = entries(3, 50, true);
    fastrand::Rng::with_seed(1).shuffle(&mut entries);
    let (router, _) = taking(&entries);
    let (records, _) = all(&router, "").await;
    let count = get(&router, "/records").await.json()["count"].as_u64().unwrap();
    let mut offsets = Vec::new();
    for record in records.iter().filter(|record| record["node"] == "n7") {
        let Some(offset) = record["offset"].as_u64() else { continue };
        offsets.push(offset);
        let found = get(&router, &format!("/records/{offset}")).await.json();
        let value = BASE64.decode(found["record"]["value"].as_str().unwrap()).unwrap();
        assert_eq!(String::from_utf8(value).unwrap(), record["message"].as_str().unwrap());
    }
    // The incarnations are ordered by time, although the second has the lower number.
    assert!(offsets.is_sorted(), "{offsets:?}");
    for offset in 0..count {
        assert_eq!(get(&router, &format!("/records/{offset}")).await.status, 200, "{offset} of {count}");
    }
    assert_eq!(get(&router, &format!("/records/{count}")).await.status, 404);
}

#[tokio::test]
async fn of_equal_writes_under_one_key_the_earliest_shows_and_others_are_not_lost() {
    let feed = |writer| FeedId { writer: NodeId::from_public_key([writer; 32]), boot: 1 };
    let body = |message: &str| {
        let record = Record { level: Level::Info, service: None, time_ms: None, message: message.into() };
        StoredRecord { record, node: "n".into(), is_event: false, source: None }.into_body()
    };
    let entry = |writer, ms, message| MemoryEntry {
        id: EntryId { feed: feed(writer), seq: Version(1) },
        time: HybridTime::from_wall(ms),
        key: Some("k".into()),
        body: body(message),
    };
    let mut entries =
        vec![entry(1, 20, "same"), entry(2, 10, "same"), entry(3, 30, "same"), entry(7, 40, "another")];
    for _ in 0..4 {
        entries.rotate_left(1);
        let (router, host) = taking(&entries);
        let (records, _) = all(&router, "").await;
        assert_eq!(messages(&records), ["same", "another"]);
        assert_eq!(records[0]["id"], entries.iter().find(|e| e.time.wall_ms() == 10).unwrap().id.to_string());
        assert_eq!(messages(&all(&router, "q=same").await.0), ["same"]);
        // When the shown record is dropped, its next duplicate is shown.
        host.memory_journal(LOG_ROLE).unwrap().drop_up_to(feed(2), Version(1));
        let (records, _) = all(&router, "").await;
        assert_eq!(records[0]["time"], "1970-01-01T00:00:00.020Z");
        assert_eq!(records.len(), 2);
    }
}

#[tokio::test]
async fn a_reader_that_follows_misses_nothing_that_comes_late() {
    for seed in 0..10 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut entries = entries(seed, 40, false);
        rng.shuffle(&mut entries);
        let host = host();
        let router = Log::default().router(host.clone());
        let journal = host.memory_journal(LOG_ROLE).unwrap();
        let (mut seen, mut after) = (Vec::new(), String::new());
        let mut left = entries.iter();
        let mut found = Vec::new();
        loop {
            let more = left
                .by_ref()
                .take(rng.usize(0..30))
                .cloned()
                .inspect(|kept| journal.take(kept.clone()))
                .count();
            let page = get(&router, &format!("/log?limit={}&after={after}", rng.u8(1..20))).await.json();
            seen.extend(
                page["records"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap().to_owned()),
            );
            after = page["resume"].as_str().unwrap().to_owned();
            // A search in the order of arrival misses nothing either.
            if page["next"].is_null() && more == 0 && left.len() == 0 {
                found.extend(all(&router, "q=message&limit=9").await.0);
                break;
            }
        }
        let mut distinct = seen.clone();
        distinct.sort();
        distinct.dedup();
        let (everything, _) = all(&router, "").await;
        assert_eq!((seen.len(), distinct.len()), (everything.len(), everything.len()), "seed {seed}");
        assert_eq!(found.len(), everything.len());
    }
}

#[tokio::test]
async fn a_long_log_is_read_in_the_same_order_as_a_short_one() {
    let entries = entries(5, 900, false);
    let (router, _) = taking(&entries);
    let (records, _) = all(&router, "limit=1000").await;
    assert!(records.len() > 4096, "the path of long windows is taken");
    let mut sorted: Vec<&MemoryEntry> = entries.iter().filter(|kept| kept.body != b"?").collect();
    sorted.sort_by_key(|kept| Stamp { moment: Moment { epoch: 0, time: kept.time }, id: kept.id });
    let expected: Vec<String> = sorted.iter().map(|kept| kept.id.to_string()).collect();
    let ids: Vec<&str> = records.iter().map(|record| record["id"].as_str().unwrap()).collect();
    assert_eq!(ids, expected);
    let newest = get(&router, "/log?before=end&limit=500").await.json();
    assert_eq!(newest["records"], json!(records[records.len() - 500..]));
    for query in ["service=s1", "level=warn", "level=error&service=s0"] {
        let (filtered, _) = all(&router, &format!("{query}&limit=333")).await;
        let services =
            filtered.iter().filter(|r| query.contains("service") && r["service"] != query[query.len() - 2..]);
        assert!(services.count() == 0 && filtered.len() > 100, "{query}: {}", filtered.len());
    }
}

#[tokio::test]
async fn what_is_no_longer_kept_is_gone_from_everywhere_and_numbers_stay() {
    let host = host();
    let router = Log::default().router(host.clone());
    for n in 0..600 {
        post(
            &router,
            "/log",
            "text/plain",
            format!("number {n} {}", if n % 2 == 0 { "even" } else { "odd" }),
        )
        .await;
    }
    let (_, resume) = all(&router, "").await;
    let journal = host.memory_journal(LOG_ROLE).unwrap();
    let feed = journal.entries()[0].id.feed;
    let gone = journal.entries()[99].id.to_string();
    journal.drop_up_to(feed, Version(550));
    let (records, _) = all(&router, "").await;
    assert_eq!((records.len(), &records[0]["offset"]), (50, &json!(550)));
    assert_eq!(all(&router, "q=even").await.0.len(), 25);
    assert_eq!(get(&router, "/records/549").await.status, 410);
    assert_eq!(get(&router, "/records/550").await.status, 200);
    assert_eq!(get(&router, "/records/600").await.status, 404);
    assert_eq!(get(&router, &format!("/log?after={gone}")).await.status, 410);
    // A reader at an earlier position continues, and row numbers are not reused even when all rows are gone.
    journal.drop_up_to(feed, Version(600));
    assert_eq!(post(&router, "/log", "text/plain", "next").await.json()["offset"], 600);
    let page = get(&router, &format!("/log?after={resume}")).await.json();
    assert_eq!(messages(page["records"].as_array().unwrap()), ["next"]);
}

#[tokio::test]
async fn a_replica_that_never_got_the_beginning_numbers_what_it_can() {
    let entries = entries(9, 30, false);
    let host = host();
    let journal = host.memory_journal(LOG_ROLE).unwrap();
    let other = entries.iter().find(|kept| kept.id.feed.writer != host.node_id()).unwrap().id.feed;
    journal.drop_up_to(other, Version(10));
    for kept in entries.iter().filter(|kept| kept.id.feed != other || kept.id.seq.0 > 10) {
        journal.take(kept.clone());
    }
    let router = Log::default().router(host);
    let (records, _) = all(&router, "").await;
    let prefix = format!("{}-{:016x}", other.writer, other.boot);
    let of_other: Vec<&Value> =
        records.iter().filter(|r| r["id"].as_str().unwrap().starts_with(&prefix)).collect();
    assert!(!of_other.is_empty() && of_other.iter().all(|r| r["offset"].is_null()), "the offset is unknown");
    assert!(records.iter().any(|r| r["node"] == "n7" && r["offset"] == 0));
}
