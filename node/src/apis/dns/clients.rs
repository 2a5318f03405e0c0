//! [`OwnAddresses`]: finds whether a client of DNS is on this machine, for a private node, which answers no
//! others.
//!
//! DNS carries no proof, and a datagram from another machine may have any source. An own address is enough
//! all the same: the response goes to that address, so to this machine. Over IPv4 the kernel also drops such
//! datagrams from outside.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::system::interfaces;

/// How old the list of addresses may be. It bounds for how long an address that this machine has lost counts
/// as its own, and the system calls that other machines can cause.
const AGE_MAX: Duration = Duration::from_secs(1);

/// The addresses of this machine, read again when they may have changed.
#[derive(Debug)]
pub(super) struct OwnAddresses {
    list: fn() -> BTreeSet<IpAddr>,
    known: Mutex<Option<(Instant, BTreeSet<IpAddr>)>>,
}

impl Default for OwnAddresses {
    fn default() -> Self {
        let list = || interfaces::addresses().into_iter().map(|own| own.ip.to_canonical()).collect();
        Self { list, known: Mutex::default() }
    }
}

impl OwnAddresses {
    /// Whether a client is on this machine.
    pub(super) fn has(&self, client: IpAddr, now: Instant) -> bool {
        let client = client.to_canonical();
        if client.is_loopback() {
            return true;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, own)) = &*known
            && now.saturating_duration_since(*read) < AGE_MAX
        {
            return own.contains(&client);
        }
        let own = (self.list)();
        let is_own = own.contains(&client);
        *known = Some((now, own));
        is_own
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static READ: AtomicUsize = AtomicUsize::new(0);

    /// The second address replaces the first one after the first reading.
    fn list() -> BTreeSet<IpAddr> {
        let own = ["10.77.0.1", "fd77::1"][READ.fetch_add(1, Ordering::Relaxed)];
        [own.parse().unwrap()].into()
    }

    #[test]
    fn a_client_is_local_by_loopback_or_an_own_address() {
        let (own, start) = (OwnAddresses { list, known: Mutex::default() }, Instant::now());
        let has = |client: &str, at: Instant| own.has(client.parse().unwrap(), at);
        for client in ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1", "10.77.0.1", "::ffff:10.77.0.1"] {
            assert!(has(client, start), "{client}");
        }
        for client in ["10.77.0.2", "8.8.8.8", "fd77::1", "0.0.0.0"] {
            assert!(!has(client, start), "{client}");
        }
        assert_eq!(READ.load(Ordering::Relaxed), 1, "others cause no reading");
        assert!(!has("10.77.0.1", start + AGE_MAX), "a lost address");
        assert!(has("fd77::1", start + AGE_MAX), "a new address");
        assert!(!has("10.77.0.2", start + AGE_MAX));
        assert_eq!(READ.load(Ordering::Relaxed), 2);
    }
}
