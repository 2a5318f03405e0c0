//! Judges whether nodes on this machine can find others by multicast.
//!
//! Interfaces are read where Linux shows them (`/sys/class/net`); where there is no such place, nothing is found and a warning says so.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
};

use socket2::{Domain, InterfaceIndexOrAddress, Socket, Type};

use super::Finding;

/// Multicast DNS: RFC 6762, section 3.
const MDNS_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const MDNS_PORT: u16 = 5353;

/// `linux/if.h`.
const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;
const IFF_MULTICAST: u32 = 0x1000;

/// A network interface, as far as multicast is concerned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Interface {
    name: String,
    flags: u32,
    /// Why the mDNS group could not be joined on it, if it was tried.
    refused: Option<String>,
    /// Whether somebody on this machine listens to mDNS on it.
    listened: bool,
}

impl Interface {
    fn is_fit(&self) -> bool {
        self.flags & (IFF_UP | IFF_MULTICAST | IFF_LOOPBACK) == IFF_UP | IFF_MULTICAST
    }
}

/// The interfaces of this machine; on those that are fit, a group is joined and left for a try.
pub(super) fn interfaces() -> Vec<Interface> {
    let listened = fs::read_to_string("/proc/net/igmp").map(|text| listening(&text)).unwrap_or_default();
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    let mut interfaces: Vec<_> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let flags = parse_flags(&fs::read_to_string(entry.path().join("flags")).ok()?)?;
            let listened = listened.contains(&name);
            let mut interface = Interface { name, flags, refused: None, listened };
            if interface.is_fit() {
                interface.refused = join(&entry.path()).err().map(|error| error.to_string());
            }
            Some(interface)
        })
        .collect();
    interfaces.sort_by(|a, b| a.name.cmp(&b.name));
    interfaces
}

fn parse_flags(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
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

/// Joins the group on an interface with a socket that neither sends nor hears itself; closing it leaves the group.
fn join(interface: &Path) -> io::Result<()> {
    let index = fs::read_to_string(interface.join("ifindex"))?;
    let index = index.trim().parse().map_err(io::Error::other)?;
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

/// What interfaces and port mean for finding others.
pub(super) fn judge(interfaces: &[Interface], mdns_port: io::Result<()>) -> Vec<Finding> {
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
        findings.push(Finding::ok(format!("multicast works on {}", names.join(", "))));
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

    fn interface(name: &str, flags: u32) -> Interface {
        Interface { name: name.into(), flags, refused: None, listened: true }
    }

    #[test]
    fn loopback_and_interfaces_that_are_down_do_not_count() {
        let fit = |flags| interface("x", flags).is_fit();
        assert!(fit(parse_flags("0x1003\n").unwrap()));
        assert!(!fit(parse_flags("0x9\n").unwrap()), "loopback");
        assert!(!fit(parse_flags("0x1002\n").unwrap()), "down");
        assert!(!fit(parse_flags("0x91\n").unwrap()), "point to point without multicast");
        assert_eq!(parse_flags("up"), None);
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
    fn each_obstacle_to_multicast_has_its_warning() {
        let verdicts = |interfaces: &[Interface], port| -> Vec<_> {
            judge(interfaces, port).into_iter().map(|finding| finding.verdict).collect()
        };
        let eth0 = interface("eth0", IFF_UP | IFF_MULTICAST);
        assert_eq!(verdicts(std::slice::from_ref(&eth0), Ok(())), [Verdict::Ok, Verdict::Ok]);
        let deaf = Interface { listened: false, ..eth0.clone() };
        assert_eq!(verdicts(&[deaf], Ok(())), [Verdict::Ok, Verdict::Warn, Verdict::Ok]);
        let refusing = Interface { refused: Some("no device".into()), ..eth0 };
        assert_eq!(verdicts(&[refusing], Ok(())), [Verdict::Warn, Verdict::Ok]);
        let busy = io::Error::from(io::ErrorKind::AddrInUse);
        assert_eq!(verdicts(&[interface("lo", IFF_UP | IFF_LOOPBACK)], Err(busy)), [Verdict::Warn; 2]);
    }
}
