//! Shares: limits the connections and requests of one host to a share of a limit, and evicts idle ones, so
//! that a flood from one host does not block others.
//!
//! | use of the limit | a new connection is admitted |
//! | --- | --- |
//! | up to 75 % ([`COMMON_PERCENT`]) | always |
//! | above 75 %, below 100 % | if its host holds less than its share, or is exempt |
//! | above 75 %, also at 100 %, if its host already holds its share | only in place of that host's own oldest idle connection |
//! | 100 %, its host below its share or exempt | in place of the oldest idle connection of the largest host that has one and will still hold at least as many as the new connection's host |
//!
//! A share is the limit divided by the number of hosts that hold something, plus one. A single flooding host
//! stops at 75 %, and the rest is left for others. A host is an IPv4 address or the /64 of an IPv6 address,
//! because a machine can use any number of addresses in its /64 (RFC 4291, section 2.5.4). Hosts that are
//! [exempt](Exempt) have no share: they are refused only at 100 % when no connection can be evicted.
//!
//! Event streams and handshakes, which are never idle, are not evicted. The lock is taken once per connection
//! at its start and end, never per request.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::sync::Notify;

/// Percentage of a limit up to which every host is admitted.
pub(crate) const COMMON_PERCENT: usize = 75;

/// Maximum number of connections of a host that are examined for an idle one. Busy ones are examined last the
/// next time.
const IDLE_LOOKS_MAX: usize = 64;
/// Maximum number of hosts that are examined for an idle connection, the largest holder first.
const HOSTS_LOOKED_AT_MAX: usize = 8;

/// A host that shares a limit with others: an IPv4 address, or the /64 of an IPv6 address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum HostKey {
    /// An IPv4 address.
    Ipv4(u32),
    /// The first 64 bits of an IPv6 address.
    Ipv6(u64),
}

impl From<IpAddr> for HostKey {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::Ipv4(ip.to_bits()),
            IpAddr::V6(ip) => Self::Ipv6((ip.to_bits() >> 64) as u64),
        }
    }
}

/// Tells which hosts are not limited to a share. Clones use the same predicate.
#[derive(Clone)]
pub struct Exempt(Arc<dyn Fn(IpAddr) -> bool + Send + Sync>);

impl Exempt {
    /// The hosts for which the predicate is true, and loopback. The predicate gets IPv4-mapped addresses as
    /// IPv4.
    pub fn new(is_exempt: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_exempt))
    }

    /// Returns the holder at an address.
    pub fn holder(&self, ip: IpAddr) -> Holder {
        let ip = ip.to_canonical();
        if ip.is_loopback() || (self.0)(ip) { Holder::Exempt } else { Holder::Host(ip.into()) }
    }
}

impl Default for Exempt {
    /// Only loopback.
    fn default() -> Self {
        Self::new(|_| false)
    }
}

impl fmt::Debug for Exempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exempt")
    }
}

/// Holder of a part of a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder {
    /// A host with a share.
    Host(HostKey),
    /// An exempt host.
    Exempt,
}

/// Number of active requests of a connection, and the signal that it is evicted.
#[derive(Debug, Default)]
pub struct Activity {
    requests: AtomicUsize,
    /// Age among the connections of its host. This field and the next one change only under the lock of the
    /// shares.
    age: AtomicU64,
    is_evicted: AtomicBool,
    evicted: Notify,
}

impl Activity {
    /// Starts a request, which lasts until the returned value is dropped.
    pub fn begin(self: &Arc<Self>) -> ActiveRequest {
        self.requests.fetch_add(1, Relaxed);
        ActiveRequest(Arc::clone(self))
    }

    /// Returns whether no request is active.
    pub fn is_idle(&self) -> bool {
        self.requests.load(Relaxed) == 0
    }

    /// Resolves when the connection is evicted. A request that has started in the meantime may finish.
    pub async fn evicted(&self) {
        while !self.is_evicted.load(Relaxed) {
            self.evicted.notified().await;
        }
    }

    fn evict(&self) {
        self.is_evicted.store(true, Relaxed);
        // `notify_one` is stored for a task that does not wait yet.
        self.evicted.notify_one();
    }
}

/// An active request of a connection.
#[derive(Debug)]
pub struct ActiveRequest(Arc<Activity>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

/// Reason of a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShareRefusal {
    /// The host has used its share, and none of its connections is idle.
    Share,
    /// The limit is reached, and no connection can be evicted.
    Full,
}

