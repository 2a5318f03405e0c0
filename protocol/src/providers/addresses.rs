//! Addresses of an instance, in the order in which this node's host should try them.
//!
//! A role is reachable at every address of its node: the instance states one address, and the node's header
//! lists the others. The reader's position decides which of them it can reach. For example, a laptop with a
//! tunnel states the tunnel's address, but other hosts on its LAN reach only its LAN address. So each node
//! orders the list for its own host. First comes the address over which it is connected to the role's node,
//! then addresses in a subnet of this host, then the others as stated.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::member::Member;
use crate::{
    NodeId,
    record::{Instance, Origin},
};

/// Metadata key that limits an instance's addresses: the node's HTTP does not listen on all addresses in its
/// header. See [`AddressLimit`].
pub const ADDRESSES_META: &str = "http-addresses";
/// Nodes whose connected address is kept. Guess: more than a node ever connects to. Nodes beyond that number
/// are ordered without a connected address.
const CONNECTED_MAX: usize = 4096;

/// Value of [`ADDRESSES_META`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressLimit {
    /// The instance's own address only: HTTP is bound to it, or `--advertise-http` names it.
    Stated,
    /// IPv4 addresses only: HTTP is bound to 0.0.0.0.
    Ipv4,
}

impl AddressLimit {
    /// The word for this limit in the metadata.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stated => "stated",
            Self::Ipv4 => "ipv4",
        }
    }

    fn allows(limit: Option<&str>, host: &str) -> bool {
        match limit {
            None => true,
            Some("ipv4") => host.parse::<IpAddr>().map_or(true, |ip| ip.is_ipv4()),
            // An unknown limit, from a newer version.
            Some(_) => false,
        }
    }
}

/// A network to which this host belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subnet {
    /// Address of this host in the network.
    pub address: IpAddr,
    /// Prefix length in bits.
    pub prefix: u8,
}

impl Subnet {
    fn contains(&self, ip: IpAddr) -> bool {
        let same = |differing_bits: u128, width: u8| match width.checked_sub(self.prefix) {
            Some(host_bits) => differing_bits.checked_shr(host_bits.into()).unwrap_or(0) == 0,
            None => differing_bits == 0,
        };
        match (self.address, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u128::from(a.to_bits() ^ b.to_bits()), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits() ^ b.to_bits(), 128),
            _ => false,
        }
    }
}

/// Position of this node in the network, by which addresses are ordered.
#[derive(Clone, Default, Debug)]
pub(super) struct AddressOrder {
    connected: BTreeMap<NodeId, IpAddr>,
    subnets: Vec<Subnet>,
}

impl AddressOrder {
    /// Records the address of a connection. Returns whether the address changed.
    pub(super) fn connect(&mut self, node: NodeId, ip: IpAddr, is_member: impl Fn(&NodeId) -> bool) -> bool {
        if !self.connected.contains_key(&node) && self.connected.len() >= CONNECTED_MAX {
            self.connected.retain(|known, _| is_member(known));
            if self.connected.len() >= CONNECTED_MAX {
                return false;
            }
        }
        self.connected.insert(node, ip) != Some(ip)
    }

    /// Address over which a node is connected, or was last connected.
    pub(super) fn connected(&self, node: NodeId) -> Option<IpAddr> {
        self.connected.get(&node).copied()
    }

