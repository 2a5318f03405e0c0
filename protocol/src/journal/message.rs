//! What the replicas of a topic ask of each other. All of it goes between two nodes that are connected, and so authenticated: a receipt needs
//! no signature of its own, because nobody passes it on.

use serde::{Deserialize, Serialize};

use super::{
    feed::{FeedId, Run, Seq},
    replica_set::Generation,
};
use crate::{
    seen::Seen,
    wire::{self, Message},
};

/// How far a replica has a feed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Extent {
    /// Which feed.
    pub feed: FeedId,
    /// What of it is on its disk, or was and is no longer kept.
    pub seen: Seen,
}

/// Asked by one replica of another, under the name of a topic.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum JournalRequest {
    /// Check and store; once it is on your disk answer [`JournalResponse::Receipt`].
    Push(Run),
    /// Answer [`JournalResponse::Same`] if your root hash is this one, otherwise with your extents from the beginning.
    Compare {
        /// Over all the asker's extents.
        root: [u8; 16],
    },
    /// Answer with the extents of the feeds above `after`, in order, as many as fit.
    List {
        /// Where the last page ended.
        after: FeedId,
    },
    /// Answer with runs of this feed that hold what `seen` lacks, the earliest first, as many as fit.
    Pull(Extent),
    /// Answer [`JournalResponse::Receipt`] for this feed as it is on your disk now.
    Confirm(FeedId),
    /// Merge this replica set with yours, and answer [`JournalResponse::Replicas`]. A version before replica sets answers
    /// [`JournalResponse::Unable`].
    Replicas(Vec<Generation>),
}

/// Answers a [`JournalRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum JournalResponse {
    /// This is on the disk of who answers.
    Receipt(Extent),
    /// It is not, for now: the disk is full or refuses. Ask again later.
    Unable,
    /// The root hashes are equal: each has all that the other has.
    Same,
    /// The answer to a list, or to a comparison that found a difference.
    Extents {
        /// In the order of their feeds.
        extents: Vec<Extent>,
        /// Whether there are more after the last of these.
        more: bool,
    },
    /// The answer to a pull.
    Runs {
        /// Everything up to here is gone, by age or size: do not ask for it again.
        dropped: Seq,
        /// What fitted; empty: there is nothing of what was asked for.
        runs: Vec<Run>,
    },
    /// The replica set of who answers, merged with the asker's.
    Replicas(Vec<Generation>),
}

impl Message for JournalRequest {
    const KINDS: u8 = 6;
}
impl Message for JournalResponse {
    const KINDS: u8 = 6;
}

/// The longest name of a topic: that of a service.
const TOPIC_BYTES_MAX: usize = 128;

/// A request as it travels: the length of its topic's name in one byte, the name, the request.
pub fn address(topic: &str, request: &JournalRequest) -> Vec<u8> {
    let length = u8::try_from(topic.len()).unwrap_or(u8::MAX);
    let mut bytes = vec![length];
    bytes.extend_from_slice(topic.as_bytes());
    bytes.extend(wire::encode(request));
    bytes
}

/// Takes a request's topic off; `None`: it has none.
pub fn addressed(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (topic, request) = rest.split_at_checked(usize::from(*length))?;
    let topic = std::str::from_utf8(topic).ok()?;
    (!topic.is_empty() && topic.len() <= TOPIC_BYTES_MAX).then_some((topic, request))
}
