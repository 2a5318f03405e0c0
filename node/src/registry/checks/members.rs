//! [`ClusterAddresses`]: the addresses of the cluster's nodes, for the address policy. Checks must not
//! connect to them; plug-ins reach roles only at them.
//!
//! A node trusts requests from its own machine and from members. A check that connects to a node would lend
//! this trust to the program that registered the check.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use hearsay_protocol::{Index, Member, MemberState, NodeId, host_of_multiaddr};
use hearsay_services::network::MemberAddresses;
use tokio::time::Instant;

use crate::{system::interfaces, view::View};

/// The longest age of the cached list of this machine's addresses; a new address is noticed within this time.
const INTERFACES_MAX_AGE: Duration = Duration::from_secs(10);

/// Addresses of members, from the provider table, and of this node's listeners.
#[derive(Debug)]
pub(super) struct ClusterAddresses {
    me: NodeId,
    view: Arc<View>,
    listeners: Vec<SocketAddr>,
    lists: RwLock<Lists>,
}

#[derive(Debug)]
struct Lists {
    /// The index of the table that `members` was computed from.
    index: Option<Index>,
    members: BTreeSet<SocketAddr>,
    /// The same addresses, grouped by member.
    by_member: Vec<Vec<SocketAddr>>,
    read_at: Option<Instant>,
    interfaces: BTreeSet<IpAddr>,
}

impl ClusterAddresses {
    /// Returns the addresses of the members in this table and of these listeners.
    pub(super) fn new(me: NodeId, view: Arc<View>, listeners: Vec<SocketAddr>) -> Self {
        let lists = Lists {
            index: None,
            members: BTreeSet::new(),
            by_member: Vec::new(),
            read_at: None,
            interfaces: BTreeSet::new(),
        };
        Self { me, view, listeners, lists: RwLock::new(lists) }
    }

    fn is_member(&self, address: SocketAddr) -> bool {
        let index = self.view.read(|table| table.members_index());
        {
            let lists = self.lists.read().unwrap_or_else(PoisonError::into_inner);
            if lists.index == Some(index) {
                return lists.members.contains(&address);
            }
        }
        let by_member: Vec<Vec<SocketAddr>> =
            self.view.read(|table| table.members().map(addresses_of).collect());
        let mut lists = self.lists.write().unwrap_or_else(PoisonError::into_inner);
        lists.members = by_member.iter().flatten().copied().collect();
        (lists.index, lists.by_member) = (Some(index), by_member);
        lists.members.contains(&address)
    }

    /// Whether one of this node's listeners accepts connections to this address. A listener at an unspecified
    /// address accepts them at each address of the machine.
    fn is_own_listener(&self, address: SocketAddr) -> bool {
        let mut candidates = self.listeners.iter().filter(|listener| listener.port() == address.port());
        candidates.any(|listener| {
            let ip = listener.ip().to_canonical();
            ip == address.ip() || (ip.is_unspecified() && self.is_own_ip(address.ip()))
        })
    }

    fn is_own_ip(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.with_interfaces(|lists| lists.interfaces.contains(&ip))
    }

    /// Whether a node on this machine listens at this port, at any address of the machine. A header has only
    /// the addresses for others, not loopback. A node is on this machine if all its addresses are: two hosts
    /// may have the same address on a bridge for containers.
    fn is_local_member(&self, address: SocketAddr) -> bool {
        let is_local = |lists: &Lists, ip: IpAddr| ip.is_loopback() || lists.interfaces.contains(&ip);
        self.is_own_ip(address.ip())
            && self.with_interfaces(|lists| {
                lists.by_member.iter().any(|member| {
                    member.iter().any(|listener| listener.port() == address.port())
                        && member.iter().all(|listener| is_local(lists, listener.ip()))
                })
            })
    }

