//! The node, as its plug-ins see it.

use std::sync::Arc;

use hearsay_protocol::{NodeId, providers::Provider};
use hearsay_services::{Client, Host};

use crate::view::View;

/// Answers plug-ins from the table.
#[derive(Debug)]
pub struct NodeHost {
    /// The table.
    pub view: Arc<View>,
    /// The node's identity.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// The cluster's name.
    pub cluster: String,
    /// Whether `--demo` was given.
    pub demo: bool,
    /// The plug-ins' way to other services.
    pub client: Client,
}

impl Host for NodeHost {
    fn cluster(&self) -> &str {
        &self.cluster
    }

    fn node(&self) -> &str {
        &self.name
    }

    fn node_id(&self) -> NodeId {
        self.id
    }

    fn demo(&self) -> bool {
        self.demo
    }

    fn client(&self) -> &Client {
        &self.client
    }

    fn providers(&self, service: &str) -> Vec<Arc<Provider>> {
        self.view.read(|table| table.providers(service).cloned().collect())
    }
}
