//! Requests to instances of built-in roles: what a client may write is decided here, by the rule of this gateway's own node, and then the request is
//! signed. Its node takes the signature for the client's proof ([`hearsay_protocol::signed_request`]). Instances that are no roles get no signature.
//!
//! A signature covers the body, so the body of such a request is taken in whole before the first attempt.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{body::Upload, counters::Reason, request::Refusal, words::bad_upload};
use crate::{Host, Problem, prefixes::is_writing_get, signing};

/// The largest body that is signed: what a node takes.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Time for a body. As a node grants.
const BODY_MAX: Duration = Duration::from_secs(10);
/// Of a body that is too large, so much is taken in and thrown away.
const DISCARD_BYTES_MAX: usize = 4 * BODY_BYTES_MAX;
/// For so long, at most.
const DISCARD_FOR: Duration = Duration::from_secs(2);
/// Bytes that the bodies of all these requests take together; a request beyond is told 503. As a node grants them.
const ROOM_BYTES: usize = 64 * 1024 * 1024;
/// How long a node that does not know this one yet, or not any more, is asked again. Gossip takes milliseconds, a restart a second.
pub const RETRY_FOR: Duration = Duration::from_secs(5);
/// How long to wait before each repetition.
pub const RETRY_EVERY: Duration = Duration::from_millis(200);

/// A body, with the room that it takes.
#[derive(Debug)]
pub struct Whole {
    /// The body.
    pub bytes: Bytes,
    /// Its room.
    pub room: OwnedSemaphorePermit,
}

/// Whether a client may write to roles.
#[derive(Clone, Debug)]
pub struct Proof(Result<(), Problem>);

impl Proof {
    /// Whether this request changes something, so that its instance wants a proof.
    pub fn is_write(method: &Method, path: &str) -> bool {
        !method.is_safe() || *method != Method::OPTIONS && is_writing_get(path)
    }

    /// Whether it may make this request.
    ///
    /// # Errors
    /// 401, with what is missing.
    pub fn check(&self, method: &Method, path: &str) -> Result<(), Refusal> {
        match &self.0 {
            Err(problem) if Self::is_write(method, path) => Err((Reason::Unproven, problem.clone())),
            _ => Ok(()),
        }
    }
}

fn too_large() -> Refusal {
    let detail = format!("the body is larger than {BODY_BYTES_MAX} bytes; send less at a time");
    (Reason::BodySize, Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail))
}

async fn discard(mut body: Incoming) {
    let mut left = DISCARD_BYTES_MAX;
    while left > 0
        && let Some(Ok(frame)) = body.frame().await
    {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
    }
}

/// Speaks for clients.
pub struct Vouching {
    host: Arc<dyn Host>,
    room: Arc<Semaphore>,
}

impl std::fmt::Debug for Vouching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vouching").field("room", &self.room.available_permits()).finish_non_exhaustive()
    }
}

impl Vouching {
    /// As the node of this host.
    pub fn new(host: Arc<dyn Host>) -> Self {
        Self { host, room: Arc::new(Semaphore::new(ROOM_BYTES)) }
    }

    /// What a client may do that asks from this address with these headers. Whether that is needed shows once the instance is known.
    pub fn prove(&self, client: IpAddr, method: &Method, headers: &HeaderMap) -> Proof {
        Proof(self.host.authenticate(client, headers, method.is_safe()))
    }

    /// Takes off the headers of a request by which its client proves to this node who it is: they are for nobody else.
    pub fn strip(&self, headers: &mut HeaderMap) {
        if headers.contains_key(header::AUTHORIZATION)
            || headers.contains_key(header::COOKIE)
            || headers.contains_key("x-consul-token")
        {
            self.host.strip_credentials(headers);
        }
    }

    /// Takes in a body. Its memory is charged as it comes, so that announcing a large one costs the others nothing.
    ///
    /// # Errors
    /// It is too large, too slow or broken, or there is no room.
    pub async fn take(&self, body: Incoming) -> Result<Whole, Refusal> {
        if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
            // A connection that is closed with bytes unread is reset, and the client may not see the answer.
            _ = tokio::time::timeout(DISCARD_FOR, discard(body)).await;
            return Err(too_large());
        }
        let taken = tokio::time::timeout(BODY_MAX, self.collect(body)).await;
        taken.unwrap_or_else(|_| Err(bad_upload(Upload::Stalled)))
    }

    async fn collect(&self, mut body: Incoming) -> Result<Whole, Refusal> {
        let (mut bytes, mut room) = (BytesMut::new(), self.charge(0)?);
        while let Some(frame) = body.frame().await {
            // Trailers mean nothing to a role.
            let Ok(data) = frame.map_err(|_| bad_upload(Upload::Broken))?.into_data() else { continue };
            if BODY_BYTES_MAX - bytes.len() < data.len() {
                return Err(too_large());
            }
            room.merge(self.charge(data.len())?);
            bytes.extend_from_slice(&data);
        }
        Ok(Whole { bytes: bytes.freeze(), room })
    }

    fn charge(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.room).try_acquire_many_owned(bytes).map_err(|_| {
            let detail = "too many bodies are taken in here; try again";
            (Reason::BodyRoom, Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
        })
    }

    /// Signs a request to the node of a role; without a signature where the table does not list the node.
    pub fn sign(
        &self,
        recipient: hearsay_protocol::NodeId,
        request: &http::Request<super::body::Outgoing>,
        body: &[u8],
    ) -> Option<http::HeaderValue> {
        let authority = request.headers().get(header::HOST)?.to_str().ok()?;
        let unsigned = signing::Unsigned {
            method: request.method(),
            authority,
            target: request.uri().path_and_query().map_or("/", |target| target.as_str()),
            headers: request.headers(),
        };
        self.host.sign(recipient, &unsigned, body)
    }
}
