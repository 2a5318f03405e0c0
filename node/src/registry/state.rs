//! [`State`]: registrations in memory, shared by the registrar, which changes them, and all readers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use hearsay_protocol::{
    Health,
    wire::{self, CheckReport},
};
use tokio::sync::{oneshot, watch};

use super::record::{ActiveCheck, ActiveRegistration, Maintenance, Owner, RegistrationView};

/// Registrations, checks and maintenance of this node. Only the registrar changes it.
#[derive(Debug, Default)]
pub(super) struct State {
    /// By instance id.
    pub(super) registrations: BTreeMap<String, ActiveRegistration>,
    /// The id of the instance that a check belongs to, by check id.
    pub(super) instance_of_check: BTreeMap<String, String>,
    /// Maintenance of instances, by instance id.
    pub(super) maintenance: BTreeMap<String, Maintenance>,
    pub(super) node_maintenance: Option<Maintenance>,
    /// Connections that hold, or are about to hold, a registration. The sender reports the end of the
    /// registration.
    pub(super) endings: BTreeMap<u64, oneshot::Sender<Ending>>,
    /// Counts batches of changes, for readers that wait for one.
    pub(super) changes: watch::Sender<u64>,
}

/// Why a held registration ended before its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It was deregistered.
    Deregistered,
    /// A newer owner registered the same id.
    Replaced,
}

impl State {
    pub(super) fn view_of(&self, active: &ActiveRegistration) -> RegistrationView {
        let checks: Vec<CheckReport> = active.checks.iter().map(ActiveCheck::report).collect();
        let maintenance = self.maintenance.get(&active.row.registration.id).cloned();
        let is_out = maintenance.is_some() || active.is_orphaned || self.node_maintenance.is_some();
        let health = match is_out {
            true => Health::Critical,
            false => checks.iter().map(|check| check.status).max().unwrap_or_default(),
        };
        RegistrationView { row: active.row.clone(), owner: active.owner.clone(), health, maintenance, checks }
    }

    /// Removes a registration from the indexes and reports its end to its connection.
    pub(super) fn detach(&mut self, active: &ActiveRegistration, ending: Ending) {
        if let Owner::Connection(connection) = active.owner
            && let Some(sender) = self.endings.remove(&connection)
        {
            // An error means that the connection is closing.
            _ = sender.send(ending);
        }
        for check in &active.checks {
            let id = &check.running.spec().id;
            if self.instance_of_check.get(id) == Some(&active.row.registration.id) {
                self.instance_of_check.remove(id);
            }
        }
    }
}

/// Reader of check reports that does not keep the registry alive.
#[derive(Clone, Debug, Default)]
pub struct CheckReportReader(pub(super) Arc<Mutex<State>>);

impl CheckReportReader {
    /// Returns the encoded reports of an instance's checks; empty if this node does not hold the instance.
    pub fn reports(&self, id: &str) -> Vec<u8> {
        let view = {
            let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.registrations.get(id).map(|active| state.view_of(active))
        };
        view.map(|view| wire::encode_check_reports(&view.checks)).unwrap_or_default()
    }
}
