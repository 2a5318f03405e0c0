//! Client of xDS over HTTP/2 without a gRPC library: [`Connection`] and its streams ([`RawStream`]), on which
//! a test sends any bytes. A message of gRPC has a prefix of five bytes: a flag, and the length.

use std::{fmt, net::SocketAddr};

use anyhow::{Result, bail};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    client::{Builder, SendRequest},
};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::net::TcpStream;

/// Method of the protocol that states all names and whole lists.
pub const STATE_OF_THE_WORLD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
/// Method of the protocol that states changes.
pub const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// Type of clusters.
pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Type of the endpoints of a service.
pub const ENDPOINTS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Flow-control window that holds all responses of a test.
pub const WINDOW: u32 = 1 << 30;
/// Bytes before a message.
pub const PREFIX_BYTES: usize = 5;

/// A connection of HTTP/2. It ends with its streams.
#[derive(Clone)]
pub struct Connection {
    client: SendRequest<Bytes>,
    to: SocketAddr,
}

impl Connection {
    /// Connects. `window`: bytes that the node may send on a stream before the client has read them.
    ///
    /// # Errors
    /// The connection fails.
    pub async fn open(to: SocketAddr, window: u32) -> Result<Self> {
        let connection = TcpStream::connect(to).await?;
        connection.set_nodelay(true)?;
        let mut builder = Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(WINDOW);
        let (client, connection) = builder.handshake(connection).await?;
        tokio::spawn(connection);
        Ok(Self { client, to })
    }

    /// Opens a stream of a method, and sends a first message.
    ///
    /// # Errors
    /// The connection has ended, or the node refuses the stream.
    pub async fn stream(&self, method: &str, first: &impl Message) -> Result<RawStream> {
        let request = Request::post(format!("http://{}{method}", self.to))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(())?;
        let (response, mut requests) = self.client.clone().ready().await?.send_request(request, false)?;
        requests.send_data(prefixed(first), false)?;
        let response = response.await?;
        if let Some(ended) = Ended::read(response.headers()) {
            bail!("the node refuses the stream: {ended}");
        }
        Ok(RawStream { requests, responses: response.into_body(), buffer: BytesMut::new() })
    }
}

/// A stream of messages in both directions.
pub struct RawStream {
    requests: SendStream<Bytes>,
    responses: RecvStream,
    buffer: BytesMut,
}

impl RawStream {
    /// Sends a message.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn send(&mut self, message: &impl Message) -> Result<()> {
        self.send_bytes(prefixed(message))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn send_bytes(&mut self, bytes: Bytes) -> Result<()> {
        Ok(self.requests.send_data(bytes, false)?)
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// The stream has ended.
    pub async fn next(&mut self) -> Result<Bytes, Ended> {
        loop {
            if let Some(message) = take_message(&mut self.buffer) {
                return Ok(message);
            }
            let Some(data) = self.responses.data().await else {
                let trailers = self.responses.trailers().await.map_err(Ended::broken)?.unwrap_or_default();
                let without = Ended { code: None, message: "no status".into() };
                return Err(Ended::read(&trailers).unwrap_or(without));
            };
            let data = data.map_err(Ended::broken)?;
            self.responses.flow_control().release_capacity(data.len()).map_err(Ended::broken)?;
            self.buffer.extend_from_slice(&data);
        }
    }
}

/// End of a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Status code of gRPC; `None`: the stream or its connection broke.
    pub code: Option<u32>,
    /// Text of the status, or why the connection broke.
    pub message: String,
}

impl Ended {
    fn read(headers: &HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let code = text("grpc-status")?.parse().ok();
        Some(Self { code, message: text("grpc-message").unwrap_or_default().into() })
    }

    fn broken(error: h2::Error) -> Self {
        Self { code: None, message: error.to_string() }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the stream ended: {:?} {}", self.code, self.message)
    }
}

impl std::error::Error for Ended {}

/// Returns a message with its prefix.
pub fn prefixed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + message.encoded_len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes.freeze()
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
