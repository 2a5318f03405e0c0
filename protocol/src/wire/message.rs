//! Messages between nodes, and their encoding: [`Gossip`], and the [`Request`] and [`Response`] of
//! anti-entropy, with their contents (orders to forget, claims of key clashes, digests and pages of entries).

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Identity, Incarnation, NodeId, Version,
    id::Signature,
    membership::evidence::Evidence,
    record::{Entry, signed_bytes},
    version_set::VersionSet,
    wire::{
        codec::{self, DecodeError, MESSAGE_BYTES_MAX},
        user_event::{AgedUserEvent, UserEvent},
    },
};

/// Version of the wire format: the first byte of every message.
pub const WIRE_VERSION: u8 = 1;

/// Bytes of entries in one message, at most. Half of the limit: leaves room for the rest of the message, and
/// delays pings on the same connection only briefly.
pub const PAGE_BYTES: usize = 128 * 1024;

/// A message that floods to all members.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Gossip {
    /// Apply each entry. Relay the message if one of them was new and none was forged.
    Entries(Vec<Entry>),
    /// Assess each report, and relay the message if one of them is new. If a report names you, refute it by a
    /// newer header. If you watch a subject, probe it, and report the result unless the subject has already
    /// failed.
    Evidence(Vec<Evidence>),
    /// Relay it. If it names your key and your own incarnation as the newer one, an older process runs under
    /// your key: stop.
    Clash(Clash),
    /// Relay it. Forget the subject if your table lists it as failed or left, in this incarnation and with no
    /// header newer than the named one. If the subject is you, state a newer header.
    Forget(Forget),
    /// Unless you have it already, or its origin is no member or over its rate limit: list it for programs if
    /// its filters accept this node, and relay it.
    UserEvent(UserEvent),
}

/// An operator's order to forget a gone member, signed by the node that received it. The receiver's duty is
/// stated at [`Gossip::Forget`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Forget {
    /// The statement that is signed.
    pub claim: ForgetClaim,
    signature: Signature,
}

/// Content of a [`Forget`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ForgetClaim {
    /// The node that received the order.
    pub by: NodeId,
    /// The member to forget.
    pub subject: NodeId,
    /// Incarnation of the member. The order does not apply to another incarnation.
    pub incarnation: Incarnation,
    /// Version of the member's header. The order does not apply if the member has a newer header.
    pub version: Version,
}

impl ForgetClaim {
    /// Signs the claim for a cluster.
    pub fn sign(self, me: &Identity, cluster: &str) -> Forget {
        let signature = me.sign(&signed_bytes("forget", cluster, &self));
        Forget { claim: self, signature }
    }
}

impl Forget {
    /// Whether the claim carries its author's signature for this cluster.
    pub fn is_signed(&self, cluster: &str) -> bool {
        self.claim.by.has_signed(&signed_bytes("forget", cluster, &self.claim), &self.signature)
    }
}

/// Claim that two processes run under one key. The older process signs it after it received entries of an
/// incarnation that it did not begin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Clash {
    /// The statement that is signed.
    pub claim: ClashClaim,
    pub(crate) signature: Signature,
}

/// Content of a [`Clash`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClashClaim {
    /// The key of the two processes.
    pub node: NodeId,
    /// Incarnation with which the older process began.
    pub older: Incarnation,
    /// Incarnation of the process that must stop.
    pub newer: Incarnation,
    /// Number of earlier claims. It makes each claim different, because gossip floods no message twice.
    pub round: u32,
}

/// Digest: a node's summary of another node's entries, from which either side computes the entries that the
/// other lacks. A digest with an incarnation but without versions means that the sender has forgotten the
/// node. Forget the node, too, if your table lists it as failed or left.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Digest {
    /// The node whose entries are summarized.
    pub node: NodeId,
    /// Incarnation of the node. Zero: the sender does not know the node.
    pub incarnation: Incarnation,
    /// Whether the sender's table lists the node as failed.
    pub failed: bool,
    /// Versions that the sender has seen.
    pub seen: VersionSet,
    /// Hash over the keys and versions that the sender holds. It distinguishes two digests that have seen the
    /// same versions but hold different entries.
    pub hash: [u8; 16],
}

impl Digest {
    /// Digest of a node that the sender does not know.
    pub fn of_nothing(node: NodeId) -> Self {
        Self { node, incarnation: Incarnation(0), failed: false, seen: VersionSet::default(), hash: [0; 16] }
    }

    /// Whether the sender has forgotten the node. A digest of a known node always contains its header's
    /// version.
    pub fn is_of_forgotten(&self) -> bool {
        self.incarnation != Incarnation(0) && self.seen == VersionSet::default()
    }
}

