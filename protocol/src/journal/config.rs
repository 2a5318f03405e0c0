//! [`JournalConfig`]: options of the journal of one topic. [`EpochFormat`]: functions that read and write the
//! hybrid clock's epoch in an entry's body.

use std::{num::NonZeroUsize, time::Duration};

use super::feed::{BODY_BYTES_MAX, JournalEntry};

/// Options of a journal.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Name of the cluster. Every signature covers the name.
    pub cluster: String,
    /// Name of the topic, which is the name of the service whose nodes keep it.
    pub topic: String,
    /// Number of replicas of which more than half are a majority. `None`: the size of the [replica
    /// set](super::replica_set).
    pub replicas_expected: Option<NonZeroUsize>,
    /// Whether this node's database ends with its process.
    pub ephemeral: bool,
    /// Bytes of waiting appends. Beyond this, further appends are refused.
    pub queue_bytes_max: usize,
    /// Mean interval at which this replica compares with another one.
    pub repair_interval: Duration,
    /// Time after which a request without a response has failed.
    pub answer_timeout: Duration,
    /// Whether retention drops entries of this topic, by age or size. If not, this node ignores a peer's
    /// claim that entries were dropped.
    pub drops: bool,
    /// Format in which bodies carry the epoch of their entry. `None`: entries of this topic do not replace
    /// each other, and times are for display only.
    pub epochs: Option<EpochFormat>,
}

/// Format in which the bodies of a topic carry the epoch of their entry ([`clock`](super::clock)). The epoch
/// is part of the body, so that older versions store and relay it. A body without an epoch has epoch 0.
#[derive(Clone, Copy, Debug)]
pub struct EpochFormat {
    /// Returns the epoch that a body carries; 0 for a malformed body.
    pub read: fn(body: &[u8]) -> u64,
    /// Returns the body with this epoch, which is above 0. Adds at most [`EPOCH_BYTES_MAX`] bytes.
    pub write: fn(body: &[u8], epoch: u64) -> Vec<u8>,
}

/// Bytes that an epoch adds to a body, at most.
pub const EPOCH_BYTES_MAX: usize = 64;

impl EpochFormat {
    pub(super) fn write_if_any(format: Option<Self>, body: &[u8], epoch: u64) -> Vec<u8> {
        match format {
            Some(format) if epoch > 0 => (format.write)(body, epoch),
            _ => body.to_vec(),
        }
    }
}

impl JournalConfig {
    /// Default options for a cluster and topic.
    pub fn new(cluster: &str, topic: &str) -> Self {
        Self {
            cluster: cluster.to_owned(),
            topic: topic.to_owned(),
            replicas_expected: None,
            ephemeral: false,
            queue_bytes_max: 16 * 1024 * 1024,
            repair_interval: Duration::from_secs(5),
            answer_timeout: Duration::from_secs(10),
            drops: false,
            epochs: None,
        }
    }

    /// Largest body of an append, in bytes.
    pub(super) fn body_bytes_max(&self) -> usize {
        BODY_BYTES_MAX - self.epochs.map_or(0, |_| EPOCH_BYTES_MAX)
    }

    /// Epoch of an entry, read from its body.
    pub(super) fn epoch_of(&self, entry: &JournalEntry) -> u64 {
        self.epochs.map_or(0, |format| (format.read)(&entry.body))
    }
}
