//! Runs a waiting topic, whose database cannot be read until its disk has room. The database does not exist,
//! is damaged, or needs its tables rebuilt.
//!
//! The rest of the node runs meanwhile. Appends get the same answer as on a running node whose disk is full,
//! readers get the reason, and requests of other replicas get `Unable`. Once the disk has room, the worker
//! starts as usual.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{atomic::Ordering, mpsc::RecvTimeoutError},
    time::Instant,
};

use hearsay_protocol::{
    NodeId,
    journal::{AppendError, Durability, JournalResponse, RestoredJournal},
    wire,
};

use super::{
    open::{OpenError, open},
    read_only::{REOPEN_EVERY, has_room},
    store::database::Store,
    topic_command::TopicCommand,
    worker::{TopicWorker, WorkerParts},
};
use crate::driver_command::DriverCommand;

/// Live replicas and connected peers, for the worker that is not running yet.
#[derive(Default)]
struct Peers {
    replicas: BTreeMap<NodeId, Durability>,
    connected: BTreeSet<NodeId>,
}

/// Waits for room on the disk, then runs the topic's worker.
pub(super) fn run(parts: WorkerParts) {
    parts.metrics.read_only.store(1, Ordering::Relaxed);
    let mut peers = Peers::default();
    let Some(opened) = await_room(&parts, &mut peers) else { return };
    parts.readers.set_opener(None);
    let (topic, changed) = (parts.config.topic.clone(), parts.changed.clone());
    match TopicWorker::new(parts, opened) {
        Ok(mut worker) => {
            tracing::info!(topic, "there is room on the disk again: the topic is read and written to");
            changed.send_modify(|changes| *changes += 1);
            drop(changed);
            worker.set_peers(peers.replicas, peers.connected);
            worker.run();
        }
        // Queued appends are now answered with `DiskFailed`, later ones with `Busy`.
        Err(error) => tracing::error!(topic, %error, "the topic does not start; restart the node"),
    }
}

/// Handles commands until the database is open. `None`: the node ends.
fn await_room(parts: &WorkerParts, peers: &mut Peers) -> Option<(Store, RestoredJournal)> {
    let (mut tried_at, mut last_problem) = (Instant::now(), String::new());
    loop {
        match parts.commands.recv_timeout(REOPEN_EVERY.saturating_sub(tried_at.elapsed())) {
            Ok(command) => {
                parts.queued_bytes.fetch_sub(command.bytes(), Ordering::Relaxed);
                handle_command(parts, command, peers);
            }
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => (),
        }
        if tried_at.elapsed() < REOPEN_EVERY {
            continue;
        }
        tried_at = Instant::now();
        if !has_room(&parts.path) {
            continue;
        }
        let (topic, cluster) = (&parts.config.topic, &parts.config.cluster);
        match open(&parts.path, topic, parts.projection.as_ref(), cluster) {
            Ok(opened) => return Some(opened),
            Err(OpenError::NoRoom { .. }) => (),
            // Logged once, not every second.
            Err(error) if error.to_string() != last_problem => {
                tracing::error!(topic, %error, "the topic still cannot be opened");
                last_problem = error.to_string();
            }
            Err(_) => (),
        }
        parts.metrics.disk_errors.fetch_add(1, Ordering::Relaxed);
    }
}

fn handle_command(parts: &WorkerParts, command: TopicCommand, peers: &mut Peers) {
    match command {
        TopicCommand::Append(_, _, _, answer) => {
            let full = Err(AppendError::DiskFull);
            parts.metrics.record_answer(&full);
            parts.metrics.disk_errors.fetch_add(1, Ordering::Relaxed);
            // The client may have gone.
            _ = answer.send(full);
        }
        TopicCommand::Request(_, request_id, _) => {
            let unable = wire::encode(&JournalResponse::Unable);
            // An error: the driver has ended, and the node with it.
            _ = parts.driver.blocking_send(DriverCommand::SendReplicaResponse(request_id, unable));
        }
        TopicCommand::Replicas(replicas) => peers.replicas = replicas,
        TopicCommand::Connected(peer) => _ = peers.connected.insert(peer),
        TopicCommand::Disconnected(peer) => _ = peers.connected.remove(&peer),
        // Once the topic is open, other replicas tell it which replicas are forgotten.
        TopicCommand::Damaged(_) | TopicCommand::Response(..) | TopicCommand::ForgetReplica(_) => (),
    }
}
