//! Parses names below the domains of the cluster, and names of reverse lookups, into the [`Subject`] that
//! each asks for.
//!
//! | name below `hearsay` or `consul` | question |
//! | --- | --- |
//! | `[tag.]web.service[.dc1]` | the instances of a service; a tag may contain dots |
//! | `metrics.port.web.service[.dc1]` | the same, at a named port |
//! | `_web._tcp[.service[.dc1]]` | the same (RFC 2782); a label other than `_tcp` is a tag |
//! | `n1.node[.dc1]` | a node's addresses |
//! | `0a4d0001.addr[.dc1]` | an address in hexadecimal digits: the targets of SRV records |
//! | `b._dns-sd._udp`, `_services._dns-sd._udp`, `_web._tcp`, `<id>._web._tcp` | browsing (RFC 6763) |
//!
//! `service.<domain>` is a zone of its own, because forwarders that forward only that name accept an SOA
//! record from inside it alone. Names are compared without case; a record bears the name as it was asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::Name;

/// The one datacenter in names. Consul's default.
pub(super) const DATACENTER: &str = "dc1";
/// The domains that a node answers for. The second serves configurations made for Consul.
pub(super) const DOMAINS: [&str; 2] = ["hearsay", "consul"];

/// What a name asks for. Labels are in lower case.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Subject {
    /// The zone itself.
    Apex,
    /// A name without records that has names below it (RFC 8020, section 2).
    NonTerminal,
    /// Instances of a service, of those with this tag.
    Service { service: String, tag: Option<String> },
    /// Instances of a service at a named port.
    NamedPort { service: String, port: String },
    /// A node.
    Node(String),
    /// An address.
    Address(IpAddr),
    /// The domains to browse.
    BrowsingDomains,
    /// The services that can be browsed.
    ServiceTypes,
    /// A service as a type of DNS-SD, whose SRV records are those of the service.
    ServiceType(String),
    /// One instance of a service.
    Instance { service: String, id: String },
    /// The node at an address.
    Reverse(IpAddr),
    /// No name of this form exists.
    Unknown,
}

/// A name of one of the cluster's zones.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ParsedName {
    /// What it asks for.
    pub(super) subject: Subject,
    /// The owner of the zone's SOA record, as it was asked.
    pub(super) zone: Name,
    /// The domain, `hearsay.` or `consul.`, as it was asked.
    pub(super) domain: Name,
}

impl ParsedName {
    /// Parses a name; `None` where it belongs to no zone of the cluster.
    pub(super) fn parse(name: &Name) -> Option<Self> {
        let labels: Option<Vec<String>> =
            name.iter().map(|label| Some(str::from_utf8(label).ok()?.to_lowercase())).collect();
        let last = name.iter().next_back()?;
        if last.eq_ignore_ascii_case(b"arpa") {
            let address = reverse_address(&labels?)?;
            let domain = Name::from_labels([DOMAINS[0].as_bytes()]).ok()?;
            return Some(Self { subject: Subject::Reverse(address), zone: name.clone(), domain });
        }
        if !DOMAINS.iter().any(|domain| last.eq_ignore_ascii_case(domain.as_bytes())) {
            return None;
        }
        let domain = name.trim_to(1);
        let Some(labels) = labels else {
            return Some(Self { subject: Subject::Unknown, zone: domain.clone(), domain });
        };
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let below = &labels[..labels.len() - 1];
        let zone = if below.last() == Some(&"service") { name.trim_to(2) } else { domain.clone() };
        Some(Self { subject: subject(below), zone, domain })
    }
}

