//! First answers of a node that knows no peer at its start, and finds a cluster a moment later.

use std::net::SocketAddr;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use hearsay_tests::{
    Cluster as _,
    registry::{all_have, cluster, plain, register},
    scenario,
    xds::{CLUSTER, Connection, STATE_OF_THE_WORLD, WINDOW},
};
use prost::Message as _;
use serde_json::json;

use super::S;

/// Opens a stream as soon as the node listens, and returns the number of clusters in its first response.
async fn first_clusters(grpc: SocketAddr) -> usize {
    let connection = loop {
        match Connection::open(grpc, WINDOW).await {
            Ok(connection) => break connection,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let request = DiscoveryRequest { type_url: CLUSTER.into(), ..DiscoveryRequest::default() };
    let mut stream = connection.stream(STATE_OF_THE_WORLD, &request).await.unwrap();
    DiscoveryResponse::decode(stream.next().await.unwrap()).unwrap().resources.len()
}

#[test]
fn a_node_without_memory_tells_no_client_that_there_is_nothing() {
    const TEST: &str = "start::a_node_without_memory_tells_no_client_that_there_is_nothing";
    scenario(TEST, |lab| {
        let (hosts, nodes) = cluster(lab, 2, &[]);
        register(&hosts[1], &json!({ "name": "web", "address": hosts[1].ip, "port": 9001 }));
        lab.until(10 * S, "all nodes list it", |lab| all_have(lab, &nodes, "web", 1));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let first = lab.host();
        let grpc = format!("{}:7700", first.ip).parse().unwrap();
        let node = plain(lab, &first, 2, &[]);
        let first_answer = async { tokio::time::timeout(30 * S, first_clusters(grpc)).await };
        let clusters = runtime.block_on(first_answer);
        assert_eq!(clusters.expect("an answer in time"), 1);
        // By REST the node answers at once now.
        let answer = first.send(7500, "POST /v3/discovery:clusters", "{}").json();
        assert_eq!(answer["resources"].as_array().map(Vec::len), Some(1), "{answer}");
        assert!(lab.get(node, "/readyz").is_some());
    });
}
