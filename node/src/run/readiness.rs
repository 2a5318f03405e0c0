//! Makes a starting node ready: once it has compared its table with that of a peer, or after at most 5 s.
//!
//! Such a node lists only its own instances at first. Clients of Consul's interface and Prometheus would drop
//! all others. So requests of these clients wait while the node starts.

use std::time::Duration;

use tokio::sync::watch;

use crate::{driver_command::Neighbourhood, http::Readiness};

/// Longest time from serving HTTP to ready. Guess: a peer that runs answers within a second, and a client
/// should not wait long where no peer runs.
pub(super) const FIRST_SYNC_MAX: Duration = Duration::from_secs(5);

/// Makes a starting node ready after its first anti-entropy session, or after this time.
pub(super) async fn become_ready(
    readiness: watch::Sender<Readiness>,
    mut neighbourhood: watch::Receiver<Neighbourhood>,
    max: Duration,
) {
    let synced = neighbourhood.wait_for(|neighbourhood| neighbourhood.has_synced);
    if tokio::time::timeout(max, synced).await.is_err() {
        let waited = max.as_secs();
        tracing::warn!(
            waited,
            "no known peer has answered; this node may not list the cluster's instances yet"
        );
    }
    set_ready(&readiness);
}

/// Makes a starting node ready. A node that is leaving stays so.
pub(super) fn set_ready(readiness: &watch::Sender<Readiness>) {
    readiness.send_if_modified(|readiness| {
        let is_starting = *readiness == Readiness::Starting;
        if is_starting {
            *readiness = Readiness::Ready;
        }
        is_starting
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_is_ready_after_its_first_session_or_after_a_bound_and_not_once_it_leaves() {
        let (readiness, is_ready) = watch::channel(Readiness::Starting);
        let (neighbourhood, neighbours) = watch::channel(Neighbourhood::default());
        become_ready(readiness.clone(), neighbours.clone(), Duration::from_millis(1)).await;
        assert_eq!(*is_ready.borrow(), Readiness::Ready);

        readiness.send_replace(Readiness::Starting);
        neighbourhood.send_modify(|neighbourhood| neighbourhood.has_synced = true);
        become_ready(readiness.clone(), neighbours.clone(), Duration::MAX).await;
        assert_eq!(*is_ready.borrow(), Readiness::Ready);

        readiness.send_replace(Readiness::Leaving);
        become_ready(readiness.clone(), neighbours, Duration::MAX).await;
        assert_eq!(*is_ready.borrow(), Readiness::Leaving);
    }
}
