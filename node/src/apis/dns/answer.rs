//! Records from the provider table: the answer to one question.
//!
//! - Critical instances are left out. A service without another one does not exist (NXDOMAIN); a name that
//!   exists without records of the type is NOERROR with the zone's SOA, because resolvers that ask for A and
//!   AAAA at the same time take NXDOMAIN of one as the answer to both.
//! - A and AAAA records are shuffled. SRV records keep one order for each client, which begins at another
//!   instance for each: HAProxy assigns servers to slots by that order.
//! - A program that several nodes have registered at one address has one record.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use hearsay_protocol::{Health, Member, NodeId, Provider, ProviderTable, host_of_multiaddr};
use hickory_proto::{
    op::ResponseCode,
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
    },
};

use super::{
    browse::{self, instance_label},
    name::{DATACENTER, ParsedName, Subject, address_label, is_label_of, label_of},
};
use crate::view::View;

/// Seconds for which resolvers may keep that there is nothing (RFC 2308): the SOA's own TTL and its minimum.
pub(super) const NEGATIVE_TTL: u32 = 1;
/// The priority of every SRV record. As Consul's.
const SRV_PRIORITY: u16 = 1;

/// The records of an answer, without its envelope.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Answer {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

/// What answers are made from.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// The provider table.
    pub(super) view: Arc<View>,
    /// This node.
    pub(super) node: NodeId,
    /// The TTL of records, in seconds.
    pub(super) ttl: u32,
}

impl Source {
    /// The answer to a question from a client; `None` for names of others' domains. At most `records_max`
    /// instances are answered with.
    pub(super) fn answer(
        &self,
        name: &Name,
        record_type: RecordType,
        client: IpAddr,
        records_max: usize,
    ) -> Option<Answer> {
        let parsed = ParsedName::parse(name)?;
        let question = Question { source: self, name, parsed: &parsed, record_type, client, records_max };
        let found = question.find();
        if matches!(parsed.subject, Subject::Reverse(_)) && !found.exists {
            // Only the addresses of the cluster's nodes are answered for.
            return None;
        }
        Some(question.complete(found))
    }
}

/// The records that were found for a name, and whether the name exists.
#[derive(Default)]
pub(super) struct Found {
    pub(super) exists: bool,
    pub(super) answers: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

impl Found {
    fn empty(exists: bool) -> Self {
        Self { exists, ..Self::default() }
    }
}

struct Question<'a> {
    source: &'a Source,
    name: &'a Name,
    parsed: &'a ParsedName,
    record_type: RecordType,
    client: IpAddr,
    records_max: usize,
}

