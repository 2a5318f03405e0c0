//! Feed: the log of one writer, whose entries ([`JournalEntry`]) form a hash chain. The writer signs, and
//! receivers check, several entries at once as a [`Run`].
//!
//! A feed belongs to one life of one writer. If a sequence number were used twice, two entries would have one
//! id, which no replica could detect. So a node never continues a feed. Each start begins a new feed under a
//! random number, even after a backup was restored or a data directory was copied.
//!
//! The hash of each entry covers the entry before it, so a signature of one hash covers all entries up to
//! that one. A writer signs once for each write to disk, not for each entry. A [`Run`] is the sequence of
//! entries between two signatures. It is the smallest unit that can be verified without the entries before
//! it, and so the unit of storage, sending and repair.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::clock::HybridTime;
use crate::{
    Identity, NodeId, Version,
    id::Signature,
    record::signed_bytes,
    wire::{PAGE_BYTES, codec},
};

/// Number of an entry in its feed, from 1 without gaps.
pub type Seq = Version;

/// Largest body of an entry in bytes: a quarter of a message.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Longest idempotency key in bytes, as HTTP APIs commonly allow.
pub const KEY_BYTES_MAX: usize = 255;
/// Entries in a run, at most. A guess: in a run of a thousand entries, the one signature takes less than a
/// hundredth of the time that the whole run takes to write.
pub const RUN_ENTRIES_MAX: usize = 1024;
/// Bytes of entries in a run, at most. A single entry may be larger.
pub(crate) const RUN_BYTES_MAX: usize = PAGE_BYTES;
/// Encoded size of an entry without key and body: a time of at most 9 bytes, two lengths and a flag.
const ENTRY_OVERHEAD_BYTES: usize = 20;

/// Id of a feed: one life of one writer in a topic.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FeedId {
    /// The node that writes the feed.
    pub writer: NodeId,
    /// Random number of the writer's life.
    pub boot: u64,
}

impl fmt::Debug for FeedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{:04x}", self.writer, self.boot & 0xffff)
    }
}

/// Id of an entry, unique in a topic. Written as `WRITER-BOOT-SEQ`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct EntryId {
    /// The feed.
    pub feed: FeedId,
    /// Number of the entry in the feed.
    pub seq: Seq,
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}-{}", self.feed.writer, self.feed.boot, self.seq.0)
    }
}

/// Error of a text that is not an [`EntryId`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not the id of an entry: expected WRITER-BOOT-SEQ, such as 12D3KooW…-00000000000000ff-7")]
pub struct NotAnEntryId;

impl FromStr for EntryId {
    type Err = NotAnEntryId;
    fn from_str(text: &str) -> Result<Self, NotAnEntryId> {
        let mut parts = text.split('-');
        let mut part = || parts.next().ok_or(NotAnEntryId);
        let (writer, boot, seq) = (part()?, part()?, part()?);
        let id = Self {
            feed: FeedId {
                writer: writer.parse().map_err(|_| NotAnEntryId)?,
                boot: u64::from_str_radix(boot, 16).map_err(|_| NotAnEntryId)?,
            },
            seq: Version(seq.parse().map_err(|_| NotAnEntryId)?),
        };
        // Each id has one spelling, so that equal ids are equal texts.
        if id.to_string() == text { Ok(id) } else { Err(NotAnEntryId) }
    }
}

/// Hash of an entry and of all entries before it in its feed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChainHash(pub [u8; 32]);

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}…", self.0[0], self.0[1])
    }
}

impl ChainHash {
    /// Hash before the first entry. It covers cluster, topic, writer and life, so that no entry fits into
    /// another feed.
    pub fn root(cluster: &str, topic: &str, feed: FeedId) -> Self {
        Self(*blake3::hash(&signed_bytes("feed", cluster, &(topic, feed))).as_bytes())
    }

    /// Hash after one further entry.
    #[must_use]
    pub fn then(self, entry: &JournalEntry) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(&codec::encode(entry));
        Self(*hasher.finalize().as_bytes())
    }
}

