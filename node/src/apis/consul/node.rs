//! [`CatalogNode`]: a member of the cluster as the Consul API presents it. Looks members up by id, name or
//! UUID, and derives a member's UUID, address and metadata.

use std::collections::BTreeMap;

use hearsay_protocol::{Member, MemberState, NodeId, ProviderTable, host_of_multiaddr};

/// The key of a node's metadata that carries its zone.
const ZONE: &str = "zone";
/// Length of a UUID in text.
const UUID_LENGTH: usize = 36;

/// A node.
#[derive(Clone, Debug)]
pub(super) struct CatalogNode {
    pub(super) node_id: NodeId,
    /// A UUID that follows from the node's id: clients tell nodes apart by it.
    pub(super) uuid: String,
    pub(super) name: String,
    /// The host of its HTTP, as this node reaches it. Never empty where the node states any address.
    pub(super) address: String,
    /// The port of its swarm.
    pub(super) swarm_port: u16,
    pub(super) meta: BTreeMap<String, String>,
    pub(super) state: MemberState,
    /// The index of the last change of any member.
    pub(super) modify_index: u64,
}

impl CatalogNode {
    /// Reads a member of the table.
    pub(super) fn find(table: &ProviderTable, id: NodeId) -> Option<Self> {
        table.member_from_here(id).map(|member| Self::new(table, &member))
    }

    /// Reads the member with this name, or this UUID.
    pub(super) fn find_named(table: &ProviderTable, name: &str) -> Option<Self> {
        if let Some(member) = table.member_named(name) {
            return Self::find(table, member.id);
        }
        // Else each member's UUID would be computed in vain.
        if name.len() != UUID_LENGTH {
            return None;
        }
        let member = table.members().find(|member| uuid_of(member.id) == name)?;
        Self::find(table, member.id)
    }

    /// Reads all members that the catalog lists: those that have left are gone, those that have failed stay
    /// until they are forgotten.
    pub(super) fn list(table: &ProviderTable) -> Vec<Self> {
        let listed = table.members_from_here().filter(|member| member.state != MemberState::Left);
        listed.map(|member| Self::new(table, &member)).collect()
    }

    /// As [`Self::list`], with those that have left.
    pub(super) fn list_all(table: &ProviderTable) -> Vec<Self> {
        table.members_from_here().map(|member| Self::new(table, &member)).collect()
    }

    fn new(table: &ProviderTable, member: &Member) -> Self {
        let of_http = member.http.as_deref().and_then(|http| http.rsplit_once(':')).map(|(host, _)| host);
        let of_swarm = || member.addresses.iter().find_map(|address| host_of_multiaddr(address));
        let address = of_http.or_else(of_swarm).map(|host| host.trim_matches(['[', ']']).to_owned());
        let connected = || table.connected(member.id).map(|ip| ip.to_string());
        let zone = member.zone.iter().map(|zone| (ZONE.to_owned(), zone.clone()));
        Self {
            node_id: member.id,
            uuid: uuid_of(member.id),
            name: member.name.clone(),
            address: address.or_else(connected).unwrap_or_default(),
            swarm_port: member.addresses.iter().find_map(|address| port_of(address)).unwrap_or(0),
            meta: zone.collect(),
            state: member.state,
            modify_index: table.members_index().0,
        }
    }

    /// Whether its metadata has all of these pairs.
    pub(super) fn has_meta(&self, pairs: &[(String, String)]) -> bool {
        pairs.iter().all(|(key, value)| self.meta.get(key) == Some(value))
    }
}

/// The UUID of a node: the hash of its public key, in the form of version 8 (RFC 9562).
pub(super) fn uuid_of(id: NodeId) -> String {
    let hash = blake3::hash(id.public_key());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_bytes()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// The TCP port of a multiaddr such as `/ip4/10.0.0.1/tcp/7600`.
fn port_of(multiaddr: &str) -> Option<u16> {
    let mut parts = multiaddr.split('/').skip_while(|part| *part != "tcp");
    parts.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_uuid_is_its_own_and_well_formed() {
        let uuid = uuid_of(NodeId::from_public_key([1; 32]));
        assert_eq!(uuid, uuid_of(NodeId::from_public_key([1; 32])));
        assert_ne!(uuid, uuid_of(NodeId::from_public_key([2; 32])));
        let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_eq!(&uuid[14..15], "8");
        assert!("89ab".contains(&uuid[19..20]), "{uuid}");
    }

    #[test]
    fn the_port_of_a_swarm_is_in_its_multiaddr() {
        assert_eq!(port_of("/ip4/10.0.0.1/tcp/7600"), Some(7600));
        assert_eq!(port_of("/ip6/fe80::1/tcp/7601/p2p/x"), Some(7601));
        assert_eq!(port_of("/ip4/10.0.0.1/udp/1"), None);
    }
}
