//! Tests of TLS in `http`, `tcp`, `grpc` and `h2ping` checks: an untrusted certificate is refused unless
//! `tls_skip_verify` is set, the server gets the name of `tls_server_name`, and the certificate must have it.

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{grpc, *};

/// Self-signed test certificate for `localhost` and 127.0.0.1, not of an authority, valid until 2126.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBmDCCAT6gAwIBAgIUDQbhhUgxrIFdfXxRjHwDqprTEVswCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTIwMTA3NTA1M1oYDzIxMjYxMTA3
MDc1MDUzWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQgaBgo9DRVLXGfWqTRzxU+etQoaEc7B87SCXafD8CEAhhcqR4P5IWl
6fqxaBYSBOglRoLWhXelkWXB8mW53Anzo2wwajAdBgNVHQ4EFgQU0E4rKbS9O0+a
lrqlwQ1ZOAWdOhIwHwYDVR0jBBgwFoAU0E4rKbS9O0+alrqlwQ1ZOAWdOhIwDAYD
VR0TAQH/BAIwADAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZIzj0E
AwIDSAAwRQIgWlwGlT7dPsj8nhCjwVH4WF4OX5EDKmCqIhd85wIHzu0CIQCM+xsi
a5qHAGhrNrJtblCxOvA59Vhm3NL5oEGyss9qjA==
-----END CERTIFICATE-----";
/// The key of [`CERTIFICATE`].
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgGn50XDVB6GRBDS6f
moMsHEOT+WWSAcDbooqzPZbhSi+hRANCAAQgaBgo9DRVLXGfWqTRzxU+etQoaEc7
B87SCXafD8CEAhhcqR4P5IWl6fqxaBYSBOglRoLWhXelkWXB8mW53Anz
-----END PRIVATE KEY-----";

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

/// Notes the name that the client stated, as a request.
fn note(stream: &TlsStream<TcpStream>, names: &Mutex<Vec<String>>) {
    let name = stream.get_ref().1.server_name().unwrap_or_default().to_owned();
    names.lock().unwrap_or_else(PoisonError::into_inner).push(name);
}

/// Starts a server of HTTP/2, gRPC's health included, with TLS.
async fn http2() -> Server {
    let acceptor = acceptor(b"h2");
    Server::serve(move |stream, names| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                note(&stream, &names);
                grpc::serve(stream).await;
            }
        }
    })
    .await
}

/// Starts a server of HTTP/1.1 with TLS.
async fn http1() -> Server {
    let acceptor = acceptor(b"http/1.1");
    Server::serve(move |stream, names| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                note(&stream, &names);
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                let _ = stream.shutdown().await;
            }
        }
    })
    .await
}

/// Returns a check with TLS of each kind that can use it. `web` serves HTTP/1.1, `server` HTTP/2.
fn kinds(web: &Server, server: &Server, tls: &CheckTls) -> [CheckKind; 4] {
    let address = format!("localhost:{}", server.address.port());
    let http = HttpCheck {
        url: format!("https://localhost:{}/", web.address.port()),
        tls_skip_verify: tls.skip_verify,
        tls_server_name: tls.server_name.clone(),
        ..HttpCheck::default()
    };
    [
        CheckKind::Http(http),
        CheckKind::Tcp { address: address.clone(), tls: tls.clone() },
        CheckKind::Grpc { address: address.clone(), service: String::new(), tls: tls.clone() },
        CheckKind::H2ping { address, tls: tls.clone() },
    ]
}

#[tokio::test]
async fn a_certificate_that_no_root_signed_is_refused_unless_any_will_do() {
    let (web, server) = (http1().await, http2().await);
    for (skip_verify, health) in [(false, Health::Critical), (true, Health::Passing)] {
        let tls = CheckTls { is_used: true, skip_verify, server_name: None };
        for kind in kinds(&web, &server, &tls) {
            let outcome = run_once(kind.clone(), PATIENCE).await;
            assert_eq!(outcome.health, health, "{kind:?}: {}", outcome.output);
            let has_failed = outcome.output.starts_with("TLS handshake failed");
            assert_eq!(has_failed, !skip_verify, "{kind:?}: {}", outcome.output);
        }
    }
}

#[tokio::test]
async fn the_server_gets_the_stated_name_in_place_of_the_hosts() {
    let (web, server) = (http1().await, http2().await);
    for (server_name, expected) in [(None, "localhost"), (Some("shop.example"), "shop.example")] {
        let tls = CheckTls { is_used: true, skip_verify: true, server_name: server_name.map(str::to_owned) };
        for kind in kinds(&web, &server, &tls) {
            let outcome = run_once(kind, PATIENCE).await;
            assert_eq!(outcome.health, Health::Passing, "{}", outcome.output);
        }
        for (server, count) in [(&web, 1), (&server, 3)] {
            let mut names = server.requests.lock().unwrap();
            assert_eq!(*names, vec![expected; count]);
            names.clear();
        }
    }
}

#[test]
fn a_server_name_is_a_host_name_or_an_address() {
    let kind = |name: &str| CheckKind::Tcp {
        address: "127.0.0.1:1".into(),
        tls: CheckTls { is_used: true, skip_verify: false, server_name: Some(name.into()) },
    };
    for name in ["shop.example", "10.0.0.1", "::1", "a_b.example"] {
        assert_eq!(spec(kind(name)).validate(), Ok(()), "{name}");
    }
    for name in ["", "a b", "shop.example:443", "-", "a..b"] {
        assert_eq!(spec(kind(name)).validate().unwrap_err().field, "tls_server_name", "{name}");
    }
}

#[tokio::test]
async fn the_certificate_must_have_the_stated_name() {
    let connector = connector();
    connector.trust(CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap());
    let (web, server) = (http1().await, http2().await);
    for (name, health) in [("localhost", Health::Passing), ("shop.example", Health::Critical)] {
        let tls = CheckTls { is_used: true, skip_verify: false, server_name: Some(name.into()) };
        for kind in kinds(&web, &server, &tls) {
            let Plan::Probe(probe) = Plan::new(&kind).unwrap() else { panic!("{kind:?} has no runs") };
            let outcome = probe.run(&connector, PATIENCE).await;
            assert_eq!(outcome.health, health, "{kind:?} {name}: {}", outcome.output);
        }
    }
}
