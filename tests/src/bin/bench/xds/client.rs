//! Client of one delta stream of aggregated discovery, over HTTP/2 without a gRPC library: a message has a
//! prefix of five bytes. It acknowledges every response.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use envoy_types::pb::envoy::{
    config::{core::v3::Node, endpoint::v3::ClusterLoadAssignment},
    service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};
use h2::{RecvStream, SendStream};
use http::Request;
use prost::Message as _;
use tokio::{net::TcpStream, time::timeout};

pub(super) const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(super) const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Time within which a response must come that is due.
pub(super) const BOUND: Duration = Duration::from_secs(60);
/// Flow-control window: more than all responses of the start.
const WINDOW: u32 = 1 << 30;
/// Bytes before a message: a flag, and the length.
const PREFIX_BYTES: usize = 5;

/// A delta stream on a connection of its own.
pub(super) struct Stream {
    requests: SendStream<Bytes>,
    responses: RecvStream,
    buffer: BytesMut,
}

/// A response, and its length on the wire, without the heads of frames.
pub(super) struct Received {
    pub(super) response: DeltaDiscoveryResponse,
    pub(super) bytes: usize,
}

impl Received {
    /// Returns the assignments in the response.
    pub(super) fn assignments(&self) -> impl Iterator<Item = ClusterLoadAssignment> + '_ {
        let is_assignment = self.response.type_url == ENDPOINTS;
        let resources = self.response.resources.iter().filter(move |_| is_assignment);
        resources.filter_map(|it| ClusterLoadAssignment::decode(it.resource.as_ref()?.value.as_slice()).ok())
    }
}

/// Whether an endpoint of a service has this weight.
pub(super) fn has_weight(assignment: &ClusterLoadAssignment, service: &str, weight: u32) -> bool {
    let mut endpoints = assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
    assignment.cluster_name == service
        && endpoints.any(|it| it.load_balancing_weight.is_some_and(|found| found.value == weight))
}

impl Stream {
    /// Connects, and subscribes to all clusters.
    ///
    /// # Errors
    /// The connection fails, or the node refuses the stream.
    pub(super) async fn open(to: SocketAddr) -> Result<Self> {
        let connection = TcpStream::connect(to).await?;
        connection.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (client, connection) = builder.handshake(connection).await?;
        // The connection ends with its stream.
        tokio::spawn(connection);
        let request = Request::post(format!("http://{to}{METHOD}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(())?;
        let (response, mut requests) = client.ready().await?.send_request(request, false)?;
        let node = Node { id: "bench".into(), ..Node::default() };
        let wildcard = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: CLUSTER.into(),
            ..DeltaDiscoveryRequest::default()
        };
        send(&mut requests, &wildcard)?;
        let response = timeout(BOUND, response).await??;
        if let Some(status) = response.headers().get("grpc-status") {
            bail!("the node refuses the stream: {status:?} {:?}", response.headers().get("grpc-message"));
        }
        Ok(Self { requests, responses: response.into_body(), buffer: BytesMut::new() })
    }

    /// Subscribes to the endpoints of services.
    ///
    /// # Errors
    /// The stream has ended.
    pub(super) fn subscribe(&mut self, names: Vec<String>) -> Result<()> {
        let request = DeltaDiscoveryRequest {
            type_url: ENDPOINTS.into(),
            resource_names_subscribe: names,
            ..DeltaDiscoveryRequest::default()
        };
        send(&mut self.requests, &request)
    }

    /// Waits for the next response, and acknowledges it.
    ///
    /// # Errors
    /// The stream has ended.
    pub(super) async fn next(&mut self) -> Result<Received> {
        loop {
            if let Some(message) = take_message(&mut self.buffer) {
                let response = DeltaDiscoveryResponse::decode(message.as_ref())?;
                let acknowledgement = DeltaDiscoveryRequest {
                    type_url: response.type_url.clone(),
                    response_nonce: response.nonce.clone(),
                    ..DeltaDiscoveryRequest::default()
                };
                send(&mut self.requests, &acknowledgement)?;
                return Ok(Received { response, bytes: PREFIX_BYTES + message.len() });
            }
            let Some(data) = self.responses.data().await else {
                let trailers = self.responses.trailers().await?.unwrap_or_default();
                bail!(
                    "the stream ended: {:?} {:?}",
                    trailers.get("grpc-status"),
                    trailers.get("grpc-message")
                );
            };
            let data = data?;
            self.responses.flow_control().release_capacity(data.len())?;
            self.buffer.extend_from_slice(&data);
        }
    }

    /// Waits until this many resources of a type have come. Returns their names and all bytes.
    ///
    /// # Errors
    /// The stream has ended, or the resources do not come in time.
    pub(super) async fn until_has(&mut self, type_url: &str, count: usize) -> Result<(Vec<String>, usize)> {
        let (mut names, mut bytes) = (BTreeSet::new(), 0);
        while names.len() < count {
            let received = timeout(BOUND, self.next()).await.context("no response")??;
            ensure!(received.response.type_url == type_url, "a response of another type");
            bytes += received.bytes;
            names.extend(received.response.resources.into_iter().map(|resource| resource.name));
        }
        Ok((names.into_iter().collect(), bytes))
    }
}

fn send(requests: &mut SendStream<Bytes>, message: &DeltaDiscoveryRequest) -> Result<()> {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length)?);
    message.encode(&mut bytes)?;
    Ok(requests.send_data(bytes.freeze(), false)?)
}

/// Takes the first message from received bytes, if it is complete.
fn take_message(buffer: &mut BytesMut) -> Option<Bytes> {
    let head: [u8; PREFIX_BYTES] = buffer.get(..PREFIX_BYTES)?.try_into().ok()?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if buffer.len() < PREFIX_BYTES + length {
        return None;
    }
    Some(buffer.split_to(PREFIX_BYTES + length).freeze().slice(PREFIX_BYTES..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_when_it_is_complete() {
        let mut buffer = BytesMut::from(&[0, 0, 0, 0, 2, 7][..]);
        assert_eq!(take_message(&mut buffer), None);
        buffer.extend_from_slice(&[8, 0]);
        assert_eq!(take_message(&mut buffer).unwrap().as_ref(), [7, 8]);
        assert_eq!(buffer.as_ref(), [0]);
    }
}
