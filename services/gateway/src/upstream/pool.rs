//! Connection [`Pool`] of one thread. An HTTP/1 connection carries one request at a time and then waits idle.
//! An endpoint has one HTTP/2 connection, which its requests share.
//!
//! Hand-written, because hyper-util's pooled client keeps the request when it cannot connect, so the request
//! could not go to another endpoint. It also bounds idle connections for each endpoint, but not in total.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    task::AbortHandle,
    time::{Instant, timeout},
};

use super::{
    connect::{ConnectError, connect},
    endpoint::Endpoint,
};
use crate::{forward::request_body::RequestBody, limits::Limits, routing::policy::GatewayPolicy};

/// Interval of pings on an HTTP/2 connection with requests.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Time for the answer to such a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that a connection has, after the end of a response, to finish sending the request.
const READY_MAX: Duration = Duration::from_secs(1);

/// An HTTP/1 connection to an endpoint. Dropping it closes the connection at once. hyper alone would first
/// write what it has buffered, for as long as the endpoint does not read.
#[derive(Debug)]
pub(crate) struct Http1 {
    sender: http1::SendRequest<RequestBody>,
    /// `None` after an upgrade.
    task: Option<AbortHandle>,
}

impl Http1 {
    /// Sends a request. See [`http1::SendRequest::try_send_request`].
    pub(crate) fn try_send_request(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>> + use<> {
        self.sender.try_send_request(request)
    }
}

impl Drop for Http1 {
    fn drop(&mut self) {
        self.task.iter().for_each(AbortHandle::abort);
    }
}

/// An HTTP/2 connection to an endpoint. Clones share it.
pub(crate) type Http2 = http2::SendRequest<RequestBody>;

/// The connections of one thread to all endpoints.
#[derive(Debug)]
pub(crate) struct Pool {
    limits: Limits,
    policy: GatewayPolicy,
    connections: Mutex<Connections>,
}

#[derive(Debug, Default)]
struct Connections {
    /// Keyed by the endpoint's address in memory. The entry keeps the endpoint alive.
    by_endpoint: HashMap<usize, EndpointConnections>,
    idle: usize,
}

#[derive(Debug)]
struct EndpointConnections {
    endpoint: Arc<Endpoint>,
    /// Idle HTTP/1 connections, the most recently used at the end.
    http1: Vec<IdleConnection>,
    /// The HTTP/2 connection. Locked while it is being opened, so that all waiting requests get the same one.
    http2: Arc<tokio::sync::Mutex<Option<SharedConnection>>>,
}

#[derive(Debug)]
struct IdleConnection {
    connection: Http1,
    since: Instant,
}

impl IdleConnection {
    fn is_ready(&self) -> bool {
        self.connection.sender.is_ready()
    }

    fn is_closed(&self) -> bool {
        self.connection.sender.is_closed()
    }
}

#[derive(Debug)]
struct SharedConnection {
    sender: Http2,
    used: Instant,
}

impl SharedConnection {
    fn is_expired(&self, limit: Duration) -> bool {
        self.sender.is_closed() || self.used.elapsed() >= limit
    }
}

impl Connections {
    fn entry(&mut self, endpoint: &Arc<Endpoint>) -> &mut EndpointConnections {
        self.by_endpoint.entry(Arc::as_ptr(endpoint) as usize).or_insert_with(|| EndpointConnections {
            endpoint: Arc::clone(endpoint),
            http1: Vec::new(),
            http2: Arc::default(),
        })
    }
}

impl EndpointConnections {
    /// Closes connections that the peer has closed, that were idle for too long, or whose endpoint is gone.
    /// Also closes those that are not ready after [`READY_MAX`], because their request is still being sent.
    /// Returns the number of idle connections that were closed.
    fn sweep(&mut self, limits: &Limits) -> usize {
        let (before, is_gone) = (self.http1.len(), self.endpoint.is_gone());
        self.http1.retain(|idle| {
            let limit = if idle.is_ready() { limits.idle } else { READY_MAX };
            !is_gone && !idle.is_closed() && idle.since.elapsed() < limit
        });
        if let Ok(mut http2) = self.http2.try_lock()
            && (is_gone || http2.as_ref().is_some_and(|shared| shared.is_expired(limits.http2_idle)))
        {
            *http2 = None;
        }
        let closed = before - self.http1.len();
        self.endpoint.idle_connections.fetch_sub(closed, Relaxed);
        closed
    }

    fn is_unused(&self) -> bool {
        self.http1.is_empty() && self.http2.try_lock().is_ok_and(|http2| http2.is_none())
    }
}

impl Pool {
    /// Returns an empty pool.
    pub(crate) fn new(limits: Limits, policy: GatewayPolicy) -> Self {
        Self { limits, policy, connections: Mutex::default() }
    }

    /// Takes the most recently used idle HTTP/1 connection.
    pub(crate) fn take_idle(&self, endpoint: &Arc<Endpoint>) -> Option<Http1> {
        let mut connections = self.lock();
        let entry = connections.by_endpoint.get_mut(&(Arc::as_ptr(endpoint) as usize))?;
        let before = entry.http1.len();
        let mut found = None;
        // A connection whose request is still being sent is neither ready nor closed, and stays.
        while found.is_none()
            && let Some(at) = entry.http1.iter().rposition(|idle| idle.is_ready() || idle.is_closed())
        {
            found = Some(entry.http1.remove(at)).filter(IdleConnection::is_ready);
        }
        let taken = before - entry.http1.len();
        entry.endpoint.idle_connections.fetch_sub(taken, Relaxed);
        connections.idle -= taken;
        found.filter(|idle| idle.since.elapsed() < self.limits.idle).map(|idle| idle.connection)
    }

