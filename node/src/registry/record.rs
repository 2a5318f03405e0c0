//! A registration as this node holds it: what was registered, by whom and since when, and how its checks are.

use std::{collections::BTreeMap, path::PathBuf};

use hearsay_protocol::{record::Health, wire::checks::CheckReport};
use serde::{Deserialize, Serialize};

use super::{
    checks::runner::{CheckState, RunningCheck},
    registration::Registration,
    subscribers::Subscription,
};

/// The owner of a registration. The end of an older owner has no effect on what a newer one registered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Owner {
    /// A client that registered and went: until it is deregistered.
    #[default]
    Api,
    /// A connection that is held open, by its number.
    Connection(u64),
    /// A file of `--services-dir`.
    File(PathBuf),
}

impl Owner {
    /// The word that `/registrations` uses.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Connection(_) => "held",
            Self::File(_) => "file",
        }
    }

    /// Whether what it registers is kept over a restart of the node. A file is read again, and the client of a connection connects again.
    pub fn is_durable(&self) -> bool {
        matches!(self, Self::Api)
    }
}

/// Maintenance of an instance or a node: critical for new requests.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Maintenance {
    /// Why, in the words of the operator.
    pub reason: String,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// A registration as it is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Row {
    /// The registration.
    pub registration: Registration,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// The statuses of checks as they are stored, by the checks' ids.
pub type StoredChecks = BTreeMap<String, StoredCheck>;

/// A check as it is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoredCheck {
    /// Its status.
    pub status: Health,
    /// Since when.
    pub since_ms: u64,
    /// The output of the run that changed it.
    pub output: String,
}

/// A registration that this node speaks for.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) row: Row,
    pub(super) owner: Owner,
    /// Which registration under this id.
    pub(super) generation: u64,
    pub(super) checks: Vec<HeldCheck>,
    /// Its connection is closed, and it is kept as critical until its grace is over.
    pub(super) is_orphaned: bool,
    /// Its notifications, which end with it.
    pub(super) _subscription: Option<Subscription>,
}

/// A check of a registration.
#[derive(Debug)]
pub(super) struct HeldCheck {
    pub(super) running: RunningCheck,
    /// The state as of the last change of status, which other nodes see.
    pub(super) stated: CheckState,
}

impl HeldCheck {
    /// Its report, as of now.
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

impl Held {
    /// Whether it is kept over a restart of the node.
    pub(super) fn is_durable(&self) -> bool {
        self.owner.is_durable()
    }

    pub(super) fn stored_checks(&self) -> StoredChecks {
        let stored = |check: &HeldCheck| {
            let CheckState { status, since_ms, output, .. } = check.stated.clone();
            (check.running.spec().id.clone(), StoredCheck { status, since_ms, output })
        };
        self.checks.iter().map(stored).collect()
    }
}

/// A registration, as a reader sees it.
#[derive(Clone, Debug)]
pub struct RegistrationView {
    /// The registration.
    pub row: Row,
    /// Its owner.
    pub owner: Owner,
    /// The worst of its checks, or critical in maintenance.
    pub health: Health,
    /// Its maintenance.
    pub maintenance: Option<Maintenance>,
    /// Its checks, as they are now.
    pub checks: Vec<CheckReport>,
}
