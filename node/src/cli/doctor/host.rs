//! Judges whether nodes on this machine can find others by multicast.
//!
//! The interfaces come from `getifaddrs`. The files below `/sys/class/net` would be easier to read, and wrong: they show the network namespace in
//! which they were mounted, which within a container or `unshare -n` need not be this process's own. (`/proc/net` is the process's own.)

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

use super::{super::answers::Network, Finding};
use crate::interfaces::InterfaceAddress;

/// Multicast DNS: RFC 6762, section 3.
const MDNS_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const MDNS_GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
const MDNS_PORT: u16 = 5353;

/// A network interface, as far as multicast is concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Interface {
    name: String,
    flags: InterfaceFlags,
    /// Why the mDNS group could not be joined on it, if it was tried.
    refused: Option<String>,
    /// Whether somebody on this machine listens to mDNS on it.
    listened: bool,
}

impl Interface {
    fn is_fit(&self) -> bool {
        self.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_MULTICAST)
            && !self.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    }
}

/// The interfaces of this machine; on those that are fit, a group is joined and left for a try.
pub(super) fn interfaces() -> Vec<Interface> {
    let listed = |file: &str, parse: fn(&str) -> Vec<String>| {
        fs::read_to_string(file).map(|text| parse(&text)).unwrap_or_default()
    };
    let mut listened = listed("/proc/net/igmp", listening);
    listened.extend(listed("/proc/net/igmp6", listening_v6));
    // One entry comes for each address; an interface is to be told of once.
    let flags: BTreeMap<_, _> = getifaddrs()
        .map(|entries| entries.map(|entry| (entry.interface_name, entry.flags)).collect())
        .unwrap_or_default();
    let interfaces = flags.into_iter().map(|(name, flags)| {
        let listened = listened.contains(&name);
        let mut interface = Interface { name, flags, refused: None, listened };
        if interface.is_fit() {
            interface.refused = join(&interface.name).err().map(|error| error.to_string());
        }
        interface
    });
    interfaces.collect()
}

/// The interfaces in `/proc/net/igmp` on which somebody has joined mDNS's group. A line that begins with a number opens an interface; the indented
/// ones below it are its groups, their addresses in hexadecimal as they lie in memory.
fn listening(igmp: &str) -> Vec<String> {
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

/// The interfaces in `/proc/net/igmp6` on which a process has joined mDNS's group. Each line is an interface
/// and one of its groups.
fn listening_v6(igmp6: &str) -> Vec<String> {
    let group = format!("{:032x}", MDNS_GROUP_V6.to_bits());
    let columns = igmp6.lines().map(|line| line.split_whitespace().skip(1));
    let interfaces = columns.filter_map(|mut columns| Some((columns.next()?, columns.next()?)));
    interfaces.filter(|(_, joined)| *joined == group).map(|(interface, _)| interface.to_owned()).collect()
}

/// Joins the group on an interface with a socket that neither sends nor hears itself; closing it leaves the group.
fn join(interface: &str) -> io::Result<()> {
    let index = if_nametoindex(interface)?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_multicast_loop_v4(false)?;
    socket.join_multicast_v4_n(&MDNS_GROUP, &InterfaceIndexOrAddress::Index(index))
}

/// Whether mDNS's port can be shared with those who already have it, as libp2p will try to.
pub(super) fn mdns_port() -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, MDNS_PORT).into())
}

/// What the addresses of this machine mean for being found and reached.
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
            format!("this machine has IPv6 alone, on several interfaces ({})", names.join(", ")),
            "multicast over IPv6 leaves by one of them, which the kernel chooses; for nodes behind the others, use --join",
        ));
    }
    let first = routable().find(|address| matches!(address.ip, IpAddr::V6(_))).map(named);
    Some(Finding::ok(format!("this machine has IPv6 alone: {}", first.unwrap_or_default())))
}

