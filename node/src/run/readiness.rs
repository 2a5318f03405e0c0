//! Makes a starting node ready: once it has compared its table with that of a peer, or after at most 5 s.
//!
//! Such a node lists only its own instances at first. Clients of Consul's interface and Prometheus would drop
//! all others. So requests of these clients wait while the node starts.
//!
//! A node that knows no peer is ready at once, because it may be the first one of its cluster. But it may
//! also have lost its memory, and find its peers a moment later. So clients of xDS wait for it as for any
//! other.

use std::time::Duration;

use tokio::sync::watch;

use crate::{driver_command::Neighbourhood, http::Readiness};

/// Longest time from serving HTTP to ready, and of the search for a first peer. Guess: a peer that runs
/// answers within a second, and a client should not wait long where no peer runs.
pub(super) const FIRST_SYNC_MAX: Duration = Duration::from_secs(5);

/// Makes a starting or searching node ready after its first anti-entropy session, or after this time.
pub(super) async fn become_ready(
    readiness: watch::Sender<Readiness>,
    mut neighbourhood: watch::Receiver<Neighbourhood>,
    max: Duration,
) {
    let synced = neighbourhood.wait_for(|neighbourhood| neighbourhood.has_synced);
    let has_waited = tokio::time::timeout(max, synced).await.is_err();
    if has_waited && *readiness.borrow() == Readiness::Starting {
        let waited = max.as_secs();
        tracing::warn!(
            waited,
            "no known peer has answered; this node may not list the cluster's instances yet"
        );
    }
    pass_on(&readiness, &[Readiness::Starting, Readiness::Searching], Readiness::Ready);
}

/// Lets a starting node that knows no peer answer while it searches for one.
pub(super) fn begin_search(readiness: &watch::Sender<Readiness>) {
    pass_on(readiness, &[Readiness::Starting], Readiness::Searching);
}

/// Changes the readiness to `to`, if it is one of `from`. A node that is leaving stays so.
fn pass_on(readiness: &watch::Sender<Readiness>, from: &[Readiness], to: Readiness) {
    readiness.send_if_modified(|readiness| {
        let passes = from.contains(readiness);
        if passes {
            *readiness = to;
        }
        passes
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
        begin_search(&readiness);
        assert_eq!(*is_ready.borrow(), Readiness::Searching);
        neighbourhood.send_modify(|neighbourhood| neighbourhood.has_synced = true);
        become_ready(readiness.clone(), neighbours.clone(), Duration::MAX).await;
        assert_eq!(*is_ready.borrow(), Readiness::Ready);

        readiness.send_replace(Readiness::Leaving);
        become_ready(readiness.clone(), neighbours, Duration::MAX).await;
        begin_search(&readiness);
        assert_eq!(*is_ready.borrow(), Readiness::Leaving);
    }
}
