//! [`Outsiders`]: nodes that were announced on this network or named by `--join`, and that this node cannot
//! communicate with. They use another cluster key or none, belong to another cluster, or do not answer.
//! Without a warning, both sides look healthy and see no peer.
//!
//! One failed handshake proves little (the other process may be starting, or dying), so this node tries again
//! before it warns. It warns of each outsider once. `GET /network` and `node doctor` list outsiders, and
//! `/metrics` counts them.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use hearsay_protocol::NodeId;
use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::driver_command::{Outsider, Reason};

/// Maximum number of outsiders remembered: more than a LAN has nodes. Further ones are only counted.
const OUTSIDERS_MAX: usize = 256;
/// Failed handshakes before a node counts as an outsider.
const FAILURES_MIN: u32 = 2;
/// Failed handshakes before an unknown host counts as an outsider: any program may connect, such as a port
/// scanner.
const STRAY_FAILURES_MIN: u32 = 3;
/// Pause before an announced node is dialled for the second time.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Pause between further dials to a node that is still announced. Its key may have been corrected.
const TRY_AGAIN_EVERY: Duration = Duration::from_secs(300);
/// How long an outsider that is not announced is remembered after the last attempt. `--join` tries at least
/// every 15 s.
const FORGET_AFTER: Duration = Duration::from_secs(120);
/// Maximum number of warnings within [`WARNINGS_WITHIN`]. `/metrics` and `GET /network` show all outsiders.
const WARNINGS_MAX: usize = 20;
const WARNINGS_WITHIN: Duration = Duration::from_secs(60);

/// How this node came to know an outsider.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Contact {
    /// mDNS announced this node.
    Announced(NodeId),
    /// `--join` names this address.
    Named(Multiaddr),
    /// An unknown process at this host connected.
    Stray(IpAddr),
}

#[derive(Debug)]
struct Entry {
    address: Multiaddr,
    reason: Reason,
    failures: u32,
    last: Instant,
    try_again_at: Instant,
    is_warned: bool,
}

/// The known outsiders.
#[derive(Debug, Default)]
pub(super) struct Outsiders {
    entries: BTreeMap<Contact, Entry>,
    /// Times of the last warnings.
    warnings: VecDeque<Instant>,
    /// Outsiders not remembered because there were too many.
    pub(super) dropped: u64,
}

impl Outsiders {
    /// Records a failed attempt. Returns the outsider if it is time to warn of it.
    pub(super) fn record_failure(
        &mut self,
        now: Instant,
        contact: Contact,
        address: &Multiaddr,
        reason: Reason,
    ) -> Option<Outsider> {
        if self.entries.len() >= OUTSIDERS_MAX && !self.entries.contains_key(&contact) {
            self.dropped += 1;
            return None;
        }
        let entry = self.entries.entry(contact.clone()).or_insert_with(|| Entry {
            address: address.clone(),
            reason: reason.clone(),
            failures: 0,
            last: now,
            try_again_at: now,
            is_warned: false,
        });
        if entry.reason != reason {
            (entry.failures, entry.is_warned) = (0, false);
        }
        entry.failures = entry.failures.saturating_add(1);
        let pause = if entry.failures < FAILURES_MIN { TRY_AGAIN_AFTER } else { TRY_AGAIN_EVERY };
        (entry.address, entry.reason, entry.last, entry.try_again_at) =
            (address.clone(), reason, now, now + pause);
        // A node that does not answer may be stopping. It is listed without a warning.
        if entry.is_warned || !is_confirmed(&contact, entry) || entry.reason == Reason::NoAnswer {
            return None;
        }
        while self.warnings.front().is_some_and(|at| now.duration_since(*at) >= WARNINGS_WITHIN) {
            self.warnings.pop_front();
        }
        if self.warnings.len() >= WARNINGS_MAX {
            return None;
        }
        self.warnings.push_back(now);
        entry.is_warned = true;
        Some(outsider(&contact, entry))
    }

    /// Removes a node that was reached.
    pub(super) fn remove_reached(&mut self, id: NodeId, address: Option<&Multiaddr>) {
        self.entries.remove(&Contact::Announced(id));
        if let Some(address) = address {
            self.entries.remove(&Contact::Named(address.clone()));
        }
    }

    /// Forgets outsiders that are no longer announced or tried. Returns the announced nodes to dial again.
    pub(super) fn remove_old(
        &mut self,
        now: Instant,
        is_announced: impl Fn(NodeId) -> bool,
    ) -> Vec<(NodeId, Multiaddr)> {
        self.entries.retain(|contact, entry| match contact {
            Contact::Announced(id) => is_announced(*id),
            Contact::Named(_) | Contact::Stray(_) => now.duration_since(entry.last) < FORGET_AFTER,
        });
        let mut again = Vec::new();
        for (contact, entry) in &mut self.entries {
            if let Contact::Announced(id) = contact
                && entry.try_again_at <= now
            {
                entry.try_again_at = now + TRY_AGAIN_EVERY;
                again.push((*id, entry.address.clone()));
            }
        }
        again
    }

    /// Returns the confirmed outsiders. An unknown process at a host is left out if another outsider is known
    /// at that host.
    pub(super) fn list(&self) -> Vec<Outsider> {
        let confirmed = || self.entries.iter().filter(|(contact, entry)| is_confirmed(contact, entry));
        let known: Vec<IpAddr> = confirmed()
            .filter(|(contact, _)| !matches!(contact, Contact::Stray(_)))
            .filter_map(|(_, entry)| ip_of(&entry.address))
            .collect();
        confirmed()
            .filter(|(contact, _)| !matches!(contact, Contact::Stray(ip) if known.contains(ip)))
            .map(|(contact, entry)| outsider(contact, entry))
            .collect()
    }
}

