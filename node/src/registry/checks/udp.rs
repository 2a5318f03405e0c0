//! `udp` check: sends a datagram, and fails if it is refused.
//!
//! UDP has no connections, so the only proof of a failure is an ICMP message that refuses the datagram (port
//! unreachable, protocol unreachable, prohibited). The kernel reports it on a connected socket. Most services
//! do not answer a datagram that is not of their protocol, so silence until the timeout is a success, as in
//! Consul. The check does not detect a host that is down.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hearsay_protocol::Invalid;
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::{connect::Connector, outcome::Outcome, spec::DURATION_MAX};
use crate::registry::address::Target;

/// Content of the datagram. Not empty, because some servers ignore an empty one.
const DATAGRAM: &[u8] = b"hearsay health check";
/// Bytes read of an answer; its content has no meaning.
const ANSWER_BYTES_MAX: usize = 64;

/// A check that sends a datagram.
#[derive(Debug)]
pub(super) struct UdpProbe {
    target: Target,
}

impl UdpProbe {
    /// Returns a check of `host:port`.
    pub(super) fn new(address: &str) -> Result<Self, Invalid> {
        Ok(Self { target: Target::parse("udp", address)? })
    }

    /// Runs the check once, for at most `limit`. Of several addresses, the next one is tried if one refuses.
    pub(super) async fn run(&self, connector: &Connector, limit: Duration) -> Outcome {
        let end = Instant::now() + limit.min(DURATION_MAX);
        let addresses = match timeout_at(end, connector.resolve_allowed(&self.target)).await {
            Ok(Ok(addresses)) => addresses,
            Ok(Err(error)) => return error.into(),
            Err(_) => return Outcome::timed_out(limit),
        };
        let mut refusal = format!("{} has no address", self.target);
        for address in addresses {
            match timeout_at(end, exchange(address)).await {
                Ok(Ok(())) => return Outcome::passing(format!("{address} answered")),
                Ok(Err(error)) => refusal = format!("{address} cannot be reached: {error}"),
                Err(_) => {
                    return Outcome::passing(format!(
                        "{address} neither answered nor refused within {limit:?}"
                    ));
                }
            }
        }
        Outcome::critical(refusal)
    }
}

/// Sends the datagram and waits for an answer or a refusal. A socket of its own for each run, so that no
/// answer to an earlier run counts.
async fn exchange(address: SocketAddr) -> io::Result<()> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // A connected socket takes answers from this address alone, and reports refusals.
    socket.connect(address).await?;
    socket.send(DATAGRAM).await?;
    socket.recv(&mut [0; ANSWER_BYTES_MAX]).await.map(drop)
}
