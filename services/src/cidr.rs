//! Ranges of IP addresses, as options write them: `10.0.0.0/8`, `fd00::/8`, or one address (RFC 4632).

use std::{fmt, net::IpAddr, str::FromStr};

/// A range of IP addresses.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cidr {
    address: IpAddr,
    /// In bits.
    prefix: u8,
}

impl Cidr {
    /// Whether an address is in the range. An IPv4 address that is embedded in an IPv6 one (`::ffff:…`) counts as that address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let differing = a.to_bits() ^ b.to_bits();
                differing.checked_shr(32 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let differing = a.to_bits() ^ b.to_bits();
                differing.checked_shr(128 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no range of IP addresses; write one such as 10.0.0.0/8, or an address");
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(prefix) => prefix.parse().ok().filter(|prefix| *prefix <= bits).ok_or_else(wrong)?,
            None => bits,
        };
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_the_addresses_of_its_prefix_and_no_others() {
        for (range, inside, outside) in [
            ("10.77.0.0/16", "10.77.255.1", "10.78.0.0"),
            ("10.77.0.9/16", "10.77.0.1", "fd77::1"),
            ("10.77.0.1", "::ffff:10.77.0.1", "10.77.0.2"),
            ("0.0.0.0/0", "203.0.113.1", "::1"),
            ("fd77::/64", "fd77::ffff", "fd77:0:0:1::"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
        ] {
            let range: Cidr = range.parse().unwrap();
            assert!(range.contains(inside.parse().unwrap()), "{range} {inside}");
            assert!(!range.contains(outside.parse().unwrap()), "{range} {outside}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused_with_its_text() {
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/-1", "web", "10.0.0.0/8/8"] {
            assert!(text.parse::<Cidr>().unwrap_err().contains(&format!("{text:?}")));
        }
    }
}
