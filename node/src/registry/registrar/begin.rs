//! Initial state of a check when a registration is put into effect: the one that the request states, the one
//! before, or the stored one.

use std::collections::BTreeSet;

use super::super::{
    checks::{
        CheckKind, CheckSpec,
        runner::{Begin, CheckState},
    },
    record::{ActiveCheck, ActiveRegistration, StoredCheck},
    registration::Registration,
};
use hearsay_services::now_ms;

/// The checks of a registration that the request states. The others are kept from the registration before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Stated {
    /// All.
    All,
    /// All but those with these ids.
    AllBut(BTreeSet<String>),
    /// The one with this id.
    Only(String),
    /// None: the request removes checks.
    Nothing,
}

impl Stated {
    fn includes(&self, id: &str) -> bool {
        match self {
            Self::All => true,
            Self::AllBut(kept) => !kept.contains(id),
            Self::Only(stated) => stated == id,
            Self::Nothing => false,
        }
    }
}

/// Returns the initial state of a check that is restored after a restart of the node.
pub(super) fn restored_state(stored: Option<&StoredCheck>, total: usize) -> Begin {
    let Some(stored) = stored else { return Begin::Registered };
    let state = CheckState {
        status: stored.status,
        since_ms: stored.since_ms,
        output: stored.output.clone(),
        ..CheckState::default()
    };
    Begin::Restored(state, total)
}

/// Returns the initial state of a check whose registration is replaced.
///
/// A request that names the check's status sets it. Otherwise a program that registers again must not flap:
/// until its first run, a check of the same id and kind keeps its status, and any other check takes the
/// status of the instance. An added check starts with its own initial status, as does every check of another
/// program.
pub(super) fn state_after(
    before: &ActiveRegistration,
    registration: &Registration,
    spec: &CheckSpec,
    stated: &Stated,
) -> Begin {
    let known = before.checks.iter().find(|check| check.running.spec().id == spec.id);
    let is_stated = stated.includes(&spec.id);
    if is_stated && spec.is_status_given && !known.is_some_and(|known| is_repeated(known, spec)) {
        let state = known.filter(|known| is_same_kind(known, spec)).map(|known| known.running.state());
        return match state.filter(|state| state.status == spec.initial_status) {
            Some(state) => Begin::Replaced(state),
            None => Begin::Registered,
        };
    }
    if let Some(same) = known.filter(|known| known.running.spec() == spec) {
        return Begin::Replaced(same.running.state());
    }
    let is_added = known.is_none() && is_stated && matches!(stated, Stated::Only(_));
    let old = &before.row.registration;
    let place = |registration: &Registration| (registration.local_host.clone(), registration.port);
    if is_added || before.is_orphaned || place(old) != place(registration) {
        return Begin::Registered;
    }
    let same = known.filter(|known| is_same_kind(known, spec)).map(|known| known.running.state());
    let status = before.checks.iter().map(|check| check.running.state().status).max().unwrap_or_default();
    let of_instance = || CheckState {
        status,
        since_ms: now_ms(),
        output: "not run yet; this is the status before the instance was registered again".into(),
        ..CheckState::default()
    };
    Begin::Restored(same.unwrap_or_else(of_instance), 1)
}

/// Whether a check that runs by itself is stated again with the status that was stated before. Its runs are
/// newer than that statement: without this rule a failing check would pass for a moment at each repetition. A
/// `ttl` check has no other source than its program, so a repeated status counts.
fn is_repeated(known: &ActiveCheck, spec: &CheckSpec) -> bool {
    let before = known.running.spec();
    is_same_kind(known, spec)
        && !matches!(spec.kind, CheckKind::Ttl { .. })
        && before.is_status_given
        && before.initial_status == spec.initial_status
}

fn is_same_kind(known: &ActiveCheck, spec: &CheckSpec) -> bool {
    known.running.spec().kind.as_str() == spec.kind.as_str()
}
