//! Integration tests of the gateway over loopback sockets, with instances that are killed, stall, and send
//! invalid responses. Clients send raw bytes where no library would send them.

// A failed unwrap is a failed test.
#![allow(clippy::unwrap_used)]

mod failover;
mod forwarding;
mod harness;
mod http2;
mod instance;
mod refusals;
mod routing;
