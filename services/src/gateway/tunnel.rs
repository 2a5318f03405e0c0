//! What was upgraded (WebSocket): bytes both ways, until one side ends or nothing moves for too long.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split},
    time::{MissedTickBehavior, interval},
};

/// Held for each direction of each tunnel.
const BUFFER_BYTES: usize = 8 * 1024;

/// Passes bytes on both ways. Resolves when it is over; an error of either side is an end like another.
pub async fn run(client: OnUpgrade, instance: OnUpgrade, idle: Duration) {
    let (Ok(client), Ok(instance)) = tokio::join!(client, instance) else { return };
    let (mut from_client, mut to_client) = split(TokioIo::new(client));
    let (mut from_instance, mut to_instance) = split(TokioIo::new(instance));
    let moved = AtomicU64::new(0);
    tokio::select! {
        () = quiet(&moved, idle) => (),
        _ = async {
            tokio::join!(
                copy(&mut from_client, &mut to_instance, &moved),
                copy(&mut from_instance, &mut to_client, &moved),
            )
        } => (),
    }
}

/// Until one side ends; the other one is told, and may still finish what it has to say.
async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), moved: &AtomicU64) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let Some(part) = buffer.get(..n) else { break };
        if to.write_all(part).await.is_err() || to.flush().await.is_err() {
            break;
        }
        moved.fetch_add(1, Relaxed);
    }
    // It may be gone.
    let _ = to.shutdown().await;
}

/// Resolves when nothing has moved for as long as `idle`, or up to twice that.
async fn quiet(moved: &AtomicU64, idle: Duration) {
    let mut tick = interval(idle);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    let mut before = None;
    while before != Some(moved.load(Relaxed)) {
        before = Some(moved.load(Relaxed));
        tick.tick().await;
    }
}
