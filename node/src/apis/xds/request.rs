//! Requests of xDS clients, with the fields that a node uses.
//!
//! Envoy's own messages have many more, such as the metadata and the extensions of a client. An empty element
//! of such a list has 2 bytes on the wire and 200 in memory, so that one request would take hundreds of
//! megabytes. Fields that are missing here are skipped.
//!
//! Source of the numbers: `envoy/service/discovery/v3/discovery.proto` and `envoy/config/core/v3/base.proto`.

use std::collections::HashMap;

/// `envoy.service.discovery.v3.DiscoveryRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DiscoveryRequest {
    #[prost(string, tag = "1")]
    pub(crate) version_info: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) node: Option<Node>,
    #[prost(string, repeated, tag = "3")]
    pub(crate) resource_names: Vec<String>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) response_nonce: String,
    #[prost(message, optional, tag = "6")]
    pub(crate) error_detail: Option<ErrorDetail>,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DeltaDiscoveryRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) node: Option<Node>,
    #[prost(string, tag = "2")]
    pub(crate) type_url: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) resource_names_subscribe: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub(crate) resource_names_unsubscribe: Vec<String>,
    #[prost(map = "string, string", tag = "5")]
    pub(crate) initial_resource_versions: HashMap<String, String>,
    #[prost(string, tag = "6")]
    pub(crate) response_nonce: String,
    #[prost(message, optional, tag = "7")]
    pub(crate) error_detail: Option<ErrorDetail>,
}

/// `envoy.config.core.v3.Node`: the client.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Node {
    #[prost(message, optional, tag = "4")]
    pub(crate) locality: Option<Locality>,
}

/// `envoy.config.core.v3.Locality`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Locality {
    #[prost(string, tag = "2")]
    pub(crate) zone: String,
}

/// `google.rpc.Status`: why a client refuses a response.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct ErrorDetail {
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::{
        envoy::{
            config::core::v3 as core,
            service::discovery::v3::{self as discovery, ResourceLocator},
        },
        google::rpc::Status,
    };
    use prost::Message as _;

    use super::*;

    #[test]
    fn the_fields_of_envoys_requests_are_found_and_others_are_skipped() {
        let node = core::Node {
            id: "id".into(),
            locality: Some(core::Locality { region: "r".into(), zone: "z".into(), sub_zone: "s".into() }),
            extensions: vec![core::Extension::default(); 3],
            ..core::Node::default()
        };
        let error_detail = Some(Status { code: 3, message: "bad".into(), ..Status::default() });
        let read = DiscoveryRequest::decode(
            &*discovery::DiscoveryRequest {
                version_info: "1".into(),
                node: Some(node.clone()),
                resource_names: vec!["a".into(), "b".into()],
                resource_locators: vec![ResourceLocator::default(); 3],
                type_url: "t".into(),
                response_nonce: "2".into(),
                error_detail: error_detail.clone(),
            }
            .encode_to_vec(),
        );
        let node_read = Some(Node { locality: Some(Locality { zone: "z".into() }) });
        let error_read = Some(ErrorDetail { message: "bad".into() });
        let expected = DiscoveryRequest {
            version_info: "1".into(),
            node: node_read.clone(),
            resource_names: vec!["a".into(), "b".into()],
            type_url: "t".into(),
            response_nonce: "2".into(),
            error_detail: error_read.clone(),
        };
        assert_eq!(read, Ok(expected));
        let versions = HashMap::from([("a".to_owned(), "1".to_owned())]);
        let read = DeltaDiscoveryRequest::decode(
            &*discovery::DeltaDiscoveryRequest {
                node: Some(node),
                type_url: "t".into(),
                resource_names_subscribe: vec!["a".into()],
                resource_names_unsubscribe: vec!["b".into()],
                initial_resource_versions: versions.clone(),
                response_nonce: "2".into(),
                error_detail,
                ..discovery::DeltaDiscoveryRequest::default()
            }
            .encode_to_vec(),
        );
        let expected = DeltaDiscoveryRequest {
            node: node_read,
            type_url: "t".into(),
            resource_names_subscribe: vec!["a".into()],
            resource_names_unsubscribe: vec!["b".into()],
            initial_resource_versions: versions,
            response_nonce: "2".into(),
            error_detail: error_read,
        };
        assert_eq!(read, Ok(expected));
    }
}
