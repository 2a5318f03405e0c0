//! `Listener`: what a gRPC client that asks for `xds:///web` resolves first. It leads to the routes of the
//! service. A client of `xds:///web:80` asks for the listener `web:80`, which leads to the same routes.

use envoy_types::pb::envoy::{
    config::listener::v3::{ApiListener, Listener},
    extensions::filters::{
        http::router::v3::Router,
        network::http_connection_manager::v3::{
            HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier,
            http_filter::ConfigType,
        },
    },
};

use super::{cluster::from_ads, encoding::any};

/// Name of the filter that every connection manager has last.
pub(super) const ROUTER: &str = "envoy.filters.http.router";

/// Returns the service to which the listener of a name leads: the name without a port. No service has a colon
/// in its name.
pub(super) fn service_of(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((service, port)) if port.parse::<u16>().is_ok() => service,
        _ => name,
    }
}

/// Returns the listener of a name.
pub(super) fn listener(name: &str) -> Listener {
    let service = service_of(name);
    let router = HttpFilter {
        name: ROUTER.to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&Router::default()))),
        ..HttpFilter::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: service.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(from_ads()),
            route_config_name: service.to_owned(),
        })),
        http_filters: vec![router],
        ..HttpConnectionManager::default()
    };
    Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(any(&manager)) }),
        ..Listener::default()
    }
}
