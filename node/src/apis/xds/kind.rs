//! [`Kind`]: the types of resources that a node serves, in the order in which changes are sent.

use envoy_types::pb::envoy::config::{
    cluster::v3::Cluster, endpoint::v3::ClusterLoadAssignment, listener::v3::Listener,
    route::v3::RouteConfiguration,
};
use prost::Name as _;

/// A type of resources. The order is that in which a client can use them without a gap ("make before break"
/// in Envoy's documentation): a route never names a cluster that the client has not got yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Kind {
    /// `Cluster` (CDS).
    Clusters,
    /// `ClusterLoadAssignment` (EDS).
    Endpoints,
    /// `Listener` (LDS).
    Listeners,
    /// `RouteConfiguration` (RDS).
    Routes,
}

impl Kind {
    /// All types, in order.
    pub(crate) const ALL: [Self; 4] = [Self::Clusters, Self::Endpoints, Self::Listeners, Self::Routes];

    /// Returns the type of a type URL; `None` for one that a node does not serve.
    pub(crate) fn of_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// Returns the type URL.
    pub(crate) fn url(self) -> String {
        match self {
            Self::Clusters => Cluster::type_url(),
            Self::Endpoints => ClusterLoadAssignment::type_url(),
            Self::Listeners => Listener::type_url(),
            Self::Routes => RouteConfiguration::type_url(),
        }
    }

    /// Returns the label of metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Clusters => "cds",
            Self::Endpoints => "eds",
            Self::Listeners => "lds",
            Self::Routes => "rds",
        }
    }

    /// Whether a client may subscribe to all resources, and gets all that it subscribed to in each response
    /// of the state of the world.
    pub(crate) fn is_whole(self) -> bool {
        matches!(self, Self::Clusters | Self::Listeners)
    }
}
