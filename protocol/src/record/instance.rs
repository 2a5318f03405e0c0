//! Instances: what a node offers in its own name or in a program's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{
    ID_CHARS_MAX, Invalid, META_PAIRS_MAX, TAGS_MAX, check_count, check_name, check_service_name,
    web_origin::check_origin,
};
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
    /// The origin, `http://host:port`. That of an entry from elsewhere may be any text, so it is read by
    /// [`WebOrigin`](super::WebOrigin) or shown.
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
    /// A program that is registered with the node, at the address that it states.
    Program,
    /// A program on the node's own host: it is reached at each of the node's addresses.
    HostProgram,
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

/// The longest URL of an instance, in characters.
const URL_CHARS_MAX: usize = 2048;
/// The most named ports of an instance.
pub const PORTS_MAX: usize = 32;
/// The most services that an instance depends on.
pub const REQUIRES_MAX: usize = 64;
/// The most check summaries of an instance: 16 checks, its maintenance, and that of its node.
pub const CHECKS_MAX: usize = 18;
/// The longest id of a check, in characters. Some are made of the id of their instance and some words before it.
const CHECK_ID_CHARS_MAX: usize = ID_CHARS_MAX + 64;
/// The longest kind of a check, in characters. Kinds of newer versions are stated as they are, so it is not a
/// list.
pub const CHECK_KIND_CHARS_MAX: usize = 32;

/// The longest output of a check that is gossiped, in bytes. The whole output stays with the holder.
pub const CHECK_OUTPUT_BYTES_MAX: usize = 256;

/// Says that the rest of an instance is in `Part` entries: its tags, pairs of meta and check summaries beyond
/// those in the instance's own entry.
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

    /// Reads a value. Fields that a newer version appended are passed over, and those that an older version
    /// lacks have their defaults.
    ///
    /// # Errors
    /// The value is not an instance.
    pub fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        // Each of the seven appended fields takes one byte, a zero, where it has its default.
        let padded = [value, &[0; 7]].concat();
        codec::decode_prefix(&padded).map(|(instance, _)| instance)
    }

    /// Checks what a node must keep to that states this instance, beyond [`Self::check`]: its URL is an
    /// origin. An older node may state another URL. Its entry is stored and relayed, and never called as it
    /// stands.
    ///
    /// # Errors
    /// Names the field.
    pub fn check_stated(&self) -> Result<(), Invalid> {
        check_origin(&self.url)
    }

    /// Checks every bound of the fields. The number and length of tags are bounded as one entry carries them;
    /// the parts of a larger instance have their own bounds (see [`Overflow`]).
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

/// Checks pairs of metadata.
pub(super) fn check_meta(meta: &BTreeMap<String, String>) -> Result<(), Invalid> {
    check_count("meta", meta.len(), META_PAIRS_MAX)?;
    meta.keys().try_for_each(|key| check_name("meta", key, NAME_CHARS_MAX))
}

/// Checks summaries of checks. Their output may be any text: a page or a terminal that shows it escapes it.
pub(super) fn check_checks(checks: &[CheckSummary]) -> Result<(), Invalid> {
    check_count("checks", checks.len(), CHECKS_MAX)?;
    for check in checks {
        check_name("checks", &check.id, CHECK_ID_CHARS_MAX)?;
        // Neither has to be given.
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

    /// An instance as protocol version 2 states and reads it.
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

    /// What version 2 wrote of an instance of `web` with a tag and a pair of metadata.
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
        assert!(crate::record::check_size(&odd).unwrap_err().to_string().contains("no origin"));
        assert_eq!(crate::record::check_size(&web()), Ok(()));
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
}
