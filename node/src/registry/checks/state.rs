//! The state of a check, and the events by which the registry learns of it.

use hearsay_protocol::record::Health;

/// Which check of which registration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckKey {
    /// The id of the instance.
    pub instance: String,
    /// Which registration under that id: events of a replaced one are passed over.
    pub generation: u64,
    /// The id of the check.
    pub check: String,
}

/// An event of a check, for the registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CheckEvent {
    /// Its status changed.
    Changed(CheckKey, CheckState),
    /// It has been critical for `deregister_after`.
    Expired(CheckKey),
}

/// The state of a check.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckState {
    /// Its status.
    pub status: Health,
    /// When the status changed last, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// The newest output, at most 4 KiB.
    pub output: String,
    /// When the last run ended, in milliseconds since the Unix epoch.
    pub last_run_ms: Option<u64>,
    /// When the next run begins, in milliseconds since the Unix epoch; `None` for a check that waits for an
    /// event.
    pub next_run_ms: Option<u64>,
    /// How long the last run took, in milliseconds.
    pub took_ms: u32,
}
