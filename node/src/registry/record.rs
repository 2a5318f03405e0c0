//! [`ActiveRegistration`]: a registration as this node holds it, with owner, age and check states; and the
//! [`Row`] that is stored.

use std::{collections::BTreeMap, path::PathBuf};

use hearsay_protocol::{Health, wire::CheckReport};
use serde::{Deserialize, Serialize};

use super::{
    checks::runner::{CheckState, RunningCheck},
    registration::Registration,
    subscribers::Subscription,
};

/// The owner of a registration. When an older owner ends, a newer owner's registration stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Owner {
    /// A client of the API. The registration stays until it is deregistered.
    #[default]
    Api,
    /// An open connection, by its number.
    Connection(u64),
    /// A file of `--services-dir`.
    File(PathBuf),
}

impl Owner {
    /// Returns the word for the owner in `/registrations`.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Connection(_) => "held",
            Self::File(_) => "file",
        }
    }

    /// Whether the registration is stored on disk. After a restart files are read again, and clients of held
    /// registrations connect again.
    pub fn is_durable(&self) -> bool {
        matches!(self, Self::Api)
    }
}

/// Maintenance of an instance or a node: it is critical until maintenance ends.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Maintenance {
    /// The operator's reason.
    pub reason: String,
    /// Start, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// A registration as it is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The registration.
    pub registration: Registration,
    /// Time of the registration, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// The statuses of checks as they are stored, by the checks' ids.
pub type StoredChecks = BTreeMap<String, StoredCheck>;

/// A check as it is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoredCheck {
    /// The status.
    pub status: Health,
    /// Time of the last change of status, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// The output of the run that changed the status.
    pub output: String,
}

/// A registration in effect, with its running checks.
#[derive(Debug)]
pub(super) struct ActiveRegistration {
    pub(super) row: Row,
    pub(super) owner: Owner,
    /// See [`Registered`](super::Registered).
    pub(super) generation: u64,
    pub(super) checks: Vec<ActiveCheck>,
    /// The connection is closed; the instance stays critical until the grace period ends.
    pub(super) is_orphaned: bool,
    /// Notifications of dependencies; dropping it ends them.
    pub(super) _subscription: Option<Subscription>,
}

/// A running check.
#[derive(Debug)]
pub(super) struct ActiveCheck {
    pub(super) running: RunningCheck,
    /// The state at the last change of status, as other nodes list it.
    pub(super) stated: CheckState,
}

impl ActiveCheck {
    /// Returns the report of the check as of now.
    pub(super) fn report(&self) -> CheckReport {
        let (spec, state) = (self.running.spec(), self.running.state());
        CheckReport {
            id: spec.id.clone(),
            name: spec.name.clone(),
            kind: spec.kind.as_str().into(),
            status: state.status,
            since_ms: state.since_ms,
            output: state.output,
            last_run_ms: state.last_run_ms,
            next_run_ms: state.next_run_ms,
            took_ms: state.took_ms,
        }
    }
}

impl ActiveRegistration {
    /// Whether the registration is stored on disk.
    pub(super) fn is_durable(&self) -> bool {
        self.owner.is_durable()
    }

    pub(super) fn stored_checks(&self) -> StoredChecks {
        let stored = |check: &ActiveCheck| {
            let CheckState { status, since_ms, output, .. } = check.stated.clone();
            (check.running.spec().id.clone(), StoredCheck { status, since_ms, output })
        };
        self.checks.iter().map(stored).collect()
    }
}

/// A snapshot of a registration for readers.
#[derive(Clone, Debug)]
pub struct RegistrationView {
    /// The registration.
    pub row: Row,
    /// The owner.
    pub owner: Owner,
    /// The worst status of the checks; critical in maintenance.
    pub health: Health,
    /// The maintenance, if any.
    pub maintenance: Option<Maintenance>,
    /// Current reports of the checks.
    pub checks: Vec<CheckReport>,
}
