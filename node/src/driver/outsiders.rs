//! Outsiders: nodes that were announced on this network or named by `--join`, and that this node cannot talk to. They use another cluster key
//! or none, belong to another cluster, or do not answer. Without a line about them, both sides look healthy and see no peer.
//!
//! A first failed handshake proves little (the other process may be starting, or dying), so it is tried again before anything is said. Each
//! outsider is warned of once. Outsiders are listed by `GET /network`, counted in `/metrics`, and told by `node doctor`.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use hearsay_protocol::NodeId;
use libp2p::{Multiaddr, multiaddr::Protocol};

/// Outsiders remembered. More than a LAN's nodes in sight; what does not fit is counted.
const OUTSIDERS_MAX: usize = 256;
/// Failed handshakes before one is believed.
const FAILURES_MIN: u32 = 2;
/// Failed handshakes of one unknown host before it is believed: anything may connect, a port scanner too.
const STRAY_FAILURES_MIN: u32 = 3;
/// When an announced node is tried for the second time.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often one that is still announced is tried after that: its key may have been put right.
const TRY_AGAIN_EVERY: Duration = Duration::from_secs(300);
/// How long an outsider that is not announced is remembered after the last attempt. `--join` tries every 15 s at least.
const FORGET_AFTER: Duration = Duration::from_secs(120);
/// Warnings within [`WARNINGS_WITHIN`]. The others are in the metrics and in `GET /network`.
const WARNINGS_MAX: usize = 20;
const WARNINGS_WITHIN: Duration = Duration::from_secs(60);

/// Why a node cannot be talked to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reason {
    /// It took the connection, and the handshake failed: it uses another cluster key, or one of the two uses none.
    AnotherKey,
    /// It says that it belongs to this cluster.
    OtherCluster(String),
    /// It takes no connection: a firewall, or no route.
    NoAnswer,
}

impl Reason {
    /// The word that `GET /network` uses.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::AnotherKey => "another-key",
            Self::OtherCluster(_) => "other-cluster",
            Self::NoAnswer => "no-answer",
        }
    }
}

/// A node that this node cannot talk to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outsider {
    /// Its id, where it is known.
    pub id: Option<NodeId>,
    /// Where it was tried: `host:port`, or the host alone where it came from.
    pub address: String,
    /// Why.
    pub reason: Reason,
}

/// How this node came to try it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Contact {
    /// mDNS announced this node.
    Announced(NodeId),
    /// `--join` names this address.
    Named(Multiaddr),
    /// Something at this host connected.
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

/// What is known of outsiders.
#[derive(Debug, Default)]
pub(super) struct Outsiders {
    entries: BTreeMap<Contact, Entry>,
    /// When the last warnings were given.
    warnings: VecDeque<Instant>,
    /// Outsiders not remembered because there were too many.
    pub(super) dropped: u64,
}

impl Outsiders {
    /// Notes that a node could not be talked to. Returns what to warn of.
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
        // A node that does not answer may be on its way out; it is listed, and that is all.
        if entry.is_warned || !is_believed(&contact, entry) || entry.reason == Reason::NoAnswer {
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

    /// This node was talked to: it is none.
    pub(super) fn talked_to(&mut self, id: NodeId, address: Option<&Multiaddr>) {
        self.entries.remove(&Contact::Announced(id));
        if let Some(address) = address {
            self.entries.remove(&Contact::Named(address.clone()));
        }
    }

    /// Forgets those that are no longer there. Returns which announced nodes to try again, and where.
    pub(super) fn tidy(
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

    /// Those that are believed. One that is known by its id is not listed again for the address that it came from.
    pub(super) fn list(&self) -> Vec<Outsider> {
        let believed = || self.entries.iter().filter(|(contact, entry)| is_believed(contact, entry));
        let known: Vec<IpAddr> = believed()
            .filter(|(contact, _)| !matches!(contact, Contact::Stray(_)))
            .filter_map(|(_, entry)| ip_of(&entry.address))
            .collect();
        believed()
            .filter(|(contact, _)| !matches!(contact, Contact::Stray(ip) if known.contains(ip)))
            .map(|(contact, entry)| outsider(contact, entry))
            .collect()
    }
}

fn is_believed(contact: &Contact, entry: &Entry) -> bool {
    let needed = match (contact, &entry.reason) {
        // It has said so itself.
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

/// The IP address of an address.
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
        assert_eq!(outsiders.tidy(later, |_| true), [(id(1), address(1))]);
        let warning = fail(&mut outsiders, later, 1, Reason::AnotherKey).unwrap();
        assert_eq!((warning.id, warning.address.as_str()), (Some(id(1)), "10.77.0.1:7600"));
        assert_eq!(fail(&mut outsiders, later, 1, Reason::AnotherKey), None, "once");
        assert_eq!(outsiders.list(), [warning]);
        outsiders.talked_to(id(1), None);
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
        outsiders.tidy(now + FORGET_AFTER / 2, |_| true);
        assert_eq!(outsiders.list().len(), 2);
        outsiders.tidy(now + FORGET_AFTER, |_| true);
        assert_eq!(outsiders.list().len(), 1);
        outsiders.tidy(now + FORGET_AFTER, |_| false);
        assert_eq!(outsiders.list(), []);
    }

    #[test]
    fn another_cluster_is_believed_at_once_and_silence_is_only_listed() {
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
