//! [`Accepted`]: an admitted connection, which counts as open, and as active while a response is sent.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use hearsay_services::network::{ActiveRequest, Activity, Share};
use hyper::body::{Frame, SizeHint};
use tokio::sync::watch;

use crate::{
    http::server::{connection::Connection, listeners::Stream},
    metrics::Metrics,
};

/// An admitted connection.
pub(super) struct Accepted {
    pub(super) stream: Stream,
    pub(super) connection: Connection,
    pub(super) activity: Arc<Activity>,
    pub(super) _share: Share,
}

/// Resolves when the server is to stop.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and the node with it.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Counts a connection as open until dropped.
pub(super) struct OpenGuard(Arc<Metrics>);

impl OpenGuard {
    pub(super) fn count(metrics: &Arc<Metrics>) -> Self {
        metrics.http.connections.inc();
        Self(Arc::clone(metrics))
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.http.connections.dec();
    }
}

/// A response body. Its connection counts as active until the body is dropped.
pub(super) struct TrackedBody {
    pub(super) body: Body,
    pub(super) _active: ActiveRequest,
}

impl hyper::body::Body for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
