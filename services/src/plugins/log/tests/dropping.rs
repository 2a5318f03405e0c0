//! Tests that dropped entries leave the rest of the log and its counts unchanged, also when tables are
//! rebuilt without them; and that folding entries in batches has the same result as folding them singly.

use std::collections::BTreeMap;

use hearsay_protocol::{Version, journal::FeedId};
use rusqlite::{Connection, types::Value as Cell};

use super::{order::entries, *};
use crate::{
    journal::{Projection as _, Recorded, Seq},
    plugins::log::{offsets, tables::Tables},
    testing::MemoryEntry,
};

/// Tables of the log, and the remnants that the journal would keep with them.
struct Bench {
    db: Connection,
    dropped: BTreeMap<FeedId, (Seq, Option<Vec<u8>>)>,
}

impl Bench {
    fn new() -> Self {
        let db = Connection::open_in_memory().unwrap();
        Tables::default().create(&db).unwrap();
        Self { db, dropped: BTreeMap::new() }
    }

    fn fold(&self, kept: &MemoryEntry) {
        self.fold_all(std::slice::from_ref(kept));
    }

    /// Folds entries of one feed at once, in the order of their sequence numbers.
    fn fold_all(&self, kept: &[MemoryEntry]) {
        let recorded: Vec<Recorded<'_>> = kept
            .iter()
            .map(|MemoryEntry { id, time, key, body }| Recorded {
                id: *id,
                epoch: 0,
                time: *time,
                key: key.as_deref(),
                body,
            })
            .collect();
        Tables::default().fold_all(&self.db, &recorded).unwrap();
    }

    fn drop_up_to(&mut self, feed: FeedId, up_to: Seq) {
        let remnant = Tables::default().dropped(&self.db, feed, up_to).unwrap();
        assert!(remnant.as_ref().unwrap().len() <= crate::journal::REMNANT_BYTES_MAX);
        self.dropped.insert(feed, (up_to, remnant));
    }

    /// Rebuilds the tables from the entries that are still kept.
    fn rebuilt_from(&self, entries: &[MemoryEntry]) -> Self {
        let rebuilt = Self { dropped: self.dropped.clone(), ..Self::new() };
        for (feed, (up_to, remnant)) in &rebuilt.dropped {
            Tables::default().remember(&rebuilt.db, *feed, *up_to, remnant.as_deref()).unwrap();
        }
        let is_kept = |kept: &&MemoryEntry| {
            rebuilt.dropped.get(&kept.id.feed).is_none_or(|(up_to, _)| kept.id.seq > *up_to)
        };
        entries.iter().filter(is_kept).for_each(|kept| rebuilt.fold(kept));
        rebuilt
    }

    /// Returns the contents of all tables and the counts.
    fn content(&self) -> Vec<Vec<Cell>> {
        let queries = [
            "SELECT writer, boot, first, next, posted, early, exact, own_bytes, own_posted FROM log_feeds ORDER BY writer, boot",
            "SELECT f.writer, f.boot, h.source, h.bytes, h.posted FROM log_holdings h JOIN log_feeds f ON f.id = h.feed ORDER BY 1, 2, 3",
            "SELECT f.writer, f.boot, e.seq FROM log_early e JOIN log_feeds f ON f.id = e.feed ORDER BY 1, 2, 3",
            "SELECT f.writer, f.boot, r.seq, r.time, r.posted, r.before, r.hidden, r.message, r.source FROM log_records r
             JOIN log_feeds f ON f.id = r.feed ORDER BY 1, 2, 3",
            "SELECT k.key, f.writer, f.boot, r.seq FROM log_keys k JOIN log_records r ON r.id = k.record
             JOIN log_feeds f ON f.id = r.feed ORDER BY 1, 2, 3, 4",
        ];
        let mut content = Vec::new();
        for query in queries {
            let mut query = self.db.prepare(query).unwrap();
            let columns = query.column_count();
            let rows = query.query_map([], |row| (0..columns).map(|column| row.get(column)).collect());
            content.extend(rows.unwrap().collect::<rusqlite::Result<Vec<Vec<Cell>>>>().unwrap());
        }
        content
    }
}

