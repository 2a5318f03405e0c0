//! [`AppState`]: state that the HTTP handlers of a node share; and the node's [`Readiness`].

use std::sync::Arc;

use hearsay_protocol::{NodeId, ProviderTable};
use hearsay_services::Problem;
use tokio::sync::{mpsc, watch};

use crate::{
    apis::xds::catalog_cache::CatalogCache,
    driver_command::{DriverCommand, Neighbourhood},
    http::{
        guard::{access::Access, host_names::HostNames},
        server::{
            response_budget::ResponseBudget,
            stream_limit::{StreamLimit, StreamPermit},
        },
    },
    metrics::Metrics,
    operator_request::OperatorRequest,
    registry::Registry,
    signing::Signing,
    user_events::UserEvents,
    view::View,
    warnings::Warnings,
};

/// Readiness: whether load balancers should send requests to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Readiness {
    /// The node reads its data, or knows peers and has not compared its table with one yet.
    Starting,
    /// The node answers. It knew no peer at its start, and may still find one whose instances it does not
    /// list yet.
    Searching,
    /// The node answers, even if it has found no other node.
    Ready,
    /// The node is leaving the cluster.
    Leaving,
}

impl Readiness {
    /// Whether load balancers should send requests to the node.
    pub fn is_ready(self) -> bool {
        matches!(self, Self::Searching | Self::Ready)
    }
}

/// State of the HTTP handlers, created at the node's start.
#[derive(Debug)]
pub struct AppState {
    /// The provider table.
    pub view: Arc<View>,
    /// The node's id.
    pub id: NodeId,
    /// The node's name.
    pub name: String,
    /// The cluster's name.
    pub cluster: String,
    /// Metrics, which count requests among others.
    pub metrics: Arc<Metrics>,
    /// The registrations that this node holds.
    pub registry: Arc<Registry>,
    /// User events, which the driver adds.
    pub user_events: Arc<UserEvents>,
    /// Commands to the driver.
    pub driver: mpsc::Sender<DriverCommand>,
    /// Requests of operators to the node's main loop.
    pub operator_requests: mpsc::Sender<OperatorRequest>,
    /// Settings that decide which clients may write and read.
    pub access: Arc<Access>,
    /// Signs requests to members, and checks the signatures of requests from members.
    pub signing: Arc<Signing>,
    /// Readiness of the node. The main loop changes it.
    pub readiness: watch::Receiver<Readiness>,
    /// Current warnings.
    pub warnings: Arc<Warnings>,
    /// Connections and surroundings of the node. The driver changes them.
    pub neighbours: watch::Receiver<Neighbourhood>,
    /// Names under which clients may address this node.
    pub names: HostNames,
    /// Limit on blocking queries, event streams and held registrations.
    pub stream_limit: StreamLimit,
    /// The port at which the node answers DNS; `None`: it does not.
    pub dns_port: Option<u16>,
    /// Memory budget of large responses.
    pub response_budget: ResponseBudget,
    /// The services as xDS clients see them.
    pub(crate) xds: CatalogCache,
}

impl AppState {
    /// Reads the provider table under its lock. `look` should only clone pointers; JSON is written after it
    /// returns.
    pub(crate) fn read<R>(&self, look: impl FnOnce(&ProviderTable) -> R) -> R {
        self.view.read(look)
    }

    /// Resolves when the node has started: when it lists the instances of the cluster, as far as it can reach
    /// its peers.
    pub(crate) async fn started(&self) {
        // An error means that the main loop is gone, and the node with it.
        let _ = self.readiness.clone().wait_for(|readiness| *readiness != Readiness::Starting).await;
    }

    /// Resolves when the node has started, and has compared its table with a peer's or has searched for one
    /// for a few seconds. For clients that give up what they had when they get a list without it.
    pub(crate) async fn settled(&self) {
        let is_settled = |readiness: &Readiness| matches!(readiness, Readiness::Ready | Readiness::Leaving);
        // An error means that the main loop is gone, and the node with it.
        let _ = self.readiness.clone().wait_for(is_settled).await;
    }

    /// Resolves when the node leaves, and waiting requests are to end.
    pub(crate) async fn leaving(&self) {
        // An error means that the main loop is gone, and the node with it.
        let _ = self.readiness.clone().wait_for(|readiness| *readiness == Readiness::Leaving).await;
    }

    /// Admits a blocking query or an event stream.
    ///
    /// # Errors
    /// As [`StreamLimit::admit`].
    pub(crate) fn admit_stream(&self) -> Result<StreamPermit, Problem> {
        self.stream_limit.admit(&self.metrics)
    }
}
