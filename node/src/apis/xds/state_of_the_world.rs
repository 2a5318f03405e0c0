//! [`StateOfTheWorld`]: the protocol of a stream on which a client states all names that it wants, and a
//! response of a kind that is wanted as a whole (CDS, LDS) states all resources.
//!
//! Source: Envoy's "xDS REST and gRPC protocol", sections "ACK/NACK and resource type instance version" and
//! "Client behavior". Responses of EDS and RDS contain only what changed, as the protocol allows.

use std::collections::BTreeMap;

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse;
use prost::Message as _;
use tonic::Status;

use super::{
    catalog::Catalog,
    kind::Kind,
    kind_state::KindState,
    request::DiscoveryRequest,
    resources::resource,
    stream::{Received, Session, control_plane, zone_of},
};

/// Bytes of resources in a response that need not be whole. gRPC clients accept messages of 4 MiB.
pub(super) const RESPONSE_BYTES: usize = 1024 * 1024;

/// One stream's state.
#[derive(Default, Debug)]
pub(super) struct StateOfTheWorld {
    kinds: BTreeMap<Kind, KindState>,
    zone: String,
}

impl Session for StateOfTheWorld {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;

    fn receive(&mut self, request: DiscoveryRequest, catalog: &Catalog) -> Result<Received, Status> {
        self.zone = zone_of(request.node).unwrap_or(std::mem::take(&mut self.zone));
        let Some(kind) = Kind::of_url(&request.type_url) else {
            return Ok(Received::UnknownType(request.type_url));
        };
        let is_first = !self.kinds.contains_key(&kind);
        let state = self.kinds.entry(kind).or_insert_with(|| KindState::new(kind, catalog));
        // The first request of a stream has no nonce. It may have the version of an earlier stream, which
        // says nothing about this one.
        if !is_first && !state.is_last(&request.response_nonce) {
            return Ok(Received::OldNonce);
        }
        state.subscription.replace(&request.resource_names, catalog)?;
        Ok(match request.error_detail {
            Some(error) => Received::Refused(kind, error.message),
            None => Received::Accepted,
        })
    }

    fn collect(&mut self, catalog: &Catalog) -> Result<(), Status> {
        self.kinds.values_mut().try_for_each(|state| state.subscription.collect(catalog))
    }

    fn respond(&mut self, catalog: &Catalog) -> Option<(Kind, DiscoveryResponse)> {
        let is_due = |state: &KindState| state.is_awaited() || state.subscription.has_pending();
        let (&kind, state) = self.kinds.iter_mut().find(|(_, state)| is_due(state))?;
        let mut resources = Vec::new();
        if kind.is_whole() {
            let names = state.subscription.take_whole(catalog);
            resources.extend(names.iter().filter_map(|name| resource(catalog, kind, name, &self.zone)));
        } else {
            let mut bytes = 0;
            while bytes < RESPONSE_BYTES
                && let Some(name) = state.subscription.pop()
            {
                let found = resource(catalog, kind, &name, &self.zone);
                bytes += found.as_ref().map_or(0, |found| found.encoded_len());
                resources.extend(found);
            }
        }
        let response = DiscoveryResponse {
            version_info: catalog.version().to_string(),
            resources,
            type_url: kind.url(),
            nonce: state.begin_response(),
            control_plane: Some(control_plane(catalog)),
            ..DiscoveryResponse::default()
        };
        Some((kind, response))
    }

    fn bytes(&self) -> usize {
        self.kinds.values().map(|state| state.subscription.bytes()).sum()
    }
}
