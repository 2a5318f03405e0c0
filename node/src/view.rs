//! [`View`]: the provider table behind a lock, which the driver writes and all others read; and the [`Clock`]
//! of the process.
//!
//! The protocol core belongs to the driver's thread, which publishes the provider table behind a lock. The
//! lock is held for microseconds: readers clone pointers while they hold it, and format afterwards. A watch
//! channel carries the newest index and wakes blocking queries and event streams.

use std::{
    net::IpAddr,
    sync::{PoisonError, RwLock},
    time::{Instant, SystemTime},
};

use hearsay_protocol::{Change, Index, NodeId, ProviderTable, Subnet, Time};
use tokio::sync::watch;

/// Clock of the process: monotonic time for the protocol, wall time for output.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    started_wall: SystemTime,
}

impl Clock {
    /// Starts a clock.
    pub fn start() -> Self {
        Self { started: Instant::now(), started_wall: SystemTime::now() }
    }

    /// Returns the time since the start.
    pub fn now(&self) -> Time {
        Time::from_start(self.started.elapsed())
    }

    /// Converts a time to the monotonic clock.
    pub fn instant(&self, time: Time) -> Instant {
        self.started + time.since_start()
    }

    /// Converts a time to wall time, by the wall clock at the start.
    pub fn wall(&self, time: Time) -> SystemTime {
        self.started_wall + time.since_start()
    }
}

/// The provider table and the notification of its changes.
#[derive(Debug)]
pub struct View {
    table: RwLock<ProviderTable>,
    newest: watch::Sender<Index>,
    clock: Clock,
}

impl View {
    /// Creates an empty table whose index starts at `start`.
    pub fn new(start: Index, clock: Clock) -> Self {
        Self { table: RwLock::new(ProviderTable::new(start)), newest: watch::Sender::new(start), clock }
    }

    /// Reads the table while holding the lock. `look` must be short, because the driver waits meanwhile.
    pub fn read<R>(&self, look: impl FnOnce(&ProviderTable) -> R) -> R {
        // Only a writer that panicked poisons this lock. The driver is the only writer, and the node stops
        // after its panic, so a half-applied change is read for a short time only.
        look(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Applies changes and wakes waiting readers. For the driver and tests.
    pub fn apply(&self, now: Time, changes: impl IntoIterator<Item = Change>) {
        self.change(|table| changes.into_iter().for_each(|change| table.apply(now, change)));
    }

    /// Records the address over which a node is connected. For the driver.
    pub fn set_connected(&self, node: NodeId, ip: IpAddr) {
        self.change(|table| table.set_connected(node, ip));
    }

    /// Records the subnets of this host. For the driver.
    pub fn set_subnets(&self, subnets: Vec<Subnet>) {
        self.change(|table| table.set_subnets(subnets));
    }

    /// Returns the time for the next call of [`View::expire`]. For the driver.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.read(ProviderTable::poll_timeout)
    }

    /// Removes entries that the table guard has kept for long enough. For the driver.
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

    /// Subscribes to the newest index.
    pub fn subscribe(&self) -> watch::Receiver<Index> {
        self.newest.subscribe()
    }

    /// Returns the clock of the table's times.
    pub fn clock(&self) -> Clock {
        self.clock
    }
}
