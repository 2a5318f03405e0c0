//! Test instances behind the gateway: one that describes the request it gets as JSON, and others that do not
//! respond, or always send a fixed status or fixed bytes.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

pub(crate) type Body = BoxBody<Bytes, hyper::Error>;

pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed()
}

/// A running instance, until it is killed or dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    /// Accepted connections.
    pub(crate) connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    /// Closes its listener and all its connections. Its port then refuses connections.
    pub(crate) async fn kill(mut self) {
        self.task.abort();
        _ = (&mut self.task).await;
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}

/// Starts an instance that serves each connection with a function.
pub(crate) async fn raw<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Running
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let task = tokio::spawn(async move {
        // Dropping the task drops this set, which closes all connections.
        let mut open = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Relaxed);
            open.spawn(serve(stream));
            while open.try_join_next().is_some() {}
        }
    });
    Running { address, connections, task }
}

/// Starts an instance that serves HTTP/1.
pub(crate) async fn http1<F>(
    respond: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> Running
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    raw(move |stream| {
        let respond = respond.clone();
        async move {
            let service = service_fn(move |request| {
                let response = respond(request);
                async move { Ok::<_, Infallible>(response.await) }
            });
            _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
        }
    })
    .await
}

/// Starts an instance that serves HTTP/2 without TLS.
pub(crate) async fn h2c<F>(
    respond: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> Running
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    raw(move |stream| {
        let respond = respond.clone();
        async move {
            let service = service_fn(move |request| {
                let response = respond(request);
                async move { Ok::<_, Infallible>(response.await) }
            });
            _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    })
    .await
}

/// Returns a response that describes the request as JSON.
pub(crate) async fn describe(name: &str, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let headers: serde_json::Map<_, _> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("?").into()))
        .collect();
    let described = json!({
        "name": name,
        "method": head.method.as_str(),
        "target": head.uri.to_string(),
        "version": format!("{:?}", head.version),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    });
    Response::new(full(described.to_string()))
}

/// Starts an instance that describes its requests.
pub(crate) async fn echo(name: &'static str) -> Running {
    http1(move |request| describe(name, request)).await
}

/// Starts an instance that always responds with this status.
pub(crate) async fn always(status: u16) -> Running {
    http1(move |_| async move {
        let mut response = Response::new(full("always the same"));
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
        response
    })
    .await
}

/// Starts an instance that reads a request, writes these bytes, and closes.
pub(crate) async fn raw_response(bytes: &'static str) -> Running {
    raw(move |mut stream| async move {
        if stream.read(&mut [0; 4096]).await.is_ok() {
            _ = stream.write_all(bytes.as_bytes()).await;
        }
    })
    .await
}

/// Starts an instance that reads everything and does not respond.
pub(crate) async fn silent() -> Running {
    raw(|mut stream| async move { while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {} }).await
}

/// Returns an address that refuses connections.
pub(crate) fn closed_address() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
