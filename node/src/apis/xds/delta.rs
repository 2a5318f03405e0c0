//! [`Delta`]: the protocol of a stream on which a client adds and removes names, and responses state only
//! what changed.
//!
//! Source: Envoy's "xDS REST and gRPC protocol", section "Incremental xDS".

use std::collections::{BTreeMap, HashMap};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use prost::Message as _;
use tonic::Status;

use super::{
    catalog::Catalog,
    encoding::version_of,
    kind::Kind,
    kind_state::KindState,
    request::DeltaDiscoveryRequest,
    resources::resource,
    state_of_the_world::RESPONSE_BYTES,
    stream::{Received, Session, control_plane, zone_of},
    subscription::{ENTRY_BYTES, NAME_BYTES_MAX, NAMES_MAX},
};

/// Resources in a response that are removed, at most.
const REMOVED_MAX: usize = 4096;

/// One stream's state.
#[derive(Default, Debug)]
pub(super) struct Delta {
    kinds: BTreeMap<Kind, KindState>,
    /// Versions of resources that the client has from an earlier stream, until they are compared.
    initial: BTreeMap<Kind, HashMap<String, String>>,
    zone: String,
}

impl Session for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;

    fn receive(&mut self, request: DeltaDiscoveryRequest, catalog: &Catalog) -> Result<Received, Status> {
        self.zone = zone_of(request.node).unwrap_or(std::mem::take(&mut self.zone));
        let Some(kind) = Kind::of_url(&request.type_url) else {
            return Ok(Received::UnknownType(request.type_url));
        };
        let is_first = !self.kinds.contains_key(&kind);
        let state = self.kinds.entry(kind).or_insert_with(|| KindState::new(kind, catalog));
        // A request that changes the subscription need not answer a response. One that only answers has no
        // effect, whichever response it answers.
        state.subscription.unsubscribe(&request.resource_names_unsubscribe);
        if is_first || !request.resource_names_subscribe.is_empty() {
            state.subscription.subscribe(&request.resource_names_subscribe, catalog)?;
        }
        if is_first {
            check_initial(&request.initial_resource_versions)?;
            state.subscription.add_pending(request.initial_resource_versions.keys());
            self.initial.insert(kind, request.initial_resource_versions);
        }
        let is_old = !request.response_nonce.is_empty() && !state.is_last(&request.response_nonce);
        Ok(match request.error_detail {
            Some(error) => Received::Refused(kind, error.message),
            None if is_old => Received::OldNonce,
            None => Received::Accepted,
        })
    }

    fn collect(&mut self, catalog: &Catalog) -> Result<(), Status> {
        self.kinds.values_mut().try_for_each(|state| state.subscription.collect(catalog))
    }

    fn respond(&mut self, catalog: &Catalog) -> Option<(Kind, DeltaDiscoveryResponse)> {
        for (&kind, state) in &mut self.kinds {
            let (mut resources, mut removed, mut bytes) = (Vec::new(), Vec::new(), 0);
            let initial = self.initial.entry(kind).or_default();
            while bytes < RESPONSE_BYTES
                && removed.len() < REMOVED_MAX
                && let Some(name) = state.subscription.pop()
            {
                let known = initial.remove(&*name);
                let Some(found) = resource(catalog, kind, &name, &self.zone) else {
                    removed.push(name.to_string());
                    continue;
                };
                let version = version_of(&found);
                if known.as_ref() == Some(&version) {
                    continue;
                }
                bytes += found.encoded_len();
                let name = name.to_string();
                resources.push(Resource { name, version, resource: Some(found), ..Resource::default() });
            }
            if !state.subscription.has_pending() {
                self.initial.remove(&kind);
            }
            if resources.is_empty() && removed.is_empty() && !state.is_awaited() {
                continue;
            }
            let response = DeltaDiscoveryResponse {
                system_version_info: catalog.version().to_string(),
                resources,
                removed_resources: removed,
                type_url: kind.url(),
                nonce: state.begin_response(),
                control_plane: Some(control_plane(catalog)),
                ..DeltaDiscoveryResponse::default()
            };
            return Some((kind, response));
        }
        None
    }

    fn bytes(&self) -> usize {
        let names = self.kinds.values().map(|state| state.subscription.bytes());
        names.chain(self.initial.values().map(initial_bytes)).sum()
    }
}

/// Checks the versions that a client has from an earlier stream.
fn check_initial(versions: &HashMap<String, String>) -> Result<(), Status> {
    let is_long =
        |(name, version): (&String, &String)| name.len() > NAME_BYTES_MAX || version.len() > NAME_BYTES_MAX;
    if versions.len() > NAMES_MAX || versions.iter().any(is_long) {
        return Err(Status::invalid_argument(format!(
            "initial_resource_versions: at most {NAMES_MAX} names and versions, each of at most {NAME_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

fn initial_bytes(versions: &HashMap<String, String>) -> usize {
    versions.iter().map(|(name, version)| ENTRY_BYTES * 2 + name.len() + version.len()).sum()
}
