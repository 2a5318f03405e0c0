//! Instances: what a node offers in its own name or in a program's.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{ID_CHARS_MAX, Invalid, META_PAIRS_MAX, TAGS_MAX, check_count, check_name, check_service_name};
use crate::{
    record::NAME_CHARS_MAX,
    wire::codec::{self, DecodeError},
};

/// What an instance's own checks say. The worst of several counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub enum Health {
    /// Ready to serve.
    #[default]
    Passing,
    /// Serves, and something is not right.
    Warning,
    /// Does not serve.
    Critical,
}

impl Health {
    /// The word that `/services` and the Consul surface use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One address that offers a service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Instance {
    /// What it offers.
    pub service: String,
    /// Host name or IP address.
    pub address: String,
    /// TCP port; 0 where the service has none.
    pub port: u16,
    /// The origin, `http://host:port`.
    pub url: String,
    /// Labels to filter by.
    pub tags: Vec<String>,
    /// Free pairs.
    pub meta: BTreeMap<String, String>,
    /// What its checks say.
    pub health: Health,
    /// When it was registered, in milliseconds since the Unix epoch by its owner's clock.
    pub since_ms: u64,
    /// Who states it. This and what follows was appended in protocol version 3.
    pub origin: Origin,
    /// Its named ports. Empty where there is only `port`.
    pub ports: Vec<NamedPort>,
    /// Where it stands, if that is not its node's zone.
    pub zone: Option<String>,
    /// Its share of requests relative to others; `None` means [`WEIGHT_DEFAULT`].
    pub weight: Option<u16>,
    /// The services that it depends on.
    pub requires: Vec<String>,
    /// Its checks, as of their last change of status.
    pub checks: Vec<CheckSummary>,
    /// What did not fit into this entry; see [`Overflow`].
    pub overflow: Option<Overflow>,
}

/// The weight of an instance that states none.
pub const WEIGHT_DEFAULT: u16 = 1;

/// Who states an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Origin {
    /// A node before protocol version 3, which stated only its own roles.
    #[default]
    Unstated,
    /// The node itself: a role, served by its own HTTP.
    Role,
    /// A program that is registered with the node.
    Program,
}

/// A port with a name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NamedPort {
    /// Its name, such as `metrics`.
    pub name: String,
    /// The TCP port.
    pub port: u16,
    /// Whether it is the one in `port` of the instance. At most one of them is.
    pub is_default: bool,
}

/// A health check, as of its last change of status.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CheckSummary {
    /// Its id, unique on its node.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The kind, such as `http`.
    pub kind: String,
    /// What it says.
    pub status: Health,
    /// When the status changed, in milliseconds since the Unix epoch by its owner's clock.
    pub since_ms: u64,
    /// What was seen at that moment, at most [`CHECK_OUTPUT_BYTES_MAX`] bytes.
    pub output: String,
    /// How long the run took that changed the status, in milliseconds.
    pub took_ms: u32,
}

/// The longest output of a check that is gossiped, in bytes. The whole output stays with the holder.
pub const CHECK_OUTPUT_BYTES_MAX: usize = 256;

/// Says that the rest of an instance is in `Part` entries: its tags, pairs of meta and check summaries beyond those in the instance's own entry.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Overflow {
    /// How many parts there are, numbered from 0.
    pub parts: u16,
    /// The first 16 bytes of blake3 over the parts' values in their order.
    pub hash: [u8; 16],
}

impl Instance {
    /// The value of the instance's entry.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Reads a value. Fields that a newer version appended are passed over, and those that an older version lacks have their defaults.
    ///
    /// # Errors
    /// The value is not an instance.
    pub fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        // Each of the seven appended fields takes one byte, a zero, where it has its default.
        let padded = [value, &[0; 7]].concat();
        codec::decode_prefix(&padded).map(|(instance, _)| instance)
    }

    /// Checks every bound of the fields.
    ///
    /// # Errors
    /// Names the first field that is out of bounds.
    pub fn check(&self) -> Result<(), Invalid> {
        check_service_name("name", &self.service)?;
        check_name("address", &self.address, ID_CHARS_MAX)?;
        check_name("url", &self.url, 2048)?;
        check_count("tags", self.tags.len(), TAGS_MAX)?;
        self.tags.iter().try_for_each(|t| check_name("tags", t, ID_CHARS_MAX))?;
        check_count("meta", self.meta.len(), META_PAIRS_MAX)?;
        self.meta.keys().try_for_each(|k| check_name("meta", k, NAME_CHARS_MAX))
    }
}
