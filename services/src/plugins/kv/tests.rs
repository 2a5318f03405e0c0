//! Tests of the key/value store: reads, writes, lists, waits, bounds, and equality of replicas.

use axum::body::Body;
use hearsay_protocol::{
    NodeId, Version,
    journal::{EntryId, FeedId, HybridTime},
};
use http::{Method, Request};
use tokio::task::JoinSet;

use super::*;
use crate::{
    journal::AppendError,
    testing::{Answer, MemoryEntry, MemoryHost, MemoryJournal, request, send},
};

struct Replica {
    host: Arc<MemoryHost>,
    router: Router,
}

impl Replica {
    fn new(node: &str) -> Self {
        let kv = Kv::default();
        let host = Arc::new(MemoryHost::new(node).keeping(&kv));
        Self { router: kv.router(host.clone()), host }
    }

    fn journal(&self) -> &Arc<MemoryJournal> {
        self.host.memory_journal(KV_ROLE).unwrap()
    }

    async fn get(&self, path: &str) -> Answer {
        request(self.router.clone(), Method::GET, path).await
    }

    async fn put(&self, path: &str, value: impl Into<Body>) -> Answer {
        send(self.router.clone(), Request::put(path).body(value.into()).unwrap()).await
    }

    async fn delete(&self, path: &str) -> Answer {
        request(self.router.clone(), Method::DELETE, path).await
    }

    async fn keys(&self, query: &str) -> Value {
        self.get(&format!("/kv?keys&{query}")).await.json()
    }
}

fn index(answer: &Answer) -> u64 {
    answer.headers["x-hearsay-index"].to_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_value_is_read_as_it_was_written_and_is_gone_when_it_is_deleted() {
    let replica = Replica::new("n1");
    assert_eq!(replica.get("/kv/a/b").await.status, 404);
    let written = replica.put("/kv/a/b?flags=18446744073709551615", "hello").await;
    assert_eq!((written.status.as_u16(), &written.headers["hearsay-ack"]), (204, &"local".parse().unwrap()));
    let read = replica.get("/kv/a/b").await;
    let pair = read.json();
    assert_eq!((&pair["key"], &pair["value"]), (&"a/b".into(), &"aGVsbG8=".into()));
    assert_eq!(pair["flags"], u64::MAX);
    assert_eq!((&pair["createIndex"], &pair["modifyIndex"]), (&index(&read).into(), &index(&read).into()));
    assert_eq!(replica.get("/kv/a/b?raw").await.text(), "hello");
    replica.put("/kv/a/b", "again").await;
    let second = replica.get("/kv/a/b").await.json();
    assert_eq!((&second["createIndex"], &second["flags"]), (&pair["createIndex"], &0.into()));
    assert!(second["modifyIndex"].as_u64() > pair["modifyIndex"].as_u64());
    assert_eq!(replica.delete("/kv/a/b").await.status, 204);
    let gone = replica.get("/kv/a/b").await;
    assert!(
        gone.status == 404 && gone.is_problem() && index(&gone) > second["modifyIndex"].as_u64().unwrap()
    );
    assert_eq!(replica.delete("/kv/a/b").await.status, 204);
    assert_eq!(replica.journal().entries().len(), 4, "every deletion is an entry");
}

#[tokio::test]
async fn a_key_that_is_deleted_before_it_arrives_does_not_come_back() {
    let (one, other) = (Replica::new("n1"), Replica::new("n2"));
    one.put("/kv/a", "1").await;
    // The deletion is the later entry.
    other.put("/kv/b", "1").await;
    let deleted = other.delete("/kv/a").await;
    assert!(deleted.status == 204 && deleted.headers.contains_key("hearsay-token"), "{deleted:?}");
    let (first, second) = (one.journal().entries(), other.journal().entries());
    first.into_iter().for_each(|entry| other.journal().take(entry));
    second.into_iter().for_each(|entry| one.journal().take(entry));
    for replica in [&one, &other] {
        assert_eq!(replica.keys("").await, serde_json::json!(["b"]));
    }
}

#[tokio::test]
async fn a_slash_at_the_end_of_a_key_belongs_to_it() {
    let replica = Replica::new("n1");
    replica.put("/kv/folder%2F", "").await;
    assert_eq!(replica.keys("").await, serde_json::json!(["folder/"]));
    assert_eq!(replica.get("/kv/folder%2F").await.json()["value"], "");
    assert_eq!(replica.get("/kv/folder").await.status, 404);
}

#[tokio::test]
async fn keys_are_listed_in_order_by_prefix_and_separator() {
    let replica = Replica::new("n1");
    for key in ["b", "a/2", "a/1/x", "a/1/y", "a0", "%C3%BC/1"] {
        replica.put(&format!("/kv/{key}"), key.to_owned()).await;
    }
    replica.put("/kv/a/gone", "x").await;
    replica.delete("/kv/a/gone").await;
    let all = serde_json::json!(["a/1/x", "a/1/y", "a/2", "a0", "b", "ü/1"]);
    assert_eq!(replica.keys("").await, all);
    assert_eq!(replica.keys("prefix=a/").await, serde_json::json!(["a/1/x", "a/1/y", "a/2"]));
    assert_eq!(replica.keys("prefix=a/&separator=/").await, serde_json::json!(["a/1/", "a/2"]));
    assert_eq!(replica.keys("prefix=%C3%BC").await, serde_json::json!(["ü/1"]));
    let pairs = replica.get("/kv?prefix=a/1").await.json();
    assert_eq!((pairs.as_array().unwrap().len(), &pairs[0]["key"]), (2, &"a/1/x".into()));
    assert_eq!(replica.delete("/kv").await.status, 400);
    assert_eq!(replica.delete("/kv?prefix=a/").await.status, 204);
    assert_eq!(replica.keys("").await, serde_json::json!(["a0", "b", "ü/1"]));
}

#[tokio::test]
async fn a_large_value_takes_effect_as_a_whole_on_every_replica() {
    let (one, other) = (Replica::new("n1"), Replica::new("n2"));
    let value = vec![7; KV_VALUE_BYTES_MAX];
    assert_eq!(one.put("/kv/large", value.clone()).await.status, 204);
    assert_eq!(one.get("/kv/large?raw").await.text().len(), KV_VALUE_BYTES_MAX);
    let mut entries = one.journal().entries();
    assert!(entries.len() > 1);
    entries.reverse();
    for entry in entries {
        assert_eq!(other.get("/kv/large").await.status, 404);
        other.journal().take(entry);
    }
    assert_eq!(other.get("/kv/large?raw").await.text().len(), KV_VALUE_BYTES_MAX);
    let refused = one.put("/kv/large", vec![7; KV_VALUE_BYTES_MAX + 1]).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["limit"]), (413, &KV_VALUE_BYTES_MAX.into()));
}

