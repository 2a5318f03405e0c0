//! [`Change`]: what the core publishes to the provider table. [`ServiceChange`]: what the table sends to
//! watchers of a service. [`Index`]: version of the table, which a client can wait for.

use std::{sync::Arc, time::Duration};

use super::{explanations::Explanation, member::Member, provider::Provider};
use crate::{NodeId, Time, record::Instance};

/// Index of a change of the table. It never decreases, even over restarts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Index(pub u64);

/// Change that the core publishes to the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A member is new or changed.
    Member(Box<Member>),
    /// A member is forgotten.
    Forgotten(NodeId),
    /// An instance is new or changed; `None`: it is gone. When a new incarnation begins, the table first
    /// withdraws all instances of the last one.
    Instance {
        /// The node that offers the instance.
        node: NodeId,
        /// Id of the instance.
        id: String,
        /// The new value.
        instance: Option<Arc<Instance>>,
    },
    /// A measured round trip. No query waits for it, so the index does not move.
    Rtt(NodeId, Option<Duration>),
    /// Root hash of the replicated state. The index does not move.
    RootHash([u8; 16]),
    /// A member is about to fail by weak evidence alone: it does not answer, but nothing proves that its
    /// process is gone. Its [`Change::Member`] follows.
    Silent {
        /// The member.
        node: NodeId,
        /// When this node received the first report.
        since: Time,
    },
    /// An event for `/why`.
    Explained(NodeId, Explanation),
}

/// Change of a service, for watchers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServiceChange {
    /// A provider is listed now.
    Added(Arc<Provider>),
    /// A listed provider changed.
    Changed(Arc<Provider>),
    /// The registration of a program that lookups show is now that of another node.
    Replaced {
        /// The former registration, in the version that watchers received last.
        before: Arc<Provider>,
        /// The present registration.
        after: Arc<Provider>,
    },
    /// A provider is no longer listed.
    Removed(Arc<Provider>),
}

impl ServiceChange {
    /// The provider in its current version, or in its last one if it was removed.
    pub fn provider(&self) -> &Arc<Provider> {
        match self {
            Self::Added(p) | Self::Changed(p) | Self::Removed(p) | Self::Replaced { after: p, .. } => p,
        }
    }
}

/// Node and id of a provider.
pub(super) type ProviderKey = (NodeId, String);
