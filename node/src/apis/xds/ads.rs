//! [`Ads`]: the aggregated discovery service over gRPC, and the task that keeps its catalog up to date.

use std::{
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
    time::Duration,
};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
use hearsay_services::network::Holder;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tonic::{Request, Response, Status, Streaming};

use super::{
    budget::Budget,
    catalog::Catalog,
    delta::Delta,
    request::{DeltaDiscoveryRequest, DiscoveryRequest},
    state_of_the_world::StateOfTheWorld,
    stream::{MEMORY_BYTES, NAMES_BYTES, Responses, Shared, StreamContext, start},
};
use crate::{
    apis::grpc::guard::status_of,
    http::{server::connection::HOLDER, state::AppState},
};

/// The generated trait and server of the service.
#[allow(missing_docs, unreachable_pub, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/envoy.service.discovery.v3.AggregatedDiscoveryService.rs"));
}
use generated::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};

/// Interval of readings without a change of the table: measured distances change without one.
const INTERVAL: Duration = Duration::from_secs(10);
/// Pause between two readings of the table, so that a burst of changes is read once.
const COALESCING: Duration = Duration::from_millis(5);

/// The service. Clones share their catalog.
#[derive(Clone, Debug)]
pub(crate) struct Ads {
    state: Arc<AppState>,
    /// The catalog, while there are streams.
    shared: Arc<Mutex<Weak<Shared>>>,
    names: Budget,
    memory: Budget,
}

impl Ads {
    /// Creates the service. The catalog is read when the first stream begins.
    pub(crate) fn new(state: Arc<AppState>) -> Self {
        Self {
            state,
            shared: Arc::default(),
            names: Budget::new(NAMES_BYTES),
            memory: Budget::new(MEMORY_BYTES),
        }
    }

    /// Returns the gRPC service.
    pub(crate) fn into_service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self)
    }

    /// Returns the catalog, up to date. It is dropped with the last stream.
    fn catalog(&self) -> Arc<Shared> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = shared.upgrade() {
            return shared;
        }
        let mut catalog = Catalog::new(self.state.id);
        self.state.read(|table| catalog.update(table, Instant::now()));
        let (sender, newest) = watch::channel(catalog.version());
        let new = Arc::new(Shared { catalog: RwLock::new(catalog), newest });
        *shared = Arc::downgrade(&new);
        tokio::spawn(keep_up(Arc::clone(&self.state), Arc::downgrade(&new), sender));
        new
    }

    /// Admits a stream.
    ///
    /// # Errors
    /// The node, or the client's host, has too many streams.
    fn admit(&self) -> Result<StreamContext, Status> {
        let permit = self.state.admit_stream().map_err(|problem| status_of(&problem))?;
        let shared = self.catalog();
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

/// Reads the changes of the table into the catalog until no stream uses it.
async fn keep_up(state: Arc<AppState>, shared: Weak<Shared>, sender: watch::Sender<u64>) {
    let mut changes = state.view.subscribe();
    loop {
        let Some(next_removal) = shared.upgrade().map(|shared| shared.catalog().next_removal()) else {
            return;
        };
        let latest = Instant::now() + INTERVAL;
        let next = next_removal.map_or(latest, |at| at.min(latest));
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = sleep_until(next) => (),
            () = sender.closed() => return,
        }
        let Some(shared) = shared.upgrade() else { return };
        let version = shared.read_changes(&state);
        drop(shared);
        // A stream that has just begun may have read these changes, so the version that was sent decides.
        sender.send_if_modified(|sent| std::mem::replace(sent, version) != version);
        sleep(COALESCING).await;
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