/// An entry of a feed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JournalEntry {
    /// Time by the writer's hybrid clock: later than that of every entry that the writer had written or
    /// received.
    pub time: HybridTime,
    /// Idempotency key: entries of a topic with the same key are the same write.
    pub key: Option<String>,
    /// Body, which the topic's plug-in interprets.
    pub body: Vec<u8>,
}

impl JournalEntry {
    /// Estimated size in a run, in bytes.
    pub fn cost_bytes(&self) -> usize {
        ENTRY_OVERHEAD_BYTES + self.body.len() + self.key.as_ref().map_or(0, String::len)
    }
}

/// Run: consecutive entries of a feed, and the writer's signature of the hash of the last one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Run {
    /// The feed.
    pub feed: FeedId,
    /// Number of the first entry.
    pub start: Seq,
    /// Hash before the first entry.
    pub before: ChainHash,
    /// The entries, at least one.
    pub entries: Vec<JournalEntry>,
    pub(crate) signature: Signature,
}

/// Reason for which a run was refused. None of its entries was stored.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum RunError {
    /// The run has no entries, or its numbers are out of range.
    #[error("no run has these numbers")]
    Numbers,
    /// The run has too many entries, or entries that are too large.
    #[error(
        "over the limit of {RUN_ENTRIES_MAX} entries, {RUN_BYTES_MAX} bytes, {BODY_BYTES_MAX} bytes of body or {KEY_BYTES_MAX} of key"
    )]
    TooLarge,
    /// The signature is not the writer's.
    #[error("the signature is not the writer's")]
    Forged,
}

impl Run {
    /// Signs entries, at least one, that follow a hash. Returns the run and the hash of each entry.
    pub fn sign(
        me: &Identity,
        cluster: &str,
        topic: &str,
        at: (EntryId, ChainHash),
        entries: Vec<JournalEntry>,
    ) -> (Self, Vec<ChainHash>) {
        let (EntryId { feed, seq: start }, before) = at;
        debug_assert_eq!(feed.writer, me.id(), "a node writes only its own feeds");
        let mut run = Self { feed, start, before, entries, signature: Signature([0; 64]) };
        let hashes = run.hashes();
        run.signature = me.sign(&run.signed(cluster, topic, &hashes));
        (run, hashes)
    }

    /// Hash of each entry.
    fn hashes(&self) -> Vec<ChainHash> {
        let next = |hash: &mut ChainHash, entry: &JournalEntry| {
            *hash = hash.then(entry);
            Some(*hash)
        };
        self.entries.iter().scan(self.before, next).collect()
    }

    /// Bytes that the signature covers; they contain the hash after the last entry.
    fn signed(&self, cluster: &str, topic: &str, hashes: &[ChainHash]) -> Vec<u8> {
        let hash = hashes.last().copied().unwrap_or(self.before);
        signed_bytes("run", cluster, &(topic, self.feed, self.end(), hash))
    }

    /// Number of the last entry.
    pub fn end(&self) -> Seq {
        Version(self.start.0.saturating_add(self.entries.len() as u64).saturating_sub(1))
    }

    /// Checks a run from another node or from a disk. Verifies the signature last, because that costs most.
    /// Returns the hash of each entry.
    ///
    /// # Errors
    /// The first problem found. Drop and count the run.
    pub fn check(&self, cluster: &str, topic: &str) -> Result<Vec<ChainHash>, RunError> {
        let starts_chain = self.before == ChainHash::root(cluster, topic, self.feed);
        if self.entries.is_empty() || self.start.0 == 0 || (self.start.0 == 1) != starts_chain {
            return Err(RunError::Numbers);
        }
        if self.start.0.checked_add(self.entries.len() as u64).is_none() {
            return Err(RunError::Numbers);
        }
        let oversize = |e: &JournalEntry| {
            e.body.len() > BODY_BYTES_MAX || e.key.as_ref().is_some_and(|k| k.len() > KEY_BYTES_MAX)
        };
        let cost: usize = self.entries.iter().map(JournalEntry::cost_bytes).sum();
        let too_many =
            self.entries.len() > RUN_ENTRIES_MAX || (cost > RUN_BYTES_MAX && self.entries.len() > 1);
        if too_many || self.entries.iter().any(oversize) {
            return Err(RunError::TooLarge);
        }
        let hashes = self.hashes();
        let signed = self.signed(cluster, topic, &hashes);
        if self.feed.writer.has_signed(&signed, &self.signature) { Ok(hashes) } else { Err(RunError::Forged) }
    }

