//! [`Stamp`]: the place of an entry in the total order of its topic, the same on every node.
//!
//! Entries are ordered by [`Moment`], which respects causality even if clocks differ, then by id.

use hearsay_protocol::{
    NodeId, Version,
    journal::{EntryId, FeedId, HybridTime, Moment},
};

/// The place of an entry in the total order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Stamp {
    /// Compared first.
    pub moment: Moment,
    /// Breaks ties.
    pub id: EntryId,
}

/// Bytes of an encoded stamp: epoch, time, writer, boot and sequence number, with big-endian numbers.
pub const STAMP_BYTES: usize = 8 + 8 + 32 + 8 + 8;

impl Stamp {
    /// Encodes the stamp so that the bytes sort as stamps do. A database can compare them.
    pub fn to_bytes(self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        bytes[..8].copy_from_slice(&self.moment.epoch.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.moment.time.0.to_be_bytes());
        bytes[16..48].copy_from_slice(self.id.feed.writer.public_key());
        bytes[48..56].copy_from_slice(&self.id.feed.boot.to_be_bytes());
        bytes[56..].copy_from_slice(&self.id.seq.0.to_be_bytes());
        bytes
    }

    /// Decodes a stamp. `None`: the bytes have another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; STAMP_BYTES] = bytes.try_into().ok()?;
        let number = |at: usize| Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let writer = NodeId::from_public_key(*bytes.get(16..)?.first_chunk()?);
        let feed = FeedId { writer, boot: number(48)? };
        let moment = Moment { epoch: number(0)?, time: HybridTime(number(8)?) };
        Some(Self { moment, id: EntryId { feed, seq: Version(number(56)?) } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_sort_as_the_stamps_and_are_decoded() {
        let mut stamps = Vec::new();
        for (epoch, time) in
            [0, 1, 256].into_iter().flat_map(|epoch| [0, 1, 255, 256, u64::MAX].map(|time| (epoch, time)))
        {
            let moment = Moment { epoch, time: HybridTime(time) };
            for (writer, boot, seq) in [(1, 1, 1), (1, 1, 300), (1, 256, 2), (2, 0, 1)] {
                let feed = FeedId { writer: NodeId::from_public_key([writer; 32]), boot };
                stamps.push(Stamp { moment, id: EntryId { feed, seq: Version(seq) } });
            }
        }
        stamps.sort();
        assert!(stamps.windows(2).all(|w| w[0].to_bytes() < w[1].to_bytes()));
        for stamp in stamps {
            let bytes = stamp.to_bytes();
            assert_eq!(Stamp::from_bytes(&bytes), Some(stamp));
            assert_eq!(Stamp::from_bytes(&bytes[1..]), None);
        }
    }
}
