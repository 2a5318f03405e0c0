//! [`Instance`]: the addresses at which a node, or a program registered with it, offers a service, and its
//! health and checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{
    bounds::{
        ID_CHARS_MAX, Invalid, META_PAIRS_MAX, NAME_CHARS_MAX, TAGS_MAX, check_count, check_name,
        check_service_name,
    },
    web_origin::check_origin,
};
use crate::wire::codec::{self, DecodeError};

/// Health of an instance: the worst status of its checks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub enum Health {
    /// Ready to serve.
    #[default]
    Passing,
    /// Serves with a problem.
    Warning,
    /// Does not serve.
    Critical,
}

impl Health {
    /// The word for this health in `/services` and in Consul's API.
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

/// Instance: one address that offers a service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Instance {
    /// Name of the service.
    pub service: String,
    /// Host name or IP address.
    pub address: String,
    /// TCP port; 0 if the service has none.
    pub port: u16,
    /// Origin, `http://host:port`. Another node's entry may have any text here: parse it with
    /// [`WebOrigin`](super::WebOrigin), or only display it.
    pub url: String,
    /// Tags, by which clients filter.
    pub tags: Vec<String>,
    /// Metadata pairs.
    pub meta: BTreeMap<String, String>,
    /// Health, as its checks determine it.
    pub health: Health,
    /// Time of registration, in milliseconds since the Unix epoch by its owner's clock.
    pub since_ms: u64,
    /// Kind of the instance: role or program. This field and the following were appended in protocol version
    /// 3.
    pub origin: Origin,
    /// Named ports. Empty if the instance has `port` alone.
    pub ports: Vec<NamedPort>,
    /// Zone, if it differs from the node's.
    pub zone: Option<String>,
    /// Share of requests relative to other instances; `None` means [`WEIGHT_DEFAULT`].
    pub weight: Option<u16>,
    /// Services that it depends on.
    pub requires: Vec<String>,
    /// Checks of the instance, as of their last change of status.
    pub checks: Vec<CheckSummary>,
    /// Reference to the parts of a large instance.
    pub overflow: Option<Overflow>,
}

/// Weight of an instance that states none.
pub const WEIGHT_DEFAULT: u16 = 1;

/// Kind of an instance: a role of its node, or a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Origin {
    /// Not stated: by a node before protocol version 3, which stated instances of its own roles only.
    #[default]
    Unstated,
    /// A role of the node, served by the node's own HTTP.
    Role,
    /// A program that is registered with the node, at the address given in the registration.
    Program,
    /// A program on the node's own host, reachable at each of the node's addresses.
    HostProgram,
}

/// A port with a name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NamedPort {
    /// Name, such as `metrics`.
    pub name: String,
    /// TCP port.
    pub port: u16,
    /// Whether this is the `port` of the instance. At most one named port is.
    pub is_default: bool,
}

/// Summary of a health check at its last change of status.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CheckSummary {
    /// Id, unique on the node.
    pub id: String,
    /// Name.
    pub name: String,
    /// Kind, such as `http`.
    pub kind: String,
    /// Status.
    pub status: Health,
    /// Time of the status change, in milliseconds since the Unix epoch by its owner's clock.
    pub since_ms: u64,
    /// Output of the run that changed the status, at most [`CHECK_OUTPUT_BYTES_MAX`] bytes.
    pub output: String,
    /// Duration of the run that changed the status, in milliseconds.
    pub took_ms: u32,
}

/// Longest URL of an instance, in characters.
const URL_CHARS_MAX: usize = 2048;
/// Named ports of an instance, at most.
pub(crate) const PORTS_MAX: usize = 32;
/// Services that an instance depends on, at most.
pub(crate) const REQUIRES_MAX: usize = 64;
/// Check summaries of an instance, at most: 16 checks, its maintenance, and that of its node.
pub(crate) const CHECKS_MAX: usize = 18;
/// Longest id of a check, in characters. The id of some checks is a prefix and the id of their instance.
const CHECK_ID_CHARS_MAX: usize = ID_CHARS_MAX + 64;
/// Longest kind of a check, in characters. Only the length is checked, not the kind itself, because newer
/// versions may have other kinds.
pub(crate) const CHECK_KIND_CHARS_MAX: usize = 32;

/// Longest gossiped output of a check, in bytes. The whole output stays on the node that runs the check.
pub const CHECK_OUTPUT_BYTES_MAX: usize = 256;

/// Reference to the parts of a large instance: the tags, metadata pairs and check summaries that do not fit
/// into its own entry.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Overflow {
    /// Number of parts, numbered from 0.
    pub parts: u16,
    /// First 16 bytes of the BLAKE3 hash over the parts' values in order.
    pub hash: [u8; 16],
}

