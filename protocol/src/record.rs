//! What a node states about itself: one signed, versioned fact at a time.
//!
//! Only its owner may speak for a node, and anybody may pass it on: the signature is inside. An [`Entry`] covers one key, so a node
//! with 5,000 instances changes one of them in one small message. Keys and values travel as opaque bytes below a small kind
//! number, and are understood one layer up; so an entry of a kind that only a newer version knows is stored, compared and relayed
//! by this one unharmed.

use serde::{Deserialize, Serialize};

use crate::{
    Identity, Incarnation, NodeId, Version,
    id::Signature,
    wire::codec::{self, DecodeError},
};

mod instance;
pub(crate) mod parts;
mod web_origin;

pub use instance::{
    CHECK_KIND_CHARS_MAX, CHECK_OUTPUT_BYTES_MAX, CHECKS_MAX, CheckSummary, Health, Instance, NamedPort,
    Origin, Overflow, PORTS_MAX, REQUIRES_MAX, WEIGHT_DEFAULT,
};
pub use parts::{INSTANCE_BYTES_MAX, check_size};
pub use web_origin::WebOrigin;

/// The largest encoded entry, signature included. Design, section 3.
pub const ENTRY_BYTES_MAX: usize = 8 * 1024;
/// The longest name of a node, service, role or zone, in characters (they are ASCII, so also in bytes).
pub const NAME_CHARS_MAX: usize = 128;
/// The most tags an instance carries.
pub const TAGS_MAX: usize = 64;
/// The most metadata pairs an instance carries.
pub const META_PAIRS_MAX: usize = 64;
/// The most swarm addresses a header carries. Guess: a host with more interfaces than this lists its first ones.
pub const ADDRESSES_MAX: usize = 16;

/// What an entry is about.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(from = "RawKey", into = "RawKey")]
pub enum Key {
    /// The node itself: a [`Header`]. Every incarnation begins with one.
    Header,
    /// The instance with this id: an [`Instance`].
    Instance(String),
    /// A key of the replicated key/value store.
    Kv(String),
    /// A part of the instance with this id, by its number from 0: see [`Overflow`]. Version 2 knows it as
    /// `Other(3, _)`.
    Part(String, u16),
    /// A kind of a newer version: kept and relayed, not understood.
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

/// The number goes first, because an id may hold any character.
pub(crate) fn name_of_part(id: &str, number: u16) -> String {
    format!("{number}/{id}")
}

/// Reads what [`name_of_part`] wrote, and no other spelling of it: two names never mean the same key.
fn part_of_name(name: &str) -> Option<(String, u16)> {
    let (digits, id) = name.split_once('/')?;
    let number = digits.parse::<u16>().ok()?;
    (number.to_string() == digits).then(|| (id.to_owned(), number))
}

/// One signed, versioned fact that a node states about itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// What is stated.
    pub fact: Fact,
    signature: Signature,
}

/// What is stated in an [`Entry`], by whom and when.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fact {
    /// Who speaks, and whom it is about.
    pub node: NodeId,
    /// In which of its lives.
    pub incarnation: Incarnation,
    /// Its how-manieth statement in that life.
    pub version: Version,
    /// About what.
    pub key: Key,
    /// The new value; `None` is a tombstone: the key is gone.
    pub value: Option<Vec<u8>>,
}

/// Why a well-formed entry was refused. Nothing was stored.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EntryError {
    /// The encoded entry is over [`ENTRY_BYTES_MAX`].
    #[error("entry of {0} bytes is over the limit of {ENTRY_BYTES_MAX}")]
    TooLarge(usize),
    /// The owner did not sign this.
    #[error("the signature is not the owner's")]
    Forged,
    /// The value is not one that its key allows.
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

