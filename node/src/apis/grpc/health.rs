//! `grpc.health.v1.Health`: health of the node (empty name, or the name of one of its gRPC services) and of
//! the services in its table.
//!
//! A service of the table is SERVING while an instance is passing, warning or unverified, and NOT_SERVING
//! while all are critical.

use std::sync::Arc;

use futures::stream;
use hearsay_protocol::{Health, Index};
use tokio::sync::watch::Receiver;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
};

use super::{
    calls::Messages,
    guard::{self, status_of},
};
use crate::http::{AppState, Readiness, server::stream_limit::StreamPermit};

/// The node's own services; the empty name is the node.
const OWN: [&str; 6] = [
    "",
    "hearsay.v1.Discovery",
    "envoy.service.discovery.v3.AggregatedDiscoveryService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// The service.
pub(super) struct HealthService {
    state: Arc<AppState>,
}

impl HealthService {
    pub(super) fn new(state: Arc<AppState>) -> Self {
        Self { state }
    }

    /// Waits until a node that starts lists the instances of other nodes, if a service of the table is asked
    /// for. Otherwise it would be unknown after each restart of the node.
    async fn await_table(&self, service: &str) {
        if !OWN.contains(&service) {
            self.state.started().await;
        }
    }
}

/// Returns the status of a service; `None`: it is unknown.
fn status_of_service(state: &AppState, service: &str) -> Option<ServingStatus> {
    let is_serving = if OWN.contains(&service) {
        state.readiness.borrow().is_ready()
    } else {
        state.read(|table| {
            let mut health = table
                .providers_distinct(service)
                .map(|provider| provider.unverified || provider.instance.health != Health::Critical);
            let first = health.next()?;
            Some(first || health.any(|is_serving| is_serving))
        })?
    };
    Some(if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing })
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl health_server::Health for HealthService {
    type WatchStream = Messages<HealthCheckResponse>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        self.await_table(&service).await;
        match status_of_service(&self.state, &service) {
            Some(status) => Ok(Response::new(response(status))),
            None => {
                let detail = format!("no instance of service {service:?} is known here");
                Err(guard::status(Code::NotFound, &detail))
            }
        }
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let permit = self.state.admit_stream().map_err(|problem| status_of(&problem))?;
        let service = request.into_inner().service;
        self.await_table(&service).await;
        let session = WatchSession {
            service,
            last: None,
            changes: self.state.view.subscribe(),
            readiness: self.state.readiness.clone(),
            state: Arc::clone(&self.state),
            _permit: permit,
        };
        Ok(Response::new(Box::pin(stream::unfold(session, WatchSession::next))))
    }
}

/// One client's watch.
struct WatchSession {
    service: String,
    /// Last status that was sent.
    last: Option<ServingStatus>,
    changes: Receiver<Index>,
    readiness: Receiver<Readiness>,
    state: Arc<AppState>,
    _permit: StreamPermit,
}

impl WatchSession {
    /// Waits for another status; `None` when the node leaves. Before that the node's own status is sent.
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        loop {
            // Both are marked as seen before the read, so that a later change wakes the task.
            self.changes.mark_unchanged();
            let is_leaving = *self.readiness.borrow_and_update() == Readiness::Leaving;
            let status = status_of_service(&self.state, &self.service);
            let status = status.unwrap_or(ServingStatus::ServiceUnknown);
            if self.last != Some(status) {
                self.last = Some(status);
                return Some((Ok(response(status)), self));
            }
            if is_leaving {
                return None;
            }
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                changed = self.readiness.changed() => changed.ok()?,
            }
        }
    }
}
