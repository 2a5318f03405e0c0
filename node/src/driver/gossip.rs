//! Part of [`Driver`]: passes gossip messages to the core, and the core's judgements to gossipsub, which
//! relays accepted messages.

use hearsay_protocol::{GossipId, Input, Judgement};
use libp2p::gossipsub::{Event, MessageAcceptance};

use super::state::Driver;
use crate::swarm::node_of;

impl Driver {
    pub(super) fn on_gossip(&mut self, event: Event) {
        match event {
            Event::Message { propagation_source, message_id, message } => {
                let id = GossipId(self.next_id());
                self.unjudged.insert(id, (message_id, propagation_source));
                if let Some(from) = node_of(propagation_source) {
                    self.handle_input(Input::Gossip { id, from, bytes: message.data });
                }
            }
            Event::Subscribed { peer_id, topic } if topic == self.topic.hash() => {
                if let Some(node) = node_of(peer_id) {
                    self.handle_input(Input::Subscribed(node));
                }
            }
            Event::SlowPeer { .. } => self.gossip_undelivered += 1,
            _ => (),
        }
    }

    /// Passes the core's judgement of a message to gossipsub.
    pub(super) fn report_judgement(&mut self, id: GossipId, judgement: Judgement) {
        let acceptance = match judgement {
            Judgement::Accept => MessageAcceptance::Accept,
            Judgement::Ignore => MessageAcceptance::Ignore,
            Judgement::Reject => MessageAcceptance::Reject,
        };
        if let Some((message, source)) = self.unjudged.remove(&id) {
            let gossip = &mut self.swarm.behaviour_mut().gossip;
            // False: gossipsub has forgotten the message meanwhile.
            _ = gossip.report_message_validation_result(&message, &source, acceptance);
        }
    }
}
