//! [`Change`]: request to the registrar (register, deregister, add or remove a check, maintenance, end of a
//! held connection), with the sender of its answer; and [`Selector`], which selects registrations.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{
    checks::CheckSpec,
    error::RegistryError,
    record::Owner,
    registration::{ConsulCheck, Registration},
    scope::Scope,
};

/// Selects registrations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Selector {
    /// By id.
    Id(String),
    /// By service and id; both must match.
    ServiceAndId(String, String),
    /// By the registered URL. A URL without a path selects every registration at its origin.
    Url(String),
    /// The registration that this one would replace.
    Like(Box<Registration>),
}

/// The result of a registration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registered {
    /// Its id.
    pub id: String,
    /// Counts registrations; tells a registration from a later one with the same id.
    pub generation: u64,
}

/// A check that is registered apart from its instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddedCheck {
    /// The id of the registration.
    pub registration: String,
    /// The check.
    pub spec: CheckSpec,
    /// Its fields in Consul's form.
    pub sent: ConsulCheck,
}

/// Sends the result of a change to the caller.
pub(super) type Answer<T> = oneshot::Sender<Result<T, RegistryError>>;

/// One change, with the sender of its result.
#[derive(Debug)]
pub(super) enum Change {
    Register(Box<Registration>, Owner, Answer<Registered>),
    /// Like [`Self::Register`] by the API, but unlisted checks of the replaced registration stay.
    RegisterKeepingChecks(Box<Registration>, Answer<Registered>),
    AddCheck(Box<AddedCheck>, Scope, Answer<()>),
    /// Removes the check with this id from its registration.
    RemoveCheck(String, Scope, Answer<()>),
    Deregister(Selector, Owner, Scope, Answer<Vec<String>>),
    /// The connection of a held registration closed.
    Release(Registered, u64, Duration),
    /// The grace period of a held registration is over.
    EndGrace(Registered),
    Maintenance(String, Option<String>, Scope, Answer<()>),
    NodeMaintenance(Option<String>, Answer<()>),
    /// Answered once all earlier changes are done.
    Barrier(oneshot::Sender<()>),
}
