//! A request on its way: what all its attempts have in common, and what each instance is sent of it.

use std::sync::Arc;

use http::{
    HeaderMap, HeaderValue, Method, Uri, Version,
    uri::{PathAndQuery, Scheme},
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    body::{Outgoing, UploadState},
    forward::Present,
    request::{Refusal, rest_of},
    routes::Manner,
    stream::Connection,
    target::Target,
    vouch::Proof,
};

/// A request on its way, as far as all its attempts have it in common.
pub(super) struct Passing<'a> {
    pub(super) method: Method,
    /// Its path, but for the name of a service that it was found by.
    pub(super) whole: PathAndQuery,
    /// What the instance that is asked gets of it, and how many bytes that one has taken off.
    pub(super) path: PathAndQuery,
    pub(super) stripped: usize,
    /// Of its headers, those that go on.
    pub(super) headers: HeaderMap,
    /// What the client's had.
    pub(super) present: Present,
    /// Whether what the gateway says of it is among its headers, because they were given back by an attempt.
    pub(super) has_added: bool,
    pub(super) connection: &'a Connection,
    pub(super) version: Version,
    /// Whom it is for.
    pub(super) authority: Option<HeaderValue>,
    /// What the gateway says of it to the instance that is asked, if that is a role.
    pub(super) forwarded: Option<HeaderValue>,
    /// The name of the service, where it was taken off its path.
    pub(super) name: Option<HeaderValue>,
    pub(super) upgrade: Option<HeaderValue>,
    pub(super) is_grpc: bool,
    /// Whether it may be sent again after it has been sent.
    pub(super) is_repeatable: bool,
    pub(super) body: Outgoing,
    pub(super) upload: Option<Arc<UploadState>>,
    /// Where an instance may be of a built-in role: what the client may write there.
    pub(super) proof: Option<Proof>,
    /// What a body takes that was taken in for that.
    pub(super) _room: Option<OwnedSemaphorePermit>,
    pub(super) started: Instant,
}

impl Passing<'_> {
    /// Whether each attempt gets a copy of the headers: where it may be repeated, and where each is signed anew.
    pub(super) fn keeps_head(&self) -> bool {
        self.is_repeatable || self.proof.is_some()
    }

    /// Takes off the path what this instance wants off.
    pub(super) fn strip(&mut self, manner: &Manner) -> Result<(), Refusal> {
        let stripped = manner.stripped(self.whole.path());
        if stripped != self.stripped {
            self.path = rest_of(&self.whole, stripped)?;
            self.stripped = stripped;
        }
        Ok(())
    }
}

/// The target of the request to an instance.
pub(super) fn uri_of(passing: &Passing<'_>, host: &HeaderValue, target: &Target, http2: bool) -> Option<Uri> {
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = Some(passing.path.clone());
    if http2 {
        parts.scheme = Some(Scheme::HTTP);
        let authority = http::uri::Authority::try_from(host.as_bytes());
        parts.authority = Some(authority.unwrap_or_else(|_| target.authority.clone()));
    }
    Uri::from_parts(parts).ok()
}
