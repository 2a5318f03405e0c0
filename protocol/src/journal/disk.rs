//! How a journal's pieces are written to a disk: in the wire's format, which is frozen and bounded.

use super::feed::Entry;
use crate::{
    seen::Seen,
    wire::codec::{self, DecodeError},
};

/// The entries of a run.
pub fn entries_to_bytes(entries: &Vec<Entry>) -> Vec<u8> {
    codec::encode(entries)
}

/// Reads the entries of a run.
///
/// # Errors
/// The bytes are not what was written: the disk is damaged.
pub fn entries_from_bytes(bytes: &[u8]) -> Result<Vec<Entry>, DecodeError> {
    codec::decode(bytes)
}

/// Which entries of a feed there are.
pub fn seen_to_bytes(seen: &Seen) -> Vec<u8> {
    codec::encode(seen)
}

/// Reads which entries of a feed there are.
///
/// # Errors
/// The bytes are not what was written: the disk is damaged.
pub fn seen_from_bytes(bytes: &[u8]) -> Result<Seen, DecodeError> {
    let seen: Seen = codec::decode(bytes)?;
    if seen.is_well_formed() { Ok(seen) } else { Err(DecodeError::Malformed) }
}
