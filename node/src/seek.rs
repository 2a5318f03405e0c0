//! Looking for others while alone: the ladder of ports on this machine, and whatever `--join` names.
//!
//! A name is resolved anew each time, because the answer may be what was wrong; all its addresses are tried. It is tried until it has
//! worked once, and again whenever this node is alone. Multicast and memory are the swarm's and the core's business.

use std::time::Duration;

use hearsay_protocol::NodeId;
use libp2p::{Multiaddr, multiaddr::Protocol};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    config::{Host, Join},
    driver::{Neighbourhood, Order},
    swarm::node_of,
};

/// The pause after the first attempt in vain; doubles to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// A resolver that does not answer is taken for one that knows nothing.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

/// Hints at the rungs of this machine's ladder, at once and for as long as the node is alone.
pub async fn climb(
    rungs: Vec<Multiaddr>,
    orders: mpsc::Sender<Order>,
    mut neighbourhood: watch::Receiver<Neighbourhood>,
) {
    let mut pause = PAUSE;
    loop {
        for rung in &rungs {
            if orders.send(Order::Hint(None, rung.clone())).await.is_err() {
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

/// Hints at the addresses of one `--join` target until it is reached or a member, and again whenever the node is alone.
pub async fn join(
    target: Join,
    orders: mpsc::Sender<Order>,
    mut neighbourhood: watch::Receiver<Neighbourhood>,
) {
    let mut pause = PAUSE;
    loop {
        let mut joined = false;
        match resolve(&target).await {
            Ok(addresses) => {
                let (tell, told) = oneshot::channel();
                if orders.send(Order::Join(addresses, tell)).await.is_err() {
                    return;
                }
                // An error: the driver is gone, and the next order will say so.
                joined = told.await.unwrap_or(false);
            }
            Err(problem) => tracing::warn!(
                join = %target,
                problem,
                "cannot resolve what --join names; trying again until it works"
            ),
        }
        // Connections to others do not count: this node and its neighbours may all be waiting for the one that was named.
        if joined {
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

/// The addresses of one `--join` target, each with the peer that is expected there, where it says so.
///
/// # Errors
/// The resolver's words.
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

/// All addresses of a name.
///
/// # Errors
/// The resolver's words.
pub async fn lookup(name: &str, port: u16) -> Result<Vec<Multiaddr>, String> {
    let answer = tokio::time::timeout(RESOLVE_MAX, tokio::net::lookup_host((name, port))).await;
    let addresses =
        answer.map_err(|_| "the resolver does not answer".to_owned())?.map_err(|e| e.to_string())?;
    Ok(addresses.map(|a| Multiaddr::from(a.ip()).with(Protocol::Tcp(a.port()))).collect())
}

/// All addresses that an address with a name stands for: `/dns4` and `/dns6` of their family alone.
///
/// # Errors
/// The resolver's words.
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

/// The name and port of an address that has no number yet.
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
