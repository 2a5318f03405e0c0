//! Tests of xDS over gRPC and by REST, with the client that is generated from Envoy's protos.

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DiscoveryRequest,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use futures::channel::mpsc;

use super::*;

const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

async fn client_of(grpc: &Grpc) -> (AggregatedDiscoveryServiceClient<Channel>, std::net::TcpStream) {
    let (channel, socket) = connect(grpc.address).await;
    let origin = format!("http://{}", grpc.address).parse().unwrap();
    (AggregatedDiscoveryServiceClient::with_origin(channel, origin), socket)
}

#[tokio::test]
async fn a_node_that_searches_for_a_first_peer_holds_answers_of_xds() {
    let grpc = Grpc::start().await;
    grpc.server.readiness.send(Readiness::Searching).unwrap();
    assert_eq!(grpc.server.get("/readyz").await.json()["status"], "ready");
    let (mut client, _socket) = client_of(&grpc).await;
    let (mut sender, requests) = mpsc::channel(8);
    sender.try_send(DiscoveryRequest { type_url: CLUSTERS.into(), ..Default::default() }).unwrap();
    let stream = within(client.stream_aggregated_resources(requests)).await;
    let mut whole = stream.unwrap().into_inner();
    let (mut sender, requests) = mpsc::channel(8);
    sender.try_send(DeltaDiscoveryRequest { type_url: CLUSTERS.into(), ..Default::default() }).unwrap();
    let stream = within(client.delta_aggregated_resources(requests)).await;
    let mut delta = stream.unwrap().into_inner();
    let post = "POST /v3/discovery:clusters HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let rest = grpc.server.open(post).await;
    // A list of the table is answered meanwhile, and does not have the service of the peer.
    assert_eq!(grpc.server.get("/services/late").await.status, 404);
    let answer = tokio::spawn(async move { (whole.message().await, delta.message().await) });
    assert!(!answer.is_finished());
    grpc.server.apply([offered(instance(1, "l", "late"))]);
    grpc.server.readiness.send(Readiness::Ready).unwrap();
    let (whole, delta) = within(answer).await.unwrap();
    assert_eq!(whole.unwrap().unwrap().resources.len(), 2);
    assert_eq!(delta.unwrap().unwrap().resources.len(), 2);
    let rest = Reply::read(rest).await.json();
    assert_eq!(rest["resources"].as_array().unwrap().len(), 2, "{rest}");
}
