//! [`Connector`]: opens the connections of checks, with name resolution, address policy and staggered
//! attempts (RFC 8305).
//!
//! The policy judges each resolved address right before the attempt. The caller limits the time of a run;
//! this file limits the addresses tried and the lookups in progress.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use hearsay_services::network::{AddressPolicy, Forbidden};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    sync::Semaphore,
    time::sleep,
};

use super::tls::{TlsConfigs, TlsError, TlsOptions};
use crate::registry::address::{Host, Target};

/// Maximum number of addresses of a name that are tried. Guess: a service has one or two of each family.
const ADDRESSES_MAX: usize = 8;
/// Concurrent lookups. Each occupies a thread of tokio's blocking pool until the resolver gives up, even
/// after its check timed out; the rest of the node uses the same pool.
const LOOKUPS_MAX: usize = 32;
/// Attempt delay before the next address. Recommended by RFC 8305, section 5.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// The resolver failed, or the name does not exist.
    #[error("cannot resolve {name}: {source}")]
    Lookup {
        /// The name.
        name: String,
        /// The resolver's error.
        source: io::Error,
    },
    /// The name has no address.
    #[error("{0} has no address")]
    NoAddress(String),
    /// The policy allows none of the addresses. Nothing was sent.
    #[error("not called: {0}")]
    Forbidden(Forbidden),
    /// No address accepted the connection.
    #[error("cannot connect to {address}: {source}")]
    Failed {
        /// The address tried last.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The TLS handshake failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// A byte stream that HTTP can run on.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// Connector that enforces the address policy.
#[derive(Debug)]
pub(super) struct Connector {
    policy: AddressPolicy,
    lookups: Arc<Semaphore>,
    tls: TlsConfigs,
}

impl Connector {
    /// Returns a connector with this policy.
    pub(super) fn new(policy: AddressPolicy) -> Self {
        Self { policy, lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)), tls: TlsConfigs::default() }
    }

    /// Resolves a target. Returns the addresses that the policy allows, at least one, for use at once: a name
    /// may resolve to others later.
    pub(super) async fn resolve_allowed(&self, target: &Target) -> Result<Vec<SocketAddr>, ConnectError> {
        let mut refusal = None;
        let mut allowed = Vec::new();
        for address in self.resolve(target).await? {
            match self.policy.check(address) {
                Ok(()) => allowed.push(address),
                Err(rule) => refusal = Some(rule),
            }
        }
        match (allowed.is_empty(), refusal) {
            (false, _) => Ok(allowed),
            (true, Some(rule)) => Err(ConnectError::Forbidden(rule)),
            (true, None) => Err(ConnectError::NoAddress(target.to_string())),
        }
    }

    /// Opens a TCP connection.
    pub(super) async fn connect(&self, target: &Target) -> Result<TcpStream, ConnectError> {
        match self.resolve_allowed(target).await?.as_slice() {
            [only] => attempt(*only).await,
            several => attempt_staggered(several).await,
        }
    }

    /// Opens a connection, with TLS if options are given.
    pub(super) async fn open(
        &self,
        target: &Target,
        tls: Option<&TlsOptions>,
    ) -> Result<Box<dyn Socket>, ConnectError> {
        let stream = self.connect(target).await?;
        // Requests are written in one piece.
        let _ = stream.set_nodelay(true);
        match tls {
            None => Ok(Box::new(stream)),
            Some(options) => Ok(Box::new(self.tls.handshake(stream, &target.host, options).await?)),
        }
    }

    /// Trusts this root certificate alone, in place of the system's.
    #[cfg(test)]
    pub(super) fn trust(&self, root: rustls::pki_types::CertificateDer<'static>) {
        self.tls.trust(root);
    }

    /// Returns the rule that refuses a target, if its address is known without name resolution.
    pub(super) fn forbids(&self, target: &Target) -> Option<Forbidden> {
        let ip = match &target.host {
            Host::Ip(ip) => *ip,
            Host::Name(name) if name.eq_ignore_ascii_case("localhost") => Ipv4Addr::LOCALHOST.into(),
            Host::Name(_) => return None,
        };
        self.policy.check(SocketAddr::new(ip, target.port)).err()
    }

    async fn resolve(&self, target: &Target) -> Result<Vec<SocketAddr>, ConnectError> {
        let port = target.port;
        let name = match &target.host {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
            // `localhost` is not resolved (RFC 6761, section 6.3). Most checks connect to this host.
            Host::Name(name) if name.eq_ignore_ascii_case("localhost") => {
                let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
                return Ok(loopback.map(|ip| SocketAddr::new(ip, port)).to_vec());
            }
            Host::Name(name) => name.clone(),
        };
        let failed = |source| ConnectError::Lookup { name: name.clone(), source };
        let permit = Arc::clone(&self.lookups).acquire_owned().await;
        let permit = permit.map_err(|_| failed(io::ErrorKind::Interrupted.into()))?;
        let lookup_name = name.clone();
        // A separate task keeps the permit while the lookup occupies a thread, even if the check times out.
        let lookup = tokio::spawn(async move {
            let _permit = permit;
            let addresses = lookup_host((lookup_name, port)).await?;
            Ok(addresses.take(ADDRESSES_MAX).collect::<Vec<_>>())
        });
        lookup.await.unwrap_or_else(|stopped| Err(io::Error::other(stopped))).map_err(failed)
    }
}

async fn attempt(address: SocketAddr) -> Result<TcpStream, ConnectError> {
    TcpStream::connect(address).await.map_err(|source| ConnectError::Failed { address, source })
}

/// Tries the addresses in order. The next attempt starts when one has failed or [`ATTEMPT_DELAY`] has passed.
async fn attempt_staggered(addresses: &[SocketAddr]) -> Result<TcpStream, ConnectError> {
    let mut addresses = addresses.iter().copied().peekable();
    let mut attempts = FuturesUnordered::from_iter(addresses.next().map(attempt));
    loop {
        tokio::select! {
            biased;
            ended = attempts.next() => match ended {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => match addresses.next() {
                    Some(next) => attempts.push(attempt(next)),
                    None if attempts.is_empty() => return Err(error),
                    None => (),
                },
                None => return Err(ConnectError::NoAddress("the target".into())),
            },
            () = sleep(ATTEMPT_DELAY), if addresses.peek().is_some() => {
                attempts.extend(addresses.next().map(attempt));
            }
        }
    }
}
