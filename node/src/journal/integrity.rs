//! Finds damage in database files (page checksums, stale logs, scrubbing), and replaces a damaged database.

pub(super) mod checksum_vfs;
pub(super) mod replace_damaged;
mod salvage;
pub(super) mod scrub;
pub(super) mod wal;
