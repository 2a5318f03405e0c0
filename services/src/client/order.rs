//! Whom to ask first.

use std::{
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
