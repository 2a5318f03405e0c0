//! The node, as its plug-ins see it.

use std::sync::Arc;

use hearsay_protocol::{NodeId, providers::Provider};
use hearsay_services::{Host, journal::Journal};

use crate::{journal::Journals, view::View};

/// Answers plug-ins from the table.
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
    /// The journals that it keeps.
    pub journals: Arc<Journals>,
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

    fn journal(&self, topic: &str) -> Option<Arc<dyn Journal>> {
        self.journals.topic(topic).map(|topic| Arc::clone(topic) as Arc<dyn Journal>)
    }

    fn providers(&self, service: &str) -> Vec<Arc<Provider>> {
        self.view.read(|table| table.providers(service).cloned().collect())
    }
}
