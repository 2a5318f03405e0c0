//! [`Budget`]: bound on what all xDS streams hold together, with a share for each host.
//!
//! A host holds at most half, and all hosts that are not exempt three quarters. So one host leaves room for
//! others, and all of them for the node's own machine and its members.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hearsay_services::network::{Holder, HostKey};
use tokio::sync::Notify;

/// What streams hold, in bytes.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max: usize,
    held: Mutex<Held>,
    /// Wakes streams that wait for others to give back.
    returned: Notify,
}

#[derive(Default, Debug)]
struct Held {
    all: usize,
    /// Of hosts that are not exempt.
    by_hosts: usize,
    by_host: BTreeMap<HostKey, usize>,
}

/// What one stream holds; given back on drop.
#[derive(Debug)]
pub(super) struct Part {
    budget: Budget,
    holder: Holder,
    bytes: usize,
}

impl Budget {
    /// Returns a budget of so many bytes.
    pub(super) fn new(max: usize) -> Self {
        Self(Arc::new(Inner { max, held: Mutex::default(), returned: Notify::new() }))
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Only additions and subtractions happen under this lock.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a part of 0 bytes.
    pub(super) fn part(&self, holder: Holder) -> Part {
        Part { budget: self.clone(), holder, bytes: 0 }
    }

    /// Returns a part if there is room. One that is larger than the share of a host is charged as that share.
    pub(super) fn try_take(&self, holder: Holder, bytes: usize) -> Option<Part> {
        let mut part = self.part(holder);
        part.set(bytes.min(self.0.max / 2)).then_some(part)
    }

    /// Waits for a part.
    pub(super) async fn take(&self, holder: Holder, bytes: usize) -> Part {
        loop {
            let returned = self.0.returned.notified();
            if let Some(part) = self.try_take(holder, bytes) {
                return part;
            }
            returned.await;
        }
    }
}

impl Part {
    /// Changes the size of the part. Returns whether there is room; else the part stays as it is.
    pub(super) fn set(&mut self, bytes: usize) -> bool {
        let mut held = self.budget.held();
        let more = bytes.saturating_sub(self.bytes);
        let max = self.budget.0.max;
        if more > 0 {
            let host = match self.holder {
                Holder::Host(key) => held.by_host.get(&key).copied().unwrap_or(0),
                Holder::Exempt => 0,
            };
            let is_host = self.holder != Holder::Exempt;
            let has_room = held.all + more <= max
                && !(is_host && (host + more > max / 2 || held.by_hosts + more > max / 4 * 3));
            if !has_room {
                return false;
            }
        }
        held.all = held.all - self.bytes + bytes;
        if let Holder::Host(key) = self.holder {
            held.by_hosts = held.by_hosts - self.bytes + bytes;
            let host = held.by_host.entry(key).or_default();
            *host = *host - self.bytes + bytes;
            if *host == 0 {
                held.by_host.remove(&key);
            }
        }
        let has_shrunk = bytes < self.bytes;
        self.bytes = bytes;
        drop(held);
        if has_shrunk {
            self.budget.0.returned.notify_waiters();
        }
        true
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Holder = Holder::Host(HostKey::Ipv4(1));
    const OTHER: Holder = Holder::Host(HostKey::Ipv4(2));

    #[test]
    fn a_host_has_half_all_hosts_three_quarters_and_the_own_machine_the_rest() {
        let budget = Budget::new(100);
        let [mut host, mut again, mut other, mut own] =
            [HOST, HOST, OTHER, Holder::Exempt].map(|holder| budget.part(holder));
        assert!(host.set(40) && again.set(10) && !again.set(11));
        assert!(!other.set(26) && other.set(25) && own.set(25) && !own.set(26));
        assert!(host.set(1) && other.set(50) && !other.set(51));
        drop((host, again, other, own));
        assert!(budget.held().by_host.is_empty() && budget.held().all == 0);
    }

    #[tokio::test]
    async fn a_stream_waits_until_another_gives_back() {
        let budget = Budget::new(100);
        let first = budget.take(HOST, 1000).await;
        let mut second = std::pin::pin!(budget.take(HOST, 1));
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        assert!(futures::poll!(&mut second).is_ready());
    }
}