/// Checks whether a new connection is admitted without an eviction. `held` is the number of connections of
/// its host, `None` for an exempt host. `hosts` counts the hosts that hold something, the new one included.
///
/// # Errors
/// The rule that refuses it.
pub fn admit(limit: usize, taken: usize, held: Option<usize>, hosts: usize) -> Result<(), ShareRefusal> {
    // Rounded up, so that with a limit of 1 to 3 every unit is in the common part.
    let common = (limit * COMMON_PERCENT).div_ceil(100);
    if taken < common {
        return Ok(());
    }
    let share = (limit / (hosts + 1)).max(1);
    if held.is_some_and(|held| held >= share) {
        return Err(ShareRefusal::Share);
    }
    if taken < limit { Ok(()) } else { Err(ShareRefusal::Full) }
}

/// Holders of one limit. Bounded by the limit, because a host that holds nothing is forgotten.
#[derive(Debug)]
pub struct Shares {
    limit: usize,
    state: Mutex<State>,
    /// Number of hosts in the state.
    hosts: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    next_age: u64,
    hosts: BTreeMap<HostKey, Held>,
    by_size: BTreeSet<(usize, HostKey)>,
}

/// The part of a limit that a host holds.
#[derive(Debug, Default)]
struct Held {
    count: usize,
    /// Connections, oldest first.
    connections: BTreeMap<u64, Arc<Activity>>,
    requests: Arc<AtomicUsize>,
}

impl Shares {
    /// An unused limit.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default(), hosts: AtomicUsize::new(0) })
    }

    /// Takes one unit of the limit until the share is dropped. A connection with an activity may be evicted
    /// while it is idle.
    ///
    /// # Errors
    /// See [`ShareRefusal`]. Nothing was taken or evicted.
    pub fn take(
        self: &Arc<Self>,
        holder: Holder,
        activity: Option<&Arc<Activity>>,
    ) -> Result<Share, ShareRefusal> {
        let mut state = self.state();
        let (held, hosts) = match holder {
            Holder::Exempt => (None, state.hosts.len()),
            Holder::Host(host) => match state.hosts.get(&host) {
                Some(held) => (Some(held.count), state.hosts.len()),
                None => (Some(0), state.hosts.len() + 1),
            },
        };
        if let Err(refusal) = admit(self.limit, state.taken, held, hosts) {
            let has_room = match (refusal, holder) {
                (ShareRefusal::Share, Holder::Host(host)) => state.evict_of(host),
                _ => state.evict_of_largest(held.unwrap_or(0)),
            };
            if !has_room {
                return Err(refusal);
            }
        }
        state.taken += 1;
        let requests = match holder {
            Holder::Exempt => None,
            Holder::Host(host) => Some(state.add(host, activity)),
        };
        self.hosts.store(state.hosts.len(), Relaxed);
        let activity = activity.filter(|_| requests.is_some()).cloned();
        Ok(Share { shares: Arc::clone(self), holder, activity, requests })
    }

    /// Returns the number of hosts, exempt ones excluded, that hold something.
    pub fn hosts(&self) -> usize {
        self.hosts.load(Relaxed)
    }

    /// Returns how much of the limit is in use.
    pub fn taken(&self) -> usize {
        self.state().taken
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Charges one unit to a host. Returns the counter of its requests.
    fn add(&mut self, host: HostKey, activity: Option<&Arc<Activity>>) -> Arc<AtomicUsize> {
        let age = self.next_age;
        self.next_age += 1;
        self.change(host, |held| {
            held.count += 1;
            if let Some(activity) = activity {
                activity.age.store(age, Relaxed);
                held.connections.insert(age, Arc::clone(activity));
            }
            Arc::clone(&held.requests)
        })
    }

    /// Changes what a host holds, and updates the order by size.
    fn change<R>(&mut self, host: HostKey, change: impl FnOnce(&mut Held) -> R) -> R {
        let held = self.hosts.entry(host).or_default();
        self.by_size.remove(&(held.count, host));
        let result = change(held);
        if held.count == 0 {
            self.hosts.remove(&host);
        } else {
            self.by_size.insert((held.count, host));
        }
        result
    }

    /// Evicts the oldest idle connection of a host, if there is one. Its unit is free at once.
    fn evict_of(&mut self, host: HostKey) -> bool {
        let Some(held) = self.hosts.get_mut(&host) else { return false };
        for _ in 0..IDLE_LOOKS_MAX.min(held.connections.len()) {
            let Some((_, activity)) = held.connections.pop_first() else { return false };
            if activity.is_idle() {
                activity.evict();
                self.taken -= 1;
                self.change(host, |held| held.count -= 1);
                return true;
            }
            // Second chance, as in the clock algorithm of page replacement: a busy connection becomes the
            // newest.
            activity.age.store(self.next_age, Relaxed);
            held.connections.insert(self.next_age, activity);
            self.next_age += 1;
        }
        false
    }

    /// Evicts an idle connection of the largest holder, or else of the next largest. A holder counts only if
    /// it has more than the new connection's host will have.
    fn evict_of_largest(&mut self, held: usize) -> bool {
        let larger = self.by_size.iter().rev().take_while(|(count, _)| *count > held + 1);
        let larger: Vec<HostKey> = larger.take(HOSTS_LOOKED_AT_MAX).map(|(_, host)| *host).collect();
        larger.into_iter().any(|host| self.evict_of(host))
    }
}

