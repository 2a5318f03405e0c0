//! [`Change`]s of the key/value store: encodes them as bodies of journal entries, decodes and checks them,
//! and splits large values and deletions into several entries.
//!
//! A body is a header in JSON, a line feed, and the bytes of the value. An entry holds 64 KiB, so a larger
//! value is split into parts, which take effect together. A version skips entries that it cannot decode.

use serde::{Deserialize, Serialize};

use crate::journal::EpochFormat;

/// Maximum length of a key, in bytes of UTF-8.
pub const KV_KEY_BYTES_MAX: usize = 512;
/// Maximum length of a value, in bytes.
pub const KV_VALUE_BYTES_MAX: usize = 128 * 1024;
/// Bytes of a value in one entry. Leaves 6 KiB of an entry for the header: a key of control characters takes
/// six times its length in JSON.
const PART_BYTES: usize = 58 * 1024;
/// Maximum number of parts of a value.
pub(super) const PARTS_MAX: usize = KV_VALUE_BYTES_MAX.div_ceil(PART_BYTES);
/// Bytes of the keys in one deletion. JSON at most doubles printable characters.
const DELETED_BYTES_MAX: usize = 8 * 1024;

/// Encoding of the epoch in a body: a mark and eight bytes before the header, which begins with a brace.
pub(super) const EPOCHS: EpochFormat = EpochFormat { read: epoch_of, write: with_epoch };
const EPOCH_MARK: u8 = b'E';

/// A change of the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// Sets a value.
    Put(Put),
    /// Deletes keys.
    Delete(Vec<String>),
}

/// A value, or a part of one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Put {
    pub(super) key: String,
    /// A number for the client, as in Consul.
    pub(super) flags: u64,
    /// `None`: the value is whole.
    pub(super) part: Option<Part>,
    pub(super) value: Vec<u8>,
}

/// The place of a part in its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Part {
    /// Number of the write, unique for its writer.
    pub(super) write: u64,
    /// Position, from 0.
    pub(super) number: usize,
    /// Number of parts.
    pub(super) of: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "change")]
enum Header {
    Put {
        key: String,
        flags: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<Part>,
    },
    Delete {
        keys: Vec<String>,
    },
}

fn epoch_of(body: &[u8]) -> u64 {
    match body.split_first() {
        Some((&EPOCH_MARK, rest)) => rest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)),
        _ => 0,
    }
}

fn with_epoch(body: &[u8], epoch: u64) -> Vec<u8> {
    [&[EPOCH_MARK], &epoch.to_be_bytes()[..], body].concat()
}

impl Change {
    /// Encodes the body of an entry.
    pub(super) fn encode(&self) -> Vec<u8> {
        let (header, value) = match self {
            Self::Put(Put { key, flags, part, value }) => {
                (Header::Put { key: key.clone(), flags: *flags, part: *part }, value.as_slice())
            }
            Self::Delete(keys) => (Header::Delete { keys: keys.clone() }, &[][..]),
        };
        // Serialising texts and numbers cannot fail.
        let mut body = serde_json::to_vec(&header).unwrap_or_default();
        body.push(b'\n');
        body.extend_from_slice(value);
        body
    }

    /// Decodes the body of an entry. `None`: it is malformed, or beyond the bounds of this version.
    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let body = match body.split_first()? {
            (&EPOCH_MARK, rest) => rest.get(8..)?,
            _ => body,
        };
        let end = body.iter().position(|byte| *byte == b'\n')?;
        let (header, value) = (body.get(..end)?, body.get(end + 1..)?);
        match serde_json::from_slice(header).ok()? {
            Header::Put { key, flags, part } => {
                let put = Put { key, flags, part, value: value.to_vec() };
                put.is_sound().then_some(Self::Put(put))
            }
            Header::Delete { keys } => keys.iter().all(|key| is_key(key)).then_some(Self::Delete(keys)),
        }
    }
}

impl Put {
    /// Splits a value into the entries that it needs. `write` is a number that no other write of this writer
    /// has.
    pub(super) fn split(key: &str, flags: u64, value: Vec<u8>, write: u64) -> Vec<Change> {
        let put = |part, value| Change::Put(Self { key: key.to_owned(), flags, part, value });
        if value.len() <= PART_BYTES {
            return vec![put(None, value)];
        }
        let of = value.len().div_ceil(PART_BYTES);
        let parts = value.chunks(PART_BYTES).enumerate();
        parts.map(|(number, bytes)| put(Some(Part { write, number, of }), bytes.to_vec())).collect()
    }

    /// Gives the parts of a value another number of the write.
    pub(super) fn renumber(changes: &mut [Change], write: u64) {
        for change in changes {
            if let Change::Put(Self { part: Some(part), .. }) = change {
                part.write = write;
            }
        }
    }

    fn is_sound(&self) -> bool {
        let is_part = |part: Part| (2..=PARTS_MAX).contains(&part.of) && part.number < part.of;
        is_key(&self.key) && self.value.len() <= PART_BYTES && self.part.is_none_or(is_part)
    }
}

/// Splits a deletion of many keys into entries.
pub(super) fn split_deletion(keys: Vec<String>) -> Vec<Change> {
    let mut changes: Vec<Vec<String>> = Vec::new();
    let mut bytes = DELETED_BYTES_MAX;
    for key in keys {
        if bytes + key.len() > DELETED_BYTES_MAX {
            changes.push(Vec::new());
            bytes = 0;
        }
        bytes += key.len();
        if let Some(last) = changes.last_mut() {
            last.push(key);
        }
    }
    changes.into_iter().map(Change::Delete).collect()
}

fn is_key(key: &str) -> bool {
    (1..=KV_KEY_BYTES_MAX).contains(&key.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::BODY_BYTES_MAX;

    #[test]
    fn a_change_is_the_same_after_its_entry_with_and_without_an_epoch() {
        let put = Put { key: "a/ü\n".into(), flags: u64::MAX, part: None, value: vec![0, b'\n', 255] };
        for change in [Change::Put(put), Change::Delete(vec!["a".into(), "b/".into()])] {
            let body = change.encode();
            assert_eq!((Change::decode(&body), epoch_of(&body)), (Some(change.clone()), 0));
            let body = with_epoch(&body, 7);
            assert_eq!((Change::decode(&body), epoch_of(&body)), (Some(change), 7));
        }
    }

    #[test]
    fn the_largest_changes_fit_into_entries() {
        let key = "\u{1}".repeat(KV_KEY_BYTES_MAX);
        let parts = Put::split(&key, u64::MAX, vec![1; KV_VALUE_BYTES_MAX], u64::MAX);
        assert_eq!(parts.len(), PARTS_MAX);
        let deletion = split_deletion((0..1000).map(|_| key.clone()).collect());
        for change in parts.into_iter().chain(deletion) {
            let body = change.encode();
            assert!(body.len() + 64 <= BODY_BYTES_MAX, "{}", body.len());
            assert_eq!(Change::decode(&body), Some(change));
        }
    }

    #[test]
    fn bodies_of_other_forms_are_no_changes() {
        for body in
            [&b""[..], b"E", b"E1234567", b"{}\n", b"{\"change\":\"put\",\"key\":\"\",\"flags\":0}\n", b"x"]
        {
            assert_eq!(Change::decode(body), None, "{body:?}");
        }
    }
}
