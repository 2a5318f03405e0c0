//! Paths of Consul that a node refuses, and why: 501 in place of an answer that would promise too much.

use axum::http::StatusCode;
use hearsay_services::Problem;

fn refuse(reason: &str) -> Problem {
    Problem::new(StatusCode::NOT_IMPLEMENTED, reason)
}

/// `/v1/session/*`: sessions and locks.
pub(super) async fn sessions() -> Problem {
    refuse(
        "sessions and locks need consensus, which Hearsay does not have; use a system with consensus for locks",
    )
}

/// `/v1/txn`: transactions.
pub(super) async fn transactions() -> Problem {
    refuse("transactions need consensus, which Hearsay does not have; write each key by itself")
}

/// `/v1/query*`: prepared queries.
pub(super) async fn prepared_queries() -> Problem {
    refuse("prepared queries are not supported; ask /v1/health/service/NAME with filter, near and passing")
}

/// `/v1/connect/*` and `/v1/agent/connect/*`: the service mesh.
pub(super) async fn mesh() -> Problem {
    refuse("Hearsay has no service mesh and no certificate authority")
}

/// `/v1/agent/join`: a running node takes no further addresses to join.
pub(super) async fn join() -> Problem {
    refuse("nodes find each other on a network; elsewhere start the node with --join ADDRESS")
}

/// `/v1/agent/reload`: a reload is a signal.
pub(super) async fn reload() -> Problem {
    refuse("send SIGHUP to the node, or run `systemctl reload`: it reads its options again")
}