    /// Forgets a node.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.connected.remove(&node);
    }

    /// Replaces the subnets. Returns whether they changed.
    pub(super) fn set_subnets(&mut self, subnets: Vec<Subnet>) -> bool {
        let differ = self.subnets != subnets;
        self.subnets = subnets;
        differ
    }

    /// Addresses of an instance, `host:port`, best first. Always has the stated address.
    pub(super) fn order(&self, instance: &Instance, member: &Member) -> Vec<String> {
        let stated = authority(&instance.address, instance.port);
        if !is_role(instance, member) && instance.origin != Origin::HostProgram {
            return vec![stated];
        }
        let limit = instance.meta.get(ADDRESSES_META).map(String::as_str);
        let others = member.addresses.iter().filter_map(|address| host_of_multiaddr(address));
        let others = others.filter(|host| AddressLimit::allows(limit, host) && !is_unreachable(host));
        let mut hosts = vec![instance.address.as_str()];
        let mut seen = BTreeSet::from([instance.address.as_str()]);
        hosts.extend(others.filter(|host| seen.insert(host)));
        hosts.sort_by_cached_key(|host| self.rank(member.id, host));
        hosts.into_iter().map(|host| authority(host, instance.port)).collect()
    }

    /// Returns the member with the HTTP and gRPC addresses to try first.
    pub(super) fn seen_from_here(&self, member: &Member) -> Member {
        let best = |stated: &Option<String>| stated.as_deref().map(|stated| self.best_of(member, stated));
        Member { http: best(&member.http), grpc: best(&member.grpc), ..member.clone() }
    }

    /// Address of a listener of a member to try first. If the stated address is not in the header, it is
    /// mapped or bound, and no other address is tried.
    fn best_of(&self, member: &Member, stated: &str) -> String {
        let best = stated.rsplit_once(':').and_then(|(host, port)| {
            let host = host.trim_matches(['[', ']']);
            let hosts: Vec<&str> =
                member.addresses.iter().filter_map(|address| host_of_multiaddr(address)).collect();
            if !hosts.contains(&host) {
                return None;
            }
            let all = std::iter::once(host).chain(hosts).filter(|host| !is_unreachable(host));
            Some(authority(all.min_by_key(|host| self.rank(member.id, host))?, port.parse().ok()?))
        });
        best.unwrap_or_else(|| stated.to_owned())
    }

    fn rank(&self, node: NodeId, host: &str) -> Rank {
        let Ok(ip) = host.parse::<IpAddr>() else { return Rank::Elsewhere };
        if self.connected.get(&node) == Some(&ip) {
            Rank::Connected
        } else if self.subnets.iter().any(|subnet| subnet.address == ip) {
            Rank::OwnAddress
        } else if self.subnets.iter().any(|subnet| subnet.contains(ip)) {
            Rank::SameSubnet
        } else if self.subnets.iter().any(|subnet| subnet.address.is_ipv4() == ip.is_ipv4()) {
            Rank::Elsewhere
        } else {
            Rank::OtherFamily
        }
    }
}

/// Rank of an address, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Rank {
    /// The connection to the node uses the address, or the last one did.
    Connected,
    /// The address is in a subnet of this host.
    SameSubnet,
    /// The address is in none of this host's subnets. A router may lead there.
    Elsewhere,
    /// This host has no address of the same family.
    OtherFamily,
    /// This host has the address itself. Either the node runs on this host, or the address does not lead to
    /// the node: a container bridge has the same address on every host.
    OwnAddress,
}

/// Whether an instance is a role of its node, reached over the node's own HTTP. Otherwise it is a program.
pub(super) fn is_role(instance: &Instance, member: &Member) -> bool {
    match instance.origin {
        Origin::Role => true,
        Origin::Program | Origin::HostProgram => false,
        Origin::Unstated => {
            let stated = authority(&instance.address, instance.port);
            member.http.as_deref() == Some(&stated) && member.roles.contains(&instance.service)
        }
    }
}

/// Host of a multiaddr such as `/ip4/10.0.0.1/tcp/7600`.
pub fn host_of_multiaddr(multiaddr: &str) -> Option<&str> {
    let mut parts = multiaddr.strip_prefix('/')?.split('/');
    let (kind, host) = (parts.next()?, parts.next()?);
    // The host is text from a peer and becomes part of URLs, so only a valid host is accepted.
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_host = match kind {
        "ip4" | "ip6" => host.parse::<IpAddr>().is_ok(),
        "dns" | "dns4" | "dns6" => !host.is_empty() && host.chars().all(is_name),
        _ => false,
    };
    is_host.then_some(host)
}

/// Whether no other host can use an address: it is unspecified, or it is IPv6 link-local, which requires an
/// interface name.
fn is_unreachable(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|ip| match ip {
        IpAddr::V4(ip) => ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_unspecified() || ip.is_unicast_link_local(),
    })
}

