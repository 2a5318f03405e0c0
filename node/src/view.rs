//! What the driver knows, shared with everybody who only reads.
//!
//! The core belongs to the driver's thread alone. Of what it concludes, the [`View`] holds the provider table behind a lock that is
//! taken for microseconds: readers clone pointers under it and format outside. A watch channel carries the newest index, which is
//! how blocking queries and event streams sleep until there is something new.

use std::{
    net::IpAddr,
    sync::{PoisonError, RwLock},
    time::{Instant, SystemTime},
};

use hearsay_protocol::{
    NodeId, Time,
    providers::{Change, Index, ProviderTable, Subnet},
};
use tokio::sync::watch;

/// The process's clock: monotonic for everything that is concluded, wall time for what people read.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_wall: SystemTime,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self { started: Instant::now(), started_wall: SystemTime::now() }
    }

    /// The time since the start.
    pub fn now(&self) -> Time {
        Time::from_start(self.started.elapsed())
    }

    /// The moment on the monotonic clock.
    pub fn instant(&self, time: Time) -> Instant {
        self.started + time.since_start()
    }

    /// The moment as a person would write it, by the wall clock as it was at the start.
    pub fn wall(&self, time: Time) -> SystemTime {
        self.started_wall + time.since_start()
    }
}

/// The provider table and the news of its changes.
#[derive(Debug)]
pub struct View {
    table: RwLock<ProviderTable>,
    newest: watch::Sender<Index>,
    clock: Clock,
}

impl View {
    /// An empty table whose index starts at `start`.
    pub fn new(start: Index, clock: Clock) -> Self {
        Self { table: RwLock::new(ProviderTable::new(start)), newest: watch::Sender::new(start), clock }
    }

    /// Looks into the table. Keep it short: the driver waits meanwhile.
    pub fn read<R>(&self, look: impl FnOnce(&ProviderTable) -> R) -> R {
        // A reader that panicked has changed nothing, so a poisoned lock is as good as a sound one.
        look(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over changes and wakes who waits for them. For the driver, and for tests.
    pub fn apply(&self, now: Time, changes: impl IntoIterator<Item = Change>) {
        self.change(|table| changes.into_iter().for_each(|change| table.apply(now, change)));
    }

    /// Records over which address a node is connected. For the driver.
    pub fn set_connected(&self, node: NodeId, ip: IpAddr) {
        self.change(|table| table.set_connected(node, ip));
    }

    /// Records the subnets of this host. For the driver.
    pub fn set_subnets(&self, subnets: Vec<Subnet>) {
        self.change(|table| table.set_subnets(subnets));
    }

    /// When to call [`View::expire`] next. For the driver.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.read(ProviderTable::poll_timeout)
    }

    /// Ends what the table guard has kept for long enough. For the driver.
    pub fn expire(&self, now: Time) {
        if self.poll_timeout().is_some_and(|at| at <= now) {
            self.change(|table| table.expire(now));
        }
    }

    fn change(&self, change: impl FnOnce(&mut ProviderTable)) {
        let index = {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            change(&mut table);
            table.index()
        };
        self.newest.send_if_modified(|newest| std::mem::replace(newest, index) != index);
    }

    /// Yields the newest index whenever it moves.
    pub fn subscribe(&self) -> watch::Receiver<Index> {
        self.newest.subscribe()
    }

    /// The clock that the table's times refer to.
    pub fn clock(&self) -> Clock {
        self.clock
    }
}
