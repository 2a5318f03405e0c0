//! [`TopicStore`]: the interface between a topic's worker and its store, at which tests inject faults.

use hearsay_protocol::{NodeId, journal::Run};
use hearsay_services::journal::Projection;

use super::database::Store;

/// The operations of a topic's store on whose contract the journal's guarantees rest.
///
/// [`Store`] keeps the contract. A wrapper in `tests/` breaks it on purpose. So tests show that the checkers
/// of acknowledged writes find such faults.
pub trait TopicStore: Send {
    /// Returns the store that holds the data.
    fn inner(&self) -> &Store;

    /// Like [`inner`](Self::inner), for writing.
    fn inner_mut(&mut self) -> &mut Store;

    /// Returns the seed for the number of the feed that begins with this start: by default, the random
    /// number.
    fn feed_seed(&self, random: u64) -> u64 {
        random
    }

    /// Adds a run to the open transaction. The next [`commit`](Self::commit) makes it durable.
    ///
    /// # Errors
    /// The error of the database. The transaction must be rolled back.
    fn append_run(&mut self, run: &Run, projection: &dyn Projection) -> rusqlite::Result<()> {
        self.inner_mut().append_run(run, projection)
    }

    /// Whether a transaction is open.
    fn is_dirty(&self) -> bool {
        self.inner().is_dirty()
    }

    /// Commits and syncs the open transaction.
    ///
    /// # Errors
    /// If the disk is full, nothing of the transaction is stored. After any other error, it is unknown
    /// whether the transaction is stored.
    fn commit(&mut self) -> rusqlite::Result<()> {
        self.inner_mut().commit()
    }

    /// Returns the idempotency key under which a write is stored: by default, its own.
    fn write_key(&self, key: Option<String>) -> Option<String> {
        key
    }
}

impl TopicStore for Store {
    fn inner(&self) -> &Store {
        self
    }

    fn inner_mut(&mut self) -> &mut Store {
        self
    }
}

/// Function that wraps the store of a topic when it is opened. It gets the id of this node.
pub type WrapStore = fn(Store, NodeId) -> Box<dyn TopicStore>;
