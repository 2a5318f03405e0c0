//! How a journal behaves: its options, and how its bodies carry epochs.

use std::{num::NonZeroUsize, time::Duration};

use super::feed::{BODY_BYTES_MAX, Entry};

/// How a journal behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Part of everything that is signed.
    pub cluster: String,
    /// The name of the service whose nodes keep this journal.
    pub topic: String,
    /// How many replicas there are: more than half of these are a majority. `None`: as many as the [replica set](super::replica_set) has.
    pub replicas_expected: Option<NonZeroUsize>,
    /// Whether this node's database goes with its process.
    pub ephemeral: bool,
    /// The most bytes of appends that wait for the disk; beyond, they are refused.
    pub queue_bytes_max: usize,
    /// How often a replica compares with another. Design: 5 s.
    pub repair_interval: Duration,
    /// How long an answer may take until the peer is given up for this time.
    pub answer_timeout: Duration,
    /// Whether entries of this topic are ever dropped, by age or size. Where they are not, nobody is believed who says that some were.
    pub drops: bool,
    /// How bodies carry the epoch of their entry. `None`: entries of this topic do not supersede each other, and their times serve people only.
    pub epochs: Option<EpochFormat>,
}

/// How the bodies of a topic carry the epoch of their entry ([`clock`](super::clock)). It is part of the body, so that a version that knows no epochs stores
/// and relays it. A body without an epoch is of epoch 0.
#[derive(Clone, Copy, Debug)]
pub struct EpochFormat {
    /// Returns the epoch that a body carries; 0 for a body that makes no sense.
    pub read: fn(body: &[u8]) -> u64,
    /// Returns the body with this epoch, which is above 0, in at most [`EPOCH_BYTES_MAX`] more bytes.
    pub write: fn(body: &[u8], epoch: u64) -> Vec<u8>,
}

/// What an epoch may add to a body, in bytes.
pub const EPOCH_BYTES_MAX: usize = 64;

impl EpochFormat {
    pub(super) fn write_if_any(format: Option<Self>, body: &[u8], epoch: u64) -> Vec<u8> {
        match format {
            Some(format) if epoch > 0 => (format.write)(body, epoch),
            _ => body.to_vec(),
        }
    }
}

impl Config {
    /// The defaults.
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

    /// The largest body that an append may have.
    pub(super) fn body_bytes_max(&self) -> usize {
        BODY_BYTES_MAX - self.epochs.map_or(0, |_| EPOCH_BYTES_MAX)
    }

    /// The epoch that an entry carries.
    pub(super) fn epoch_of(&self, entry: &Entry) -> u64 {
        self.epochs.map_or(0, |format| (format.read)(&entry.body))
    }
}
