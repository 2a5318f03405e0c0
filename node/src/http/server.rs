//! The HTTP server: listeners, connections, request bodies, responses, and the bounds on what clients hold.

pub(crate) mod accept;
mod accepted;
pub(crate) mod body_budget;
pub(crate) mod client_stream;
pub(crate) mod connection;
pub(crate) mod content_coding;
pub(crate) mod http2;
pub(crate) mod limits;
pub(crate) mod listeners;
pub(crate) mod request_body;
pub(crate) mod response;
pub(crate) mod response_budget;
pub(crate) mod stream_limit;
