//! Part of [`Driver`]: the event loop, which passes swarm events, commands and timers to the core.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use hearsay_protocol::{Command, Fatal, FireId, Health, Input, Pong};
use libp2p::{identify, mdns, swarm::SwarmEvent};

use super::{outcome::Outcome, state::Driver};
use crate::{
    driver_command::DriverCommand,
    swarm::{self, BehaviourEvent, RoundTrip, node_of},
};

/// How long leaving waits for the neighbours to receive the farewell.
const FAREWELL_MAX: Duration = Duration::from_millis(500);

impl Driver {
    /// Runs until all senders of commands are gone, or until the core reports a fatal error.
    ///
    /// # Errors
    /// The fatal error: another process holds the node's key. No farewell was sent, since other nodes would
    /// take it for that process's.
    pub async fn run(mut self) -> Result<(), Fatal> {
        self.apply_outputs()?;
        loop {
            let clock = self.view.clock();
            self.view.expire(clock.now());
            let due =
                self.view.poll_timeout().into_iter().fold(self.core.poll_timeout(clock.now()), Ord::min);
            let due = clock.instant(due).min(self.next_housekeeping);
            tokio::select! {
                biased;
                event = self.swarm.select_next_some() => self.on_swarm_event(event),
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return Ok(()),
                },
                Some((peer, addresses)) = self.dials.resolved() => self.dial_resolved(peer, addresses),
                () = tokio::time::sleep_until(due.into()) => self.handle_input(Input::Tick),
            }
            self.apply_outputs()?;
            self.publish_synced();
            self.outcomes.drain(..).for_each(Outcome::send);
            if self.next_housekeeping <= Instant::now() {
                self.run_periodic_tasks();
            }
        }
    }

    fn on_command(&mut self, command: DriverCommand) {
        match command {
            DriverCommand::Command(command) => self.handle_input(Input::Command(command)),
            DriverCommand::SetInstances(instances, answer) => {
                for (id, instance) in instances {
                    self.handle_input(Input::Command(match instance {
                        Some(instance) => Command::SetInstance(id, instance),
                        None => Command::RemoveInstance(id),
                    }));
                }
                self.outcomes.push(Outcome::Stated(answer));
            }
            DriverCommand::FetchReports(holder, instance, answer) => {
                self.fetch_reports(holder, instance, answer)
            }
            DriverCommand::Hint(peer, address) => self.handle_input(Input::Hint(peer, address.to_string())),
            DriverCommand::Join(addresses, answer) => self.join(addresses, answer),
            DriverCommand::SendReplicaRequest(peer, topic, id, bytes) => {
                self.send_replica_request(peer, topic, id, bytes)
            }
            DriverCommand::SendReplicaResponse(id, bytes) => self.send_replica_response(id, bytes),
            DriverCommand::Misbehaved(peer, how) => self.handle_input(Input::Misbehaved(peer, how)),
            DriverCommand::Maintenance(enable) => {
                self.presentation.health = if enable { Health::Critical } else { Health::Passing };
                self.present_addresses();
            }
            DriverCommand::Reload(reloaded, answer) => {
                // The node may be stopping.
                _ = answer.send(self.reload(reloaded));
            }
            DriverCommand::Forget(id, answer) => {
                let outcome = self.forget(id);
                self.outcomes.push(Outcome::Forgotten(answer, outcome));
            }
            DriverCommand::FireUserEvent(content, answer) => {
                let id = FireId(self.next_id());
                self.firing.insert(id, answer);
                self.handle_input(Input::Command(Command::FireUserEvent(id, content)));
            }
            DriverCommand::Alive(answer) => {
                // The watchdog may have stopped waiting.
                _ = answer.send(());
            }
            DriverCommand::Leave(done) => {
                self.handle_input(Input::Command(Command::Leave));
                self.farewell = Some((done, Instant::now() + FAREWELL_MAX));
                // Housekeeping concludes the farewell, at once if there is no neighbour.
                self.next_housekeeping = Instant::now();
            }
        }
    }

    pub(super) fn on_swarm_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished {
                peer_id, connection_id, endpoint, num_established, ..
            } => {
                self.dials.record_opened(peer_id, connection_id, &endpoint);
                self.on_established(peer_id, &endpoint, num_established.get());
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => self.on_disconnected(peer_id),
            SwarmEvent::OutgoingConnectionError { peer_id, connection_id, error } => {
                self.on_dial_failed(peer_id, connection_id, &error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                self.on_handshake_failed(&send_back_addr, &error);
            }
            SwarmEvent::NewListenAddr { .. } => self.present_addresses(),
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.present_addresses();
                self.disconnect_lost_address(&address);
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "listening for nodes"),
            _ => (),
        }
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Pulse(pong) => {
                if let Some(node) = node_of(pong.peer) {
                    let RoundTrip { rtt, offset_ms, root, since_ping } = pong.round_trip;
                    self.handle_input(Input::Pong(node, Pong { rtt, root, since_ping }));
                    if let Some(offset_ms) = offset_ms {
                        self.peer_clocks.record(pong.peer, offset_ms);
                    }
                }
            }
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Sync(event) => self.on_sync(event),
            BehaviourEvent::Journal(event) => self.on_replica(event),
            BehaviourEvent::Checks(event) => self.on_reports(event),
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                if info.protocol_version != swarm::identify_protocol(&self.cluster) {
                    self.on_other_cluster(peer_id, &info.protocol_version);
                } else {
                    self.on_identified(peer_id, &info.agent_version);
                }
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found))
            | BehaviourEvent::Mdns6(mdns::Event::Discovered(found)) => self.on_discovered(found),
            // An expired mDNS record is no evidence of failure.
            BehaviourEvent::Mdns(mdns::Event::Expired(expired))
            | BehaviourEvent::Mdns6(mdns::Event::Expired(expired)) => {
                for (peer, address) in expired {
                    if let Some(node) = node_of(peer) {
                        self.remove_announced(node, &address);
                    }
                }
            }
            BehaviourEvent::Identify(_) => (),
        }
    }
}
