//! Wire format: the messages between nodes and their bytes.
//!
//! A message is one byte of wire version, then the message in the format of `codec`. [`Gossip`] floods to all
//! members and is identified by its content: a node relays the same bytes once. [`Request`] and [`Response`]
//! are exchanged between two neighbours, for anti-entropy.
//!
//! The documentation of each variant states the receiver's duty. A message of an unknown kind is
//! [`Received::Unknown`], not malformed, so that older nodes relay the messages of newer ones.

mod check_reports;
pub(crate) mod codec;
mod message;
mod user_event;

pub use check_reports::{
    CheckReport, REPORT_OUTPUT_BYTES_MAX, REPORTS_MAX, decode_check_reports, encode_check_reports,
};
pub use codec::{DecodeError, MESSAGE_BYTES_MAX};
pub use message::{
    Clash, ClashClaim, Digest, Forget, ForgetClaim, Gossip, Message, PAGE_BYTES, Page, Received, Request,
    Response, WIRE_VERSION, decode, encode,
};
pub(crate) use user_event::LAMPORT_MAX;
pub use user_event::{
    AgedUserEvent, EVENT_FILTER_CHARS_MAX, EVENT_PAYLOAD_BYTES_MAX, EventId, UserEvent, UserEventClaim,
    UserEventContent,
};
