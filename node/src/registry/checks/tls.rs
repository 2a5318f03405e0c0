//! [`TlsConfigs`]: performs the TLS handshakes of checks, and verifies certificates by the system's roots, or
//! accepts any with `tls_skip_verify`. [`TlsOptions`] are parsed when the check is validated.

use std::sync::{Arc, OnceLock};

use hearsay_protocol::Invalid;
use rustls::{
    ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, WantsVerifier,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{net::TcpStream, sync::OnceCell};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tracing::warn;

use super::spec::CheckTls;
use crate::registry::address::Host;

/// TLS options of a check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct TlsOptions {
    is_any_certificate_accepted: bool,
    /// `None`: the host of the target.
    server_name: Option<ServerName<'static>>,
    protocol: Protocol,
}

/// Application protocol over TLS (ALPN).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Protocol {
    /// The handshake offers none.
    Unstated,
    Http1,
    Http2,
}

impl TlsOptions {
    /// Parses the options; `None`: the check uses no TLS.
    ///
    /// # Errors
    /// The server name is not a host name or an IP address.
    pub(super) fn parse(tls: &CheckTls, protocol: Protocol) -> Result<Option<Self>, Invalid> {
        let parse = |name: &String| {
            ServerName::try_from(name.clone()).map_err(|_| {
                let problem = format!("{name:?} is neither a host name nor an IP address");
                Invalid::new("tls_server_name", problem)
            })
        };
        let server_name = tls.server_name.as_ref().map(parse).transpose()?;
        Ok(tls.is_used.then_some(Self {
            is_any_certificate_accepted: tls.skip_verify,
            server_name,
            protocol,
        }))
    }
}

/// The handshake failed; no application data was sent.
#[derive(Debug, thiserror::Error)]
#[error("TLS handshake failed: {0}")]
pub(super) struct TlsError(String);

/// TLS configurations, created on first use: a node without TLS checks reads no certificates.
#[derive(Debug, Default)]
pub(super) struct TlsConfigs {
    verifying: OnceCell<ByProtocol>,
    accepting: OnceLock<Result<ByProtocol, Error>>,
}

#[derive(Clone, Debug)]
struct ByProtocol {
    unstated: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

impl TlsConfigs {
    /// Trusts this root certificate alone, in place of the system's.
    #[cfg(test)]
    pub(super) fn trust(&self, root: CertificateDer<'static>) {
        let mut roots = RootCertStore::empty();
        roots.add(root).expect("a root certificate");
        let config = builder().expect("a configuration").with_root_certificates(roots).with_no_client_auth();
        self.verifying.set(ByProtocol::new(config)).expect("no handshake before");
    }

    /// Performs the TLS handshake on a TCP connection.
    pub(super) async fn handshake(
        &self,
        stream: TcpStream,
        host: &Host,
        options: &TlsOptions,
    ) -> Result<TlsStream<TcpStream>, TlsError> {
        let failed = |error: &dyn std::error::Error| TlsError(error.to_string());
        let configs = if options.is_any_certificate_accepted {
            let made = self.accepting.get_or_init(|| Ok(ByProtocol::new(build_accepting_config()?)));
            made.as_ref().map_err(|error| failed(error))?
        } else {
            self.verifying.get_or_try_init(load_verifying_configs).await.map_err(|error| failed(&error))?
        };
        let config = match options.protocol {
            Protocol::Unstated => &configs.unstated,
            Protocol::Http1 => &configs.http1,
            Protocol::Http2 => &configs.http2,
        };
        let name = match (&options.server_name, host) {
            (Some(name), _) => name.clone(),
            (None, Host::Ip(ip)) => ServerName::from(*ip),
            (None, Host::Name(name)) => ServerName::try_from(name.clone()).map_err(|error| failed(&error))?,
        };
        TlsConnector::from(Arc::clone(config)).connect(name, stream).await.map_err(|error| failed(&error))
    }
}

impl ByProtocol {
    fn new(config: ClientConfig) -> Self {
        let with = |protocol: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            Arc::new(config)
        };
        Self { http1: with(b"http/1.1"), http2: with(b"h2"), unstated: Arc::new(config) }
    }
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, Error> {
    // The provider is explicit, because the process-wide default is ambiguous if a dependency adds another
    // one.
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
}

/// Returns configurations that verify certificates by the system's roots.
async fn load_verifying_configs() -> Result<ByProtocol, Error> {
    let loaded = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let loaded = loaded.map_err(|stopped| Error::General(stopped.to_string()))?;
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(loaded.certs);
    if added == 0 {
        let reason = loaded.errors.first().map_or_else(|| "none was found".into(), ToString::to_string);
        warn!("the system's root certificates cannot be read, so checks with TLS will fail: {reason}");
    }
    Ok(ByProtocol::new(builder()?.with_root_certificates(roots).with_no_client_auth()))
}

/// Returns a configuration that accepts any certificate.
fn build_accepting_config() -> Result<ClientConfig, Error> {
    let verifier = Arc::new(AcceptAny(Arc::new(ring::default_provider())));
    Ok(builder()?.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Verifier that accepts any certificate whose private key the server has.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