impl Instance {
    /// Encodes the value of the instance's entry.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes a value. Skips fields that a newer version appended; fields that an older version lacks have
    /// their defaults.
    ///
    /// # Errors
    /// The value is not an instance.
    pub fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        // Each of the seven appended fields encodes its default as one zero byte.
        let padded = [value, &[0; 7]].concat();
        codec::decode_prefix(&padded).map(|(instance, _)| instance)
    }

    /// Checks the rule that this version adds to [`Self::check`] for its own instances: the URL is an origin.
    /// An older node may state another URL. Its entry is stored and relayed, but clients do not use the URL
    /// unparsed.
    ///
    /// # Errors
    /// The error names the field.
    pub fn check_stated(&self) -> Result<(), Invalid> {
        check_origin(&self.url)
    }

    /// Checks the bounds of all fields. Tags are bounded as in one entry; the parts of a large instance have
    /// separate bounds (see [`Overflow`]).
    ///
    /// # Errors
    /// Names the first field that is out of bounds.
    pub fn check(&self) -> Result<(), Invalid> {
        check_service_name("name", &self.service)?;
        check_name("address", &self.address, ID_CHARS_MAX)?;
        check_name("url", &self.url, URL_CHARS_MAX)?;
        check_count("tags", self.tags.len(), TAGS_MAX)?;
        self.tags.iter().try_for_each(|t| check_name("tags", t, ID_CHARS_MAX))?;
        check_meta(&self.meta)?;
        self.check_ports()?;
        if let Some(zone) = &self.zone {
            check_service_name("zone", zone)?;
        }
        check_count("requires", self.requires.len(), REQUIRES_MAX)?;
        self.requires.iter().try_for_each(|service| check_service_name("requires", service))?;
        check_checks(&self.checks)
    }

    fn check_ports(&self) -> Result<(), Invalid> {
        let invalid = |problem: String| Err(Invalid { field: "ports", problem });
        check_count("ports", self.ports.len(), PORTS_MAX)?;
        let mut names = BTreeSet::new();
        for port in &self.ports {
            check_service_name("ports", &port.name)?;
            if !names.insert(&port.name) {
                return invalid(format!("the name {:?} is given twice", port.name));
            }
        }
        let mut defaults = self.ports.iter().filter(|port| port.is_default);
        match (defaults.next(), defaults.next()) {
            (Some(_), Some(_)) => invalid("more than one of them is the default".into()),
            (Some(default), None) if default.port != self.port => invalid(format!(
                "the default one is {}, and the port of the instance is {}",
                default.port, self.port
            )),
            _ => Ok(()),
        }
    }
}

/// Checks metadata pairs.
pub(super) fn check_meta(meta: &BTreeMap<String, String>) -> Result<(), Invalid> {
    check_count("meta", meta.len(), META_PAIRS_MAX)?;
    meta.keys().try_for_each(|key| check_name("meta", key, NAME_CHARS_MAX))
}

