//! What travels between nodes. Every message is one byte of wire version, then the message in [`codec`]'s format.
//!
//! There are two ways to travel. [`Gossip`] floods to everybody and is content-addressed: whoever has seen the bytes does not
//! pass them on again. [`Request`] and [`Response`] go between two neighbours and belong to anti-entropy.
//!
//! The variants' documentation states what a receiver must do. A kind that this build does not know is told apart from garbage
//! ([`Received::Unknown`]), so that a newer version's messages are passed on by older nodes.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Identity, Incarnation, NodeId, Version,
    id::Signature,
    liveness::Evidence,
    record::{Entry, signed_bytes},
    seen::Seen,
};

pub mod checks;
pub mod codec;

pub use codec::{DecodeError, MESSAGE_BYTES_MAX};

/// The version of the wire format, the first byte of every message.
pub const WIRE_VERSION: u8 = 1;

/// The most bytes of entries put into one message. Half of the limit: leaves room for what surrounds them, and keeps a page from
/// holding up the pings behind it for long.
pub const PAGE_BYTES: usize = 128 * 1024;

/// Floods to every member.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Gossip {
    /// Apply each entry; pass the message on only if one of them was news, and never if one of them is forged.
    Entries(Vec<Entry>),
    /// Weigh each; pass on what was news. If it is about you, refute it with a newer header. If you watch its subject, look for
    /// yourself and say what you saw, unless the verdict is already clear.
    Evidence(Vec<Evidence>),
    /// Pass on. If it carries your own key and names your own life, a process that began before yours lives under your key: stop.
    Clash(Clash),
    /// Pass on. Forget the subject if you hold it failed or left yourself, in this life and with no header newer than the one named.
    /// If it is about you, state a newer header.
    Forget(Forget),
}

/// An operator had a member forgotten that is gone: said by the node that was asked, and obeyed as [`Gossip::Forget`] says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Forget {
    /// What is said.
    pub claim: ForgetClaim,
    signature: Signature,
}

/// What a [`Forget`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ForgetClaim {
    /// The node that was asked.
    pub by: NodeId,
    /// The member to forget.
    pub subject: NodeId,
    /// In which life; a member that began another is not meant.
    pub incarnation: Incarnation,
    /// As of which header; a member that stated a newer one is not meant.
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
    /// Whether its author said this, in this cluster.
    pub fn is_signed(&self, cluster: &str) -> bool {
        self.claim.by.has_signed(&signed_bytes("forget", cluster, &self.claim), &self.signature)
    }
}

/// Two processes run under one key. Said by the older one, which sees entries of a life that it does not live.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Clash {
    /// What is said.
    pub claim: ClashClaim,
    pub(crate) signature: Signature,
}

/// What a [`Clash`] says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClashClaim {
    /// The key that two processes share.
    pub node: NodeId,
    /// The life with which the process that says so began.
    pub older: Incarnation,
    /// The life that must end.
    pub newer: Incarnation,
    /// How often this was said before: gossip passes on no message twice.
    pub round: u32,
}

/// How one node stands to another's entries: enough to compute what either lacks. One that names a life and has seen nothing of it says that
/// the sender has forgotten it: forget it too, if you hold it for gone.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Digest {
    /// Whose entries.
    pub node: NodeId,
    /// Of which life; zero: knows nothing of it.
    pub incarnation: Incarnation,
    /// Whether the sender believes it dead.
    pub failed: bool,
    /// Which versions the sender has seen.
    pub seen: Seen,
    /// Over keys and versions that the sender holds. Tells apart two that have seen the same and yet hold different things.
    pub hash: [u8; 16],
}

impl Digest {
    /// How one stands who has never heard of the node.
    pub fn of_nothing(node: NodeId) -> Self {
        Self { node, incarnation: Incarnation(0), failed: false, seen: Seen::default(), hash: [0; 16] }
    }

    /// Whether the sender has forgotten the node. Of one that it holds it has seen the header.
    pub fn is_of_forgotten(&self) -> bool {
        self.incarnation != Incarnation(0) && self.seen == Seen::default()
    }
}

/// Entries of one node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Page {
    /// Whose entries.
    pub node: NodeId,
    /// Of which life.
    pub incarnation: Incarnation,
    /// The versions of which this page holds everything that still counts. The sender's header is among them always, and otherwise none
    /// that the receiver's digest had.
    pub covers: Seen,
    /// The header first, then by version.
    pub entries: Vec<Entry>,
    /// What speaks against the node, if the sender believes it dead.
    pub evidence: Vec<Evidence>,
}

/// Asked by one neighbour of another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Answer [`Response::Same`] if your root hash is this one; otherwise [`Response::Parts`].
    Compare {
        /// The asker's root hash.
        root: [u8; 16],
    },
    /// Answer with pages of what the asker lacks by its digests, as much as fits.
    Pull(Vec<Digest>),
    /// Apply; answer [`Response::Done`].
    Push(Vec<Page>),
    /// The asker needs this connection no longer. If you do not need it either, close it; otherwise do nothing. Answer
    /// [`Response::Done`].
    Unneeded,
    /// Take it as if it came by gossip. Answer [`Response::Done`].
    Clash(Clash),
    /// Answer with the digests of the nodes in these parts of the table whose id is above `after`, and of those lately forgotten, in order,
    /// as many as fit.
    List {
        /// A bit for each part, the lowest for part 0.
        parts: u64,
        /// Where the last page of digests ended.
        after: Option<NodeId>,
    },
    /// Take each as if it came by gossip. Answer [`Response::Done`].
    Forget(Vec<Forget>),
}

/// Answers a [`Request`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Response {
    /// The root hashes are equal.
    Same,
    /// The answer to `List`.
    Digests {
        /// In the order of their nodes.
        digests: Vec<Digest>,
        /// Whether there are more after the last of these.
        more: bool,
    },
    /// The answer to `Pull`.
    Pages {
        /// What fitted.
        pages: Vec<Page>,
        /// Whether the asker should pull again, having applied these.
        more: bool,
    },
    /// It was done.
    Done,
    /// The root hashes differ. These are the hashes of the 64 parts of the table: a node belongs to the part that the lowest six bits of
    /// its id's first byte number.
    Parts(Vec<u64>),
}

/// What came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Received<T> {
    /// A message.
    Known(T),
    /// A kind of message that only a newer version knows.
    Unknown,
}

/// A message of this crate.
pub trait Message: Serialize + DeserializeOwned {
    /// How many kinds this build knows; bincode numbers them from 0 in their order.
    const KINDS: u8;
}

impl Message for Gossip {
    const KINDS: u8 = 4;
}
impl Message for Request {
    const KINDS: u8 = 7;
}
impl Message for Response {
    const KINDS: u8 = 5;
}

/// The bytes of a message.
pub fn encode<T: Message>(message: &T) -> Vec<u8> {
    let mut bytes = vec![WIRE_VERSION];
    bytes.extend(codec::encode(message));
    bytes
}

/// Reads a message.
///
/// # Errors
/// The bytes are too long, malformed, or of another wire version. Count them; nothing was used.
pub fn decode<T: Message>(bytes: &[u8]) -> Result<Received<T>, DecodeError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    match bytes {
        [] => Err(DecodeError::Malformed),
        // Below 251 a variable-length integer is its own byte.
        [WIRE_VERSION, kind, ..] if *kind >= T::KINDS && *kind < 251 => Ok(Received::Unknown),
        [WIRE_VERSION, message @ ..] => codec::decode(message).map(Received::Known),
        [version, ..] => Err(DecodeError::Version(*version)),
    }
}

#[cfg(test)]
mod tests;
