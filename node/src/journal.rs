//! Journals of this node's plug-ins: a journal is a replicated log, also called a topic; each has one SQLite
//! database, one state machine and one thread.
//!
//! The thread ([`worker`]) owns the topic's database and state machine. One bounded queue carries appends
//! from HTTP and messages of other replicas from the driver. Commands that arrive during a sync share the
//! next one. The worker never waits for another replica.

mod admin;
mod integrity;
mod open;
mod read_only;
mod retention;
mod scratch;
mod store;
mod topic;
mod topic_command;
mod topic_metrics;
mod topics;
mod waiting;
mod worker;

pub use admin::{BackupFile, Part, Projections, Report, backup, rebuild, verify};
pub use store::{
    database::Store,
    topic_store::{TopicStore, WrapStore},
};
pub use topics::{JournalContext, Journals};

#[cfg(test)]
mod tests;
