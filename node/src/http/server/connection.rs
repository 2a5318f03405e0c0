//! [`Connection`]: facts that each request carries for its handlers (client's address or process, limits,
//! memory for bodies); and [`HOLDER`], the host to which the streams of its connection are charged.

use std::{net::SocketAddr, sync::Arc};

use hearsay_services::network::Holder;
use tokio::sync::Semaphore;

use crate::http::server::{limits::Limits, listeners::PeerCredentials};

/// The connection over which a request arrived; an extension of every request.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// Address of the client; `None` over the Unix socket, and for a request made inside the process.
    pub(crate) peer: Option<SocketAddr>,
    /// Process at the other end of the Unix socket; `None` for other connections.
    pub(crate) socket: Option<PeerCredentials>,
    pub(crate) limits: Arc<Limits>,
    /// Memory for the bodies of all connections: one permit for each byte.
    pub(crate) body_memory: Arc<Semaphore>,
}

impl Default for Connection {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Connection {
    pub(crate) fn new(limits: Limits) -> Self {
        let bytes = limits.bodies_bytes.min(Semaphore::MAX_PERMITS);
        Self {
            peer: None,
            socket: None,
            limits: Arc::new(limits),
            body_memory: Arc::new(Semaphore::new(bytes)),
        }
    }
}

tokio::task_local! {
    /// Host at the other end of the connection that this task serves. Streams that its requests open are
    /// charged to this host.
    pub(crate) static HOLDER: Holder;
}

/// Starts a task that is charged to the host of the current one.
pub(crate) fn spawn_charged(future: impl Future<Output = ()> + Send + 'static) {
    // Without a connection the request was made inside the process.
    let holder = HOLDER.try_with(|holder| *holder).unwrap_or(Holder::Exempt);
    tokio::spawn(HOLDER.scope(holder, future));
}
