//! The addresses at which nodes of the cluster listen: no check may call them, and plug-ins reach roles there
//! alone.
//!
//! A node trusts requests of its own machine and of members. A check that reached a node would lend that
//! trust to the program that registered it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use hearsay_protocol::{
    NodeId,
    providers::{Index, Member, MemberState, host_of},
};
use hearsay_services::address_policy::MemberAddresses;
use tokio::time::Instant;

use crate::{interfaces, view::View};

/// How long the list of this machine's addresses is used before it is read again. An address that is added
/// later is covered by then.
const INTERFACES_MAX_AGE: Duration = Duration::from_secs(10);

/// The addresses of members by the provider table, and of this node's own listeners.
#[derive(Debug)]
pub(super) struct ClusterAddresses {
    me: NodeId,
    view: Arc<View>,
    listeners: Vec<SocketAddr>,
    lists: RwLock<Lists>,
}

#[derive(Debug)]
struct Lists {
    /// The table's index that `members` was made of.
    index: Option<Index>,
    members: BTreeSet<SocketAddr>,
    /// The same, member by member.
    by_member: Vec<Vec<SocketAddr>>,
    read_at: Option<Instant>,
    interfaces: BTreeSet<IpAddr>,
}

impl ClusterAddresses {
    /// The addresses of the members in this table, and of this node with these listeners.
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

    /// Whether one of this node's listeners takes connections to this address. A listener at an unspecified
    /// address takes those to each address of the machine.
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

    /// Whether a node of this machine listens at this port, whichever of the machine's addresses is asked for. Its
    /// header states only those at which others reach it, and never the loopback. A node is of this machine if
    /// all its addresses are: two hosts may share the address of a bridge for containers.
    fn is_beside(&self, address: SocketAddr) -> bool {
        let is_local = |lists: &Lists, ip: IpAddr| ip.is_loopback() || lists.interfaces.contains(&ip);
        self.is_own_ip(address.ip())
            && self.with_interfaces(|lists| {
                lists.by_member.iter().any(|member| {
                    member.iter().any(|listener| listener.port() == address.port())
                        && member.iter().all(|listener| is_local(lists, listener.ip()))
                })
            })
    }

    /// Reads the addresses of this machine, unless they were read a moment ago.
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
        self.is_own_listener(address) || self.is_member(address) || self.is_beside(address)
    }

    fn is_http_of(&self, node: NodeId, host: &str, port: u16) -> bool {
        // Where others are told a mapped port, this node itself goes to where it listens.
        let is_own = || {
            let ip = host.parse::<IpAddr>().ok();
            ip.is_some_and(|ip| self.is_own_listener(SocketAddr::new(ip.to_canonical(), port)))
        };
        self.view.read(|table| table.member(node).is_some_and(|member| states_http(member, host, port)))
            || (node == self.me && is_own())
    }

    /// This node's own addresses mean this machine. Those of others do if they are connected from this machine, or if this
    /// node is advertised at loopback alone: then no node of another host can reach it, and all of them are here.
    fn shares_loopback(&self, node: NodeId) -> bool {
        let is_loopback = |address: &String| {
            host_of(address).and_then(|host| host.parse().ok()).is_some_and(|ip: IpAddr| ip.is_loopback())
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

/// Whether a member states that its HTTP is there: at the port of its HTTP, and at the host of that or of one
/// of its other addresses.
fn states_http(member: &Member, host: &str, port: u16) -> bool {
    let Some((stated, http_port)) = member.http.as_deref().and_then(|http| http.rsplit_once(':')) else {
        return false;
    };
    let is_host = |stated: &str| match (stated.parse::<IpAddr>(), host.parse::<IpAddr>()) {
        (Ok(stated), Ok(host)) => stated.to_canonical() == host.to_canonical(),
        _ => stated.eq_ignore_ascii_case(host),
    };
    let mut hosts = member.addresses.iter().filter_map(|address| host_of(address));
    http_port.parse() == Ok(port) && (is_host(stated.trim_matches(['[', ']'])) || hosts.any(is_host))
}

/// The addresses of a member: its swarm, and its HTTP at the stated address and at each address of its
/// header. Names are left out, because what they resolve to changes. The addresses of a member that left are
/// free for others.
fn addresses_of(member: &Member) -> Vec<SocketAddr> {
    if member.state == MemberState::Left {
        return Vec::new();
    }
    let swarm: Vec<SocketAddr> = member.addresses.iter().filter_map(|address| socket_of(address)).collect();
    let http = member.http.as_deref().and_then(|http| http.rsplit_once(':'));
    let http_port = http.and_then(|(_, port)| port.parse::<u16>().ok());
    let stated = http.and_then(|(host, _)| host.trim_matches(['[', ']']).parse::<IpAddr>().ok());
    let hosts = swarm.iter().map(SocketAddr::ip).chain(stated);
    let http = http_port.into_iter().flat_map(|port| hosts.clone().map(move |ip| SocketAddr::new(ip, port)));
    let all = http.chain(swarm.iter().copied());
    all.map(|address| SocketAddr::new(address.ip().to_canonical(), address.port())).collect()
}

/// The socket of a multiaddr such as `/ip4/10.0.0.1/tcp/7600`.
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
    use hearsay_protocol::{Incarnation, NodeId, Time, Version, providers::Change};

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
            incarnation: Incarnation(1),
            version: Version(1),
            since: Time::from_start(Duration::ZERO),
            rtt: None,
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
            "[fd77::1]:7600",
            "[fd77::1]:7500",
            "10.0.0.2:7600",
        ] {
            assert!(contains(&addresses, address), "{address}");
        }
        for address in ["10.0.0.1:80", "10.0.0.3:7600", "10.0.1.1:7600"] {
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
            ..member(1, MemberState::Alive)
        };
        view.apply(view.clock().now(), [Change::Member(Box::new(beside))]);
        for address in ["127.0.0.1:7501", "127.9.9.9:7601", "[::1]:7501"] {
            assert!(contains(&addresses, address), "{address}");
        }
        for address in ["127.0.0.1:7502", "203.0.113.1:7501"] {
            assert!(!contains(&addresses, address), "{address}");
        }
        // Another host, whose bridge has the same address.
        let other = Member {
            addresses: vec![format!("/ip4/{}/tcp/7602", own.ip), "/ip4/203.0.113.2/tcp/7602".into()],
            http: Some("203.0.113.2:7502".into()),
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
