//! Verifies the runs (signed groups of entries) of each feed: their signatures, the hash chain, and that
//! exactly the entries that the feed's row lists are stored.

use std::collections::BTreeMap;

use hearsay_protocol::{
    VERSION_RANGES_MAX, Version,
    journal::{ChainHash, EntryId, FeedId, HybridTime, JournalEntry, Run, seen_from_bytes},
};
use rusqlite::{Connection, Row, params};

use super::{
    report::{Part, Progress, Report},
    tables::Reference,
};
use crate::journal::store::format::{feed_of, run_of, seq};

/// Runs between two progress reports.
const PROGRESS_EVERY: u64 = 256;

/// Entry numbers of a feed: ascending, disjoint ranges with both ends included.
type Ranges = Vec<(u64, u64)>;

/// A feed, as its row describes it.
struct Described {
    number: i64,
    feed: FeedId,
    seen: Ranges,
    latest: HybridTime,
    dropped: u64,
}

impl Described {
    fn name(&self) -> String {
        format!("{}-{:016x}", self.feed.writer, self.feed.boot)
    }
}

/// A pass over all feeds.
pub(super) struct Walk<'a, 't> {
    db: &'a Connection,
    report: &'a mut Report,
    reference: &'a mut Reference,
    progress: &'a mut Progress<'t>,
    total: u64,
}

/// The state of the pass over one feed.
#[derive(Default)]
struct Chain {
    /// Chain hashes of the entries that a later run may follow or repeat.
    hashes: BTreeMap<u64, ChainHash>,
    /// Entries that the runs hold, damaged runs included.
    stored: Ranges,
    latest: HybridTime,
}

impl<'a, 't> Walk<'a, 't> {
    pub(super) fn new(
        db: &'a Connection,
        report: &'a mut Report,
        reference: &'a mut Reference,
        progress: &'a mut Progress<'t>,
    ) -> rusqlite::Result<Self> {
        let total = db.query_row("SELECT count(*) FROM journal_runs", [], |row| row.get(0))?;
        Ok(Self { db, report, reference, progress, total })
    }

    pub(super) fn check_all(mut self) -> rusqlite::Result<()> {
        let mut feeds = self
            .db
            .prepare("SELECT id, writer, boot, seen, latest, dropped FROM journal_feeds ORDER BY id")?;
        let mut rows = feeds.query([])?;
        while let Some(row) = rows.next()? {
            self.report.feeds += 1;
            match described(row) {
                Some(feed) => self.check_feed(&feed)?,
                None => {
                    let number: i64 = row.get(0)?;
                    let place = format!("feed {number} of the file");
                    self.report.add(Part::Extents, place, "its row is damaged");
                    self.reference.is_incomplete = true;
                }
            }
        }
        let mut orphans = self
            .db
            .prepare("SELECT rowid FROM journal_runs WHERE feed NOT IN (SELECT id FROM journal_feeds)")?;
        let mut rows = orphans.query([])?;
        while let Some(row) = rows.next()? {
            let row: i64 = row.get(0)?;
            self.record_damaged(row, format!("row {row}"), "it belongs to no feed");
        }
        (self.progress)("checking runs", self.total, self.total);
        Ok(())
    }

    fn check_feed(&mut self, feed: &Described) -> rusqlite::Result<()> {
        let mut chain = Chain::default();
        if let Err(error) = self.reference.remember(self.db, feed.feed, seq_of(feed.dropped)) {
            let problem = format_args!("what is left of its dropped entries cannot be used: {error}");
            self.report.add(Part::Tables, feed.name(), problem);
        }
        let mut runs = self.db.prepare_cached(
            "SELECT start, \"end\", before, signature, entries, time, rowid FROM journal_runs WHERE feed = ?1 ORDER BY start",
        )?;
        let mut rows = runs.query(params![feed.number])?;
        while let Some(row) = rows.next()? {
            self.report.runs += 1;
            if self.report.runs.is_multiple_of(PROGRESS_EVERY) {
                (self.progress)("checking runs", self.report.runs, self.total);
            }
            self.check_run(feed, &mut chain, row)?;
        }
        self.check_extent(feed, &chain);
        Ok(())
    }

