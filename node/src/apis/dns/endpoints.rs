//! [`Lookup`]: chooses the instances of a service for an answer, and finds their addresses.
//!
//! The work for a question is bounded. Only as many instances as an answer can have are kept, which are a
//! random choice; the table's lock is held for one pass. The pass begins at a random node. It ends when the
//! answer is full and [`EXAMINED_MAX`] instances were examined. A question whose answer does not get full,
//! such as for a rare tag, examines the whole service: otherwise an instance that exists could be denied.

use std::{
    cell::Cell,
    collections::BTreeSet,
    net::IpAddr,
    ops::ControlFlow::{self, Break, Continue},
    sync::Arc,
};

use hearsay_protocol::{Health, NodeId, Provider, ProviderTable, ip_of_host};
use hickory_proto::rr::{Name, RecordType};

use super::sample::{Sample, seeded_hash};
use crate::view::View;

/// Instances that a question examines although its answer is full. So a smaller service is examined as a
/// whole, and each instance is in the answer with the same probability.
pub(super) const EXAMINED_MAX: usize = 4096;

/// A question about the instances of a service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lookup<'a> {
    pub(super) view: &'a View,
    /// The label of the service.
    pub(super) label: &'a str,
    /// Instances that the answer can have.
    pub(super) records_max: usize,
    /// Counts examined instances.
    pub(super) examined: &'a Cell<usize>,
}

/// Where clients find instances that have IP addresses or host names.
#[derive(Default, Debug)]
pub(super) struct Addresses {
    /// Whether there is an instance.
    pub(super) exists: bool,
    /// Addresses of the wanted families.
    pub(super) ips: Vec<IpAddr>,
    /// A host name, if no instance has an IP address.
    pub(super) alias: Option<Name>,
}

impl Lookup<'_> {
    /// Visits instances that are not critical until the visitor breaks. `start`: the node to begin with.
    fn walk(
        &self,
        table: &ProviderTable,
        start: NodeId,
        mut visit: impl FnMut(&Arc<Provider>) -> ControlFlow<()>,
    ) {
        let Some(service) = table.service_labelled(self.label) else { return };
        for provider in table.providers_distinct_from(service, start) {
            self.examined.set(self.examined.get() + 1);
            if provider.instance.health != Health::Critical && visit(provider).is_break() {
                return;
            }
        }
    }

    /// [`Break`] once the answer is full and enough instances were examined.
    fn go_on(&self, is_full: bool) -> ControlFlow<()> {
        if is_full && self.examined.get() >= EXAMINED_MAX { Break(()) } else { Continue(()) }
    }

    /// Whether the service has an instance that is wanted.
    pub(super) fn exists(&self, is_wanted: impl Fn(&Provider) -> bool) -> bool {
        let mut exists = false;
        self.view.read(|table| {
            self.walk(table, random_node(), |provider| {
                exists |= is_wanted(provider);
                if exists { Break(()) } else { Continue(()) }
            });
        });
        exists
    }

    /// The first instances in the table's order, with distinct keys.
    pub(super) fn first(&self, key_of: impl Fn(&Provider) -> String) -> Vec<String> {
        let (mut seen, mut keys) = (BTreeSet::new(), Vec::new());
        self.view.read(|table| {
            // The lowest id.
            let Some(service) = table.service_labelled(self.label) else { return };
            let Some(first) = table.providers(service).next() else { return };
            self.walk(table, first.node_id, |provider| {
                let key = key_of(provider);
                if seen.insert(key.to_lowercase()) {
                    keys.push(key);
                }
                if keys.len() < self.records_max { Continue(()) } else { Break(()) }
            });
        });
        keys
    }

    /// A choice of the wanted instances, each with the port that `port_of` names; whether it is all of them.
    pub(super) fn instances(
        &self,
        port_of: impl Fn(&Provider) -> Option<u16>,
    ) -> (Vec<(Arc<Provider>, u16)>, bool) {
        let mut sample = Sample::new(self.records_max);
        self.view.read(|table| {
            self.walk(table, random_node(), |provider| {
                if let Some(port) = port_of(provider) {
                    sample.offer(key_of(provider, port), || (Arc::clone(provider), port));
                }
                self.go_on(sample.is_full())
            });
        });
        let is_all = !sample.is_partial() && self.go_on(sample.is_full()).is_continue();
        (sample.into_values(), is_all)
    }

    /// The addresses of a choice of the wanted instances; of these families.
    pub(super) fn addresses(&self, wanted: RecordType, is_wanted: impl Fn(&Provider) -> bool) -> Addresses {
        let (mut ips, mut alias) = (Sample::new(self.records_max), Sample::new(1));
        let (mut exists, mut has_ip) = (false, false);
        self.view.read(|table| {
            self.walk(table, random_node(), |provider| {
                if !is_wanted(provider) {
                    return Continue(());
                }
                exists = true;
                let own = ips_of(provider);
                for ip in own.into_iter().flatten() {
                    has_ip = true;
                    if has_type(ip, wanted) {
                        ips.offer(ip, || ip);
                    }
                }
                if !has_ip && is_host_name(provider.host()) {
                    alias.offer(provider.host(), || Arc::clone(provider));
                }
                self.go_on(ips.is_full())
            });
        });
        let alias = alias.into_values().pop().filter(|_| !has_ip);
        Addresses {
            exists,
            ips: ips.into_values(),
            alias: alias.and_then(|provider| name_of_host(provider.host())),
        }
    }
}

/// What makes an instance's SRV record distinct.
fn key_of(provider: &Provider, port: u16) -> (NodeId, &str, u16) {
    (provider.node_id, provider.host(), port)
}

/// The order of SRV records for a client: for each client another one, the same as long as no instance comes
/// or goes (rendezvous hashing).
pub(super) fn sort_for(client: IpAddr, instances: &mut [(Arc<Provider>, u16)]) {
    let seed = seeded_hash(0, client);
    instances.sort_by_cached_key(|(provider, port)| seeded_hash(seed, key_of(provider, *port)));
}

/// Whether an address has a record of this type.
pub(super) fn has_type(ip: IpAddr, wanted: RecordType) -> bool {
    match wanted {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    }
}

/// The first address of each family, in the order of the instance's addresses.
pub(super) fn ips_of(provider: &Provider) -> [Option<IpAddr>; 2] {
    let mut found = [None, None];
    let hosts = provider.addresses.iter().filter_map(|address| address.rsplit_once(':'));
    for ip in hosts.filter_map(|(host, _)| ip_of_host(host)) {
        match found {
            [None, _] => found[0] = Some(ip),
            [Some(first), None] if first.is_ipv4() != ip.is_ipv4() => found[1] = Some(ip),
            _ => (),
        }
    }
    if found[0].is_none() {
        found[0] = ip_of_host(provider.host());
    }
    found
}

/// A host name as a name of DNS, if DNS can carry it.
pub(super) fn name_of_host(host: &str) -> Option<Name> {
    is_host_name(host).then(|| Name::from_ascii(format!("{}.", host.trim_end_matches('.'))).ok()).flatten()
}

/// Whether a host is a name; an address of IPv6 with a zone is none.
fn is_host_name(host: &str) -> bool {
    !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// A place in the table's order of nodes.
fn random_node() -> NodeId {
    let mut key = [0; 32];
    fastrand::fill(&mut key);
    NodeId::from_public_key(key)
}
