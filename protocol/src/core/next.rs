//! A node that speaks a next version of the protocol: with a field, a kind of entry and a kind of message that this version does not know. So it is
//! tried with real nodes whether two versions live together. Only with the feature `next`, never in what ships.

use std::time::Duration;

use super::{Core, own};
use crate::{
    Time,
    io::Output,
    record::{Header, Key},
    wire::{WIRE_VERSION, codec},
};

/// The version that it speaks.
const PROTOCOL: u16 = own::PROTOCOL + 1;
/// Of an entry and of a message that only it knows.
const KIND: u8 = 77;
/// Between two of its messages.
const HAIL_EVERY: Duration = Duration::from_secs(1);

impl Core {
    /// A header with a field more at its end.
    pub(super) fn next_header(&self, header: Header) -> Vec<u8> {
        let mut value = Header { protocol: PROTOCOL, ..header }.encode();
        value.extend(codec::encode(&"a field of the next version".to_owned()));
        value
    }

    /// States an entry of a kind of its own.
    pub(super) fn state_next(&mut self, now: Time) {
        self.state_fact(now, Key::Other(KIND, "next".into()), Some(b"a fact of the next version".to_vec()));
    }

    /// Publishes a message of a kind of its own, another one each time: gossip has no memory, and nothing repairs what nobody understands.
    pub(super) fn hail(&mut self, now: Time) {
        let mut bytes = vec![WIRE_VERSION, KIND];
        bytes.extend(codec::encode(&(self.id, now.since_start())));
        self.out.push_back(Output::Publish(bytes));
        self.next_tidy = self.next_tidy.min(now + HAIL_EVERY);
    }
}
