//! Copies the bytes of a tunnel both ways after an upgrade (WebSocket), until both sides have ended or no
//! byte has moved for too long.

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

/// Buffer of each direction of a tunnel.
const BUFFER_BYTES: usize = 8 * 1024;

/// Copies bytes both ways. An error of one side ends that direction. Resolves when both directions have
/// ended, or no byte has moved for `idle`.
pub(crate) async fn run(client: OnUpgrade, instance: OnUpgrade, idle: Duration) {
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

/// Copies bytes until one side ends, and closes the other side for writing.
async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), moved: &AtomicU64) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        let Some(part) = buffer.get(..n) else { break };
        if to.write_all(part).await.is_err() || to.flush().await.is_err() {
            break;
        }
        moved.fetch_add(1, Relaxed);
    }
    // An error means that the peer has closed the connection.
    _ = to.shutdown().await;
}

/// Resolves when no byte has moved for `idle`; this can take up to twice `idle`.
async fn quiet(moved: &AtomicU64, idle: Duration) {
    let mut tick = interval(idle);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    let mut last = None;
    while last != Some(moved.load(Relaxed)) {
        last = Some(moved.load(Relaxed));
        tick.tick().await;
    }
}
