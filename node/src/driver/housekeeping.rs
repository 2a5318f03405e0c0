//! Part of [`Driver`]: work done about once a second (due disconnects and blocks, mDNS, outsiders, farewell,
//! metrics).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;

use super::state::Driver;
use crate::{logging, warnings};

/// The period of housekeeping.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// How long a node of another cluster stays blocked.
const BLOCK_FOR: Duration = Duration::from_secs(60);
/// Maximum number of blocked nodes of other clusters. A full list is emptied and fills again.
const BLOCKED_MAX: usize = 1024;

impl Driver {
    /// Does the periodic work.
    pub(super) fn run_periodic_tasks(&mut self) {
        let now = Instant::now();
        self.next_housekeeping = now + HOUSEKEEPING;
        for peer in remove_due(&mut self.disconnect_at, now) {
            _ = self.swarm.disconnect_peer_id(peer);
        }
        for peer in remove_due(&mut self.block_at, now) {
            self.block(peer, now);
        }
        if let Some(next) = self.disconnect_at.values().chain(self.block_at.values()).min() {
            self.next_housekeeping = self.next_housekeeping.min(*next);
        }
        for peer in remove_due(&mut self.blocked_until, now) {
            self.swarm.behaviour_mut().blocked.unblock_peer(peer);
        }
        self.update_mdns();
        self.update_outsiders(now);
        self.conclude_farewell();
        self.publish_metrics();
    }

    /// Blocks a peer of another cluster for a while, which closes its connections.
    fn block(&mut self, peer: PeerId, now: Instant) {
        if self.blocked_until.len() >= BLOCKED_MAX {
            for peer in std::mem::take(&mut self.blocked_until).into_keys() {
                self.swarm.behaviour_mut().blocked.unblock_peer(peer);
            }
        }
        self.blocked_until.insert(peer, now + BLOCK_FOR);
        self.swarm.behaviour_mut().blocked.block_peer(peer);
    }

    fn publish_metrics(&self) {
        let mut counters = self.core.counters().list().to_vec();
        counters.push((
            "gossip_undelivered",
            "Gossip messages dropped because a neighbour's queue was full",
            self.gossip_undelivered,
        ));
        counters.push((
            "strangers",
            "Connections closed because the peer belongs to another cluster",
            self.strangers,
        ));
        counters.push((
            "mdns_floods",
            "Times that mDNS was restarted because too many nodes were announced",
            self.mdns_floods,
        ));
        counters.push((
            "handshakes_failed",
            "Connections that failed in the handshake: another cluster key, or no node",
            self.handshakes_failed,
        ));
        counters.push((
            "handshakes_refused",
            "Connections closed before their handshake because too many handshakes were under way, of their host or in all",
            self.swarm.behaviour().pending.denied(),
        ));
        counters.push((
            "outsiders_dropped",
            "Outsiders not listed because there are too many",
            self.outsiders.dropped,
        ));
        counters.push((
            "log_lines_dropped",
            "Log lines dropped because the reader was too slow",
            logging::lines_dropped(),
        ));
        counters.push((
            "log_monitors_dropped",
            "Clients that followed the log of this node and were dropped because they read too slowly",
            logging::readers_dropped(),
        ));
        counters.extend(logging::shipped());
        counters.extend(self.core.user_event_counters().list());
        counters.push((
            "user_events_filtered",
            "User events not listed because their filters do not accept this node",
            self.user_events.filtered(),
        ));
        self.metrics.set_protocol(counters);
        self.warnings.set(warnings::CLOCK, self.peer_clocks.warning());
        let lateness = self.core.lateness(self.view.clock().now());
        self.metrics.set_protocol_gauges(vec![
            (
                "outsiders",
                "Nodes that were announced or named and cannot be reached: another key or cluster, or no answer",
                self.outsiders.list().len() as f64,
            ),
            ("neighbours", "Peers this node is connected to", self.connected.len() as f64),
            (
                "lateness_seconds",
                "The worst recent lateness of own timers and of answers",
                lateness.as_secs_f64(),
            ),
            (
                "clock_offset_seconds",
                "Median clock offset of peers; positive where their clocks are ahead",
                self.peer_clocks.median_ms() as f64 / 1e3,
            ),
            (
                "warnings",
                "Conditions that a person should mend, as /readyz lists them",
                self.warnings.list().len() as f64,
            ),
        ]);
    }

    /// Answers [`DriverCommand::Leave`](crate::driver_command::DriverCommand::Leave) once every neighbour has
    /// the farewell, or its deadline has passed.
    pub(super) fn conclude_farewell(&mut self) {
        if let Some((done, until)) = self.farewell.take() {
            if self.sync_requests.is_empty() || until <= Instant::now() {
                // The caller may have given up.
                _ = done.send(());
            } else {
                self.next_housekeeping = self.next_housekeeping.min(until);
                self.farewell = Some((done, until));
            }
        }
    }
}

/// Removes and returns the peers that are due.
fn remove_due(times: &mut BTreeMap<PeerId, Instant>, now: Instant) -> Vec<PeerId> {
    let due: Vec<PeerId> = times.iter().filter(|(_, at)| **at <= now).map(|(peer, _)| *peer).collect();
    due.iter().for_each(|peer| _ = times.remove(peer));
    due
}
