//! [`JournalRequest`] and [`JournalResponse`]: messages between the replicas of a topic. They are sent over a
//! direct connection, whose ends are authenticated, and are never relayed. So a receipt (the statement that
//! entries are on disk) needs no signature.

use serde::{Deserialize, Serialize};

use super::{
    feed::{FeedId, Run, Seq},
    replica_set::Generation,
};
use crate::{
    version_set::VersionSet,
    wire::{self, Message},
};

/// Extent: the entries of a feed that a replica has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Extent {
    /// The feed.
    pub feed: FeedId,
    /// Entries on the replica's disk, and those that it had and dropped.
    pub seen: VersionSet,
}

/// Request from one replica to another, addressed to a topic.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum JournalRequest {
    /// Check and store the run. Once it is on disk, answer [`JournalResponse::Receipt`].
    Push(Run),
    /// Answer [`JournalResponse::Same`] if the root hash equals this one, otherwise the first page of
    /// extents, beginning with the lowest feed.
    Compare {
        /// Root hash over all extents of the sender.
        root: [u8; 16],
    },
    /// Answer the extents of the feeds after `after`, in order, as many as fit.
    List {
        /// Last feed of the previous page.
        after: FeedId,
    },
    /// Answer runs of this feed with entries that the extent lacks, the earliest first, as many as fit.
    Pull(Extent),
    /// Answer [`JournalResponse::Receipt`] for the current extent of this feed.
    Confirm(FeedId),
    /// Merge this replica set, and answer [`JournalResponse::Replicas`]. Nodes with older software, which
    /// know no replica sets, answer [`JournalResponse::Unable`].
    Replicas(Vec<Generation>),
}

/// Response to a [`JournalRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum JournalResponse {
    /// This extent is on the responder's disk.
    Receipt(Extent),
    /// Not possible for now: the responder's disk is full or has failed, or too many reads and writes are
    /// pending. Try again later.
    Unable,
    /// The root hashes are equal: each replica has all entries of the other.
    Same,
    /// Extents, after a list or a comparison that found a difference.
    Extents {
        /// Extents in the order of their feeds.
        extents: Vec<Extent>,
        /// Whether further extents follow the last one.
        more: bool,
    },
    /// Runs, after a pull.
    Runs {
        /// Number up to which entries were dropped, by age or size. Do not request them again.
        dropped: Seq,
        /// The runs that fit. Empty: the responder has none of the requested entries.
        runs: Vec<Run>,
    },
    /// The responder's replica set, merged with the sender's.
    Replicas(Vec<Generation>),
}

impl Message for JournalRequest {
    const KINDS: u8 = 6;
}
impl Message for JournalResponse {
    const KINDS: u8 = 6;
}

/// Longest name of a topic in bytes, which is that of a service.
const TOPIC_BYTES_MAX: usize = 128;

/// Encodes a request: the length of the topic's name in one byte, the name, and the request.
pub fn address_request(topic: &str, request: &JournalRequest) -> Vec<u8> {
    let length = u8::try_from(topic.len()).unwrap_or(u8::MAX);
    let mut bytes = vec![length];
    bytes.extend_from_slice(topic.as_bytes());
    bytes.extend(wire::encode(request));
    bytes
}

/// Splits an encoded request into the topic and the rest; `None`: it is malformed.
pub fn split_address(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (topic, request) = rest.split_at_checked(usize::from(*length))?;
    let topic = std::str::from_utf8(topic).ok()?;
    (!topic.is_empty() && topic.len() <= TOPIC_BYTES_MAX).then_some((topic, request))
}
