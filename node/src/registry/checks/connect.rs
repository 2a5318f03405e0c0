//! Connections of checks: resolving `host:port`, the address policy, and the attempts.
//!
//! The policy judges each resolved address right before the attempt. The attempts are staggered as RFC 8305
//! (section 5) says. The time of a whole run is bounded by its caller; what is bounded here is how many
//! addresses are tried and how many lookups run.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use hearsay_services::address_policy::{AddressPolicy, Forbidden};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    sync::Semaphore,
    time::sleep,
};

use super::tls::{TlsConfigs, TlsError, TlsOptions};
use crate::registry::address::{Host, Target};

/// The most addresses of a name that are tried. Guess: a service has an address or two of each family.
const ADDRESSES_MAX: usize = 8;
/// Lookups at once. Each occupies a thread of tokio's blocking pool until the resolver gives up, also after
/// its check has timed out; the pool serves the rest of the node too.
const LOOKUPS_MAX: usize = 32;
/// How long an address is tried alone. The value that RFC 8305, section 5 recommends.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// The resolver failed, or does not know the name.
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
    /// No address took the connection.
    #[error("cannot connect to {address}: {source}")]
    Failed {
        /// The address that was tried last.
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

/// Opens connections that the address policy allows.
#[derive(Debug)]
pub(super) struct Connector {
    policy: AddressPolicy,
    lookups: Arc<Semaphore>,
    tls: TlsConfigs,
}

impl Connector {
    /// A connector with this policy.
    pub(super) fn new(policy: AddressPolicy) -> Self {
        Self { policy, lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)), tls: TlsConfigs::default() }
    }

    /// Opens a TCP connection.
    pub(super) async fn connect(&self, target: &Target) -> Result<TcpStream, ConnectError> {
        let mut refusal = None;
        let mut allowed = Vec::new();
        for address in self.resolve(target).await? {
            match self.policy.check(address) {
                Ok(()) => allowed.push(address),
                Err(rule) => refusal = Some(rule),
            }
        }
        match (allowed.as_slice(), refusal) {
            ([], Some(rule)) => Err(ConnectError::Forbidden(rule)),
            ([], None) => Err(ConnectError::NoAddress(target.to_string())),
            ([only], _) => attempt(*only).await,
            (several, _) => attempt_staggered(several).await,
        }
    }

    /// Opens a connection with TLS where options are given, else a plain one.
    pub(super) async fn open(
        &self,
        target: &Target,
        tls: Option<TlsOptions>,
    ) -> Result<Box<dyn Socket>, ConnectError> {
        let stream = self.connect(target).await?;
        // Requests are written whole.
        let _ = stream.set_nodelay(true);
        match tls {
            None => Ok(Box::new(stream)),
            Some(options) => Ok(Box::new(self.tls.handshake(stream, &target.host, options).await?)),
        }
    }

    /// Whether the policy refuses a target whose address is known without asking a resolver.
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
            // RFC 6761, section 6.3; and most checks are of this host.
            Host::Name(name) if name.eq_ignore_ascii_case("localhost") => {
                let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
                return Ok(loopback.map(|ip| SocketAddr::new(ip, port)).to_vec());
            }
            Host::Name(name) => name.clone(),
        };
        let failed = |source| ConnectError::Lookup { name: name.clone(), source };
        let permit = Arc::clone(&self.lookups).acquire_owned().await;
        let permit = permit.map_err(|_| failed(io::ErrorKind::Interrupted.into()))?;
        let asked = name.clone();
        // A task of its own keeps the permit for as long as the lookup occupies its thread.
        let lookup = tokio::spawn(async move {
            let _permit = permit;
            let addresses = lookup_host((asked, port)).await?;
            Ok(addresses.take(ADDRESSES_MAX).collect::<Vec<_>>())
        });
        lookup.await.unwrap_or_else(|stopped| Err(io::Error::other(stopped))).map_err(failed)
    }
}

async fn attempt(address: SocketAddr) -> Result<TcpStream, ConnectError> {
    TcpStream::connect(address).await.map_err(|source| ConnectError::Failed { address, source })
}

/// Tries one address after the other, the next as soon as the one before has failed or has been tried for
/// [`ATTEMPT_DELAY`].
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