/// Names the cluster and the kind of statement, so that a signature made for one can never be replayed as another.
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
    /// Checks size, signature and value of an entry that came from elsewhere. The costly signature comes last.
    ///
    /// # Errors
    /// Says what is wrong; the entry must then be dropped and counted, not relayed.
    pub fn check(&self, cluster: &str) -> Result<(), EntryError> {
        self.check_statement()?;
        let signed = signed_bytes("entry", cluster, &self.fact);
        if self.fact.node.has_signed(&signed, &self.signature) { Ok(()) } else { Err(EntryError::Forged) }
    }

    /// Checks size and value, for an entry that this node has just signed itself.
    ///
    /// # Errors
    /// Says what is wrong; the entry must then not be stated.
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

    /// How many bytes this takes in a message.
    pub fn encoded_len(&self) -> usize {
        codec::encode(self).len()
    }
}

/// What a value breaks: the field and the limit, in words for a person.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// The field, as a user would write it.
    pub field: &'static str,
    /// What is wrong with it, and what is allowed.
    pub problem: String,
}

impl Invalid {
    /// An error that names a field and what is wrong with it.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self { field, problem: problem.into() }
    }
}

/// The longest instance id, in characters. Longer than a name, because the default id joins a name and an address.
pub const ID_CHARS_MAX: usize = 256;

/// Checks a name: 1 to 128 characters out of letters, digits, space, `-`, `_` and `.`.
///
/// # Errors
/// Names the field and the limit.
pub fn check_service_name(field: &'static str, name: &str) -> Result<(), Invalid> {
    check_name(field, name, NAME_CHARS_MAX)?;
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || " -_.".contains(*c))) {
        None => Ok(()),
        Some(c) => Err(Invalid {
            field,
            problem: format!("{:?} is not allowed; use letters, digits, space, '-', '_' and '.'", c),
        }),
    }
}

/// Checks the length of a text and that it holds no control character, which could break a log line or a terminal.
pub(crate) fn check_name(field: &'static str, text: &str, chars_max: usize) -> Result<(), Invalid> {
    let chars = text.chars().count();
    if chars == 0 || chars > chars_max {
        return Err(Invalid {
            field,
            problem: format!("has {chars} characters; 1 to {chars_max} are allowed"),
        });
    }
    if text.chars().any(char::is_control) {
        return Err(Invalid { field, problem: "holds a control character".into() });
    }
    Ok(())
}

fn check_count(field: &'static str, count: usize, max: usize) -> Result<(), Invalid> {
    if count > max {
        return Err(Invalid { field, problem: format!("has {count} elements; at most {max} are allowed") });
    }
    Ok(())
}

/// Whether a node means to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Presence {
    /// It runs.
    #[default]
    Running,
    /// It has left on purpose. Outranks every suspicion.
    Left,
}

/// What a node says of itself as a whole. Any member can be dialled by what its header lists.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Header {
    /// Its name, unique among the live members.
    pub name: String,
    /// Where its swarm listens: multiaddrs without the trailing `/p2p`.
    pub addresses: Vec<String>,
    /// Where its HTTP listens, `host:port`.
    pub http: Option<String>,
    /// The plug-ins it runs.
    pub roles: Vec<String>,
    /// Where it stands (a rack, an availability zone), for those who prefer the near.
    pub zone: Option<String>,
    /// Its software version.
    pub software: String,
    /// The version of the protocol that it speaks.
    pub protocol: u16,
    /// Below this version its tombstones are collected: whoever lacks anything older must take the whole.
    pub floor: Version,
    /// Whether it is there to stay.
    pub presence: Presence,
    /// A random number drawn at its start, which tells two processes apart that share key and incarnation.
    pub boot: u64,
    /// Whether it keeps nothing: once its process is gone, its key is gone, and it never comes back. Appended in protocol version 1;
    /// a header without it says no.
    pub ephemeral: bool,
}

