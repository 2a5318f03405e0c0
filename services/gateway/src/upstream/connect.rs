//! Connects to an endpoint at the first of its addresses that answers: happy eyeballs (RFC 8305).
//!
//! Attempts are staggered (section 5): the next address is tried when the previous attempt has failed, or has
//! not connected within [`ATTEMPT_DELAY`]. The first connection wins and the other attempts are dropped. The
//! next connection starts with the winning address. The policy checks each address right before its attempt.
//!
//! Hand-written, because hyper-util's connector takes one host name, and cannot check a policy for each
//! address.

use std::{io, net::SocketAddr, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use hearsay_services::network::Forbidden;
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::endpoint::{Address, Endpoint};
use crate::routing::policy::GatewayPolicy;

/// Time for which an address is tried alone; recommended by RFC 8305, section 5.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Why there is no connection. Nothing was sent.
#[derive(Debug)]
pub(crate) enum ConnectError {
    /// The connection was refused, or there is no route.
    Refused(String),
    /// The endpoint did not answer in time.
    TimedOut,
}

/// Opens a connection. Each address gets `limit`; each further address adds at most [`ATTEMPT_DELAY`].
///
/// # Errors
/// The last error, if all attempts failed.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    policy: &GatewayPolicy,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    let mut addresses = endpoint.addresses().peekable();
    let attempt = |(at, address): (usize, &Address)| {
        let address = address.clone();
        async move { (at, connect_within(endpoint, &address, policy, limit).await) }
    };
    let mut attempts = FuturesUnordered::from_iter(addresses.next().map(attempt));
    loop {
        tokio::select! {
            biased;
            ended = attempts.next() => match ended {
                Some((at, Ok(stream))) => {
                    endpoint.prefer_address(at);
                    return Ok(stream);
                }
                Some((_, Err(error))) => match addresses.next() {
                    Some(next) => attempts.push(attempt(next)),
                    None if attempts.is_empty() => return Err(error),
                    None => (),
                },
                // An endpoint has at least one address, so an arm above returns first.
                None => return Err(ConnectError::TimedOut),
            },
            () = sleep(ATTEMPT_DELAY), if addresses.peek().is_some() => {
                attempts.extend(addresses.next().map(attempt));
            }
        }
    }
}

async fn connect_within(
    endpoint: &Endpoint,
    address: &Address,
    policy: &GatewayPolicy,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    match timeout(limit, connect_to(endpoint, address, policy)).await {
        Ok(Ok(stream)) => {
            // hyper writes messages whole, so Nagle's algorithm would only delay them.
            _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => Err(ConnectError::TimedOut),
        Ok(Err(error)) => Err(ConnectError::Refused(error.to_string())),
        Err(_) => Err(ConnectError::TimedOut),
    }
}

async fn connect_to(endpoint: &Endpoint, address: &Address, policy: &GatewayPolicy) -> io::Result<TcpStream> {
    let check = |host: &str, address: SocketAddr| {
        policy.check(endpoint.instance_address(host), address).map_err(|rule: Forbidden| {
            policy.count(rule);
            io::Error::other(format!("not called: {rule}"))
        })
    };
    let (name, port) = match address {
        Address::Ip(address) => {
            check(&address.ip().to_string(), *address)?;
            return TcpStream::connect(address).await;
        }
        Address::Name(name, port) => (name, port),
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address to connect to");
    for ip in tokio::net::lookup_host((name.as_str(), *port)).await? {
        if let Err(refusal) = check(name, ip) {
            last = refusal;
            continue;
        }
        match TcpStream::connect(ip).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}
