//! One order over all entries, the same on every node: by time, and where that is equal by name.

use hearsay_protocol::journal::{clock::HybridTime, feed::EntryId};

/// An entry's place in the order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Stamp {
    /// Compared first.
    pub time: HybridTime,
    /// Breaks ties.
    pub id: EntryId,
}

/// Bytes of a stamp in a database.
const BYTES: usize = 8 + 32 + 8 + 8;

impl Stamp {
    /// Bytes that sort as stamps do: a database compares them without knowing what they are.
    pub fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&self.time.0.to_be_bytes());
        bytes[8..40].copy_from_slice(self.id.feed.writer.public_key());
        bytes[40..48].copy_from_slice(&self.id.feed.boot.to_be_bytes());
        bytes[48..].copy_from_slice(&self.id.seq.0.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use hearsay_protocol::{NodeId, Version, journal::feed::FeedId};

    use super::*;

    #[test]
    fn the_bytes_sort_as_the_stamps() {
        let mut stamps = Vec::new();
        for time in [0, 1, 255, 256, u64::MAX] {
            for (writer, boot, seq) in [(1, 1, 1), (1, 1, 300), (1, 256, 2), (2, 0, 1)] {
                let feed = FeedId { writer: NodeId::from_public_key([writer; 32]), boot };
                stamps.push(Stamp { time: HybridTime(time), id: EntryId { feed, seq: Version(seq) } });
            }
        }
        stamps.sort();
        assert!(stamps.windows(2).all(|w| w[0].to_bytes() < w[1].to_bytes()));
    }
}
