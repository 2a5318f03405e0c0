//! Which instance to ask first, and at which of its addresses.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hearsay_protocol::{NodeId, providers::Provider, record::Health};

/// How long an instance that could not be reached is asked last. The table drops a dead node within two seconds; an address that only this
/// node cannot reach stays in it.
const AILS_FOR: Duration = Duration::from_secs(10);
/// Instances remembered as ailing; further ones are not.
const AILING_MAX: usize = 256;

/// Addresses that lately did not answer.
#[derive(Debug, Default)]
pub(super) struct Ailing(Mutex<BTreeMap<String, Instant>>);

impl Ailing {
    /// Remembers that this one did not answer.
    pub(super) fn note(&self, url: &str) {
        let now = Instant::now();
        let mut until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.retain(|_, until| now < *until);
        if until.len() < AILING_MAX {
            until.insert(url.to_owned(), now + AILS_FOR);
        }
    }

    fn has(&self, url: &str) -> bool {
        let until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until.get(url).is_some_and(|until| Instant::now() < *until)
    }
}

/// Instances whose address is remembered; of further ones the first address is tried first.
const REACHED_MAX: usize = 1024;
/// Addresses of an instance that are tried. They are ordered: one that answers is among the first, or
/// nowhere.
const ADDRESSES_MAX: usize = 4;

/// Which address of an instance answered, where it was not the first. The memory ends when another address
/// becomes the first.
#[derive(Debug, Default)]
pub(super) struct Reached(Mutex<BTreeMap<(NodeId, String), Alternative>>);

#[derive(Debug)]
struct Alternative {
    first: String,
    answered: String,
}

impl Reached {
    /// The origins of an instance to try, in this order.
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
        } else if known.len() < REACHED_MAX || known.contains_key(&key) {
            known.insert(key, Alternative { first: first.into_owned(), answered: answered.to_owned() });
        } else {
            // Instances come and go: those of the past make room at once, and what is still there is learnt
            // again by one failed connection.
            known.clear();
        }
    }
}

/// Sorts: what is critical or has just failed comes last; then the preferred node, this node, the healthy. Among equals each node has
/// an order of its own, which stays: so one reader keeps to one instance, and many readers spread over all.
pub(super) fn best_first(
    mut providers: Vec<Arc<Provider>>,
    me: NodeId,
    prefer: Option<NodeId>,
    ailing: &Ailing,
) -> Vec<Arc<Provider>> {
    providers.sort_by_cached_key(|provider| {
        let health = provider.instance.health;
        let mut hasher = DefaultHasher::new();
        (me, provider.node_id, &provider.id).hash(&mut hasher);
        (
            health == Health::Critical,
            ailing.has(&provider.instance.url),
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
        let (web, reached) = (provider(&["a:1", "b:1", "c:1"]), Reached::default());
        reached.record(&web, "http://c:1");
        assert_eq!(reached.order(&web), ["http://c:1", "http://a:1", "http://b:1"]);
        let moved = provider(&["b:1", "a:1", "c:1"]);
        assert_eq!(reached.order(&moved), ["http://b:1", "http://a:1", "http://c:1"]);
        reached.record(&web, "http://a:1");
        assert!(reached.0.lock().unwrap().is_empty(), "nothing to remember of the first");
        let many: Vec<_> = (0..9).map(|n| format!("h{n}:1")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(reached.order(&provider(&many)).len(), ADDRESSES_MAX);
    }

    #[test]
    fn the_memory_is_bounded() {
        let (host, reached) = (MemoryHost::new("me"), Reached::default());
        host.offer_at("web", "n0", &["a:1", "b:1"]);
        for n in 0..=REACHED_MAX {
            let one = Provider { id: n.to_string(), ..Provider::clone(&host.providers("web")[0]) };
            reached.record(&one, "http://b:1");
            assert!(reached.0.lock().unwrap().len() <= REACHED_MAX);
        }
    }
}
