//! [`NameIndex`]: finds services and present members by their DNS label, and present members by IP address,
//! without a scan of the table.
//!
//! A name that is no DNS label is served under one: `My Web` under `my-web`. If several names need one label
//! (a name clash), the name that equals the label is found, else the first one in byte order.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{addresses::host_of_multiaddr, member::Member};
use crate::NodeId;

/// The longest DNS label (RFC 1035, section 2.3.4), in bytes.
const LABEL_BYTES_MAX: usize = 63;

/// The DNS label that serves a name: lower case, with `-` in place of dots and spaces. `None` for a name that
/// is longer than a label can be.
pub fn dns_label(name: &str) -> Option<String> {
    let label = name.replace(['.', ' '], "-").to_lowercase();
    (label.len() <= LABEL_BYTES_MAX && !label.is_empty()).then_some(label)
}

/// Names of listed services and of present members by label, and present members by address.
#[derive(Debug, Default)]
pub(super) struct NameIndex {
    services: BTreeMap<String, BTreeSet<String>>,
    members: BTreeMap<String, BTreeMap<String, BTreeSet<NodeId>>>,
    hosts: BTreeMap<IpAddr, BTreeSet<NodeId>>,
}

impl NameIndex {
    /// Adds a service. One that is known stays.
    pub(super) fn add_service(&mut self, service: &str) {
        if let Some(label) = dns_label(service) {
            self.services.entry(label).or_default().insert(service.to_owned());
        }
    }

    /// Removes a service that has no provider any more.
    pub(super) fn remove_service(&mut self, service: &str) {
        let Some(label) = dns_label(service) else { return };
        let Some(names) = self.services.get_mut(&label) else { return };
        names.remove(service);
        if names.is_empty() {
            self.services.remove(&label);
        }
    }

    /// Adds a member, if it is present.
    pub(super) fn add_member(&mut self, member: &Member) {
        if !member.state.is_present() {
            return;
        }
        if let Some(label) = dns_label(&member.name) {
            let names = self.members.entry(label).or_default();
            names.entry(member.name.clone()).or_default().insert(member.id);
        }
        for ip in member.ips() {
            self.hosts.entry(ip).or_default().insert(member.id);
        }
    }

    /// Removes a member, as it was added.
    pub(super) fn remove_member(&mut self, member: &Member) {
        if let Some(label) = dns_label(&member.name)
            && let Some(names) = self.members.get_mut(&label)
        {
            if let Some(ids) = names.get_mut(&member.name) {
                ids.remove(&member.id);
                if ids.is_empty() {
                    names.remove(&member.name);
                }
            }
            if names.is_empty() {
                self.members.remove(&label);
            }
        }
        for ip in member.ips() {
            if let Some(ids) = self.hosts.get_mut(&ip) {
                ids.remove(&member.id);
                if ids.is_empty() {
                    self.hosts.remove(&ip);
                }
            }
        }
    }

    /// The service that a label in lower case stands for.
    pub(super) fn service(&self, label: &str) -> Option<&str> {
        let names = self.services.get(label)?;
        names.get(label).or_else(|| names.first()).map(String::as_str)
    }

    /// All labels of services, each with the service that it stands for.
    pub(super) fn services(&self) -> impl Iterator<Item = (&str, &str)> {
        self.services.iter().filter_map(move |(label, names)| {
            let name = names.get(label).or_else(|| names.first())?;
            Some((label.as_str(), name.as_str()))
        })
    }

    /// The present member that a label in lower case stands for.
    pub(super) fn member(&self, label: &str) -> Option<NodeId> {
        let names = self.members.get(label)?;
        names.get(label).or_else(|| names.values().next())?.first().copied()
    }

    /// The present member that has an address.
    pub(super) fn member_at(&self, ip: IpAddr) -> Option<NodeId> {
        self.hosts.get(&ip)?.first().copied()
    }

    /// Number of labels that several services need, and of those that several names of members need.
    pub(super) fn clashes(&self) -> [usize; 2] {
        let services = self.services.values().filter(|names| names.len() > 1).count();
        [services, self.members.values().filter(|names| names.len() > 1).count()]
    }
}

impl Member {
    /// The IP addresses of the node, best first: of its HTTP address, then of the swarm's.
    pub fn ips(&self) -> Vec<IpAddr> {
        let http = self.http.iter().filter_map(|http| http.rsplit_once(':')).map(|(host, _)| host);
        let swarm = self.addresses.iter().filter_map(|address| host_of_multiaddr(address));
        let mut ips: Vec<IpAddr> = Vec::new();
        for ip in http.chain(swarm).filter_map(ip_of_host) {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
        ips
    }
}

/// The IP address that a host is, if it is one; of IPv6 with or without brackets.
pub fn ip_of_host(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}
