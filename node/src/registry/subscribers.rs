//! [`Subscriptions`]: notifies programs of their dependencies. A program with `requires` and `updates` gets
//! the passing instances of the required services.
//!
//! A notification is the difference between the instances that the program has acknowledged (2xx) and those
//! in the provider table. The first one has the whole set. Notifications are sent in order, one at a time;
//! changes during an outage of the program are sent together afterwards. A failed notification is retried
//! with exponential backoff for an hour; after that, the next change starts a new attempt.
//!
//! Acknowledged instances are stored, so that instances which vanish while the node is down cause removals.
//! After a restart the table has to fill first: removals wait for [`RESTORE_GRACE`].
//!
//! Programs identify instances by URL. A removal is sent only when no instance is left at the URL, not when a
//! duplicate registration on another node starts to count.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hearsay_protocol::{Health, Index, Provider};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, watch::Receiver},
    task::AbortHandle,
    time::Instant,
};

use super::{
    checks::{HttpCheck, runner::Caller},
    registration::{Dialect, Registration},
};
use crate::view::View;

/// Backoff after the first failure; it doubles with each failure.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest backoff.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Time limit for the retries of a notification.
const RETRY_FOR: Duration = Duration::from_secs(3600);
/// Time limit of one attempt.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
/// Changes within this time are one notification: the instances of a failed node vanish one by one.
const COALESCE: Duration = Duration::from_millis(5);

/// Delay of removals after a restart of the node; the first gossip from all nodes may take that long.
const RESTORE_GRACE: Duration = Duration::from_secs(10);
/// Maximum number of acknowledged instances of a program that are stored. Beyond it, the program gets the
/// whole set after a restart of the node.
const STORED_MAX: usize = 1024;

/// Counters of notifications.
#[derive(Debug, Default)]
pub struct NotificationCounters {
    /// Notifications that a program acknowledged.
    pub delivered: AtomicU64,
    /// Attempts that failed.
    pub failed: AtomicU64,
    /// Notifications given up after an hour of attempts.
    pub given_up: AtomicU64,
}

/// Starts subscriptions.
#[derive(Clone, Debug)]
pub(super) struct Subscriptions {
    pub(super) view: Arc<View>,
    pub(super) caller: Caller,
    pub(super) counters: Arc<NotificationCounters>,
    /// Acknowledgements that are not stored yet, by instance id, in stored form.
    pub(super) unstored: Arc<Mutex<BTreeMap<String, String>>>,
    /// Wakes the registrar, which stores the acknowledgements.
    pub(super) acknowledged: Arc<Notify>,
}

/// A running subscription; it ends when this value is dropped.
#[derive(Debug)]
pub(super) struct Subscription(AbortHandle);

impl Drop for Subscription {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Subscriptions {
    /// Removes and returns the acknowledgements to store, by instance id.
    pub(super) fn take_unstored(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut *self.unstored.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts notifications for a program with `requires` and `updates`. `stored`: the program's
    /// acknowledgements from before the restart of the node.
    pub(super) fn start(&self, registration: &Registration, stored: Option<&str>) -> Option<Subscription> {
        let url = registration.updates.clone()?;
        if registration.requires.is_empty() {
            return None;
        }
        // If the stored acknowledgements cannot be parsed, the program gets the whole set.
        let stored = stored
            .and_then(|stored| serde_json::from_str::<Vec<(InstanceKey, NotifiedInstance)>>(stored).ok());
        let subscriber = Subscriber {
            id: registration.id.clone(),
            removals_from: stored.as_ref().map(|_| Instant::now() + RESTORE_GRACE),
            url,
            dialect: registration.dialect,
            services: registration.requires.clone(),
            acknowledged: stored.into_iter().flatten().collect(),
            changes: self.view.subscribe(),
            context: self.clone(),
        };
        Some(Subscription(tokio::spawn(subscriber.run()).abort_handle()))
    }
}

/// Key of an instance for programs: service and URL.
type InstanceKey = (String, String);

/// Task state of one notified program.
struct Subscriber {
    /// The program's instance id.
    id: String,
    /// After a restart of the node: when removals may be sent.
    removals_from: Option<Instant>,
    url: String,
    dialect: Dialect,
    services: BTreeSet<String>,
    /// The instances that the program has acknowledged.
    acknowledged: BTreeMap<InstanceKey, NotifiedInstance>,
    changes: Receiver<Index>,
    context: Subscriptions,
}

/// Details of an instance that only notifications in dialect 2 contain.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
struct NotifiedInstance {
    address: String,
    requires: Vec<String>,
}

impl From<&Arc<Provider>> for NotifiedInstance {
    fn from(provider: &Arc<Provider>) -> Self {
        let stated = || format!("{}:{}", provider.host(), provider.instance.port);
        Self {
            address: provider.addresses.first().cloned().unwrap_or_else(stated),
            requires: provider.instance.requires.clone(),
        }
    }
}

/// The difference between the acknowledged instances and those in the table.
#[derive(Debug, Default)]
struct Difference {
    added: BTreeMap<InstanceKey, NotifiedInstance>,
    removed: BTreeMap<InstanceKey, NotifiedInstance>,
}

impl Subscriber {
    async fn run(mut self) {
        loop {
            self.changes.mark_unchanged();
            let difference = self.find_difference();
            if !difference.is_empty() {
                self.deliver().await;
                continue;
            }
            let removals_from = self.removals_from;
            tokio::select! {
                // An error means that the node is stopping.
                changed = self.changes.changed() => if changed.is_err() {
                    return;
                },
                () = tokio::time::sleep_until(removals_from.unwrap_or_else(Instant::now)), if removals_from.is_some() => {
                    self.removals_from = None;
                }
            }
            tokio::time::sleep(COALESCE).await;
        }
    }

