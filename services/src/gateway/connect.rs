//! Connecting to an instance at whichever of its addresses answers first.
//!
//! The attempts are staggered as RFC 8305 (section 5) says: the next address is tried when the one before has
//! failed, or has not answered within [`ATTEMPT_DELAY`]. The first connection wins, the other attempts are
//! dropped, and the next connection begins with the address that won. The policy judges each address right
//! before its attempt.

use std::{io, net::SocketAddr, time::Duration};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    policy::GatewayPolicy,
    pool::ConnectError,
    target::{Address, Target},
};
use crate::address_policy::Forbidden;

/// How long an address is tried alone. The value that RFC 8305, section 5 recommends.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Opens a connection. Each address has `limit`; the whole takes at most that and one [`ATTEMPT_DELAY`] for
/// each further address.
///
/// # Errors
/// Why the last attempt failed.
pub async fn connect(
    target: &Target,
    policy: &GatewayPolicy,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    let mut addresses = target.addresses().peekable();
    let attempt = |(at, address): (usize, &Address)| {
        let address = address.clone();
        async move { (at, connect_within(target, &address, policy, limit).await) }
    };
    let mut attempts = FuturesUnordered::from_iter(addresses.next().map(attempt));
    loop {
        tokio::select! {
            biased;
            ended = attempts.next() => match ended {
                Some((at, Ok(stream))) => {
                    target.prefer(at);
                    return Ok(stream);
                }
                Some((_, Err(why))) => match addresses.next() {
                    Some(next) => attempts.push(attempt(next)),
                    None if attempts.is_empty() => return Err(why),
                    None => (),
                },
                // An instance has an address, so there is an attempt until an arm above returns.
                None => return Err(ConnectError::TimedOut),
            },
            () = sleep(ATTEMPT_DELAY), if addresses.peek().is_some() => {
                attempts.extend(addresses.next().map(attempt));
            }
        }
    }
}

async fn connect_within(
    target: &Target,
    address: &Address,
    policy: &GatewayPolicy,
    limit: Duration,
) -> Result<TcpStream, ConnectError> {
    match timeout(limit, connect_to(target, address, policy)).await {
        Ok(Ok(stream)) => {
            // Requests are written whole.
            let _ = stream.set_nodelay(true);
            Ok(stream)
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => Err(ConnectError::TimedOut),
        Ok(Err(error)) => Err(ConnectError::Refused(error.to_string())),
        Err(_) => Err(ConnectError::TimedOut),
    }
}

async fn connect_to(target: &Target, address: &Address, policy: &GatewayPolicy) -> io::Result<TcpStream> {
    let judge = |host: &str, address: SocketAddr| {
        policy.check(target.at(host), address).map_err(|rule: Forbidden| {
            policy.count(rule);
            io::Error::other(format!("not called: {rule}"))
        })
    };
    let (name, port) = match address {
        Address::Ip(address) => {
            judge(&address.ip().to_string(), *address)?;
            return TcpStream::connect(address).await;
        }
        Address::Name(name, port) => (name, port),
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address to connect to");
    for ip in tokio::net::lookup_host((name.as_str(), *port)).await? {
        if let Err(refusal) = judge(name, ip) {
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
