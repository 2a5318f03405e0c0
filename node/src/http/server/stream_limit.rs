//! [`StreamLimit`]: limit on requests that last (blocking queries, event streams and held registrations).
//!
//! The limit is below the limit of connections, so that waiting requests leave room for others. Each host has
//! a share of the limit (see [`Shares`]).

use std::sync::Arc;

use axum::http::StatusCode;
use hearsay_services::{
    Problem,
    network::{Holder, Share, ShareRefusal, Shares},
};
use prometheus_client::metrics::gauge::Gauge;

use crate::{
    http::server::{connection::HOLDER, limits::Limits},
    metrics::Metrics,
};

/// Limit on the lasting requests of one node.
#[derive(Debug)]
pub struct StreamLimit(Arc<Shares>);

impl StreamLimit {
    /// Allows `streams` at a time.
    pub fn new(streams: usize) -> Self {
        Self(Shares::new(streams))
    }

    /// Admits a stream. It is charged to the host of the connection that the task serves.
    ///
    /// # Errors
    /// 503 when the limit is reached, or the share of the host.
    pub(crate) fn admit(&self, metrics: &Metrics) -> Result<StreamPermit, Problem> {
        // Without a connection the request was made inside the process.
        let holder = HOLDER.try_with(|holder| *holder).unwrap_or(Holder::Exempt);
        let (reason, detail) = match self.0.take(holder, None) {
            Ok(share) => {
                let waiting = metrics.http.waiting.clone();
                waiting.inc();
                return Ok(StreamPermit { _share: share, waiting });
            }
            Err(ShareRefusal::Full) => (
                "waiting",
                "this node has too many blocking queries and event streams; ask another node, or ask without index",
            ),
            Err(ShareRefusal::Share) => (
                "waiting_share",
                "your host holds its share of this node's blocking queries and event streams, which are nearly at the limit; \
                 close some, ask another node, or ask without index",
            ),
        };
        metrics.http.refused(reason);
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
    }
}

impl Default for StreamLimit {
    /// The default of [`Limits::streams`]. Guess; watch `hearsay_http_waiting`.
    fn default() -> Self {
        Self::new(Limits::default().streams)
    }
}

/// Permission for one stream, returned on drop.
#[derive(Debug)]
pub(crate) struct StreamPermit {
    _share: Share,
    waiting: Gauge,
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.waiting.dec();
    }
}
