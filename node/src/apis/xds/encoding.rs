//! Encoded messages: with their type, and their versions.

use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

/// Encodes a message with its type.
pub(super) fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

/// Returns the version of a resource: a hash of its content, so that it is the same on every node and after a
/// restart, and a client that reconnects gets only what differs.
pub(super) fn version_of(resource: &Any) -> String {
    let hash = blake3::hash(&resource.value);
    hash.to_hex().chars().take(16).collect()
}
