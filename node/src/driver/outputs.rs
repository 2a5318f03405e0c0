//! Part of [`Driver`]: carries out the core's outputs: publishes gossip, dials, disconnects, pings, sends
//! requests and responses, and applies changes to the provider table.

use hearsay_protocol::{Change, Fatal, Output, RootPrefix};

use super::{outcome::Outcome, replication::may_change_replicas, state::Driver};
use crate::{event_log, swarm::peer_of};

impl Driver {
    /// Carries out all outputs of the core.
    ///
    /// # Errors
    /// The fatal error of the core.
    pub(super) fn apply_outputs(&mut self) -> Result<(), Fatal> {
        let mut changes = Vec::new();
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Change(change) => {
                    if let Change::RootHash(root) = change {
                        self.swarm.behaviour_mut().pulse.set_root(RootPrefix::of(root));
                    }
                    changes.push(change);
                }
                Output::Fatal(fatal) => {
                    self.view.apply(self.view.clock().now(), changes);
                    return Err(fatal);
                }
                output => self.apply_output(output),
            }
        }
        if !changes.is_empty() {
            let may_change = changes.iter().any(may_change_replicas);
            self.view.apply(self.view.clock().now(), changes);
            if may_change && self.update_replicas() {
                // New replicas are an input, to which the core may have outputs.
                return self.apply_outputs();
            }
        }
        Ok(())
    }

    fn apply_output(&mut self, output: Output) {
        match output {
            Output::Publish(bytes) => {
                // Without peers, or with full queues, anti-entropy delivers the entries later.
                if self.swarm.behaviour_mut().gossip.publish(self.topic.clone(), bytes).is_err() {
                    self.gossip_undelivered += 1;
                }
            }
            Output::Judge(id, judgement) => self.report_judgement(id, judgement),
            Output::Dial(peer, addresses) => self.dial(Some(peer), addresses),
            Output::DialAddress(peer, address) => self.dial(peer, vec![address]),
            Output::Disconnect(peer) => {
                if let Some(peer) = peer_of(peer) {
                    _ = self.swarm.disconnect_peer_id(peer);
                }
            }
            Output::Ping(peer) => {
                if let Some(peer) = peer_of(peer) {
                    self.swarm.behaviour_mut().pulse.ping(peer);
                }
            }
            Output::Request(peer, request_id, bytes) => {
                if let Some(peer) = peer_of(peer) {
                    let id = self.swarm.behaviour_mut().sync.send_request(&peer, bytes);
                    self.sync_requests.insert(id, request_id);
                }
            }
            Output::Respond(request_id, bytes) => {
                if let Some(channel) = self.sync_channels.remove(&request_id) {
                    // The peer may be gone.
                    _ = self.swarm.behaviour_mut().sync.send_response(channel, bytes);
                }
            }
            Output::ForgottenByOperator(id) => self.replication.journals.forget_replica(id),
            Output::UserEvent(event) => self.user_events.deliver(*event),
            Output::Fired(id, fired) => {
                if let Some(answer) = self.firing.remove(&id) {
                    self.outcomes.push(Outcome::Fired(answer, fired));
                }
            }
            Output::Event(event) => event_log::log_event(&event),
            Output::Change(_) | Output::Fatal(_) => (),
        }
    }
}
