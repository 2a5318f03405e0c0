//! [`StreamExecutor`]: starts the tasks of HTTP/2 streams, and counts those whose clients do not read.

use std::sync::Arc;

use hearsay_services::http::{StreamEnd, watch_stream};
use hyper::rt::Executor;

use crate::{refusal::Reason, shared::Shared};

/// Executor of the streams of HTTP/2 connections. It drops those whose client does not read for
/// [`Limits::write_stall`](crate::limits::Limits::write_stall).
#[derive(Clone, Debug)]
pub(crate) struct StreamExecutor {
    shared: Arc<Shared>,
}

impl StreamExecutor {
    /// Returns an executor with the limits and counters of this gateway.
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared) }
    }
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let shared = Arc::clone(&self.shared);
        let watched = watch_stream(stream, shared.limits.write_stall);
        tokio::spawn(async move {
            if watched.await == StreamEnd::Stalled {
                shared.counters.count_refusal(Reason::WriteTime);
            }
        });
    }
}
