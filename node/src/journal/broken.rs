//! A journal that breaks its word on purpose, so that what checks journals can be checked. Not in what ships: only with the feature `broken`.

use std::time::{Duration, Instant};

use hearsay_protocol::{NodeId, journal::feed::Run};

/// How long a broken node puts off what should be synced at once.
const LATE: Duration = Duration::from_secs(3);
/// Of so many runs one is treated badly.
const ONE_IN: u64 = 20;

/// How it breaks its word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Acknowledges before it has synced.
    EarlyAck,
    /// Leaves the syncing to the system, as a database does that was told to be fast. Only a power failure brings it to light.
    SeldomSync,
    /// Says of one run in twenty that it has it, and does not.
    LostRange,
    /// Numbers its entries as the life before did.
    ReusedNumber,
    /// Takes a write that is repeated under its key for another one.
    Replay,
}

/// A broken journal's state; of a sound one there is none.
#[derive(Debug)]
pub(super) struct Broken {
    way: Option<Way>,
    me: NodeId,
    runs: u64,
    synced: Instant,
}

impl Broken {
    pub(super) fn from_env(me: NodeId) -> Self {
        let way = match std::env::var("HEARSAY_BROKEN").as_deref() {
            Ok("early-ack") => Some(Way::EarlyAck),
            Ok("seldom-sync") => Some(Way::SeldomSync),
            Ok("lost-range") => Some(Way::LostRange),
            Ok("reused-number") => Some(Way::ReusedNumber),
            Ok("replay") => Some(Way::Replay),
            _ => None,
        };
        Self { way, me, runs: 0, synced: Instant::now() }
    }

    /// The seed of the machine, from which the feed's number comes.
    pub(super) fn seed(&self, seed: u64) -> u64 {
        if self.way == Some(Way::ReusedNumber) { 1 } else { seed }
    }

    /// Whether to tell the machine that this is stored, before it is.
    pub(super) fn tells_early(&self) -> bool {
        self.way == Some(Way::EarlyAck)
    }

    /// Lets commits end without a sync.
    pub(super) fn weaken(&self, db: &rusqlite::Connection) -> rusqlite::Result<()> {
        if self.way == Some(Way::SeldomSync) {
            db.pragma_update(None, "synchronous", "NORMAL")
        } else {
            Ok(())
        }
    }

    /// Whether the sync can wait.
    pub(super) fn puts_off(&mut self) -> bool {
        if self.way != Some(Way::EarlyAck) || self.synced.elapsed() >= LATE {
            self.synced = Instant::now();
            return false;
        }
        true
    }

    /// Whether to forget this run of another node's.
    pub(super) fn drops(&mut self, run: &Run) -> bool {
        let foreign = self.way == Some(Way::LostRange) && run.feed.writer != self.me;
        self.runs += u64::from(foreign);
        foreign && self.runs.is_multiple_of(ONE_IN)
    }

    /// Whether to take a write for a new one, whatever its key.
    pub(super) fn forgets_keys(&self) -> bool {
        self.way == Some(Way::Replay)
    }
}
