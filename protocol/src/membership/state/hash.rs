//! Computes the `Hash` of an entry, and combines the hashes of a set by XOR. By such hashes, two nodes
//! compare their tables.

use crate::record::{Entry, Key, name_of_part};

/// First 16 bytes of a BLAKE3 hash. The hash of a set is the XOR of the hashes of its elements.
pub(crate) type Hash = [u8; 16];

pub(super) fn xor(hash: &mut Hash, other: &Hash) {
    hash.iter_mut().zip(other).for_each(|(a, b)| *a ^= b);
}

pub(super) fn truncate(hash: &blake3::Hash) -> Hash {
    let mut short = Hash::default();
    short.copy_from_slice(&hash.as_bytes()[..16]);
    short
}

/// Hash of an entry's key and version. The value is left out, because an owner never gives two values to one
/// version.
pub(super) fn entry_hash(entry: &Entry) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&entry.fact.version.0.to_le_bytes());
    match &entry.fact.key {
        Key::Header => hasher.update(&[0]),
        Key::Instance(id) => hasher.update(&[1]).update(id.as_bytes()),
        Key::Kv(path) => hasher.update(&[2]).update(path.as_bytes()),
        // Nodes of version 2 know the key as [`Key::Other`] and hash it the same way.
        Key::Part(id, number) => hasher.update(&[3]).update(name_of_part(id, *number).as_bytes()),
        Key::Other(kind, name) => hasher.update(&[*kind]).update(name.as_bytes()),
    };
    truncate(&hasher.finalize())
}
