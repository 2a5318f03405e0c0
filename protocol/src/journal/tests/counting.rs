//! Tests of the number of replicas of which a majority is counted: all that ever kept the topic durably,
//! until an operator forgets them, and live ephemeral ones, unless a number is configured.

use super::*;

impl Net {
    fn counted(&self, node: usize) -> usize {
        self.nodes[node].journal.as_ref().unwrap().replicas_counted()
    }

    fn counts(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|n| self.is_up(*n)).map(|n| self.counted(n)).collect()
    }

    /// Answer to a write at a node that requires a majority.
    fn majority(&mut self, node: usize) -> Result<Level, AppendError> {
        let body = format!("m{}", self.next_append);
        let id = self.append(node, &body, None, Some(Level::Majority));
        self.run(3 * SECOND);
        self.answer(id).clone().map(|done| done.level)
    }

    fn forget(&mut self, by: usize, replica: usize) {
        self.feed(by, JournalInput::ForgetReplica(identity(replica).id()));
    }
}

#[test]
fn a_majority_is_counted_of_all_replicas_that_ever_were_though_they_fail() {
    let mut net = Net::new(5, 1);
    net.run(SECOND);
    assert_eq!(net.counts(), [5; 5]);
    net.crash(3);
    net.crash(4);
    assert_eq!(net.majority(0), Ok(Level::Majority), "three of five");
    net.crash(2);
    assert!(matches!(net.majority(0), Err(AppendError::Indeterminate(..))), "two of five");
    // The node is alone, first and after a restart.
    net.crash(1);
    net.crash(0);
    net.start(0);
    assert_eq!(net.counts(), [5]);
    assert!(matches!(net.majority(0), Err(AppendError::Indeterminate(..))), "one of five");
}

#[test]
fn a_newcomer_and_one_that_lost_its_disk_learn_of_whom_a_majority_is_counted() {
    let mut net = Net::new(5, 1);
    net.run(SECOND);
    for gone in 1..5 {
        net.crash(gone);
    }
    net.nodes[4].disk = Disk::default();
    net.start(4);
    net.run(SECOND);
    assert_eq!(net.counts(), [5, 5]);
    net.crash(0);
    assert!(matches!(net.majority(4), Err(AppendError::Indeterminate(..))));
}

#[test]
fn only_an_operator_reduces_the_number_and_a_replica_that_returns_counts_again() {
    let mut net = Net::new(5, 1);
    net.run(SECOND);
    (2..5).for_each(|gone| net.crash(gone));
    net.forget(0, 3);
    net.forget(0, 4);
    // A live replica cannot be forgotten.
    net.forget(0, 1);
    net.run(SECOND);
    assert_eq!(net.counts(), [3, 3], "told to the other replica");
    assert_eq!(net.majority(1), Ok(Level::Majority), "two of three");
    // A replica that was disconnected while others were forgotten learns of it, and brings none of them back.
    net.start(2);
    net.run(SECOND);
    assert_eq!(net.counts(), [3; 3]);
    net.start(4);
    net.run(SECOND);
    assert_eq!(net.counts(), [4; 4]);
}

#[test]
fn an_ephemeral_replica_counts_while_it_is_alive() {
    let mut net = Net::new(3, 1);
    net.ephemeral.insert(2);
    (0..3).for_each(|n| net.crash(n));
    net.nodes.iter_mut().for_each(|node| node.disk = Disk::default());
    (0..3).for_each(|n| net.start(n));
    net.run(SECOND);
    assert_eq!(net.counts(), [3; 3]);
    net.crash(2);
    net.run(SECOND);
    assert_eq!(net.counts(), [2; 2]);
}

#[test]
fn a_configured_number_overrides_the_set() {
    let mut net = Net::new(2, 1);
    net.replicas_expected = NonZeroUsize::new(7);
    net.crash(0);
    net.start(0);
    net.run(SECOND);
    assert_eq!(net.counts(), [7, 2]);
    assert!(matches!(net.majority(0), Err(AppendError::Indeterminate(..))));
}

#[test]
fn replicas_agree_on_their_set_though_messages_are_lost_and_some_know_no_sets() {
    let seeds: u64 = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(100);
    for seed in 0..seeds.div_ceil(10) {
        let mut net = Net::new(4, seed);
        net.loss = 0.3;
        for _ in 0..20 {
            let node = net.rng.usize(0..4);
            match net.rng.u8(0..6) {
                0 | 1 if net.is_up(node) && net.counts().len() > 1 => net.crash(node),
                2 | 3 if !net.is_up(node) => net.start(node),
                4 => (0..4).filter(|n| !net.is_up(*n)).collect::<Vec<_>>().into_iter().for_each(|gone| {
                    let by = (0..4).find(|n| net.is_up(*n)).unwrap();
                    net.forget(by, gone);
                }),
                _ => (),
            }
            net.run(Duration::from_millis(200));
        }
        (0..4).filter(|n| !net.is_up(*n)).collect::<Vec<_>>().into_iter().for_each(|n| net.start(n));
        net.heal();
        net.run(20 * SECOND);
        assert_eq!(net.counts(), [4; 4], "seed {seed}");
    }
}
