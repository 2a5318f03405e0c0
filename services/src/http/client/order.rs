//! Order in which the client tries the instances of a service and the addresses of an instance, by health,
//! recent failures and earlier answers.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hearsay_protocol::{Health, NodeId, Provider};

/// Time for which an instance is tried last after a failure. The provider table drops a failed node within
/// two seconds, but keeps an address that only this node cannot reach.
const AVOIDED_FOR: Duration = Duration::from_secs(10);
/// Maximum number of recent failures that are remembered; further ones are ignored.
const FAILURES_MAX: usize = 256;

/// Addresses with recent failures.
#[derive(Debug, Default)]
pub(super) struct RecentFailures(Mutex<BTreeMap<String, Instant>>);

impl RecentFailures {
    /// Remembers a failure.
    pub(super) fn record(&self, url: &str) {
        let now = Instant::now();
        let mut until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.retain(|_, until| now < *until);
        if until.len() < FAILURES_MAX {
            until.insert(url.to_owned(), now + AVOIDED_FOR);
        }
    }

    fn has(&self, url: &str) -> bool {
        let until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.get(url).is_some_and(|until| Instant::now() < *until)
    }
}

/// Maximum number of instances with a remembered address; a further one clears the memory.
const ALTERNATIVES_MAX: usize = 1024;
/// Maximum number of addresses that are tried for an instance. They are ordered, so one that works is among
/// the first.
const ADDRESSES_MAX: usize = 4;

/// The address at which an instance answered, if it was not the first. It is ignored once another address is
/// the first.
#[derive(Debug, Default)]
pub(super) struct AlternativeAddresses(Mutex<BTreeMap<(NodeId, String), Alternative>>);

#[derive(Debug)]
struct Alternative {
    first: String,
    answered: String,
}

impl AlternativeAddresses {
    /// Returns the origins of an instance in the order of trying.
    pub(super) fn order(&self, provider: &Provider) -> Vec<String> {
        let mut urls: Vec<String> = provider.urls().into_iter().map(Cow::into_owned).collect();
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(&(provider.node_id, provider.id.clone()));
        let answered = known.filter(|known| urls.first() == Some(&known.first)).map(|known| &known.answered);
        if let Some(at) = answered.and_then(|answered| urls.iter().position(|url| url == answered)) {
            urls[..=at].rotate_right(1);
        }
        urls.truncate(ADDRESSES_MAX);
        urls
    }

    /// Remembers the origin that answered.
    pub(super) fn record(&self, provider: &Provider, answered: &str) {
        let first = provider.url();
        let key = (provider.node_id, provider.id.clone());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if first == answered {
            known.remove(&key);
        } else if known.len() < ALTERNATIVES_MAX || known.contains_key(&key) {
            known.insert(key, Alternative { first: first.into_owned(), answered: answered.to_owned() });
        } else {
            // This forgets past instances. A current one is learnt again at the cost of one failed
            // connection.
            known.clear();
        }
    }
}

/// Sorts instances. Critical ones come last, and before them those that failed recently. Among the others,
/// the preferred node comes first, then this node, then passing instances. Equal ones have a stable order
/// that differs from node to node: one reader stays with one instance, and many readers spread over all.
pub(super) fn best_first(
    mut providers: Vec<Arc<Provider>>,
    me: NodeId,
    prefer: Option<NodeId>,
    recent_failures: &RecentFailures,
) -> Vec<Arc<Provider>> {
    providers.sort_by_cached_key(|provider| {
        let health = provider.instance.health;
        let mut hasher = DefaultHasher::new();
        (me, provider.node_id, &provider.id).hash(&mut hasher);
        (
            health == Health::Critical,
            recent_failures.has(&provider.instance.url),
            prefer != Some(provider.node_id),
            provider.node_id != me,
            health != Health::Passing,
            hasher.finish(),
        )
    });
    providers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Host as _, testing::MemoryHost};

    #[test]
    fn the_address_that_answered_is_tried_first_until_another_one_becomes_the_best() {
        let provider = |addresses: &[&str]| {
            let host = MemoryHost::new("me");
            host.offer_at("web", "n0", addresses);
            Provider::clone(&host.providers("web")[0])
        };
        let (web, alternatives) = (provider(&["a:1", "b:1", "c:1"]), AlternativeAddresses::default());
        alternatives.record(&web, "http://c:1");
        assert_eq!(alternatives.order(&web), ["http://c:1", "http://a:1", "http://b:1"]);
        let moved = provider(&["b:1", "a:1", "c:1"]);
        assert_eq!(alternatives.order(&moved), ["http://b:1", "http://a:1", "http://c:1"]);
        alternatives.record(&web, "http://a:1");
        assert!(alternatives.0.lock().unwrap().is_empty(), "nothing to remember of the first");
        let many: Vec<_> = (0..9).map(|n| format!("h{n}:1")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(alternatives.order(&provider(&many)).len(), ADDRESSES_MAX);
    }

    #[test]
    fn the_memory_is_bounded() {
        let (host, alternatives) = (MemoryHost::new("me"), AlternativeAddresses::default());
        host.offer_at("web", "n0", &["a:1", "b:1"]);
        for n in 0..=ALTERNATIVES_MAX {
            let one = Provider { id: n.to_string(), ..Provider::clone(&host.providers("web")[0]) };
            alternatives.record(&one, "http://b:1");
            assert!(alternatives.0.lock().unwrap().len() <= ALTERNATIVES_MAX);
        }
    }
}