    fn check_run(&mut self, feed: &Described, chain: &mut Chain, row: &Row<'_>) -> rusqlite::Result<()> {
        let rowid: i64 = row.get(6)?;
        let numbers = (row.get::<_, i64>(0), row.get::<_, i64>(1));
        let (Ok(start), Ok(end)) = numbers else {
            self.record_damaged(rowid, format!("{} row {rowid}", feed.name()), "its numbers are damaged");
            return Ok(());
        };
        let (start, end) = (seq(start), seq(end));
        // Damaged runs count as stored, too; their damage is reported separately.
        add_range(&mut chain.stored, (start.0, end.0));
        let place = format!("{} {start}–{end}", feed.name(), start = start.0, end = end.0);
        let Some(run) = run_of(feed.feed, row).ok().flatten() else {
            self.record_damaged(rowid, place, "it cannot be read");
            return Ok(());
        };
        let hashes = match run.check(&self.report.cluster, &self.report.topic) {
            Ok(hashes) => hashes,
            Err(error) => {
                self.record_damaged(rowid, place, &error.to_string());
                return Ok(());
            }
        };
        let latest = run.entries.iter().map(|entry| entry.time).max().unwrap_or_default();
        let time = row.get::<_, i64>(5).map(i64::cast_unsigned);
        if run.end() != end || time != Ok(latest.0) {
            self.record_damaged(rowid, place, "its row differs from what was signed");
            return Ok(());
        }
        chain.latest = chain.latest.max(latest);
        if let Err(problem) = follow(chain, &run, &hashes) {
            // Both histories are signed, so no run is damaged, and a rebuild cannot repair this.
            self.report.add(Part::Runs, place, problem);
            self.reference.is_incomplete = true;
            return Ok(());
        }
        self.fold(feed, chain, &run, hashes)
    }

    /// Folds the entries that no earlier run holds.
    fn fold(
        &mut self,
        feed: &Described,
        chain: &mut Chain,
        run: &Run,
        hashes: Vec<ChainHash>,
    ) -> rusqlite::Result<()> {
        for ((seq, entry), hash) in (run.start.0..).zip(&run.entries).zip(hashes) {
            if chain.hashes.insert(seq, hash).is_some() {
                continue;
            }
            self.report.entries += 1;
            if seq > feed.dropped {
                self.fold_entry(feed, EntryId { feed: feed.feed, seq: seq_of(seq) }, entry)?;
            }
        }
        Ok(())
    }

    fn fold_entry(&mut self, feed: &Described, id: EntryId, entry: &JournalEntry) -> rusqlite::Result<()> {
        self.reference.key(self.db, feed.number, id.seq, entry)?;
        if let Err(error) = self.reference.fold(id, entry) {
            self.report.add(Part::Tables, id.to_string(), format_args!("it cannot be folded: {error}"));
        }
        Ok(())
    }

    fn record_damaged(&mut self, row: i64, place: String, problem: &str) {
        self.report.add(Part::Runs, place, problem);
        self.report.damaged_rows.push(row);
        self.reference.is_incomplete = true;
    }

    /// Reports differences between the listed entries and the runs.
    fn check_extent(&mut self, feed: &Described, chain: &Chain) {
        let mut stored = chain.stored.clone();
        add_range(&mut stored, (1, feed.dropped));
        let missing = without(&feed.seen, &stored);
        if !missing.is_empty() {
            let problem = format!("no run holds {}, which should be here", list(&missing));
            self.report.add(Part::Extents, feed.name(), problem);
            self.reference.is_incomplete = true;
        }
        // In a feed with too many gaps, the highest ranges are forgotten and fetched again.
        let surplus = without(&stored, &feed.seen);
        if !surplus.is_empty() && feed.seen.len() < VERSION_RANGES_MAX {
            let problem = format!("{} is here, and not accounted for", list(&surplus));
            self.report.add(Part::Extents, feed.name(), problem);
        }
        if feed.latest < chain.latest {
            self.report.add(
                Part::Extents,
                feed.name(),
                "its latest time is earlier than that of its entries",
            );
        }
    }
}

