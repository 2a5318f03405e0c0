//! Encodes and decodes what the journal's database stores: the entries of a run (written together) and the
//! extent of a feed (the versions seen of one writer). Uses the frozen, bounded codec of messages.

use super::feed::JournalEntry;
use crate::{
    version_set::VersionSet,
    wire::codec::{self, DecodeError},
};

/// Encodes the entries of a run.
pub fn entries_to_bytes(entries: &Vec<JournalEntry>) -> Vec<u8> {
    codec::encode(entries)
}

/// Decodes the entries of a run.
///
/// # Errors
/// The bytes differ from those written: the disk is damaged.
pub fn entries_from_bytes(bytes: &[u8]) -> Result<Vec<JournalEntry>, DecodeError> {
    codec::decode(bytes)
}

/// Encodes the extent of a feed.
pub fn seen_to_bytes(seen: &VersionSet) -> Vec<u8> {
    codec::encode(seen)
}

/// Decodes the extent of a feed.
///
/// # Errors
/// The bytes differ from those written: the disk is damaged.
pub fn seen_from_bytes(bytes: &[u8]) -> Result<VersionSet, DecodeError> {
    let seen: VersionSet = codec::decode(bytes)?;
    if seen.is_well_formed() { Ok(seen) } else { Err(DecodeError::Malformed) }
}
