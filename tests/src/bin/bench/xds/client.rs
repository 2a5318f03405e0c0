//! Client of one delta stream of aggregated discovery. It acknowledges every response.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use envoy_types::pb::envoy::{
    config::{core::v3::Node, endpoint::v3::ClusterLoadAssignment},
    service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};
use hearsay_tests::xds::{Connection, DELTA, PREFIX_BYTES, RawStream, WINDOW};
use prost::Message as _;
use tokio::time::timeout;

pub(super) use hearsay_tests::xds::{CLUSTER, ENDPOINTS};

/// Time within which a response must come that is due.
pub(super) const BOUND: Duration = Duration::from_secs(60);

/// A delta stream on a connection of its own.
pub(super) struct Stream(RawStream);

/// A response, and its length on the wire, without the heads of frames.
pub(super) struct Received {
    pub(super) response: DeltaDiscoveryResponse,
    pub(super) bytes: usize,
}

impl Received {
    /// Returns the assignments in the response.
    pub(super) fn assignments(&self) -> impl Iterator<Item = ClusterLoadAssignment> + '_ {
        let is_assignment = self.response.type_url == ENDPOINTS;
        let resources = self.response.resources.iter().filter(move |_| is_assignment);
        resources.filter_map(|it| ClusterLoadAssignment::decode(it.resource.as_ref()?.value.as_slice()).ok())
    }
}

/// Whether an endpoint of a service has this weight.
pub(super) fn has_weight(assignment: &ClusterLoadAssignment, service: &str, weight: u32) -> bool {
    let mut endpoints = assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
    assignment.cluster_name == service
        && endpoints.any(|it| it.load_balancing_weight.is_some_and(|found| found.value == weight))
}

impl Stream {
    /// Connects, and subscribes to all clusters.
    ///
    /// # Errors
    /// The connection fails, or the node refuses the stream.
    pub(super) async fn open(to: SocketAddr) -> Result<Self> {
        let node = Node { id: "bench".into(), ..Node::default() };
        let wildcard = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: CLUSTER.into(),
            ..DeltaDiscoveryRequest::default()
        };
        let connection = Connection::open(to, WINDOW).await?;
        Ok(Self(timeout(BOUND, connection.stream(DELTA, &wildcard)).await??))
    }

    /// Subscribes to the endpoints of services.
    ///
    /// # Errors
    /// The stream has ended.
    pub(super) fn subscribe(&mut self, names: Vec<String>) -> Result<()> {
        self.0.send(&DeltaDiscoveryRequest {
            type_url: ENDPOINTS.into(),
            resource_names_subscribe: names,
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// Waits for the next response, and acknowledges it.
    ///
    /// # Errors
    /// The stream has ended.
    pub(super) async fn next(&mut self) -> Result<Received> {
        let message = self.0.next().await?;
        let response = DeltaDiscoveryResponse::decode(message.as_ref())?;
        self.0.send(&DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        })?;
        Ok(Received { response, bytes: PREFIX_BYTES + message.len() })
    }

    /// Waits until this many resources of a type have come. Returns their names and all bytes.
    ///
    /// # Errors
    /// The stream has ended, or the resources do not come in time.
    pub(super) async fn until_has(&mut self, type_url: &str, count: usize) -> Result<(Vec<String>, usize)> {
        let (mut names, mut bytes) = (BTreeSet::new(), 0);
        while names.len() < count {
            let received = timeout(BOUND, self.next()).await.context("no response")??;
            ensure!(received.response.type_url == type_url, "a response of another type");
            bytes += received.bytes;
            names.extend(received.response.resources.into_iter().map(|resource| resource.name));
        }
        Ok((names.into_iter().collect(), bytes))
    }
}
