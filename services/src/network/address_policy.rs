//! [`AddressPolicy`]: the addresses to which a node may open a connection on behalf of other programs.
//!
//! A program that may register chooses the targets of checks, notifications and gateway requests. Without a
//! policy it could reach a cloud's metadata service, services that only listen on loopback, and the nodes of
//! the cluster (server-side request forgery).
//!
//! The policy checks the *resolved* address at each connect, because a name may resolve to another address at
//! any time. An address that embeds an IPv4 address counts as that address, or is refused if its target is
//! unclear.
//!
//! | rule | addresses | source |
//! | --- | --- | --- |
//! | unspecified | 0.0.0.0/8, :: | RFC 1122, 3.2.1.3; Linux takes them as loopback |
//! | link-local | 169.254.0.0/16, fe80::/10 | RFC 3927, RFC 4291 |
//! | metadata | [`is_metadata`] | the providers' manuals |
//! | multicast, broadcast | 224.0.0.0/4, ff00::/8, 255.255.255.255 | RFC 1112, RFC 4291, RFC 919 |
//! | tunnel | ::/96, ::ffff:0:0:0/96, 64:ff9b:1::/48, 2001::/32, 2002::/16 | RFC 4291, 2765, 8215, 4380, 3056 |
//! | loopback | 127.0.0.0/8, ::1 | unless allowed |
//! | member | addresses at which a node of the cluster listens | the provider table |
//! | announcer | for a role: all but the HTTP addresses of its node | the header of that node |
//! | not_allowed | all but the ranges of `--gateway-allow`, if there are any | the operator |
//!
//! Checks and notifications only call programs, so [`AddressPolicy::check`] has the first seven rules.
//! Plug-ins also call roles, which nodes serve: [`AddressPolicy::check_instance`].

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use hearsay_protocol::{NodeId, Provider};

/// Addresses at which the nodes of the cluster, this node included, listen for HTTP, swarm and gRPC.
pub trait MemberAddresses: Send + Sync {
    /// Returns whether a node of the cluster listens at this address. IPv4-mapped addresses arrive as IPv4.
    fn contains(&self, address: SocketAddr) -> bool;

    /// Returns whether the header of this node has this host (a name, or an IP address without brackets) and
    /// port for HTTP.
    fn is_http_of(&self, node: NodeId, host: &str, port: u16) -> bool {
        let _ = (node, host, port);
        false
    }

    /// Returns whether the loopback addresses of this node are those of this machine.
    fn shares_loopback(&self, node: NodeId) -> bool {
        let _ = node;
        false
    }
}

impl<F: Fn(SocketAddr) -> bool + Send + Sync> MemberAddresses for F {
    fn contains(&self, address: SocketAddr) -> bool {
        self(address)
    }
}

/// Address policy. Clones share the list of members and the counters.
#[derive(Clone)]
pub struct AddressPolicy {
    is_loopback_allowed: bool,
    members: Arc<dyn MemberAddresses>,
    refusals: Arc<[AtomicU64; Forbidden::RULES.len()]>,
}

/// An instance at one of its announced addresses.
#[derive(Clone, Copy, Debug)]
pub struct InstanceAddress<'a> {
    /// The node that announces the instance.
    pub node_id: NodeId,
    /// Whether it is a role of that node.
    pub is_role: bool,
    /// The announced host without brackets: a name or an IP address.
    pub host: &'a str,
}

impl<'a> InstanceAddress<'a> {
    /// The instance of a provider at this host.
    pub fn of(provider: &Provider, host: &'a str) -> Self {
        Self { node_id: provider.node_id, is_role: provider.is_role(), host }
    }
}