    /// Bytes of the signature, for storage.
    pub fn signature_bytes(&self) -> [u8; 64] {
        self.signature.0
    }

    /// Run with parts that were read from a disk. It is not verified until [`check`](Self::check).
    pub fn from_parts(at: (EntryId, ChainHash), entries: Vec<JournalEntry>, signature: [u8; 64]) -> Self {
        let (EntryId { feed, seq: start }, before) = at;
        Self { feed, start, before, entries, signature: Signature(signature) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "test";

    fn run(from: u64, bodies: &[&str]) -> (Identity, Run) {
        let me = Identity::from_seed(&[1; 32]);
        let feed = FeedId { writer: me.id(), boot: 9 };
        let before = match from {
            1 => ChainHash::root(CLUSTER, "log", feed),
            _ => ChainHash([7; 32]),
        };
        let entries = bodies.iter().map(|body| JournalEntry {
            time: HybridTime::from_wall(5),
            key: None,
            body: body.as_bytes().to_vec(),
        });
        let at = (EntryId { feed, seq: Version(from) }, before);
        let (run, _) = Run::sign(&me, CLUSTER, "log", at, entries.collect());
        (me, run)
    }

    #[test]
    fn a_run_proves_itself_without_what_was_before() {
        for from in [1, 2, 1_000_000] {
            let (_, run) = run(from, &["a", "b", "c"]);
            assert_eq!(run.check(CLUSTER, "log").map(|hashes| hashes.len()), Ok(3));
            assert_eq!(run.end(), Version(from + 2));
        }
    }

    #[test]
    fn nothing_of_a_run_can_be_changed() {
        let (_, good) = run(1, &["a", "b", "c"]);
        let forged = |change: fn(&mut Run)| {
            let mut run = good.clone();
            change(&mut run);
            run.check(CLUSTER, "log")
        };
        assert_eq!(forged(|run| run.entries[1].body = b"x".to_vec()), Err(RunError::Forged));
        assert_eq!(forged(|run| run.entries[1].key = Some("k".into())), Err(RunError::Forged));
        assert_eq!(forged(|run| run.entries.swap(0, 1)), Err(RunError::Forged));
        assert_eq!(forged(|run| run.entries.truncate(2)), Err(RunError::Forged));
        assert_eq!(forged(|run| run.start = Version(2)), Err(RunError::Numbers));
        assert_eq!(forged(|run| run.feed.boot += 1), Err(RunError::Numbers));
        assert_eq!(forged(|run| run.entries.clear()), Err(RunError::Numbers));
        assert_eq!(forged(|run| run.entries[0].body = vec![0; BODY_BYTES_MAX + 1]), Err(RunError::TooLarge));
        assert_eq!(good.check("another", "log"), Err(RunError::Numbers));
        assert_eq!(good.check(CLUSTER, "grading"), Err(RunError::Numbers));
        let (_, later) = run(2, &["a"]);
        assert_eq!(later.check("another", "log"), Err(RunError::Forged));
    }

    #[test]
    fn an_id_has_one_spelling() {
        let (_, run) = run(1, &["a"]);
        let id = EntryId { feed: run.feed, seq: Version(7) };
        let text = id.to_string();
        assert_eq!(text.parse(), Ok(id));
        assert!(text.ends_with("-0000000000000009-7"), "{text}");
        for wrong in
            ["", "x", "--", &text.replace("-7", "-07"), &text.replace("-7", "-+7"), &format!("{text}-1")]
        {
            assert_eq!(wrong.parse::<EntryId>(), Err(NotAnEntryId), "{wrong}");
        }
    }
}
