//! [`Cidr`]: range of IP addresses, as it is written in options.

use std::{fmt, net::IpAddr, str::FromStr};

/// A range of addresses with a common prefix (RFC 4632), such as `10.0.0.0/8`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Returns whether an address is in the range. An IPv4-mapped address (`::ffff:10.0.0.1`) counts as IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        width(ip) == width(self.network) && (bits(ip) ^ bits(self.network)) & self.mask() == 0
    }

    fn mask(&self) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0)
    }
}

/// The bits of an address, left-aligned.
fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(ip.to_bits()) << 96,
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "{text:?} is not a network. Write an address, or a network such as 10.0.0.0/8 or fd00::/8"
            )
        };
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let network: IpAddr = ip.trim_matches(['[', ']']).parse().map_err(|_| wrong())?;
        let network = network.to_canonical();
        let prefix = prefix.unwrap_or_else(|| width(network));
        if prefix > width(network) {
            return Err(format!(
                "the prefix of {text:?} has {prefix} bits; this family has {}",
                width(network)
            ));
        }
        let cidr = Self { network, prefix };
        if bits(network) & !cidr.mask() != 0 {
            return Err(format!(
                "{text:?} has bits set after its prefix. Write {network} for this address, or the network with zeros after the first {prefix} bits"
            ));
        }
        Ok(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(network: &str, ip: &str) -> bool {
        network.parse::<Cidr>().unwrap().contains(ip.parse().unwrap())
    }

    #[test]
    fn a_network_has_the_addresses_that_begin_as_it_does() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("10.1.2.2/31", "::ffff:10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "203.0.113.1", "::1"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("[2001:db8::1]", "2001:db8::1", "2001:db8::2"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
        ] {
            assert!(contains(network, inside), "{network} {inside}");
            assert!(!contains(network, outside), "{network} {outside}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_what_to_write() {
        for (text, part) in [
            ("proxy.example", "10.0.0.0/8"),
            ("10.0.0.0/33", "33 bits"),
            ("10.0.0.1/8", "after its prefix"),
            ("fd00::/129", "129 bits"),
            ("10.0.0.0/x", "is not a network"),
        ] {
            let error = text.parse::<Cidr>().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
