//! [`RegistryError`]: why a change of registrations failed.

use hearsay_protocol::Invalid;

use super::store::RegistryStoreError;

/// Why a change was refused. No registration was changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// A field is out of bounds.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// This node holds no such registration.
    #[error("{0}")]
    NotFound(String),
    /// Another node holds the registration.
    #[error(
        "{id:?} is registered with the node {node:?}, not with this one. Send the request there, or add node={node}"
    )]
    HeldElsewhere {
        /// The requested id.
        id: String,
        /// The name of the node that holds it.
        node: String,
    },
    /// The caller has no proof but its address, and the registration was made from another address.
    #[error("{0}")]
    Forbidden(Invalid),
    /// The registration belongs to a file, or another registration uses the same id.
    #[error("{0}")]
    Conflict(String),
    /// A limit of the node or the cluster is reached.
    #[error("{0}")]
    Limit(String),
    /// The disk or the database refused the change.
    #[error("the registrations cannot be written to disk, so nothing was changed: {0}")]
    Store(#[from] RegistryStoreError),
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

/// The error for a change to a registration that another address made.
pub(super) fn forbidden_id(id: &str) -> RegistryError {
    let problem = format!(
        "{id:?} was not registered from this address. Without the node's token an address may change only its own registrations: send the token, or run `node deregister` on the node's machine"
    );
    RegistryError::Forbidden(Invalid { field: "id", problem })
}