/// Returns the feed of a row; `None`: the row is damaged.
fn described(row: &Row<'_>) -> Option<Described> {
    let seen: Vec<u8> = row.get(3).ok()?;
    let seen = seen_from_bytes(&seen).ok()?;
    Some(Described {
        number: row.get(0).ok()?,
        feed: feed_of(row.get(1).ok()?, row.get(2).ok()?),
        seen: seen.iter().map(|(start, end)| (start.0, end.0)).collect(),
        latest: HybridTime(row.get::<_, i64>(4).ok()?.cast_unsigned()),
        dropped: seq(row.get(5).ok()?).0,
    })
}

fn seq_of(number: u64) -> Version {
    Version(number)
}

/// Checks that a run continues the chain of earlier runs, and that entries which it repeats are equal.
fn follow(chain: &mut Chain, run: &Run, hashes: &[ChainHash]) -> Result<(), &'static str> {
    let before = run.start.0 - 1;
    // Runs come in the order of their first numbers, so lower hashes are no longer needed.
    chain.hashes = chain.hashes.split_off(&before);
    if chain.hashes.get(&before).is_some_and(|hash| *hash != run.before) {
        return Err("its writer signed it after another entry than the one before it here");
    }
    let differs = |(number, hash): (u64, &ChainHash)| chain.hashes.get(&number).is_some_and(|h| h != hash);
    if (run.start.0..).zip(hashes).any(differs) {
        return Err("its writer signed two different entries under one number");
    }
    Ok(())
}

/// Adds a range to ascending ranges.
fn add_range(ranges: &mut Ranges, (start, end): (u64, u64)) {
    if start > end {
        return;
    }
    let at = ranges.partition_point(|(_, e)| e.saturating_add(1) < start);
    let (mut merged, mut until) = ((start, end), at);
    while let Some((s, e)) = ranges.get(until)
        && *s <= merged.1.saturating_add(1)
    {
        merged = (merged.0.min(*s), merged.1.max(*e));
        until += 1;
    }
    ranges.splice(at..until, [merged]);
}

/// Returns the parts of `these` outside of `others`.
fn without(these: &Ranges, others: &Ranges) -> Ranges {
    let mut rest = Vec::new();
    for (start, end) in these {
        let mut from = *start;
        let first = others.partition_point(|(_, e)| *e < from);
        for (s, e) in others.iter().skip(first).take_while(|(s, _)| s <= end) {
            if from < *s {
                rest.push((from, s - 1));
            }
            from = e.saturating_add(1);
        }
        if from <= *end {
            rest.push((from, *end));
        }
    }
    rest
}

/// Formats the first ranges for people.
fn list(ranges: &Ranges) -> String {
    const SHOWN: usize = 5;
    let one = |(start, end): &(u64, u64)| match start == end {
        true => start.to_string(),
        false => format!("{start}–{end}"),
    };
    let mut text = ranges.iter().take(SHOWN).map(one).collect::<Vec<_>>().join(", ");
    if ranges.len() > SHOWN {
        text += &format!(" and {} more ranges", ranges.len() - SHOWN);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_melt_and_what_is_missing_is_told() {
        let mut ranges = Vec::new();
        for range in [(1, 3), (4, 5), (9, 9), (9, 12), (20, 21), (5, 4)] {
            add_range(&mut ranges, range);
        }
        assert_eq!(ranges, [(1, 5), (9, 12), (20, 21)]);
        add_range(&mut ranges, (1, 10));
        assert_eq!(ranges, [(1, 12), (20, 21)]);
        assert_eq!(without(&vec![(1, 30)], &ranges), [(13, 19), (22, 30)]);
        assert_eq!(without(&vec![(2, 3), (12, 14), (20, 20)], &ranges), [(13, 14)]);
        assert_eq!(without(&ranges, &vec![(1, u64::MAX)]), []);
        assert_eq!(list(&vec![(1, 1), (3, 4)]), "1, 3–4");
        assert!(list(&(0..9).map(|i| (3 * i, 3 * i)).collect()).ends_with("12 and 4 more ranges"));
    }
}
