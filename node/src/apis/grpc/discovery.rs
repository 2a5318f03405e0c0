//! `hearsay.v1.Discovery`: lists and follows the table, registers programs and takes their reports.

use std::{sync::Arc, time::Duration};

use futures::stream;
use hearsay_protocol::{Health, Index, Member, Provider, ServiceChange, check_service_name};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    calls::{Charge, Messages, charge, leaving, no_memory},
    guard::{self, status_of},
    messages::{self, pb},
    register,
};
use crate::{
    http::{
        AppState,
        api::{
            instance::CurrentCheck,
            registrations::Requester,
            services::{Filter, find_instance},
            watch::{Follower, TableEvent},
        },
    },
    metrics::hex,
};

/// Size of a part of a snapshot. Clients accept messages of 4 MiB unless they are told otherwise.
const PART_BYTES: usize = 1024 * 1024;

/// The service.
pub(super) struct DiscoveryService {
    state: Arc<AppState>,
}

impl DiscoveryService {
    pub(super) fn new(state: Arc<AppState>) -> Self {
        Self { state }
    }

    /// Returns an answer, charged to the response budget if it is large.
    fn charged<T: prost::Message>(&self, answer: T) -> Result<Response<T>, Status> {
        let permit = charge(&self.state, answer.encoded_len())?;
        let mut response = Response::new(answer);
        if let Some(permit) = permit {
            response.extensions_mut().insert(Charge::from(permit));
        }
        Ok(response)
    }
}

/// Returns the filter of a request.
fn filter_of(request: &pb::ListRequest) -> Result<Filter, Status> {
    let health = match pb::HealthStatus::try_from(request.health) {
        Ok(pb::HealthStatus::Unspecified) => None,
        Ok(pb::HealthStatus::Passing) => Some(Health::Passing),
        Ok(pb::HealthStatus::Warning) => Some(Health::Warning),
        Ok(pb::HealthStatus::Critical) => Some(Health::Critical),
        // A value of a newer version must not select all instances.
        Ok(pb::HealthStatus::Unverified) | Err(_) => {
            return Err(Status::invalid_argument("health: is not one of passing, warning, critical"));
        }
    };
    let zone = Some(request.zone.clone()).filter(|zone| !zone.is_empty());
    Ok(Filter { tags: request.tags.clone(), health, zone, nearest_first: request.nearest_first })
}

#[tonic::async_trait]
impl pb::discovery_server::Discovery for DiscoveryService {
    type WatchStream = Messages<pb::WatchResponse>;
    type RegisterStream = Messages<pb::RegisterResponse>;

