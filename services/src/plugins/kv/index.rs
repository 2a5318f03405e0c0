//! [`ReplicaIndex`]: the index of blocking queries, which belongs to the tables of one replica.
//!
//! Entries arrive in another order at each replica, and a late one may be older than those that a client has
//! seen. So the index counts changes in the order of their arrival. It contains a number of the replica: a
//! client that comes with the index of another replica is answered at once, and misses no change. A rebuild
//! numbers the changes again, so rebuilt tables count as another replica.

use hearsay_protocol::NodeId;
use http::HeaderName;

/// Header with the index of a response.
pub const KV_INDEX: HeaderName = HeaderName::from_static("x-hearsay-index");

/// Bits of the index for the number of the replica. Two replicas have the same one with a chance of one in a
/// million. Some clients read indexes as 53-bit numbers, so 33 bits are left for the changes: 100 a second
/// for 2.7 years, which are some terabytes of journal.
const REPLICA_BITS: u32 = 20;

/// The indexes of one replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ReplicaIndex {
    replica: u64,
}

impl ReplicaIndex {
    /// Returns the indexes of the replica at this node. `tables` is the number of its tables, which was drawn
    /// when they were created. The node counts, too, because tables may be copied to another node.
    pub(super) fn of(node: NodeId, tables: u64) -> Self {
        let mut named = node.public_key().to_vec();
        named.extend_from_slice(&tables.to_be_bytes());
        let hash = blake3::hash(&named);
        let number = hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        // 0 and 1 are left for indexes that no replica gave.
        Self { replica: 2 + number % ((1 << REPLICA_BITS) - 2) }
    }

    /// Returns the index of a number of changes.
    pub(super) fn encode(self, changes: u64) -> u64 {
        changes << REPLICA_BITS | self.replica
    }

    /// Returns the number of changes of an index. `None`: it is of another replica.
    pub(super) fn decode(self, index: u64) -> Option<u64> {
        (index & ((1 << REPLICA_BITS) - 1) == self.replica).then_some(index >> REPLICA_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_read_by_its_own_replica_only() {
        let [one, other, rebuilt] = [(1, 7), (2, 7), (1, 8)]
            .map(|(seed, tables)| ReplicaIndex::of(NodeId::from_public_key([seed; 32]), tables));
        assert!(one != other && one != rebuilt);
        assert_eq!(one, ReplicaIndex::of(NodeId::from_public_key([1; 32]), 7), "after a restart");
        for changes in [0, 1, (1 << 33) - 1] {
            assert_eq!(one.decode(one.encode(changes)), Some(changes));
            assert_eq!(other.decode(one.encode(changes)), None);
            assert_eq!(rebuilt.decode(one.encode(changes)), None);
            assert!((2..1 << 53).contains(&one.encode(changes)));
        }
        assert_eq!((one.decode(0), one.decode(1)), (None, None));
    }
}