/// Rule that refuses an address. Nothing was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Forbidden {
    /// The unspecified address.
    #[error("{0} is an unspecified address. Name the address of the host")]
    Unspecified(IpAddr),
    /// A link-local address. Clouds serve metadata at some.
    #[error("{0} is a link-local address. Choose an address that is routed")]
    LinkLocal(IpAddr),
    /// The address of a cloud's metadata service, which serves credentials.
    #[error("{0} is the metadata address of a cloud, which no node calls")]
    Metadata(IpAddr),
    /// A multicast address.
    #[error("{0} is a multicast address. Choose the address of one host")]
    Multicast(IpAddr),
    /// A broadcast address.
    #[error("{0} is a broadcast address. Choose the address of one host")]
    Broadcast(IpAddr),
    /// An address that embeds an IPv4 address for a tunnel or translator.
    #[error("{0} embeds an IPv4 address. Choose that address itself")]
    Tunnel(IpAddr),
    /// A loopback address, for a target that is not registered with this node.
    #[error("{0} is a loopback address, which is only allowed in registrations of this node")]
    Loopback(IpAddr),
    /// An address at which a node of the cluster listens.
    #[error("{0} is an address of a node of this cluster. Choose that of the program itself")]
    Member(SocketAddr),
    /// An address of a role that its node does not announce.
    #[error("the node of this role does not announce this address for its HTTP")]
    Announcer,
    /// An address outside the ranges that the operator allows for the gateway.
    #[error("{0} is in none of the ranges of --gateway-allow")]
    NotAllowed(IpAddr),
}

impl Forbidden {
    /// Labels of all rules in metrics.
    pub const RULES: [&'static str; 10] = [
        "unspecified",
        "link_local",
        "metadata",
        "multicast",
        "broadcast",
        "tunnel",
        "loopback",
        "member",
        "announcer",
        "not_allowed",
    ];

    /// Returns the label in metrics.
    pub fn rule(self) -> &'static str {
        Self::RULES[self.index()]
    }

    fn index(self) -> usize {
        match self {
            Self::Unspecified(_) => 0,
            Self::LinkLocal(_) => 1,
            Self::Metadata(_) => 2,
            Self::Multicast(_) => 3,
            Self::Broadcast(_) => 4,
            Self::Tunnel(_) => 5,
            Self::Loopback(_) => 6,
            Self::Member(_) => 7,
            Self::Announcer => 8,
            Self::NotAllowed(_) => 9,
        }
    }
}

impl fmt::Debug for AddressPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loopback = self.is_loopback_allowed;
        f.debug_struct("AddressPolicy").field("is_loopback_allowed", &loopback).finish_non_exhaustive()
    }
}

impl AddressPolicy {
    /// A policy that refuses loopback addresses and the addresses of these members.
    pub fn new(members: Arc<dyn MemberAddresses>) -> Self {
        Self { is_loopback_allowed: false, members, refusals: Arc::default() }
    }

    /// Returns the policy with loopback addresses allowed or not. They are allowed only for a node's own
    /// registrations.
    #[must_use]
    pub fn with_loopback(self, is_loopback_allowed: bool) -> Self {
        Self { is_loopback_allowed, ..self }
    }

    /// Checks a resolved address before the connect.
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn check(&self, target: SocketAddr) -> Result<(), Forbidden> {
        let ip = check_ip(target.ip(), self.is_loopback_allowed)?;
        let target = SocketAddr::new(ip, target.port());
        if self.members.contains(target) { Err(Forbidden::Member(target)) } else { Ok(()) }
    }

    /// Checks a resolved address of an instance before a plug-in connects on behalf of a client. A role is
    /// allowed only at the HTTP addresses in the header of its node. A program is allowed at any address at
    /// which no node listens. A request to a node would reach paths that no role announces.
    ///
    /// # Errors
    /// The rule that refuses it.
    pub fn check_instance(&self, at: InstanceAddress<'_>, target: SocketAddr) -> Result<(), Forbidden> {
        let ip = check_ip(target.ip(), self.allows_loopback(at.node_id))?;
        let target = SocketAddr::new(ip, target.port());
        if at.is_role {
            return self.check_role(at, target.port());
        }
        if self.members.contains(target) { Err(Forbidden::Member(target)) } else { Ok(()) }
    }

    /// Checks the announced host and port of a role. [`check_ip`] checks the addresses to which the host
    /// resolves.
    ///
    /// # Errors
    /// The header of its node does not have this host and port.
    pub fn check_role(&self, at: InstanceAddress<'_>, port: u16) -> Result<(), Forbidden> {
        if self.members.is_http_of(at.node_id, at.host, port) { Ok(()) } else { Err(Forbidden::Announcer) }
    }