#[tokio::test]
async fn the_last_write_is_in_effect_in_any_order_of_arrival() {
    let one = Replica::new("n1");
    for (key, value) in [("a", "1"), ("b", "1"), ("a", "2"), ("c", "1"), ("b", "2")] {
        one.put(&format!("/kv/{key}"), value).await;
    }
    one.delete("/kv/c").await;
    one.delete("/kv/b").await;
    one.put("/kv/c", "3").await;
    one.put("/kv/large", vec![1; KV_VALUE_BYTES_MAX]).await;
    let mut entries: Vec<MemoryEntry> = one.journal().entries();
    let foreign = FeedId { writer: NodeId::from_public_key([9; 32]), boot: 1 };
    entries.push(MemoryEntry {
        id: EntryId { feed: foreign, seq: Version(1) },
        key: None,
        body: b"not a change".to_vec(),
        ..entries[0].clone()
    });
    let read = async |replica: &Replica| {
        let values = ["a", "b", "c", "large"].map(|key| format!("/kv/{key}?raw"));
        let mut found = Vec::new();
        for path in &values {
            let answer = replica.get(path).await;
            found.push((answer.status.as_u16(), answer.text().len()));
        }
        found
    };
    let expected = read(&one).await;
    for seed in 0..20 {
        fastrand::Rng::with_seed(seed).shuffle(&mut entries);
        let other = Replica::new("n2");
        entries.iter().cloned().for_each(|entry| other.journal().take(entry));
        assert_eq!(read(&other).await, expected, "seed {seed}");
        assert_eq!(other.get("/kv/a?raw").await.text(), "2");
        assert_eq!(other.get("/kv/c?raw").await.text(), "3");
    }
}

