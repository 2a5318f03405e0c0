//! Tests of wall clocks that are off, jump or stand still: an entry is ordered after those that its writer
//! had received.

use super::*;

const HOUR_MS: i64 = 3_600_000;
const YEAR_MS: i64 = 365 * 24 * HOUR_MS;

/// Rows of the simulated table.
const ROWS: u64 = 4;

/// A write to a row, with the entries that were on its writer's disk at the start of the write.
struct RowWrite {
    append: AppendId,
    row: u64,
    seen: BTreeSet<EntryId>,
    latest: Moment,
}

impl Net {
    /// Writes to a row at a node.
    fn write_row(&mut self, node: usize, row: u64, level: Option<Level>) -> RowWrite {
        let disk = &self.nodes[node].disk;
        let (seen, latest) = (disk.entries.keys().copied().collect(), disk.latest());
        let body = format!("{row}:{}", self.next_append);
        RowWrite { append: self.append(node, &body, None, level), row, seen, latest }
    }

    /// Entry that determines a row of this node's table: the last one in the order of moments, then ids.
    fn row(&self, node: usize, row: u64) -> Option<EntryId> {
        let prefix = format!("{row}:");
        let of_row = |entry: &JournalEntry| entry.body.starts_with(prefix.as_bytes());
        let entries = self.nodes[node].disk.entries.iter().filter(|(_, (_, entry))| of_row(entry));
        entries.max_by_key(|(id, (_, entry))| (moment(entry), **id)).map(|(id, _)| *id)
    }

    fn moment_of(&self, id: EntryId) -> Moment {
        let found = self.nodes.iter().find_map(|node| node.disk.entries.get(&id));
        moment(&found.expect("it is on some disk").1)
    }

    /// Checks that each acknowledged write is ordered after the entries that its writer had, so that none of
    /// them overrides it.
    fn check_rows(&self, writes: &[RowWrite], seed: u64) {
        for write in writes {
            let Some(Ok(done)) = self.answers.get(&write.append) else { continue };
            let moment = self.moment_of(done.id);
            assert!(
                moment > write.latest,
                "seed {seed}: {moment:?} is before {:?}, which it follows",
                write.latest
            );
            let shown = self.row(0, write.row).expect("the row was written");
            let is_superseded = !write.seen.contains(&shown);
            assert!(shown == done.id || is_superseded, "seed {seed}: {:?} took no effect", done.id);
        }
    }
}

/// A fault of a wall clock.
fn disturb(wall: &mut Wall, rng: &mut fastrand::Rng, true_ms: u64) {
    let sizes = [0, 30_000, HOUR_MS, 25 * HOUR_MS, 48 * HOUR_MS, 10 * YEAR_MS, 30 * YEAR_MS, i64::MAX];
    let size = sizes[rng.usize(..sizes.len())];
    wall.off_ms = if rng.bool() { size } else { size.saturating_neg() };
    wall.frozen_at_ms = (rng.u8(..4) == 0).then(|| true_ms.saturating_add_signed(wall.off_ms));
}

