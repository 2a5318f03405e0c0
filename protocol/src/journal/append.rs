//! Types of an append: the request to write an entry, the durability [`Level`], and the answer.

use super::{
    clock::HybridTime,
    feed::{EntryId, KEY_BYTES_MAX},
};
use crate::Time;

/// Id of an append. The answer carries the same id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AppendId(pub u64);

/// Durability of an entry: the number of disks that have it. A request states the required level, an answer
/// the reached one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Level {
    /// On the disk of the node that received the request.
    Local,
    /// On that disk and one other disk.
    Replicated,
    /// On more than half of the [replica set](super::replica_set), including replicas that are not alive.
    Majority,
}

impl Level {
    /// The word for this level in requests and responses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Replicated => "replicated",
            Self::Majority => "majority",
        }
    }
}

/// A request to append an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Append {
    /// Id that the answer carries.
    pub id: AppendId,
    /// Idempotency key. If the topic has an entry with the same key, that entry is the answer.
    pub key: Option<String>,
    /// Body of the entry.
    pub body: Vec<u8>,
    /// Level at which to answer. `None`: `Replicated` while another replica is alive, otherwise `Local`.
    pub level: Option<Level>,
    /// Time by which the journal must answer.
    pub deadline: Time,
}

/// Answer to an append that succeeded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Id of the entry.
    pub id: EntryId,
    /// Time of the entry.
    pub time: HybridTime,
    /// Level that was reached.
    pub level: Level,
    /// Whether the entry was written by an earlier append with the same key.
    pub repeated: bool,
}

/// Reason for which an append failed, or for which its effect is not known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AppendError {
    /// Nothing was written. Send a smaller body.
    #[error("a body of {0} bytes is over the limit of {1}")]
    BodyTooLarge(usize, usize),
    /// Nothing was written. Send a key of allowed length.
    #[error("an idempotency key has 1 to {KEY_BYTES_MAX} bytes, this one {0}")]
    BadKey(usize),
    /// Nothing was written. An earlier entry has this key and another body.
    #[error("this idempotency key belongs to another write")]
    KeyTaken(EntryId),
    /// Nothing was written. Try again.
    #[error("too many writes are waiting for the disk; try again")]
    Busy,
    /// Nothing was written. Other nodes may have room.
    #[error("the disk is full")]
    DiskFull,
    /// The disk reported an error, so it is not known whether the entry was written. The journal writes
    /// nothing more until the node restarts; the database then shows which entries exist.
    #[error("the disk failed")]
    DiskFailed,
    /// Nothing was written. The deadline passed while the append waited.
    #[error("the deadline passed before anything was written")]
    Late,
    /// The entry is on this disk, but too few receipts arrived in time. The entry may still take effect. The
    /// number is that of the replicas of which more than half are a majority.
    #[error(
        "on the disk of this node, and not confirmed by enough others in time; a majority is counted of {1} replicas, and `node forget` takes \
         out one that is gone for good"
    )]
    Indeterminate(EntryId, usize),
}