#[tokio::test]
async fn a_blocking_query_ends_with_a_change_of_its_own_keys_only() {
    let replica = Replica::new("n1");
    replica.put("/kv/other", "1").await;
    for (path, writes) in [("/kv/a?", "/kv/a"), ("/kv?prefix=p/&", "/kv/p/1")] {
        let first = index(&replica.get(path.trim_end_matches(['?', '&'])).await);
        let wait = format!("{path}index={first}&wait=50ms");
        let (waiting, _) = tokio::join!(replica.get(&wait), replica.put("/kv/other", "2"));
        assert_eq!(waiting.status, 304, "{path}: another key is no change");
        let wait = format!("{path}index={first}&wait=30s");
        let (waiting, _) = tokio::join!(replica.get(&wait), replica.put(writes, "x"));
        assert!(waiting.status == 200 && index(&waiting) > first, "{path}: {waiting:?}");
        let index = index(&waiting);
        let waited = replica.get(&format!("{path}index={index}&wait=10ms")).await;
        assert_eq!(waited.status, 304, "{path}");
        let wait = format!("{path}index={index}&wait=30s");
        let (gone, _) = tokio::join!(replica.get(&wait), replica.delete(writes));
        assert!(gone.status != 304, "a deletion is a change: {gone:?}");
    }
}

#[tokio::test]
async fn an_index_of_another_replica_is_answered_at_once() {
    let (one, other) = (Replica::new("n1"), Replica::new("n2"));
    one.put("/kv/a", "1").await;
    one.journal().entries().into_iter().for_each(|entry| other.journal().take(entry));
    let index = index(&one.get("/kv/a").await);
    assert_eq!(other.get(&format!("/kv/a?index={index}&wait=30s")).await.status, 200);
    let ahead = index + (1 << 20);
    assert_eq!(one.get(&format!("/kv/a?index={ahead}&wait=30s")).await.status, 200);
}

#[tokio::test]
async fn an_index_from_before_a_rebuild_is_answered_at_once() {
    let (before, rebuilt) = (Replica::new("n1"), Replica::new("n1"));
    before.put("/kv/a", "1").await;
    before.journal().entries().into_iter().for_each(|entry| rebuilt.journal().take(entry));
    let index = index(&before.get("/kv/a").await);
    assert_eq!(rebuilt.get(&format!("/kv/a?index={index}&wait=30s")).await.status, 200);
    assert_eq!(before.get(&format!("/kv/a?index={index}&wait=10ms")).await.status, 304);
}

#[tokio::test]
async fn a_wait_and_an_index_agree_on_what_has_changed() {
    use crate::journal::Journal as _;
    let replica = Replica::new("n1");
    for key in ["a/1", "b", "a/2", "a0", "a/1"] {
        replica.put(&format!("/kv/{key}"), "x").await;
    }
    replica.delete("/kv/a/2").await;
    let readers = Arc::clone(replica.journal().readers());
    let db = readers.open().unwrap();
    for prefix in ["", "a", "a/", "a/1", "a0", "b", "none"] {
        let latest = tables::changed_prefix(&db, prefix).unwrap();
        for seen in 0..8 {
            let expected = latest.is_some_and(|latest| seen < latest);
            assert_eq!(tables::has_changed(&db, prefix, seen).unwrap(), expected, "{prefix} {seen}");
        }
    }
}

#[tokio::test]
async fn a_compare_is_refused_or_false_and_never_writes() {
    let replica = Replica::new("n1");
    assert_eq!(replica.put("/kv/a?cas=0", "1").await.status, 501);
    replica.put("/kv/a", "1").await;
    let index = index(&replica.get("/kv/a").await);
    for (cas, status) in [(0, 412), (index - 1, 412), (index, 501)] {
        assert_eq!(replica.put(&format!("/kv/a?cas={cas}"), "2").await.status, status);
        assert_eq!(replica.delete(&format!("/kv/a?cas={cas}")).await.status, status);
    }
    assert_eq!(replica.get("/kv/a?raw").await.text(), "1");
}