/// The subject of the labels below the domain.
fn subject(labels: &[&str]) -> Subject {
    match labels {
        [] | ["service"] => Subject::Apex,
        [DATACENTER] => Subject::NonTerminal,
        [below @ .., kind @ ("service" | "node" | "addr"), DATACENTER] => of_kind(kind, below),
        [below @ .., kind @ ("service" | "node" | "addr")] => of_kind(kind, below),
        [below @ .., "_dns-sd", "_udp"] => match below {
            [] => Subject::NonTerminal,
            // The domain to browse, the default one, and the one of clients without a configuration.
            ["b" | "db" | "lb"] => Subject::BrowsingDomains,
            ["_services"] => Subject::ServiceTypes,
            _ => Subject::Unknown,
        },
        ["_tcp" | "_udp"] => Subject::NonTerminal,
        [service, "_tcp"] => match service.strip_prefix('_') {
            Some(service) => Subject::ServiceType(service.to_owned()),
            None => Subject::Unknown,
        },
        [id, service, "_tcp"] => match service.strip_prefix('_') {
            Some(service) => Subject::Instance { service: service.to_owned(), id: (*id).to_owned() },
            None => Subject::Unknown,
        },
        [service, tag] => rfc_2782(service, tag).unwrap_or(Subject::Unknown),
        _ => Subject::Unknown,
    }
}

/// The subject of the labels below `service`, `node` or `addr`.
fn of_kind(kind: &str, labels: &[&str]) -> Subject {
    match (kind, labels) {
        (_, []) | ("service", ["_tcp"]) => Subject::NonTerminal,
        ("node", [node]) => Subject::Node((*node).to_owned()),
        ("addr", [digits]) => hex_address(digits).map_or(Subject::Unknown, Subject::Address),
        ("service", [service]) => Subject::Service { service: (*service).to_owned(), tag: None },
        ("service", [port, "port", service]) => {
            Subject::NamedPort { service: (*service).to_owned(), port: (*port).to_owned() }
        }
        // A client of gRPC asks for `_grpclb._tcp.<name>`: that is no tag.
        ("service", [first, second, ..]) if first.starts_with('_') && second.starts_with('_') => {
            let is_whole = labels.len() == 2;
            rfc_2782(first, second).filter(|_| is_whole).unwrap_or(Subject::Unknown)
        }
        ("service", [tags @ .., service]) => {
            Subject::Service { service: (*service).to_owned(), tag: Some(tags.join(".")) }
        }
        _ => Subject::Unknown,
    }
}

/// The subject of `_service._tag`; the tag `_tcp` means all instances.
fn rfc_2782(service: &str, tag: &str) -> Option<Subject> {
    let (service, tag) = (service.strip_prefix('_')?.to_owned(), tag.strip_prefix('_')?);
    Some(Subject::Service { service, tag: (tag != "tcp").then(|| tag.to_owned()) })
}

/// The address of 8 (IPv4) or 32 (IPv6) hexadecimal digits.
fn hex_address(digits: &str) -> Option<IpAddr> {
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    match digits.len() {
        8 => Some(Ipv4Addr::from_bits(u32::from_str_radix(digits, 16).ok()?).into()),
        32 => Some(Ipv6Addr::from_bits(u128::from_str_radix(digits, 16).ok()?).into()),
        _ => None,
    }
}

/// The label of an address below `addr`.
pub(super) fn address_label(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => format!("{:08x}", ip.to_bits()),
        IpAddr::V6(ip) => format!("{:032x}", ip.to_bits()),
    }
}

