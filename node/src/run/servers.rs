//! [`Servers`]: the listeners of HTTP and gRPC, which end together when the node stops.

use std::{net::TcpListener, os::unix::net::UnixListener, sync::Arc};

use axum::Router;
use futures::future::OptionFuture;
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    http::{self, Limits, Listeners},
    metrics::Metrics,
};

/// Listeners and the routers behind them.
pub(super) struct Servers {
    pub(super) http: TcpListener,
    pub(super) socket: Option<UnixListener>,
    pub(super) router: Router,
    /// `None`: the node serves no gRPC.
    pub(super) grpc: Option<(TcpListener, Router)>,
}

impl Servers {
    /// Starts the servers. The task ends when `stop` is true and their requests have ended.
    ///
    /// # Errors
    /// A listener cannot be used.
    pub(super) fn spawn(
        self,
        limits: Limits,
        metrics: Arc<Metrics>,
        stop: watch::Receiver<bool>,
    ) -> std::io::Result<JoinHandle<()>> {
        let socket = self.socket.map(tokio::net::UnixListener::from_std).transpose()?;
        let listeners = Listeners::from(tokio::net::TcpListener::from_std(self.http)?).with_socket(socket);
        let grpc = match self.grpc {
            Some((listener, router)) => {
                let listeners = Listeners::http2(tokio::net::TcpListener::from_std(listener)?);
                Some(http::serve(listeners, router, limits.clone(), Arc::clone(&metrics), stop.clone()))
            }
            None => None,
        };
        let http = http::serve(listeners, self.router, limits, metrics, stop);
        Ok(tokio::spawn(async {
            tokio::join!(http, OptionFuture::from(grpc));
        }))
    }
}
