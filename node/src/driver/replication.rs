//! [`Replication`]: the journals of this node, the open requests between them and other replicas, and the
//! replicas last reported to each topic.

use std::{collections::BTreeMap, sync::Arc};

use hearsay_protocol::{Change, NodeId, RequestId, journal::Durability};
use libp2p::request_response::{OutboundRequestId, ResponseChannel};

use crate::journal::Journals;

/// The journals of this node, and the requests between them and other replicas.
pub(super) struct Replication {
    pub(super) journals: Arc<Journals>,
    /// Requests to other replicas, with the topic that sent them.
    pub(super) requests: BTreeMap<OutboundRequestId, (String, RequestId)>,
    /// Requests of other replicas that a topic has not answered yet.
    pub(super) channels: BTreeMap<RequestId, ResponseChannel<Vec<u8>>>,
    /// The replicas that were last reported to each topic.
    pub(super) replicas: BTreeMap<String, BTreeMap<NodeId, Durability>>,
}

impl Replication {
    pub(super) fn new(journals: Arc<Journals>) -> Self {
        Self { journals, requests: BTreeMap::new(), channels: BTreeMap::new(), replicas: BTreeMap::new() }
    }
}

/// Whether a change of the provider table may change the replicas of a topic.
pub(super) fn may_change_replicas(change: &Change) -> bool {
    matches!(change, Change::Instance { .. } | Change::Member(_) | Change::Forgotten(_))
}
