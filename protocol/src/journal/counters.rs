//! Counters of one journal: entries stored, runs refused, comparisons, receipts, damage, epochs, and replicas
//! refused.

/// Counters of a journal, as `/metrics` lists them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct JournalCounters {
    /// Entries of this node's feeds that were stored.
    pub appended: u64,
    /// Entries of other feeds that were stored.
    pub replicated: u64,
    /// Runs refused because they were forged or break a bound.
    pub refused: u64,
    /// Runs of other feeds that were put off, because too many writes were pending or the journal had failed.
    pub put_off: u64,
    /// Pushes and pulls refused because the sender is no replica, and pushes of runs of unknown writers.
    pub strangers: u64,
    /// Runs and extents left out because their writer has too many feeds, or all writers together have.
    pub feeds_refused: u64,
    /// Comparisons started with other replicas.
    pub comparisons: u64,
    /// Comparisons that found a difference.
    pub differences: u64,
    /// Receipts from other replicas that this node was waiting for: for its own feed, or for another feed
    /// with an unconfirmed append.
    pub receipts: u64,
    /// Entries found damaged on the disk.
    pub damaged: u64,
    /// Entries of other feeds stored with a time more than [`AHEAD_MAX`](super::AHEAD_MAX) ahead of this
    /// node's wall clock. No clock follows such a time.
    pub times_ahead: u64,
    /// Epochs opened because another writer's time was too far ahead of this node's wall clock.
    pub epochs_opened: u64,
    /// Replicas not added to the replica set, because the set was full or a peer's generation was out of
    /// range.
    pub replicas_refused: u64,
}