/// One unit of a limit, held until it is dropped or its connection is evicted.
#[derive(Debug)]
pub struct Share {
    shares: Arc<Shares>,
    holder: Holder,
    /// Set for a connection that may be evicted.
    activity: Option<Arc<Activity>>,
    requests: Option<Arc<AtomicUsize>>,
}

impl Share {
    /// Starts a request of this connection's host under a separate limit, without a lock. `taken` counts the
    /// requests of all hosts before this one.
    ///
    /// # Errors
    /// See [`ShareRefusal`]. Nothing was taken.
    pub fn begin_request(&self, limit: usize, taken: usize) -> Result<RequestShare, ShareRefusal> {
        let held = self.requests.as_ref().map(|requests| requests.fetch_add(1, Relaxed));
        let share = RequestShare(self.requests.clone());
        admit(limit, taken, held, self.shares.hosts()).map(|()| share)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut state = self.shares.state();
        if self.activity.as_ref().is_some_and(|activity| activity.is_evicted.load(Relaxed)) {
            // The eviction has already freed the unit.
            return;
        }
        state.taken -= 1;
        if let Holder::Host(host) = self.holder {
            state.change(host, |held| {
                held.count -= 1;
                if let Some(activity) = &self.activity {
                    held.connections.remove(&activity.age.load(Relaxed));
                }
            });
            self.shares.hosts.store(state.hosts.len(), Relaxed);
        }
    }
}

/// A request that is charged to its host until it is dropped.
#[derive(Debug)]
pub struct RequestShare(Option<Arc<AtomicUsize>>);

