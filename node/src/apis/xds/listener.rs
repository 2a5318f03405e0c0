//! `Listener`: what a gRPC client that asks for `xds:///web` resolves first. It leads to the routes of the
//! service.

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

/// Returns the listener of a service.
pub(super) fn listener(name: &str) -> Listener {
    let router = HttpFilter {
        name: ROUTER.to_owned(),
        config_type: Some(ConfigType::TypedConfig(any(&Router::default()))),
        ..HttpFilter::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: name.to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(from_ads()),
            route_config_name: name.to_owned(),
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
