//! A registration that has been checked, as it is stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use hearsay_protocol::record::{ID_CHARS_MAX, NamedPort};
use serde::{Deserialize, Serialize};

use super::{
    address::{Scheme, authority},
    checks::{CheckKind, CheckSpec},
};

/// The most checks of a registration.
pub const CHECKS_MAX: usize = 16;
/// The most bytes of all tags of a registration together.
pub const TAGS_BYTES_MAX: usize = 16 * 1024;
/// The longest key of meta, in bytes.
pub const META_KEY_BYTES_MAX: usize = 128;
/// The longest value of meta, in bytes.
pub const META_VALUE_BYTES_MAX: usize = 512;
/// The most services that a registration requires. Guess: a program with more dependencies has other troubles.
pub const REQUIRES_MAX: usize = 64;

/// The form in which a program registered: what it is answered and how it is notified follow it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// This project's own.
    #[default]
    Native,
    /// With `ServiceName`, `ServiceURL`, `RequiredServices`, `ServiceUpdateURL`, `HeartbeatURL`.
    One,
    /// With `Name`, `Addr`, `RequiredServices`.
    Two,
}

/// A registration.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Registration {
    /// Its id, unique on this node.
    pub id: String,
    /// The service.
    pub service: String,
    /// The scheme of its origin.
    pub scheme: Scheme,
    /// The host that the table states. `None`: the addresses that the node advertises, because the program is on this machine.
    pub host: Option<String>,
    /// The host that this node's own checks and notifications use: what was registered, a loopback address included.
    pub local_host: String,
    /// Its TCP port; 0 where it has none.
    pub port: u16,
    /// Its named ports.
    pub ports: Vec<NamedPort>,
    /// Labels.
    pub tags: Vec<String>,
    /// Free pairs.
    pub meta: BTreeMap<String, String>,
    /// Where it stands, if not where its node does.
    pub zone: Option<String>,
    /// Its share of requests.
    pub weight: Option<u16>,
    /// The services that it depends on.
    pub requires: BTreeSet<String>,
    /// Where changes of `requires` are posted: a URL.
    pub updates: Option<String>,
    /// In which form it registered.
    pub dialect: Dialect,
    /// Its checks, at most [`CHECKS_MAX`].
    pub checks: Vec<CheckSpec>,
    /// The address of the caller that registered it, where no more than that is known of who it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered_from: Option<IpAddr>,
}

impl Registration {
    /// The origin by which this node reaches it, `http://host:port`.
    pub fn local_origin(&self) -> String {
        format!("{}://{}", self.scheme, authority(&self.local_host, self.port))
    }

    /// `host:port` by which this node reaches it.
    pub fn local_address(&self) -> String {
        authority(&self.local_host, self.port)
    }

    /// Whether any of its checks runs a command.
    pub(super) fn has_exec(&self) -> bool {
        self.checks.iter().any(|check| matches!(check.kind, CheckKind::Exec { .. }))
    }

    /// The id of one that states none: out of name, address and port, so that registering again replaces it.
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
