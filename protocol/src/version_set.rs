//! [`VersionSet`]: the versions of one signer that a node has seen, as a watermark and ranges above it.
//!
//! The highest version alone does not suffice. Entries arrive in any order, and a receiver that recorded only
//! the highest version would never request a lost one. A version counts as seen if this node holds its
//! entry. It also counts if a node that saw the version confirmed that the entry was superseded or collected.

use serde::{Deserialize, Serialize};

use crate::Version;

/// Ranges kept above the watermark. Beyond that the highest range is dropped and its entries are fetched
/// again. Guess: a receiver with this many gaps will be repaired soon.
pub const VERSION_RANGES_MAX: usize = 64;

/// Set of versions: all up to a watermark, and ranges above it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct VersionSet {
    watermark: Version,
    /// Ascending ranges, both ends included. No range touches another one or the watermark.
    above: Vec<(Version, Version)>,
}

impl VersionSet {
    /// All versions up to `watermark`.
    pub fn up_to(watermark: Version) -> Self {
        Self { watermark, above: Vec::new() }
    }

    /// Highest version below the first gap.
    pub fn watermark(&self) -> Version {
        self.watermark
    }

    /// Highest version.
    pub fn highest(&self) -> Version {
        self.above.last().map_or(self.watermark, |(_, end)| *end)
    }

    /// Whether the set contains a version.
    pub fn contains(&self, version: Version) -> bool {
        version <= self.watermark || self.above.iter().any(|(start, end)| (*start..=*end).contains(&version))
    }

    /// Whether the set contains every version of `other`.
    pub fn contains_all(&self, other: &Self) -> bool {
        self.contains_range(Version(1), other.watermark)
            && other.above.iter().all(|(start, end)| self.contains_range(*start, *end))
    }

    fn contains_range(&self, start: Version, end: Version) -> bool {
        let start = start.max(self.watermark.next());
        start > end || self.above.iter().any(|(s, e)| *s <= start && end <= *e)
    }

    /// Adds a version.
    pub fn insert(&mut self, version: Version) {
        self.insert_range(version, version);
    }

    /// Adds a range, both ends included.
    pub fn insert_range(&mut self, start: Version, end: Version) {
        if start > end || end <= self.watermark {
            return;
        }
        let (mut start, mut end) = (start.max(self.watermark.next()), end);
        // Merges the range with every one that it overlaps or touches.
        self.above.retain(|(s, e)| {
            let apart = *s > end.next() || e.next() < start;
            if !apart {
                start = start.min(*s);
                end = end.max(*e);
            }
            apart
        });
        if start == self.watermark.next() {
            self.watermark = end;
        } else {
            let at = self.above.partition_point(|(s, _)| *s < start);
            self.above.insert(at, (start, end));
            self.above.truncate(VERSION_RANGES_MAX);
        }
    }

    /// Adds every version of `other`.
    pub fn insert_all(&mut self, other: &Self) {
        self.insert_range(Version(1), other.watermark);
        other.above.iter().for_each(|(start, end)| self.insert_range(*start, *end));
    }

    /// The versions of the set up to `limit`.
    pub fn below(&self, limit: Version) -> Self {
        Self {
            watermark: self.watermark.min(limit),
            above: self
                .above
                .iter()
                .filter(|(start, _)| *start <= limit)
                .map(|(start, end)| (*start, (*end).min(limit)))
                .collect(),
        }
    }

    /// The versions of the set that are not in `other`. Keeps at most one range less than
    /// [`VERSION_RANGES_MAX`], so that one more version can be added. The highest ranges are dropped.
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = Self::default();
        let watermark = (Version(1), self.watermark);
        for (start, end) in std::iter::once(&watermark).chain(&self.above) {
            let first = (*start).max(other.watermark.next());
            let mut start = first;
            for (s, e) in other.above.iter().filter(|(s, e)| *s <= *end && first <= *e) {
                rest.insert_range(start, Version(s.0 - 1));
                start = e.next();
            }
            rest.insert_range(start, *end);
        }
        rest.above.truncate(VERSION_RANGES_MAX - 1);
        rest
    }

    /// All versions as ranges, ascending, both ends included.
    pub fn iter(&self) -> impl Iterator<Item = (Version, Version)> {
        let up_to = (self.watermark > Version(0)).then_some((Version(1), self.watermark));
        up_to.into_iter().chain(self.above.iter().copied())
    }

    /// Number of ranges above the watermark.
    pub fn ranges(&self) -> usize {
        self.above.len()
    }

    /// Whether a peer's set is valid: the ranges are ascending and separate, and not more than
    /// [`VERSION_RANGES_MAX`].
    pub fn is_well_formed(&self) -> bool {
        self.above.len() <= VERSION_RANGES_MAX
            && self.above.iter().all(|(start, end)| start <= end)
            && self.above.first().is_none_or(|(start, _)| *start > self.watermark.next())
            && self.above.windows(2).all(|w| w[0].1.next() < w[1].0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Compares with a plain set of numbers.
        #[test]
        fn ranges_behave_as_the_set_they_stand_for(ranges in prop::collection::vec((1u64..60, 0u64..6), 0..20), limit in 0u64..70) {
            let mut seen = VersionSet::default();
            let mut set = BTreeSet::new();
            for (start, len) in ranges {
                let before = seen.clone();
                let old = set.clone();
                seen.insert_range(Version(start), Version(start + len));
                set.extend(start..=start + len);
                prop_assert!(seen.is_well_formed(), "{seen:?}");
                prop_assert!(seen.contains_all(&before));
                prop_assert_eq!(before.contains_all(&seen), before == seen);
                let added = seen.without(&before);
                prop_assert!(added.is_well_formed(), "{added:?}");
                for v in 1..70 {
                    prop_assert_eq!(added.contains(Version(v)), set.contains(&v) && !old.contains(&v));
                }
            }
            for v in 1..70 {
                prop_assert_eq!(seen.contains(Version(v)), set.contains(&v), "{} in {:?}", v, seen);
                prop_assert_eq!(seen.below(Version(limit)).contains(Version(v)), v <= limit && set.contains(&v));
            }
            prop_assert_eq!(seen.highest().0, set.last().copied().unwrap_or(0));
            prop_assert!(seen.iter().flat_map(|(start, end)| start.0..=end.0).eq(set.iter().copied()));
        }
    }

    #[test]
    fn too_many_gaps_forget_the_highest_and_never_the_watermark() {
        let mut seen = VersionSet::up_to(Version(1));
        (0..200u64).for_each(|i| seen.insert(Version(10 + 2 * i)));
        assert!(seen.is_well_formed());
        assert_eq!(seen.watermark(), Version(1));
        assert_eq!(seen.highest(), Version(10 + 2 * (VERSION_RANGES_MAX as u64 - 1)));
    }
}
