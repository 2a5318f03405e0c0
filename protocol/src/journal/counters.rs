//! The counters of a journal.

/// What a journal counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Entries written here.
    pub appended: u64,
    /// Entries of others stored here.
    pub replicated: u64,
    /// Runs refused because they were forged or break a bound.
    pub refused: u64,
    /// Runs of others put off because too many waited for the disk, or there were too many feeds.
    pub put_off: u64,
    /// Comparisons begun with another replica.
    pub comparisons: u64,
    /// Comparisons that found a difference.
    pub differences: u64,
    /// Receipts of other replicas for what an append waits for, or for what was written here.
    pub receipts: u64,
    /// Entries found damaged on the disk.
    pub damaged: u64,
    /// Times that a writer's time was too far ahead of this node's wall clock, and an epoch was opened.
    pub epochs_opened: u64,
    /// Replicas not added to the replica set because it was full or a peer's generation made no sense.
    pub replicas_refused: u64,
}
