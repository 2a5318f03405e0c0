//! Multicast and addresses of this machine, for `node doctor`: reads interfaces and their mDNS groups from
//! the kernel, tests the mDNS port, and judges whether discovery works and other nodes can use the addresses.
//!
//! Interfaces come from `getifaddrs`, not from `/sys/class/net`. In a container or under `unshare -n`, `/sys`
//! may show another network namespace: the one in which it was mounted. `/proc/net` always shows the
//! namespace of the process.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4},
};

use nix::{
    ifaddrs::getifaddrs,
    net::if_::{InterfaceFlags, if_nametoindex},
};
use socket2::{Domain, InterfaceIndexOrAddress, Socket, Type};

use super::{super::responses::Network, Finding};
use crate::system::interfaces::InterfaceAddress;

/// Multicast DNS: RFC 6762, section 3.
const MDNS_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const MDNS_GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
const MDNS_PORT: u16 = 5353;

/// Multicast state of a network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Interface {
    name: String,
    flags: InterfaceFlags,
    /// The error of joining the mDNS group, if tried.
    refused: Option<String>,
    /// Whether a process on this machine listens to mDNS on it.
    has_listener: bool,
}

impl Interface {
    fn can_multicast(&self) -> bool {
        self.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_MULTICAST)
            && !self.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    }
}

/// Returns the interfaces of this machine. On usable interfaces it joins and leaves the mDNS group as a test.
pub(super) fn interfaces() -> Vec<Interface> {
    let listed = |file: &str, parse: fn(&str) -> Vec<String>| {
        fs::read_to_string(file).map(|text| parse(&text)).unwrap_or_default()
    };
    let mut has_listener = listed("/proc/net/igmp", parse_igmp);
    has_listener.extend(listed("/proc/net/igmp6", parse_igmp6));
    // `getifaddrs` has an entry per address; the map has one per interface.
    let flags: BTreeMap<_, _> = getifaddrs()
        .map(|entries| entries.map(|entry| (entry.interface_name, entry.flags)).collect())
        .unwrap_or_default();
    let interfaces = flags.into_iter().map(|(name, flags)| {
        let has_listener = has_listener.contains(&name);
        let mut interface = Interface { name, flags, refused: None, has_listener };
        if interface.can_multicast() {
            interface.refused = join_group(&interface.name).err().map(|error| error.to_string());
        }
        interface
    });
    interfaces.collect()
}

/// Returns the interfaces in `/proc/net/igmp` on which a process joined the mDNS group. A line that starts
/// with a number is an interface; the indented lines below are its groups, in hexadecimal and native byte
/// order.
fn parse_igmp(igmp: &str) -> Vec<String> {
    let group = format!("{:08X}", u32::from_ne_bytes(MDNS_GROUP.octets()));
    let (mut interfaces, mut current) = (Vec::new(), "");
    for line in igmp.lines().skip(1) {
        if !line.starts_with(char::is_whitespace) {
            current = line.split_whitespace().nth(1).unwrap_or_default();
        } else if line.split_whitespace().next() == Some(&group) {
            interfaces.push(current.to_owned());
        }
    }
    interfaces
}

/// Returns the interfaces in `/proc/net/igmp6` on which a process joined the mDNS group. Each line is an
/// interface and one of its groups.
fn parse_igmp6(igmp6: &str) -> Vec<String> {
    let group = format!("{:032x}", MDNS_GROUP_V6.to_bits());
    let columns = igmp6.lines().map(|line| line.split_whitespace().skip(1));
    let interfaces = columns.filter_map(|mut columns| Some((columns.next()?, columns.next()?)));
    interfaces.filter(|(_, joined)| *joined == group).map(|(interface, _)| interface.to_owned()).collect()
}

/// Joins the group on an interface with a socket that sends nothing; closing it leaves the group.
fn join_group(interface: &str) -> io::Result<()> {
    let index = if_nametoindex(interface)?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_multicast_loop_v4(false)?;
    socket.join_multicast_v4_n(&MDNS_GROUP, &InterfaceIndexOrAddress::Index(index))
}

/// Checks whether the mDNS port can be shared with other processes, as libp2p does.
pub(super) fn mdns_port() -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, MDNS_PORT).into())
}

