//! Any bytes through every decoder: what decodes encodes to the same bytes.
#![no_main]

use hearsay_protocol::{
    NodeId,
    record::{Header, Instance},
    wire::{self, Gossip, Message, Received, Request, Response},
};
use libfuzzer_sys::fuzz_target;

fn check<T: Message>(bytes: &[u8]) {
    if let Ok(Received::Known(message)) = wire::decode::<T>(bytes) {
        assert_eq!(wire::encode(&message), bytes);
    }
}

fuzz_target!(|bytes: &[u8]| {
    check::<Gossip>(bytes);
    check::<Request>(bytes);
    check::<Response>(bytes);
    if let Ok(header) = Header::decode(bytes) {
        _ = header.check();
        _ = Header::decode(&header.encode()).expect("what was encoded decodes");
    }
    if let Ok(instance) = Instance::decode(bytes) {
        _ = instance.check();
        _ = Instance::decode(&instance.encode()).expect("what was encoded decodes");
    }
    _ = NodeId::from_peer_id_bytes(bytes);
    _ = std::str::from_utf8(bytes).map(str::parse::<NodeId>);
});
