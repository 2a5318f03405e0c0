//! Type for the source of a request ([`Source`]): the member, host or unknown client that a write is charged
//! to, or the operator, whose writes are not charged. Also the type for the host of its connection
//! ([`ConnectionHost`]).
//!
//! The node determines the source and adds it to the extensions of each request for a plug-in. Only proven
//! facts count: statements of a client about itself, in the body or a header, do not matter.

use std::{
    convert::Infallible,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use axum::extract::FromRequestParts;
use hearsay_protocol::NodeId;
use http::request::Parts;

use crate::network::shares::HostKey;

/// Source of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Source {
    /// The operator: a client on the node's machine, or one with its token.
    Operator,
    /// The member that signed the request for itself.
    Member(NodeId),
    /// A client without proof: its host, known from the connection's address or stated by a trusted proxy or
    /// a gateway of the cluster.
    Host(HostKey),
    /// An untrusted proxy, or no address. All of these are one source.
    #[default]
    Unknown,
}

impl Source {
    /// Bytes of the longest name: that of a member.
    pub const NAME_BYTES_MAX: usize = 64;

    /// Returns the name that writes are charged to; `None` for the operator, whose writes are not charged.
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Operator => None,
            Self::Member(_) | Self::Host(_) | Self::Unknown => Some(self.to_string()),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::Member(member) => member.fmt(f),
            Self::Host(HostKey::Ipv4(bits)) => Ipv4Addr::from_bits(*bits).fmt(f),
            Self::Host(HostKey::Ipv6(bits)) => {
                write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(*bits) << 64))
            }
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Source {
    type Rejection = Infallible;

    /// Extracts the source. A request without one has an unknown source.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or_default())
    }
}

/// Host at the other end of a request's connection, to which waiting requests are charged. Of a request that
/// a node forwards it is that node. No host is exempt, not even a member or this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionHost(pub HostKey);

impl Default for ConnectionHost {
    /// This machine: the Unix socket, or a request inside the process.
    fn default() -> Self {
        Self(IpAddr::from(Ipv4Addr::LOCALHOST).into())
    }
}

impl<S: Sync> FromRequestParts<S> for ConnectionHost {
    type Rejection = Infallible;

    /// Extracts the host. A request without one is of this machine.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_of_a_host_and_fits_its_bound() {
        let of = |ip: &str| Source::Host(ip.parse::<IpAddr>().unwrap().into()).name().unwrap();
        assert_eq!(of("192.0.2.7"), "192.0.2.7");
        assert_eq!(of("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(of("2001:db8:1:2:3::4"), "2001:db8:1:2::/64");
        for source in [Source::Member(NodeId::from_public_key([255; 32])), Source::Unknown] {
            assert!(source.name().unwrap().len() <= Source::NAME_BYTES_MAX);
        }
        assert_eq!(Source::Operator.name(), None);
    }
}