#[test]
fn what_supersedes_a_row_is_ordered_after_it_whatever_any_clock_shows() {
    let seeds: u64 = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(100);
    let mut epochs = 0;
    for seed in 0..seeds {
        let mut net = Net::new(3, seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        net.loss = rng.f64() * 0.2;
        let mut writes = Vec::new();
        for _ in 0..120 {
            let node = rng.usize(0..3);
            match rng.u32(0..20) {
                0 if (0..3).filter(|n| net.is_up(*n)).count() > 1 => net.crash(node),
                1 | 2 if !net.is_up(node) => net.start(node),
                3 => net.cut(node, (node + 1) % 3),
                4 | 5 => net.heal(),
                6 | 7 => {
                    let true_ms = net.wall_ms(node);
                    disturb(&mut net.nodes[node].wall, &mut rng, true_ms);
                }
                _ if net.is_up(node) => {
                    let level = rng.bool().then_some(Level::Local);
                    writes.push(net.write_row(node, rng.u64(..ROWS), level));
                }
                _ => (),
            }
            net.run(Duration::from_millis(rng.u64(1..60)));
        }
        (0..3).filter(|n| !net.is_up(*n)).collect::<Vec<_>>().into_iter().for_each(|n| net.start(n));
        net.heal();
        net.run(20 * SECOND);
        assert!(net.agree(), "seed {seed}: the replicas differ");
        net.check_rows(&writes, seed);
        assert_eq!(net.misbehaved, 0, "seed {seed}");
        epochs +=
            net.nodes.iter().filter_map(|node| node.journal.as_ref()).map(Journal::epoch).max().unwrap_or(0);
    }
    assert!(epochs > seeds, "clocks were off by more than a day: {epochs} epochs in {seeds} simulations");
}

#[test]
fn a_time_far_ahead_on_the_disk_does_not_hide_later_writes_and_is_not_followed() {
    let mut net = Net::new(2, 1);
    net.nodes[1].wall.off_ms = 10 * YEAR_MS;
    let ahead = net.write_row(1, 0, None);
    net.run(SECOND);
    // The clock is set right, and both nodes restart from their disks.
    (0..2).for_each(|n| net.crash(n));
    net.nodes[1].wall = Wall::default();
    (0..2).for_each(|n| net.start(n));
    net.run(SECOND);
    let mut writes = vec![ahead];
    for node in [0, 1, 1, 0] {
        let write = net.write_row(node, 0, None);
        net.run(SECOND);
        let done = net.answer(write.append).clone().unwrap();
        assert!((0..2).all(|n| net.row(n, 0) == Some(done.id)), "the write through {node} took no effect");
        assert!(done.time.wall_ms().abs_diff(net.wall_ms(node)) < 5_000, "its time is the wall's");
        writes.push(write);
    }
    net.check_rows(&writes, 1);
    assert_eq!(net.nodes[0].journal.as_ref().unwrap().epoch(), 1, "one epoch is enough");
}

#[test]
fn times_at_the_end_of_time_are_stored_and_counted_and_stop_no_clock() {
    let mut net = Net::new(3, 1);
    net.run(SECOND);
    let liar = identity(2);
    let feed = FeedId { writer: liar.id(), boot: 1 };
    let at = (EntryId { feed, seq: Version(1) }, ChainHash::root("test", TOPIC, feed));
    let entry = JournalEntry { time: HybridTime(u64::MAX), key: None, body: b"0:lie".to_vec() };
    let (run, _) = Run::sign(&liar, "test", TOPIC, at, vec![entry]);
    for node in 0..2 {
        let request = JournalRequest::Push(run.clone());
        net.feed(node, JournalInput::Request { from: liar.id(), request_id: RequestId(1), request });
    }
    net.run(SECOND);
    let counters = |net: &Net, node: usize| net.nodes[node].journal.as_ref().unwrap().counters();
    assert_eq!([0, 1].map(|node| counters(&net, node).times_ahead), [1, 1]);
    assert_eq!(net.row(0, 0).map(|id| id.feed), Some(feed), "it is stored");
    // Also after a restart, each write supersedes the one before, at either node.
    (0..3).for_each(|node| net.crash(node));
    (0..2).for_each(|node| net.start(node));
    net.run(SECOND);
    for turn in 0..6 {
        let write = net.write_row(turn % 2, 0, None);
        net.run(SECOND);
        let done = net.answer(write.append).clone().unwrap();
        assert!((0..2).all(|node| net.row(node, 0) == Some(done.id)), "turn {turn}");
        assert!(done.time.wall_ms().abs_diff(net.wall_ms(0)) < 5_000, "turn {turn}: {:?}", done.time);
    }
    let ahead = [0, 1].map(|node| counters(&net, node).times_ahead);
    assert_eq!(ahead, [0, 0], "only the lie was far ahead");
}

#[test]
fn a_retry_is_recognised_in_every_epoch() {
    let mut net = Net::new(1, 1);
    net.nodes[0].wall.off_ms = 10 * YEAR_MS;
    net.append(0, "before", None, None);
    net.run(SECOND);
    net.nodes[0].wall = Wall::default();
    let first = net.append(0, "x", Some("key"), None);
    net.run(SECOND);
    let retry = net.append(0, "x", Some("key"), None);
    let other = net.append(0, "y", Some("key"), None);
    net.run(SECOND);
    let first = net.answer(first).clone().unwrap();
    assert_eq!(net.answer(retry).clone().unwrap(), Appended { repeated: true, ..first.clone() });
    assert_eq!(*net.answer(other), Err(AppendError::KeyTaken(first.id)));
    assert_eq!(net.nodes[0].journal.as_ref().unwrap().epoch(), 1);
}

#[test]
fn a_writer_that_lies_about_epochs_is_refused_and_counted() {
    let mut net = Net::new(2, 1);
    net.crash(1);
    let liar = identity(1);
    let feed = FeedId { writer: liar.id(), boot: 1 };
    let root = ChainHash::root("test", TOPIC, feed);
    let entry = |body: &str| JournalEntry { time: HybridTime::default(), key: None, body: body.into() };
    let at = (EntryId { feed, seq: Version(1) }, root);
    let push = |net: &mut Net, body: &str| {
        let (run, _) = Run::sign(&liar, "test", TOPIC, at, vec![entry(body)]);
        let request = JournalRequest::Push(run);
        net.feed(0, JournalInput::Request { from: liar.id(), request_id: RequestId(1), request });
    };
    push(&mut net, &format!("lie@{}", u64::MAX));
    assert_eq!(net.misbehaved, 1);
    let write = net.append(0, "x", None, Some(Level::Local));
    net.run(SECOND);
    assert!(net.answer(write).is_ok());
    assert_eq!(net.nodes[0].journal.as_ref().unwrap().epoch(), 0);
}
