//! Discovery of other nodes: dials the default swarm ports of this host and the targets of `--join`, with
//! backoff, and resolves the names of the targets.
//!
//! Both are tried while this node has no neighbour. A `--join` target is also tried until it was reached
//! once. Its name is resolved again at each attempt, because the last answer may have been wrong, and all its
//! addresses are tried. The swarm handles mDNS, and the core handles remembered members.

use std::time::Duration;

use hearsay_protocol::NodeId;
use libp2p::{Multiaddr, multiaddr::Protocol};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    config::{Host, Join},
    driver_command::{DriverCommand, Neighbourhood},
    swarm::node_of,
};

/// Backoff after the first failed attempt; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// Longest wait for a DNS answer.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

/// Makes the driver dial the rungs of this host's ladder, at once and again while the node has no neighbour.
pub async fn dial_ladder(
    rungs: Vec<Multiaddr>,
    driver: mpsc::Sender<DriverCommand>,
    mut neighbourhood: watch::Receiver<Neighbourhood>,
) {
    let mut pause = PAUSE;
    loop {
        for rung in &rungs {
            if driver.send(DriverCommand::Hint(None, rung.clone())).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
        if neighbourhood.wait_for(|n| n.neighbours.is_empty()).await.is_err() {
            return;
        }
    }
}

/// Makes the driver dial the addresses of one `--join` target until this node has a connection to the target,
/// or the target is a member. Starts again whenever the node has no neighbour.
pub async fn join(
    target: Join,
    driver: mpsc::Sender<DriverCommand>,
    mut neighbourhood: watch::Receiver<Neighbourhood>,
) {
    let mut pause = PAUSE;
    loop {
        let mut is_joined = false;
        match resolve(&target).await {
            Ok(addresses) => {
                let (answer, answered) = oneshot::channel();
                if driver.send(DriverCommand::Join(addresses, answer)).await.is_err() {
                    return;
                }
                // An error: the driver has ended, and the next command fails.
                is_joined = answered.await.unwrap_or(false);
            }
            Err(problem) => tracing::warn!(
                join = %target,
                problem,
                "cannot resolve the name given to --join; trying again"
            ),
        }
        // Connections to other nodes do not count: this node and its neighbours may all be waiting for the
        // target.
        if is_joined {
            pause = PAUSE;
            if neighbourhood.wait_for(|n| n.neighbours.is_empty()).await.is_err() {
                return;
            }
        } else {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// Returns the addresses of one `--join` target, each with the node that the target expects there, if any.
///
/// # Errors
/// The resolver's error.
pub async fn resolve(target: &Join) -> Result<Vec<(Option<NodeId>, Multiaddr)>, String> {
    match target {
        Join::Multiaddr(address) => {
            let peer = address.iter().find_map(|part| match part {
                Protocol::P2p(peer) => node_of(peer),
                _ => None,
            });
            let plain: Multiaddr = address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect();
            let addresses = if dns_name(&plain).is_some() { resolve_all(&plain).await? } else { vec![plain] };
            Ok(addresses.into_iter().map(|address| (peer, address)).collect())
        }
        Join::Host(Host::Ip(ip), port) => Ok(vec![(None, Multiaddr::from(*ip).with(Protocol::Tcp(*port)))]),
        Join::Host(Host::Name(name), port) => {
            Ok(lookup(name, *port).await?.into_iter().map(|a| (None, a)).collect())
        }
    }
}

/// Returns all addresses of a host name.
///
/// # Errors
/// The resolver's error.
pub async fn lookup(name: &str, port: u16) -> Result<Vec<Multiaddr>, String> {
    let answer = tokio::time::timeout(RESOLVE_MAX, tokio::net::lookup_host((name, port))).await;
    let addresses =
        answer.map_err(|_| "the resolver does not answer".to_owned())?.map_err(|e| e.to_string())?;
    Ok(addresses.map(|a| Multiaddr::from(a.ip()).with(Protocol::Tcp(a.port()))).collect())
}

/// Returns all addresses of a multiaddr with a host name; for `/dns4` and `/dns6`, only those of that family.
///
/// # Errors
/// The resolver's error.
pub async fn resolve_all(address: &Multiaddr) -> Result<Vec<Multiaddr>, String> {
    let Some((name, port)) = dns_name(address) else { return Ok(vec![address.clone()]) };
    let family = address.iter().next();
    let mut addresses = lookup(&name, port).await?;
    let is_other_family = |found: &Multiaddr| {
        matches!(
            (&family, found.iter().next()),
            (Some(Protocol::Dns4(_)), Some(Protocol::Ip6(_)))
                | (Some(Protocol::Dns6(_)), Some(Protocol::Ip4(_)))
        )
    };
    addresses.retain(|found| !is_other_family(found));
    Ok(addresses)
}

/// Returns the host name and port of a multiaddr; `None` if it has an IP address.
pub fn dns_name(address: &Multiaddr) -> Option<(String, u16)> {
    let mut parts = address.iter();
    match (parts.next(), parts.next()) {
        (
            Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) | Protocol::Dnsaddr(name)),
            Some(Protocol::Tcp(port)),
        ) => Some((name.into_owned(), port)),
        _ => None,
    }
}
