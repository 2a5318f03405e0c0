//! [`UserEvent`]: an event that a user fired at one node for programs at all nodes, signed by that node; and
//! its [`EventId`].

use std::fmt;

use serde::{Deserialize, Serialize};

use super::codec;
use crate::{
    Identity, Incarnation, NodeId,
    id::Signature,
    record::{Invalid, NAME_CHARS_MAX, check_name, signed_bytes},
};

/// Longest payload in bytes, as in Consul. An event reports that something happened; data belongs elsewhere.
pub const EVENT_PAYLOAD_BYTES_MAX: usize = 512;
/// Longest filter, in characters.
pub const EVENT_FILTER_CHARS_MAX: usize = 128;
/// Largest Lamport time: the largest whole number that JSON of every language keeps.
pub(crate) const LAMPORT_MAX: u64 = (1 << 53) - 1;

/// What a user fires. A filter is a regular expression; an empty one accepts all.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct UserEventContent {
    /// Name of the event: 1 to 128 characters.
    pub name: String,
    /// Payload, at most [`EVENT_PAYLOAD_BYTES_MAX`] bytes.
    pub payload: Vec<u8>,
    /// Accepts the names of the nodes that list the event.
    pub node_filter: String,
    /// Accepts the names of services. A node without an instance of such a service does not list the event.
    pub service_filter: String,
    /// Accepts tags. One of the instances that `service_filter` accepts must have such a tag.
    pub tag_filter: String,
}

impl UserEventContent {
    /// Checks the bounds, but not whether the filters are regular expressions.
    ///
    /// # Errors
    /// Names the field and the limit.
    pub fn check(&self) -> Result<(), Invalid> {
        check_name("name", &self.name, NAME_CHARS_MAX)?;
        if self.payload.len() > EVENT_PAYLOAD_BYTES_MAX {
            let problem =
                format!("has {} bytes; at most {EVENT_PAYLOAD_BYTES_MAX} are allowed", self.payload.len());
            return Err(Invalid::new("payload", problem));
        }
        for (field, filter) in
            [("node", &self.node_filter), ("service", &self.service_filter), ("tag", &self.tag_filter)]
        {
            let chars = filter.chars().count();
            if chars > EVENT_FILTER_CHARS_MAX {
                let problem = format!("has {chars} characters; at most {EVENT_FILTER_CHARS_MAX} are allowed");
                return Err(Invalid::new(field, problem));
            }
        }
        if !self.tag_filter.is_empty() && self.service_filter.is_empty() {
            return Err(Invalid::new("tag", "is given without service; give a filter of services, too"));
        }
        Ok(())
    }
}

/// Content of a [`UserEvent`], with its origin.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UserEventClaim {
    /// Origin: the node at which the event was fired.
    pub by: NodeId,
    /// Incarnation of the origin.
    pub incarnation: Incarnation,
    /// Number of the event among those of this incarnation, counted from 1.
    pub number: u64,
    /// Lamport time: higher than that of each event that the origin had received.
    pub lamport: u64,
    /// What was fired.
    pub content: UserEventContent,
}

impl UserEventClaim {
    /// Signs the claim for a cluster.
    pub fn sign(self, me: &Identity, cluster: &str) -> UserEvent {
        let signature = me.sign(&signed_bytes("user event", cluster, &self));
        UserEvent { claim: self, signature }
    }
}

/// An event that a user fired, signed by its origin. The receiver's duty is stated at
/// [`Gossip::UserEvent`](super::Gossip::UserEvent).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UserEvent {
    /// The statement that is signed.
    pub claim: UserEventClaim,
    signature: Signature,
}

impl UserEvent {
    /// Whether the claim carries its origin's signature for this cluster.
    pub fn is_signed(&self, cluster: &str) -> bool {
        self.claim.by.has_signed(&signed_bytes("user event", cluster, &self.claim), &self.signature)
    }