    async fn list(&self, request: Request<pb::ListRequest>) -> Result<Response<pb::ListResponse>, Status> {
        let (state, request) = (&self.state, request.into_inner());
        let filter = filter_of(&request)?;
        // A client of a restarted node would otherwise drop the instances of other nodes.
        state.started().await;
        let (index, found) = state.read(|table| {
            let (index, providers) = match request.service.as_str() {
                "" => {
                    let all = table.services().flat_map(|service| table.providers_distinct(service));
                    (table.services_index(), all.cloned().collect())
                }
                name => (table.service_index(name), table.providers_distinct(name).cloned().collect()),
            };
            (index, filter.select(state, table, providers))
        });
        let instances = filter.apply(found).iter().map(|provider| provider.as_ref().into()).collect();
        self.charged(pb::ListResponse {
            index: index.0,
            cluster: state.cluster.clone(),
            node: state.name.clone(),
            instances,
        })
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Result<Response<pb::GetResponse>, Status> {
        let pb::GetRequest { service, id } = request.into_inner();
        let provider = find_instance(&self.state, &service, &id).map_err(|problem| status_of(&problem))?;
        let checks = CurrentCheck::read(&self.state, &provider).await;
        self.charged(pb::GetResponse {
            instance: Some(provider.as_ref().into()),
            checks: checks.into_iter().map(pb::Check::from).collect(),
        })
    }

    async fn watch(&self, request: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let pb::WatchRequest { service, index } = request.into_inner();
        let service = Some(service).filter(|service| !service.is_empty());
        if let Some(service) = &service {
            check_service_name("service", service)
                .map_err(|invalid| guard::status(Code::InvalidArgument, &invalid.to_string()))?;
        }
        self.state.started().await;
        let position = index.filter(|index| *index > 0).map(Index);
        let follower = Follower::new(Arc::clone(&self.state), service, position)
            .map_err(|problem| status_of(&problem))?;
        let session = WatchSession { follower, parts: Vec::new(), is_over: false };
        Ok(Response::new(Box::pin(stream::unfold(session, WatchSession::next))))
    }

    async fn register(
        &self,
        request: Request<Streaming<pb::RegisterRequest>>,
    ) -> Result<Response<Self::RegisterStream>, Status> {
        let requester = Requester::of(request.extensions());
        Ok(register::serve(Arc::clone(&self.state), requester, request.into_inner()))
    }

    async fn report_check(
        &self,
        request: Request<pb::ReportCheckRequest>,
    ) -> Result<Response<pb::ReportCheckResponse>, Status> {
        let requester = Requester::of(request.extensions());
        register::record_report(&self.state, &requester, request.into_inner())?;
        Ok(Response::new(pb::ReportCheckResponse {}))
    }

    async fn members(&self, _: Request<pb::MembersRequest>) -> Result<Response<pb::MembersResponse>, Status> {
        let state = &self.state;
        let (index, root_hash, members) = state.read(|table| {
            let members: Vec<Member> = table.members_from_here().collect();
            (table.members_index(), table.root_hash(), members)
        });
        let convert = |mut member: Member| {
            if member.id == state.id {
                member.rtt = Some(Duration::ZERO);
            }
            let since = state.view.clock().wall(member.since);
            messages::member(member, since)
        };
        self.charged(pb::MembersResponse {
            index: index.0,
            cluster: state.cluster.clone(),
            node: state.name.clone(),
            root_hash: hex(&root_hash),
            members: members.into_iter().map(convert).collect(),
        })
    }
}

/// One client's watch.
struct WatchSession {
    follower: Follower,
    /// Parts of a snapshot that are not yet sent, the last one first.
    parts: Vec<pb::WatchResponse>,
    is_over: bool,
}

impl WatchSession {
    /// Returns the next message; a status at the end.
    async fn next(mut self) -> Option<(Result<pb::WatchResponse, Status>, Self)> {
        if self.is_over {
            return None;
        }
        if let Some(part) = self.parts.pop() {
            return Some((Ok(part), self));
        }
        let message = match self.follower.next().await {
            None => Err(leaving()),
            Some(TableEvent::Change(index, change)) => Ok(change_message(index, &change)),
            Some(TableEvent::Snapshot(index, providers)) => self.begin_snapshot(index, &providers),
        };
        self.is_over = message.is_err();
        Some((message, self))
    }

    /// Splits a snapshot, and returns its first part.
    fn begin_snapshot(
        &mut self,
        index: Index,
        providers: &[Arc<Provider>],
    ) -> Result<pb::WatchResponse, Status> {
        let (mut parts, mut part, mut bytes, mut all_bytes) = (Vec::new(), Vec::new(), 0, 0);
        for provider in providers {
            let instance = pb::Instance::from(provider.as_ref());
            // With its tag and its length.
            let length = prost::encoding::message::encoded_len(1, &instance);
            if bytes + length > PART_BYTES && bytes > 0 {
                parts.push(std::mem::take(&mut part));
                bytes = 0;
            }
            (bytes, all_bytes) = (bytes + length, all_bytes + length);
            part.push(instance);
        }
        parts.push(part);
        if !self.follower.charge(all_bytes) {
            return Err(no_memory());
        }
        let last = parts.len() - 1;
        let part = |(number, instances)| {
            let more = number < last;
            let snapshot = pb::Snapshot { instances, more };
            pb::WatchResponse {
                index: if more { 0 } else { index.0 },
                event: Some(pb::watch_response::Event::Snapshot(snapshot)),
            }
        };
        self.parts = parts.into_iter().enumerate().map(part).rev().collect();
        self.parts.pop().ok_or_else(no_memory)
    }
}

fn change_message(index: Index, change: &ServiceChange) -> pb::WatchResponse {
    use pb::watch_response::Event;
    let instance = Some(change.provider().as_ref().into());
    let event = match change {
        ServiceChange::Added(_) => Event::Added(pb::Added { instance }),
        ServiceChange::Changed(_) => Event::Changed(pb::Changed { instance, replaces: None }),
        ServiceChange::Replaced { before, .. } => {
            let replaces = pb::Replaces {
                id: before.id.clone(),
                node: before.node.clone(),
                node_id: before.node_id.to_string(),
            };
            Event::Changed(pb::Changed { instance, replaces: Some(replaces) })
        }
        ServiceChange::Removed(_) => Event::Removed(pb::Removed { instance }),
    };
    pb::WatchResponse { index: index.0, event: Some(event) }
}