impl Question<'_> {
    /// Adds the SOA where there are no records, and sets the code.
    fn complete(&self, found: Found) -> Answer {
        let has_records = !found.answers.is_empty();
        Answer {
            code: if found.exists { ResponseCode::NoError } else { ResponseCode::NXDomain },
            authorities: if has_records { Vec::new() } else { vec![self.soa()] },
            answers: found.answers,
            additionals: found.additionals,
        }
    }

    fn find(&self) -> Found {
        match &self.parsed.subject {
            Subject::Apex => self.apex(),
            Subject::NonTerminal => Found::empty(true),
            Subject::Unknown => Found::empty(false),
            Subject::Service { service, tag } => self.service(service, tag.as_deref()),
            Subject::ServiceType(service) => self.service_type(service),
            Subject::NamedPort { service, port } => self.named_port(service, port),
            Subject::Node(label) => self.node(label),
            Subject::Address(ip) => Found {
                exists: true,
                answers: self.address_records(self.name, &[*ip]),
                additionals: Vec::new(),
            },
            Subject::BrowsingDomains => self.pointers(vec![self.parsed.domain.clone()]),
            Subject::ServiceTypes => {
                let (view, domain) = (&self.source.view, &self.parsed.domain);
                // The name exists without services, too: names exist below it.
                Found { exists: true, ..self.pointers(browse::service_types(view, domain, self.records_max)) }
            }
            Subject::Instance { service, id } => self.instance(service, id),
            Subject::Reverse(ip) => self.reverse(*ip),
        }
    }

    fn record(&self, name: &Name, data: RData) -> Record {
        Record::from_rdata(name.clone(), self.source.ttl, data)
    }

    fn asks_for(&self, record_type: RecordType) -> bool {
        self.record_type == record_type || self.record_type == RecordType::ANY
    }

    fn soa(&self) -> Record {
        let zone = &self.parsed.zone;
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // A serial number wraps (RFC 1982).
        #[expect(clippy::cast_possible_truncation)]
        let serial = seconds as u32;
        let below = |label: &str| zone.prepend_label(label).unwrap_or_else(|_| zone.clone());
        let soa = SOA::new(below("ns"), below("hostmaster"), serial, 3600, 600, 86_400, NEGATIVE_TTL);
        Record::from_rdata(zone.clone(), NEGATIVE_TTL, RData::SOA(soa))
    }

    fn apex(&self) -> Found {
        let mut found = Found::empty(true);
        if self.asks_for(RecordType::SOA) {
            found.answers.push(self.soa());
        }
        if self.asks_for(RecordType::NS) {
            let own = self.source.view.read(|table| table.member(self.source.node).map(node_addresses));
            let own = own.unwrap_or_default();
            if let Some(target) = own.first().and_then(|ip| self.address_name(*ip)) {
                found.answers.push(self.record(self.name, RData::NS(NS(target.clone()))));
                found.additionals.extend(self.address_records_of(&target, &own[..1], RecordType::ANY));
            }
        }
        found
    }

    /// The instances of a service that are not critical, with a tag, in the table's order.
    fn providers(&self, label: &str, is_wanted: impl Fn(&Provider) -> bool) -> Vec<Arc<Provider>> {
        self.source.view.read(|table| {
            let Some(service) = service_of(table, label) else { return Vec::new() };
            let distinct = table.providers_distinct(service);
            distinct.filter(|provider| is_usable(provider) && is_wanted(provider)).cloned().collect()
        })
    }

    fn service(&self, service: &str, tag: Option<&str>) -> Found {
        let has_tag = |provider: &Provider| {
            tag.is_none_or(|tag| provider.instance.tags.iter().any(|own| own.eq_ignore_ascii_case(tag)))
        };
        let providers = self.providers(service, has_tag);
        if providers.is_empty() {
            return Found::empty(tag.is_some_and(|tag| self.is_part_of_name(service, tag)));
        }
        self.endpoints(&providers, |provider| Some(provider.instance.port))
    }

    /// Whether names exist below a tag without instances: `port`, or the end of a tag with dots.
    fn is_part_of_name(&self, service: &str, tag: &str) -> bool {
        let end = format!(".{tag}");
        let is_below = |provider: &Provider| {
            (tag == "port" && !provider.instance.ports.is_empty())
                || provider.instance.tags.iter().any(|own| own.to_lowercase().ends_with(&end))
        };
        !self.providers(service, is_below).is_empty()
    }

    fn service_type(&self, service: &str) -> Found {
        if self.record_type != RecordType::PTR {
            return self.service(service, None);
        }
        let providers = self.providers(service, |_| true);
        let mut seen = BTreeSet::new();
        let labels = providers.iter().map(|provider| instance_label(&provider.id));
        let names = labels.filter(|label| seen.insert(label.clone()));
        let names = names.filter_map(|label| self.name.prepend_label(label.as_bytes()).ok());
        self.pointers(names.take(self.records_max).collect())
    }

    fn named_port(&self, service: &str, port: &str) -> Found {
        let number = |provider: &Provider| {
            let ports = &provider.instance.ports;
            ports.iter().find(|named| named.name.eq_ignore_ascii_case(port)).map(|named| named.port)
        };
        let providers = self.providers(service, |provider| number(provider).is_some());
        self.endpoints(&providers, number)
    }

    fn instance(&self, service: &str, id: &str) -> Found {
        let providers = self.providers(service, |provider| instance_label(&provider.id).to_lowercase() == id);
        let Some(first) = providers.first() else { return Found::empty(false) };
        let mut found = match self.record_type {
            // The addresses are at the target of the SRV record.
            RecordType::A | RecordType::AAAA => Found::empty(true),
            _ => self.endpoints(&providers, |provider| Some(provider.instance.port)),
        };
        if self.asks_for(RecordType::TXT) {
            let text = TXT::from_bytes(browse::text_strings(first).iter().map(Vec::as_slice).collect());
            found.answers.push(self.record(self.name, RData::TXT(text)));
        }
        found
    }

    fn node(&self, label: &str) -> Found {
        let addresses = self.source.view.read(|table| {
            let mut present = table.members().filter(|member| member.state.is_present());
            present.find(|member| is_label_of(label, &member.name)).map(node_addresses)
        });
        match addresses {
            None => Found::empty(false),
            Some(ips) => Found {
                exists: true,
                answers: self.address_records(self.name, &ips),
                additionals: Vec::new(),
            },
        }
    }

    fn reverse(&self, ip: IpAddr) -> Found {
        let label = self.source.view.read(|table| {
            let mut present = table.members().filter(|member| member.state.is_present());
            let member = present.find(|member| node_addresses(member).contains(&ip))?;
            label_of(&member.name)
        });
        let name = label.and_then(|label| self.below_domain(&[&label, "node", DATACENTER]));
        match name {
            Some(name) => self.pointers(vec![name]),
            None => Found::empty(false),
        }
    }

    /// PTR records to these names.
    fn pointers(&self, names: Vec<Name>) -> Found {
        let exists = !names.is_empty();
        let mut found = Found::empty(exists);
        if self.asks_for(RecordType::PTR) {
            found.answers =
                names.into_iter().map(|name| self.record(self.name, RData::PTR(PTR(name)))).collect();
        }
        found
    }

    /// The records of instances, each at the port that `port_of` names.
    fn endpoints(&self, providers: &[Arc<Provider>], port_of: impl Fn(&Provider) -> Option<u16>) -> Found {
        let mut found = Found::empty(!providers.is_empty());
        if self.record_type == RecordType::SRV {
            self.add_srv(&mut found, providers, port_of);
            return found;
        }
        if ![RecordType::A, RecordType::AAAA, RecordType::ANY].contains(&self.record_type) {
            return found;
        }
        let locations: Vec<Location> = providers.iter().filter_map(|p| Location::of(p)).collect();
        let ips: BTreeSet<IpAddr> = locations.iter().flat_map(|location| location.ips.clone()).collect();
        let mut ips: Vec<IpAddr> = ips.into_iter().collect();
        fastrand::shuffle(&mut ips);
        found.answers = self.address_records(self.name, &ips);
        found.answers.truncate(self.records_max);
        // A name may have one CNAME record and no other (RFC 1034, section 3.6.2).
        if ips.is_empty()
            && let Some(host) = locations.into_iter().find_map(|location| location.name)
        {
            found.answers.push(self.record(self.name, RData::CNAME(CNAME(host))));
        }
        found
    }

    fn add_srv(
        &self,
        found: &mut Found,
        providers: &[Arc<Provider>],
        port_of: impl Fn(&Provider) -> Option<u16>,
    ) {
        let mut seen = BTreeSet::new();
        let mut additional = BTreeSet::new();
        for provider in in_order_of(self.client, providers, self.records_max) {
            let (Some(port), Some(location)) = (port_of(provider), Location::of(provider)) else { continue };
            let target = match location.ips.first() {
                Some(ip) => self.address_name(*ip),
                None => location.name,
            };
            let Some(target) = target else { continue };
            if !seen.insert((provider.node_id, target.to_ascii(), port)) {
                continue;
            }
            let srv = SRV::new(SRV_PRIORITY, provider.weight(), port, target.clone());
            found.answers.push(self.record(self.name, RData::SRV(srv)));
            if let Some(ip) = location.ips.first()
                && additional.insert(*ip)
            {
                let records = self.address_records_of(&target, &[*ip], RecordType::ANY);
                found.additionals.extend(records);
            }
        }
    }

    /// The A and AAAA records that were asked for.
    fn address_records(&self, name: &Name, ips: &[IpAddr]) -> Vec<Record> {
        self.address_records_of(name, ips, self.record_type)
    }

    fn address_records_of(&self, name: &Name, ips: &[IpAddr], wanted: RecordType) -> Vec<Record> {
        let records = ips.iter().filter_map(|ip| {
            let (record_type, data) = match ip {
                IpAddr::V4(ip) => (RecordType::A, RData::A(A(*ip))),
                IpAddr::V6(ip) => (RecordType::AAAA, RData::AAAA(AAAA(*ip))),
            };
            let is_wanted = wanted == RecordType::ANY || wanted == record_type;
            is_wanted.then(|| self.record(name, data))
        });
        records.collect()
    }

    /// `<hex>.addr.dc1.<domain>`
    fn address_name(&self, ip: IpAddr) -> Option<Name> {
        self.below_domain(&[&address_label(ip), "addr", DATACENTER])
    }

    fn below_domain(&self, labels: &[&str]) -> Option<Name> {
        let own = Name::from_labels(labels.iter().map(|label| label.as_bytes())).ok()?;
        own.append_domain(&self.parsed.domain).ok()
    }
}