impl Drop for RequestShare {
    fn drop(&mut self) {
        if let Some(requests) = &self.0 {
            requests.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u8) -> Holder {
        Exempt::default().holder([10, 0, 0, n].into())
    }

    /// Opens as many connections as are admitted, each with its activity.
    fn connect(shares: &Arc<Shares>, holder: Holder, count: usize) -> Vec<(Share, Arc<Activity>)> {
        let connect = |_| {
            let activity = Arc::new(Activity::default());
            shares.take(holder, Some(&activity)).ok().map(|share| (share, activity))
        };
        (0..count).map_while(connect).collect()
    }

    fn evicted(connections: &[(Share, Arc<Activity>)]) -> Vec<usize> {
        let is_evicted = |n: &usize| connections[*n].1.is_evicted.load(Relaxed);
        (0..connections.len()).filter(is_evicted).collect()
    }

    #[test]
    fn an_address_is_its_host_and_of_ipv6_its_subnet_is() {
        let key = |ip: &str| HostKey::from(ip.parse::<IpAddr>().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:10.0.0.1"), key("10.0.0.1"));
        assert_ne!(key("10.0.0.1"), key("10.0.0.2"));
        let exempt = Exempt::new(|ip| ip == IpAddr::from([10, 0, 0, 9]));
        for (ip, is_exempt) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("::ffff:10.0.0.9", true),
            ("10.0.0.8", false),
        ] {
            assert_eq!(exempt.holder(ip.parse().unwrap()) == Holder::Exempt, is_exempt, "{ip}");
        }
    }

    #[test]
    fn a_host_that_floods_is_stopped_at_three_quarters_and_others_find_room() {
        let shares = Shares::new(100);
        let held: Vec<Share> = (0..100).map_while(|_| shares.take(host(1), None).ok()).collect();
        assert_eq!((held.len(), shares.take(host(1), None).err()), (75, Some(ShareRefusal::Share)));
        let other: Vec<Share> = (0..100).map_while(|_| shares.take(host(2), None).ok()).collect();
        assert_eq!(other.len(), 25, "a third of all would be its share");
        assert_eq!(shares.take(host(3), None).err(), Some(ShareRefusal::Full));
        drop(held);
        assert_eq!((shares.taken(), shares.hosts()), (25, 1));
        assert!(shares.take(host(1), None).is_ok());
    }

    #[test]
    fn hosts_that_flood_together_leave_room_for_one_that_comes_after_them() {
        let shares = Shares::new(1000);
        let mut floods: Vec<Vec<Share>> = (1..=3).map(|_| Vec::new()).collect();
        for _ in 0..1000 {
            for (n, flood) in (1..).zip(&mut floods) {
                flood.extend(shares.take(host(n), None).ok());
            }
        }
        assert_eq!(floods.iter().map(Vec::len).collect::<Vec<_>>(), [250; 3]);
        let other: Vec<Share> = (0..200).map_while(|_| shares.take(host(9), None).ok()).collect();
        assert_eq!(other.len(), 200);
    }

    #[test]
    fn a_host_over_its_share_loses_its_own_oldest_idle_connection() {
        let shares = Shares::new(8);
        let flood = connect(&shares, host(1), 6);
        let _busy = flood[0].1.begin();
        let other = connect(&shares, host(2), 1);
        let more = connect(&shares, host(1), 2);
        assert_eq!((more.len(), evicted(&flood), evicted(&other)), (2, vec![1, 2], vec![]));
        assert_eq!(shares.taken(), 7);
        // Dropping an evicted share does not free the unit again.
        drop(flood);
        assert_eq!(shares.taken(), 3);
    }

    #[test]
    fn at_the_limit_the_largest_holder_loses_its_oldest_idle_connection() {
        let shares = Shares::new(8);
        let small = connect(&shares, host(2), 2);
        let flood = connect(&shares, host(1), 4);
        let more = connect(&shares, host(3), 2);
        assert_eq!((shares.taken(), evicted(&flood)), (8, vec![]));
        let late = connect(&shares, host(4), 1);
        assert_eq!(
            (late.len(), evicted(&flood), evicted(&small), evicted(&more)),
            (1, vec![0], vec![], vec![])
        );
        let all = flood.iter().chain(&small).chain(&more);
        let busy: Vec<_> = all.map(|(_, activity)| activity.begin()).collect();
        assert_eq!(connect(&shares, host(5), 1).len(), 0, "what is being used is not taken away");
        assert_eq!(connect(&shares, Holder::Exempt, 1).len(), 0);
        drop(busy);
        let local = connect(&shares, Holder::Exempt, 1);
        assert_eq!((local.len(), evicted(&flood)), (1, vec![0, 1]), "for an exempt one, too");
    }

    #[test]
    fn exempt_hosts_have_no_share_and_keep_what_they_have() {
        let shares = Shares::new(8);
        let local = connect(&shares, Holder::Exempt, 8);
        assert_eq!((local.len(), shares.hosts()), (8, 0));
        assert_eq!(connect(&shares, host(1), 1).len(), 0);
        assert_eq!(connect(&shares, Holder::Exempt, 1).len(), 0);
        assert_eq!(evicted(&local), [0; 0]);
        drop(local);
        assert_eq!(shares.taken(), 0);
    }

    #[test]
    fn what_is_remembered_does_not_outgrow_the_limit() {
        let shares = Shares::new(64);
        let mut held = Vec::new();
        for n in 0..10_000_u32 {
            let activity = Arc::new(Activity::default());
            held.extend(shares.take(Holder::Host(HostKey::Ipv4(n)), Some(&activity)).ok());
            let state = shares.state();
            assert!(state.hosts.len() <= 64 && state.by_size.len() == state.hosts.len());
        }
        assert_eq!(held.len(), 64);
        held.clear();
        assert_eq!((shares.hosts(), shares.state().hosts.len()), (0, 0));
    }

    #[test]
    fn requests_have_a_share_of_their_own_limit() {
        let shares = Shares::new(1000);
        let (first, second) = (connect(&shares, host(1), 1), connect(&shares, host(2), 1));
        let mut all = Vec::new();
        while let Ok(request) = first[0].0.begin_request(100, all.len()) {
            all.push(request);
        }
        assert_eq!(all.len(), 75);
        while let Ok(request) = second[0].0.begin_request(100, all.len()) {
            all.push(request);
        }
        assert_eq!(all.len(), 100);
        all.truncate(70);
        assert!(first[0].0.begin_request(100, all.len()).is_ok(), "below three quarters nothing binds");
        let local = shares.take(Holder::Exempt, None).unwrap();
        assert!(local.begin_request(100, 99).is_ok());
        assert_eq!(local.begin_request(100, 100).err(), Some(ShareRefusal::Full));
    }

    #[tokio::test]
    async fn an_order_to_close_is_heard_by_a_task_that_waits_later() {
        let activity = Arc::new(Activity::default());
        activity.evict();
        activity.evicted().await;
        activity.evicted().await;
    }
}