    /// Returns whether instances of this node may have loopback addresses.
    pub fn allows_loopback(&self, node: NodeId) -> bool {
        self.is_loopback_allowed || self.members.shares_loopback(node)
    }

    /// Counts a refusal.
    pub fn count(&self, refusal: Forbidden) {
        if let Some(counter) = self.refusals.get(refusal.index()) {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// Returns the number of refusals by rule.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Forbidden::RULES.into_iter().zip(self.refusals.iter().map(|counter| counter.load(Relaxed)))
    }
}

/// Checks an IP address, without the rule for members. Returns the address that is reached: the IPv4 address
/// for an IPv4-mapped or a translated (NAT64) one.
///
/// # Errors
/// The rule that refuses it.
pub fn check_ip(ip: IpAddr, is_loopback_allowed: bool) -> Result<IpAddr, Forbidden> {
    match ip {
        IpAddr::V4(v4) => check_v4(v4, ip, is_loopback_allowed)?,
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4_mapped() {
                check_v4(v4, ip, is_loopback_allowed)?;
                return Ok(v4.into());
            }
            if let Some(v4) = nat64(v6) {
                // A loopback address behind a translator is the translator's own.
                check_v4(v4, ip, false)?;
                return Ok(v4.into());
            }
            check_v6(v6, is_loopback_allowed)?;
        }
    }
    Ok(ip)
}

fn check_v4(v4: Ipv4Addr, stated: IpAddr, is_loopback_allowed: bool) -> Result<(), Forbidden> {
    if v4.octets()[0] == 0 {
        Err(Forbidden::Unspecified(stated))
    } else if v4.is_link_local() {
        Err(Forbidden::LinkLocal(stated))
    } else if is_metadata(v4.into()) {
        Err(Forbidden::Metadata(stated))
    } else if v4.is_multicast() {
        Err(Forbidden::Multicast(stated))
    } else if v4.is_broadcast() {
        Err(Forbidden::Broadcast(stated))
    } else if v4.is_loopback() && !is_loopback_allowed {
        Err(Forbidden::Loopback(stated))
    } else {
        Ok(())
    }
}

fn check_v6(v6: Ipv6Addr, is_loopback_allowed: bool) -> Result<(), Forbidden> {
    let ip = IpAddr::V6(v6);
    if v6.is_unspecified() {
        Err(Forbidden::Unspecified(ip))
    } else if v6.is_loopback() {
        if is_loopback_allowed { Ok(()) } else { Err(Forbidden::Loopback(ip)) }
    } else if v6.is_unicast_link_local() {
        Err(Forbidden::LinkLocal(ip))
    } else if is_metadata(ip) {
        Err(Forbidden::Metadata(ip))
    } else if v6.is_multicast() {
        Err(Forbidden::Multicast(ip))
    } else if is_tunnel(v6) {
        Err(Forbidden::Tunnel(ip))
    } else {
        Ok(())
    }
}

/// Returns whether a cloud serves metadata at this address. Most use 169.254.169.254, which is link-local.
pub(crate) fn is_metadata(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => matches!(
            v4.octets(),
            // Alibaba Cloud; Azure's wire server; Oracle Cloud Classic.
            [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192]
        ),
        IpAddr::V6(v6) => match v6.segments() {
            // AWS uses the whole range: metadata at ::254, credentials of pods at ::23.
            [0xfd00, 0x0ec2, ..] => true,
            // Google Cloud.
            [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254] => true,
            // Oracle Cloud; Scaleway; Akamai (Linode).
            [0xfd00, 0x00c1, 0, 0, 0, 0, 0xa9fe, 0xa9fe]
            | [0xfd00, 0x0042, 0, 0, 0, 0, 0, 0x0042]
            | [0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 0x0001] => true,
            _ => false,
        },
    }
}

