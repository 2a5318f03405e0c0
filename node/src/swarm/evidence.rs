//! Classifies the error of a failed dial: what it proves about the peer ([`Proof`]), at which step the dial
//! failed ([`Failure`]), and whether this machine lacked a resource, such as ports or files.

use libp2p::{Multiaddr, multiaddr::Protocol, swarm::DialError};

/// The evidence in a failed dial. If several addresses were dialled, the weakest evidence counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Proof {
    /// The peer does not run: each address refused the connection, or another peer answered.
    Absent,
    /// The connection was accepted and dropped: by a dying process, whose port refuses afterwards, or by an
    /// overloaded process.
    Dropped,
    /// No evidence.
    Nothing,
}

/// Returns the evidence in a failed dial.
pub fn proof(error: &DialError) -> Proof {
    match error {
        DialError::WrongPeerId { .. } => Proof::Absent,
        DialError::Transport(attempts) => {
            let attempts = attempts.iter().map(|(address, error)| (address, format!("{error:?}")));
            // An address without a route is no evidence: a host without IPv6 judges by the IPv4 addresses.
            let routed = attempts.filter(|(address, error)| !has_no_route(address, error));
            routed.map(|(_, error)| proof_of_text(&error)).max().unwrap_or(Proof::Nothing)
        }
        _ => Proof::Nothing,
    }
}

/// How a dial to a node failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The connection was accepted, and the handshake failed.
    Handshake,
    /// The connection was not accepted: no route, or no answer.
    NoAnswer,
}

/// Returns how a dial failed; `None` if the error does not concern the node. If several addresses were
/// dialled, the attempt that got furthest counts.
pub fn failure(error: &DialError) -> Option<Failure> {
    let DialError::Transport(attempts) = error else { return None };
    let failures = attempts.iter().filter_map(|(_, error)| failure_of_text(&format!("{error:?}")));
    failures.min_by_key(|failure| *failure == Failure::NoAnswer)
}

fn failure_of_text(error: &str) -> Option<Failure> {
    const NO_ROUTE: [&str; 4] = ["HostUnreachable", "NetworkUnreachable", "TimedOut", "Timeout"];
    /// Error of the timeout of a whole dial. The connection was open then, because the timeout of connecting
    /// is shorter.
    const SILENT_HANDSHAKE: &str = "error: Timeout }";
    let has = |signs: &[&str]| signs.iter().any(|sign| error.contains(sign));
    match proof_of_text(error) {
        Proof::Absent => None,
        _ if has(&["MultiaddrNotSupported", "PermissionDenied"]) => None,
        _ if error.contains(SILENT_HANDSHAKE) => Some(Failure::Handshake),
        _ if has(&NO_ROUTE) => Some(Failure::NoAnswer),
        _ => Some(Failure::Handshake),
    }
}

/// Whether a dial failed for lack of a local resource, which is no evidence about the peer.
pub fn is_own_shortage(error: &DialError) -> bool {
    let DialError::Transport(attempts) = error else { return false };
    attempts.iter().any(|(address, error)| {
        let error = format!("{error:?}");
        let is_short = ["Too many open files", "AddrNotAvailable", "Cannot assign requested address"]
            .iter()
            .any(|sign| error.contains(sign));
        is_short && !has_no_route(address, &error)
    })
}

/// Whether an attempt failed because this host has no route to the address, or no address of its family.
fn has_no_route(address: &Multiaddr, error: &str) -> bool {
    let has = |signs: &[&str]| signs.iter().any(|sign| error.contains(sign));
    let is_ipv6 = matches!(address.iter().next(), Some(Protocol::Ip6(_)));
    has(&["NetworkUnreachable", "Network is unreachable", "Address family not supported"])
        // With IPv6 disabled, the kernel finds no local address.
        || is_ipv6 && has(&["AddrNotAvailable", "Cannot assign requested address"])
}

/// Returns the evidence in an error's text. The transport's layers wrap the system's error, and only its text
/// is accessible through all of them.
fn proof_of_text(error: &str) -> Proof {
    let has = |signs: &[&str]| signs.iter().any(|sign| error.contains(sign));
    if has(&["ConnectionRefused", "Connection refused", "WrongPeerId"]) {
        Proof::Absent
    } else if has(&["ConnectionReset", "Connection reset"]) {
        Proof::Dropped
    } else {
        Proof::Nothing
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use libp2p::TransportError;

    use super::*;

    fn failed(attempts: &[(&str, i32)]) -> DialError {
        let attempt = |(address, error): &(&str, i32)| {
            (address.parse().unwrap(), TransportError::Other(io::Error::from_raw_os_error(*error)))
        };
        DialError::Transport(attempts.iter().map(attempt).collect())
    }

    const V4: &str = "/ip4/10.0.0.1/tcp/7600";
    const V6: &str = "/ip6/fd77::1/tcp/7600";

    #[test]
    fn an_address_without_a_way_to_it_neither_proves_nor_spoils_a_proof() {
        for no_route in [libc::ENETUNREACH, libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT] {
            let refused = failed(&[(V4, libc::ECONNREFUSED), (V6, no_route)]);
            assert_eq!(proof(&refused), Proof::Absent, "{no_route}");
            assert!(!is_own_shortage(&refused), "{no_route}");
            assert_eq!(proof(&failed(&[(V6, no_route)])), Proof::Nothing, "{no_route}");
        }
        assert_eq!(proof(&failed(&[(V4, libc::ECONNREFUSED), (V6, libc::ETIMEDOUT)])), Proof::Nothing);
        assert_eq!(proof(&failed(&[(V4, libc::ECONNREFUSED), (V6, libc::ECONNREFUSED)])), Proof::Absent);
    }

    #[test]
    fn want_of_ports_and_files_is_this_machines_own() {
        assert!(is_own_shortage(&failed(&[(V4, libc::EADDRNOTAVAIL)])));
        assert!(is_own_shortage(&failed(&[(V6, libc::EMFILE)])));
        assert!(!is_own_shortage(&failed(&[(V4, libc::ECONNREFUSED)])));
    }
}
