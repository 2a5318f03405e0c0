//! [`InFlightRequest`]: a client's request on its way to an endpoint. Builds the message for each attempt
//! (path, headers, body, signature) from the state that all attempts share.

use std::sync::Arc;

use hearsay_services::Host;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    admission::strip_prefix,
    headers::{self, HeaderSet, RequestOrigin, ViaName},
    request_body::{RequestBody, UploadState},
    role_auth::{Proof, RoleAuth},
};
use crate::{
    refusal::Refusal, routing::routes::RouteOptions, server::connection::Connection,
    upstream::endpoint::Endpoint,
};

/// The header with a node's signature.
const SIGNATURE: HeaderName = HeaderName::from_static(hearsay_protocol::SIGNATURE_HEADER);

/// The state that all attempts of a request share.
pub(crate) struct InFlightRequest<'a> {
    pub(crate) method: Method,
    /// The path and query. If the route was found by the name of a service, that name is removed.
    pub(crate) full_path: PathAndQuery,
    /// `full_path` without the prefix that the current endpoint's options strip, and the length of that
    /// prefix.
    pub(crate) path: PathAndQuery,
    pub(crate) stripped: usize,
    /// The headers to forward.
    pub(crate) headers: HeaderMap,
    /// Which special headers the client sent.
    pub(crate) present: HeaderSet,
    /// Whether `headers` already includes the gateway's headers, because a failed attempt returned them.
    pub(crate) has_added: bool,
    pub(crate) connection: &'a Connection,
    pub(crate) version: Version,
    /// The authority that the client named.
    pub(crate) authority: Option<HeaderValue>,
    /// `Forwarded`, if the current endpoint is a role.
    pub(crate) forwarded: Option<HeaderValue>,
    /// `/{service}` as the request spells it, if the route was found by the name of a service.
    pub(crate) service_prefix: Option<HeaderValue>,
    pub(crate) upgrade: Option<HeaderValue>,
    pub(crate) is_grpc: bool,
    /// Whether the request may be sent again after it was sent.
    pub(crate) is_repeatable: bool,
    pub(crate) body: RequestBody,
    pub(crate) upload: Option<Arc<UploadState>>,
    /// The client's proof, if the route has instances of built-in roles.
    pub(crate) proof: Option<Proof>,
    /// The memory charged for a body that was buffered to be signed.
    pub(crate) _memory: Option<OwnedSemaphorePermit>,
    pub(crate) started: Instant,
}

impl InFlightRequest<'_> {
    /// Strips the path for an endpoint with these options.
    ///
    /// # Errors
    /// The rest is not a path.
    pub(crate) fn strip(&mut self, options: &RouteOptions) -> Result<(), Refusal> {
        let stripped = options.stripped(self.full_path.path());
        if stripped != self.stripped {
            self.path = strip_prefix(&self.full_path, stripped)?;
            self.stripped = stripped;
        }
        Ok(())
    }

    /// Sets `Forwarded` for an endpoint that is a role.
    ///
    /// # Errors
    /// 421: the authority is none of the names of the gateway's node.
    pub(crate) fn set_forwarded(&mut self, endpoint: &Endpoint, host: &dyn Host) -> Result<(), Refusal> {
        let Connection { forwarded, client, .. } = self.connection;
        let authority = self.authority.as_ref().filter(|_| endpoint.is_role());
        self.forwarded = authority.map(|authority| forwarded.get(host, client, authority)).transpose()?;
        Ok(())
    }

    /// Whether the endpoint gets the request over HTTP/2. A node speaks only HTTP/1, also for gRPC content
    /// types.
    pub(crate) fn wants_http2(&self, endpoint: &Endpoint, options: &RouteOptions) -> bool {
        let is_grpc = self.is_grpc && !endpoint.is_role();
        self.upgrade.is_none() && (is_grpc || endpoint.h2c || options.http2)
    }

    /// Returns the proof, if the endpoint is a role.
    pub(crate) fn proof_for(&self, endpoint: &Endpoint) -> Option<&Proof> {
        self.proof.as_ref().filter(|_| endpoint.is_role())
    }

    /// Returns the message for an endpoint; `None` if its URI cannot be written.
    pub(crate) fn message(
        &mut self,
        endpoint: &Endpoint,
        options: &RouteOptions,
        via: &ViaName,
        auth: &RoleAuth,
    ) -> Option<Request<RequestBody>> {
        let version = if self.wants_http2(endpoint, options) { Version::HTTP_2 } else { Version::HTTP_11 };
        // A role reads the client's authority in `Forwarded`, which is signed.
        let has_own_host = options.own_host || endpoint.is_role();
        let authority = self.authority.as_ref().filter(|_| !has_own_host);
        let host = authority.unwrap_or(&endpoint.host).clone();
        let uri = self.uri(version, &host, endpoint)?;
        let mut request = Request::new(match &mut self.body {
            RequestBody::Buffered(bytes) => RequestBody::Buffered(bytes.clone()),
            body => std::mem::replace(body, RequestBody::Empty),
        });
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri;
        *request.version_mut() = version;
        *request.headers_mut() = self.message_headers(options, version, &host, via);
        if let Some(proof) = self.proof_for(endpoint) {
            let body = if let RequestBody::Buffered(bytes) = &self.body { bytes.as_ref() } else { &[] };
            if let Some(signature) = auth.sign(proof, endpoint.node_id, &request, body) {
                request.headers_mut().insert(SIGNATURE, signature);
            }
        }
        Some(request)
    }

    /// Takes back a message that was not sent.
    pub(crate) fn take_back(&mut self, message: Request<RequestBody>) {
        let (head, body) = message.into_parts();
        if !self.keeps_headers() {
            (self.headers, self.has_added) = (head.headers, true);
        }
        self.body = body;
    }

    /// Whether each attempt gets a copy of the headers.
    fn keeps_headers(&self) -> bool {
        self.is_repeatable || self.proof.is_some()
    }

    fn message_headers(
        &mut self,
        options: &RouteOptions,
        version: Version,
        host: &HeaderValue,
        via: &ViaName,
    ) -> HeaderMap {
        let mut headers = match self.keeps_headers() {
            true => headers::copy(&self.headers),
            false => std::mem::take(&mut self.headers),
        };
        let prefix = self.service_prefix.as_ref().or(options.prefix.as_ref());
        if self.has_added {
            headers::reset_prefix(&mut headers, prefix);
        } else {
            let (client, authority) = (&self.connection.client, self.authority.as_ref());
            let origin = RequestOrigin { client, version: self.version, authority, prefix };
            headers::add(&mut headers, self.present, &origin, via);
        }
        if let Some(forwarded) = &self.forwarded {
            headers.insert(header::FORWARDED, forwarded.clone());
        }
        headers::adapt(&mut headers, self.present, version, host);
        if let Some(upgrade) = &self.upgrade {
            headers.insert(header::UPGRADE, upgrade.clone());
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        headers
    }

    fn uri(&self, version: Version, host: &HeaderValue, endpoint: &Endpoint) -> Option<Uri> {
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = Some(self.path.clone());
        if version == Version::HTTP_2 {
            parts.scheme = Some(Scheme::HTTP);
            let authority = Authority::try_from(host.as_bytes());
            parts.authority = Some(authority.unwrap_or_else(|_| endpoint.authority.clone()));
        }
        Uri::from_parts(parts).ok()
    }
}
