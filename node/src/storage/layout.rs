//! Constants of a node's state on disk: file names, the largest incarnation, and the maximum number of data
//! directories.

/// The file with both incarnation slots.
pub(super) const INCARNATION_SLOTS: &str = "incarnation-slots";
/// The incarnation file of versions before the slots: one decimal number.
pub(super) const INCARNATION: &str = "incarnation";
/// The file with the node's key.
pub(super) const NODE_KEY: &str = "node.key";

/// Largest incarnation, in milliseconds since 1970 (the year 2223). The provider table's index starts at it
/// in microseconds and must stay below 2^53, the largest integer that JSON carries exactly.
pub(super) const INCARNATION_MS_MAX: u64 = 8_000_000_000_000;

/// Maximum number of data directories under one parent: those of nodes of one cluster and one user on one
/// machine that start without `--data-dir`. Five times as many as an overload test starts.
pub const SLOTS_MAX: u32 = 1024;
