//! [`RateLimit`]: rate limiter with one token bucket per node ID. The core has several: for entries by
//! author, evidence by observer, misbehaviour and unknown messages by peer. The caller decides what happens
//! to excess.

use std::collections::BTreeMap;

use crate::{NodeId, Time};

/// Buckets kept. If there are more, the one unused for longest is dropped; its node then starts with a full
/// bucket.
const NODES_MAX: usize = 16 * 1024;

/// Token buckets by node: the author or the sender of what is limited.
#[derive(Debug)]
pub(crate) struct RateLimit {
    per_s: f64,
    burst: f64,
    buckets: BTreeMap<NodeId, (f64, Time)>,
}

impl RateLimit {
    pub(crate) fn new(per_s: u32, burst: u32) -> Self {
        Self { per_s: per_s.into(), burst: burst.into(), buckets: BTreeMap::new() }
    }

    /// Whether the node has a token left. Call this before verifying the signature, and take the token
    /// afterwards. Otherwise a forger could use up another node's tokens.
    pub(crate) fn has_token(&self, now: Time, node: NodeId) -> bool {
        self.tokens(now, node) >= 1.0
    }

    fn tokens(&self, now: Time, node: NodeId) -> f64 {
        self.buckets.get(&node).map_or(self.burst, |(tokens, at)| {
            (tokens + now.since(*at).as_secs_f64() * self.per_s).min(self.burst)
        })
    }

    /// Takes a token of a node.
    pub(crate) fn take_token(&mut self, now: Time, node: NodeId) {
        if self.buckets.len() >= NODES_MAX && !self.buckets.contains_key(&node) {
            let stalest = self.buckets.iter().min_by_key(|(_, (_, at))| *at).map(|(id, _)| *id);
            stalest.and_then(|id| self.buckets.remove(&id));
        }
        let left = self.tokens(now, node) - 1.0;
        self.buckets.insert(node, (left, now));
    }

    /// Drops full buckets, which equal those of unknown nodes.
    pub(crate) fn prune(&mut self, now: Time) {
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
        let mut limit = RateLimit::new(10, 5);
        let author = NodeId::from_public_key([1; 32]);
        let mut allowed = |now| {
            let has_token = limit.has_token(now, author);
            if has_token {
                limit.take_token(now, author);
            }
            has_token
        };
        assert_eq!((0..10).filter(|_| allowed(Time::ZERO)).count(), 5);
        let later = Time::ZERO + Duration::from_millis(300);
        assert_eq!((0..10).filter(|_| allowed(later)).count(), 3);
        limit.prune(later + Duration::from_secs(1));
        assert!(limit.buckets.is_empty());
    }
}