#[tokio::test]
async fn what_cannot_be_a_key_is_refused_with_the_limit() {
    let replica = Replica::new("n1");
    let long = "x".repeat(KV_KEY_BYTES_MAX + 1);
    for path in [format!("/kv/{long}"), "/kv/%FF".to_owned()] {
        let refused = replica.put(&path, "1").await;
        assert!(refused.status == 400 && refused.is_problem(), "{refused:?}");
        assert_eq!(refused.json()["field"], "key");
    }
    assert_eq!(replica.get(&format!("/kv?prefix={long}")).await.status, 400);
    assert_eq!(replica.put("/kv/a?flags=x", "1").await.status, 400);
}

#[tokio::test]
async fn a_write_that_is_tried_again_under_its_key_is_one_entry() {
    let replica = Replica::new("n1");
    for _ in 0..2 {
        let value = Body::from(vec![1; KV_VALUE_BYTES_MAX]);
        let write = Request::put("/kv/a").header("idempotency-key", "k").body(value).unwrap();
        assert_eq!(send(replica.router.clone(), write).await.status, 204);
    }
    assert_eq!(replica.journal().entries().len(), change::PARTS_MAX);
    replica.journal().refuse(Some(AppendError::DiskFull));
    assert_eq!(replica.put("/kv/b", "1").await.status, 507);
}

#[tokio::test]
async fn a_large_value_that_is_tried_again_at_another_replica_takes_effect() {
    let (one, other, third) = (Replica::new("n1"), Replica::new("n2"), Replica::new("n3"));
    let put = async |replica: &Replica| {
        let value = Body::from(vec![1; KV_VALUE_BYTES_MAX]);
        let put = Request::put("/kv/a").header("idempotency-key", "k").body(value).unwrap();
        send(replica.router.clone(), put).await
    };
    put(&one).await;
    // The first replica fails after it has pushed the first part.
    other.journal().take(one.journal().entries().remove(0));
    let again = put(&other).await;
    assert_eq!(again.status, 204, "{again:?}");
    assert_eq!(other.get("/kv/a?raw").await.text().len(), KV_VALUE_BYTES_MAX);
    let mut entries = other.journal().entries();
    assert_eq!(entries.len(), 2 * change::PARTS_MAX);
    entries.reverse();
    entries.into_iter().for_each(|entry| third.journal().take(entry));
    let tokens = again.headers["hearsay-token"].to_str().unwrap();
    assert_eq!(tokens.split(',').count(), change::PARTS_MAX);
    let read = Request::get("/kv/a?raw").header("hearsay-token", tokens).body(Body::empty()).unwrap();
    let read = send(third.router.clone(), read).await;
    assert_eq!((read.status.as_u16(), read.text().len()), (200, KV_VALUE_BYTES_MAX));
}

#[tokio::test]
async fn parts_whose_others_never_come_are_bounded_and_counted() {
    let kv = Kv::default();
    let host = Arc::new(MemoryHost::new("n1").keeping(&kv));
    let router = kv.router(host.clone());
    let journal = host.memory_journal(KV_ROLE).unwrap();
    let feed = FeedId { writer: NodeId::from_public_key([9; 32]), boot: 1 };
    let part = |write: u64, number: usize, seq: u64| {
        let part = Some(change::Part { write, number, of: 2 });
        let put = change::Put { key: write.to_string(), flags: 0, part, value: b"x".to_vec() };
        let id = EntryId { feed, seq: Version(seq) };
        let body = change::Change::Put(put).encode();
        MemoryEntry { id, time: HybridTime::from_wall(seq), key: None, body }
    };
    let count = tables::WAITING_PARTS_MAX + 2;
    (1..=count).for_each(|write| journal.take(part(write, 0, write)));
    let metrics = kv.metrics();
    let dropped = metrics.iter().find(|metric| metric.name == "kv_values_dropped");
    assert_eq!(dropped.map(|metric| metric.value), Some(2));
    for (write, status) in [(3, 200), (2, 404)] {
        journal.take(part(write, 1, count + write));
        let read = request(router.clone(), Method::GET, &format!("/kv/{write}")).await;
        assert_eq!(read.status, status, "{write}");
    }
}