    fn find_difference(&self) -> Difference {
        let current: BTreeMap<InstanceKey, NotifiedInstance> = self.context.view.read(|table| {
            let of = |service: &String| {
                let distinct = table.providers_distinct(service);
                let passing = distinct.filter(|p| p.instance.health == Health::Passing);
                let details = |p: &Arc<Provider>| match self.dialect {
                    Dialect::NameAddr => NotifiedInstance::from(p),
                    Dialect::Native | Dialect::ServiceUrl => NotifiedInstance::default(),
                };
                passing.map(|p| ((service.clone(), p.url().into_owned()), details(p))).collect::<Vec<_>>()
            };
            self.services.iter().flat_map(of).collect()
        });
        let mut difference = Difference::default();
        for (key, instance) in &current {
            if self.acknowledged.get(key) != Some(instance) {
                difference.added.insert(key.clone(), instance.clone());
            }
        }
        if self.removals_from.is_some_and(|from| Instant::now() < from) {
            return difference;
        }
        for (key, instance) in &self.acknowledged {
            if !current.contains_key(key) {
                difference.removed.insert(key.clone(), instance.clone());
            }
        }
        difference
    }

    /// Sends the difference until the program acknowledges it or [`RETRY_FOR`] is over. Each attempt includes
    /// later changes.
    async fn deliver(&mut self) {
        let (begun, mut pause) = (Instant::now(), PAUSE_MIN);
        loop {
            let difference = self.find_difference();
            if difference.is_empty() || self.send_difference(difference).await {
                return;
            }
            self.context.counters.failed.fetch_add(1, Relaxed);
            if begun.elapsed() > RETRY_FOR {
                self.context.counters.given_up.fetch_add(1, Relaxed);
                tracing::warn!(
                    url = self.url,
                    "a program did not acknowledge a notification for an hour; the next change starts a new attempt"
                );
                self.changes.mark_unchanged();
                // An error means that the node is stopping.
                _ = self.changes.changed().await;
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Sends a difference. Returns whether the program acknowledged all of it.
    async fn send_difference(&mut self, difference: Difference) -> bool {
        if self.dialect == Dialect::NameAddr {
            return self.send_one_by_one(difference).await;
        }
        let list = |instances: &BTreeMap<InstanceKey, NotifiedInstance>| -> Vec<Value> {
            let entry = |((service, url), _): (&InstanceKey, &NotifiedInstance)| json!({ "Name": service, "URL": url });
            instances.iter().map(entry).collect()
        };
        let body = json!({ "Added": list(&difference.added), "Removed": list(&difference.removed) });
        if !self.send_request("POST", &body).await {
            return false;
        }
        difference.removed.keys().for_each(|key| _ = self.acknowledged.remove(key));
        self.acknowledged.extend(difference.added);
        self.store();
        true
    }

    /// Queues the acknowledged instances to be stored.
    fn store(&self) {
        let is_bounded = self.acknowledged.len() <= STORED_MAX;
        let known: Vec<_> = self.acknowledged.iter().filter(|_| is_bounded).collect();
        if let Ok(known) = serde_json::to_string(&known) {
            let mut unstored = self.context.unstored.lock().unwrap_or_else(PoisonError::into_inner);
            unstored.insert(self.id.clone(), known);
            self.context.acknowledged.notify_one();
        }
    }

    async fn send_one_by_one(&mut self, difference: Difference) -> bool {
        for (key, instance) in difference.removed {
            if !self.send_request("DELETE", &instance.to_name_addr_json(&key.0)).await {
                return false;
            }
            self.acknowledged.remove(&key);
            self.store();
        }
        for (key, instance) in difference.added {
            if !self.send_request("POST", &instance.to_name_addr_json(&key.0)).await {
                return false;
            }
            self.acknowledged.insert(key, instance);
            self.store();
        }
        true
    }

    async fn send_request(&self, method: &str, body: &Value) -> bool {
        let request = HttpCheck {
            url: self.url.clone(),
            method: method.into(),
            headers: BTreeMap::from([("content-type".into(), vec!["application/json".into()])]),
            body: body.to_string(),
            ..HttpCheck::default()
        };
        match self.context.caller.call(&request, ATTEMPT_MAX).await {
            Ok(()) => {
                self.context.counters.delivered.fetch_add(1, Relaxed);
                true
            }
            Err(problem) => {
                tracing::debug!(url = self.url, problem, "a notification failed; trying again");
                false
            }
        }
    }
}

impl NotifiedInstance {
    fn to_name_addr_json(&self, service: &str) -> Value {
        json!({ "Name": service, "Addr": self.address, "RequiredServices": self.requires })
    }
}

impl Difference {
    fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty()
    }
}

#[cfg(test)]
mod tests;
