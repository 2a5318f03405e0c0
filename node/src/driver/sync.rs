//! Part of [`Driver`]: passes received anti-entropy requests and responses to the core, and publishes that
//! the first exchange has ended.

use hearsay_protocol::{Input, RequestId};
use libp2p::request_response::Event;

use super::{exchange::Exchange, state::Driver};
use crate::swarm::node_of;

impl Driver {
    pub(super) fn on_sync(&mut self, event: Event<Vec<u8>, Vec<u8>>) {
        match Exchange::of(event) {
            Some(Exchange::Request(peer, bytes, channel)) => {
                let request_id = RequestId(self.next_id());
                self.sync_channels.insert(request_id, channel);
                if let Some(from) = node_of(peer) {
                    self.handle_input(Input::Request { from, request_id, bytes });
                }
            }
            Some(Exchange::Response(peer, id, bytes)) => {
                if let (Some(request_id), Some(from)) = (self.sync_requests.remove(&id), node_of(peer)) {
                    self.handle_input(Input::Response { from, request_id, bytes });
                }
                self.conclude_farewell();
            }
            None => (),
        }
    }

    /// Publishes that the first anti-entropy session has ended. The view has its entries already.
    pub(super) fn publish_synced(&mut self) {
        let has_synced = self.core.counters().sync_completed > 0;
        self.neighbourhood
            .send_if_modified(|last| std::mem::replace(&mut last.has_synced, has_synced) != has_synced);
    }
}