#[tokio::test]
async fn metrics_count_keys_and_bytes() {
    let kv = Kv::default();
    let host = Arc::new(MemoryHost::new("n1").keeping(&kv));
    let router = kv.router(host);
    for (path, value) in [("/kv/a", "123"), ("/kv/b", "4567"), ("/kv/a", "1")] {
        send(router.clone(), Request::put(path).body(Body::from(value)).unwrap()).await;
    }
    send(router.clone(), Request::put("/kv/a").body(Body::from(vec![0; KV_VALUE_BYTES_MAX + 1])).unwrap())
        .await;
    let value = |name| kv.metrics().iter().find(|metric| metric.name == name).map(|metric| metric.value);
    assert_eq!((value("kv_keys"), value("kv_value_bytes")), (Some(2), Some(5)));
    assert_eq!(value("kv_writes_refused"), Some(1));
    request(router, Method::DELETE, "/kv/b").await;
    assert_eq!((value("kv_keys"), value("kv_value_bytes")), (Some(1), Some(1)));
}

#[tokio::test]
async fn a_backup_adds_and_sets_back_and_removes_nothing() {
    use crate::journal::{
        Journal as _,
        restore::{ItemSelection, RestoreSource},
    };
    let (backup, now) = (Replica::new("n1"), Replica::new("n2"));
    for (replica, key, value) in [
        (&backup, "same", "1"),
        (&now, "same", "1"),
        (&backup, "old", "1"),
        (&now, "old", "2"),
        (&now, "new", "1"),
    ] {
        replica.put(&format!("/kv/{key}"), value).await;
    }
    backup.put("/kv/gone?flags=3", vec![5; KV_VALUE_BYTES_MAX]).await;
    let readers = Arc::clone(backup.journal().readers());
    let tables = readers.open().unwrap();
    let items = restore::Backup.items(&tables, ItemSelection::After(None)).unwrap();
    let last = items.last().unwrap().cursor.clone();
    assert!(restore::Backup.items(&tables, ItemSelection::After(Some(&last))).unwrap().is_empty());
    assert_eq!(restore::Backup.items(&tables, ItemSelection::Only("old")).unwrap().len(), 1);
    assert_eq!(restore::Backup.count(&tables).unwrap(), 3);
    let bodies: Vec<Value> = items.into_iter().map(|item| item.body).collect();
    let body = serde_json::json!({ "items": bodies }).to_string();
    let post = async |path: &str| {
        let post =
            Request::post(path).header("content-type", "application/json").body(Body::from(body.clone()));
        send(now.router.clone(), post.unwrap()).await.json()
    };
    let preview = post("/kv?dry-run").await;
    assert_eq!((preview["differences"].as_array().unwrap().len(), &preview["written"]), (2, &0.into()));
    let report = post("/kv").await;
    assert_eq!((&report["remaining"], &report["ack"]), (&0.into(), &"local".into()), "{report}");
    assert_eq!(now.get("/kv/old?raw").await.text(), "1");
    assert_eq!(now.get("/kv/gone").await.json()["flags"], 3);
    assert_eq!(now.keys("").await, serde_json::json!(["gone", "new", "old", "same"]));
    assert_eq!(post("/kv").await["differences"], serde_json::json!([]));
    let refused = request(now.router.clone(), Method::POST, "/kv").await;
    assert_eq!((refused.status.as_u16(), refused.is_problem()), (400, true));
}

#[tokio::test]
async fn a_node_that_stops_ends_its_blocking_queries() {
    let kv = Kv::default();
    let host = Arc::new(MemoryHost::new("n1").keeping(&kv));
    let router = kv.router(host);
    let index = index(&request(router.clone(), Method::GET, "/kv/a").await);
    let path = format!("/kv/a?index={index}&wait=30s");
    let (waited, ()) = tokio::join!(request(router, Method::GET, &path), kv.drain().unwrap());
    assert_eq!(waited.status, 304);
}

