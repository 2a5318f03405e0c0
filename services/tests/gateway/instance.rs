//! Instances: one that tells what it was asked, and others that misbehave.

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

/// An instance, until it is killed or dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    /// Connections taken.
    pub(crate) connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    /// Ends it without a word: its listener and all its connections are closed, and its port is refused.
    pub(crate) async fn kill(mut self) {
        self.task.abort();
        _ = (&mut self.task).await;
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }
}

/// Serves each connection with this.
pub(crate) async fn raw<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Running
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let task = tokio::spawn(async move {
        // Dropped with the task, which ends all of them.
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

/// Serves requests by HTTP/1 with this.
pub(crate) async fn http1<F>(
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
) -> Running
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    raw(move |stream| {
        let answer = answer.clone();
        async move {
            let service = service_fn(move |request| {
                let answering = answer(request);
                async move { Ok::<_, Infallible>(answering.await) }
            });
            _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades()
                .await;
        }
    })
    .await
}

/// Serves requests by HTTP/2 without TLS with this.
pub(crate) async fn h2c<F>(answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static) -> Running
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    raw(move |stream| {
        let answer = answer.clone();
        async move {
            let service = service_fn(move |request| {
                let answering = answer(request);
                async move { Ok::<_, Infallible>(answering.await) }
            });
            _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        }
    })
    .await
}

/// What was asked, as JSON, under a name.
pub(crate) async fn told(name: &str, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let headers: serde_json::Map<_, _> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap_or("?").into()))
        .collect();
    let told = json!({
        "name": name,
        "method": head.method.as_str(),
        "target": head.uri.to_string(),
        "version": format!("{:?}", head.version),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    });
    Response::new(full(told.to_string()))
}

/// An instance that tells what it was asked.
pub(crate) async fn echo(name: &'static str) -> Running {
    http1(move |request| told(name, request)).await
}

/// One that always answers this status.
pub(crate) async fn always(status: u16) -> Running {
    http1(move |_| async move {
        let mut response = Response::new(full("this is how I am"));
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
        response
    })
    .await
}

/// Reads a request and answers these bytes, then closes.
pub(crate) async fn says(bytes: &'static str) -> Running {
    raw(move |mut stream| async move {
        if stream.read(&mut [0; 4096]).await.is_ok() {
            _ = stream.write_all(bytes.as_bytes()).await;
        }
    })
    .await
}

/// Takes everything and answers nothing.
pub(crate) async fn mute() -> Running {
    raw(|mut stream| async move { while matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {} }).await
}

/// An address at which nobody listens.
pub(crate) fn nobody() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
