//! Observability of the gateway: counters, state for `GET /gateway`, access log, and trace context.

pub(crate) mod access;
pub(crate) mod counters;
pub(crate) mod status;
pub(crate) mod trace;
