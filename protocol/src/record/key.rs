//! [`Key`] of an entry: the subject of a fact, as a kind number and a name.

use serde::{Deserialize, Serialize};

/// Key of an entry.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(from = "RawKey", into = "RawKey")]
pub enum Key {
    /// The node itself: a [`Header`](super::Header). Every incarnation begins with one.
    Header,
    /// The instance with this id: an [`Instance`](super::Instance).
    Instance(String),
    /// A path of the replicated key/value store.
    Kv(String),
    /// Part of the instance with this id, numbered from 0: see [`Overflow`](super::Overflow). Version 2
    /// reads it as `Other(3, _)`.
    Part(String, u16),
    /// Key of a kind that only a newer version knows. Its entry is stored and relayed.
    Other(u8, String),
}

#[derive(Serialize, Deserialize)]
struct RawKey(u8, String);

impl From<RawKey> for Key {
    fn from(RawKey(kind, name): RawKey) -> Self {
        match kind {
            0 if name.is_empty() => Self::Header,
            1 => Self::Instance(name),
            2 => Self::Kv(name),
            3 => match part_of_name(&name) {
                Some((id, number)) => Self::Part(id, number),
                None => Self::Other(kind, name),
            },
            _ => Self::Other(kind, name),
        }
    }
}

impl From<Key> for RawKey {
    fn from(key: Key) -> Self {
        match key {
            Key::Header => Self(0, String::new()),
            Key::Instance(id) => Self(1, id),
            Key::Kv(path) => Self(2, path),
            Key::Part(id, number) => Self(3, name_of_part(&id, number)),
            Key::Other(kind, name) => Self(kind, name),
        }
    }
}

/// Name of a part's key. The number goes first, because an id may contain any character.
pub(crate) fn name_of_part(id: &str, number: u16) -> String {
    format!("{number}/{id}")
}

/// Parses a name that `name_of_part` formatted, and refuses any other spelling.
fn part_of_name(name: &str) -> Option<(String, u16)> {
    let (digits, id) = name.split_once('/')?;
    let number = digits.parse::<u16>().ok()?;
    (number.to_string() == digits).then(|| (id.to_owned(), number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::codec;

    #[test]
    fn a_part_is_a_key_of_kind_3_and_every_name_of_that_kind_is_one_key() {
        let key = |name: &str| Key::from(RawKey(3, name.into()));
        assert_eq!(key("7/web/8:a"), Key::Part("web/8:a".into(), 7));
        for other in ["", "7", "/a", "07/a", "+7/a", "65536/a", "-1/a", " 7/a"] {
            assert_eq!(key(other), Key::Other(3, other.into()));
        }
        for key in [key("65535/"), key("0/0/a"), key("00/a")] {
            assert_eq!(codec::decode::<Key>(&codec::encode(&key)), Ok(key));
        }
        let bytes = codec::encode(&Key::Part("a".into(), 1));
        assert_eq!(bytes, codec::encode(&(3u8, "1/a")));
    }

    #[test]
    fn a_kind_of_a_newer_version_survives_us() {
        let key = Key::Other(99, "x".into());
        assert_eq!(codec::decode::<Key>(&codec::encode(&key)), Ok(key));
    }
}
