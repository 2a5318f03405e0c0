//! One xDS stream: passes requests to its [`Session`], and sends responses one at a time, as fast as the
//! client reads them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use envoy_types::pb::envoy::config::core::v3::ControlPlane;
use futures::Stream;
use hearsay_services::{LogLimit, network::Holder};
use prost::Message;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use tonic::{Code, Status, Streaming};

use super::{
    budget::{Budget, Part},
    catalog::Catalog,
    catalog_cache::Shared,
    kind::Kind,
    metrics::XdsMetrics,
    request::Node,
};
use crate::http::{server::stream_limit::StreamPermit, state::AppState};

/// Shortest time between two responses that follow from changes of the table.
const PAUSE: Duration = Duration::from_millis(5);
/// Time for which a response waits for memory.
const MEMORY_WAIT_MAX: Duration = Duration::from_secs(30);
/// Bytes a second of changes to one stream, beyond which it pauses for longer. A client that has all services
/// in one resource would get megabytes for every change.
const BYTES_PER_SECOND: u64 = 20_000_000;
/// A client can refuse each response as often as it likes.
static NACK_LINES: LogLimit = LogLimit::each(Duration::from_secs(1));
/// Characters of a zone. A longer one is no zone of a member.
const ZONE_CHARS_MAX: usize = 128;

/// The state machine of one stream.
pub(super) trait Session: Send + 'static {
    type Request: Message + Default + Send + 'static;
    type Response: Message + Send + 'static;

    /// Handles a request.
    ///
    /// # Errors
    /// The stream ends with this status.
    fn receive(&mut self, request: Self::Request, catalog: &Catalog) -> Result<Received, Status>;

    /// Makes pending what has changed in the catalog since the last call.
    ///
    /// # Errors
    /// The stream ends with this status.
    fn collect(&mut self, catalog: &Catalog) -> Result<(), Status>;

    /// Returns the next response, if one is due.
    fn respond(&mut self, catalog: &Catalog) -> Option<(Kind, Self::Response)>;

    /// Returns the bytes of the names that the stream keeps.
    fn bytes(&self) -> usize;
}

/// Outcome of a request.
pub(super) enum Received {
    /// A subscription or an acknowledgement.
    Accepted,
    /// The client has refused a response (NACK), with this text.
    Refused(Kind, String),
    /// The request answers an earlier response than the last one.
    OldNonce,
    /// A node does not serve resources of this type.
    UnknownType(String),
}

/// Returns the zone that a client states.
pub(super) fn zone_of(node: Option<Node>) -> Option<String> {
    let zone = node?.locality?.zone;
    (zone.chars().count() <= ZONE_CHARS_MAX).then_some(zone)
}

/// Names the node that answers, for people who read a client's state.
pub(super) fn control_plane(catalog: &Catalog) -> ControlPlane {
    ControlPlane { identifier: catalog.me().to_string() }
}

/// Parts that the task of a stream uses.
pub(super) struct StreamContext {
    pub(super) state: Arc<AppState>,
    pub(super) shared: Arc<Shared>,
    /// The catalog's newest version.
    pub(super) newest: watch::Receiver<u64>,
    /// Memory for responses of all streams.
    pub(super) memory: Budget,
    /// Memory for the names that this stream subscribes to.
    pub(super) names: Part,
    /// Host to which the stream is charged.
    pub(super) holder: Holder,
    pub(super) _permit: StreamPermit,
}

/// A response on its way to the client.
struct Outgoing<T> {
    response: Result<T, Status>,
    memory: Option<Part>,
    /// Dropped when the client has read the response.
    read: oneshot::Sender<()>,
}

/// Responses of one stream. The next one is taken when the client has read the last one.
pub(crate) struct Responses<T> {
    receiver: mpsc::Receiver<Outgoing<T>>,
    unread: Option<(Option<Part>, oneshot::Sender<()>)>,
}

impl<T> Stream for Responses<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.unread = None;
        self.receiver.poll_recv(cx).map(|outgoing| {
            let Outgoing { response, memory, read } = outgoing?;
            self.unread = Some((memory, read));
            Some(response)
        })
    }
}

/// Starts the task of a stream and returns its responses.
pub(super) fn start<S: Session>(
    session: S,
    requests: Streaming<S::Request>,
    context: StreamContext,
) -> Responses<S::Response> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let metrics = Arc::clone(&context.state.metrics.xds);
        let _open = OpenStream::count(Arc::clone(&metrics));
        let mut task = StreamTask { session, context, sender, resume_at: Instant::now() };
        if let Err(status) = task.run(requests).await {
            metrics.count_ended(reason(&status));
            let (read, _) = oneshot::channel();
            // The client may be gone.
            _ = task.sender.try_send(Outgoing { response: Err(status), memory: None, read });
        }
    });
    Responses { receiver, unread: None }
}

/// Returns the metric label for the end of a stream.
fn reason(status: &Status) -> &'static str {
    match status.code() {
        // A message that is too long is out of range.
        Code::ResourceExhausted | Code::OutOfRange => "limit",
        Code::Aborted => "lag",
        Code::DeadlineExceeded => "slow",
        Code::Unavailable => "leaving",
        // Bytes that are no message are an internal error of tonic.
        Code::InvalidArgument | Code::Internal => "malformed",
        _ => "broken",
    }
}

