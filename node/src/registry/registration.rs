//! [`Registration`]: data type of a valid registration (instance, checks, fields of Consul's form), as it is
//! stored. The parsers, which validate, are in `input.rs` and `consul_input.rs`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use hearsay_protocol::{ID_CHARS_MAX, NamedPort};
use serde::{Deserialize, Serialize};

use super::{
    address::{Scheme, authority},
    checks::{CheckKind, CheckSpec},
};

/// Maximum number of checks of a registration.
pub const CHECKS_MAX: usize = 16;
/// Maximum number of bytes of all tags of a registration together.
pub const TAGS_BYTES_MAX: usize = 16 * 1024;
/// The longest key of meta, in bytes.
pub const META_KEY_BYTES_MAX: usize = 128;
/// The longest value of meta, in bytes.
pub const META_VALUE_BYTES_MAX: usize = 512;
/// Maximum number of services that a registration requires. Guess; far above the dependencies of a program.
pub const REQUIRES_MAX: usize = 64;

/// Dialect: the JSON form in which a program registered. Answers and notifications use the same form.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// The native form.
    #[default]
    Native,
    /// Dialect 1, with `ServiceName`, `ServiceURL`, `RequiredServices`, `ServiceUpdateURL`, `HeartbeatURL`.
    #[serde(rename = "one")]
    ServiceUrl,
    /// Dialect 2, with `Name`, `Addr`, `RequiredServices`.
    #[serde(rename = "two")]
    NameAddr,
}

/// A validated registration.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Registration {
    /// The id of the instance, unique on this node.
    pub id: String,
    /// The name of the service.
    pub service: String,
    /// The scheme of the instance's origin.
    pub scheme: Scheme,
    /// The host that other nodes show for this instance. `None`: the program runs on this machine, so they
    /// show the node's advertised addresses.
    pub host: Option<String>,
    /// The host that this node's checks and notifications connect to: as registered, loopback included.
    pub local_host: String,
    /// The TCP port; 0: none.
    pub port: u16,
    /// Named ports.
    pub ports: Vec<NamedPort>,
    /// Tags.
    pub tags: Vec<String>,
    /// Metadata.
    pub meta: BTreeMap<String, String>,
    /// The zone, if it differs from the node's.
    pub zone: Option<String>,
    /// The weight in load balancing.
    pub weight: Option<u16>,
    /// The services that it depends on.
    pub requires: BTreeSet<String>,
    /// The URL that notifications of changes of `requires` are posted to.
    pub updates: Option<String>,
    /// The dialect of the request.
    pub dialect: Dialect,
    /// Health checks, at most [`CHECKS_MAX`].
    pub checks: Vec<CheckSpec>,
    /// The address of the caller, if the caller had no other proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered_from: Option<IpAddr>,
    /// Fields of Consul's form, where it registered in that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consul: Option<ConsulFields>,
}

/// Fields of a registration in Consul's form on which the node does not act. They are answered as they were
/// sent: clients compare.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ConsulFields {
    /// The address, empty where none was sent.
    pub address: String,
    /// Further addresses, by their tags.
    pub tagged_addresses: BTreeMap<String, TaggedAddress>,
    /// The share of requests while a check warns.
    pub warning_weight: u16,
    /// Whether servers of Consul may change the tags. Here none can.
    pub enable_tag_override: bool,
    /// Fields of the checks, by their ids.
    pub checks: BTreeMap<String, ConsulCheck>,
}

/// An address under a tag.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TaggedAddress {
    /// The host.
    pub address: String,
    /// The port; 0 where none was sent.
    pub port: u16,
}

/// Fields of a check in Consul's form on which the node does not act.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ConsulCheck {
    /// Notes for people.
    pub notes: String,
    /// The timeout as it was sent. The effective one is below the interval.
    pub timeout: Option<Duration>,
}

impl Registration {
    /// Returns the origin at which this node reaches the program, `http://host:port`.
    pub fn local_origin(&self) -> String {
        format!("{}://{}", self.scheme, authority(&self.local_host, self.port))
    }

    /// Returns the `host:port` at which this node reaches the program.
    pub fn local_address(&self) -> String {
        authority(&self.local_host, self.port)
    }

    /// Whether a check runs a command.
    pub(super) fn has_exec(&self) -> bool {
        self.checks.iter().any(|check| matches!(check.kind, CheckKind::Exec { .. }))
    }

    /// Returns the id for a registration without one, from service, address and port: registering again
    /// replaces it.
    pub(super) fn derived_id(&self, suffix: &str) -> String {
        let place = self.host.as_deref().unwrap_or(suffix);
        let id = match self.port {
            0 => format!("{}-{place}", self.service),
            port if self.host.is_none() => format!("{}-{port}-{place}", self.service),
            port => format!("{}-{place}-{port}", self.service),
        };
        if id.len() <= ID_CHARS_MAX {
            return id;
        }
        let hash = blake3::hash(id.as_bytes()).to_hex();
        format!("{}-{}", self.service, &hash[..16])
    }
}
