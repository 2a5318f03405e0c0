//! The newest outputs of checks, between the node that is asked and the node that holds the instance.

use std::collections::BTreeMap;

use hearsay_protocol::NodeId;
use libp2p::{
    Multiaddr,
    request_response::{self, Message, OutboundRequestId},
};
use tokio::sync::oneshot;

use super::Driver;
use crate::swarm::peer_of;

/// Questions under way. Beyond it the gossiped outputs are shown.
const ASKED_MAX: usize = 256;

/// What is under way.
pub(super) type AskedReports = BTreeMap<OutboundRequestId, oneshot::Sender<Vec<u8>>>;

impl Driver {
    /// Asks a member how the checks of an instance are. No answer: the sender is dropped.
    pub(super) fn ask_for_reports(
        &mut self,
        holder: NodeId,
        instance: String,
        tell: oneshot::Sender<Vec<u8>>,
    ) {
        let Some(peer) = peer_of(holder).filter(|_| self.asked_reports.len() < ASKED_MAX) else { return };
        let addresses: Vec<Multiaddr> = self.view.read(|table| {
            let member = table.member(holder);
            member.into_iter().flat_map(|m| &m.addresses).filter_map(|a| a.parse().ok()).collect()
        });
        let checks = &mut self.swarm.behaviour_mut().checks;
        let id = checks.send_request_with_addresses(&peer, instance.into_bytes(), addresses);
        self.asked_reports.insert(id, tell);
    }

    pub(super) fn on_reports(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        match event {
            request_response::Event::Message {
                message: Message::Request { request, channel, .. }, ..
            } => {
                let instance = String::from_utf8_lossy(&request);
                let answer = self.holdings.reports(&instance);
                // The asker may be gone.
                _ = self.swarm.behaviour_mut().checks.send_response(channel, answer);
            }
            request_response::Event::Message {
                message: Message::Response { request_id, response }, ..
            } => {
                if let Some(tell) = self.asked_reports.remove(&request_id) {
                    // The client may be gone.
                    _ = tell.send(response);
                }
            }
            request_response::Event::OutboundFailure { request_id, .. } => {
                self.asked_reports.remove(&request_id);
            }
            request_response::Event::InboundFailure { .. } | request_response::Event::ResponseSent { .. } => {
            }
        }
    }
}