    fn put_idle(&self, endpoint: &Arc<Endpoint>, connection: Http1) {
        let mut connections = self.lock();
        let is_full = connections.idle >= self.limits.idle_connections;
        if is_full || endpoint.is_gone() || connection.sender.is_closed() {
            return;
        }
        let entry = connections.entry(endpoint);
        if entry.http1.len() < self.limits.idle_per_endpoint {
            entry.http1.push(IdleConnection { connection, since: Instant::now() });
            endpoint.idle_connections.fetch_add(1, Relaxed);
            connections.idle += 1;
        }
    }

    /// Closes the connections that are no longer needed.
    pub(crate) fn sweep(&self) {
        let mut connections = self.lock();
        let closed: usize = connections.by_endpoint.values_mut().map(|entry| entry.sweep(&self.limits)).sum();
        connections.idle -= closed;
        connections.by_endpoint.retain(|_, entry| !entry.is_unused());
    }

    /// Opens an HTTP/1 connection.
    ///
    /// # Errors
    /// No address of the endpoint connects.
    pub(crate) async fn open_http1(&self, endpoint: &Endpoint) -> Result<Http1, ConnectError> {
        let stream = connect(endpoint, &self.policy, self.limits.connect).await?;
        let handshake = http1::Builder::new()
            .max_headers(self.limits.headers)
            .handshake::<_, RequestBody>(TokioIo::new(stream))
            .await;
        let (sender, connection) = handshake.map_err(|error| ConnectError::Refused(error.to_string()))?;
        let task = tokio::spawn(async move {
            // The task that sends a request gets the error.
            _ = connection.with_upgrades().await;
        });
        Ok(Http1 { sender, task: Some(task.abort_handle()) })
    }

    /// Returns the HTTP/2 connection of an endpoint. Opens one if there is none.
    ///
    /// # Errors
    /// No address of the endpoint connects.
    pub(crate) async fn http2(&self, endpoint: &Arc<Endpoint>) -> Result<Http2, ConnectError> {
        let http2 = Arc::clone(&self.lock().entry(endpoint).http2);
        let mut http2 = http2.lock().await;
        if let Some(shared) = http2.as_mut().filter(|shared| !shared.sender.is_closed()) {
            shared.used = Instant::now();
            return Ok(shared.sender.clone());
        }
        let stream = connect(endpoint, &self.policy, self.limits.connect).await?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(self.limits.window_bytes)
            .initial_connection_window_size(self.limits.window_bytes)
            .max_header_list_size(u32::try_from(self.limits.head_bytes).unwrap_or(u32::MAX))
            .handshake::<_, RequestBody>(TokioIo::new(stream));
        let handshake = timeout(self.limits.connect, handshake).await.map_err(|_| ConnectError::TimedOut)?;
        let (sender, connection) = handshake.map_err(|error| ConnectError::Refused(error.to_string()))?;
        tokio::spawn(async move {
            _ = connection.await;
        });
        *http2 = Some(SharedConnection { sender: sender.clone(), used: Instant::now() });
        Ok(sender)
    }

    /// The pool belongs to one thread, so the lock is never contended.
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An HTTP/1 connection in use, to be returned to its pool.
#[derive(Debug)]
pub(crate) struct Lease {
    connection: Http1,
    endpoint: Arc<Endpoint>,
    pool: Arc<Pool>,
}

impl Lease {
    /// Returns the lease of a connection to this endpoint.
    pub(crate) fn new(connection: Http1, endpoint: &Arc<Endpoint>, pool: &Arc<Pool>) -> Self {
        Self { connection, endpoint: Arc::clone(endpoint), pool: Arc::clone(pool) }
    }

    /// Gives the connection back to the pool, after the end of a response.
    pub(crate) fn give_back(self) {
        self.pool.put_idle(&self.endpoint, self.connection);
    }

    /// Leaves the connection to an upgrade, which closes it.
    pub(crate) fn upgrade(mut self) {
        self.connection.task = None;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt as _, net::TcpListener};

    use super::*;
    use crate::fixture::{policy, provider};

    #[tokio::test]
    async fn a_dropped_connection_is_closed_though_its_endpoint_does_not_read() {
        /// More than both sockets buffer.
        const BODY_BYTES: usize = 64 * 1024 * 1024;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let endpoint = Endpoint::new(&provider("web", "a", &url, &[]), &policy()).unwrap();
        let pool = Pool::new(Limits::default(), policy());
        let mut connection = pool.open_http1(&endpoint).await.unwrap();
        let (mut instance, _) = listener.accept().await.unwrap();
        let body = RequestBody::Buffered(vec![0; BODY_BYTES].into());
        tokio::select! {
            _ = connection.try_send_request(Request::post("/").body(body).unwrap()) => panic!("it responded"),
            readable = instance.readable() => readable.unwrap(),
        }
        drop(connection);
        let (mut received, mut buffer) = (0, vec![0; 64 * 1024]);
        while let Ok(n @ 1..) = instance.read(&mut buffer).await {
            received += n;
        }
        assert!(received < BODY_BYTES, "the whole request arrived after its client had left");
    }
}
