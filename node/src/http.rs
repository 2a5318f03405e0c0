//! HTTP of a node: server, request guard, JSON API, HTML pages, and plug-ins.
//!
//! A handler reads the provider table in memory ([`View`](crate::view::View)): it clones pointers under the
//! lock and writes JSON outside. Changes go through the registrar or to the node's main loop.
//!
//! | folder or file | content |
//! | --- | --- |
//! | `server/` | listeners, connections, and the bounds on them, on request bodies and on responses |
//! | `guard/` | checks of every request before its body is read; sign-in of browsers |
//! | `api/` | handlers of the JSON paths |
//! | `ui/` | the node's own pages |
//! | `plugins/` | dispatch to plug-ins, and the node as they see it |
//! | `router`, `routes`, `route_table` | the order of the checks; the node's own paths |
//! | `forward` | `?node=`: writes for another node; inner requests for a role of another node |
//! | `reentry` | inner requests: a handler enters the router again for its client |
//! | `state` | the state that all handlers share |
//! | `fuzzing` | properties for a fuzz target |
//!
//! A request passes `guard` and `server/request_body`, then reaches a handler or a plug-in. Its response
//! passes `server/response_budget` and `server/response`.

pub(crate) mod api;
mod forward;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(crate) mod guard;
mod plugins;
pub(crate) mod reentry;
pub(crate) mod route_table;
mod router;
mod routes;
pub(crate) mod server;
pub(crate) mod state;
mod ui;

#[cfg(test)]
mod tests;

pub use guard::{access::Access, host_names::HostNames};
pub use plugins::host::{NodeHost, OwnHttp};
pub use router::router;
pub use server::{
    accept::serve, limits::Limits, listeners::Listeners, response_budget::ResponseBudget,
    stream_limit::StreamLimit,
};
pub use state::{AppState, Readiness};
