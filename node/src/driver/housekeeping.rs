//! What the driver does about once a second: what is due, what is slow to change, and the figures for `/metrics`.

use std::{collections::BTreeMap, time::Instant};

use libp2p::PeerId;

use super::{BLOCK_FOR, BLOCKED_MAX, Driver, HOUSEKEEPING};
use crate::{logging, warnings};

impl Driver {
    /// What happens seldom.
    pub(super) fn keep_house(&mut self) {
        let now = Instant::now();
        self.next_housekeeping = now + HOUSEKEEPING;
        for peer in take_due(&mut self.parting, now) {
            _ = self.swarm.disconnect_peer_id(peer);
        }
        for peer in take_due(&mut self.blocking, now) {
            self.block(peer, now);
        }
        if let Some(next) = self.parting.values().chain(self.blocking.values()).min() {
            self.next_housekeeping = self.next_housekeeping.min(*next);
        }
        for peer in take_due(&mut self.blocked_until, now) {
            self.swarm.behaviour_mut().blocked.unblock_peer(peer);
        }
        self.keep_mdns();
        self.keep_outsiders(now);
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
            "Gossip messages dropped because a neighbour did not take them",
            self.gossip_undelivered,
        ));
        counters.push((
            "strangers",
            "Connections parted from because the peer is of another cluster",
            self.strangers,
        ));
        counters.push((
            "mdns_floods",
            "Times mDNS was begun anew because somebody announced too many nodes",
            self.mdns_floods,
        ));
        counters.push((
            "handshakes_failed",
            "Connections that failed in the handshake: another cluster key, or no node",
            self.handshakes_failed,
        ));
        counters.push((
            "handshakes_refused",
            "Connections closed before their handshake, because too many of their host or of all were going on",
            self.swarm.behaviour().pending.denied(),
        ));
        counters.push((
            "outsiders_dropped",
            "Nodes that cannot be talked to and are not listed, because there are too many",
            self.outsiders.dropped,
        ));
        counters.push(("log_lines_dropped", "Lines of the log that nobody took", logging::lines_dropped()));
        counters.extend(logging::shipped());
        self.metrics.set_protocol(counters);
        self.warnings.set(warnings::CLOCK, self.peer_clocks.warning());
        let lateness = self.core.lateness(self.view.clock().now());
        self.metrics.set_protocol_gauges(vec![
            (
                "outsiders",
                "Nodes that were announced or named and cannot be talked to: another key or cluster, or no answer",
                self.outsiders.list().len() as f64,
            ),
            ("neighbours", "Peers this node is connected to", self.connected.len() as f64),
            (
                "lateness_seconds",
                "The worst lateness lately seen, own timers and answers",
                lateness.as_secs_f64(),
            ),
            (
                "clock_offset_seconds",
                "How far the clocks of peers are ahead of this node's, the median",
                self.peer_clocks.median_ms() as f64 / 1e3,
            ),
            (
                "warnings",
                "Conditions that a person should mend, as /readyz lists them",
                self.warnings.list().len() as f64,
            ),
        ]);
    }

    /// Ends the leave once every neighbour has the farewell, or its time is over.
    pub(super) fn conclude_farewell(&mut self) {
        if let Some((done, until)) = self.farewell.take() {
            if self.asked.is_empty() || until <= Instant::now() {
                // The caller may have given up.
                _ = done.send(());
            } else {
                self.next_housekeeping = self.next_housekeeping.min(until);
                self.farewell = Some((done, until));
            }
        }
    }
}

/// Takes out the peers whose time has come.
fn take_due(times: &mut BTreeMap<PeerId, Instant>, now: Instant) -> Vec<PeerId> {
    let due: Vec<PeerId> = times.iter().filter(|(_, at)| **at <= now).map(|(peer, _)| *peer).collect();
    due.iter().for_each(|peer| _ = times.remove(peer));
    due
}
