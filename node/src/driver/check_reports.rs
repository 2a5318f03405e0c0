//! Part of [`Driver`]: fetches the current results of an instance's health checks from the node that holds
//! its registration, and answers such requests of other nodes.

use hearsay_protocol::NodeId;
use libp2p::{Multiaddr, request_response::Event};
use tokio::sync::oneshot;

use super::{exchange::Exchange, state::Driver};
use crate::swarm::peer_of;

/// Maximum number of requests under way. Beyond the bound, readers get the gossiped outputs.
const REQUESTS_MAX: usize = 256;

impl Driver {
    /// Fetches the check reports of an instance from its holder. On failure the sender is dropped.
    pub(super) fn fetch_reports(
        &mut self,
        holder: NodeId,
        instance: String,
        answer: oneshot::Sender<Vec<u8>>,
    ) {
        let Some(peer) = peer_of(holder).filter(|_| self.report_requests.len() < REQUESTS_MAX) else {
            return;
        };
        let addresses: Vec<Multiaddr> = self.view.read(|table| {
            let member = table.member(holder);
            member.into_iter().flat_map(|m| &m.addresses).filter_map(|a| a.parse().ok()).collect()
        });
        let checks = &mut self.swarm.behaviour_mut().checks;
        let id = checks.send_request_with_addresses(&peer, instance.into_bytes(), addresses);
        self.report_requests.insert(id, answer);
    }

    pub(super) fn on_reports(&mut self, event: Event<Vec<u8>, Vec<u8>>) {
        match Exchange::of(event) {
            Some(Exchange::Request(_, instance, channel)) => {
                let answer = self.check_reports.reports(&String::from_utf8_lossy(&instance));
                // The peer may be gone.
                _ = self.swarm.behaviour_mut().checks.send_response(channel, answer);
            }
            Some(Exchange::Response(_, id, response)) => {
                if let (Some(answer), Some(response)) = (self.report_requests.remove(&id), response) {
                    // The client may be gone.
                    _ = answer.send(response);
                }
            }
            None => (),
        }
    }
}
