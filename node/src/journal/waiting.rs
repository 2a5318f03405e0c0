//! A topic whose database cannot be read before its disk has room: the database does not exist, is damaged,
//! or has to have its tables rebuilt.
//!
//! The rest of the node runs meanwhile. Appends are answered as on a running node whose disk is full, readers
//! get the reason, and requests of other replicas get `Unable`. Once there is room, the keeper begins as it
//! would have at the start.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{atomic::Ordering, mpsc::RecvTimeoutError},
    time::Instant,
};

use hearsay_protocol::{
    NodeId,
    journal::{Durability, Restored, append::AppendError, message::JournalResponse},
    wire,
};

use super::{
    OpenError, Told,
    keeper::{Keeper, Parts, REOPEN_EVERY},
    open,
    read_only::has_room,
    store::Store,
};
use crate::driver::Order;

/// Waits for room, and keeps the topic from then on.
pub(super) fn run(parts: Parts) {
    parts.shown.read_only.store(1, Ordering::Relaxed);
    let (mut replicas, mut connected) = (BTreeMap::new(), BTreeSet::new());
    let Some(opened) = wait(&parts, &mut replicas, &mut connected) else { return };
    parts.readers.set_opener(None);
    let (topic, changed) = (parts.config.topic.clone(), parts.changed.clone());
    match Keeper::new(parts, opened) {
        Ok(mut keeper) => {
            tracing::info!(topic, "there is room on the disk again: the topic is read and written to");
            changed.send_modify(|changes| *changes += 1);
            drop(changed);
            keeper.set_peers(replicas, connected);
            keeper.run();
        }
        // From now on appends are answered that the disk failed.
        Err(error) => tracing::error!(topic, %error, "the topic does not start; restart the node"),
    }
}

/// Answers commands until the database is open. `None`: the node ends.
fn wait(
    parts: &Parts,
    replicas: &mut BTreeMap<NodeId, Durability>,
    connected: &mut BTreeSet<NodeId>,
) -> Option<(Store, Restored)> {
    let (mut looked, mut last_problem) = (Instant::now(), String::new());
    loop {
        match parts.told.recv_timeout(REOPEN_EVERY.saturating_sub(looked.elapsed())) {
            Ok(told) => {
                parts.waiting_bytes.fetch_sub(told.bytes(), Ordering::Relaxed);
                answer(parts, told, replicas, connected);
            }
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => (),
        }
        if looked.elapsed() < REOPEN_EVERY {
            continue;
        }
        looked = Instant::now();
        if !has_room(&parts.path) {
            continue;
        }
        let (topic, cluster) = (&parts.config.topic, &parts.config.cluster);
        match open(&parts.path, topic, parts.projection.as_ref(), cluster) {
            Ok(opened) => return Some(opened),
            Err(OpenError::NoRoom { .. }) => (),
            // Once, and not every second.
            Err(error) if error.to_string() != last_problem => {
                tracing::error!(topic, %error, "the topic still cannot be opened");
                last_problem = error.to_string();
            }
            Err(_) => (),
        }
        parts.shown.disk_errors.fetch_add(1, Ordering::Relaxed);
    }
}

fn answer(
    parts: &Parts,
    told: Told,
    replicas: &mut BTreeMap<NodeId, Durability>,
    connected: &mut BTreeSet<NodeId>,
) {
    match told {
        Told::Append(_, _, _, answer) => {
            let full = Err(AppendError::DiskFull);
            parts.shown.answered(&full);
            parts.shown.disk_errors.fetch_add(1, Ordering::Relaxed);
            // The caller may have gone.
            _ = answer.send(full);
        }
        Told::Request(_, ticket, _) => {
            let unable = wire::encode(&JournalResponse::Unable);
            // An error: the driver has ended, and with it the node.
            _ = parts.orders.blocking_send(Order::AnswerReplica(ticket, unable));
        }
        Told::Replicas(now) => *replicas = now,
        Told::Connected(peer) => _ = connected.insert(peer),
        Told::Disconnected(peer) => _ = connected.remove(&peer),
        // What was forgotten meanwhile, the other replicas tell once the topic is open.
        Told::Damaged(_) | Told::Response(..) | Told::ForgetReplica(_) => (),
    }
}
