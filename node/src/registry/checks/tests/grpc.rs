//! Tests of the `grpc` check: only SERVING passes, a server without HTTP/2 is critical, and an untrusted
//! certificate is refused unless `tls_skip_verify` is set.

use std::convert::Infallible;

use ::http::{HeaderMap, Request, Response};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use super::{
    super::grpc::{HealthCheckRequest, HealthCheckResponse, ServingStatus, frame},
    *,
};

/// Self-signed test certificate for `localhost` and 127.0.0.1, valid until 2126.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUHKGsVzHLiC7N69xADbXdV0Fv0+4wCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyOTIxNDcwM1oYDzIxMjYxMTA1
MjE0NzAzWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASsCeasn+9VlJHUcFAJECmrk/gZ/sC4UCa4nwbE5DA9qEihoVrTk6Kd
Vf580l7HwmfxA7VFAyZL0cZ/EqC/fSTLo28wbTAdBgNVHQ4EFgQUa908n0M7SuG6
CHqGhFSbytgLN3cwHwYDVR0jBBgwFoAUa908n0M7SuG6CHqGhFSbytgLN3cwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIhAPun6BdjqkJoh3bEv9sKQgmQP4+936t2tkB9j+Lx4qGyAiA/
Qdp+uvBKQrU9tAaFJbzSm2cMW0dLI6FaHrnEIse7xA==
-----END CERTIFICATE-----";
/// The key of [`CERTIFICATE`].
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQge5EgsQyAxKRWc9FU
pdPNQwpOYHPZVegnVCQIys58rdChRANCAASsCeasn+9VlJHUcFAJECmrk/gZ/sC4
UCa4nwbE5DA9qEihoVrTk6KdVf580l7HwmfxA7VFAyZL0cZ/EqC/fSTL
-----END PRIVATE KEY-----";

fn grpc(address: SocketAddr, service: &str) -> CheckKind {
    CheckKind::Grpc {
        address: address.to_string(),
        service: service.into(),
        tls: false,
        tls_skip_verify: false,
    }
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

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
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

fn acceptor(protocol: &[u8]) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let mut config = config.with_single_cert(vec![certificate], key).unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn a_certificate_that_no_root_signed_is_refused_unless_any_will_do() {
    let h2 = acceptor(b"h2");
    let server = Server::start(move |stream| {
        let h2 = h2.clone();
        async move {
            if let Ok(stream) = h2.accept(stream).await {
                serve(stream).await;
            }
        }
    })
    .await;
    let http1 = acceptor(b"http/1.1");
    let web = Server::serve(move |stream, requests| {
        let http1 = http1.clone();
        async move {
            if let Ok(mut stream) = http1.accept(stream).await {
                let _ = stream.read(&mut [0; 4096]).await;
                requests.lock().unwrap().push(String::new());
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                let _ = stream.shutdown().await;
            }
        }
    })
    .await;
    for (tls_skip_verify, health) in [(false, Health::Critical), (true, Health::Passing)] {
        let address = format!("localhost:{}", server.address.port());
        let kind = CheckKind::Grpc { address, service: String::new(), tls: true, tls_skip_verify };
        let outcome = run_once(kind, PATIENCE).await;
        assert_eq!(outcome.health, health, "{}", outcome.output);
        let url = format!("https://{}/", web.address);
        let outcome =
            run_once(CheckKind::Http(HttpCheck { url, tls_skip_verify, ..HttpCheck::default() }), PATIENCE)
                .await;
        assert_eq!(outcome.health, health, "{}", outcome.output);
        assert_eq!(
            outcome.output.starts_with("TLS handshake failed"),
            !tls_skip_verify,
            "{}",
            outcome.output
        );
    }
}