/// Judges whether the addresses of this machine are usable by other nodes.
pub(super) fn judge_addresses(addresses: &[InterfaceAddress]) -> Option<Finding> {
    let others = || addresses.iter().filter(|address| !address.ip.is_loopback());
    let routable = || others().filter(|address| address.is_routable());
    let named = |a: &InterfaceAddress| format!("{} on {}", a.ip, a.interface);
    if others().next().is_some() && routable().next().is_none() {
        let names: Vec<_> = others().map(named).collect();
        return Some(Finding::warn(
            format!("this machine has only link-local addresses ({})", names.join(", ")),
            "other nodes cannot be dialled at an IPv6 link-local address, and the gateway sends nothing to an IPv4 one: give the \
             interface an address, by a router that announces a prefix or with `ip -6 addr add fd00:1::1/64 dev INTERFACE` (RFC 4193)",
        ));
    }
    if routable().next().is_none() || routable().any(|address| address.ip.is_ipv4()) {
        return None;
    }
    let interfaces: BTreeSet<_> = routable().map(|address| address.interface.as_str()).collect();
    if interfaces.len() > 1 {
        let names: Vec<_> = interfaces.into_iter().collect();
        return Some(Finding::warn(
            format!("this machine has only IPv6, on several interfaces ({})", names.join(", ")),
            "the kernel sends IPv6 multicast through only one of them; use --join for nodes behind the others",
        ));
    }
    let first = routable().find(|address| matches!(address.ip, IpAddr::V6(_))).map(named);
    Some(Finding::ok(format!("this machine has only IPv6: {}", first.unwrap_or_default())))
}

