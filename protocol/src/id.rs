//! Identity of a node (its Ed25519 key, [`NodeId`] and signatures), and the numbers that order its
//! statements: incarnation (one run of the node) and version (one statement of that run).
//!
//! An Ed25519 key identifies a node. The public half is its [`NodeId`], written as libp2p writes a PeerId, so
//! that `/members` and libp2p's own tools print the same text.

use std::{cell::RefCell, fmt, str::FromStr};

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

/// First bytes of the PeerId of an Ed25519 key: an identity multihash (0x00) of 36 bytes, which contain a
/// protobuf of key type 1 (Ed25519) and 32 bytes of key. Source: libp2p specs, `peer-ids/peer-ids.md`.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// Id of a node: its Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId([u8; 32]);

/// Error of a text or byte string that is not a [`NodeId`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not the id of a node: expected the PeerId of an Ed25519 key, such as 12D3KooW…")]
pub struct NotANodeId;

impl NodeId {
    /// Id with this public key. If the bytes are not a point of the curve, no signature verifies under the
    /// id.
    pub fn from_public_key(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Public key.
    pub fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// Binary form of the libp2p PeerId.
    pub fn to_peer_id_bytes(&self) -> [u8; 38] {
        let mut bytes = [0; 38];
        bytes[..6].copy_from_slice(&PEER_ID_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }

    /// Id that a libp2p PeerId contains.
    ///
    /// # Errors
    /// The PeerId is of another kind of key.
    pub fn from_peer_id_bytes(bytes: &[u8]) -> Result<Self, NotANodeId> {
        let key = bytes.strip_prefix(&PEER_ID_PREFIX).ok_or(NotANodeId)?;
        key.try_into().map(Self).map_err(|_| NotANodeId)
    }

    /// Last six hexadecimal digits of the key. They distinguish the nodes of one cluster in log lines and
    /// names.
    pub fn short(&self) -> String {
        self.0[29..].iter().map(|b| format!("{b:02x}")).collect()
    }

    /// Whether this node signed `message`.
    pub(crate) fn has_signed(&self, message: &[u8], signature: &Signature) -> bool {
        #[cfg(feature = "sim")]
        return verified::once(self, message, signature, || self.verify(message, signature));
        #[cfg(not(feature = "sim"))]
        self.verify(message, signature)
    }

    fn verify(&self, message: &[u8], signature: &Signature) -> bool {
        // `verify_strict` also refuses keys of small order, under which one signature is valid for many
        // messages.
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| {
            key.verify_strict(message, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok()
        })
    }
}

/// Cache of verified signatures, for simulations, in which a thousand nodes verify the same signatures. The
/// result still depends on the arguments alone.
#[cfg(feature = "sim")]
mod verified {
    use std::{cell::RefCell, collections::BTreeSet};

    use super::{NodeId, Signature};

    /// Signatures that each thread caches, 32 bytes each. A full cache is cleared.
    const MAX: usize = 256 * 1024;

    thread_local!(static VERIFIED: RefCell<BTreeSet<[u8; 32]>> = const { RefCell::new(BTreeSet::new()) });

    pub(super) fn once(
        by: &NodeId,
        message: &[u8],
        signature: &Signature,
        verify: impl Fn() -> bool,
    ) -> bool {
        let mut question = blake3::Hasher::new();
        question.update(&by.0).update(&signature.0).update(message);
        let question = *question.finalize().as_bytes();
        VERIFIED.with_borrow_mut(|verified| {
            if verified.contains(&question) {
                return true;
            }
            let valid = verify();
            if valid {
                if verified.len() >= MAX {
                    verified.clear();
                }
                verified.insert(question);
            }
            valid
        })
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        thread_local!(static LAST: RefCell<(NodeId, String)> = const { RefCell::new((NodeId([0; 32]), String::new())) });
        // A thread that answers clients formats one id many times, and encoding in base 58 takes a
        // microsecond.
        LAST.with_borrow_mut(|(id, text)| {
            if id != self || text.is_empty() {
                *text = bs58::encode(self.to_peer_id_bytes()).into_string();
                *id = *self;
            }
            f.write_str(text)
        })
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for NodeId {
    type Err = NotANodeId;
    fn from_str(text: &str) -> Result<Self, NotANodeId> {
        // A PeerId of an Ed25519 key has 52 characters. A much longer text is refused before it is decoded.
        if text.len() > 64 {
            return Err(NotANodeId);
        }
        let bytes = bs58::decode(text).into_vec().map_err(|_| NotANodeId)?;
        Self::from_peer_id_bytes(&bytes)
    }
}

/// Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signature(pub(crate) [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}…", self.0[0], self.0[1])
    }
}

// The array is split in two, because serde supports arrays of up to 32 elements only. bincode writes no
// length for either half: 64 bytes in all.
impl Serialize for Signature {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let (left, right) = self.0.split_at(32);
        let halves: ([u8; 32], [u8; 32]) = (
            left.try_into().map_err(serde::ser::Error::custom)?,
            right.try_into().map_err(serde::ser::Error::custom)?,
        );
        halves.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let (left, right) = <([u8; 32], [u8; 32])>::deserialize(d)?;
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&left);
        bytes[32..].copy_from_slice(&right);
        Ok(Self(bytes))
    }
}

/// Secret key of a node. `Debug` prints the public half only, and dropping an `Identity` wipes the key from
/// memory.
pub struct Identity(SigningKey);

impl Identity {
    /// Identity with this secret seed (RFC 8032): 32 bytes from a cryptographically secure source.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The id, which is the public half of the key.
    pub fn id(&self) -> NodeId {
        NodeId(self.0.verifying_key().to_bytes())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?})", self.id())
    }
}

/// Incarnation: one life of a node. The number is the time of its start in milliseconds since the Unix epoch,
/// and higher than the number of every earlier life. A higher incarnation replaces all statements of a lower
/// one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// Formats the time at which the incarnation started.
impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::rfc3339::rfc3339_ms(self.0))
    }
}

/// Number of a statement within one incarnation, counted from 1 without gaps. Zero: nothing is stated yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
pub struct Version(pub u64);

impl Version {
    /// The next number.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_and_read_as_a_libp2p_peer_id() {
        let id = Identity::from_seed(&[7; 32]).id();
        assert!(id.to_string().starts_with("12D3KooW"), "{id}");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("12D3KooW".parse::<NodeId>(), Err(NotANodeId));
        assert_eq!("1".repeat(100_000).parse::<NodeId>(), Err(NotANodeId));
    }

    #[test]
    fn a_signature_fits_one_message_of_one_node() {
        let (a, b) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
        let signature = a.sign(b"hello");
        assert!(a.id().has_signed(b"hello", &signature));
        assert!(!a.id().has_signed(b"hellp", &signature));
        assert!(!b.id().has_signed(b"hello", &signature));
        assert!(!NodeId::from_public_key([0; 32]).has_signed(b"hello", &signature));
    }
}
