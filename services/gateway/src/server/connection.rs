//! [`Connection`]: state of a client connection that its byte stream and its requests share: the client and
//! its share of the limits, message framing (ended bodies, unwritten response heads), and activity.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
};

use hearsay_services::network::{self, Activity, Share};

use crate::forward::{forwarded::ForwardedCache, headers::Client};

/// The state of a client connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The client.
    pub(crate) client: Client,
    /// The share of the client's host in the connections and in the requests in flight.
    pub(crate) share: Share,
    /// The `Forwarded` header of its requests.
    pub(crate) forwarded: ForwardedCache,
    /// Whether a request head had both `Content-Length` and `Transfer-Encoding`.
    has_both_lengths: AtomicBool,
    /// Whether a request body has ended since the last [`Self::take_ended_body`].
    has_ended_body: AtomicBool,
    activity: Arc<Activity>,
    /// Announced responses whose heads are not written yet. If there is none, an HTTP/1 head that hyper
    /// writes is an error of hyper.
    unwritten: AtomicUsize,
}

impl Connection {
    /// Returns the state of a new connection.
    pub(crate) fn new(client: Client, share: Share, activity: Arc<Activity>) -> Self {
        Self {
            client,
            share,
            forwarded: ForwardedCache::default(),
            has_both_lengths: AtomicBool::new(false),
            has_ended_body: AtomicBool::new(false),
            activity,
            unwritten: AtomicUsize::new(0),
        }
    }

    /// Whether a head had both `Content-Length` and `Transfer-Encoding`.
    pub(crate) fn has_both_lengths(&self) -> bool {
        self.has_both_lengths.load(Relaxed)
    }

    /// Sets [`Self::has_both_lengths`].
    pub(crate) fn set_both_lengths(&self, has_both: bool) {
        self.has_both_lengths.store(has_both, Relaxed);
    }

    /// Records the end of a request body.
    pub(crate) fn end_body(&self) {
        self.has_ended_body.store(true, Relaxed);
    }

    /// Returns and clears whether a request body has ended.
    pub(crate) fn take_ended_body(&self) -> bool {
        self.has_ended_body.load(Relaxed) && self.has_ended_body.swap(false, Relaxed)
    }

    /// Marks the connection as busy until the returned guard is dropped.
    pub(crate) fn start_request(self: &Arc<Self>) -> ActiveRequest {
        ActiveRequest { _active: self.activity.begin(), _connection: Arc::clone(self) }
    }

    /// Announces a response, whose head is written next.
    pub(crate) fn announce_response(&self) {
        self.unwritten.fetch_add(1, Relaxed);
    }

    /// Whether the head of an announced response has not been written.
    pub(crate) fn awaits_head(&self) -> bool {
        self.unwritten.load(Relaxed) > 0
    }

    /// Records that the head of an announced response was written.
    pub(crate) fn record_head(&self) {
        self.unwritten.fetch_sub(1, Relaxed);
    }

    /// Resolves when the connection is to be closed in favour of another one.
    pub(crate) async fn evicted(&self) {
        self.activity.evicted().await;
    }

    /// Whether no request is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.activity.is_idle()
    }
}

/// A request in flight on a connection. It keeps the connection's share in use, also as a tunnel.
#[derive(Debug)]
pub(crate) struct ActiveRequest {
    _active: network::ActiveRequest,
    _connection: Arc<Connection>,
}
