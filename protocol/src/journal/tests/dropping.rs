//! Tests of a node that joins after retention dropped entries: it does not wait for them. If its topic has no
//! retention, it ignores a peer's claim that entries were dropped.

use super::*;

/// A node writes and drops the first entries, and another node joins.
fn join_late(drops: bool) -> Net {
    let mut net = Net::new(2, 1);
    net.drops = drops;
    (0..2).for_each(|node| net.crash(node));
    net.start(0);
    for number in 0..10 {
        net.append(0, &format!("{number}"), None, Some(Level::Local));
        net.run(Duration::from_millis(50));
    }
    let disk = &mut net.nodes[0].disk;
    let feed = disk.entries.keys().next().unwrap().feed;
    disk.runs.retain(|(_, start), _| *start > Version(6));
    disk.dropped.insert(feed, Version(6));
    net.start(1);
    net.run(12 * SECOND);
    net
}

#[test]
fn what_nobody_keeps_any_more_is_not_waited_for() {
    let mut net = join_late(true);
    assert_eq!(net.nodes[1].disk.entries.len(), 4);
    let [old, new] = [0, 1].map(|node| net.nodes[node].journal.as_ref().unwrap());
    assert_eq!(old.extents().root(), new.extents().root());
    // Afterwards the replicas agree, and writes are confirmed as before.
    let differences = new.counters().differences;
    assert!(new.counters().comparisons > 1);
    let id = net.append(0, "more", None, Some(Level::Replicated));
    net.run(12 * SECOND);
    assert!(net.answers[&id].is_ok());
    let new = net.nodes[1].journal.as_ref().unwrap();
    assert_eq!(new.counters().differences, differences);
    assert!(net.nodes[0].journal.as_ref().unwrap().counters().receipts > 0);
}

#[test]
fn where_everything_is_kept_nobody_is_believed_who_says_otherwise() {
    let net = join_late(false);
    let new = net.nodes[1].journal.as_ref().unwrap();
    let (_, seen) = new.extents().iter().next().unwrap();
    assert_eq!(seen.iter().collect::<Vec<_>>(), [(Version(7), Version(10))]);
}
