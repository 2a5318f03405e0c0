//! [`Entry`]: a [`Fact`] with the signature of the node that states it.

use serde::{Deserialize, Serialize};

use super::{
    bounds::{ID_CHARS_MAX, Invalid, check_name},
    header::Header,
    instance::Instance,
    key::Key,
};
use crate::{
    Identity, Incarnation, NodeId, Version,
    id::Signature,
    wire::codec::{self, DecodeError},
};

/// Largest encoded entry in bytes, signature included.
pub const ENTRY_BYTES_MAX: usize = 8 * 1024;

/// Entry: one signed, versioned fact that a node states about itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The statement that is signed.
    pub fact: Fact,
    signature: Signature,
}

/// Content of an [`Entry`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fact {
    /// The node that states the fact about itself.
    pub node: NodeId,
    /// Incarnation of the node.
    pub incarnation: Incarnation,
    /// Number of the statement within the incarnation, from 1.
    pub version: Version,
    /// Key of the fact, which names its subject.
    pub key: Key,
    /// The new value; `None` is a tombstone, which deletes the key.
    pub value: Option<Vec<u8>>,
}

/// Why an entry was refused. Nothing of it was stored.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EntryError {
    /// The encoded entry is over [`ENTRY_BYTES_MAX`].
    #[error("entry of {0} bytes is over the limit of {ENTRY_BYTES_MAX}")]
    TooLarge(usize),
    /// The signature is not the owner's.
    #[error("the signature is not the owner's")]
    Forged,
    /// The value is out of bounds.
    #[error("invalid value: {0}")]
    Invalid(#[from] Invalid),
    /// The value cannot be decoded.
    #[error("malformed value")]
    Malformed,
}

impl From<DecodeError> for EntryError {
    fn from(_: DecodeError) -> Self {
        Self::Malformed
    }
}

/// Bytes to sign. They contain the cluster and the kind of statement, so that a signature is valid for no
/// other cluster or kind.
pub(crate) fn signed_bytes<T: Serialize>(kind: &str, cluster: &str, statement: &T) -> Vec<u8> {
    codec::encode(&("hearsay/1", kind, cluster, statement))
}

impl Fact {
    /// Signs the fact for a cluster.
    ///
    /// # Errors
    /// [`EntryError::TooLarge`]: shorten the value.
    pub fn sign(self, me: &Identity, cluster: &str) -> Result<Entry, EntryError> {
        debug_assert_eq!(self.node, me.id(), "a node speaks only for itself");
        let signature = me.sign(&signed_bytes("entry", cluster, &self));
        let entry = Entry { fact: self, signature };
        let bytes = entry.encoded_len();
        if bytes > ENTRY_BYTES_MAX { Err(EntryError::TooLarge(bytes)) } else { Ok(entry) }
    }
}

impl Entry {
    /// Checks size, value and signature of another node's entry. The signature comes last, because verifying
    /// it costs most.
    ///
    /// # Errors
    /// The first problem found. Drop and count the entry; do not relay it.
    pub fn check(&self, cluster: &str) -> Result<(), EntryError> {
        self.check_statement()?;
        let signed = signed_bytes("entry", cluster, &self.fact);
        if self.fact.node.has_signed(&signed, &self.signature) { Ok(()) } else { Err(EntryError::Forged) }
    }

    /// Checks size and value of an entry that this node has just signed.
    ///
    /// # Errors
    /// The first problem found. Do not state the entry.
    pub(crate) fn check_statement(&self) -> Result<(), EntryError> {
        let bytes = self.encoded_len();
        if bytes > ENTRY_BYTES_MAX {
            return Err(EntryError::TooLarge(bytes));
        }
        match (&self.fact.key, &self.fact.value) {
            (Key::Header, None) => return Err(EntryError::Malformed),
            (Key::Header, Some(value)) => Header::decode(value)?.check()?,
            (Key::Instance(id), Some(value)) => {
                check_name("instance id", id, ID_CHARS_MAX)?;
                Instance::decode(value)?.check()?;
            }
            (Key::Instance(_) | Key::Kv(_) | Key::Part(..) | Key::Other(..), _) => (),
        }
        Ok(())
    }

    /// Encoded size in bytes.
    pub fn encoded_len(&self) -> usize {
        codec::encode(self).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(me: &Identity, value: Option<Vec<u8>>) -> Fact {
        Fact {
            node: me.id(),
            incarnation: Incarnation(1),
            version: Version(1),
            key: Key::Kv("a".into()),
            value,
        }
    }

    #[test]
    fn an_entry_is_believed_only_as_its_owner_signed_it() {
        let (a, b) = (Identity::from_seed(&[1; 32]), Identity::from_seed(&[2; 32]));
        let entry = fact(&a, Some(b"x".to_vec())).sign(&a, "home").unwrap();
        assert_eq!(entry.check("home"), Ok(()));
        assert_eq!(entry.check("other"), Err(EntryError::Forged));
        let mut changed = entry.clone();
        changed.fact.version = Version(2);
        assert_eq!(changed.check("home"), Err(EntryError::Forged));
        let mut stolen = entry;
        stolen.fact.node = b.id();
        assert_eq!(stolen.check("home"), Err(EntryError::Forged));
    }

    #[test]
    fn an_entry_over_the_limit_is_refused_on_both_sides() {
        let me = Identity::from_seed(&[1; 32]);
        let error = fact(&me, Some(vec![0; ENTRY_BYTES_MAX])).sign(&me, "home").unwrap_err();
        assert!(matches!(error, EntryError::TooLarge(_)));
    }
}
