//! [`Ads`]: the aggregated discovery service over gRPC.

use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use hearsay_services::network::Holder;
use tonic::{Request, Response, Status, Streaming};

use super::{
    budget::Budget,
    delta::Delta,
    request::{DeltaDiscoveryRequest, DiscoveryRequest},
    state_of_the_world::StateOfTheWorld,
    stream::{MEMORY_BYTES, NAMES_BYTES, Responses, StreamContext, start},
};
use crate::{
    apis::grpc::guard::status_of,
    http::{server::connection::HOLDER, state::AppState},
};

/// The generated trait and server of the service.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/envoy.service.discovery.v3.AggregatedDiscoveryService.rs"));
}
use generated::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};

/// The service. Clones share their budgets.
#[derive(Clone, Debug)]
pub(crate) struct Ads {
    state: Arc<AppState>,
    names: Budget,
    memory: Budget,
}

impl Ads {
    /// Creates the service.
    pub(crate) fn new(state: Arc<AppState>) -> Self {
        Self { state, names: Budget::new(NAMES_BYTES), memory: Budget::new(MEMORY_BYTES) }
    }

    /// Returns the gRPC service.
    pub(crate) fn into_service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self)
    }

    /// Admits a stream.
    ///
    /// # Errors
    /// The node, or the client's host, has too many streams.
    fn admit(&self) -> Result<StreamContext, Status> {
        let permit = self.state.admit_stream().map_err(|problem| status_of(&problem))?;
        let shared = self.state.xds.open();
        // Without a connection the call was made inside the process.
        let holder = HOLDER.try_with(|holder| *holder).unwrap_or(Holder::Exempt);
        Ok(StreamContext {
            state: Arc::clone(&self.state),
            newest: shared.newest.clone(),
            shared,
            memory: self.memory.clone(),
            names: self.names.part(holder),
            holder,
            _permit: permit,
        })
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let context = self.admit()?;
        Ok(Response::new(start(StateOfTheWorld::default(), request.into_inner(), context)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let context = self.admit()?;
        Ok(Response::new(start(Delta::default(), request.into_inner(), context)))
    }
}
