//! Operator's commands on a topic's file: verify, back up, restore, rebuild ([docs/journal.md]).
//!
//! [docs/journal.md]: ../../../../docs/journal.md

mod backup;
mod rebuild;
mod restore;
mod verify;

pub use backup::backup;
pub use rebuild::rebuild;
pub use restore::BackupFile;
pub use verify::{Part, Projections, Report, verify};
