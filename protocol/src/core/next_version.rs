//! Imitation of the next protocol version: a header field, a kind of entry and a kind of message that this
//! version does not know. Upgrade tests run it together with real nodes. Every release has it disabled: only
//! a node that is built with the feature `next` can set [`Config::is_next`](crate::Config::is_next).

use std::time::Duration;

use super::{machine::Core, own};
use crate::{
    Time,
    io::Output,
    record::{Header, Key},
    wire::{WIRE_VERSION, codec},
};

/// Protocol version that the imitation states.
const PROTOCOL: u16 = own::PROTOCOL + 1;
/// Kind of its entry and of its message, unknown to this version.
const KIND: u8 = 77;
/// Interval at which it publishes a message.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

impl Core {
    /// Encodes a header with one additional field at its end.
    pub(super) fn encode_next_header(&self, header: Header) -> Vec<u8> {
        let mut value = Header { protocol: PROTOCOL, ..header }.encode();
        value.extend(codec::encode(&"a field of the next version".to_owned()));
        value
    }

    /// States an entry of the unknown kind.
    pub(super) fn state_unknown_entry(&mut self, now: Time) {
        self.state_fact(now, Key::Other(KIND, "next".into()), Some(b"a fact of the next version".to_vec()));
    }

    /// Publishes a message of the unknown kind. Each one differs, because gossip floods no message twice.
    pub(super) fn publish_unknown_kind(&mut self, now: Time) {
        let mut bytes = vec![WIRE_VERSION, KIND];
        bytes.extend(codec::encode(&(self.id, now.since_start())));
        self.outputs.push_back(Output::Publish(bytes));
        self.next_prune = self.next_prune.min(now + PUBLISH_INTERVAL);
    }
}