fn is_confirmed(contact: &Contact, entry: &Entry) -> bool {
    let needed = match (contact, &entry.reason) {
        // The node itself sent the name of its cluster.
        (_, Reason::OtherCluster(_)) => 1,
        (Contact::Stray(_), _) => STRAY_FAILURES_MIN,
        _ => FAILURES_MIN,
    };
    entry.failures >= needed
}

fn outsider(contact: &Contact, entry: &Entry) -> Outsider {
    let id = match contact {
        Contact::Announced(id) => Some(*id),
        Contact::Named(_) | Contact::Stray(_) => None,
    };
    let address = match contact {
        Contact::Stray(ip) => ip.to_string(),
        Contact::Announced(_) | Contact::Named(_) => host_and_port(&entry.address),
    };
    Outsider { id, address, reason: entry.reason.clone() }
}

/// Returns the IP address of a multiaddr.
pub(super) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

fn host_and_port(address: &Multiaddr) -> String {
    let port = address.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    match (ip_of(address), port) {
        (Some(IpAddr::V6(ip)), Some(port)) => format!("[{ip}]:{port}"),
        (Some(ip), Some(port)) => format!("{ip}:{port}"),
        _ => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use hearsay_protocol::Identity;

    use super::*;

    fn id(n: u16) -> NodeId {
        let mut seed = [0; 32];
        seed[..2].copy_from_slice(&n.to_le_bytes());
        Identity::from_seed(&seed).id()
    }

    fn address(n: u16) -> Multiaddr {
        format!("/ip4/10.77.{}.{}/tcp/7600", n / 256, n % 256).parse().unwrap()
    }

    fn fail(outsiders: &mut Outsiders, now: Instant, n: u16, reason: Reason) -> Option<Outsider> {
        outsiders.record_failure(now, Contact::Announced(id(n)), &address(n), reason)
    }

    #[test]
    fn a_failed_handshake_is_tried_again_and_then_warned_of_once() {
        let (mut outsiders, now) = (Outsiders::default(), Instant::now());
        assert_eq!(fail(&mut outsiders, now, 1, Reason::AnotherKey), None);
        assert_eq!(outsiders.list(), []);
        let later = now + TRY_AGAIN_AFTER;
        assert_eq!(outsiders.remove_old(later, |_| true), [(id(1), address(1))]);
        let warning = fail(&mut outsiders, later, 1, Reason::AnotherKey).unwrap();
        assert_eq!((warning.id, warning.address.as_str()), (Some(id(1)), "10.77.0.1:7600"));
        assert_eq!(fail(&mut outsiders, later, 1, Reason::AnotherKey), None, "once");
        assert_eq!(outsiders.list(), [warning]);
        outsiders.remove_reached(id(1), None);
        assert_eq!(outsiders.list(), []);
    }

    #[test]
    fn an_outsider_is_listed_for_as_long_as_it_is_announced_or_tried() {
        let (mut outsiders, now) = (Outsiders::default(), Instant::now());
        for _ in 0..2 {
            fail(&mut outsiders, now, 1, Reason::AnotherKey);
            let named = Contact::Named(address(2));
            outsiders.record_failure(now, named, &address(2), Reason::AnotherKey);
        }
        outsiders.remove_old(now + FORGET_AFTER / 2, |_| true);
        assert_eq!(outsiders.list().len(), 2);
        outsiders.remove_old(now + FORGET_AFTER, |_| true);
        assert_eq!(outsiders.list().len(), 1);
        outsiders.remove_old(now + FORGET_AFTER, |_| false);
        assert_eq!(outsiders.list(), []);
    }

    #[test]
    fn another_cluster_is_confirmed_at_once_and_silence_is_only_listed() {
        let (mut outsiders, now) = (Outsiders::default(), Instant::now());
        assert!(fail(&mut outsiders, now, 1, Reason::OtherCluster("x".into())).is_some());
        for _ in 0..3 {
            assert_eq!(fail(&mut outsiders, now, 2, Reason::NoAnswer), None);
        }
        assert_eq!(outsiders.list().len(), 2);
    }

    #[test]
    fn a_host_that_connects_is_no_node_until_it_has_failed_three_times() {
        let (mut outsiders, now) = (Outsiders::default(), Instant::now());
        let stray = || Contact::Stray(ip_of(&address(1)).unwrap());
        let fail_stray = |outsiders: &mut Outsiders| {
            outsiders.record_failure(now, stray(), &address(1), Reason::AnotherKey)
        };
        assert_eq!((fail_stray(&mut outsiders), fail_stray(&mut outsiders)), (None, None));
        assert_eq!(fail_stray(&mut outsiders).unwrap().address, "10.77.0.1");
        for _ in 0..2 {
            fail(&mut outsiders, now, 1, Reason::AnotherKey);
        }
        assert_eq!(outsiders.list().len(), 1, "the same node is listed once");
    }

    #[test]
    fn neither_memory_nor_warnings_grow_with_what_is_announced() {
        let (mut outsiders, now) = (Outsiders::default(), Instant::now());
        let warned =
            (0..1000).filter(|n| fail(&mut outsiders, now, *n, Reason::OtherCluster("x".into())).is_some());
        assert_eq!(warned.count(), WARNINGS_MAX);
        assert_eq!((outsiders.list().len(), outsiders.dropped), (OUTSIDERS_MAX, 1000 - OUTSIDERS_MAX as u64));
        let later = now + WARNINGS_WITHIN;
        let warned =
            (0..1000).filter(|n| fail(&mut outsiders, later, *n, Reason::OtherCluster("x".into())).is_some());
        assert_eq!(warned.count(), WARNINGS_MAX, "the others have their turn");
    }
}
