//! Addresses, names and subnets of this machine's network interfaces.
//!
//! The addresses come from `getifaddrs`. The files below `/sys/class/net` show the network namespace in which
//! they were mounted. In a container or under `unshare -n`, that may not be this process's own.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use hearsay_protocol::Subnet;
use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags, sys::socket::SockaddrStorage};

/// An address of an interface that is up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InterfaceAddress {
    /// The interface, such as `eth0`.
    pub interface: String,
    /// The address.
    pub ip: IpAddr,
    /// The length of its network's prefix, in bits.
    pub prefix: u8,
}

impl InterfaceAddress {
    /// Whether other hosts can use this address: it is neither loopback nor link-local.
    pub fn is_routable(&self) -> bool {
        !self.ip.is_loopback() && !is_link_local(self.ip)
    }
}

/// Whether an address is valid on one link only (RFC 3927, RFC 4291 section 2.5.6).
pub fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Returns all addresses of interfaces that are up. Empty if the system reports an error.
pub fn addresses() -> Vec<InterfaceAddress> {
    let Ok(entries) = getifaddrs() else { return Vec::new() };
    let up = entries.filter(|entry| entry.flags.contains(InterfaceFlags::IFF_UP));
    let addresses = up.filter_map(|entry| {
        let ip = ip_of(entry.address.as_ref()?)?;
        let prefix = entry.netmask.as_ref().and_then(ip_of).map_or(0, prefix_of);
        Some(InterfaceAddress { interface: entry.interface_name, ip, prefix })
    });
    addresses.collect()
}

/// Returns the names of all interfaces, with or without an address.
pub fn names() -> BTreeSet<String> {
    let Ok(entries) = getifaddrs() else { return BTreeSet::new() };
    entries.map(|entry| entry.interface_name).collect()
}

/// Returns the subnets of this host, without loopback and link-local ones.
pub fn subnets() -> Vec<Subnet> {
    let routable = addresses().into_iter().filter(InterfaceAddress::is_routable);
    routable.map(|address| Subnet { address: address.ip, prefix: address.prefix }).collect()
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
}

fn prefix_of(netmask: IpAddr) -> u8 {
    let ones = match netmask {
        IpAddr::V4(mask) => mask.to_bits().leading_ones(),
        IpAddr::V6(mask) => mask.to_bits().leading_ones(),
    };
    // At most 128, so the conversion cannot fail.
    u8::try_from(ones).unwrap_or(u8::MAX)
}

/// Returns the address at which this host reaches a listener: loopback for a listener at all addresses.
pub fn reachable_here(listener: SocketAddr) -> SocketAddr {
    match listener.ip() {
        ip if !ip.is_unspecified() => listener,
        // A listener at [::] takes IPv4 as well: see `ports`.
        _ => SocketAddr::from(([127, 0, 0, 1], listener.port())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_netmask_is_understood_as_a_prefix() {
        assert_eq!(prefix_of("255.255.0.0".parse().unwrap()), 16);
        assert_eq!(prefix_of("ffff:ffff:ffff:ffff::".parse().unwrap()), 64);
        assert_eq!(prefix_of("255.255.255.255".parse().unwrap()), 32);
    }

    #[test]
    fn loopback_and_link_local_addresses_are_not_told_to_others() {
        let routable = |ip: &str| {
            InterfaceAddress { interface: "x".into(), ip: ip.parse().unwrap(), prefix: 64 }.is_routable()
        };
        assert!(routable("10.0.0.1") && routable("fd77::1") && routable("2001:db8::1"));
        assert!(
            !routable("127.0.0.1") && !routable("::1") && !routable("169.254.1.1") && !routable("fe80::1")
        );
    }

    #[test]
    fn every_listener_can_be_reached_here() {
        for (listener, here) in [
            ("[::]:1", "127.0.0.1:1"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("[::1]:1", "[::1]:1"),
        ] {
            assert_eq!(reachable_here(listener.parse().unwrap()), here.parse().unwrap());
        }
    }
}