    /// Whether all fields are within their bounds.
    pub(crate) fn is_bounded(&self) -> bool {
        self.claim.content.check().is_ok() && (1..=LAMPORT_MAX).contains(&self.claim.lamport)
    }

    /// Id of the event. It follows from origin, incarnation and number, so no node can give its event the id
    /// of another node's.
    pub fn id(&self) -> EventId {
        let UserEventClaim { by, incarnation, number, .. } = &self.claim;
        let hash = blake3::hash(&codec::encode(&("user event", by, incarnation, number)));
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.as_bytes()[..16]);
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        EventId(bytes)
    }
}

/// Id of a user event: a UUID of version 8 (RFC 9562).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct EventId([u8; 16]);

impl EventId {
    /// Number by which a neighbour tells which events this node has: the first half of the id.
    pub(crate) fn short(self) -> u64 {
        self.0[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Index of a list whose newest event this is: the two halves of the id, combined by exclusive or, as
    /// Consul's clients compute it.
    pub fn index(self) -> u64 {
        self.short() ^ self.0[8..].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, byte) in self.0.iter().enumerate() {
            if [4, 6, 8, 10].contains(&place) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// A user event in a response to a neighbour.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AgedUserEvent {
    /// Time since the event was fired, in milliseconds, as the sender estimates it.
    pub age_ms: u64,
    /// The event.
    pub event: UserEvent,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> UserEventContent {
        UserEventContent { name: "deploy".into(), payload: b"v2".to_vec(), ..UserEventContent::default() }
    }

    fn event(incarnation: u64, number: u64) -> UserEvent {
        let me = Identity::from_seed(&[7; 32]);
        let incarnation = Incarnation(incarnation);
        UserEventClaim { by: me.id(), incarnation, number, lamport: 1, content: content() }.sign(&me, "home")
    }

    #[test]
    fn an_event_is_bound_to_its_origin_and_cluster() {
        let sent = event(1, 1);
        assert!(sent.is_signed("home") && !sent.is_signed("elsewhere"));
        let altered = UserEventClaim {
            content: UserEventContent { payload: b"v3".to_vec(), ..content() },
            ..sent.claim.clone()
        };
        assert!(!UserEvent { claim: altered, ..sent }.is_signed("home"));
    }

    #[test]
    fn an_id_is_a_uuid_of_its_own_and_gives_the_index() {
        let ids = [event(1, 1), event(1, 2), event(2, 1)].map(|event| event.id());
        assert!(ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2]);
        assert_eq!(ids[0], event(1, 1).id());
        let text = ids[0].to_string();
        let lengths: Vec<usize> = text.split('-').map(str::len).collect();
        assert_eq!((lengths, &text[14..15]), (vec![8, 4, 4, 4, 12], "8"));
        let digits = text.replace('-', "");
        let half = |digits: &str| u64::from_str_radix(digits, 16).unwrap();
        assert_eq!(ids[0].index(), half(&digits[..16]) ^ half(&digits[16..]));
    }

    #[test]
    fn a_field_out_of_bounds_is_named() {
        assert_eq!(content().check(), Ok(()));
        let long = "x".repeat(EVENT_FILTER_CHARS_MAX + 1);
        for (field, altered) in [
            ("name", UserEventContent { name: String::new(), ..content() }),
            ("name", UserEventContent { name: "a\nb".into(), ..content() }),
            ("payload", UserEventContent { payload: vec![0; EVENT_PAYLOAD_BYTES_MAX + 1], ..content() }),
            ("node", UserEventContent { node_filter: long, ..content() }),
            ("tag", UserEventContent { tag_filter: "v1".into(), ..content() }),
        ] {
            assert_eq!(altered.check().unwrap_err().field, field);
        }
        assert!(event(1, 1).is_bounded());
        let mut late = event(1, 1);
        late.claim.lamport = LAMPORT_MAX + 1;
        assert!(!late.is_bounded());
    }
}