/// Page: entries of one node, and the versions that they cover.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Page {
    /// The node to which the entries belong.
    pub node: NodeId,
    /// Incarnation of the node.
    pub incarnation: Incarnation,
    /// Versions that the page covers: its entries are all current ones among these versions. Always contains
    /// the header's version, and otherwise no version of the receiver's digest.
    pub covers: VersionSet,
    /// The header first, the others in the order of their versions.
    pub entries: Vec<Entry>,
    /// Evidence on the node, if the sender's table lists it as failed.
    pub evidence: Vec<Evidence>,
}

/// A request to a neighbour. Each variant states the receiver's duty.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// If your root hash equals this one, answer [`Response::Same`], otherwise [`Response::Parts`].
    Compare {
        /// Root hash of the sender.
        root: [u8; 16],
    },
    /// Answer pages with the entries that the sender lacks according to these digests, as many as fit.
    Pull(Vec<Digest>),
    /// Apply the pages. Answer [`Response::Done`].
    Push(Vec<Page>),
    /// The sender does not need this connection. Close the connection if you do not need it either. Answer
    /// [`Response::Done`].
    Unneeded,
    /// Handle the claim as if it came by gossip. Answer [`Response::Done`].
    Clash(Clash),
    /// Answer the digests of the nodes in these parts of the table after `after`, in the order of ids, as
    /// many as fit. Include recently forgotten nodes.
    List {
        /// One bit for each part, the lowest for part 0.
        parts: u64,
        /// Last id of the previous page.
        after: Option<NodeId>,
    },
    /// Handle each order as if it came by gossip. Answer [`Response::Done`].
    Forget(Vec<Forget>),
    /// Answer [`Response::UserEvents`] with the user events that were fired within this time and that the
    /// sender does not have, oldest first, as many as fit. If the sender has some that you lack, ask in turn.
    UserEvents {
        /// Time in milliseconds: the sender lists no event that was fired before its start.
        within_ms: u64,
        /// First eight bytes of the ids of the events that the sender has.
        known: Vec<u64>,
        /// Whether to ask in turn. False in a request that is made in turn.
        is_first: bool,
    },
}

/// The response to a [`Request`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Response {
    /// The root hashes are equal.
    Same,
    /// Digests, after a `List`.
    Digests {
        /// Digests in the order of node ids.
        digests: Vec<Digest>,
        /// Whether further digests follow the last one.
        more: bool,
    },
    /// Pages, after a `Pull`.
    Pages {
        /// The pages that fit.
        pages: Vec<Page>,
        /// Whether to pull again after applying these pages.
        more: bool,
    },
    /// The request was handled.
    Done,
    /// The root hashes differ. Hashes of the 64 parts of the table. A node's part is the lowest six bits of
    /// the first byte of its id.
    Parts(Vec<u64>),
    /// User events, after a `UserEvents`. Handle each as if it came by gossip, but do not forward it by
    /// gossip, which states no age. If one was new, compare with the other neighbours soon.
    UserEvents {
        /// The events that fit.
        events: Vec<AgedUserEvent>,
        /// Whether to ask again after taking these events.
        more: bool,
    },
}

/// A decoded message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Received<T> {
    /// A message of a kind that this build knows.
    Known(T),
    /// A message of a kind that only a newer version knows.
    Unknown,
}

/// Type of messages that begin with the wire version.
pub trait Message: Serialize + DeserializeOwned {
    /// Number of kinds that this build knows. bincode numbers the variants from 0, in order.
    const KINDS: u8;
}

impl Message for Gossip {
    const KINDS: u8 = 5;
}
impl Message for Request {
    const KINDS: u8 = 8;
}
impl Message for Response {
    const KINDS: u8 = 6;
}

/// Encodes a message, wire version included.
pub fn encode<T: Message>(message: &T) -> Vec<u8> {
    let mut bytes = vec![WIRE_VERSION];
    bytes.extend(codec::encode(message));
    bytes
}

/// Decodes a message.
///
/// # Errors
/// The bytes are too long, malformed, or of another wire version. Count them; none of them was used.
pub fn decode<T: Message>(bytes: &[u8]) -> Result<Received<T>, DecodeError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    match bytes {
        [] => Err(DecodeError::Malformed),
        // bincode writes an integer below 251 as one byte.
        [WIRE_VERSION, kind, ..] if *kind >= T::KINDS && *kind < 251 => Ok(Received::Unknown),
        [WIRE_VERSION, message @ ..] => codec::decode(message).map(Received::Known),
        [version, ..] => Err(DecodeError::Version(*version)),
    }
}

#[cfg(test)]
mod tests;