/// The instances in the order that a client gets: the table's, from a place that depends on the client. Where
/// not all are answered with, they are a random choice.
fn in_order_of(client: IpAddr, providers: &[Arc<Provider>], records_max: usize) -> Vec<&Arc<Provider>> {
    let mut providers: Vec<&Arc<Provider>> = providers.iter().collect();
    if providers.is_empty() {
        return providers;
    }
    if providers.len() > records_max {
        fastrand::shuffle(&mut providers);
        providers.truncate(records_max);
        return providers;
    }
    let mut hasher = DefaultHasher::new();
    client.hash(&mut hasher);
    let start = usize::try_from(hasher.finish() % providers.len() as u64).unwrap_or(0);
    providers.rotate_left(start);
    providers
}

/// Where an instance is: the first address of each family, or a host name.
struct Location {
    ips: Vec<IpAddr>,
    name: Option<Name>,
}

impl Location {
    /// `None` where its address is neither an IP address nor a name that DNS can carry.
    fn of(provider: &Provider) -> Option<Self> {
        let hosts = provider.addresses.iter().filter_map(|address| address.rsplit_once(':'));
        let mut ips: Vec<IpAddr> = Vec::new();
        for (host, _) in hosts {
            if let Some(ip) = ip_of(host)
                && !ips.iter().any(|known| known.is_ipv4() == ip.is_ipv4())
            {
                ips.push(ip);
            }
        }
        if ips.is_empty() {
            ips.extend(ip_of(provider.host()));
        }
        let name = match ips.is_empty() {
            true => Some(Name::from_ascii(format!("{}.", provider.host().trim_end_matches('.'))).ok()?),
            false => None,
        };
        Some(Self { ips, name })
    }
}

fn ip_of(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// The IP addresses of a node, best first: of its HTTP address, then of the swarm's.
fn node_addresses(member: &Member) -> Vec<IpAddr> {
    let http =
        member.http.iter().filter_map(|http| http.rsplit_once(':')).filter_map(|(host, _)| ip_of(host));
    let swarm = member.addresses.iter().filter_map(|address| host_of_multiaddr(address)).filter_map(ip_of);
    let mut ips: Vec<IpAddr> = Vec::new();
    http.chain(swarm).for_each(|ip| {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    });
    ips
}

/// Whether clients may be sent to an instance.
fn is_usable(provider: &Provider) -> bool {
    provider.instance.health != Health::Critical
}

/// The service that a label stands for: the one of that name, else the first whose name needs that label.
pub(super) fn service_of<'a>(table: &'a ProviderTable, label: &'a str) -> Option<&'a str> {
    if table.providers(label).next().is_some() {
        return Some(label);
    }
    table.services().find(|service| is_label_of(label, service))
}
