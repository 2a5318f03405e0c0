//! What a node is to a plug-in.
//!
//! The journal (append, read) belongs here as well and comes with the replicated record; until then a plug-in that would need it
//! answers 501.

use std::sync::Arc;

use hearsay_protocol::{NodeId, providers::Provider};

use crate::Client;

/// The node, as its plug-ins see it. Cheap to ask: every answer comes from the node's own memory.
pub trait Host: Send + Sync + 'static {
    /// The name of the cluster.
    fn cluster(&self) -> &str;

    /// The name of the node.
    fn node(&self) -> &str;

    /// The identity of the node.
    fn node_id(&self) -> NodeId;

    /// Whether sample data was asked for (`--demo`).
    fn demo(&self) -> bool;

    /// Who offers this service now, whatever its health, in the order of node and id. Empty for an unknown one.
    fn providers(&self, service: &str) -> Vec<Arc<Provider>>;

    /// The client for requests to other services. One for the whole node, so that its plug-ins share connections.
    fn client(&self) -> &Client;
}
