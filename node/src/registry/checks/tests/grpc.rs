//! Tests of the `grpc` check: only SERVING passes, and a server without HTTP/2 is critical.

use std::convert::Infallible;

use ::http::{HeaderMap, Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    super::grpc::{HealthCheckRequest, HealthCheckResponse, ServingStatus, frame},
    *,
};

fn grpc(address: SocketAddr, service: &str) -> CheckKind {
    CheckKind::Grpc { address: address.to_string(), service: service.into(), tls: CheckTls::default() }
}

fn trailers(code: &str) -> HeaderMap {
    [("grpc-status", code), ("grpc-message", "as a test")]
        .into_iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect()
}

/// Answers according to the name of the service.
async fn answer(request: Request<Incoming>) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    for (name, value) in [("te", "trailers"), ("content-type", "application/grpc"), ("via", "1.1 hearsay")] {
        assert_eq!(request.headers()[name], value);
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let asked = HealthCheckRequest::decode(&body[5..]).unwrap().service;
    let status = |status: ServingStatus| frame(&HealthCheckResponse { status: status.into() });
    let (message, trailers) = match asked.as_str() {
        "" => (status(ServingStatus::Serving), trailers("0")),
        "down" => (status(ServingStatus::NotServing), trailers("0")),
        "odd" => (Bytes::from_static(&[0, 0, 0, 0, 2, 8, 77]), trailers("0")),
        "endless" => (Bytes::from(vec![0; 10_000]), trailers("0")),
        "internal" => (Bytes::new(), trailers("13")),
        "unimplemented" => {
            let mut response = Response::new(Full::default().boxed());
            response.headers_mut().extend(trailers("12"));
            response.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());
            return Ok(response);
        }
        "web" => return Ok(Response::new(Full::from("<html>").boxed())),
        _ => (Bytes::new(), trailers("5")),
    };
    let mut response = Response::new(Full::from(message).with_trailers(async { Some(Ok(trailers)) }).boxed());
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    Ok(response)
}

pub(super) async fn serve(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let _ = http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(io), service_fn(answer))
        .await;
}

#[tokio::test]
async fn only_serving_passes() {
    let server = Server::start(serve).await;
    for (service, health, words) in [
        ("", Health::Passing, "is SERVING"),
        ("down", Health::Critical, "is NOT_SERVING"),
        ("odd", Health::Critical, "is UNKNOWN"),
        ("endless", Health::Critical, "more than 4096 bytes"),
        ("internal", Health::Critical, "gRPC status 13: as a test"),
        ("unimplemented", Health::Critical, "does not implement grpc.health.v1"),
        ("missing", Health::Critical, "does not know the service \"missing\""),
        ("web", Health::Critical, "does not speak gRPC: HTTP 200 OK"),
    ] {
        let outcome = run_once(grpc(server.address, service), PATIENCE).await;
        assert_eq!(outcome.health, health, "{service}: {}", outcome.output);
        assert!(outcome.output.contains(words), "{service}: {}", outcome.output);
    }
}

#[tokio::test]
async fn a_server_without_http2_is_critical_within_the_timeout() {
    let server = Server::answering("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let outcome = run_once(grpc(server.address, ""), Duration::from_secs(1)).await;
    assert_eq!(outcome.health, Health::Critical, "{}", outcome.output);
    let silent = Server::start(|mut stream| async move {
        while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let outcome = run_once(grpc(silent.address, ""), Duration::from_millis(200)).await;
    assert_eq!(outcome, Outcome::critical("no answer within 200ms"));
}