impl Header {
    /// The value of the header's entry.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads a value. Fields that a newer version appended are passed over, and one that an older version lacks is `false`.
    ///
    /// # Errors
    /// The value is not a header.
    pub fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        // `ephemeral` takes one byte at the end. A header that lacks it borrows this one; one that lacks more is still too short.
        let padded = [value, &[0]].concat();
        codec::decode_prefix(&padded).map(|(header, _)| header)
    }

    /// Checks every bound of the fields.
    ///
    /// # Errors
    /// Names the first field that is out of bounds.
    pub fn check(&self) -> Result<(), Invalid> {
        check_service_name("name", &self.name)?;
        check_count("addresses", self.addresses.len(), ADDRESSES_MAX)?;
        self.addresses.iter().try_for_each(|a| check_name("addresses", a, ID_CHARS_MAX))?;
        check_count("roles", self.roles.len(), TAGS_MAX)?;
        self.roles.iter().try_for_each(|r| check_service_name("roles", r))?;
        if let Some(http) = &self.http {
            check_name("http", http, ID_CHARS_MAX)?;
        }
        if let Some(zone) = &self.zone {
            check_service_name("zone", zone)?;
        }
        check_name("software", &self.software, NAME_CHARS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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

    #[test]
    fn a_name_says_which_field_and_which_limit_it_breaks() {
        assert!(check_service_name("name", "grade book-2_a.b").is_ok());
        let error = check_service_name("name", "a/b").unwrap_err().to_string();
        assert!(error.contains("name") && error.contains("'/'"), "{error}");
        let error = check_service_name("zone", &"x".repeat(129)).unwrap_err().to_string();
        assert!(error.contains("zone") && error.contains("128"), "{error}");
        assert!(check_service_name("name", "").is_err());
    }

    #[test]
    fn fields_and_kinds_of_a_newer_version_survive_us() {
        let instance = Instance {
            service: "web".into(),
            address: "10.0.0.1".into(),
            port: 80,
            url: "http://10.0.0.1:80".into(),
            tags: vec![],
            meta: BTreeMap::new(),
            health: Health::Passing,
            since_ms: 1,
            ..Instance::default()
        };
        let mut newer = instance.encode();
        newer.extend_from_slice(b"a field of the future");
        assert_eq!(Instance::decode(&newer), Ok(instance));
        let key = Key::Other(99, "x".into());
        assert_eq!(codec::decode::<Key>(&codec::encode(&key)), Ok(key));
    }

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

    /// The header as the version before states and reads it.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct HeaderBefore {
        name: String,
        addresses: Vec<String>,
        http: Option<String>,
        roles: Vec<String>,
        zone: Option<String>,
        software: String,
        protocol: u16,
        floor: Version,
        presence: Presence,
        boot: u64,
    }

    fn header(ephemeral: bool) -> Header {
        Header {
            name: "a".into(),
            addresses: vec!["/ip4/10.0.0.1/tcp/7600".into()],
            roles: vec!["log".into()],
            software: "s".into(),
            protocol: 1,
            floor: Version(2),
            boot: u64::MAX,
            ephemeral,
            ..Header::default()
        }
    }

    #[test]
    fn a_header_keeps_its_bytes() {
        let hex: String = header(true).encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "016101162f6970342f31302e302e302e312f7463702f373630300001036c6f67000173010200fdffffffffffffffff01"
        );
    }

    #[test]
    fn a_header_is_read_by_the_version_before_and_read_from_it() {
        let ours = header(true).encode();
        let (theirs, used) = codec::decode_prefix::<HeaderBefore>(&ours).unwrap();
        assert_eq!((theirs.name.as_str(), theirs.boot, used), ("a", u64::MAX, ours.len() - 1));
        let before = codec::encode(&theirs);
        assert_eq!(Header::decode(&before), Ok(header(false)), "it does not say");
        assert_eq!(Header::decode(&ours), Ok(header(true)));
        let newer = [ours.as_slice(), b"a field of the future"].concat();
        assert_eq!(Header::decode(&newer), Ok(header(true)));
        for length in 0..before.len() {
            assert_eq!(Header::decode(&before[..length]), Err(DecodeError::Malformed), "{length} bytes");
        }
    }
}