    /// Calls `read` with the addresses of this machine, refreshed if older than [`INTERFACES_MAX_AGE`].
    fn with_interfaces<R>(&self, read: impl FnOnce(&Lists) -> R) -> R {
        {
            let lists = self.lists.read().unwrap_or_else(PoisonError::into_inner);
            if lists.read_at.is_some_and(|at| at.elapsed() < INTERFACES_MAX_AGE) {
                return read(&lists);
            }
        }
        let interfaces = interfaces::addresses().into_iter().map(|address| address.ip).collect();
        let mut lists = self.lists.write().unwrap_or_else(PoisonError::into_inner);
        (lists.read_at, lists.interfaces) = (Some(Instant::now()), interfaces);
        read(&lists)
    }
}

impl MemberAddresses for ClusterAddresses {
    fn contains(&self, address: SocketAddr) -> bool {
        self.is_own_listener(address) || self.is_member(address) || self.is_local_member(address)
    }

    fn is_http_of(&self, node: NodeId, host: &str, port: u16) -> bool {
        // If the stated port is mapped, this node reaches its own HTTP at a listener instead.
        let is_own = || {
            let ip = host.parse::<IpAddr>().ok();
            ip.is_some_and(|ip| self.is_own_listener(SocketAddr::new(ip.to_canonical(), port)))
        };
        self.view.read(|table| table.member(node).is_some_and(|member| states_http(member, host, port)))
            || (node == self.me && is_own())
    }

    /// True for this node and for nodes connected from this machine. If this node advertises only loopback,
    /// no other host can reach it, so the result is true for all nodes.
    fn shares_loopback(&self, node: NodeId) -> bool {
        let is_loopback = |address: &String| {
            host_of_multiaddr(address)
                .and_then(|host| host.parse().ok())
                .is_some_and(|ip: IpAddr| ip.is_loopback())
        };
        let connected = || self.view.read(|table| table.connected(node));
        node == self.me
            || connected().is_some_and(|ip| self.is_own_ip(ip.to_canonical()))
            || self.view.read(|table| {
                let me = table.member(self.me);
                me.is_some_and(|me| !me.addresses.is_empty() && me.addresses.iter().all(is_loopback))
            })
    }
}

/// Whether a member's header states HTTP at this address. The port must be that of the member's HTTP; the
/// host may be that of its HTTP or of any of its addresses.
fn states_http(member: &Member, host: &str, port: u16) -> bool {
    let Some((stated, http_port)) = member.http.as_deref().and_then(|http| http.rsplit_once(':')) else {
        return false;
    };
    let is_host = |stated: &str| match (stated.parse::<IpAddr>(), host.parse::<IpAddr>()) {
        (Ok(stated), Ok(host)) => stated.to_canonical() == host.to_canonical(),
        _ => stated.eq_ignore_ascii_case(host),
    };
    let mut hosts = member.addresses.iter().filter_map(|address| host_of_multiaddr(address));
    http_port.parse() == Ok(port) && (is_host(stated.trim_matches(['[', ']'])) || hosts.any(is_host))
}

/// Returns the addresses of a member: its swarm, and its HTTP and gRPC at each address of its header. Host
/// names are left out, because they may resolve to other addresses later. A member that left has none.
fn addresses_of(member: &Member) -> Vec<SocketAddr> {
    if member.state == MemberState::Left {
        return Vec::new();
    }
    let swarm: Vec<SocketAddr> = member.addresses.iter().filter_map(|address| socket_of(address)).collect();
    let listeners = [&member.http, &member.grpc].into_iter().filter_map(|stated| {
        let (host, port) = stated.as_deref()?.rsplit_once(':')?;
        Some((host.trim_matches(['[', ']']).parse::<IpAddr>().ok(), port.parse::<u16>().ok()?))
    });
    let listeners = listeners.flat_map(|(host, port)| {
        swarm.iter().map(SocketAddr::ip).chain(host).map(move |ip| SocketAddr::new(ip, port))
    });
    let all = listeners.chain(swarm.iter().copied());
    all.map(|address| SocketAddr::new(address.ip().to_canonical(), address.port())).collect()
}

