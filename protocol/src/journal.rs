//! The journal: append-only topics that every node of a role replicates in full.
//!
//! Each node appends to its own feed, so the journal needs no leader. Replicas exchange feeds. A feed has one
//! writer, so two replicas never hold different entries under one number. The meaning of a set of entries
//! must not depend on their order of arrival; the plug-in of the topic guarantees that.
//!
//! The rule of durability: an entry is synced to the writer's disk before a replica receives it, and to a
//! replica's disk before that replica sends a receipt. The order of outputs ensures this.
//! [`JournalOutput::Store`] asks the caller to write to the disk. Pushes, receipts and answers that depend on
//! the write leave only after [`JournalInput::Stored`].
//!
//! [`Journal`] is a sans-I/O state machine; each topic has one. Pass inputs to [`Journal::handle`], drain
//! [`Journal::poll_output`] to `None` after each, and pass [`JournalInput::Tick`] when
//! [`Journal::poll_timeout`] is due. The caller reads entries from the topic's database; the state machine
//! does not keep them.
//!
//! Repair compares version vectors with gaps (`extents`). On connecting, and every few seconds, two replicas
//! compare one hash. If the hashes differ, they list their extents, and each pulls the entries that it lacks
//! (`repair`).

mod acceptance;
mod append;
mod append_queue;
mod clock;
mod config;
mod confirm;
mod counters;
mod disk;
mod extents;
mod feed;
mod io;
mod machine;
mod message;
mod repair;
mod replica_set;
mod replica_set_exchange;
mod replicate;
#[cfg(test)]
mod tests;
mod write;

pub use append::{Append, AppendError, AppendId, Appended, Level};
pub use clock::{AHEAD_MAX, HybridTime, Moment, PROTOCOL_WITH_EPOCHS};
pub use config::{EPOCH_BYTES_MAX, EpochFormat, JournalConfig};
pub use counters::JournalCounters;
pub use disk::{entries_from_bytes, entries_to_bytes, seen_from_bytes, seen_to_bytes};
pub use extents::Extents;
pub use feed::{
    BODY_BYTES_MAX, ChainHash, EntryId, FeedId, JournalEntry, KEY_BYTES_MAX, NotAnEntryId, RUN_ENTRIES_MAX,
    Run, RunError, Seq,
};
pub use io::{DiskError, Durability, JournalInput, JournalOutput, LoadId, RestoredJournal, WriteId};
pub use machine::Journal;
pub use message::{Extent, JournalRequest, JournalResponse, address_request, split_address};
pub use replica_set::Generation;
