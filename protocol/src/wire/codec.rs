//! The one place that knows bincode.
//!
//! bincode 2.0.1 was asked for. It is unmaintained since 2025 (RUSTSEC-2025-0141; 3.0.0 is a tombstone), and its format is
//! frozen, which for a wire format is a virtue: the version is pinned, nothing else in the project names the crate, and the
//! golden-bytes tests of `wire` would notice a difference. Format: <https://docs.rs/bincode/2.0.1/bincode/spec/index.html>
//! (variable-length integers, little endian, no field names).
//!
//! Bounds: a decoder never allocates more than [`MESSAGE_BYTES_MAX`] for one message, whatever lengths the message claims, and a
//! message followed by anything is refused, and so is one whose integers take more bytes than they need: two byte strings never mean
//! the same message. Gossip is told apart by its bytes; otherwise one message in many spellings would flood many times.

use serde::{Serialize, de::DeserializeOwned};

/// The longest message a node sends or reads. Design, section 3.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Why bytes were refused. Nothing of them was used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Longer than the bound; not looked at.
    #[error("message of {0} bytes is over the limit of {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// Not in the format, or claims lengths over the bound.
    #[error("malformed message")]
    Malformed,
    /// A whole message, and then more.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// A whole message, in other bytes than this build would write it.
    #[error("not the shortest encoding of the message")]
    Spelling,
    /// The first byte names a version of the protocol that this build does not speak.
    #[error("unknown wire version {0}")]
    Version(u8),
}

/// Encodes anything of this crate.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Encoding into memory fails only for types whose length serde cannot know, and the wire has none.
    bincode::serde::encode_to_vec(value, bincode::config::standard()).unwrap_or_default()
}

/// Decodes exactly `bytes`.
pub(crate) fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let (value, used) = decode_prefix(bytes)?;
    if used < bytes.len() {
        return Err(DecodeError::Trailing(bytes.len() - used));
    }
    if encode(&value) != bytes {
        return Err(DecodeError::Spelling);
    }
    Ok(value)
}

/// Decodes the fields this build knows and says how many bytes they took. For values only, never for messages: a newer version
/// may append fields to a value, and they must survive being relayed by us.
pub(crate) fn decode_prefix<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), DecodeError> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(DecodeError::TooLong(bytes.len()));
    }
    let config = bincode::config::standard().with_limit::<MESSAGE_BYTES_MAX>();
    bincode::serde::decode_from_slice(bytes, config).map_err(|_| DecodeError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_length_is_refused_before_it_is_allocated() {
        // 0xfc announces a 32-bit length: four gigabytes of nothing.
        assert_eq!(decode::<Vec<u8>>(&[0xfc, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]), Err(DecodeError::Malformed));
        assert_eq!(decode::<Vec<(u64, u64)>>(&[0xfc, 0xff, 0xff, 0xff, 0x00]), Err(DecodeError::Malformed));
    }

    #[test]
    fn a_message_has_one_spelling() {
        assert_eq!(decode::<u64>(&[5]), Ok(5));
        // 0xfb announces 16 bits.
        assert_eq!(decode::<u64>(&[0xfb, 5, 0]), Err(DecodeError::Spelling));
        assert_eq!(decode::<u64>(&[0xfb, 0xfb, 0]), Ok(0xfb));
    }

    #[test]
    fn what_follows_a_message_is_refused() {
        assert_eq!(decode::<u8>(&[5]), Ok(5));
        assert_eq!(decode::<u8>(&[5, 0]), Err(DecodeError::Trailing(1)));
        assert_eq!(decode::<u8>(&[]), Err(DecodeError::Malformed));
        assert_eq!(
            decode::<u8>(&vec![0; MESSAGE_BYTES_MAX + 1]),
            Err(DecodeError::TooLong(MESSAGE_BYTES_MAX + 1))
        );
    }
}
