//! Connections of the gateway's clients: listener and threads, the state and byte stream of a connection, and
//! write timeouts.

pub(crate) mod client_stream;
pub(crate) mod connection;
pub(crate) mod framing;
pub(crate) mod listener;
mod stream_executor;
