//! [`Sample`]: a uniform choice of a bounded number of distinct keys, in one pass and bounded memory.
//!
//! It keeps the keys with the lowest hashes (bottom-k sketch: Cohen and Kaplan, 2007). Each sample hashes
//! with a seed of its own, so each is another choice in another order. A key that occurs again has the same
//! hash and is not kept twice.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher as _},
};

/// A random choice of values with distinct keys.
#[derive(Debug)]
pub(super) struct Sample<T> {
    size_max: usize,
    seed: u64,
    kept: BTreeMap<u64, T>,
    is_partial: bool,
}

impl<T> Sample<T> {
    /// An empty sample of at most so many values, one at least.
    pub(super) fn new(size_max: usize) -> Self {
        Self { size_max: size_max.max(1), seed: fastrand::u64(..), kept: BTreeMap::new(), is_partial: false }
    }

    /// Offers a value. `make` is called only if the value is kept.
    pub(super) fn offer(&mut self, key: impl Hash, make: impl FnOnce() -> T) {
        let hash = seeded_hash(self.seed, key);
        if self.kept.contains_key(&hash) {
            return;
        }
        if self.is_full() {
            self.is_partial = true;
            match self.kept.last_entry() {
                Some(last) if *last.key() > hash => last.remove(),
                _ => return,
            };
        }
        self.kept.insert(hash, make());
    }

    /// Whether there are as many values as the sample may have.
    pub(super) fn is_full(&self) -> bool {
        self.kept.len() >= self.size_max
    }

    /// Whether a value was offered that is not in the sample.
    pub(super) fn is_partial(&self) -> bool {
        self.is_partial
    }

    /// The values, in random order.
    pub(super) fn into_values(self) -> Vec<T> {
        self.kept.into_values().collect()
    }
}

/// A hash that depends on a seed.
pub(super) fn seeded_hash(seed: u64, key: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    key.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_that_fits_is_all_and_has_each_key_once() {
        let mut sample = Sample::new(10);
        (0..30).for_each(|n| sample.offer(n % 10, || n % 10));
        assert!(sample.is_full() && !sample.is_partial());
        let mut values = sample.into_values();
        values.sort_unstable();
        assert_eq!(values, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn every_value_is_chosen_as_often_as_others() {
        let mut chosen = [0; 100];
        for _ in 0..10_000 {
            let mut sample = Sample::new(10);
            (0..100).for_each(|n| sample.offer(n, || n));
            assert!(sample.is_partial());
            let values = sample.into_values();
            assert_eq!(values.len(), 10);
            values.into_iter().for_each(|n| chosen[n] += 1);
        }
        // 1,000 each; the standard deviation is 30.
        assert!(chosen.iter().all(|count| (800..1200).contains(count)), "{chosen:?}");
    }
}