/// Checks the summaries of checks. An output may be any text, because pages and terminals escape it.
pub(super) fn check_checks(checks: &[CheckSummary]) -> Result<(), Invalid> {
    check_count("checks", checks.len(), CHECKS_MAX)?;
    for check in checks {
        check_name("checks", &check.id, CHECK_ID_CHARS_MAX)?;
        // A check's name and kind may be empty.
        let optional = [(&check.name, CHECK_ID_CHARS_MAX), (&check.kind, CHECK_KIND_CHARS_MAX)];
        let mut given = optional.into_iter().filter(|(text, _)| !text.is_empty());
        given.try_for_each(|(text, chars_max)| check_name("checks", text, chars_max))?;
        let bytes = check.output.len();
        if bytes > CHECK_OUTPUT_BYTES_MAX {
            let problem =
                format!("an output has {bytes} bytes; at most {CHECK_OUTPUT_BYTES_MAX} are allowed");
            return Err(Invalid { field: "checks", problem });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The instance as protocol version 2 encodes and decodes it.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct InstanceBefore {
        service: String,
        address: String,
        port: u16,
        url: String,
        tags: Vec<String>,
        meta: BTreeMap<String, String>,
        health: Health,
        since_ms: u64,
    }

    /// Bytes that version 2 wrote for an instance of `web` with a tag and a metadata pair.
    const BEFORE: &str = "037765620831302e302e302e315012687474703a2f2f31302e302e302e313a38300102763101046c616e670272\
                          7301fbe803";

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn web() -> Instance {
        Instance {
            service: "web".into(),
            address: "10.0.0.1".into(),
            port: 80,
            url: "http://10.0.0.1:80".into(),
            tags: vec!["v1".into()],
            meta: BTreeMap::from([("lang".into(), "rs".into())]),
            health: Health::Warning,
            since_ms: 1000,
            ..Instance::default()
        }
    }

    fn full() -> Instance {
        Instance {
            origin: Origin::Program,
            ports: vec![
                NamedPort { name: "http".into(), port: 80, is_default: true },
                NamedPort { name: "metrics".into(), port: 9000, is_default: false },
            ],
            zone: Some("rack 1".into()),
            weight: Some(7),
            requires: vec!["db".into()],
            checks: vec![check("service:web")],
            overflow: Some(Overflow { parts: 1, hash: [7; 16] }),
            ..web()
        }
    }

    fn check(id: &str) -> CheckSummary {
        CheckSummary {
            id: id.into(),
            name: "answers".into(),
            kind: "http".into(),
            status: Health::Critical,
            since_ms: 1,
            output: "503\nService Unavailable".into(),
            took_ms: 12,
        }
    }

    #[test]
    fn an_instance_of_version_2_is_read_with_defaults() {
        assert_eq!(Instance::decode(&bytes(BEFORE)), Ok(web()));
    }

    #[test]
    fn version_2_reads_what_it_knows_of_an_instance() {
        for ours in [web(), full()] {
            let value = ours.encode();
            let (theirs, used) = codec::decode_prefix::<InstanceBefore>(&value).unwrap();
            assert_eq!(codec::encode(&theirs), bytes(BEFORE));
            assert_eq!(used, bytes(BEFORE).len());
            assert_eq!(Instance::decode(&value), Ok(ours));
        }
    }

    #[test]
    fn an_instance_keeps_its_bytes() {
        let hex: String = full().encode().iter().map(|b| format!("{b:02x}")).collect();
        let appended = "0202046874747050010\
                        76d657472696373fb2823000106\
                        7261636b20310107010264620\
                        10b736572766963653a77656207616e73776572730468747470020117353033\
                        0a5365727669636520556e617661696c61626c650c0101";
        assert_eq!(hex, format!("{BEFORE}{appended}{}", "07".repeat(16)));
    }

    #[test]
    fn every_prefix_that_lacks_a_field_of_version_2_is_refused() {
        let before = bytes(BEFORE);
        for length in 0..before.len() {
            assert_eq!(Instance::decode(&before[..length]), Err(DecodeError::Malformed), "{length} bytes");
        }
    }

    #[test]
    fn a_url_with_a_path_is_not_stated_and_still_relayed() {
        let odd = Instance { url: "http://127.0.0.1:7500/v1/agent/leave?".into(), ..web() };
        assert_eq!(odd.check(), Ok(()));
        assert_eq!(odd.check_stated().unwrap_err().field, "url");
        assert!(crate::record::check_instance_size(&odd).unwrap_err().to_string().contains("no origin"));
        assert_eq!(crate::record::check_instance_size(&web()), Ok(()));
    }

    fn problem(instance: &Instance) -> String {
        instance.check().unwrap_err().to_string()
    }

    #[test]
    fn what_a_registration_may_hold_is_within_the_bounds() {
        assert_eq!(full().check(), Ok(()));
        let many = Instance {
            ports: (0..32).map(|n| NamedPort { name: format!("p{n}"), port: n, is_default: false }).collect(),
            requires: (0..64).map(|n| format!("service {n}")).collect(),
            checks: (0..17).map(|n| check(&"x".repeat(240 + n))).collect(),
            weight: Some(0),
            ..web()
        };
        assert_eq!(many.check(), Ok(()));
        let nameless = CheckSummary { name: String::new(), kind: String::new(), ..check("c") };
        assert_eq!(Instance { checks: vec![nameless], ..web() }.check(), Ok(()));
    }

    #[test]
    fn each_bound_is_named() {
        let port = |name: &str, port, is_default| NamedPort { name: name.into(), port, is_default };
        let ports = |ports: Vec<NamedPort>| problem(&Instance { ports, ..web() });
        assert!(ports(vec![port("a", 1, false); 2]).contains("\"a\" is given twice"));
        assert!(ports(vec![port("a", 80, true), port("b", 80, true)]).contains("more than one"));
        assert!(ports(vec![port("a", 81, true)]).contains("81"));
        assert!(ports(vec![port("a/b", 1, false)]).contains("ports"));
        assert!(ports((0..33).map(|n| port(&n.to_string(), n, false)).collect()).contains("at most 32"));
        assert!(problem(&Instance { zone: Some(String::new()), ..web() }).contains("zone"));
        assert!(problem(&Instance { requires: vec!["db".into(); 65], ..web() }).contains("at most 64"));
        let checks = |checks: Vec<CheckSummary>| problem(&Instance { checks, ..web() });
        assert!(checks(vec![check("c"); 19]).contains("at most 18"));
        assert!(checks(vec![check("")]).contains("1 to 320"));
        assert!(checks(vec![CheckSummary { kind: "k".repeat(33), ..check("c") }]).contains("1 to 32"));
        assert!(checks(vec![CheckSummary { output: "x".repeat(257), ..check("c") }]).contains("at most 256"));
    }

    #[test]
    fn fields_of_a_newer_version_survive_us() {
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
    }
}
