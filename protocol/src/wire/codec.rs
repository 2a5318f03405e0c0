//! Codec of messages and values: bincode 2.0.1, which this file alone uses.
//!
//! bincode is unmaintained since 2025 (RUSTSEC-2025-0141; 3.0.0 is a tombstone), so its format is frozen, as
//! a wire format should be. The version is pinned, and the golden-bytes tests of `wire` would detect a
//! change. Format: <https://docs.rs/bincode/2.0.1/bincode/spec/index.html> (variable-length integers, little
//! endian, no field names).
//!
//! Bounds: decoding a message allocates at most [`MESSAGE_BYTES_MAX`], even if it claims greater lengths.
//! Bytes after a message are refused, and so are integers in more bytes than they need, so that each message
//! has one encoding. Gossip is identified by its content, so a message with many encodings would flood many
//! times.

use serde::{Serialize, de::DeserializeOwned};

/// Longest message in bytes.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Reason for which bytes were refused. None of them was used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The message is over the limit and was not decoded.
    #[error("message of {0} bytes is over the limit of {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// The bytes do not have the format, or claim lengths over the limit.
    #[error("malformed message")]
    Malformed,
    /// Further bytes follow the message.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// The message has another encoding than the one that this build writes.
    #[error("not the shortest encoding of the message")]
    Spelling,
    /// The first byte names a wire version that this build does not know.
    #[error("unknown wire version {0}")]
    Version(u8),
}

/// Encodes a value of this crate.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Encoding to memory fails only for values of unknown length, and no message has any.
    bincode::serde::encode_to_vec(value, bincode::config::standard()).unwrap_or_default()
}

/// Decodes a message. Bytes after the message are refused.
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

/// Decodes the fields that this build knows, and returns the number of bytes used. Only for values: a newer
/// version may append fields to a value, and they must remain when the value is relayed.
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
        // 0xfc announces a 32-bit length: four gigabytes that do not follow.
        assert_eq!(decode::<Vec<u8>>(&[0xfc, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]), Err(DecodeError::Malformed));
        assert_eq!(decode::<Vec<(u64, u64)>>(&[0xfc, 0xff, 0xff, 0xff, 0x00]), Err(DecodeError::Malformed));
    }

    #[test]
    fn a_message_has_one_spelling() {
        assert_eq!(decode::<u64>(&[5]), Ok(5));
        // 0xfb announces a 16-bit integer.
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
