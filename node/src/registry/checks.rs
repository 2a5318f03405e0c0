//! Health checks of registered programs.
//!
//! | kind | passes when |
//! | --- | --- |
//! | `http` | a request is answered with 2xx, or as `expect_status` and `expect_body` say; 429 warns |
//! | `tcp` | a connection opens |
//! | `grpc` | `grpc.health.v1` answers SERVING |
//! | `ttl` | the program reports within the TTL |
//! | `alias` | another instance or service is passing |
//! | `watch` | a connection that is held open stays open |
//! | `process` | the process lives |
//! | `exec` | a command exits with 0; 1 warns |
//!
//! Status is state, output is not: a run whose status is the one before changes nothing that other nodes see.

mod alias;
mod connect;
mod exec;
mod grpc;
mod http;
mod members;
pub mod metrics;
mod outcome;
mod probe;
mod process;
mod reporter;
pub mod runner;
mod spec;
mod state;
mod tcp;
#[cfg(test)]
mod tests;
mod thresholds;
mod tls;
mod ttl;
mod watch;

pub use outcome::OUTPUT_BYTES_MAX;
pub use process::owner_uid;
pub use spec::{CheckKind, CheckSpec, HttpCheck, INTERVAL_DEFAULT, ProcessIdentity, TIMEOUT_DEFAULT};