/// Parses a multiaddr such as `/ip4/10.0.0.1/tcp/7600`.
fn socket_of(multiaddr: &str) -> Option<SocketAddr> {
    let mut parts = multiaddr.strip_prefix('/')?.split('/');
    let (family, host, transport, port) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if !matches!(family, "ip4" | "ip6") || transport != "tcp" {
        return None;
    }
    Some(SocketAddr::new(host.parse().ok()?, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use hearsay_protocol::{Change, Incarnation, NodeId, Time, Version};

    use super::*;
    use crate::view::Clock;

    fn member(id: u8, state: MemberState) -> Member {
        Member {
            id: NodeId::from_public_key([id; 32]),
            name: format!("n{id}"),
            state,
            roles: Vec::new(),
            addresses: vec![format!("/ip4/10.0.0.{id}/tcp/7600"), format!("/ip6/fd77::{id}/tcp/7600")],
            http: Some(format!("10.0.1.{id}:7500")),
            zone: None,
            software: String::new(),
            protocol: 3,
            ephemeral: false,
            grpc: Some(format!("10.0.2.{id}:7700")),
            incarnation: Incarnation(1),
            version: Version(1),
            since: Time::from_start(Duration::ZERO),
            rtt: None,
            rank: 0,
            namesake: false,
        }
    }

    const ME: [u8; 32] = [99; 32];

    fn of_cluster(view: &Arc<View>, listeners: &[&str]) -> ClusterAddresses {
        let listeners = listeners.iter().map(|listener| listener.parse().unwrap()).collect();
        ClusterAddresses::new(NodeId::from_public_key(ME), Arc::clone(view), listeners)
    }

    #[test]
    fn the_http_of_a_member_is_where_its_header_says() {
        let view = Arc::new(View::new(Index(1), Clock::start()));
        let addresses = of_cluster(&view, &["0.0.0.0:7500"]);
        let of = |id, host, port| addresses.is_http_of(NodeId::from_public_key([id; 32]), host, port);
        assert!(!of(1, "10.0.0.1", 7500), "an unknown node");
        let named = Member {
            addresses: vec!["/dns/db.example/tcp/7600".into()],
            http: Some("db.example:17500".into()),
            ..member(2, MemberState::Alive)
        };
        let members = [member(1, MemberState::Alive), named];
        view.apply(view.clock().now(), members.map(|member| Change::Member(Box::new(member))));
        for host in ["10.0.0.1", "10.0.1.1", "fd77::1", "fd77:0::1"] {
            assert!(of(1, host, 7500), "{host}");
        }
        assert!(!of(1, "10.0.0.1", 7600) && !of(1, "10.0.0.2", 7500) && !of(1, "127.0.0.1", 7500));
        assert!(of(2, "DB.example", 17500) && !of(2, "db.example", 7500) && !of(2, "10.0.0.2", 17500));
        assert!(of(ME[0], "127.0.0.1", 7500), "where this node listens");
        assert!(!of(ME[0], "127.0.0.1", 7501) && !of(ME[0], "localhost", 7500));
    }

    #[test]
    fn loopback_is_shared_only_if_this_node_has_no_other_address() {
        let view = Arc::new(View::new(Index(1), Clock::start()));
        let addresses = of_cluster(&view, &[]);
        let me = NodeId::from_public_key(ME);
        let other = NodeId::from_public_key([1; 32]);
        let shared = || (addresses.shares_loopback(me), addresses.shares_loopback(other));
        assert_eq!(shared(), (true, false), "before anything is stated");
        let state = |stated: &[&str]| {
            let addresses = stated.iter().map(|address| (*address).to_owned()).collect();
            let own = Member { id: me, addresses, ..member(9, MemberState::Alive) };
            view.apply(view.clock().now(), [Change::Member(Box::new(own))]);
        };
        state(&["/ip4/127.0.0.1/tcp/7600", "/ip6/::1/tcp/7600"]);
        assert_eq!(shared(), (true, true));
        state(&["/ip4/127.0.0.1/tcp/7600", "/ip4/10.0.0.9/tcp/7600"]);
        assert_eq!(shared(), (true, false));
        state(&["/dns/localhost/tcp/7600"]);
        assert_eq!(shared(), (true, false), "what a name means is not known here");
    }

    fn contains(addresses: &ClusterAddresses, address: &str) -> bool {
        addresses.contains(address.parse().unwrap())
    }

    #[test]
    fn every_address_of_a_member_that_has_not_left_is_listed() {
        let view = Arc::new(View::new(Index(1), Clock::start()));
        let addresses = of_cluster(&view, &[]);
        assert!(!contains(&addresses, "10.0.0.1:7600"));
        let now = view.clock().now();
        let members = [(1, MemberState::Alive), (2, MemberState::Failed), (3, MemberState::Left)];
        view.apply(now, members.map(|(id, state)| Change::Member(Box::new(member(id, state)))));
        for address in [
            "10.0.0.1:7600",
            "10.0.0.1:7500",
            "10.0.1.1:7500",
            "10.0.0.1:7700",
            "10.0.2.1:7700",
            "[fd77::1]:7700",
            "[fd77::1]:7600",
            "[fd77::1]:7500",
            "10.0.0.2:7600",
        ] {
            assert!(contains(&addresses, address), "{address}");
        }
        for address in ["10.0.0.1:80", "10.0.0.3:7600", "10.0.0.3:7700", "10.0.1.1:7600", "10.0.1.1:7700"] {
            assert!(!contains(&addresses, address), "{address}");
        }
    }

    #[test]
    fn a_node_of_this_machine_is_listed_under_each_own_address() {
        let view = Arc::new(View::new(Index(1), Clock::start()));
        let addresses = of_cluster(&view, &[]);
        let is_outer = |ip: IpAddr| ip.is_ipv4() && !ip.is_loopback();
        let Some(own) = interfaces::addresses().into_iter().find(|own| is_outer(own.ip)) else { return };
        let beside = Member {
            addresses: vec![format!("/ip4/{}/tcp/7601", own.ip)],
            http: Some(format!("{}:7501", own.ip)),
            grpc: Some(format!("{}:7701", own.ip)),
            ..member(1, MemberState::Alive)
        };
        view.apply(view.clock().now(), [Change::Member(Box::new(beside))]);
        for address in ["127.0.0.1:7501", "127.9.9.9:7601", "[::1]:7501", "127.0.0.1:7701"] {
            assert!(contains(&addresses, address), "{address}");
        }
        for address in ["127.0.0.1:7502", "203.0.113.1:7501"] {
            assert!(!contains(&addresses, address), "{address}");
        }
        // A member on another host, whose bridge for containers has the same address.
        let other = Member {
            addresses: vec![format!("/ip4/{}/tcp/7602", own.ip), "/ip4/203.0.113.2/tcp/7602".into()],
            http: Some("203.0.113.2:7502".into()),
            grpc: None,
            ..member(2, MemberState::Alive)
        };
        view.apply(view.clock().now(), [Change::Member(Box::new(other))]);
        assert!(contains(&addresses, &format!("{}:7502", own.ip)));
        assert!(!contains(&addresses, "127.0.0.1:7502"));
    }

    #[test]
    fn own_listeners_are_listed_under_each_own_address() {
        let view = Arc::new(View::new(Index(1), Clock::start()));
        let addresses = of_cluster(&view, &["0.0.0.0:7500", "127.0.0.1:7700"]);
        for address in ["127.0.0.1:7500", "127.0.0.2:7500", "[::1]:7500", "127.0.0.1:7700"] {
            assert!(contains(&addresses, address), "{address}");
        }
        for own in interfaces::addresses() {
            assert!(addresses.contains(SocketAddr::new(own.ip, 7500)), "{own:?}");
        }
        for address in ["127.0.0.1:7501", "127.0.0.2:7700", "203.0.113.1:7500"] {
            assert!(!contains(&addresses, address), "{address}");
        }
    }
}