/// What interfaces and port mean for finding others.
///
/// That multicast works is proved by a host that was heard, and by nothing else: a switch or an access point may drop it on the way.
pub(super) fn judge(
    interfaces: &[Interface],
    mdns_port: io::Result<()>,
    network: Option<&Network>,
) -> Vec<Finding> {
    const JOIN: &str =
        "multicast will not do here; start the nodes with --join and a host that is always there";
    let (refused, usable): (Vec<_>, Vec<_>) = interfaces
        .iter()
        .filter(|interface| interface.is_fit())
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
        let named = |interface: &&Interface| match interface.listened {
            true => format!("{} (somebody listens)", interface.name),
            false => interface.name.clone(),
        };
        let names: Vec<_> = usable.iter().map(named).collect();
        let heard = network.map(|network| network.heard.as_slice()).unwrap_or_default();
        findings.push(match heard {
            [] => Finding::ok(format!(
                "{} can multicast; no node on another host has been heard yet",
                names.join(", ")
            )),
            heard => Finding::ok(format!("multicast works: heard from {}", heard.join(", "))),
        });
        if !usable.iter().any(|interface| interface.listened) {
            findings.push(Finding::warn(
                "nobody on this machine listens to mDNS",
                "if a node runs here, was it started with --no-mdns? In a cluster of more than 50, few nodes listen",
            ));
        }
    }
    findings.push(match mdns_port {
        Ok(()) => Finding::ok(format!("UDP port {MDNS_PORT} can be shared for mDNS")),
        Err(error) => Finding::warn(
            format!("UDP port {MDNS_PORT} cannot be opened for mDNS: {error}"),
            "another program holds it for itself (`ss -ulpn`); stop that program, or use --join",
        ),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    const FIT: InterfaceFlags = InterfaceFlags::IFF_UP.union(InterfaceFlags::IFF_MULTICAST);

    fn interface(name: &str, flags: InterfaceFlags) -> Interface {
        Interface { name: name.into(), flags, refused: None, listened: true }
    }

    #[test]
    fn loopback_and_interfaces_that_are_down_do_not_count() {
        let fit = |flags| interface("x", flags).is_fit();
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
        assert_eq!(listening(igmp), ["eth0"]);
        assert!(listening("").is_empty());
    }

    #[test]
    fn the_interfaces_that_listen_to_mdns_over_ipv6_are_read_off_the_kernels_list() {
        let igmp6 = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n\
                     2    eth0            ff0200000000000000000000000000fb     2 00000004 0\n\
                     2    eth0            ff020000000000000000000000000001     1 0000000C 0\n";
        assert_eq!(listening_v6(igmp6), ["eth0"]);
        assert!(listening_v6("").is_empty());
    }

    #[test]
    fn a_machine_without_ipv4_and_one_with_link_local_addresses_alone_are_told_so() {
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
        assert!(verdict == Verdict::Ok && what.contains("IPv6 alone: fd77::1 on eth0"), "{what}");
        let (verdict, what) = judged(&[("eth0", "fd77::1"), ("eth1", "fd78::1")]).unwrap();
        assert!(verdict == Verdict::Warn && what.contains("eth0, eth1"), "{what}");
    }

    #[test]
    fn each_obstacle_to_multicast_has_its_warning() {
        let verdicts = |interfaces: &[Interface], port| -> Vec<_> {
            judge(interfaces, port, None).into_iter().map(|finding| finding.verdict).collect()
        };
        let eth0 = interface("eth0", FIT);
        assert_eq!(verdicts(std::slice::from_ref(&eth0), Ok(())), [Verdict::Ok, Verdict::Ok]);
        let told =
            |network: Option<&Network>| judge(std::slice::from_ref(&eth0), Ok(()), network)[0].what.clone();
        let heard = Network { heard: vec!["10.77.0.2".into()], ..Network::default() };
        assert!(told(Some(&heard)).contains("multicast works: heard from 10.77.0.2"));
        for nobody in [None, Some(&Network::default())] {
            assert!(!told(nobody).contains("works"), "{}", told(nobody));
        }
        let deaf = Interface { listened: false, ..eth0.clone() };
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
