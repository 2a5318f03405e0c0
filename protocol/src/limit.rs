//! How much one author may send by gossip. What is over the limit is not lost: anti-entropy brings it, later.

use std::collections::BTreeMap;

use crate::{NodeId, Time};

/// Authors remembered; the one that was silent for longest goes first. An author that is forgotten starts with a full bucket.
const AUTHORS_MAX: usize = 16 * 1024;

/// A token bucket for each author.
#[derive(Debug)]
pub(crate) struct Limit {
    per_s: f64,
    burst: f64,
    buckets: BTreeMap<NodeId, (f64, Time)>,
}

impl Limit {
    pub(crate) fn new(per_s: u32, burst: u32) -> Self {
        Self { per_s: per_s.into(), burst: burst.into(), buckets: BTreeMap::new() }
    }

    /// Whether the author has a token left. Asked before its signature is checked, and a token taken only after: otherwise a forger
    /// could use up somebody else's.
    pub(crate) fn has_left(&self, now: Time, author: NodeId) -> bool {
        self.tokens(now, author) >= 1.0
    }

    fn tokens(&self, now: Time, author: NodeId) -> f64 {
        self.buckets.get(&author).map_or(self.burst, |(tokens, at)| {
            (tokens + now.since(*at).as_secs_f64() * self.per_s).min(self.burst)
        })
    }

    /// Takes a token.
    pub(crate) fn take(&mut self, now: Time, author: NodeId) {
        if self.buckets.len() >= AUTHORS_MAX && !self.buckets.contains_key(&author) {
            let stalest = self.buckets.iter().min_by_key(|(_, (_, at))| *at).map(|(id, _)| *id);
            stalest.and_then(|id| self.buckets.remove(&id));
        }
        let left = self.tokens(now, author) - 1.0;
        self.buckets.insert(author, (left, now));
    }

    /// Drops the buckets that are full again.
    pub(crate) fn tidy(&mut self, now: Time) {
        self.buckets
            .retain(|_, (tokens, at)| *tokens + now.since(*at).as_secs_f64() * self.per_s < self.burst);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut limit = Limit::new(10, 5);
        let author = NodeId::from_public_key([1; 32]);
        let mut allowed = |now| {
            let has_left = limit.has_left(now, author);
            if has_left {
                limit.take(now, author);
            }
            has_left
        };
        assert_eq!((0..10).filter(|_| allowed(Time::ZERO)).count(), 5);
        let later = Time::ZERO + Duration::from_millis(300);
        assert_eq!((0..10).filter(|_| allowed(later)).count(), 3);
        limit.tidy(later + Duration::from_secs(1));
        assert!(limit.buckets.is_empty());
    }
}
