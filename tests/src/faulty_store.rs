//! Fault injection: a topic's store that breaks a guarantee of the journal. `HEARSAY_BROKEN` names the
//! guarantee.
//!
//! This store tests the checkers of acknowledged writes, because a checker that has never failed proves
//! nothing. The program `node-broken` runs a node with this store.

use std::time::{Duration, Instant};

use hearsay_node::{Store, TopicStore};
use hearsay_protocol::{NodeId, journal::Run};
use hearsay_services::journal::Projection;

/// Time by which [`Fault::EarlyAck`] delays a sync.
const SYNC_DELAY: Duration = Duration::from_secs(3);
/// [`Fault::LostRange`] drops one of this many runs.
const ONE_IN: u64 = 20;

/// Guarantee that the store breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// Acknowledges writes before they are synced.
    EarlyAck,
    /// Leaves syncing to the system (`synchronous=NORMAL`). Only a power failure reveals this fault.
    SeldomSync,
    /// Acknowledges some runs of other nodes and drops them.
    LostRange,
    /// Gives the entries of each start the same numbers as those of the previous start.
    ReusedNumber,
    /// Stores writes without their idempotency keys, so that a repeated write is a new one.
    Replay,
}

impl Fault {
    fn from_env() -> Option<Self> {
        match std::env::var("HEARSAY_BROKEN").as_deref() {
            Ok("early-ack") => Some(Self::EarlyAck),
            Ok("seldom-sync") => Some(Self::SeldomSync),
            Ok("lost-range") => Some(Self::LostRange),
            Ok("reused-number") => Some(Self::ReusedNumber),
            Ok("replay") => Some(Self::Replay),
            _ => None,
        }
    }
}

/// Store that breaks one guarantee.
struct FaultyStore {
    inner: Store,
    fault: Fault,
    me: NodeId,
    /// Number of runs of other nodes so far.
    foreign_runs: u64,
    /// Whether runs were added since the last reported commit.
    has_unreported: bool,
    synced_at: Instant,
}

/// Wraps a topic's store if `HEARSAY_BROKEN` names a fault.
pub fn wrap_store(inner: Store, me: NodeId) -> Box<dyn TopicStore> {
    let Some(fault) = Fault::from_env() else { return Box::new(inner) };
    if fault == Fault::SeldomSync {
        let weakened = inner.connection().pragma_update(None, "synchronous", "NORMAL");
        weakened.expect("SQLite takes this setting");
    }
    let synced_at = Instant::now();
    Box::new(FaultyStore { inner, fault, me, foreign_runs: 0, has_unreported: false, synced_at })
}

impl FaultyStore {
    fn delays_sync(&self) -> bool {
        self.fault == Fault::EarlyAck && self.synced_at.elapsed() < SYNC_DELAY
    }

    fn drops(&mut self, run: &Run) -> bool {
        let is_foreign = self.fault == Fault::LostRange && run.feed.writer != self.me;
        self.foreign_runs += u64::from(is_foreign);
        is_foreign && self.foreign_runs.is_multiple_of(ONE_IN)
    }
}

impl TopicStore for FaultyStore {
    fn inner(&self) -> &Store {
        &self.inner
    }

    fn inner_mut(&mut self) -> &mut Store {
        &mut self.inner
    }

    fn feed_seed(&self, random: u64) -> u64 {
        if self.fault == Fault::ReusedNumber { 1 } else { random }
    }

    fn append_run(&mut self, run: &Run, projection: &dyn Projection) -> rusqlite::Result<()> {
        self.has_unreported = true;
        if self.drops(run) {
            return Ok(());
        }
        self.inner.append_run(run, projection)
    }

    fn is_dirty(&self) -> bool {
        self.has_unreported || (self.inner.is_dirty() && !self.delays_sync())
    }

    fn commit(&mut self) -> rusqlite::Result<()> {
        self.has_unreported = false;
        if !self.inner.is_dirty() || self.delays_sync() {
            return Ok(());
        }
        self.synced_at = Instant::now();
        self.inner.commit()
    }

    fn write_key(&self, key: Option<String>) -> Option<String> {
        key.filter(|_| self.fault != Fault::Replay)
    }
}
