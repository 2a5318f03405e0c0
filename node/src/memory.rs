//! Gives memory back that a burst of connections left behind.
//!
//! Whoever is named in everybody's `--join` fills everybody's table: with a hundred newcomers it holds buffers for a hundred connections
//! for a while, and for its lifetime would hold the twelve megabytes that they took, because the C library returns memory only from the
//! end of its heap.

use std::time::Duration;

use tokio::sync::watch;

use crate::driver::Neighbourhood;

/// Fewer connections than this leave nothing worth the trouble.
const BURST: usize = 16;
/// How long the number of connections must have stood still: newcomers come in waves.
const CALM: Duration = Duration::from_secs(2);

/// Returns memory whenever most of many connections have been closed, until the driver is gone.
pub(crate) async fn give_back_after_bursts(mut neighbourhood: watch::Receiver<Neighbourhood>) {
    loop {
        if neighbourhood.wait_for(|n| n.neighbours.len() >= BURST).await.is_err()
            || neighbourhood.wait_for(|n| n.neighbours.len() < BURST).await.is_err()
        {
            return;
        }
        while let Ok(changed) = tokio::time::timeout(CALM, neighbourhood.changed()).await {
            if changed.is_err() {
                return;
            }
        }
        if neighbourhood.borrow().neighbours.len() < BURST {
            give_back();
        }
    }
}

/// Takes some milliseconds, during which other threads may have to wait for memory.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "nobody wraps it, and it takes a number and touches only what is free")]
fn give_back() {
    // SAFETY: glibc's documentation calls it thread-safe, and it has no preconditions.
    let gave = unsafe { libc::malloc_trim(0) } == 1;
    tracing::debug!(gave, "returned unused memory");
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}
