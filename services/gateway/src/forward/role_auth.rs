//! Authorization of requests to built-in roles. The gateway's node decides by its own rule whether the client
//! may make the request, and then signs the request. The role's node accepts the signature in place of the
//! client's proof ([`hearsay_protocol::RequestSignature`]). Instances that are not roles get no signature.
//!
//! The signature covers the body, so the body is buffered before the first attempt.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use hearsay_protocol::NodeId;
use hearsay_services::{
    Host, Problem,
    http::{Effect, UnsignedRequest},
};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header, request::Parts};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::request_body::{RequestBody, Upload};
use crate::refusal::{Reason, Refusal};

/// Largest body that is signed, in bytes; the largest that a node accepts.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Time for a body to arrive; the same as on a node.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of bytes of an oversized body that are read and discarded before the response.
const DISCARD_BYTES_MAX: usize = 4 * BODY_BYTES_MAX;
/// Time for reading and discarding them.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);
/// Memory for all buffered bodies, in bytes; the same as on a node. A request that exceeds it gets 503.
const MEMORY_BYTES: usize = 64 * 1024 * 1024;

/// A buffered body, with a permit for the memory that it uses.
#[derive(Debug)]
pub(crate) struct BufferedBody {
    /// The body.
    pub(crate) bytes: Bytes,
    /// The permit.
    pub(crate) memory: OwnedSemaphorePermit,
}

/// The node's decision whether a client may make a request to a role.
#[derive(Clone, Debug)]
pub(crate) struct Proof {
    effect: Effect,
    /// Whether the role's node requires a member's signature.
    is_signed: bool,
    result: Result<(), Problem>,
}

impl Proof {
    /// Checks the proof for a request with the path that the instance gets.
    ///
    /// # Errors
    /// 401 or 403; the detail says what is missing.
    pub(crate) fn check(&self, method: &Method, path: &str) -> Result<(), Refusal> {
        if let Err(problem) = &self.result {
            return Err((Reason::Unproven, problem.clone()));
        }
        if Effect::of(method, path) == self.effect {
            return Ok(());
        }
        // The tag of the instance turns the read into a write, so a stronger proof of the client would not
        // help.
        let detail = "the tag of the instance strips the path so that a read becomes a write";
        Err((Reason::Unproven, Problem::new(StatusCode::FORBIDDEN, detail)))
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

/// Checks the proof of clients and signs their requests.
pub(crate) struct RoleAuth {
    host: Arc<dyn Host>,
    memory: Arc<Semaphore>,
}

impl fmt::Debug for RoleAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RoleAuth").field("memory", &self.memory.available_permits()).finish_non_exhaustive()
    }
}

impl RoleAuth {
    /// Returns the authorization by this host, which is the gateway's node.
    pub(crate) fn new(host: Arc<dyn Host>) -> Self {
        Self { host, memory: Arc::new(Semaphore::new(MEMORY_BYTES)) }
    }

    /// Returns the gateway's node.
    pub(crate) fn host(&self) -> &dyn Host {
        self.host.as_ref()
    }

    /// Returns the proof of a client for a request. `path` is the path that the role gets.
    pub(crate) fn prove(&self, client: IpAddr, request: &Parts, path: &str) -> Proof {
        let effect = Effect::of(&request.method, path);
        let is_signed = effect.is_write() || self.host.reads_need_proof();
        Proof { effect, is_signed, result: self.host.authenticate(client, request, path, effect) }
    }

    /// Removes the credentials by which a client identifies itself to this node. No instance gets them.
    pub(crate) fn strip_credentials(&self, headers: &mut HeaderMap) {
        if headers.contains_key(header::AUTHORIZATION)
            || headers.contains_key(header::COOKIE)
            || headers.contains_key("x-consul-token")
        {
            self.host.strip_credentials(headers);
        }
    }

    /// Buffers a body. Memory is charged as the bytes arrive, so a large `Content-Length` alone reserves
    /// nothing.
    ///
    /// # Errors
    /// The body is too large, too slow or malformed, or all memory is in use.
    pub(crate) async fn buffer(&self, body: Incoming) -> Result<BufferedBody, Refusal> {
        if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
            // Closing a connection with unread bytes resets it, and the client may miss the response.
            _ = timeout(DISCARD_TIMEOUT, discard(body)).await;
            return Err(too_large());
        }
        let buffered = timeout(BODY_TIMEOUT, self.collect(body)).await;
        buffered.unwrap_or_else(|_| Err(Upload::Stalled.refusal()))
    }

    async fn collect(&self, mut body: Incoming) -> Result<BufferedBody, Refusal> {
        let (mut bytes, mut memory) = (BytesMut::new(), self.charge(0)?);
        while let Some(frame) = body.frame().await {
            // Roles accept no trailers, so they are dropped.
            let Ok(data) = frame.map_err(|_| Upload::Broken.refusal())?.into_data() else { continue };
            if BODY_BYTES_MAX - bytes.len() < data.len() {
                return Err(too_large());
            }
            memory.merge(self.charge(data.len())?);
            bytes.extend_from_slice(&data);
        }
        Ok(BufferedBody { bytes: bytes.freeze(), memory })
    }

    fn charge(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.memory).try_acquire_many_owned(bytes).map_err(|_| {
            let detail = "request bodies use all memory that is set aside for them here; try again";
            (Reason::BodyRoom, Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
        })
    }

    /// Returns the signature of a request to the node of a role, if that node requires one. Also `None` if
    /// the provider table does not list the node.
    pub(crate) fn sign(
        &self,
        proof: &Proof,
        recipient: NodeId,
        request: &Request<RequestBody>,
        body: &[u8],
    ) -> Option<HeaderValue> {
        if !proof.is_signed {
            return None;
        }
        let authority = request.headers().get(header::HOST)?.to_str().ok()?;
        let unsigned = UnsignedRequest {
            method: request.method(),
            authority,
            target: request.uri().path_and_query().map_or("/", |target| target.as_str()),
            headers: request.headers(),
        };
        self.host.sign(recipient, &unsigned, body)
    }
}