/// Judges whether multicast discovery can work here.
///
/// Only an announcement from another host proves that it works: a switch or an access point may drop
/// multicast.
pub(super) fn judge_multicast(
    interfaces: &[Interface],
    mdns_port: io::Result<()>,
    network: Option<&Network>,
) -> Vec<Finding> {
    const JOIN: &str =
        "multicast does not work here; start the nodes with --join and a host that always runs";
    let (refused, usable): (Vec<_>, Vec<_>) = interfaces
        .iter()
        .filter(|interface| interface.can_multicast())
        .partition(|interface| interface.refused.is_some());
    let mut findings = Vec::new();
    if usable.is_empty() && refused.is_empty() {
        findings.push(Finding::warn("no interface is up that can multicast (loopback does not count)", JOIN));
    }
    for interface in refused {
        let why = interface.refused.as_deref().unwrap_or_default();
        findings.push(Finding::warn(format!("{} refuses multicast: {why}", interface.name), JOIN));
    }
    if !usable.is_empty() {
        let named = |interface: &&Interface| match interface.has_listener {
            true => format!("{} (a process listens)", interface.name),
            false => interface.name.clone(),
        };
        let names: Vec<_> = usable.iter().map(named).collect();
        let heard = network.map(|network| network.heard.as_slice()).unwrap_or_default();
        findings.push(match heard {
            [] => Finding::ok(format!(
                "{} can multicast; no announcement from another host has arrived yet",
                names.join(", ")
            )),
            heard => Finding::ok(format!("multicast works: heard from {}", heard.join(", "))),
        });
        if !usable.iter().any(|interface| interface.has_listener) {
            findings.push(Finding::warn(
                "no process on this machine listens to mDNS",
                "if a node runs here, was it started with --no-mdns? In a cluster of more than 50 nodes, only some listen",
            ));
        }
    }
    findings.push(match mdns_port {
        Ok(()) => Finding::ok(format!("UDP port {MDNS_PORT} can be shared for mDNS")),
        Err(error) => Finding::warn(
            format!("UDP port {MDNS_PORT} cannot be opened for mDNS: {error}"),
            "another program uses it exclusively (`ss -ulpn`); stop that program, or use --join",
        ),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    const FIT: InterfaceFlags = InterfaceFlags::IFF_UP.union(InterfaceFlags::IFF_MULTICAST);

    fn interface(name: &str, flags: InterfaceFlags) -> Interface {
        Interface { name: name.into(), flags, refused: None, has_listener: true }
    }

    #[test]
    fn loopback_and_interfaces_that_are_down_do_not_count() {
        let fit = |flags| interface("x", flags).can_multicast();
        assert!(fit(FIT));
        assert!(!fit(FIT | InterfaceFlags::IFF_LOOPBACK));
        assert!(!fit(InterfaceFlags::IFF_MULTICAST), "down");
        assert!(!fit(InterfaceFlags::IFF_UP), "cannot multicast");
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_interfaces_that_listen_to_mdns_are_read_off_the_kernels_list() {
        let igmp = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
                    2\teth0      :     2      V3\n\t\t\t\tFB0000E0     1 0:00000000\t\t0\n\
                    \t\t\t\t010000E0     1 0:00000000\t\t0\n";
        assert_eq!(parse_igmp(igmp), ["eth0"]);
        assert!(parse_igmp("").is_empty());
    }

    #[test]
    fn the_interfaces_that_listen_to_mdns_over_ipv6_are_read_off_the_kernels_list() {
        let igmp6 = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n\
                     2    eth0            ff0200000000000000000000000000fb     2 00000004 0\n\
                     2    eth0            ff020000000000000000000000000001     1 0000000C 0\n";
        assert_eq!(parse_igmp6(igmp6), ["eth0"]);
        assert!(parse_igmp6("").is_empty());
    }

    #[test]
    fn only_ipv6_and_only_link_local_addresses_are_reported() {
        let judged = |addresses: &[(&str, &str)]| {
            let address = |(interface, ip): &(&str, &str)| InterfaceAddress {
                interface: (*interface).into(),
                ip: ip.parse().unwrap(),
                prefix: 64,
            };
            let addresses: Vec<_> = addresses.iter().map(address).collect();
            judge_addresses(&addresses).map(|finding| (finding.verdict, finding.what))
        };
        let (lo, link) = (("lo", "127.0.0.1"), ("eth0", "fe80::1"));
        assert_eq!(judged(&[lo]), None);
        assert_eq!(judged(&[lo, link, ("eth0", "10.0.0.1"), ("eth0", "fd77::1")]), None);
        let (verdict, what) = judged(&[lo, link]).unwrap();
        assert!(
            verdict == Verdict::Warn && what.contains("link-local") && what.contains("fe80::1 on eth0"),
            "{what}"
        );
        let (verdict, what) = judged(&[lo, link, ("eth0", "fd77::1")]).unwrap();
        assert!(verdict == Verdict::Ok && what.contains("only IPv6: fd77::1 on eth0"), "{what}");
        let (verdict, what) = judged(&[("eth0", "fd77::1"), ("eth1", "fd78::1")]).unwrap();
        assert!(verdict == Verdict::Warn && what.contains("eth0, eth1"), "{what}");
    }

    #[test]
    fn each_obstacle_to_multicast_has_its_warning() {
        let verdicts = |interfaces: &[Interface], port| -> Vec<_> {
            judge_multicast(interfaces, port, None).into_iter().map(|finding| finding.verdict).collect()
        };
        let eth0 = interface("eth0", FIT);
        assert_eq!(verdicts(std::slice::from_ref(&eth0), Ok(())), [Verdict::Ok, Verdict::Ok]);
        let finding = |network: Option<&Network>| {
            judge_multicast(std::slice::from_ref(&eth0), Ok(()), network)[0].what.clone()
        };
        let heard = Network { heard: vec!["10.77.0.2".into()], ..Network::default() };
        assert!(finding(Some(&heard)).contains("multicast works: heard from 10.77.0.2"));
        for network in [None, Some(&Network::default())] {
            assert!(!finding(network).contains("works"), "{}", finding(network));
        }
        let deaf = Interface { has_listener: false, ..eth0.clone() };
        assert_eq!(verdicts(&[deaf], Ok(())), [Verdict::Ok, Verdict::Warn, Verdict::Ok]);
        let refusing = Interface { refused: Some("no device".into()), ..eth0 };
        assert_eq!(verdicts(&[refusing], Ok(())), [Verdict::Warn, Verdict::Ok]);
        let busy = io::Error::from(io::ErrorKind::AddrInUse);
        assert_eq!(
            verdicts(&[interface("lo", FIT | InterfaceFlags::IFF_LOOPBACK)], Err(busy)),
            [Verdict::Warn; 2]
        );
    }
}
