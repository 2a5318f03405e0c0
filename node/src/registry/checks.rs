//! Health checks of registered programs: one file per kind, and their specs, runner, state and metrics.
//!
//! | kind | passes when |
//! | --- | --- |
//! | `http` | a request is answered with 2xx, or as `expect_status` and `expect_body` say; 429 warns |
//! | `tcp` | a connection opens |
//! | `udp` | a datagram is not refused |
//! | `h2ping` | an HTTP/2 PING is acknowledged |
//! | `grpc` | `grpc.health.v1` answers SERVING |
//! | `ttl` | the program reports within the TTL |
//! | `alias` | another instance or service is passing |
//! | `watch` | a held connection stays open |
//! | `process` | the process lives |
//! | `exec` | a command exits with 0; 1 warns |
//!
//! Only status is gossiped: a run that does not change the status changes nothing for other nodes.

mod alias;
mod connect;
mod exec;
mod grpc;
mod h2ping;
mod http;
mod members;
pub(crate) mod metrics;
mod outcome;
mod probe;
mod process;
mod reporter;
pub(crate) mod runner;
mod spec;
mod state;
mod tcp;
#[cfg(test)]
mod tests;
mod thresholds;
mod tls;
mod ttl;
mod udp;
mod watch;

pub use process::owner_uid;
pub use spec::{
    CheckKind, CheckSpec, CheckTls, HttpCheck, INTERVAL_DEFAULT, ProcessIdentity, TIMEOUT_DEFAULT,
};