/// The address of a name below `in-addr.arpa` or `ip6.arpa` (RFC 1035, section 3.5; RFC 3596).
fn reverse_address(labels: &[String]) -> Option<IpAddr> {
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    match labels.as_slice() {
        [octets @ .., "in-addr", "arpa"] if octets.len() == 4 => {
            let text = octets.iter().rev().copied().collect::<Vec<_>>().join(".");
            text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
        }
        [nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 && nibbles.iter().all(|n| n.len() == 1) => {
            hex_address(&nibbles.iter().rev().copied().collect::<String>())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject_of(name: &str) -> Option<Subject> {
        ParsedName::parse(&Name::from_ascii(name).unwrap()).map(|parsed| parsed.subject)
    }

    fn service(service: &str, tag: Option<&str>) -> Option<Subject> {
        Some(Subject::Service { service: service.into(), tag: tag.map(Into::into) })
    }

    #[test]
    fn every_form_of_a_service_is_understood() {
        for domain in ["hearsay.", "consul.", "CONSUL."] {
            for (below, expected) in [
                ("web.service", service("web", None)),
                ("web.service.dc1", service("web", None)),
                ("WEB.Service", service("web", None)),
                ("v1.web.service", service("web", Some("v1"))),
                ("a.b.web.service.dc1", service("web", Some("a.b"))),
                ("_web._tcp.service", service("web", None)),
                ("_web._tcp.service.dc1", service("web", None)),
                ("_web._v1.service", service("web", Some("v1"))),
                ("_web._v1", service("web", Some("v1"))),
                ("_web._tcp", Some(Subject::ServiceType("web".into()))),
                (
                    "metrics.port.web.service",
                    Some(Subject::NamedPort { service: "web".into(), port: "metrics".into() }),
                ),
            ] {
                assert_eq!(subject_of(&format!("{below}.{domain}")), expected, "{below}.{domain}");
            }
        }
    }

    #[test]
    fn nodes_and_addresses_are_understood() {
        assert_eq!(subject_of("n1.node.dc1.hearsay."), Some(Subject::Node("n1".into())));
        let address = |text: &str| Some(Subject::Address(text.parse().unwrap()));
        assert_eq!(subject_of("0a4d0001.addr.dc1.consul."), address("10.77.0.1"));
        assert_eq!(subject_of("20010db8000000000000000000000001.addr.hearsay."), address("2001:db8::1"));
        for wrong in ["0a4d00.addr.hearsay.", "ga4d0001.addr.hearsay.", "n.1.node.hearsay."] {
            assert_eq!(subject_of(wrong), Some(Subject::Unknown), "{wrong}");
        }
        let reverse = |text: &str| Some(Subject::Reverse(text.parse().unwrap()));
        assert_eq!(subject_of("1.0.77.10.in-addr.arpa."), reverse("10.77.0.1"));
        let nibbles = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.";
        assert_eq!(subject_of(nibbles), reverse("2001:db8::1"));
        assert_eq!(subject_of("77.10.in-addr.arpa."), None);
    }

    #[test]
    fn names_without_records_of_their_own_exist_and_others_do_not() {
        for name in ["dc1.hearsay.", "service.dc1.hearsay.", "node.consul.", "addr.consul.", "_tcp.hearsay."]
        {
            assert_eq!(subject_of(name), Some(Subject::NonTerminal), "{name}");
        }
        for name in ["hearsay.", "service.hearsay.", "service.consul."] {
            assert_eq!(subject_of(name), Some(Subject::Apex), "{name}");
        }
        for name in ["nope.hearsay.", "web.service.dc2.hearsay.", "_grpclb._tcp.web.service.consul."] {
            assert_eq!(subject_of(name), Some(Subject::Unknown), "{name}");
        }
        for name in [".", "example.com.", "hearsay.example."] {
            assert_eq!(subject_of(name), None, "{name}");
        }
    }

    #[test]
    fn a_name_below_service_belongs_to_a_zone_of_its_own() {
        let zone = |name: &str| ParsedName::parse(&Name::from_ascii(name).unwrap()).unwrap().zone.to_ascii();
        assert_eq!(zone("v1.web.service.consul."), "service.consul.");
        assert_eq!(zone("web.SerVice.conSul."), "SerVice.conSul.");
        assert_eq!(zone("web.service.dc1.consul."), "consul.");
        assert_eq!(zone("n1.node.hearsay."), "hearsay.");
    }

    #[test]
    fn browsing_is_understood() {
        assert_eq!(subject_of("b._dns-sd._udp.hearsay."), Some(Subject::BrowsingDomains));
        assert_eq!(subject_of("_services._dns-sd._udp.hearsay."), Some(Subject::ServiceTypes));
        let instance = Subject::Instance { service: "web".into(), id: "web 1".into() };
        let name = Name::from_labels(["Web 1".as_bytes(), b"_web", b"_tcp", b"hearsay"]).unwrap();
        assert_eq!(ParsedName::parse(&name).unwrap().subject, instance);
    }
}
