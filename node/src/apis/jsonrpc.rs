//! JSON-RPC of a node: version 2.0 at `POST /rpc`, and both versions, 1.0 and 2.0, by lines over TCP
//! (`--jsonrpc-tcp`) for clients of Go's `net/rpc/jsonrpc`.
//!
//! A method is another form of a path of the HTTP API: it becomes an [inner request](crate::http::reentry).
//! So a call has the checks, limits and results of its path, and there are no handlers here.
//!
//! | file | content |
//! | --- | --- |
//! | `method` | the methods and the paths to which they belong |
//! | `message` | requests and responses in both versions |
//! | `error` | error codes, and the problem details of an error |
//! | `receipts` | tokens and durability of writes, for later calls and the response |
//! | `session` | carries out single requests and batches within bounds |
//! | `endpoint` | `POST /rpc` |
//! | `server` | the listener of `--jsonrpc-tcp` |
//! | `metrics` | counters |
//! | `fuzzing` | properties of messages and calls, for a fuzz target |

mod endpoint;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod message;
mod method;
pub(crate) mod metrics;
mod receipts;
mod server;
mod session;

pub(crate) use endpoint::answer;
pub use server::JsonRpcServer;

/// The path of JSON-RPC over HTTP.
pub(crate) const PATH: &str = "/rpc";