/// Counts a stream until dropped.
struct OpenStream(Arc<XdsMetrics>);

impl OpenStream {
    fn count(metrics: Arc<XdsMetrics>) -> Self {
        metrics.streams.inc();
        Self(metrics)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.dec();
    }
}

struct StreamTask<S: Session> {
    session: S,
    context: StreamContext,
    sender: mpsc::Sender<Outgoing<S::Response>>,
    /// When the next response may follow from a change of the table.
    resume_at: Instant,
}

impl<S: Session> StreamTask<S> {
    /// Serves the stream until the client ends it.
    async fn run(&mut self, mut requests: Streaming<S::Request>) -> Result<(), Status> {
        // A node that has just started would list few services, and clients would drop the others.
        self.context.state.settled().await;
        let state = Arc::clone(&self.context.state);
        // The catalog may be as of the time when the client connected, with nothing in the table.
        self.context.shared.refresh();
        let closed = self.sender.clone();
        loop {
            tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.receive(request)?,
                    // The client has ended the stream, or its connection.
                    Ok(None) => return Ok(()),
                    Err(status) if matches!(status.code(), Code::Cancelled | Code::Unknown) => return Ok(()),
                    Err(status) => return Err(status),
                },
                changed = self.context.newest.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    sleep_until(self.resume_at).await;
                    self.context.newest.mark_unchanged();
                }
                () = closed.closed() => return Ok(()),
                () = state.leaving() => {
                    return Err(leaving());
                }
            }
            // What changes from now on waits for the next turn, so that requests are read in between.
            self.session.collect(&self.context.shared.catalog())?;
            while let Some((kind, response)) = self.next_response() {
                self.send(kind, response).await?;
            }
        }
    }

    fn receive(&mut self, request: S::Request) -> Result<(), Status> {
        let received = self.session.receive(request, &self.context.shared.catalog())?;
        let metrics = &self.context.state.metrics.xds;
        match received {
            Received::Accepted => (),
            Received::Refused(kind, error) => {
                metrics.count_nack(kind);
                if let Some(suppressed) = NACK_LINES.pass(std::time::Instant::now()) {
                    let error: String = error.chars().take(512).collect();
                    let kind = kind.label();
                    tracing::warn!(
                        kind,
                        error,
                        suppressed,
                        "an xDS client refuses a response and keeps what it had"
                    );
                }
            }
            Received::OldNonce => metrics.count_ignored("old_nonce"),
            Received::UnknownType(url) => {
                metrics.count_ignored("unknown_type");
                let url: String = url.chars().take(128).collect();
                tracing::debug!(url, "an xDS client asks for resources of a type that a node does not serve");
            }
        }
        match self.context.names.set(self.session.bytes()) {
            true => Ok(()),
            false => Err(Status::resource_exhausted(
                "the clients of this node subscribe to too many names; ask another node",
            )),
        }
    }

    fn next_response(&mut self) -> Option<(Kind, S::Response)> {
        self.session.respond(&self.context.shared.catalog())
    }

    /// Waits until other clients have read so much that there is memory for a response.
    async fn await_memory(&mut self, bytes: usize) -> Result<Part, Status> {
        let state = &self.context.state;
        state.metrics.xds.count_memory_wait();
        tokio::select! {
            memory = self.context.memory.take(self.context.holder, bytes) => Ok(memory),
            () = self.sender.closed() => Err(Status::cancelled("the client is gone")),
            () = state.leaving() => Err(leaving()),
            () = sleep(MEMORY_WAIT_MAX) => {
                Err(Status::resource_exhausted("this node has no memory left for responses; ask another node"))
            }
        }
    }

    /// Sends a response and waits until the client has read it.
    async fn send(&mut self, kind: Kind, response: S::Response) -> Result<(), Status> {
        let bytes = response.encoded_len();
        let memory = match self.context.memory.try_take(self.context.holder, bytes) {
            Some(memory) => memory,
            None => self.await_memory(bytes).await?,
        };
        let (read, was_read) = oneshot::channel();
        if self.sender.send(Outgoing { response: Ok(response), memory: Some(memory), read }).await.is_err() {
            return Err(Status::cancelled("the client is gone"));
        }
        self.context.state.metrics.xds.count_response(kind, bytes);
        let pause = Duration::from_micros((bytes as u64).saturating_mul(1_000_000) / BYTES_PER_SECOND);
        self.resume_at = Instant::now() + pause.max(PAUSE);
        // The server resets the stream of a client that does not read, which closes the channel.
        _ = was_read.await;
        Ok(())
    }
}

/// Returns the status with which streams end when the node leaves.
fn leaving() -> Status {
    Status::unavailable("this node is leaving; ask another node")
}

/// Memory for the names that all streams subscribe to. 200 streams for the endpoints of 10,000 services take
/// a quarter.
pub(super) const NAMES_BYTES: usize = 256 * 1024 * 1024;
/// Memory for responses that clients have not read yet.
pub(super) const MEMORY_BYTES: usize = 64 * 1024 * 1024;
