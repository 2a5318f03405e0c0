//! [`StreamLimit`]: limit on requests that last (blocking queries, event streams and held registrations).
//!
//! The limit is below the limit of connections, so that waiting requests leave room for others. Each host has
//! a share of the limit (see [`Shares`]). Blocking queries of keys have a second, lower limit, because each
//! of them is also one at a replica.
//!
//! Beyond a limit the answer is 429 with `Retry-After`, as Consul answers beyond its rate limits. An early
//! answer with the current state would be valid, but a client that gets one asks again at once.

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

/// Blocking queries of keys at a time. Three quarters of the limit of a replica, which is what a replica
/// admits from one node.
const KEY_QUERIES_MAX: usize = 768;
/// Seconds after which a request beyond the limit may be tried again. Clients that ignore the header wait
/// longer after an error: Prometheus 15 s.
pub(crate) const RETRY_AFTER_S: u16 = 5;

/// Limit on the lasting requests of one node.
#[derive(Debug)]
pub struct StreamLimit {
    all: Arc<Shares>,
    of_keys: Arc<Shares>,
}

impl StreamLimit {
    /// Allows `streams` at a time.
    pub fn new(streams: usize) -> Self {
        Self { all: Shares::new(streams), of_keys: Shares::new(KEY_QUERIES_MAX.min(streams)) }
    }

    /// Admits a stream. It is charged to the host of the connection that the task serves.
    ///
    /// # Errors
    /// 429 when the limit is reached, or the share of the host.
    pub(crate) fn admit(&self, metrics: &Metrics) -> Result<StreamPermit, Problem> {
        let share = take(&self.all, metrics)?;
        Ok(StreamPermit::new(share, None, metrics))
    }

    /// Admits a blocking query of keys.
    ///
    /// # Errors
    /// As [`admit`](Self::admit).
    pub(crate) fn admit_key_query(&self, metrics: &Metrics) -> Result<StreamPermit, Problem> {
        let of_keys = take(&self.of_keys, metrics)?;
        let share = take(&self.all, metrics)?;
        Ok(StreamPermit::new(share, Some(of_keys), metrics))
    }
}

/// Takes one unit of a limit for the host of the connection that the task serves.
fn take(shares: &Arc<Shares>, metrics: &Metrics) -> Result<Share, Problem> {
    // Without a connection the request was made inside the process.
    let holder = HOLDER.try_with(|holder| *holder).unwrap_or(Holder::Exempt);
    let (reason, detail) = match shares.take(holder, None) {
        Ok(share) => return Ok(share),
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
    Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).retry_after(RETRY_AFTER_S))
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
    _of_keys: Option<Share>,
    waiting: Gauge,
}

impl StreamPermit {
    fn new(share: Share, of_keys: Option<Share>, metrics: &Metrics) -> Self {
        let waiting = metrics.http.waiting.clone();
        waiting.inc();
        Self { _share: share, _of_keys: of_keys, waiting }
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.waiting.dec();
    }
}

#[cfg(test)]
mod tests {
    use hearsay_protocol::Index;
    use hearsay_services::network::HostKey;

    use super::*;
    use crate::view::{Clock, View};

    #[test]
    fn a_host_cannot_use_up_the_queries_of_keys_and_they_do_not_use_up_the_others() {
        let view = Arc::new(View::new(Index(1), Clock::start()));
        let (limit, metrics) = (StreamLimit::new(2 * KEY_QUERIES_MAX), Metrics::new(view));
        let by = |host, admit: &dyn Fn() -> Result<StreamPermit, Problem>| {
            HOLDER.sync_scope(Holder::Host(HostKey::Ipv4(host)), admit)
        };
        let of_keys = || limit.admit_key_query(&metrics);
        let mut held: Vec<StreamPermit> = Vec::new();
        let refused = loop {
            match by(1, &of_keys) {
                Ok(permit) => held.push(permit),
                Err(problem) => break problem,
            }
        };
        assert_eq!((held.len(), refused.status().as_u16()), (KEY_QUERIES_MAX * 3 / 4, 429));
        held.push(by(2, &of_keys).unwrap());
        held.push(by(1, &|| limit.admit(&metrics)).unwrap());
        assert_eq!(metrics.http.waiting.get(), i64::try_from(held.len()).unwrap());
        drop(held);
        assert!(metrics.http.waiting.get() == 0 && by(1, &of_keys).is_ok());
    }
}
