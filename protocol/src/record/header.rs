//! [`Header`]: a node's description of itself: name, addresses, roles, versions, whether it runs or has left,
//! and the version below which its tombstones are removed. Encoded, decoded and checked here.

use serde::{Deserialize, Serialize};

use super::bounds::{
    ADDRESSES_MAX, ID_CHARS_MAX, Invalid, NAME_CHARS_MAX, TAGS_MAX, check_count, check_name,
    check_service_name,
};
use crate::{
    Version,
    wire::codec::{self, DecodeError},
};

/// Whether a node runs or has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Presence {
    /// The node runs.
    #[default]
    Running,
    /// The node has left on purpose. Overrides every suspicion.
    Left,
}

/// Header of a node, by which any other node can dial it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Header {
    /// Name, unique among live members.
    pub name: String,
    /// Addresses of the swarm: multiaddrs without the trailing `/p2p`.
    pub addresses: Vec<String>,
    /// HTTP address, `host:port`.
    pub http: Option<String>,
    /// Plug-ins that it runs.
    pub roles: Vec<String>,
    /// Rack or availability zone, for clients that prefer near instances.
    pub zone: Option<String>,
    /// Software version.
    pub software: String,
    /// Protocol version.
    pub protocol: u16,
    /// Tombstones below this version are removed: a node that lacks an older version fetches all entries.
    pub floor: Version,
    /// Whether the node runs or has left.
    pub presence: Presence,
    /// Random number of the process. Distinguishes two processes that have the same key and incarnation.
    pub boot: u64,
    /// Whether the node's key ends with its process, so that the node never returns. Appended in protocol
    /// version 1; `false` in a header that ends before it.
    pub ephemeral: bool,
    /// gRPC address, `host:port`. Appended in protocol version 1 after `ephemeral`; `None` in a header that
    /// ends before it, and of a node without gRPC.
    pub grpc: Option<String>,
}

impl Header {
    /// Encodes the value of the header's entry.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    /// Decodes a value. Skips fields that a newer version appended. If an older version did not append
    /// `ephemeral` or `grpc`, it is `false` or `None`.
    ///
    /// # Errors
    /// The value is not a header.
    pub fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        // Each of the two fields at the end is one zero byte if it is not given. If a header lacks them, the
        // zero bytes appended here take their places. A header that lacks more bytes is still too short.
        let padded = [value, &[0, 0]].concat();
        codec::decode_prefix(&padded).map(|(header, _)| header)
    }

    /// Checks the bounds of all fields.
    ///
    /// # Errors
    /// Names the first field that is out of bounds.
    pub fn check(&self) -> Result<(), Invalid> {
        check_service_name("name", &self.name)?;
        check_count("addresses", self.addresses.len(), ADDRESSES_MAX)?;
        self.addresses.iter().try_for_each(|a| check_name("addresses", a, ID_CHARS_MAX))?;
        check_count("roles", self.roles.len(), TAGS_MAX)?;
        self.roles.iter().try_for_each(|r| check_service_name("roles", r))?;
        if let Some(http) = &self.http {
            check_name("http", http, ID_CHARS_MAX)?;
        }
        if let Some(grpc) = &self.grpc {
            check_name("grpc", grpc, ID_CHARS_MAX)?;
        }
        if let Some(zone) = &self.zone {
            check_service_name("zone", zone)?;
        }
        check_name("software", &self.software, NAME_CHARS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header as a version before `ephemeral` encodes and decodes it.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct HeaderBefore {
        name: String,
        addresses: Vec<String>,
        http: Option<String>,
        roles: Vec<String>,
        zone: Option<String>,
        software: String,
        protocol: u16,
        floor: Version,
        presence: Presence,
        boot: u64,
    }

    /// The header as a version before `grpc` encodes and decodes it.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct HeaderBeforeGrpc {
        before: HeaderBefore,
        ephemeral: bool,
    }

    fn header(ephemeral: bool, grpc: Option<&str>) -> Header {
        Header {
            name: "a".into(),
            addresses: vec!["/ip4/10.0.0.1/tcp/7600".into()],
            roles: vec!["log".into()],
            software: "s".into(),
            protocol: 1,
            floor: Version(2),
            boot: u64::MAX,
            ephemeral,
            grpc: grpc.map(str::to_owned),
            ..Header::default()
        }
    }

    const GRPC: Option<&str> = Some("10.0.0.1:7700");

    #[test]
    fn a_header_keeps_its_bytes() {
        let hex: String = header(true, GRPC).encode().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "016101162f6970342f31302e302e302e312f7463702f373630300001036c6f67000173010200fdffffffffffffffff01010d31302e302e302e313a37373030"
        );
    }

    #[test]
    fn a_header_is_read_by_the_versions_before_and_read_from_them() {
        let ours = header(true, GRPC).encode();
        let (theirs, used) = codec::decode_prefix::<HeaderBefore>(&ours).unwrap();
        assert_eq!((theirs.name.as_str(), theirs.boot, used), ("a", u64::MAX, ours.len() - 16));
        let before = codec::encode(&theirs);
        assert_eq!(Header::decode(&before), Ok(header(false, None)), "it states neither");
        let (theirs, used) = codec::decode_prefix::<HeaderBeforeGrpc>(&ours).unwrap();
        assert_eq!((theirs.ephemeral, used), (true, ours.len() - 15));
        let before_grpc = codec::encode(&theirs);
        assert_eq!(Header::decode(&before_grpc), Ok(header(true, None)), "it does not state gRPC");
        assert_eq!(Header::decode(&ours), Ok(header(true, GRPC)));
        let newer = [ours.as_slice(), b"a field of the future"].concat();
        assert_eq!(Header::decode(&newer), Ok(header(true, GRPC)));
        for length in 0..before.len() {
            assert_eq!(Header::decode(&before[..length]), Err(DecodeError::Malformed), "{length} bytes");
        }
        for length in before_grpc.len() + 3..ours.len() - 2 {
            assert_eq!(Header::decode(&ours[..length]), Err(DecodeError::Malformed), "{length} bytes");
        }
    }

    #[test]
    fn the_grpc_address_has_a_bound() {
        let long = "a".repeat(ID_CHARS_MAX + 1);
        assert_eq!(header(false, Some(&long)).check().map_err(|invalid| invalid.field), Err("grpc"));
        assert_eq!(header(false, GRPC).check(), Ok(()));
    }
}
