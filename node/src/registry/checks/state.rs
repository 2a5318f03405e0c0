//! Data types of a check: its key, its state, and the events that are sent to the registrar. The transitions
//! are in `reporter` and `thresholds`.

use hearsay_protocol::Health;

/// Key of a check in a registration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckKey {
    /// The id of the instance.
    pub instance: String,
    /// Generation of the registration; events of older ones are ignored.
    pub generation: u64,
    /// The id of the check.
    pub check: String,
}

/// An event of a check, for the registrar.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CheckEvent {
    /// The status changed.
    Changed(CheckKey, CheckState),
    /// The check has been critical for `deregister_after`.
    Expired(CheckKey),
}

/// The state of a check.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckState {
    /// The status.
    pub status: Health,
    /// Time of the last change of status, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// The newest output, at most 4 KiB.
    pub output: String,
    /// End of the last run, in milliseconds since the Unix epoch.
    pub last_run_ms: Option<u64>,
    /// Start of the next run, in milliseconds since the Unix epoch; `None`: the check waits for an event.
    pub next_run_ms: Option<u64>,
    /// Duration of the last run, in milliseconds.
    pub took_ms: u32,
}
