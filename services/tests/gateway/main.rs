//! The gateway as its clients and its instances meet it: over real sockets on loopback, with instances that are killed, stall, and lie.
//!
//! Clients here speak bytes wherever what is tested is what no library would send.

// In a test, what cannot be unwrapped is the failure.
#![allow(clippy::unwrap_used)]

mod failing;
mod http2;
mod instance;
mod passing;
mod refusing;
mod routing;
mod world;
