//! Records from the provider table: the answer to one question.
//!
//! - Critical instances are left out. A service without another one does not exist (NXDOMAIN); a name that
//!   exists without records of the type is NOERROR with the zone's SOA, because resolvers that ask for A and
//!   AAAA at the same time take NXDOMAIN of one as the answer to both.
//! - A and AAAA records are shuffled. SRV records keep one order for each client, which begins at another
//!   instance for each: HAProxy assigns servers to slots by that order.
//! - A program that several nodes have registered at one address has one record.
//! - A name clash: names that need one label are told apart by [`ProviderTable::service_labelled`].
//!
//! [`ProviderTable::service_labelled`]: hearsay_protocol::ProviderTable::service_labelled

use std::{
    cell::Cell,
    collections::BTreeSet,
    net::IpAddr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use hearsay_protocol::{Member, NodeId, Provider, dns_label, host_of_multiaddr};
use hickory_proto::{
    op::ResponseCode,
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT},
    },
};

use super::{
    browse::{self, instance_label, is_instance_label},
    endpoints::{Lookup, has_type, ips_of, name_of_host, sort_for},
    name::{DATACENTER, ParsedName, Subject, address_label},
};
use crate::view::View;

/// The priority of every SRV record. As Consul's.
const SRV_PRIORITY: u16 = 1;
/// Seconds for which resolvers may keep that there is nothing (RFC 2308): the SOA's own TTL and its minimum.
pub(super) const NEGATIVE_TTL: u32 = 1;
/// The records of an answer, without its envelope.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Answer {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
    /// Instances that were examined for it.
    pub(super) examined: usize,
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
        let examined = Cell::new(0);
        let question =
            Question { source: self, name, parsed: &parsed, record_type, client, records_max, examined };
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
    examined: Cell<usize>,
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
            examined: self.examined.get(),
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
                let types = browse::service_types(view, domain, self.records_max, &self.examined);
                // The name exists without services, too: names exist below it.
                Found { exists: true, ..self.pointers(types) }
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
            let own = self.source.view.read(|table| table.member(self.source.node).map(Member::ips));
            let own = own.unwrap_or_default();
            if let Some(target) = own.first().and_then(|ip| self.address_name(*ip)) {
                found.answers.push(self.record(self.name, RData::NS(NS(target.clone()))));
                found.additionals.extend(self.address_records_of(&target, &own[..1], RecordType::ANY));
            }
        }
        found
    }

    fn lookup<'a>(&'a self, label: &'a str) -> Lookup<'a> {
        let Self { source, records_max, examined, .. } = self;
        Lookup { view: &source.view, label, records_max: *records_max, examined }
    }

    fn service(&self, service: &str, tag: Option<&str>) -> Found {
        // Whether names exist below the tag: `port`, or the end of a tag with dots.
        let is_part = Cell::new(false);
        let found = self.endpoints(service, |provider| {
            let Some(tag) = tag else { return Some(provider.instance.port) };
            let tags = &provider.instance.tags;
            if tags.iter().any(|own| own.eq_ignore_ascii_case(tag)) {
                return Some(provider.instance.port);
            }
            let is_below = (tag == "port" && !provider.instance.ports.is_empty())
                || tags.iter().any(|own| is_end_of(own, tag));
            is_part.set(is_part.get() || is_below);
            None
        });
        Found { exists: found.exists || is_part.get(), ..found }
    }

    fn service_type(&self, service: &str) -> Found {
        if self.record_type != RecordType::PTR {
            return self.service(service, None);
        }
        let labels = self.lookup(service).first(|provider| instance_label(&provider.id));
        let names = labels.iter().filter_map(|label| self.name.prepend_label(label.as_bytes()).ok());
        self.pointers(names.collect())
    }

    fn named_port(&self, service: &str, port: &str) -> Found {
        self.endpoints(service, |provider| {
            let ports = &provider.instance.ports;
            ports.iter().find(|named| named.name.eq_ignore_ascii_case(port)).map(|named| named.port)
        })
    }

    fn instance(&self, service: &str, id: &str) -> Found {
        let port_of =
            |provider: &Provider| is_instance_label(id, &provider.id).then_some(provider.instance.port);
        let (instances, _) = self.lookup(service).instances(port_of);
        // Of several nodes, that of the lowest id.
        let first = instances.iter().map(|(provider, _)| provider).min_by_key(|provider| provider.node_id);
        let Some(first) = first else { return Found::empty(false) };
        let mut found = Found::empty(true);
        // The addresses are at the target of the SRV record.
        if self.asks_for(RecordType::SRV) {
            self.add_srv(&mut found, &instances);
        }
        if self.asks_for(RecordType::TXT) {
            let text = TXT::from_bytes(browse::text_strings(first).iter().map(Vec::as_slice).collect());
            found.answers.push(self.record(self.name, RData::TXT(text)));
        }
        found
    }

    fn node(&self, label: &str) -> Found {
        let node = self.source.view.read(|table| {
            let member = table.member_labelled(label)?;
            Some((member.ips(), host_name_of(member)))
        });
        let Some((ips, host)) = node else { return Found::empty(false) };
        let mut found = Found { answers: self.address_records(self.name, &ips), ..Found::empty(true) };
        if ips.is_empty() {
            self.add_alias(&mut found, host);
        }
        found
    }

    fn reverse(&self, ip: IpAddr) -> Found {
        let label = self.source.view.read(|table| dns_label(&table.member_at(ip)?.name));
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

    /// The records of instances, each at the port that `port_of` names; instances without one are left out.
    fn endpoints(&self, service: &str, port_of: impl Fn(&Provider) -> Option<u16>) -> Found {
        let lookup = self.lookup(service);
        match self.record_type {
            RecordType::SRV => {
                let (mut instances, is_all) = lookup.instances(port_of);
                if is_all {
                    sort_for(self.client, &mut instances);
                }
                let mut found = Found::empty(!instances.is_empty());
                self.add_srv(&mut found, &instances);
                found
            }
            RecordType::A | RecordType::AAAA | RecordType::ANY | RecordType::CNAME => {
                let addresses = lookup.addresses(self.record_type, |provider| port_of(provider).is_some());
                let answers = self.address_records(self.name, &addresses.ips);
                let mut found = Found { answers, ..Found::empty(addresses.exists) };
                self.add_alias(&mut found, addresses.alias);
                found
            }
            _ => Found::empty(lookup.exists(|provider| port_of(provider).is_some())),
        }
    }

    /// A name may have one CNAME record, and no address besides (RFC 1034, section 3.6.2).
    fn add_alias(&self, found: &mut Found, host: Option<Name>) {
        let types = [RecordType::A, RecordType::AAAA, RecordType::ANY, RecordType::CNAME];
        if types.contains(&self.record_type) {
            found.answers.extend(host.map(|host| self.record(self.name, RData::CNAME(CNAME(host)))));
        }
    }

    fn add_srv(&self, found: &mut Found, instances: &[(Arc<Provider>, u16)]) {
        let (mut seen, mut targets) = (BTreeSet::new(), BTreeSet::new());
        for (provider, port) in instances {
            let ip = ips_of(provider).into_iter().flatten().next();
            let target = match ip {
                Some(ip) => self.address_name(ip),
                None => name_of_host(provider.host()),
            };
            let Some(target) = target else { continue };
            if !seen.insert((provider.node_id, target.to_ascii(), *port)) {
                continue;
            }
            if let Some(ip) = ip.filter(|ip| targets.insert(*ip)) {
                found.additionals.extend(self.address_records_of(&target, &[ip], RecordType::ANY));
            }
            let srv = SRV::new(SRV_PRIORITY, provider.weight(), *port, target);
            found.answers.push(self.record(self.name, RData::SRV(srv)));
        }
    }

    /// The A and AAAA records that were asked for.
    fn address_records(&self, name: &Name, ips: &[IpAddr]) -> Vec<Record> {
        self.address_records_of(name, ips, self.record_type)
    }

    fn address_records_of(&self, name: &Name, ips: &[IpAddr], wanted: RecordType) -> Vec<Record> {
        let records = ips.iter().filter(|ip| has_type(**ip, wanted)).map(|ip| {
            let data = match ip {
                IpAddr::V4(ip) => RData::A(A(*ip)),
                IpAddr::V6(ip) => RData::AAAA(AAAA(*ip)),
            };
            self.record(name, data)
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

/// Whether a tag ends with a dot and these labels.
fn is_end_of(tag: &str, end: &str) -> bool {
    let (tag, end) = (tag.as_bytes(), end.as_bytes());
    let Some(at) = tag.len().checked_sub(end.len() + 1) else { return false };
    tag[at] == b'.' && tag[at + 1..].eq_ignore_ascii_case(end)
}

/// The first host name of a node that has no IP address.
fn host_name_of(member: &Member) -> Option<Name> {
    let http = member.http.iter().filter_map(|http| http.rsplit_once(':')).map(|(host, _)| host);
    let swarm = member.addresses.iter().filter_map(|address| host_of_multiaddr(address));
    http.chain(swarm).find_map(name_of_host)
}
