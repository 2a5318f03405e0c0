//! [`Servers`]: the listeners of HTTP and gRPC, which share one limit of connections, and that of
//! JSON-RPC by lines.

use std::{net::TcpListener, os::unix::net::UnixListener, sync::Arc};

use axum::Router;
use futures::future::OptionFuture;
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    apis::jsonrpc::JsonRpcServer,
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
    /// `None`: the node answers no JSON-RPC by lines.
    pub(super) jsonrpc: Option<(TcpListener, JsonRpcServer)>,
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
        let grpc = match self.grpc {
            Some((listener, router)) => Some((tokio::net::TcpListener::from_std(listener)?, router)),
            None => None,
        };
        let http = tokio::net::TcpListener::from_std(self.http)?;
        let listeners = Listeners::from(http).with_socket(socket).with_grpc(grpc);
        let lines = match self.jsonrpc {
            Some((listener, server)) => {
                Some(server.serve(tokio::net::TcpListener::from_std(listener)?, stop.clone()))
            }
            None => None,
        };
        let http = http::serve(listeners, self.router, limits, metrics, stop);
        Ok(tokio::spawn(async {
            tokio::join!(http, OptionFuture::from(lines));
        }))
    }
}