#[test]
fn entries_folded_together_come_to_what_they_do_one_by_one_whatever_gaps_they_leave() {
    for seed in 0..30 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut entries = entries(seed, 40, seed % 2 == 0);
        rng.shuffle(&mut entries);
        let (singly, together) = (Bench::new(), Bench::new());
        entries.iter().for_each(|kept| singly.fold(kept));
        let mut feeds: BTreeMap<FeedId, Vec<MemoryEntry>> = BTreeMap::new();
        entries.into_iter().for_each(|kept| feeds.entry(kept.id.feed).or_default().push(kept));
        let mut batches: Vec<Vec<MemoryEntry>> = Vec::new();
        for mut entries in feeds.into_values() {
            while !entries.is_empty() {
                let mut batch = entries.split_off(entries.len().saturating_sub(rng.usize(1..12)));
                batch.sort_by_key(|kept| kept.id.seq);
                batches.push(batch);
            }
        }
        rng.shuffle(&mut batches);
        batches.iter().for_each(|batch| together.fold_all(batch));
        assert_eq!(together.content(), singly.content(), "seed {seed}");
    }
}

#[test]
fn tables_that_are_rebuilt_without_the_dropped_records_are_the_same() {
    for seed in 0..30 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut entries = entries(seed, 40, seed % 2 == 0);
        rng.shuffle(&mut entries);
        let mut bench = Bench::new();
        let mut here: BTreeMap<FeedId, hearsay_protocol::VersionSet> = BTreeMap::new();
        let mut folded = Vec::new();
        for kept in &entries {
            let seen = here.entry(kept.id.feed).or_default();
            // An entry that arrives after it was dropped is not folded.
            if !seen.contains(kept.id.seq) {
                bench.fold(kept);
                folded.push(kept.clone());
            }
            seen.insert(kept.id.seq);
            if rng.u8(0..12) == 0 {
                // Drops some entries that are there or, sometimes, some that are missing at the beginning.
                let first_above = seen.iter().map(|(start, _)| start.0).find(|s| *s > seen.watermark().0);
                let (low, high) = match (seen.watermark().0, first_above) {
                    (0, Some(above)) if rng.bool() => (1, above - 1),
                    (0, _) => continue,
                    (watermark, _) => (1, watermark),
                };
                let up_to = Version(rng.u64(low..=high));
                seen.insert_range(Version(1), up_to);
                if bench.dropped.get(&kept.id.feed).is_none_or(|(before, _)| *before < up_to) {
                    bench.drop_up_to(kept.id.feed, up_to);
                }
            }
        }
        assert!(bench.dropped.len() > 3, "seed {seed}");
        rng.shuffle(&mut folded);
        let rebuilt = bench.rebuilt_from(&folded);
        assert_eq!(rebuilt.content(), bench.content(), "seed {seed}");
    }
}

#[test]
fn a_node_goes_on_counting_where_all_its_records_are_gone() {
    let entries = entries(3, 40, false);
    let mut bench = Bench::new();
    entries.iter().for_each(|kept| bench.fold(kept));
    let own = MemoryHost::new("n1").node_id();
    let posted = offsets::posted(&bench.db, own).unwrap();
    assert!(posted > 30);
    for boot in [u64::MAX - 1, 3] {
        bench.drop_up_to(FeedId { writer: own, boot }, Version(40));
    }
    let rebuilt = bench.rebuilt_from(&entries);
    assert_eq!(offsets::posted(&rebuilt.db, own).unwrap(), posted);
    assert_eq!(offsets::find_by_offset(&rebuilt.db, own, 0).unwrap(), offsets::OffsetLookup::Dropped);
}