/// Formats `host:port`, with brackets around an IPv6 address.
fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::{Identity, Incarnation, Time, Version, providers::MemberState, record::Health};

    fn laptop() -> Member {
        let addresses = ["/ip4/10.88.0.5/tcp/7600", "/ip4/10.77.0.1/tcp/7600", "/ip6/fd77::1/tcp/7600"];
        Member {
            id: Identity::from_seed(&[1; 32]).id(),
            name: "laptop".into(),
            state: MemberState::Alive,
            roles: vec!["grading".into()],
            addresses: addresses.map(str::to_owned).into(),
            http: Some("10.88.0.5:7500".into()),
            zone: None,
            software: "test".into(),
            protocol: 1,
            ephemeral: false,
            grpc: None,
            incarnation: Incarnation(1),
            version: Version(1),
            since: Time::ZERO,
            rtt: Some(Duration::ZERO),
            rank: 0,
            namesake: false,
        }
    }

    fn grading() -> Instance {
        Instance {
            service: "grading".into(),
            address: "10.88.0.5".into(),
            port: 7500,
            url: "http://10.88.0.5:7500".into(),
            tags: vec![],
            meta: BTreeMap::new(),
            health: Health::Passing,
            since_ms: 0,
            ..Instance::default()
        }
    }

    fn on(subnets: &[(&str, u8)]) -> AddressOrder {
        let subnet =
            |(address, prefix): &(&str, u8)| Subnet { address: address.parse().unwrap(), prefix: *prefix };
        AddressOrder { connected: BTreeMap::new(), subnets: subnets.iter().map(subnet).collect() }
    }

    const TUNNEL: &str = "10.88.0.5:7500";
    const LAN: &str = "10.77.0.1:7500";
    const LAN6: &str = "[fd77::1]:7500";

    #[test]
    fn a_role_has_all_addresses_of_its_node_those_in_the_readers_subnet_first() {
        let order = |subnets: &[(&str, u8)]| on(subnets).order(&grading(), &laptop());
        assert_eq!(order(&[("10.77.0.2", 16)]), [LAN, TUNNEL, LAN6]);
        assert_eq!(order(&[("fd77::2", 64)]), [LAN6, TUNNEL, LAN], "a host without IPv4");
        assert_eq!(order(&[("10.88.0.9", 24)]), [TUNNEL, LAN, LAN6]);
        assert_eq!(order(&[("192.0.2.1", 24)]), [TUNNEL, LAN, LAN6]);
        let here = [("10.88.0.5", 24), ("10.77.0.1", 16), ("fd77::1", 64)];
        assert_eq!(order(&here), [TUNNEL, LAN, LAN6], "the node's own host");
        assert_eq!(
            order(&[("10.77.0.1", 16), ("192.0.2.1", 24)])[0],
            TUNNEL,
            "an address that is this host's"
        );
    }

    #[test]
    fn the_address_of_the_connection_comes_before_all_others() {
        let mut address_order = on(&[("10.77.0.2", 16)]);
        let connect = |address_order: &mut AddressOrder, ip: &str| {
            address_order.connect(laptop().id, ip.parse().unwrap(), |_| true)
        };
        assert!(connect(&mut address_order, "10.88.0.5"));
        assert_eq!(address_order.order(&grading(), &laptop()), [TUNNEL, LAN, LAN6]);
        assert!(!connect(&mut address_order, "10.88.0.5"), "the same again is no news");
        // The address after NAT is not in the node's header.
        assert!(connect(&mut address_order, "203.0.113.7"));
        assert_eq!(address_order.order(&grading(), &laptop())[0], LAN);
        address_order.forget(laptop().id);
        assert!(address_order.connected.is_empty());
    }

    #[test]
    fn an_instance_that_is_no_role_or_limits_its_addresses_has_those_alone() {
        let order = |instance: &Instance| on(&[("10.77.0.2", 16)]).order(instance, &laptop());
        let program = Instance { service: "web".into(), ..grading() };
        assert_eq!(order(&program), [TUNNEL], "a program is at the address that it registered");
        let namesake = Instance { origin: Origin::Program, ..grading() };
        assert_eq!(order(&namesake), [TUNNEL], "a program of a role's name and address");
        let mapped = Instance { origin: Origin::Role, port: 9000, ..grading() };
        assert_eq!(
            order(&mapped)[0],
            "10.77.0.1:9000",
            "its node says so, whatever its HTTP is advertised as"
        );
        let elsewhere = Instance { port: 9000, ..grading() };
        assert_eq!(order(&elsewhere), ["10.88.0.5:9000"], "a program of a role's name");
        let limited = |limit: &str| Instance {
            meta: BTreeMap::from([(ADDRESSES_META.into(), limit.into())]),
            ..grading()
        };
        assert_eq!(order(&limited(AddressLimit::Stated.as_str())), [TUNNEL]);
        assert_eq!(order(&limited(AddressLimit::Ipv4.as_str())), [LAN, TUNNEL]);
        assert_eq!(order(&limited("of a newer version")), [TUNNEL]);
    }

    #[test]
    fn a_members_http_is_at_the_address_that_the_reader_reaches() {
        let http = |http: &str| {
            let here = on(&[("10.77.0.2", 16)]);
            let seen =
                here.seen_from_here(&Member { http: Some(http.into()), grpc: Some(http.into()), ..laptop() });
            assert_eq!(seen.grpc, seen.http, "gRPC is where HTTP is");
            seen.http
        };
        assert_eq!(http(TUNNEL).as_deref(), Some(LAN));
        assert_eq!(http(LAN6).as_deref(), Some(LAN));
        assert_eq!(http("203.0.113.7:17500").as_deref(), Some("203.0.113.7:17500"), "a mapped port");
        assert_eq!(http("no port").as_deref(), Some("no port"));
        assert_eq!(on(&[]).seen_from_here(&Member { http: None, ..laptop() }).http, None);
    }

    #[test]
    fn addresses_that_lead_nowhere_are_left_out() {
        let mut member = laptop();
        member.addresses = [
            "/dns/a@10.0.0.9/tcp/1",
            "/dns/a:1/tcp/1",
            "/ip4/example/tcp/1",
            "/ip6/fe80::1/tcp/7600",
            "/ip4/0.0.0.0/tcp/1",
            "/unix/x",
            "",
            "/ip4",
            "/dns/db.example/tcp/7600",
        ]
        .map(str::to_owned)
        .into();
        assert_eq!(on(&[]).order(&grading(), &member), ["db.example:7500", TUNNEL]);
    }

    #[test]
    fn a_subnet_holds_the_addresses_of_its_prefix() {
        let contains = |address: &str, prefix, ip: &str| {
            Subnet { address: address.parse().unwrap(), prefix }.contains(ip.parse().unwrap())
        };
        assert!(contains("10.77.0.1", 16, "10.77.255.255") && !contains("10.77.0.1", 16, "10.78.0.1"));
        assert!(contains("10.77.0.1", 0, "192.0.2.1") && !contains("10.77.0.1", 32, "10.77.0.2"));
        assert!(contains("fd77::1", 64, "fd77::ffff") && !contains("fd77::1", 64, "fd78::1"));
        assert!(contains("fd77::1", 0, "::1") && !contains("::", 0, "10.0.0.1"));
        assert!(!contains("10.0.0.1", 200, "10.0.0.2"), "a prefix that is too long");
    }

    #[test]
    fn the_memory_of_connections_is_bounded_and_members_outlast_strangers() {
        let mut address_order = AddressOrder::default();
        let id = |n: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            NodeId::from_public_key(key)
        };
        let ip = "10.0.0.1".parse().unwrap();
        (0..CONNECTED_MAX).for_each(|n| assert!(address_order.connect(id(n), ip, |_| true)));
        assert!(!address_order.connect(id(CONNECTED_MAX), ip, |_| true), "full of members");
        assert!(address_order.connect(id(CONNECTED_MAX), ip, |known| *known == id(0)));
        assert_eq!(address_order.connected.len(), 2);
    }
}
