//! [`Exchange`]: a libp2p request-response event, reduced to a peer's request or the response to a request of
//! this node.

use libp2p::{
    PeerId,
    request_response::{Event, Message, OutboundRequestId, ResponseChannel},
};

/// An event of a request-response protocol.
pub(super) enum Exchange {
    /// A peer's request. If the channel is dropped, the request fails at the peer.
    Request(PeerId, Vec<u8>, ResponseChannel<Vec<u8>>),
    /// The response to a request of this node; `None` if the request failed.
    Response(PeerId, OutboundRequestId, Option<Vec<u8>>),
}

impl Exchange {
    /// Returns the request or response in an event, if there is one.
    pub(super) fn of(event: Event<Vec<u8>, Vec<u8>>) -> Option<Self> {
        match event {
            Event::Message { peer, message: Message::Request { request, channel, .. }, .. } => {
                Some(Self::Request(peer, request, channel))
            }
            Event::Message { peer, message: Message::Response { request_id, response }, .. } => {
                Some(Self::Response(peer, request_id, Some(response)))
            }
            Event::OutboundFailure { peer, request_id, .. } => Some(Self::Response(peer, request_id, None)),
            Event::InboundFailure { .. } | Event::ResponseSent { .. } => None,
        }
    }
}