#[tokio::test]
async fn the_winning_write_and_the_superseded_one_are_named_alike_in_any_order_of_arrival() {
    let one = Replica::new("n1");
    one.put("/kv/a", "0").await;
    let first = one.get("/kv/a?writes").await.json();
    assert_eq!((&first["value"], &first["writes"]["superseded"]), (&"MA==".into(), &Value::Null));
    assert_eq!(first["writes"]["latest"]["node"], one.host.node_id().to_string());
    for value in ["1", "2"] {
        one.put("/kv/a", value).await;
    }
    one.put("/kv/b", "1").await;
    let token = one.delete("/kv/b").await.headers["hearsay-token"].to_str().unwrap().to_owned();
    let (a, b) = (one.get("/kv/a?writes").await.json(), one.get("/kv/b?writes").await);
    let (a, b) = (a["writes"].clone(), (b.status.as_u16(), b.json()["writes"].clone()));
    assert_eq!((&a["latest"]["change"], &a["superseded"]["change"]), (&"put".into(), &"put".into()));
    assert_eq!(
        (b.0, &b.1["latest"]["change"], &b.1["superseded"]["change"]),
        (404, &"delete".into(), &"put".into())
    );
    assert_eq!(b.1["latest"]["entry"], token);
    let mut entries = one.journal().entries();
    for seed in 0..20 {
        fastrand::Rng::with_seed(seed).shuffle(&mut entries);
        let other = Replica::new("n2");
        entries.iter().cloned().for_each(|entry| other.journal().take(entry));
        assert_eq!(other.get("/kv/a?writes").await.json()["writes"], a, "seed {seed}");
        assert_eq!(other.get("/kv/b?writes").await.json()["writes"], b.1, "seed {seed}");
    }
    assert_eq!(one.get("/kv/a?writes&raw").await.status, 400);
    assert_eq!(one.get("/kv/never?writes").await.json()["writes"], Value::Null);
}

#[tokio::test]
async fn one_host_cannot_use_up_the_blocking_queries_of_a_replica() {
    let kv = Kv::default();
    let host = Arc::new(MemoryHost::new("n1").keeping(&kv));
    let router = kv.router(host);
    let index = index(&request(router.clone(), Method::GET, "/kv/a").await);
    let ask = |host: [u8; 4], wait: &str| {
        let path = format!("/kv/a?index={index}&wait={wait}");
        let mut query = Request::get(path).body(Body::empty()).unwrap();
        query.extensions_mut().insert(ConnectionHost(std::net::IpAddr::from(host).into()));
        send(router.clone(), query)
    };
    let share = store::WAITS_MAX * 3 / 4;
    // One more than its share: that one is answered at once, whichever it is.
    let mut held = JoinSet::new();
    (0..=share).for_each(|_| _ = held.spawn(ask([10, 0, 0, 1], "60s")));
    let refused = held.join_next().await.unwrap().unwrap();
    assert_eq!((refused.status.as_u16(), &refused.headers["retry-after"]), (429, &"5".parse().unwrap()));
    assert!(refused.is_problem() && refused.text().contains("share"), "{refused:?}");
    assert_eq!(ask([10, 0, 0, 2], "1ms").await.status, 304, "another host has a share of its own");
    assert_eq!(request(router.clone(), Method::GET, "/kv/a").await.status, 404, "a read takes no place");
    let count = kv.metrics().iter().find(|metric| metric.name == "kv_waits_refused").unwrap().value;
    assert_eq!(count, 1);
    kv.drain().unwrap().await;
    while let Some(query) = held.join_next().await {
        assert_eq!(query.unwrap().status, 304);
    }
}

#[tokio::test]
async fn a_list_that_is_too_large_is_refused_and_counted() {
    let kv = Kv::default();
    let host = Arc::new(MemoryHost::new("n1").keeping(&kv));
    let router = kv.router(host);
    for number in 0..20 {
        let put = Request::put(format!("/kv/a/{number}")).body(Body::from(vec![7; KV_VALUE_BYTES_MAX]));
        assert_eq!(send(router.clone(), put.unwrap()).await.status, 204);
    }
    assert_eq!(request(router.clone(), Method::GET, "/kv?prefix=a/").await.status, 413);
    assert_eq!(request(router, Method::GET, "/kv?prefix=a/&keys").await.status, 200);
    let count = kv.metrics().iter().find(|metric| metric.name == "kv_lists_refused").unwrap().value;
    assert_eq!(count, 1);
}
