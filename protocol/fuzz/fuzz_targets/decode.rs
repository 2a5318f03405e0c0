//! Fuzz target: passes any bytes to the decoders of messages, headers, instances and node ids. Decoded
//! messages encode to the same bytes.
#![no_main]

use hearsay_protocol::{Header, Instance, NodeId, wire::{Gossip, Message, Received, Request, Response, self}};
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
