//! `Cluster`: how a client balances the requests to a service, and where it gets the endpoints.

use std::collections::HashMap;

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster,
                circuit_breakers::Thresholds,
                cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy},
            },
            core::v3::{
                AggregatedConfigSource, ApiVersion, ConfigSource, Http2ProtocolOptions,
                config_source::ConfigSourceSpecifier,
            },
        },
        extensions::upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
            },
        },
        r#type::v3::Percent,
    },
    google::protobuf::{Duration, UInt32Value},
};

use super::{encoding::any, endpoint::Traits};

/// Time to connect to an endpoint, in seconds. A retry at another endpoint follows.
pub(super) const CONNECT_TIMEOUT_S: i64 = 1;
/// Name under which Envoy looks for the options of the protocol.
pub(super) const PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Connections, requests and retries of a client to a service at a time. Envoy's defaults (1,024 requests, 3
/// retries) refuse requests after a crash, when many are repeated at once.
pub(super) const CONCURRENCY_MAX: u32 = u32::MAX;

/// Returns the source of resources that come over the same stream.
pub(super) fn from_ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    }
}

/// Returns the cluster of a service.
pub(super) fn cluster(name: &str, traits: Traits) -> Cluster {
    let policy = if traits.is_least_request { LbPolicy::LeastRequest } else { LbPolicy::RoundRobin };
    let protocol = traits.is_http2.then(|| (PROTOCOL_OPTIONS.to_owned(), any(&http2())));
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(from_ads()),
            ..EdsClusterConfig::default()
        }),
        connect_timeout: Some(Duration { seconds: CONNECT_TIMEOUT_S, nanos: 0 }),
        lb_policy: policy.into(),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![thresholds()],
            ..CircuitBreakers::default()
        }),
        common_lb_config: Some(CommonLbConfig {
            // Envoy sends requests to unhealthy endpoints while more than half are unhealthy. Here the table
            // guard keeps the endpoints whose failure is doubtful, so the others have failed.
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            ..CommonLbConfig::default()
        }),
        // An instance that is gone from the table has ended or was deregistered.
        ignore_health_on_host_removal: true,
        typed_extension_protocol_options: protocol.into_iter().collect::<HashMap<_, _>>(),
        ..Cluster::default()
    }
}

fn thresholds() -> Thresholds {
    let unlimited = Some(UInt32Value { value: CONCURRENCY_MAX });
    Thresholds {
        max_connections: unlimited,
        max_pending_requests: unlimited,
        max_requests: unlimited,
        max_retries: unlimited,
        ..Thresholds::default()
    }
}

fn http2() -> HttpProtocolOptions {
    let config = ExplicitHttpConfig {
        protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default())),
    };
    HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(config)),
        ..HttpProtocolOptions::default()
    }
}
