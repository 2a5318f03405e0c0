//! Resources by kind and name, encoded as messages for gRPC.

use envoy_types::pb::google::protobuf::Any;

use super::{
    assignment::assignment,
    catalog::Catalog,
    cluster::cluster,
    encoding::any,
    kind::Kind,
    listener::{listener, service_of},
    routes::{ALL_SERVICES, host_of_service, hosts_of_all, route_configuration},
};

/// Returns a resource for a client in a zone; `None` if there is none of this name. An unknown service has an
/// assignment without endpoints, so that a client need not wait for one.
pub(super) fn resource(catalog: &Catalog, kind: Kind, name: &str, zone: &str) -> Option<Any> {
    let service = catalog.service(name);
    match (kind, service) {
        (Kind::Clusters, Some(service)) => Some(any(&cluster(name, service.traits))),
        (Kind::Endpoints, service) => {
            let endpoints = service.map_or(&[][..], |service| &service.endpoints);
            Some(any(&assignment(name, endpoints, catalog.zones(), zone)))
        }
        (Kind::Listeners, _) => catalog.service(service_of(name)).map(|_| any(&listener(name))),
        (Kind::Routes, Some(_)) => Some(any(&route_configuration(name, vec![host_of_service(name)]))),
        (Kind::Routes, None) if name == ALL_SERVICES => {
            let hosts = hosts_of_all(catalog.names().map(AsRef::as_ref));
            Some(any(&route_configuration(name, hosts)))
        }
        _ => None,
    }
}
