//! Agent around chitchat: Scuttlebutt gossip over UDP with a phi-accrual detector. A change sets the value of
//! a key.
//!
//! `second` has the usual interval of one second. `fast` gossips five times as often, and its detector
//! expects heartbeats in a fifth of the time. chitchat has no leave message, so the others declare a stopped
//! process dead.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use chitchat::{
    ChitchatConfig, ChitchatId, FailureDetectorConfig, ProtocolVersion, spawn_chitchat,
    transport::UdpTransport,
};
use tokio::sync::mpsc;

use super::{AgentCommand, tell};
use crate::{
    sighting::{self, What},
    system::{Start, swarm_port},
};

/// Factor by which `fast` is faster.
const FASTER: u32 = 5;
/// Interval that chitchat's own programs use.
const GOSSIP_EVERY: Duration = Duration::from_secs(1);
/// Time for which deleted keys are remembered. The agent deletes none.
const TOMBSTONE_GRACE: Duration = Duration::from_secs(3600);
/// Key whose value changes.
const KEY: &str = "change";

/// Runs until it is stopped.
pub(super) async fn run(start: &Start, is_fast: bool, mut words: mpsc::Receiver<AgentCommand>) -> Result<()> {
    let address = |index| SocketAddr::from((Ipv4Addr::LOCALHOST, swarm_port(index)));
    let mut detector = FailureDetectorConfig::default();
    let mut gossip_interval = GOSSIP_EVERY;
    if is_fast {
        gossip_interval /= FASTER;
        detector.initial_interval /= FASTER;
        detector.max_interval /= FASTER;
    }
    let config = ChitchatConfig {
        chitchat_id: ChitchatId::new(sighting::name(start.index), 0, address(start.index)),
        cluster_id: "bench".into(),
        gossip_interval,
        listen_addr: address(start.index),
        seed_nodes: start.seeds.iter().map(|seed| address(*seed).to_string()).collect(),
        failure_detector_config: detector,
        marked_for_deletion_grace_period: TOMBSTONE_GRACE,
        catchup_callback: None,
        extra_liveness_predicate: None,
        protocol_version: ProtocolVersion::V1,
    };
    let server = spawn_chitchat(config, Vec::new(), &UdpTransport).await?;
    let me = start.index;
    let on_change = move |event: chitchat::KeyChangeEvent<'_>| {
        if let Some(subject) = sighting::index(&event.node.node_id).filter(|subject| *subject != me) {
            tell(What::Changed, subject);
        }
    };
    server.with_chitchat(|chitchat| chitchat.subscribe_event(KEY, on_change).forever()).await;
    let mut live_nodes = server.with_chitchat(|chitchat| chitchat.live_nodes_watcher()).await;
    let mut known = BTreeSet::new();
    let mut version = 0;
    loop {
        tokio::select! {
            changed = live_nodes.changed() => {
                changed?;
                let live = live_nodes.borrow_and_update();
                let live = live.keys().filter_map(|id| sighting::index(&id.node_id)).filter(|index| *index != me);
                let live: BTreeSet<usize> = live.collect();
                live.difference(&known).for_each(|index| tell(What::Alive, *index));
                known.difference(&live).for_each(|index| tell(What::Failed, *index));
                known = live;
            }
            word = words.recv() => match word {
                Some(AgentCommand::Change) => {
                    version += 1;
                    server.with_chitchat(|chitchat| chitchat.self_node_state().set(KEY, version)).await;
                }
                Some(AgentCommand::Leave | AgentCommand::Stop) | None => return Ok(()),
            },
        }
    }
}