/// Returns the IPv4 address in an address with the well-known prefix of NAT64 (RFC 6052), by which hosts
/// without IPv4 reach IPv4.
fn nat64(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    match v6.segments() {
        [0x0064, 0xff9b, 0, 0, 0, 0, high, low] => {
            Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        _ => None,
    }
}

/// Returns whether an address embeds an IPv4 address in a deprecated form, or in one that depends on the
/// translator.
fn is_tunnel(v6: Ipv6Addr) -> bool {
    match v6.segments() {
        // IPv4-compatible; IPv4-translated.
        [0, 0, 0, 0, 0, 0, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] => true,
        // NAT64 with a prefix of the local network.
        [0x0064, 0xff9b, 0x0001, ..] => true,
        // Teredo; 6to4.
        [0x2001, 0, ..] | [0x2002, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> AddressPolicy {
        let member: SocketAddr = "10.0.0.5:7500".parse().unwrap();
        let member6: SocketAddr = "[fd77::5]:7500".parse().unwrap();
        AddressPolicy::new(Arc::new(move |a: SocketAddr| a == member || a == member6))
    }

    fn rule(policy: &AddressPolicy, target: &str) -> &'static str {
        policy.check(target.parse().unwrap()).map_or_else(Forbidden::rule, |()| "allowed")
    }

    /// Targets by rule, with loopback refused.
    const TARGETS: &[(&str, &[&str])] = &[
        (
            "allowed",
            &[
                "1.1.1.1:80",
                "10.0.0.5:80",
                "192.168.1.2:7500",
                "172.16.0.1:1",
                "100.64.0.1:80",
                "240.0.0.1:80",
                "[2606:4700::1111]:443",
                "[fd77::5]:80",
                "[fc00::1]:80",
                "[::ffff:10.0.0.6]:7500",
                "[64:ff9b::1.1.1.1]:80",
                "[2001:db8::1]:80",
                "[fd00:c1::1]:80",
            ],
        ),
        ("unspecified", &["0.0.0.0:80", "0.1.2.3:80", "[::]:80", "[::ffff:0.0.0.0]:80", "[64:ff9b::]:80"]),
        (
            "link_local",
            &[
                "169.254.169.254:80",
                "169.254.0.1:80",
                "[fe80::1]:80",
                "[fe80::a9fe:a9fe]:80",
                "[febf::1]:80",
                "[::ffff:169.254.169.254]:80",
                "[64:ff9b::a9fe:a9fe]:80",
            ],
        ),
        (
            "metadata",
            &[
                "[fd00:ec2::254]:80",
                "[fd00:ec2::23]:80",
                "[fd20:ce::254]:80",
                "[fd00:c1::a9fe:a9fe]:80",
                "[fd00:42::42]:80",
                "[fd00:a9fe:a9fe::1]:80",
                "100.100.100.200:80",
                "168.63.129.16:80",
                "192.0.0.192:80",
                "[::ffff:100.100.100.200]:80",
                "[64:ff9b::168.63.129.16]:80",
            ],
        ),
        ("multicast", &["224.0.0.1:80", "239.255.255.255:80", "[ff02::1]:80", "[::ffff:224.0.0.1]:80"]),
        ("broadcast", &["255.255.255.255:80", "[::ffff:255.255.255.255]:80"]),
        (
            "tunnel",
            &[
                "[::127.0.0.1]:80",
                "[::169.254.169.254]:80",
                "[::2]:80",
                "[::ffff:0:10.0.0.1]:80",
                "[64:ff9b:1::a9fe:a9fe]:80",
                "[2002:a9fe:a9fe::]:80",
                "[2002:0a00:0001::1]:80",
                "[2001:0:4136:e378:8000:63bf:3fff:fdd2]:80",
            ],
        ),
        (
            "loopback",
            &[
                "127.0.0.1:80",
                "127.255.0.1:80",
                "[::1]:80",
                "[::ffff:127.0.0.1]:80",
                "[64:ff9b::127.0.0.1]:80",
            ],
        ),
        (
            "member",
            &["10.0.0.5:7500", "[fd77::5]:7500", "[::ffff:10.0.0.5]:7500", "[64:ff9b::10.0.0.5]:7500"],
        ),
    ];

    #[test]
    fn each_address_is_refused_by_its_rule() {
        let policy = policy();
        for (expected, targets) in TARGETS {
            for target in *targets {
                assert_eq!(rule(&policy, target), *expected, "{target}");
            }
        }
    }

    #[test]
    fn loopback_is_allowed_for_own_registrations_and_nothing_else_is_with_it() {
        let policy = policy().with_loopback(true);
        for target in ["127.0.0.1:80", "127.0.0.53:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
            assert_eq!(rule(&policy, target), "allowed", "{target}");
        }
        assert_eq!(rule(&policy, "[64:ff9b::127.0.0.1]:80"), "loopback");
        for (expected, targets) in TARGETS.iter().filter(|(rule, _)| *rule != "loopback") {
            for target in *targets {
                assert_eq!(rule(&policy, target), *expected, "{target}");
            }
        }
    }

    /// A cluster with one node at 10.0.0.5:7500, and one on this machine at 127.0.0.1:7501.
    struct Nodes;

    const OTHER: [u8; 32] = [5; 32];
    const BESIDE: [u8; 32] = [6; 32];

    impl MemberAddresses for Nodes {
        fn contains(&self, address: SocketAddr) -> bool {
            ["10.0.0.5:7500", "127.0.0.1:7501"].contains(&address.to_string().as_str())
        }
        fn is_http_of(&self, node: NodeId, host: &str, port: u16) -> bool {
            let is = |key, places: &[(&str, u16)]| {
                node == NodeId::from_public_key(key) && places.contains(&(host, port))
            };
            is(OTHER, &[("10.0.0.5", 7500), ("other.test", 7500)]) || is(BESIDE, &[("127.0.0.1", 7501)])
        }
        fn shares_loopback(&self, node: NodeId) -> bool {
            node == NodeId::from_public_key(BESIDE)
        }
    }

    #[test]
    fn a_role_is_reached_where_its_node_is_and_a_program_where_no_node_is() {
        let policy = AddressPolicy::new(Arc::new(Nodes));
        let rule = |node: [u8; 32], is_role, host: &str, target: &str| {
            let at = InstanceAddress { node_id: NodeId::from_public_key(node), is_role, host };
            let judged = policy.check_instance(at, target.parse().unwrap());
            judged.map_or_else(Forbidden::rule, |()| "allowed")
        };
        for (node, is_role, host, target, expected) in [
            (OTHER, true, "10.0.0.5", "10.0.0.5:7500", "allowed"),
            (OTHER, true, "other.test", "10.9.9.9:7500", "allowed"),
            (OTHER, true, "other.test", "127.0.0.1:7500", "loopback"),
            (OTHER, true, "other.test", "169.254.169.254:7500", "link_local"),
            (OTHER, true, "10.0.0.5", "10.0.0.5:2375", "announcer"),
            (OTHER, true, "10.0.0.6", "10.0.0.6:7500", "announcer"),
            (BESIDE, true, "10.0.0.5", "10.0.0.5:7500", "announcer"),
            (BESIDE, true, "127.0.0.1", "127.0.0.1:7501", "allowed"),
            (BESIDE, true, "127.0.0.1", "127.0.0.1:2375", "announcer"),
            (OTHER, false, "10.0.0.5", "10.0.0.5:7500", "member"),
            (OTHER, false, "10.0.0.5", "10.0.0.5:80", "allowed"),
            (OTHER, false, "127.0.0.1", "127.0.0.1:80", "loopback"),
            (BESIDE, false, "127.0.0.1", "127.0.0.1:80", "allowed"),
            (BESIDE, false, "127.0.0.1", "127.0.0.1:7501", "member"),
            (OTHER, false, "fd00:ec2::254", "[fd00:ec2::254]:80", "metadata"),
        ] {
            assert_eq!(rule(node, is_role, host, target), expected, "{host} {target} role: {is_role}");
        }
    }

    #[test]
    fn refusals_are_counted_by_rule() {
        let policy = policy();
        let shared = policy.clone();
        shared.count(Forbidden::Member("10.0.0.5:7500".parse().unwrap()));
        shared.count(Forbidden::NotAllowed("10.0.0.5".parse().unwrap()));
        let counted: Vec<_> = policy.refusals().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("member", 1), ("not_allowed", 1)]);
    }

    #[test]
    fn a_refusal_names_the_address_as_it_was_stated() {
        let refusal = policy().check("[::ffff:169.254.169.254]:80".parse().unwrap()).unwrap_err();
        assert!(
            refusal.to_string().starts_with("::ffff:169.254.169.254 is a link-local address"),
            "{refusal}"
        );
    }
}
